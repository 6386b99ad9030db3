"""Money that dead processes left behind, and what operators wrote off.

Money that a process was granted stays booked until the process reports again, because it may have spent it. An operator
may know that it did not, or accept the risk. A write-off frees what the process had not reported as spent, and the
store rejects later beats under that name. The same transaction records the write-off as a signal, so it can be found
for as long as the store exists.
"""

from __future__ import annotations

import json

from koo.policies.treasury import LIVES_MS, REQUESTS, Key, period_at
from koo.storage.base import Unsettled, WriteOff
from koo.storage.executor import Executor
from koo.storage.signals import publish_in
from koo.storage.transaction import Transaction
from koo.storage.treasuries import write_off_in

LEFT = """SELECT p.process, coalesce(q.seen_ms, 0), p.budget, p.period,
      p.granted - p.back + p.over_granted - p.spent
    FROM koo_purses p LEFT JOIN koo_processes q ON q.name = p.process
    WHERE (p.period = :day OR p.period = :month) AND coalesce(q.seen_ms, 0) < :since_ms
      AND p.granted - p.back + p.over_granted > p.spent
    ORDER BY p.process, p.budget, p.period"""
WRITTEN_OFF = """SELECT target, at_ms, payload FROM koo_signals
    WHERE kind = 'write_off' AND at_ms >= :since_ms AND at_ms < :until_ms ORDER BY id"""


class SqlUnsettled:
    """Money that dead processes left behind in the treasuries of one store."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def find(self) -> list[Unsettled]:
        """The unsettled money of the current day and month, by process. Raises `StoreUnavailable`."""
        wall_ms = self._wall_ms()
        return await self._executor.run(lambda tx: _left(tx, wall_ms), exclusive=False)

    async def write_off(self, process: str | None, by: str, reason: str) -> list[WriteOff]:
        """Free the money of one process, or of all (None); returns what was freed. Raises `StoreUnavailable`.

        A process that reported within the last ten seconds is left alone.
        """
        wall_ms = self._wall_ms()

        def write(tx: Transaction) -> list[WriteOff]:
            # The list is read again in the writing transaction: a process that looked dead in the operator's list may
            # have reported since, and its money must not be granted to another one while it spends it.
            left = [one for one in _left(tx, wall_ms) if process in (None, one.process)]
            return [self._free(tx, one, by, reason, wall_ms) for one in left]

        return await self._executor.run(write)

    def _free(self, tx: Transaction, left: Unsettled, by: str, reason: str, wall_ms: int) -> WriteOff:
        freed = write_off_in(tx, left.process)
        amounts = {key: freed[key] for key in left.amounts if key in freed}
        payload = {"by": by, "reason": reason, "amounts": [[*key, amount] for key, amount in amounts.items()]}
        publish_in(tx, wall_ms, self._executor.process, "write_off", left.process, payload)
        return WriteOff(left.process, wall_ms / 1000, by, reason, amounts)

    async def written_off(self, since: float, until: float) -> list[WriteOff]:
        """Write-offs between two wall times, oldest first. Raises `StoreUnavailable`."""
        values = {"since_ms": int(since * 1000), "until_ms": int(until * 1000)}
        rows = await self._executor.run(lambda tx: tx.rows(WRITTEN_OFF, values), exclusive=False)
        return [_written_off(process, at_ms, json.loads(payload)) for process, at_ms, payload in rows]

    def _wall_ms(self) -> int:
        return int(self._executor.clock.wall() * 1000)


def _left(tx: Transaction, wall_ms: int) -> list[Unsettled]:
    now_ms = tx.rows("SELECT {clock_ms}", {"wall_ms": wall_ms})[0][0]
    amounts: dict[tuple[str, float], dict[Key, int]] = {}
    values = {
        "day": period_at("day", now_ms),
        "month": period_at("month", now_ms),
        "since_ms": now_ms - LIVES_MS,
    }
    for process, seen_ms, budget, period, amount in tx.rows(LEFT, values):
        if budget.startswith(REQUESTS):
            continue  # a number of requests, which would be shown as picodollars
        amounts.setdefault((process, seen_ms / 1000), {})[Key(budget, period)] = amount
    return [Unsettled(process, seen_at, left) for (process, seen_at), left in amounts.items()]


def _written_off(process: str, at_ms: int, payload: dict[str, object]) -> WriteOff:
    amounts = {Key(str(budget), int(period)): int(amount) for budget, period, amount in payload["amounts"]}  # type: ignore[attr-defined]
    return WriteOff(process, at_ms / 1000, str(payload["by"]), str(payload["reason"]), amounts)
