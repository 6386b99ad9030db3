"""The numbers that are seen: one aggregation for Python, HTTP, the page, the command line and metrics.

Two views that count for themselves would one day disagree, and at 3 a.m. it is unknown which of them is right. So each
number is made once: here for services and for everything together, in `vitals` for the database. Nothing here does
I/O, waits, or changes a state: it reads what the policies know now. The shapes are those of `shapes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from decimal import Decimal
from typing import Protocol, get_args

from koo.clock import Clock, iso, utc_day
from koo.errors import UnknownService, name_of
from koo.gates import Gates
from koo.guard import Guard
from koo.monitoring.shapes import (
    Alert,
    BreakerStatus,
    BreakerWord,
    DailyBudget,
    Dashboard,
    DatabaseHealth,
    ModelStatus,
    Outcomes,
    OverallHealth,
    RateLimit,
    RateLimits,
    RequestWindow,
    ServiceConfiguration,
    ServiceHealth,
    ServiceMetrics,
    ServicesHealth,
    Summary,
    SystemAlerts,
    SystemHealth,
)
from koo.options import DAY_S, GuardOptions
from koo.policies.breaker import CLOSED, OPEN, Breaker, Override
from koo.policies.limiter import Count, DayCount
from koo.policies.reported import ServiceState, service_state
from koo.policies.tally import BUCKET_S, BUCKETS, Bucket
from koo.policies.verdict import FAILURE, NEUTRAL, SUCCESS, THROTTLED
from koo.storage.base import Allowance, BudgetView

WINDOW_S = BUCKET_S * BUCKETS


class ServiceLike(Protocol):
    """What a snapshot reads of a service."""

    name: str
    configured: bool
    free: bool
    default_model: str | None
    allowance: Allowance
    options: GuardOptions
    gates: Gates

    @property
    def guards(self) -> list[Guard]: ...

    @property
    def default_guard(self) -> Guard: ...


class Wall:
    """Monotonic seconds as wall time, for people."""

    __slots__ = ("_offset_s", "now", "wall")

    def __init__(self, clock: Clock) -> None:
        self.now = clock.monotonic()
        self.wall = clock.wall()
        self._offset_s = self.wall - self.now

    def iso(self, monotonic_s: float | None) -> str | None:
        """ISO 8601 in UTC; None stays None."""
        return None if monotonic_s is None else iso(monotonic_s + self._offset_s)


def now_iso(clock: Clock) -> str:
    """Now, as all answers say it."""
    return iso(clock.wall())


def money(amount_usd: Decimal) -> str:
    """An exact amount, without an exponent and without trailing zeros."""
    text = f"{amount_usd.normalize():f}"
    return text if text != "-0" else "0"


# ── breakers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def breaker_word(breaker: Breaker) -> BreakerWord:
    """What a breaker does with calls, in one word: an operator's, else its phase."""
    if breaker.override is Override.FORCED_OPEN:
        return "forced_open"
    return "disabled" if breaker.override is Override.DISABLED else breaker.phase.value


def _why(breaker: Breaker) -> str:
    if breaker.override is Override.FORCED_OPEN:
        return "forced open by an operator"
    return breaker.reason if breaker.phase is not CLOSED else ""


def breaker_view(guard: Guard, wall: Wall) -> BreakerStatus:
    """One breaker, as a person asks about it: its phase, why, and when it will be asked again."""
    breaker = guard.breaker
    window = breaker.window
    return {
        "name": breaker.name,
        "state": breaker_word(breaker),
        "override": breaker.override.value,
        "reason": _why(breaker),
        "consecutive_failures": breaker.consecutive,
        "failure_threshold": breaker.options.failure_threshold,
        "success_threshold": breaker.options.success_threshold,
        "recovery_timeout": breaker.options.recovery_s,
        "window": {"calls": window.calls, "failures": window.failures, "slow": window.slow},
        "opened_at": wall.iso(breaker.opened_at) if breaker.trips else None,
        "next_attempt": wall.iso(breaker.opens_until()) if breaker.phase is OPEN else None,
        "times_opened": breaker.trips,
        "stale_results": breaker.stale,
        "running": breaker.running,
    }


