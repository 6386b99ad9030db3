"""One file per driver: how to begin, cancel, cut off and close. Nothing here counts, retries or decides."""
