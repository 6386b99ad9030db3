"""One file per vendor: wire format, fault table, usage. Nothing here retries, counts or decides."""
