"""The guarded AI services: gateway, fallback and money. The vendors' wire formats are in `providers`."""
