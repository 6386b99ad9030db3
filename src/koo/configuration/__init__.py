"""The variables: which exist, where they are set, and how they are checked. `koo.settings` puts it all together."""
