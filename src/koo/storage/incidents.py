"""Incidents in the store: one row per breaker opening that a process saw, as JSON, with its counts in a column.

A process writes only its own rows. It writes the whole row when something happens, and every few seconds the counts of
the open ones. So a process that is killed leaves a row that is a few seconds old, which shows when it fell silent.

In one outage several processes open their breakers. The first row's id becomes the outage's name. A row that another
process adds while an earlier row for the same guard is open belongs to the same outage.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from koo.options import DAY_S
from koo.policies.incidents import Incident
from koo.spans import Kept
from koo.storage.transaction import Row, Transaction, Transactions

log = logging.getLogger("koo")

KEPT_S = 30 * DAY_S
ROWS_MAX = 2000
"""A row has at most a few tens of kilobytes, and usually one."""
SILENT_MS = 60_000
"""Another process's row that was not updated for this long counts as closed."""

COLUMNS = "id, outage, process, seen_ms, has_left, counts, data"
BEGUN = "SELECT id FROM koo_incidents WHERE id = :id"
OUTAGE = """SELECT outage FROM koo_incidents WHERE guard = :guard AND process <> :process
    AND closed_ms IS NULL AND has_left = 0 AND seen_ms > :silent_ms ORDER BY opened_ms, id LIMIT 1"""
BEGIN = """INSERT INTO koo_incidents
      (id, outage, process, guard, component, opened_ms, closed_ms, seen_ms, has_left, counts, data)
    VALUES (:id, :outage, :process, :guard, :component, :opened_ms, :closed_ms, :seen_ms, 0, :counts, :data)"""
GO_ON = """UPDATE koo_incidents SET closed_ms = :closed_ms, seen_ms = :seen_ms, has_left = 0, counts = :counts,
    data = :data WHERE id = :id"""
TELL = "UPDATE koo_incidents SET seen_ms = :seen_ms, has_left = :has_left, counts = :counts WHERE id = :id"
LATEST = "SELECT id FROM koo_incidents WHERE id = outage {filter} ORDER BY opened_ms DESC, id LIMIT :limit"
PARTS = f"""SELECT {COLUMNS} FROM koo_incidents WHERE outage IN ({{ids}}) ORDER BY opened_ms, id"""
PRUNE = """DELETE FROM koo_incidents WHERE opened_ms < :before_ms
    OR opened_ms < (SELECT opened_ms FROM koo_incidents ORDER BY opened_ms DESC LIMIT 1 OFFSET :most)"""


class SqlIncidents:
    """The incidents of all processes on one store. Each method raises `StoreUnavailable`."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    async def write(self, incidents: Sequence[Incident], now: float) -> None:
        """Write this process's incidents in their current state."""
        packed = [_values(one, now) for one in incidents]

        def work(tx: Transaction) -> None:
            # Only one process does this at a time. Two breakers that open in the same moment would otherwise each find
            # no open row, because neither sees the other's uncommitted one, and one outage would have two names.
            tx.rows("{latecomers_wait}")
            for values in packed:
                _write(tx, {**values, "process": self._transactions.process}, now)

        await self._transactions.run(work)

    async def tell(self, incidents: Sequence[Incident], now: float, *, has_left: bool = False) -> None:
        """Update the counts of open incidents. `has_left` means that this process ends."""
        told = [
            {"id": one.id, "seen_ms": int(now * 1000), "has_left": int(has_left), "counts": _counts(one)}
            for one in incidents
        ]
        if told:
            await self._transactions.run(lambda tx: tx.run(TELL, told))

    async def latest(self, component: str | None, *, limit: int) -> list[list[Kept]]:
        """The outages with their parts, newest first."""
        chosen = LATEST.replace("{filter}", "" if component is None else "AND component = :component")
        values: dict[str, Any] = {"limit": limit}
        if component is not None:
            values["component"] = component

        def work(tx: Transaction) -> list[list[Kept]]:
            ids = [row[0] for row in tx.rows(chosen, values)]
            parts = _parts(tx, ids)
            return [parts[one] for one in ids if one in parts]

        return await self._transactions.run(work, exclusive=False)

    async def read(self, incident_id: str) -> list[Kept]:
        """The parts of the outage to which an incident belongs; empty if the incident is unknown."""

        def work(tx: Transaction) -> list[Kept]:
            found = tx.rows("SELECT outage FROM koo_incidents WHERE id = :id", {"id": incident_id})
            return _parts(tx, [found[0][0]]).get(found[0][0], []) if found else []

        return await self._transactions.run(work, exclusive=False)

    async def prune(self, now_s: float) -> None:
        """Delete incidents that are too old."""
        values = {"before_ms": int((now_s - KEPT_S) * 1000), "most": ROWS_MAX}
        await self._transactions.run(lambda tx: tx.run(PRUNE, values))


def _write(tx: Transaction, values: Mapping[str, Any], now: float) -> None:
    if tx.rows(BEGUN, {"id": values["id"]}):
        tx.run(GO_ON, {name: values[name] for name in ("id", "closed_ms", "seen_ms", "counts", "data")})
        return
    silent_ms = int(now * 1000) - SILENT_MS
    asked = {"guard": values["guard"], "process": values["process"], "silent_ms": silent_ms}
    other = tx.rows(OUTAGE, asked)
    tx.run(BEGIN, {**values, "outage": other[0][0] if other else values["id"]})


def _parts(tx: Transaction, outages: Sequence[str]) -> dict[str, list[Kept]]:
    found: dict[str, list[Kept]] = {}
    for row in tx.rows(PARTS, {"ids": json.dumps(list(outages))}) if outages else ():
        kept = _kept(row)
        if kept is not None:
            found.setdefault(kept.outage, []).append(kept)
    return found


def _values(incident: Incident, now: float) -> dict[str, Any]:
    service = incident.guard.partition("/")[0]
    return {
        "id": incident.id,
        "guard": incident.guard,
        "component": service if service == "database" else f"ai:{service}",
        "opened_ms": int(incident.opened_at * 1000),
        "closed_ms": None if incident.closed_at is None else int(incident.closed_at * 1000),
        "seen_ms": int(now * 1000),
        "counts": _counts(incident),
        "data": json.dumps(incident.packed(), separators=(",", ":")),
    }


COUNTS = ("refused", "passed", "fallback")


def _counts(incident: Incident) -> str:
    return json.dumps({name: getattr(incident, name) for name in COUNTS}, separators=(",", ":"))


def _kept(row: Row) -> Kept | None:
    incident_id, outage, process, seen_ms, has_left, counts, data = row
    try:
        incident = Incident.unpacked({**json.loads(data), **json.loads(counts)})
    except (ValueError, TypeError, KeyError):
        log.debug("the incident %s in the state store could not be read", incident_id)
        return None
    return Kept(incident, process, outage, seen_ms / 1000, bool(has_left))
