"""Builds the view of the fleet from the roll call, this process's knowledge of the budgets, and the store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from koo.clock import iso
from koo.monitoring.fleet_shapes import (
    FleetDifference,
    FleetGuard,
    FleetLeader,
    FleetProcess,
    FleetPurse,
    FleetStatus,
    FleetUnits,
)
from koo.monitoring.guards import money
from koo.monitoring.own_shapes import StoreHealth
from koo.policies.fleet import GuardKey, Leader, LeasedUnits, Member, MemberGuard, Opinion, Roll
from koo.policies.priming import why_primed
from koo.storage.base import BudgetView


def fleet_view(
    roll: Roll, own: str, budgets: Iterable[tuple[str, BudgetView]], store: StoreHealth, now: float
) -> FleetStatus:
    """The fleet's status. `own` is the name of the process that answers; `now` is in wall seconds."""
    living = [member for member in roll.members if member.lives]
    leader = roll.leader.process if roll.leader is not None else ""
    # The times of the roll are the store's. Readers subtract them from `now`, which this machine's clock shows.
    ahead_s = next((now - one.seen_at - one.silent_for_s for one in roll.members), 0.0)
    return {
        "processes": [_process(member, own, leader, ahead_s) for member in roll.members],
        "guards": [_guard(key, rows, ahead_s) for key, rows in _by_key(roll.guards).items()],
        "purses": [_purse(name, view) for name, view in budgets],
        "leases": [_units(one) for one in roll.units],
        "leader": _leader(roll.leader),
        "differences": list(
            differences({one.process: one.configuration for one in living if one.configuration})
        ),
        "state_store": store,
        "timestamp": iso(now),
    }


def _process(member: Member, own: str, leader: str, ahead_s: float) -> FleetProcess:
    return {
        "id": member.process,
        "host": member.host,
        "worker": member.worker,
        "pid": member.pid,
        "version": member.version,
        "label": member.label,
        "started_at": iso(member.started_at + ahead_s),
        "seen_at": iso(member.seen_at + ahead_s),
        "beat_age": member.silent_for_s,
        "state": "live" if member.lives else "silent",
        "in_flight": member.in_flight,
        "leads": member.process == leader,
        "answers": member.process == own,
    }


def _leader(leader: Leader | None) -> FleetLeader | None:
    return None if leader is None else {"process": leader.process, "epoch": leader.epoch}


# ── guards ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _by_key(guards: Sequence[MemberGuard]) -> dict[GuardKey, list[MemberGuard]]:
    found: dict[GuardKey, list[MemberGuard]] = defaultdict(list)
    for guard in guards:
        if guard.calls or guard.phase != "closed":
            found[guard.key].append(guard)
    return found


def _guard(key: GuardKey, rows: list[MemberGuard], ahead_s: float) -> FleetGuard:
    is_open = [row for row in rows if row.phase == "open"]
    opinion = Opinion(key, sum(row.is_down for row in rows), len(rows), 0.0)
    return {
        "name": key.name,
        "place": key.place,
        "open": len(is_open),
        "half_open": sum(row.phase == "half_open" for row in rows),
        "processes": len(rows),
        "open_in": [row.process for row in is_open],
        "open_since": iso(min((row.since + ahead_s for row in is_open), default=None)),
        "primed": why_primed(opinion),
        "calls": sum(row.calls for row in rows),
    }


def _purse(name: str, view: BudgetView) -> FleetPurse:
    return {
        "budget": name,
        "limit": None if view.limit_usd is None else money(view.limit_usd),
        "spent": money(view.spent_usd),
        "held": money(view.held_usd),
        "idle": money(view.idle_usd),
        "unsettled": money(view.unsettled_usd),
        "granted": money(view.held_usd + view.idle_usd + view.unsettled_usd),
        "resets_at": iso(view.resets_at),
    }


def _units(one: LeasedUnits) -> FleetUnits:
    return {"limit": one.name, "units": one.limit, "leased": one.leased, "processes": one.processes}


# ── configuration ─────────────────────────────────────────────────────────────────────────────────────────────────

Digests = Mapping[str, Mapping[str, str]]


def differences(digests: Mapping[str, Digests]) -> Iterator[FleetDifference]:
    """The options that differ between processes. An option that one version lacks is not compared."""
    # Digests are compared, not values: the rows are in the state store, where a key or a password must not be.
    for section in sorted({name for one in digests.values() for name in one}):
        has = {process: one[section] for process, one in digests.items() if section in one}
        if len(has) < len(digests):
            yield _difference(section, "", {process: str(process in has) for process in digests})
        for option in sorted({name for one in has.values() for name in one}):
            values = {process: one[option] for process, one in has.items() if option in one}
            if len(set(values.values())) > 1:
                yield _difference(section, option, values)


def _difference(section: str, option: str, values: Mapping[str, str]) -> FleetDifference:
    groups: dict[str, list[str]] = defaultdict(list)
    for process, value in values.items():
        groups[value].append(process)
    return {
        "section": section,
        "option": option,
        "groups": sorted(groups.values(), key=lambda group: (-len(group), group)),
    }
