"""Builds the history: samples of services and of the database, and series from samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from koo.errors import Kind
from koo.monitoring.guards import money, total_of
from koo.monitoring.history_shapes import Series
from koo.monitoring.shapes import DatabaseHealth, ServiceHealth
from koo.monitoring.snapshot import ServiceLike
from koo.policies.money import from_pico
from koo.policies.samples import Sample
from koo.policies.tally import Tally
from koo.policies.verdict import FAILURE, NEUTRAL, SUCCESS, THROTTLED

SERVICE = "ai:"


def counted(tallies: Sequence[Tally], state: str, fallen_back: int = 0, not_spent: int = 0) -> Sample:
    """A component's counts since the process started, and its current state.

    `fallen_back` is the number of calls that other services answered instead. `not_spent` is the amount, in
    pico-dollars, of calls that budgets refused.
    """
    total = total_of(tallies)
    verdicts = total.verdicts
    saved = {
        "refused": _refused(tallies, Kind.CIRCUIT_OPEN),
        "repeated": sum(tally.late_successes for tally in tallies),
        "fallen_back": fallen_back,
        "over_budget": _refused(tallies, Kind.BUDGET_EXCEEDED),
        "not_spent": not_spent,
    }
    return Sample(
        state,
        successes=verdicts[SUCCESS],
        failures=verdicts[FAILURE],
        throttled=verdicts[THROTTLED],
        neutral=verdicts[NEUTRAL],
        refused=sum(count for tally in tallies for count in tally.refused.values()),
        retries=sum(tally.retries for tally in tallies),
        slow=total.slow,
        latency={cell: count for cell, count in enumerate(total.latency) if count},
        saved={name: count for name, count in saved.items() if count},
    )


def count_services(
    services: Mapping[str, ServiceLike],
    looks: Mapping[str, ServiceHealth],
    fell_back: Mapping[str, int],
    not_spent: Mapping[str, int],
) -> dict[str, Sample]:
    """The samples of all configured services that have a view, by component."""
    return {
        f"{SERVICE}{name}": counted(
            service.tallies, looks[name]["state"], fell_back.get(name, 0), not_spent.get(name, 0)
        )
        for name, service in services.items()
        if service.configured and name in looks
    }


def _refused(tallies: Sequence[Tally], kind: Kind) -> int:
    return sum(tally.refused.get(kind, 0) for tally in tallies)


def counted_database(tally: Tally, health: DatabaseHealth) -> Sample:
    """The sample of the database, with its pool."""
    sample, pool = counted([tally], health["state"]), health["pool_status"]
    sample.used, sample.waiting = pool["active_connections"], pool["waiting"]
    sample.places = pool["max_connections"]
    return sample


def series_of(
    component: str,
    samples: Sequence[Sample | None],
    spent: Mapping[int, int] | None,
    begins: Sequence[int],
) -> Series:
    """One component's samples as lists. `spent` is in pico-dollars by start of the span; None if unknown."""
    view: Series = {
        "calls": [None if one is None else one.calls for one in samples],
        "failed": [None if one is None else one.failures + one.throttled for one in samples],
        "throttled": [None if one is None else one.throttled for one in samples],
        "refused": [None if one is None else one.refused for one in samples],
        "slow": [None if one is None else one.slow for one in samples],
        "p50": [None if one is None else one.percentile_s(0.50) for one in samples],
        "p95": [None if one is None else one.percentile_s(0.95) for one in samples],
        "state": [None if one is None else one.state or None for one in samples],
    }
    if component.startswith(SERVICE):
        view["spent"] = [None if spent is None else money(from_pico(spent.get(at, 0))) for at in begins]
    else:
        view["used"] = [None if one is None else one.used for one in samples]
        view["waiting"] = [None if one is None else one.waiting for one in samples]
        view["places"] = [None if one is None else one.places for one in samples]
    return view
