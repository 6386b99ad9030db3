"""One file a vendor: wire format, fault table, usage. Nothing here retries, counts or decides."""
