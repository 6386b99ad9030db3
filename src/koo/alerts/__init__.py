"""Alerts: which states need a person's attention, since when, and who is notified."""
