"""The channels that notify people of alerts, one file each."""
