"""The platform's core: settings, database, errors, and the guard for AI services and for your own operations."""