def outcomes_view(guards: Sequence[Guard], wall: Wall) -> Outcomes:
    """What became of the calls behind several guards; throttled ones have failed."""
    verdicts = total_of(guards).verdicts
    failures = [guard.tally.last_failure_at for guard in guards if guard.tally.last_failure_at is not None]
    successes = [guard.tally.last_success_at for guard in guards if guard.tally.last_success_at is not None]
    return {
        "failure_count": verdicts[FAILURE] + verdicts[THROTTLED],
        "success_count": verdicts[SUCCESS],
        "last_failure": wall.iso(max(failures, default=None)),
        "last_success": wall.iso(max(successes, default=None)),
    }


def total_of(guards: Sequence[Guard]) -> Bucket:
    """Counts of the process's life over several guards."""
    total = Bucket()
    for guard in guards:
        total.add(guard.tally.totals())
    return total


def recent_of(guards: Sequence[Guard], now: float) -> Bucket:
    """The last five minutes over several guards."""
    recent = Bucket()
    for guard in guards:
        recent.add(guard.tally.recent(now))
    return recent


def metrics_view(guards: Sequence[Guard], now: float) -> ServiceMetrics:
    """Counts of the process's life; rates and percentiles (seconds) of the last five minutes."""
    total, recent = total_of(guards), recent_of(guards, now)
    errors: dict[str, int] = {}
    refused: dict[str, int] = {}
    for guard in guards:
        _add_to(errors, guard.tally.errors)
        _add_to(refused, guard.tally.refused)
    return {
        "total_requests": sum(total.verdicts),
        "successful_requests": total.verdicts[SUCCESS],
        "failed_requests": total.verdicts[FAILURE] + total.verdicts[THROTTLED],
        "neutral_requests": total.verdicts[NEUTRAL],
        "throttled_requests": total.verdicts[THROTTLED],
        "refused_requests": sum(refused.values()),
        "refusals": refused,
        "retries": sum(guard.tally.retries for guard in guards),
        "recent": {
            "calls": recent.answered,
            "failed": recent.answered - recent.verdicts[SUCCESS],
            "slow": recent.slow,
            "window_s": WINDOW_S,
        },
        "success_rate": recent.success_rate(),
        "average_response_time": recent.mean_s(),
        "error_counts": errors,
        "p50": recent.percentile_s(0.50),
        "p95": recent.percentile_s(0.95),
        "p99": recent.percentile_s(0.99),
    }


def _add_to(total: dict[str, int], counts: Mapping[str, int]) -> None:
    for key, count in counts.items():
        total[str(key)] = total.get(str(key), 0) + count


# ── limits and money ──────────────────────────────────────────────────────────────────────────────────────────────

WINDOWS: tuple[RequestWindow, ...] = get_args(RequestWindow)
COUNT_KEYS: dict[str, RequestWindow] = {
    "requests a minute": "requests_per_minute",
    "requests an hour": "requests_per_hour",
    "requests a day": "requests_per_day",
}


def count_view(count: Count, wall: Wall) -> RateLimit:
    """One limit as it is now; reading rolls a copy, so a day that is over by now is shown as the next one.

    `resets_at`: when the day ends; for a minute or an hour when the next unit comes back, None if none is used.
    """
    if wall.now >= count.rolls_at:
        count = deepcopy(count)
        count.roll(wall.now)
    return {
        "used": count.used,
        "limit": count.limit,
        "remaining": max(0, count.limit - count.used),
        "resets_at": wall.iso(_gives_back_at(count, wall.now)),
    }


def _gives_back_at(count: Count, now: float) -> float | None:
    if isinstance(count, DayCount):
        return count.rolls_at
    if not count.used:
        return None
    # A count with units left says "now". Asked as if it were full it tells when the oldest unit leaves it.
    full = copy(count)
    full.limit = count.used
    return full.resets_at(now)


