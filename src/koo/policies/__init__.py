"""The decisions, as pure code: no `await`, no clock, no random numbers. Time and chance are passed in."""
