"""The guarded database: sessions, transactions that are repeated as a whole, pool, errors, health."""
