"""The guarded AI services: gateway, money, fallback; what a vendor's wire format says is in `providers`."""
