"""Log lines: what happened, and which calls failed or were refused, on the standard library's logger `koo`."""
