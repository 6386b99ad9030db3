"""What can be set, where it is set, and what there is to say about it; `koo.settings` puts it together."""
