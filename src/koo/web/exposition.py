"""The numbers of `koo.monitoring` as Prometheus text.

If several workers of one host serve together, any of them responds for all: counts are summed, including those of
workers that have ended, so a counter only decreases when the server restarts. `Name.across` defines what happens to
other values.

The text is built on request from the same views as everything else; nothing is counted twice. Each series exists from
the start, even at zero, because `rate()` does not see a series' first step. Labels are configured names, never a path,
a model or a message, so their number is bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from itertools import accumulate
from typing import Any, Literal, NamedTuple, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

import koo
from koo.alerts.kinds import KINDS
from koo.errors import Kind
from koo.events import Severity
from koo.monitoring.guards import total_of
from koo.monitoring.shapes import (
    LIMITS,
    Alert,
    BreakerWord,
    BudgetMoney,
    DatabaseHealth,
    DatabaseMetrics,
    DatabaseWord,
    ServiceHealth,
    ServiceWord,
)
from koo.platform import Platform
from koo.policies.tally import BOUNDS_S

BREAKER_STATES: tuple[BreakerWord, ...] = get_args(BreakerWord)
SERVICE_STATES: tuple[ServiceWord, ...] = get_args(ServiceWord)
DATABASE_STATES: tuple[DatabaseWord, ...] = get_args(DatabaseWord)
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
OUTCOMES: dict[str, Literal["successful_requests", "throttled_requests", "neutral_requests"]] = {
    "success": "successful_requests",
    "throttled": "throttled_requests",
    "neutral": "neutral_requests",
}


Across = Literal["sum", "each", "own"]
"""What happens to the values of several workers: they are summed; each becomes a series with the label `worker`; or
only the responding worker's own value is used, because all of them report the same shared number.
"""


class Name(NamedTuple):
    """One metric: its type, help text and labels, and what happens to the values of several workers."""

    kind: type[Metric]
    help: str
    labels: tuple[str, ...]
    across: Across = "sum"


NAMES: dict[str, Name] = {
    "koo_build": Name(GaugeMetricFamily, "1, with the version as a label", ("version",), "own"),
    "koo_workers": Name(GaugeMetricFamily, "processes on this host that serve together", ()),
    "koo_circuit_breaker_state": Name(
        GaugeMetricFamily,
        "1 for a breaker's current state; for an AI service, that of its default model",
        ("breaker", "state"),
        "each",
    ),
    "koo_circuit_breaker_opened": Name(CounterMetricFamily, "times that a breaker opened", ("breaker",)),
    "koo_service_state": Name(
        GaugeMetricFamily, "1 for an AI service's current state", ("service", "state"), "each"
    ),
    "koo_service_requests": Name(
        CounterMetricFamily, "attempts that reached an AI service", ("service", "outcome")
    ),
    "koo_service_refusals": Name(
        CounterMetricFamily, "calls that koo refused, by reason", ("service", "reason")
    ),
    "koo_service_errors": Name(CounterMetricFamily, "errors of an AI service by kind", ("service", "kind")),
    "koo_service_retries": Name(CounterMetricFamily, "attempts that were retries", ("service",)),
    "koo_service_request_duration_seconds": Name(
        HistogramMetricFamily, "duration of successful attempts", ("service",)
    ),
    "koo_rate_limit": Name(GaugeMetricFamily, "koo's own limit", ("service", "window"), "own"),
    "koo_rate_limit_used": Name(
        GaugeMetricFamily, "how much of koo's own limit is used", ("service", "window"), "each"
    ),
    "koo_budget_limit_usd": Name(GaugeMetricFamily, "budget of the UTC day", ("service",), "own"),
    "koo_budget_spent_usd": Name(GaugeMetricFamily, "booked today", ("service",), "own"),
    "koo_budget_reserved_usd": Name(GaugeMetricFamily, "held for running attempts", ("service",), "own"),
    "koo_budget_unsettled_usd": Name(
        GaugeMetricFamily, "granted to processes that no longer report", ("service",), "own"
    ),
    "koo_own_budget_limit_usd": Name(GaugeMetricFamily, "budget set by an operator", ("budget",), "own"),
    "koo_own_budget_spent_usd": Name(GaugeMetricFamily, "booked in its period", ("budget",), "own"),
    "koo_own_budget_reserved_usd": Name(GaugeMetricFamily, "held for running attempts", ("budget",), "own"),
    "koo_own_budget_unsettled_usd": Name(
        GaugeMetricFamily, "granted to processes that no longer report", ("budget",), "own"
    ),
    "koo_database_up": Name(
        GaugeMetricFamily, "1 if the last check reached the database and calls are not refused", (), "each"
    ),
    "koo_database_state": Name(GaugeMetricFamily, "1 for the database's current state", ("state",), "each"),
    "koo_database_errors": Name(CounterMetricFamily, "errors of the database by kind", ("kind",)),
    "koo_database_connections": Name(GaugeMetricFamily, "connections of the pool", ("state",)),
    "koo_database_connections_max": Name(GaugeMetricFamily, "limit on the pool's connections", ()),
    "koo_database_waiting": Name(GaugeMetricFamily, "callers waiting for a connection", ()),
    "koo_alerts": Name(GaugeMetricFamily, "active alerts", ("severity",), "each"),
    "koo_alert_active": Name(
        GaugeMetricFamily,
        "firing alerts, except those that are silenced or inhibited by another",
        ("kind", "severity"),
        "each",
    ),
}
"""The only table of metric names. Counters get the suffix `_total`, as the text format requires."""

Sample = tuple[str, tuple[str, ...], float]


Snapshot = dict[str, Any]
"""One worker's numbers, as in its file: `samples` (metric, labels, value) and `durations` (service, counts, sum)."""
DURATIONS = "koo_service_request_duration_seconds"


