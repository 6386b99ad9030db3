"""What can be set, where it is set, and what to say about it; `koo.settings` puts it together."""
