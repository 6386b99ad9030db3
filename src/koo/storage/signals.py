"""Acts that concern all processes on the same store: resets, overrides, cooldowns, blocked keys.

Each process receives new ones with its beat (`roll_call.py`), so up to a hundred processes follow a reset within 1.5
seconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from koo.options import DAY_S
from koo.storage.base import Signal, SignalKind
from koo.storage.transaction import Row, Transaction, Transactions

SIGNAL_KEPT_S = 7 * DAY_S
NEWEST = "SELECT max(id) FROM koo_signals GROUP BY kind, target"
PRUNE = f"DELETE FROM koo_signals WHERE at_ms < :before_ms AND id NOT IN ({NEWEST})"
COLUMNS = "id, at_ms, process, kind, target, payload"
SINCE_MAX = 1000
SINCE = f"SELECT {COLUMNS} FROM koo_signals WHERE id > :cursor ORDER BY id LIMIT {SINCE_MAX}"


class SqlSignals:
    """The acts of all processes on one store."""

    def __init__(self, executor: Transactions) -> None:
        self._executor = executor

    async def publish(self, kind: SignalKind, target: str, payload: dict[str, Any] | None = None) -> int:
        """Publish to all other processes; returns the signal's number. `payload` must be JSON-ready.

        Raises `StoreUnavailable`.
        """
        at_ms = int(self._executor.clock.wall() * 1000)
        return await self._executor.run(
            lambda tx: publish_in(tx, at_ms, self._executor.process, kind, target, payload or {})
        )

    async def latest(self) -> list[Signal]:
        """The last act of each kind on each target, oldest first, for a process that starts."""
        sql = f"SELECT {COLUMNS} FROM koo_signals WHERE id IN ({NEWEST}) ORDER BY id"
        rows = await self._executor.run(lambda tx: tx.rows(sql), exclusive=False)
        return [_signal(row) for row in rows]

    async def since(self, cursor: int) -> list[Signal]:
        """All acts after number `cursor`, this process's own included. Raises `StoreUnavailable`."""
        return await self._executor.run(lambda tx: since_in(tx, cursor)(), exclusive=False)

    async def cursor(self) -> int:
        """The number of the last act. Raises `StoreUnavailable`."""
        sql = "SELECT coalesce(max(id), 0) FROM koo_signals"
        rows = await self._executor.run(lambda tx: tx.rows(sql), exclusive=False)
        return int(rows[0][0])


def since_in(tx: Transaction, cursor: int) -> Callable[[], list[Signal]]:
    """Request the signals after number `cursor`, in a transaction; calling the result waits for them."""
    found = tx.later(SINCE, {"cursor": cursor})
    return lambda: [_signal(row) for row in found()]


def publish_in(
    tx: Transaction, at_ms: int, process: str, kind: SignalKind, target: str, payload: dict[str, Any]
) -> int:
    """Publish to all other processes, in a transaction; returns the signal's number."""
    values = {
        "at_ms": at_ms,
        "process": process,
        "kind": kind,
        "target": target,
        "payload": json.dumps(payload),
    }
    # The lock is held until COMMIT, so signals become visible in the order of their numbers. Without it, a transaction
    # with number 7 could commit after one with number 8. A process that had read up to 8 by then would never see 7.
    tx.rows("{latecomers_wait}")
    tx.run(PRUNE, {"before_ms": at_ms - int(SIGNAL_KEPT_S * 1000)})
    sql = """INSERT INTO koo_signals (at_ms, process, kind, target, payload)
        VALUES (:at_ms, :process, :kind, :target, :payload) RETURNING id"""
    return int(tx.rows(sql, values)[0][0])


def _signal(row: Row) -> Signal:
    id_, at_ms, process, kind, target, payload = row
    return Signal(id_, at_ms / 1000, process, kind, target, json.loads(payload))
