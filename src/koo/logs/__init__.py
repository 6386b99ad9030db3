"""Log lines for events and for failed or refused calls, on the standard library's logger `koo`."""
