"""A view of the whole fleet for people: one query of the store, which changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable

from koo.monitoring.fleet import fleet_view
from koo.monitoring.fleet_shapes import FleetStatus
from koo.monitoring.own_shapes import StoreHealth
from koo.policies.fleet import Member, Presence, Roll
from koo.storage.base import BudgetView, Store, StoreUnavailable


async def look_at_fleet(
    store: Store,
    presence: Presence,
    budgets: Iterable[tuple[str, BudgetView]],
    health: StoreHealth,
    *,
    up_s: float,
    now: float,
) -> FleetStatus:
    """All processes; while the store is unreachable, only this one, which opened `up_s` ago. `now`: wall seconds."""
    try:
        roll = await store.roll_call.read()
    except StoreUnavailable:
        roll = Roll(members=[_alone(store.process, presence, now - up_s, now)], guards=[], leader=None)
    return fleet_view(roll, store.process, budgets, health, now)


def _alone(process: str, one: Presence, started_at: float, now: float) -> Member:
    return Member(
        process=process,
        ledger=one.ledger,
        host=one.host,
        worker=one.worker,
        pid=one.pid,
        version=one.version,
        label=one.label,
        started_at=started_at,
        seen_at=now,
        silent_for_s=0.0,
        in_flight=0,
        configuration=json.loads(one.configuration),
        lives=True,
    )
