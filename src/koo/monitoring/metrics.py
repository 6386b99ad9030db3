"""Metrics for Prometheus: one table of names, filled from the guards' own integers when somebody scrapes.

Nothing is counted twice and nothing runs on a call's way: a scrape reads what the guards counted anyway. All states
and outcomes are there from the start, at zero, because a rate misses the first increment of a series that appears
late. Labels are names of configured services and models, never a path, a user or a message, so their number is bounded.
"""

from __future__ import annotations

import platform as python_platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from koo.errors import Kind
from koo.guard import Guard
from koo.monitoring.snapshot import ServiceLike, breaker_word
from koo.policies.latch import Latches
from koo.policies.tally import BOUNDS_S
from koo.policies.verdict import Verdict
from koo.storage.base import BudgetView

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REFUSALS = dict.fromkeys(
    str(kind)
    for kind in (
        Kind.CIRCUIT_OPEN,
        Kind.RATE_LIMITED,
        Kind.BUDGET_EXCEEDED,
        Kind.SATURATED,
        Kind.COOLING_DOWN,
        Kind.KEY_REFUSED,
    )
)
STATES = ("closed", "open", "half_open", "forced_open", "disabled")

NAMES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "koo_build": ("gauge", "1; the version that runs", ("version", "python")),
    "koo_circuit_breaker_state": (
        "gauge",
        "1 for the state that a breaker is in",
        ("breaker", "kind", "state"),
    ),
    "koo_circuit_breaker_opened": ("counter", "times that a breaker opened", ("breaker", "kind")),
    "koo_circuit_breaker_consecutive_failures": ("gauge", "failures in a row", ("breaker", "kind")),
    "koo_calls": ("counter", "calls that reached the other side, by outcome", ("breaker", "kind", "outcome")),
    "koo_call_errors": (
        "counter",
        "calls that did not succeed, by kind of error",
        ("breaker", "kind", "error"),
    ),
    "koo_call_duration_seconds": ("histogram", "latency of successful calls", ("breaker", "kind")),
    "koo_calls_refused": ("counter", "calls that koo refused, by reason", ("breaker", "kind", "reason")),
    "koo_calls_running": ("gauge", "calls under way", ("breaker", "kind")),
    "koo_retries": ("counter", "repeated attempts", ("breaker", "kind")),
    "koo_retry_budget_tokens": ("gauge", "repeats that may be made now", ("breaker", "kind")),
    "koo_rate_limit_used": ("gauge", "requests of a limit that are used", ("service", "limit")),
    "koo_rate_limit_limit": ("gauge", "requests that a limit allows", ("service", "limit")),
    "koo_budget_spent_usd": ("gauge", "money spent today", ("service",)),
    "koo_budget_reserved_usd": ("gauge", "money held for calls under way", ("service",)),
    "koo_budget_limit_usd": ("gauge", "money that today allows", ("service",)),
    "koo_key_refused": ("gauge", "1 while the provider refuses the key", ("service",)),
    "koo_database_connections": ("gauge", "connections of the pool, by state", ("state",)),
    "koo_database_connections_max": ("gauge", "connections that the pool may open", ()),
    "koo_database_waiting": ("gauge", "callers that wait for a connection", ()),
    "koo_alerts": ("gauge", "alerts that hold, by severity", ("severity",)),
}
"""Every metric: kind, meaning, labels. Counters are written out with `_total`; `docs/metrics.md` lists them."""


