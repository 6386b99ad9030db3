"""Acts that concern all processes on the same store: resets, overrides, cooldowns, blocked keys.

Each process receives new ones with its beat (`roll_call.py`), so up to a hundred processes follow a reset within 1.5
seconds.

The machines' clocks may differ by minutes, and an override for one minute must last one minute everywhere. So the store
stamps a signal with its own clock, and each reader translates the times in it to the clock of its own machine.
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
KEPT_MS = int(SIGNAL_KEPT_S * 1000)
PRUNE = f"DELETE FROM koo_signals WHERE at_ms < {{clock_ms}} - {KEPT_MS} AND id NOT IN ({NEWEST})"
COLUMNS = "id, {clock_ms} - at_ms, process, kind, target, payload"
WALL, UNTIL = "wall", "until"
"""Two keys of a payload: the time on the publisher's clock, and when the act ends by that clock."""
SAME_CLOCK_S = 5.0
"""Below this the difference may be the time that the transactions took; then all processes show the same end."""
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
        wall_ms = self._wall_ms()
        return await self._executor.run(
            lambda tx: publish_in(tx, wall_ms, self._executor.process, kind, target, payload or {})
        )

    async def latest(self) -> list[Signal]:
        """The last act of each kind on each target, oldest first, for a process that starts."""
        sql = f"SELECT {COLUMNS} FROM koo_signals WHERE id IN ({NEWEST}) ORDER BY id"
        wall_ms = self._wall_ms()
        rows = await self._executor.run(lambda tx: tx.rows(sql, {"wall_ms": wall_ms}), exclusive=False)
        return [_signal(row, wall_ms) for row in rows]

    async def since(self, cursor: int) -> list[Signal]:
        """All acts after number `cursor`, this process's own included. Raises `StoreUnavailable`."""
        wall_ms = self._wall_ms()
        return await self._executor.run(lambda tx: since_in(tx, cursor, wall_ms)(), exclusive=False)

    async def cursor(self) -> int:
        """The number of the last act. Raises `StoreUnavailable`."""
        sql = "SELECT coalesce(max(id), 0) FROM koo_signals"
        rows = await self._executor.run(lambda tx: tx.rows(sql), exclusive=False)
        return int(rows[0][0])

    def _wall_ms(self) -> int:
        return int(self._executor.clock.wall() * 1000)


def since_in(tx: Transaction, cursor: int, wall_ms: int) -> Callable[[], list[Signal]]:
    """Request the signals after number `cursor`, in a transaction; calling the result waits for them."""
    found = tx.later(SINCE, {"cursor": cursor, "wall_ms": wall_ms})
    return lambda: [_signal(row, wall_ms) for row in found()]


def publish_in(
    tx: Transaction, wall_ms: int, process: str, kind: SignalKind, target: str, payload: dict[str, Any]
) -> int:
    """Publish to all other processes, in a transaction; returns the signal's number."""
    values = {
        "wall_ms": wall_ms,
        "process": process,
        "kind": kind,
        "target": target,
        "payload": json.dumps({**payload, WALL: wall_ms / 1000}),
    }
    # The lock is held until COMMIT, so signals become visible in the order of their numbers. Without it, a transaction
    # with number 7 could commit after one with number 8. A process that had read up to 8 by then would never see 7.
    tx.rows("{latecomers_wait}")
    tx.run(PRUNE, {"wall_ms": wall_ms})
    sql = """INSERT INTO koo_signals (at_ms, process, kind, target, payload)
        VALUES ({clock_ms}, :process, :kind, :target, :payload) RETURNING id"""
    return int(tx.rows(sql, values)[0][0])


def _signal(row: Row, wall_ms: int) -> Signal:
    id_, ago_ms, process, kind, target, text = row
    at, payload = (wall_ms - ago_ms) / 1000, json.loads(text)
    written_at = payload.pop(WALL, at)  # an older version of koo does not write it
    ahead_s = at - written_at
    if abs(ahead_s) < SAME_CLOCK_S:
        at = written_at
    elif payload.get(UNTIL) is not None:
        payload[UNTIL] += ahead_s
    return Signal(id_, at, process, kind, target, payload)
