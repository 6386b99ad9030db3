"""Stores a fleet's limits, in memory or in rows of a database. `policies/units.py` makes the decisions.

One message covers several limits of one process and is one transaction. The first statement locks the limits' rows in a
fixed order, the second reads the leases, and every decision is based on that reading. So two processes never get the
same unit. A message that is executed twice after a lost connection only repeats its requests the second time, and units
granted to a repeated request end with its lease.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

from koo.policies.units import Grant, Lease, Rows, Told, Window, receive
from koo.storage.roll_call import LIVES
from koo.storage.transaction import Row, Transaction, as_rows, picked

Values = tuple[str | int, ...]


class Windows(Protocol):
    """All limits of one store."""

    def receive(self, process: str, told: Sequence[Told], now_ms: int) -> list[Grant]:
        """Process a process's report; returns one grant per limit, in the same order."""
        ...


class MemoryWindows:
    """Limits in memory; they end with the process. `processes` is how many share them."""

    def __init__(self) -> None:
        self.windows: dict[str, Window] = {}
        self.leases: dict[tuple[str, str], Lease] = {}
        self.processes = 0

    def receive(self, process: str, told: Sequence[Told], now_ms: int) -> list[Grant]:
        """Process a process's report."""
        return [self._receive(process, one, now_ms) for one in told]

    def _receive(self, process: str, told: Told, now_ms: int) -> Grant:
        window = self.windows.setdefault(told.name, Window())
        mine = {name: lease for (limit, name), lease in self.leases.items() if limit == told.name}
        own = mine.pop(process, None)
        ended = {name: lease for name, lease in mine.items() if lease.until_ms <= now_ms}
        lapsed = {name: lease for name, lease in ended.items() if not lease.lapsed}
        others = [lease for name, lease in mine.items() if name not in ended]
        rows = Rows(
            window, own, [*lapsed.values()], len(others), sum(one.out for one in others), self.processes
        )
        answer = receive(rows, told, now_ms)
        for name, lease in ended.items():
            if not lease.lapsed or lease.until_ms < now_ms - told.period_ms:
                del self.leases[told.name, name]
        if rows.own is None:
            self.leases.pop((told.name, process), None)
        else:
            self.leases[told.name, process] = rows.own
        return answer


LIMIT = picked(("name", "occupied"), ("limit_amount", "limit_at_ms", "serial", "frozen_until_ms"))
LEASE = picked(
    ("name", "process"), ("serial", "number", "until_ms", "granted", "used", "undone", "back", "lapsed")
)
OPEN_LIMITS = f"""INSERT INTO koo_limits ({", ".join(LIMIT)}) SELECT {", ".join(LIMIT.values())}
    FROM ({{rows}}) r WHERE true ORDER BY 1 ON CONFLICT (name) DO NOTHING"""
LOCK_LIMITS = (
    f"""SELECT {", ".join(LIMIT)} FROM koo_limits WHERE name IN ({{ids}}) ORDER BY name {{for_update}}"""
)
# This returns the time, the number of processes, this process's leases, the leases that have ended, and the sum of all
# other leases. It is one statement because one statement sees one time. Between two statements a lease could end: the
# first would not count it as ended yet, the second no longer as running, and its units would be granted a second time.
LEASES = f"""WITH c AS (SELECT coalesce({{now_ms}}, {{clock_ms}}) AS clock)
    SELECT '' AS name, '' AS process, clock, 0, 0, 0, 0, 0, 0, 0 FROM c
    UNION ALL SELECT '', 'processes', count(*), 0, 0, 0, 0, 0, 0, 0 FROM koo_fleet f WHERE {LIVES}
    UNION ALL SELECT {", ".join(LEASE)} FROM koo_leases, c
        WHERE name IN ({{ids}}) AND (process = :process OR (until_ms <= c.clock AND lapsed = 0))
    UNION ALL SELECT name, '', count(*), CAST(sum(granted - used - back) AS bigint), 0, 0, 0, 0, 0, 0 FROM koo_leases, c
        WHERE name IN ({{ids}}) AND process <> :process AND until_ms > c.clock GROUP BY name"""
SAVE_LIMITS = f"""UPDATE koo_limits SET {", ".join(f"{one} = {LIMIT[one]}" for one in list(LIMIT)[1:])}
    FROM ({{rows}}) r WHERE name = {LIMIT["name"]}"""
