"""One file per vendor: wire format, fault table, usage. Retries, limits and money are handled elsewhere."""
