"""What the ledger forgets: entries, and the treasuries, purses and processes of periods that ended long ago.

A treasury is deleted together with all of its purses, so that the books of a period are complete or gone. A treasury's
limit is reported every few seconds while its period runs, and never afterwards; so a treasury whose limit was not
reported for that long is over, whatever its period is called. A process that stopped so long ago and reports now opens
the treasury of its old period again, but nothing is granted there; no sum of a current period changes. Processes are
deleted last, when no purse refers to them: their row makes a late beat of a dead or written-off process harmless.
"""

from __future__ import annotations

from koo.policies.treasury import DAY_MS
from koo.storage.transaction import Transaction, Transactions

BATCH = 1000
"""Little at a time, because beats wait meanwhile."""

ENTRIES = """DELETE FROM koo_entries
    WHERE id IN (SELECT id FROM koo_entries WHERE day < :before_day ORDER BY day LIMIT :batch) RETURNING 1"""
# What was carried over from an older schema has no time for its limit, only a day.
OVER = "(limit_at_ms < :before_ms AND (limit_at_ms > 0 OR period < :before_day))"
OLD_TREASURIES = (
    f"SELECT budget, period FROM koo_treasuries WHERE {OVER} ORDER BY budget, period LIMIT :batch"
)
TREASURY = f"DELETE FROM koo_treasuries WHERE budget = :budget AND period = :period AND {OVER}"
# Not those of a treasury that a late process has opened again meanwhile.
PURSES = """DELETE FROM koo_purses WHERE budget = :budget AND period = :period AND NOT EXISTS
    (SELECT 1 FROM koo_treasuries t WHERE t.budget = koo_purses.budget AND t.period = koo_purses.period)"""
PROCESSES = """DELETE FROM koo_processes WHERE name IN (SELECT name FROM koo_processes
    WHERE seen_ms < :before_ms AND name NOT IN (SELECT process FROM koo_purses) ORDER BY name LIMIT :batch)
    RETURNING 1"""


class Past:
    """The past of one store."""

    def __init__(self, executor: Transactions) -> None:
        self._executor = executor

    async def prune(self, before_day: int) -> bool:
        """Forget a little of what ended before that UTC day; True if there may be more.

        Raises `StoreUnavailable`.
        """
        values = {"before_day": before_day, "before_ms": before_day * DAY_MS, "batch": BATCH}

        def write(tx: Transaction) -> bool:
            entries = len(tx.rows(ENTRIES, values))
            keys = [
                {**values, "budget": budget, "period": period}
                for budget, period in tx.rows(OLD_TREASURIES, values)
            ]
            if keys:
                tx.run(TREASURY, keys)
                tx.run(PURSES, keys)
            processes = len(tx.rows(PROCESSES, values))
            return max(entries, len(keys), processes) >= BATCH

        return await self._executor.run(write)
