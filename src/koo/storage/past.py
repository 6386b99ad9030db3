"""Deletes old ledger rows: entries, and the treasuries, purses and processes of periods that ended long ago.

A treasury is deleted together with all of its purses, so the books of a period are either complete or gone. A
treasury's limit is reported every few seconds during its period and never afterwards. So a treasury whose limit was not
reported for that long belongs to an old period, whatever the period's number is. A process that stopped that long ago
and reports now reopens the treasury of its old period, but nothing is granted there, and no sum of a current period
changes. Processes are deleted last, when no purse refers to them: while its row exists, a late beat of a dead or
written-off process does no harm.
"""

from __future__ import annotations

from koo.policies.treasury import DAY_MS
from koo.storage.transaction import Transaction, Transactions

BATCH = 1000
"""A small batch, because beats wait while one is deleted."""

ENTRIES = """DELETE FROM koo_entries
    WHERE id IN (SELECT id FROM koo_entries WHERE day < :before_day ORDER BY day LIMIT :batch) RETURNING 1"""
# Rows carried over from an older schema have no `limit_at_ms`, only a day.
OVER = "(limit_at_ms < :before_ms AND (limit_at_ms > 0 OR period < :before_day))"
OLD_TREASURIES = (
    f"SELECT budget, period FROM koo_treasuries WHERE {OVER} ORDER BY budget, period LIMIT :batch"
)
TREASURY = f"DELETE FROM koo_treasuries WHERE budget = :budget AND period = :period AND {OVER}"
# This keeps the purses of a treasury that a late process has reopened since it was selected.
PURSES = """DELETE FROM koo_purses WHERE budget = :budget AND period = :period AND NOT EXISTS
    (SELECT 1 FROM koo_treasuries t WHERE t.budget = koo_purses.budget AND t.period = koo_purses.period)"""
PROCESSES = """DELETE FROM koo_processes WHERE name IN (SELECT name FROM koo_processes
    WHERE seen_ms < :before_ms AND name NOT IN (SELECT process FROM koo_purses) ORDER BY name LIMIT :batch)
    RETURNING 1"""


class Past:
    """The old rows of one store."""

    def __init__(self, executor: Transactions) -> None:
        self._executor = executor

    async def prune(self, before_day: int) -> bool:
        """Delete one batch of what ended before that UTC day; returns True if there may be more.

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