def limits_view(service: ServiceLike, budget: BudgetView | None, wall: Wall) -> RateLimits:
    """`requests_per_minute`, `_hour`, `_day` and `daily_budget`; a limit that is not set has None for `limit`."""
    views: RateLimits = {
        "requests_per_minute": _unlimited(),
        "requests_per_hour": _unlimited(),
        "requests_per_day": _unlimited(),
        "daily_budget": budget_view(service.allowance, budget, wall),
    }
    for count in service.gates.limits.counts:
        views[COUNT_KEYS[count.name]] = count_view(count, wall)
    return views


def _unlimited() -> RateLimit:
    return {"used": 0, "limit": None, "remaining": None, "resets_at": None}


def budget_view(allowance: Allowance, budget: BudgetView | None, wall: Wall) -> DailyBudget:
    """Today's money in USD, as exact decimal strings."""
    today = utc_day(wall.wall)
    current = budget is not None and budget.day == today
    spent = budget.spent_usd if budget is not None and current else Decimal(0)
    held = budget.held_usd if budget is not None and current else Decimal(0)
    limit = allowance.limit_usd
    return {
        "spent": money(spent),
        "reserved": money(held),
        "limit": None if limit is None else money(limit),
        "remaining": None if limit is None else money(max(Decimal(0), limit - spent - held)),
        "resets_at": iso((today + 1) * DAY_S),
        "currency": "USD",
        "scope": budget.scope if budget is not None else "shared",
        "as_of": iso(budget.as_of) if budget is not None else None,
    }


def used_up(service: ServiceLike, budget: BudgetView | None, wall: Wall) -> str:
    """Which limit, budget or pause keeps calls away now; empty if none does."""
    gates = service.gates
    for cooldown in (gates.quota, service.default_guard.cooldown):
        if wall.now < cooldown.until:
            return f"{cooldown.reason} until {wall.iso(cooldown.until)}"
    for count in gates.limits.counts:
        if count_view(count, wall)["remaining"] == 0:
            return f"our limit of {count.limit} {count.name} is reached"
    limit = service.allowance.limit_usd
    if (
        limit is not None
        and not service.free  # then no call is ever refused for money
        and budget is not None
        and budget.day == utc_day(wall.wall)
        and budget.spent_usd >= limit
    ):
        return f"the daily budget of {money(limit)} USD is used up"
    return ""


# ── services ──────────────────────────────────────────────────────────────────────────────────────────────────────


def state_of(service: ServiceLike, budget: BudgetView | None, wall: Wall) -> tuple[ServiceState, str]:
    """The reported state of a service, and why."""
    if not service.configured:
        return ServiceState.UNHEALTHY, "not configured"
    blocks = service.gates.key_blocks
    whole = blocks.find(None, wall.now) or blocks.find(service.default_model, wall.now)
    models = (blocks.find(guard.model, wall.now) for guard in service.guards)
    some = next((block for block in models if block is not None), None)
    default = service.default_guard
    return service_state(
        default.signs(),
        [guard.signs() for guard in service.guards if guard is not default],
        key_blocked=whole.reason if whole else "",
        limited=used_up(service, budget, wall),
        model_blocked=some.reason if some else "",
    )


def model_view(service: ServiceLike, guard: Guard, wall: Wall) -> ModelStatus:
    """One model: its breaker, and `key_refused`: why the key is refused for it; empty if it is not."""
    block = service.gates.key_blocks.find(guard.model, wall.now)
    return {**breaker_view(guard, wall), "key_refused": block.reason if block else ""}


def service_view(
    service: ServiceLike,
    budget: BudgetView | None,
    clock: Clock,
    configuration: ServiceConfiguration | None = None,
) -> ServiceHealth:
    """Everything about one service, in the promised shape. Of its `models` the default one is the first."""
    wall = Wall(clock)
    state, reason = state_of(service, budget, wall)
    guard = service.default_guard
    breaker = guard.breaker
    next_attempt = breaker.opens_until() if breaker.phase is OPEN else None
    return {
        "service_name": service.name,
        "state": state.value,
        "configured": service.configured,
        "reason": reason,
        "health": {
            **outcomes_view(service.guards, wall),
            "circuit_breaker_state": breaker_word(breaker),
            "consecutive_failures": breaker.consecutive,
            "next_attempt": wall.iso(next_attempt),
        },
        "metrics": metrics_view(service.guards, wall.now),
        "rate_limits": limits_view(service, budget, wall),
        "models": {str(g.model or "default"): model_view(service, g, wall) for g in service.guards},
        "configuration": configuration or _configuration(service),
        "last_updated": iso(wall.wall),
    }


