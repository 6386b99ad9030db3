"""Health, metrics, and the one aggregation that every view is made of."""