SAVE_LEASES = f"""INSERT INTO koo_leases ({", ".join(LEASE)}) SELECT {", ".join(LEASE.values())}
    FROM ({{rows}}) r WHERE true
    ON CONFLICT (name, process) DO UPDATE SET {", ".join(f"{one} = excluded.{one}" for one in list(LEASE)[2:])}"""
DROP_LEASES = f"""DELETE FROM koo_leases WHERE EXISTS (SELECT 1 FROM ({{rows}}) r
    WHERE koo_leases.name = {LEASE["name"]} AND koo_leases.process = {LEASE["process"]})"""


def receive_in(
    tx: Transaction, process: str, told: Sequence[Told], wall_ms: int, now_ms: int | None = None
) -> list[Grant]:
    """Process a process's report, in a transaction. The time is the store's clock; for a file it is `wall_ms`."""
    found, now_ms = _load(tx, process, told, wall_ms, now_ms)
    before = {name: _limit_values(name, rows.window) for name, (rows, _) in found.items()}
    grants = [receive(found[one.name][0], one, now_ms) for one in told]
    limits = {name: _limit_values(name, rows.window) for name, (rows, _) in found.items()}
    changed = [limits[name] for name in limits if limits[name] != before[name]]
    leases, gone = list[Values](), list[Values]()
    for name, (rows, ended) in found.items():
        if rows.own is not None:
            leases.append(_lease_values(name, process, rows.own))
        elif process in ended:
            gone.append((name, process))
        for owner, lease in ended.items():
            if owner != process:
                # A lapsed lease is kept while its process may still return and report the units that it did not use.
                (leases if lease.lapsed else gone).append(_lease_values(name, owner, lease))
    for sql, values in ((SAVE_LIMITS, changed), (SAVE_LEASES, leases), (DROP_LEASES, gone)):
        if values:
            tx.run(sql, as_rows(values))
    return grants


Found = dict[str, tuple[Rows, dict[str, Lease]]]
"""The rows of each limit, and the leases that were read, which are this process's and those that have just ended."""


def _load(
    tx: Transaction, process: str, told: Sequence[Told], wall_ms: int, now_ms: int | None
) -> tuple[Found, int]:
    """Lock the limits, then read the leases. The time is that of the second statement."""
    names = sorted(one.name for one in told)
    values = {"process": process, "ids": json.dumps(names), "wall_ms": wall_ms, "now_ms": now_ms}
    # Both statements travel in one round trip, and the server still runs them in this order. The leases must be read
    # under the lock: read before it, they could miss units that another process was granted a moment earlier.
    limits, leases = tx.later(LOCK_LIMITS, values), tx.later(LEASES, values)
    windows = limits()
    if len(windows) < len(names):
        # A limit that is used for the first time has no row to lock, so what was read with it does not count.
        tx.run(OPEN_LIMITS, as_rows([_limit_values(name, Window()) for name in names]))
        limits, leases = tx.later(LOCK_LIMITS, values), tx.later(LEASES, values)
        windows = limits()
    found: Found = {name: (Rows(_window(row)), {}) for name, *row in windows}
    return found, _take_leases(found, leases(), process)


def _take_leases(found: Found, rows: list[Row], process: str) -> int:
    now_ms = processes = 0
    for name, owner, first, second, *rest in rows:
        if not name:
            now_ms, processes = (first, processes) if not owner else (now_ms, first)
        elif not owner:
            found[name][0].others, found[name][0].others_out = first, second
        else:
            lease = Lease(first, second, *rest)
            found[name][1][owner] = lease
            if owner == process:
                found[name][0].own = lease
            else:
                found[name][0].lapsed.append(lease)
    for one, _ in found.values():
        one.processes = processes
    return now_ms


def _window(row: Sequence[Any]) -> Window:
    occupied, limit, limit_at_ms, serial, frozen_until_ms = row
    buckets = [(bucket, count) for bucket, count in json.loads(occupied)]
    return Window(limit, limit_at_ms, serial, frozen_until_ms, buckets)


def _limit_values(name: str, row: Window) -> Values:
    occupied = json.dumps(row.occupied, separators=(",", ":"))
    return name, occupied, row.limit, row.limit_at_ms, row.serial, row.frozen_until_ms


def _lease_values(name: str, process: str, row: Lease) -> Values:
    return (
        name,
        process,
        row.serial,
        row.number,
        row.until_ms,
        row.granted,
        row.used,
        row.undone,
        row.back,
        row.lapsed,
    )
