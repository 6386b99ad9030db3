"""The decisions, pure: no `await`, no clock, no dice. Time is a number handed in, chance a function handed in."""