class KooCollector(Collector):
    """Reads everything when it is scraped."""

    def __init__(
        self,
        services: Callable[[], Mapping[str, ServiceLike]],
        budget: Callable[[str], BudgetView | None],
        database: Callable[[], tuple[Guard, Mapping[str, Any]] | None],
        alerts: Callable[[], Iterable[Mapping[str, Any]]],
        version: str,
    ) -> None:
        self._services = services
        self._budget = budget
        self._database = database
        self._alerts = alerts
        self._version = version

    def collect(self) -> Iterator[Any]:
        """All families, each with every label that it can have."""
        families = {name: _family(name) for name in NAMES}
        families["koo_build"].add_metric((self._version, python_platform.python_version()), 1)
        services = self._services()
        for service in services.values():
            for guard in service.guards:
                _add_guard(families, guard, "ai")
            self._add_service(families, service)
        self._add_database(families)
        active = [alert["type"] for alert in self._alerts() if alert["active"]]
        for severity in ("critical", "warning", "info"):
            families["koo_alerts"].add_metric((severity,), active.count(severity))
        yield from families.values()

    def _add_service(self, families: Mapping[str, Any], service: ServiceLike) -> None:
        name = service.name
        for count in service.gates.limits.counts:
            label = count.name.replace(" ", "_")
            families["koo_rate_limit_used"].add_metric((name, label), count.used)
            families["koo_rate_limit_limit"].add_metric((name, label), count.limit)
        budget = self._budget(name)
        families["koo_budget_spent_usd"].add_metric((name,), float(budget.spent_usd) if budget else 0.0)
        families["koo_budget_reserved_usd"].add_metric((name,), float(budget.held_usd) if budget else 0.0)
        if service.allowance.limit_usd is not None:
            families["koo_budget_limit_usd"].add_metric((name,), float(service.allowance.limit_usd))
        families["koo_key_refused"].add_metric((name,), _is_latched(service.gates.latches))

    def _add_database(self, families: Mapping[str, Any]) -> None:
        database = self._database()
        if database is None:
            return
        guard, pool = database
        _add_guard(families, guard, "database")
        status = pool["pool_status"]
        families["koo_database_connections"].add_metric(("used",), status["active_connections"])
        families["koo_database_connections"].add_metric(("idle",), status["idle_connections"])
        families["koo_database_connections_max"].add_metric((), status["max_connections"])
        families["koo_database_waiting"].add_metric((), status["waiting"])


def _is_latched(latches: Latches) -> int:
    return 1 if latches else 0


def _family(name: str) -> Any:
    kind, meaning, labels = NAMES[name]
    families: dict[str, Any] = {
        "gauge": GaugeMetricFamily,
        "counter": CounterMetricFamily,
        "histogram": HistogramMetricFamily,
    }
    return families[kind](name, meaning, labels=labels)


def _add_guard(families: Mapping[str, Any], guard: Guard, kind: str) -> None:
    breaker, tally = guard.breaker, guard.tally
    who = (breaker.name, kind)
    word, total = breaker_word(breaker), tally.totals()
    for state in STATES:
        families["koo_circuit_breaker_state"].add_metric((*who, state), 1 if state == word else 0)
    families["koo_circuit_breaker_opened"].add_metric(who, breaker.trips)
    families["koo_circuit_breaker_consecutive_failures"].add_metric(who, breaker.consecutive)
    for verdict in Verdict:
        outcome = (*who, verdict.name.lower())
        families["koo_calls"].add_metric(outcome, total.verdicts[verdict])
    for error, count in tally.errors.items():
        families["koo_call_errors"].add_metric((*who, str(error)), count)
    for reason in (*REFUSALS, *(tally.refused.keys() - REFUSALS)):
        families["koo_calls_refused"].add_metric((*who, str(reason)), tally.refused.get(reason, 0))
    families["koo_call_duration_seconds"].add_metric(who, _buckets(total.latency), total.latency_sum_s)
    families["koo_calls_running"].add_metric(who, len(breaker.running))
    families["koo_retries"].add_metric(who, tally.retries)
    families["koo_retry_budget_tokens"].add_metric(who, guard.retry_budget.tokens)


def _buckets(latency: list[int]) -> list[tuple[str, float]]:
    """Cumulative counts, as the format wants them."""
    below, buckets = 0, []
    for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), latency, strict=True):
        below += count
        buckets.append((bound, float(below)))
    return buckets


def render(collector: KooCollector) -> bytes:
    """The text that a scrape gets, from a registry of our own: a host application's metrics are its own."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return generate_latest(registry)