def _configuration(service: ServiceLike) -> ServiceConfiguration:
    options = service.options
    return {
        "model": service.default_model,
        "timeout": options.timeout_s,
        "attempt_timeout": options.attempt_timeout_s,
        "slow_call": options.slow_s,
        "max_retries": options.retry.attempts_max - 1,
        "failure_threshold": options.breaker.failure_threshold,
        "recovery_timeout": options.breaker.recovery_s,
        "success_threshold": options.breaker.success_threshold,
        "idempotent": options.idempotent,
    }


def services_view(services: Mapping[str, ServiceHealth], clock: Clock) -> ServicesHealth:
    """All services in one; those without a key are listed, but outside all counts."""
    configured = [view for view in services.values() if view["configured"]]
    return {
        "overall_health": services_health(configured),
        "healthy_services": sum(view["state"] == "healthy" for view in configured),
        "total_services": len(configured),
        "services": dict(services),
        "timestamp": now_iso(clock),
    }


def services_health(configured: Sequence[ServiceHealth]) -> OverallHealth:
    """unhealthy: every configured service refuses; degraded: some part is not healthy; else healthy."""
    states = {view["state"] for view in configured}
    if states and states <= {"circuit_open", "rate_limited"}:
        return "unhealthy"
    return "healthy" if states <= {"healthy"} else "degraded"


# ── everything together ───────────────────────────────────────────────────────────────────────────────────────────


def system_view(database: DatabaseHealth, services: ServicesHealth, clock: Clock) -> SystemHealth:
    """`overall_health` and what it is made of."""
    health = services["overall_health"]
    overall: OverallHealth = "healthy"
    if database["state"] == "circuit_open" or health == "unhealthy":
        overall = "unhealthy"
    elif not is_database_healthy(database) or health != "healthy":
        overall = "degraded"
    return {
        "overall_health": overall,
        "database": database,
        "ai_services": services,
        "timestamp": now_iso(clock),
    }


def is_database_healthy(database: DatabaseHealth) -> bool:
    """Nothing is wrong with it: neither for its guard nor for the last probe."""
    return database["healthy"] and database["state"] == "healthy"


def alerts_view(alerts: list[Alert], clock: Clock) -> SystemAlerts:
    """The alerts and how many they are."""
    return {"alerts": alerts, "alert_count": len(alerts), "timestamp": now_iso(clock)}


def dashboard_view(health: SystemHealth, alerts: list[Alert]) -> Dashboard:
    """Everything that an overview shows."""
    return {
        "summary": _summary(health, alerts),
        "database": health["database"],
        "ai_services": health["ai_services"],
        "alerts": alerts,
        "timestamp": health["timestamp"],
    }


def _summary(health: SystemHealth, alerts: list[Alert]) -> Summary:
    services = health["ai_services"]
    breakers: list[BreakerStatus] = [health["database"]["circuit_breaker"]]
    for service in services["services"].values():
        breakers += service["models"].values()
    return {
        "overall_health": health["overall_health"],
        "database_healthy": is_database_healthy(health["database"]),
        "ai_services_healthy": f"{services['healthy_services']}/{services['total_services']}",
        "active_alerts": sum(alert["active"] for alert in alerts),
        "circuit_breakers_open": sum(breaker["state"] in ("open", "forced_open") for breaker in breakers),
    }


def unknown_service(name: object, known: Sequence[str]) -> UnknownService:
    """The error of every view for a name that is not there."""
    return UnknownService(name_of(name), f"no such service; known are: {', '.join(sorted(known))}")
