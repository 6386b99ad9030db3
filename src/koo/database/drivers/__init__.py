"""One file per driver: how it begins, cancels, cuts off and closes. Nothing here counts, retries or decides."""
