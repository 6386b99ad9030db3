"""Health, metrics, and the single aggregation from which every view is built."""
