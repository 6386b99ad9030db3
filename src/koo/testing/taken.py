"""Leak check: permits, slots, money and connections that are still taken after all calls have ended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from koo.gates import Gates
from koo.guard import Guard
from koo.platform import Platform

if TYPE_CHECKING:
    from koo.database.database import Database


@dataclass(frozen=True, slots=True)
class Settled:
    """True if nothing is taken; otherwise its `repr` lists what is."""

    taken: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.taken

    def __repr__(self) -> str:
        return "<settled>" if self else f"<still taken: {'; '.join(self.taken)}>"


def settled(platform: Platform) -> Settled:
    """Check that nothing of `platform` is held by a call."""
    found: list[str] = []
    for name, service in platform.services.items():
        found += taken_of_gates(service.gates)
        for guard in service.guards:
            found += taken_of_guard(guard)
        held = platform.parts.budgets.view(name, service.default_model).held_usd
        if held:
            found.append(f"{name} holds ${held}")
    database = platform.parts.database_in_use
    return Settled(tuple(found + (taken_of_database(database) if database is not None else [])))


def taken_of_gates(gates: Gates) -> list[str]:
    """Slots and queued callers, of all guards that share the gates."""
    counts = {
        "slot(s) of {name}": gates.bulkhead.used,
        "caller(s) queued for a slot of {name}": len(gates.bulkhead.line),
        "caller(s) queued for the limits of {name}": gates.limit_queue.used + len(gates.limit_queue.line),
    }
    return list(_said(gates.name, counts))


def taken_of_guard(guard: Guard) -> list[str]:
    """The permits and probes that one guard still holds; what its gates hold is not included."""
    name = guard.gates.name if guard.model is None else f"{guard.gates.name}/{guard.model}"
    counts = {
        "running permit(s) of {name}": guard.breaker.running,
        "probe(s) of {name}": len(guard.breaker.leases),
    }
    return list(_said(name, counts))


def taken_of_database(database: Database) -> list[str]:
    """Connections of the pool, permits, waiting writers and transactions of a database."""
    counts = {
        "scope(s) in the pool": database.pool_queue.used or len(database.pool_queue.holders),
        "queued scope(s)": len(database.pool_queue.line),
        "permit(s)": database.guard.breaker.running,
    }
    connections = database.connections
    if connections is not None:
        records = connections.records.by_connection.values()
        pool: Any = connections.engine.pool
        counts["connection(s) checked out"] = pool.checkedout()
        counts["connection(s) in a transaction"] = sum(
            one.occupant is not None or bool(one.busy) for one in records
        )
        writers = connections.writers
        counts["writer(s)"] = writers.used + len(writers.line) if writers is not None else 0
    return [f"{said} of the database" for said in _said("", counts)]


def _said(name: str, counts: dict[str, int]) -> Iterator[str]:
    return (f"{count} {what.format(name=name)}" for what, count in counts.items() if count)
