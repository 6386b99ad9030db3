"""What operators and processes tell all processes on the same store: resets, overrides, cooldowns, blocked keys.

Everybody asks for what is new twice a second, which is how a reset is followed within a second. A new signal's number
is drawn under a lock that is kept until its commit: else a smaller number could become visible after a larger one, and
whoever had read the larger one would never see it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from koo.storage.base import StoreUnavailable
from koo.storage.transaction import Row, Transaction

if TYPE_CHECKING:
    from koo.storage.store import SqlStore

log = logging.getLogger("koo")

SignalKind = Literal["reset", "override", "cooldown", "latch"]

POLL_S = 0.5
KEPT_S = 7 * 86_400.0
NEWEST = "SELECT max(id) FROM koo_signals GROUP BY kind, target"
PRUNE = f"DELETE FROM koo_signals WHERE at_ms < :before_ms AND id NOT IN ({NEWEST})"
COLUMNS = "id, at_ms, process, kind, target, payload"


@dataclass(frozen=True, slots=True)
class Signal:
    """One act: what was done (`kind`) to whom (`target`), by which `process`, when (`at` in wall seconds).

    `id` grows; `payload` is what the kind needs to know, as it was given.
    """

    id: int
    at: float
    process: str
    kind: str
    target: str
    payload: dict[str, Any]


class Signals:
    """The acts of all processes on one store."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store

    async def publish(self, kind: SignalKind, target: str, payload: dict[str, Any] | None = None) -> int:
        """Tell all others; gives the signal's number. `payload` must be JSON-ready. Raises `StoreUnavailable`."""
        wall = self._store.clock.wall()
        values = {
            "at_ms": int(wall * 1000),
            "kind": kind,
            "target": target,
            "payload": json.dumps(payload or {}),
        }

        def write(tx: Transaction) -> int:
            tx.rows("{latecomers_wait}")
            tx.run(PRUNE, {"before_ms": int((wall - KEPT_S) * 1000)})
            sql = """INSERT INTO koo_signals (at_ms, process, kind, target, payload)
                VALUES (:at_ms, :process, :kind, :target, :payload) RETURNING id"""
            return int(tx.rows(sql, {**values, "process": self._store.process})[0][0])

        return await self._store.run(write)

    async def latest(self) -> list[Signal]:
        """The last act of each kind on each target, oldest first: what a process that starts has to know."""
        sql = f"SELECT {COLUMNS} FROM koo_signals WHERE id IN ({NEWEST}) ORDER BY id"
        rows = await self._store.run(lambda tx: tx.rows(sql), exclusive=False)
        return [_signal(row) for row in rows]

    async def since(self, cursor: int) -> list[Signal]:
        """All acts after number `cursor`, this process's own included. Raises `StoreUnavailable`."""
        sql = f"SELECT {COLUMNS} FROM koo_signals WHERE id > :cursor ORDER BY id LIMIT 1000"
        rows = await self._store.run(lambda tx: tx.rows(sql, {"cursor": cursor}), exclusive=False)
        return [_signal(row) for row in rows]

    async def cursor(self) -> int:
        """The number of the last act. Raises `StoreUnavailable`."""
        sql = "SELECT coalesce(max(id), 0) FROM koo_signals"
        rows = await self._store.run(lambda tx: tx.rows(sql), exclusive=False)
        return int(rows[0][0])

    async def follow(self, cursor: int | None = None) -> AsyncGenerator[Signal, None]:
        """Acts of other processes after number `cursor` (None: from now on), as they come, without end.

        While the store is away there are none; nothing is missed when it is back.
        """
        while True:
            try:
                if cursor is None:
                    cursor = await self.cursor()
                found = await self.since(cursor)
            except StoreUnavailable:
                found = []  # The store itself says so once, and again when it is back.
            for signal in found:
                cursor = signal.id
                if signal.process != self._store.process:
                    yield signal
            if not found:
                await self._store.clock.sleep(POLL_S)


def _signal(row: Row) -> Signal:
    id_, at_ms, process, kind, target, payload = row
    return Signal(id_, at_ms / 1000, process, kind, target, json.loads(payload))