class Metrics(Collector):
    """The numbers of one process, or of several: the responding one first, plus the counts of those that ended."""

    def __init__(self, living: Sequence[Snapshot], gone: Snapshot) -> None:
        self._living = living
        self._gone = gone

    def collect(self) -> Iterable[Metric]:
        families = {name: one.kind(name, one.help, labels=self._labels(one)) for name, one in NAMES.items()}  # type: ignore[call-arg]
        for name, series in self._series().items():
            for labels, value in series.items():
                families[name].add_metric(labels, value)  # type: ignore[attr-defined]
        self._add_durations(families[DURATIONS])
        return families.values()

    def _labels(self, name: Name) -> tuple[str, ...]:
        return (*name.labels, "worker") if self._is_each(name) else name.labels

    def _is_each(self, name: Name) -> bool:
        # A single process has no `worker` label, so a server that has always had one process keeps its series.
        return name.across == "each" and "worker" in self._living[0]

    def _series(self) -> dict[str, dict[tuple[str, ...], float]]:
        found: dict[str, dict[tuple[str, ...], float]] = {name: {} for name in NAMES}
        for place, one in enumerate([*self._living, self._gone]):
            for name, labels, value in one.get("samples", ()):
                across, key = NAMES[name].across, tuple(labels)
                if self._is_each(NAMES[name]):
                    key = (*key, one["worker"])
                # The responding worker is the first one. For what all workers share (budgets, limits, the version) its
                # value is the only one: a sum over workers would multiply a budget by their number.
                if across != "own" or place == 0:
                    found[name][key] = found[name].get(key, 0) + value
        return found

    def _add_durations(self, family: Any) -> None:
        total: dict[str, tuple[list[int], float]] = {}
        for one in [*self._living, self._gone]:
            _add_up(total, one.get("durations", ()))
        bounds = [*map(str, BOUNDS_S), "+Inf"]
        for name, (counts, sum_s) in total.items():
            family.add_metric((name,), list(zip(bounds, accumulate(counts), strict=True)), sum_s)


def _add_up(total: dict[str, tuple[list[int], float]], durations: Iterable[Any]) -> None:
    for name, counts, sum_s in durations:
        before, before_s = total.get(name, ([0] * len(counts), 0.0))
        total[name] = [one + other for one, other in zip(before, counts, strict=True)], before_s + sum_s


def bury(gone: Snapshot, one: Snapshot) -> None:
    """Add the counts of a worker that has ended. Its gauges end with it."""
    counts = {(name, tuple(labels)): value for name, labels, value in gone.get("samples", ())}
    for name, labels, value in one["samples"]:
        if name in NAMES and NAMES[name].kind is CounterMetricFamily:
            counts[name, tuple(labels)] = counts.get((name, tuple(labels)), 0) + value
    gone["samples"] = [[name, labels, value] for (name, labels), value in counts.items()]
    total: dict[str, tuple[list[int], float]] = {}
    for durations in (gone.get("durations", ()), one["durations"]):
        _add_up(total, durations)
    gone["durations"] = [[name, counts, sum_s] for name, (counts, sum_s) in total.items()]


def snapshot_of(platform: Platform) -> Snapshot:
    """Return the numbers of this process."""
    durations = []
    for name, service in platform.services.items():
        if service.configured:
            total = total_of(service.tallies)
            durations.append([name, list(total.latency), total.latency_sum_s])
    return {"samples": list(_samples(platform)), "durations": durations}


def _samples(platform: Platform) -> Iterator[Sample]:
    yield "koo_build", (koo.__version__,), 1
    yield "koo_workers", (), 1
    overview = platform.services_health()
    for name, view in overview["services"].items():
        if view["configured"]:
            yield from _service(name, view)
            yield "koo_circuit_breaker_opened", (name,), platform.services[name].times_opened
    for own in overview["budgets"]:
        yield from _budget("koo_own_budget", own["title"], own)
    database = platform.database
    yield from _database(database.get_health(), database.get_pool_metrics())
    yield from _alerts([alert for alert in platform.active_alerts() if alert["active"]])


