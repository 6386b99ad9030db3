"""The guarded database: sessions, transactions that are run again as a whole, pool, errors, health."""
