"""The numbers of a service: one aggregation for Python, HTTP, the page, the command line and metrics.

Two views that counted separately would disagree one day, and at 3 a.m. it would be unclear which one is right. So each
number is computed once: here for services, in `vitals` for the database, in `overview` for everything together. Nothing
in these files does I/O, waits or changes state; they only read the policies. The shapes are defined in `shapes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from decimal import Decimal
from typing import Protocol

from koo.clock import Clock, iso
from koo.errors import Failure, UnknownService, name_of
from koo.gates import Gates
from koo.guard import Guard
from koo.monitoring.guards import (
    Wall,
    breaker_view,
    breaker_word,
    last_error_view,
    money,
    next_attempt,
    outcomes_view,
    recent_of,
    total_of,
)
from koo.monitoring.shapes import (
    Budget,
    BudgetMoney,
    Clients,
    ModelStatus,
    Pause,
    RateLimit,
    RateLimits,
    RequestWindow,
    RunOut,
    ServiceConfiguration,
    ServiceHealth,
    ServiceMetrics,
    Shortage,
    TokenRate,
)
from koo.options import GuardOptions
from koo.policies import forecast
from koo.policies.breaker import CLOSED
from koo.policies.cooldown import Cooldown
from koo.policies.limiter import Count, DayCount
from koo.policies.reported import ServiceState, service_state
from koo.policies.tally import BUCKET_S, BUCKETS, Tally
from koo.policies.token_limit import TokenLimit
from koo.policies.verdict import FAILURE, NEUTRAL, SUCCESS, THROTTLED
from koo.storage.base import Allowance, BudgetView, OwnBudgetView, Short

WINDOW_S = BUCKET_S * BUCKETS
REFUSING_S = 30.0
"""How long the state still reports refusals of a kind after the last one."""


class CredentialsLike(Protocol):
    """The part of a service's client credentials that a snapshot reads."""

    def refused(self, now: float, last_success_at: float | None) -> tuple[str, bool]: ...

    def paused(self, now: float, last_success_at: float | None) -> Cooldown | None: ...

    def count(self, now: float) -> tuple[int, int]: ...


class ServiceLike(Protocol):
    """The part of a service that a snapshot reads."""

    name: str
    obstacle: str
    free: bool
    default_model: str | None
    allowance: Allowance
    options: GuardOptions
    gates: Gates
    tokens: TokenLimit | None
    own_credential: str

    @property
    def credentials(self) -> CredentialsLike: ...

    @property
    def configured(self) -> bool: ...

    @property
    def guards(self) -> list[Guard]: ...

    @property
    def tallies(self) -> list[Tally]: ...

    @property
    def default_guard(self) -> Guard: ...