def _service(name: str, view: ServiceHealth) -> Iterator[Sample]:
    metrics, limits = view["metrics"], view["rate_limits"]
    yield from _one_of(
        "koo_circuit_breaker_state", name, BREAKER_STATES, view["health"]["circuit_breaker_state"]
    )
    yield from _one_of("koo_service_state", name, SERVICE_STATES, view["state"])
    for outcome, key in OUTCOMES.items():
        yield "koo_service_requests", (name, outcome), metrics[key]
    failed = metrics["failed_requests"] - metrics["throttled_requests"]
    yield "koo_service_requests", (name, "failure"), failed
    for kind in Kind:
        if kind in metrics["refusals"] or kind in REFUSALS:
            yield "koo_service_refusals", (name, kind.value), metrics["refusals"].get(kind.value, 0)
        if kind in metrics["error_counts"] or kind in FAILURES:
            yield "koo_service_errors", (name, kind.value), metrics["error_counts"].get(kind.value, 0)
    yield "koo_service_retries", (name,), metrics["retries"]
    for window in LIMITS:
        limit = limits[window]["limit"]
        yield "koo_rate_limit_used", (name, window), limits[window]["used"]
        if limit is not None:
            yield "koo_rate_limit", (name, window), limit
    yield from _budget("koo_budget", name, limits["daily_budget"])


def _budget(family: str, name: str, budget: BudgetMoney) -> Iterator[Sample]:
    yield f"{family}_spent_usd", (name,), float(Decimal(budget["spent"]))
    yield f"{family}_reserved_usd", (name,), float(Decimal(budget["reserved"]))
    yield f"{family}_unsettled_usd", (name,), float(Decimal(budget["unsettled"]))
    if budget["limit"] is not None:
        yield f"{family}_limit_usd", (name,), float(Decimal(budget["limit"]))


REFUSALS = frozenset(
    {
        Kind.CIRCUIT_OPEN,
        Kind.RATE_LIMITED,
        Kind.BUDGET_EXCEEDED,
        Kind.SATURATED,
        Kind.COOLING_DOWN,
        Kind.KEY_REFUSED,
        Kind.STORE_UNAVAILABLE,
    }
)
FAILURES = frozenset(
    {
        Kind.CONNECTION,
        Kind.TIMEOUT,
        Kind.OVERLOADED,
        Kind.SERVER_ERROR,
        Kind.BAD_ANSWER,
        Kind.THROTTLED,
        Kind.AUTH,
    }
)
"""Kinds whose series exist from the start."""


def _database(health: DatabaseHealth, metrics: DatabaseMetrics) -> Iterator[Sample]:
    pool, breaker = health["pool_status"], health["circuit_breaker"]
    if health["last_health_check"] is not None:  # before the first check it would be a guess
        up = health["error"] is None and health["state"] != "circuit_open"
        yield "koo_database_up", (), float(up)
    for state in DATABASE_STATES:
        yield "koo_database_state", (state,), float(state == health["state"])
    yield from _one_of("koo_circuit_breaker_state", "database", BREAKER_STATES, breaker["state"])
    yield "koo_circuit_breaker_opened", ("database",), breaker["times_opened"]
    for kind, count in metrics["errors"]["by_kind"].items():
        yield "koo_database_errors", (kind,), count
    yield "koo_database_connections", ("used",), pool["active_connections"]
    yield "koo_database_connections", ("idle",), pool["idle_connections"]
    yield "koo_database_connections_max", (), pool["max_connections"]
    yield "koo_database_waiting", (), pool["waiting"]


def _alerts(active: Sequence[Alert]) -> Iterator[Sample]:
    severities: list[str] = [alert["type"] for alert in active]
    for severity in SEVERITIES:
        yield "koo_alerts", (severity,), severities.count(severity)
    firing = Counter({(kind, row.severity): 0 for kind, row in KINDS.items()})
    firing.update(
        (alert["kind"], alert["type"])
        for alert in active
        if alert["phase"] != "pending" and alert["silenced"] is None and alert["inhibited_by"] is None
    )
    for labels, count in firing.items():
        yield "koo_alert_active", labels, count


def _one_of(metric: str, name: str, states: Iterable[str], current: str) -> Iterator[Sample]:
    """1 for the current state and 0 for every other one, so that no series is ever missing."""
    for state in states:
        yield metric, (name, state), float(state == current)


def text_of(platform: Platform) -> bytes:
    """Return everything about a platform as Prometheus text, version 0.0.4."""
    return text_of_all([snapshot_of(platform)], {})


def text_of_all(living: Sequence[Snapshot], gone: Snapshot) -> bytes:
    """Return everything about several workers: the responding one first, and the counts of those that ended."""
    return generate_latest(Metrics(living, gone))
