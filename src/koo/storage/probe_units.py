"""Grants probe units within the transaction of a beat, to one process after another."""

from __future__ import annotations

from typing import Any

from koo.policies.fleet import LATELY_S, GuardKey, ProbeAsk, Told
from koo.policies.probing import granted, units_of_fleet
from koo.storage.transaction import Transaction

# The fleet's one lock. Without it, two beats at the same moment would both find the same unit free, and a service that
# has just recovered would receive twice as many probes as it should.
LOCK = "SELECT 1 FROM koo_leader WHERE role = 'fleet' {for_update}"
OTHERS = """SELECT coalesce(sum(units), 0) FROM koo_fleet_probes
    WHERE guard = :guard AND place = :place AND process <> :process AND until_ms > {clock_ms}"""
RECOVERED = f"""SELECT count(*) FROM koo_fleet_guards WHERE guard = :guard AND place = :place AND phase = 'closed'
    AND proved_ms > {{clock_ms}} - {int(LATELY_S * 1000)}"""
KEEP = """INSERT INTO koo_fleet_probes (guard, place, process, units, until_ms)
    VALUES (:guard, :place, :process, :units, {clock_ms} + :for_ms)
    ON CONFLICT (guard, place, process) DO UPDATE SET units = excluded.units, until_ms = excluded.until_ms"""
FREE = "DELETE FROM koo_fleet_probes WHERE guard = :guard AND place = :place AND process = :process"
FORGET_OF = "DELETE FROM koo_fleet_probes WHERE process = :process"
FORGET_OLD = "DELETE FROM koo_fleet_probes WHERE until_ms < {clock_ms}"


def hand_out(tx: Transaction, told: Told, values: dict[str, Any]) -> dict[GuardKey, int]:
    """Grant what a beat requests, in its transaction; returns the newly granted units."""
    if not told.probes:
        return {}
    tx.rows(LOCK)
    return {one.key: _hand_out(tx, one, values) for one in told.probes if not _keep(tx, one, values)}


def _keep(tx: Transaction, ask: ProbeAsk, values: dict[str, Any]) -> bool:
    if ask.units and not ask.is_kept:
        return False
    tx.run(KEEP if ask.units else FREE, _row(ask, ask.units, values))
    return True


def _hand_out(tx: Transaction, ask: ProbeAsk, values: dict[str, Any]) -> int:
    row = _row(ask, 0, values)
    others, recovered = tx.later(OTHERS, row), tx.later(RECOVERED, row)
    units = units_of_fleet(ask.concurrency, int(recovered()[0][0]))
    count = granted(ask.units, units, int(others()[0][0]))
    if count:
        tx.run(KEEP, {**row, "units": count})
    return count


def _row(ask: ProbeAsk, units: int, values: dict[str, Any]) -> dict[str, Any]:
    return {
        "guard": ask.key.name,
        "place": ask.key.place,
        "process": values["process"],
        "wall_ms": values["wall_ms"],
        "units": units,
        "for_ms": int(ask.for_s * 1000),
    }
