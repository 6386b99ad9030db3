"""Which states deserve a person's attention, since when, and who is notified."""