def metrics_view(tallies: Sequence[Tally], wall: Wall) -> ServiceMetrics:
    """Counts since the process started; rates and percentiles (in seconds) of the last five minutes."""
    total, recent = total_of(tallies), recent_of(tallies, wall.now)
    errors: dict[str, int] = {}
    refused: dict[str, int] = {}
    for tally in tallies:
        _add_to(errors, tally.errors)
        _add_to(refused, tally.refused)
    return {
        "total_requests": sum(total.verdicts),
        "successful_requests": total.verdicts[SUCCESS],
        "failed_requests": total.verdicts[FAILURE] + total.verdicts[THROTTLED],
        "neutral_requests": total.verdicts[NEUTRAL],
        "throttled_requests": total.verdicts[THROTTLED],
        "refused_requests": sum(refused.values()),
        "refusals": refused,
        "refusing": _refusing(tallies, wall),
        "retries": sum(tally.retries for tally in tallies),
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


def _refusing(tallies: Sequence[Tally], wall: Wall) -> dict[str, str]:
    latest: dict[str, float] = {}
    for tally in tallies:
        for kind, at in tally.refused_at.items():
            latest[str(kind)] = max(at, latest.get(str(kind), at))
    return {kind: wall.iso(at) for kind, at in latest.items() if wall.now - at < REFUSING_S}


def _add_to(total: dict[str, int], counts: Mapping[str, int]) -> None:
    for key, count in counts.items():
        total[str(key)] = total.get(str(key), 0) + count


# ── limits and money ──────────────────────────────────────────────────────────────────────────────────────────────

COUNT_KEYS: dict[str, RequestWindow] = {
    "requests a minute": "requests_per_minute",
    "requests an hour": "requests_per_hour",
    "requests a day": "requests_per_day",
}


def count_view(count: Count, wall: Wall) -> RateLimit:
    """A limit's current state.

    `resets_at` is when the day ends; for a minute or an hour, when the next unit becomes free, or None if none is used.
    """
    # Reading must not change the count, so a copy moves on to the current window. Otherwise a day that has ended, with
    # no call since, would still be shown.
    count, hand = count.as_of(wall.now), count.hand
    used = count.used + (0 if hand is None else hand.elsewhere(wall.now))
    # While the store is unreachable, this process may use only its share. Other processes' use is added to the share,
    # because it is also in `used`: so `remaining` is the rest of the share.
    most = count.limit if hand is None or not hand.is_alone else used - count.used + hand.share
    # Other processes' use is as of the last reply, and some of it may have left the window since. With this process's
    # newest calls the sum could exceed the limit, which would look like a violation, so it is cut at the limit.
    return {
        "used": min(used, max(count.used, count.limit)),
        "limit": count.limit,
        "remaining": max(0, min(most, count.limit) - used),
        "resets_at": wall.iso(_gives_back_at(count, wall.now)),
    }


def _gives_back_at(count: Count, now: float) -> float | None:
    if isinstance(count, DayCount):
        return count.rolls_at
    if not count.used:
        return count.hand.shut_until if count.hand is not None and count.hand.shut_until > now else None
    # A count with units left would return "now". A copy that is full returns when the oldest unit leaves the window.
    full = copy(count)
    full.limit = count.used
    return full.resets_at(now)


def limits_view(service: ServiceLike, budget: BudgetView, wall: Wall) -> RateLimits:
    """All limits of a service. A limit that is not set has None for `limit`."""
    money_view = budget_view(budget)
    if service.free:  # its calls are never refused for lack of money
        money_view["used_up"] = False
    views: RateLimits = {
        "requests_per_minute": _unlimited(),
        "requests_per_hour": _unlimited(),
        "requests_per_day": _unlimited(),
        "tokens_per_minute": _tokens_view(service.tokens, wall),
        "daily_budget": money_view,
        "scope": "shared",
        "notice": "",
    }
    for count in service.gates.limits.counts:
        views[COUNT_KEYS[count.name]] = count_view(count, wall)
        if count.hand is None or count.hand.is_alone:
            views["scope"] = "this process"
            views["notice"] = "" if count.hand is None else count.hand.sentence
    return views


def _tokens_view(limit: TokenLimit | None, wall: Wall) -> TokenRate:
    if limit is None:
        return {**_unlimited(), "refuses": False}
    at = limit.refused_at
    return {**count_view(limit.count, wall), "refuses": at is not None and wall.now - at < REFUSING_S}


def _unlimited() -> RateLimit:
    return {"used": 0, "limit": None, "remaining": None, "resets_at": None}


def budget_view(budget: BudgetView, on_exhausted: str = "refuse") -> BudgetMoney:
    """A budget's money in USD, as exact decimal strings."""
    # Idle money in purses is not subtracted from the remainder: a process that needs it gets it by a recall. Held money
    # is subtracted, but does not make the budget "used up", because most of it is usually returned.
    limit, away = budget.limit_usd, budget.spent_usd + budget.held_usd + budget.unsettled_usd
    return {
        "spent": money(budget.spent_usd),
        "reserved": money(budget.held_usd),
        "limit": None if limit is None else money(limit),
        "remaining": None if limit is None else money(max(Decimal(0), limit - away)),
        "idle": money(budget.idle_usd),
        "unsettled": money(budget.unsettled_usd),
        "resets_at": iso(budget.resets_at),
        "above_hold": money(budget.above_hold_usd),
        "currency": "USD",
        "scope": budget.scope,
        "as_of": iso(budget.as_of) if budget.as_of is not None else None,
        "used_up": limit is not None and budget.spent_usd + budget.unsettled_usd >= limit,
        "runs_out": None if budget.runs_out is None else _run_out_view(budget.runs_out, on_exhausted),
    }


def _run_out_view(runs_out: forecast.RunOut, on_exhausted: str) -> RunOut:
    return {
        "earliest": iso(runs_out.earliest),
        "latest": iso(runs_out.latest),
        "then": "calls are refused" if on_exhausted == "refuse" else f"{on_exhausted} is called instead",
    }


def own_budget_view(own: OwnBudgetView) -> Budget:
    """A budget that an operator set."""
    options = own.options
    return {
        **budget_view(own.view, options.on_exhausted),
        "name": options.name,
        "title": options.name if own.tag is None else f"{options.name}/{own.tag}",
        "period": options.period,
        "service": options.service,
        "model": options.model,
        "tag": own.tag or options.tag,
        "on_exhausted": options.on_exhausted,
    }


def pause_of(service: ServiceLike, wall: Wall) -> Cooldown | None:
    """The pause that blocks calls to the service's default model; None if there is none."""
    for cooldown in (service.gates.quota, service.default_guard.cooldown):
        if wall.now < cooldown.until:
            return cooldown
    if service.own_credential:
        # A built-in service depends on koo's own key.
        return None
    return service.credentials.paused(wall.now, service.default_guard.tally.last_success_at)


def pause_view(cooldown: Cooldown | None, wall: Wall) -> Pause | None:
    """A pause, for display; None if it is over."""
    if cooldown is None or wall.now >= cooldown.until:
        return None
    return {
        "kind": cooldown.kind,
        "reason": cooldown.reason,
        "since": wall.iso(cooldown.since),
        "until": wall.iso(cooldown.until),
    }


def shortage_view(service: ServiceLike, short: Short | None) -> Shortage | None:
    """The budget that does not cover a service's calls, for display."""
    if short is None or service.free:
        return None
    return {
        "component": f"budget:{short.budget}" if short.budget else f"ai:{service.name}",
        "budget": short.title,
        "needed": money(short.needed_usd),
        "left": money(short.left_usd),
        "resets_at": iso(short.resets_at),
    }


def used_up(service: ServiceLike, budget: BudgetView, wall: Wall) -> str:
    """The limit, budget or pause that blocks calls now, as a sentence; empty if none does."""
    # The provider's pause comes first, because it refuses calls even if all of koo's own limits have room.
    pause = pause_of(service, wall)
    if pause is not None:
        return f"{pause.reason} until {wall.iso(pause.until)}"
    for count in service.gates.limits.counts:
        if count_view(count, wall)["remaining"] == 0:
            return service.gates.limits.why(count)
    limit = service.allowance.limit_usd
    if (
        limit is not None
        and not service.free  # a free service's calls are never refused for lack of money
        and budget.spent_usd + budget.unsettled_usd >= limit
    ):
        return f"the daily budget of {money(limit)} USD is used up"
    return "" if service.free else budget.shortage


# ── services ──────────────────────────────────────────────────────────────────────────────────────────────────────


def state_of(service: ServiceLike, budget: BudgetView, wall: Wall) -> tuple[ServiceState, str]:
    """The reported state of a service, and the reason."""
    if service.obstacle:
        return ServiceState.UNHEALTHY, service.obstacle
    blocks = service.gates.key_blocks
    whole = blocks.find(None, wall.now) or blocks.find(service.default_model, wall.now)
    models = (blocks.find(guard.model, wall.now) for guard in service.guards)
    some = next((block for block in models if block is not None), None)
    default = service.default_guard
    refused, all_refused = _refused_keys(service, wall)
    return service_state(
        default.evidence(),
        [guard.evidence() for guard in service.guards if guard is not default],
        key_blocked=whole.reason if whole else refused if all_refused else "",
        limited=used_up(service, budget, wall),
        model_blocked=some.reason if some else "",
        some_refused=refused,
    )


def _refused_keys(service: ServiceLike, wall: Wall) -> tuple[str, bool]:
    """A sentence about clients' refused keys, and whether all of them are refused."""
    if service.own_credential:
        return service.credentials.refused(wall.now, wall.now)[0], False
    return service.credentials.refused(wall.now, service.default_guard.tally.last_success_at)


def _last_error(service: ServiceLike) -> Failure | None:
    """The error to show: the default model's while its breaker is not closed, otherwise the last error of any model."""
    default = service.default_guard.breaker
    if default.phase is not CLOSED and not service.gates.key_blocks:
        return default.last_error
    errors = [guard.breaker.last_error for guard in service.guards]
    return max((one for one in errors if one is not None), key=lambda one: one.at, default=None)


def model_view(service: ServiceLike, guard: Guard, wall: Wall) -> ModelStatus:
    """One model: its breaker, why its key is refused (empty if it is not), and the provider's pause."""
    block = service.gates.key_blocks.find(guard.model, wall.now)
    return {
        **breaker_view(guard, wall),
        "key_refused": block.reason if block else "",
        "key_checked_at": wall.iso(min(block.check_at, block.until)) if block else None,
        "pause": pause_view(guard.cooldown, wall),
    }


def service_view(
    service: ServiceLike,
    budget: BudgetView,
    clock: Clock,
    configuration: ServiceConfiguration | None = None,
) -> ServiceHealth:
    """Everything about one service, in the promised shape. The default model comes first in `models`."""
    wall = Wall(clock)
    state, reason = state_of(service, budget, wall)
    guard = service.default_guard
    breaker = guard.breaker
    return {
        "service_name": service.name,
        "state": state.value,
        "configured": service.configured,
        "reason": reason,
        "last_error": last_error_view(_last_error(service)),
        "health": {
            **outcomes_view(service.tallies, wall),
            "circuit_breaker_state": breaker_word(breaker),
            "consecutive_failures": breaker.consecutive,
            "next_attempt": wall.iso(next_attempt(breaker)),
        },
        "metrics": metrics_view(service.tallies, wall),
        "rate_limits": limits_view(service, budget, wall),
        "pause": pause_view(pause_of(service, wall), wall),
        "shortage": shortage_view(service, budget.short),
        "clients": _clients(service, wall),
        "models": {str(g.model or "default"): model_view(service, g, wall) for g in service.guards},
        "configuration": configuration or _configuration(service),
        "last_updated": iso(wall.wall),
    }


def _clients(service: ServiceLike, wall: Wall) -> Clients | None:
    refused, known = service.credentials.count(wall.now)
    return {"known": known, "refused": refused} if known else None


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
        "concurrency": options.concurrency_max,
        "queue_length": options.queue_max,
    }


def unknown_service(name: object, known: Sequence[str]) -> UnknownService:
    """The error that every view raises for an unknown name."""
    return UnknownService(name_of(name), f"no such service; known services: {', '.join(sorted(known))}")
