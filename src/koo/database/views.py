"""What a database shows of itself: plain dicts of what is known now. No I/O, and no state is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from koo.clock import iso
from koo.policies.breaker import CLOSED, OPEN, Breaker, Override
from koo.policies.reported import database_state
from koo.policies.verdict import FAILURE, NEUTRAL, SUCCESS

if TYPE_CHECKING:
    from koo.database.database import Database

SLOW_CALLS_MIN = 20


def pool_status(database: Database) -> dict[str, Any]:
    """How full the pool is. `utilization` is the share of all connections that there may be."""
    options, gate = database.options, database.gate
    most = gate.limit
    open_now = len(database.connections.links) if database.connections is not None else 0
    active = min(gate.used, most)
    return {
        "size": options.pool_size,
        "active_connections": active,
        "idle_connections": max(0, open_now - active),
        "overflow_connections": max(0, open_now - options.pool_size),
        "open_connections": open_now,
        "waiting": gate.waiting,
        "max_connections": most,
        "utilization": active / most,
    }


def circuit_breaker(database: Database) -> dict[str, Any]:
    """The breaker, its counts, and when it will be asked again."""
    guard, breaker = database.guard, database.guard.breaker
    total = guard.tally.totals()
    offset_s = database.clock.wall() - database.clock.monotonic()

    def when(monotonic_s: float | None) -> str | None:
        return None if monotonic_s is None else iso(monotonic_s + offset_s)

    forced = breaker.override in (Override.FORCED_OPEN, Override.DISABLED)
    return {
        "state": breaker.override.value if forced else breaker.phase.value,
        "override": breaker.override.value,
        "reason": _why(breaker),
        "failure_count": total.verdicts[FAILURE],
        "success_count": total.verdicts[SUCCESS],
        "neutral_count": total.verdicts[NEUTRAL],
        "refused_count": sum(guard.tally.refused.values()),
        "consecutive_failures": breaker.consecutive,
        "failure_threshold": breaker.options.failure_threshold,
        "success_threshold": breaker.options.success_threshold,
        "recovery_timeout": breaker.options.recovery_s,
        "times_opened": breaker.trips,
        "last_failure": when(guard.tally.last_failure_at),
        "last_success": when(guard.tally.last_success_at),
        "next_attempt": when(breaker.opens_until()) if breaker.phase is OPEN else None,
    }


def _why(breaker: Breaker) -> str:
    if breaker.override is Override.FORCED_OPEN:
        return "forced open by an operator"
    return breaker.reason if breaker.phase is not CLOSED else ""


def pool_metrics(database: Database) -> dict[str, Any]:
    """Everything that is counted."""
    metrics, guard = database.metrics, database.guard
    now = database.clock.monotonic()
    recent = guard.tally.recent(now)
    return {
        "pool_status": pool_status(database),
        "connection_metrics": metrics.connections(),
        "response_times": {
            "average": recent.mean_s(),
            "p50": recent.percentile_s(0.50),
            "p95": recent.percentile_s(0.95),
            "p99": recent.percentile_s(0.99),
            "success_rate": recent.success_rate(),
            "phases": metrics.times(now),
        },
        "errors": {
            "by_kind": dict(metrics.errors),
            "total": sum(metrics.errors.values()),
            "contention": metrics.contention,
            "unknown_commits": metrics.unknown_commits,
            "pool_timeouts": database.gate.refused,
            "last_error": metrics.last_error,
        },
        "retries": {
            "connects": guard.tally.retries - metrics.repeats,
            "transactions": metrics.repeats,
            "first_statements": metrics.replays,
        },
        "circuit_breaker": circuit_breaker(database),
        "timestamp": iso(database.clock.wall()),
    }


def conditions(database: Database) -> list[str]:
    """What is the matter beside the state: saturated, slow, read_only."""
    now = database.clock.monotonic()
    found = []
    if database.gate.is_saturated(now):
        found.append("saturated")
    statements = database.metrics.statement.recent(now)
    if (
        statements.answered >= SLOW_CALLS_MIN
        and statements.percentile_s(0.95) >= database.options.slow_call_s
    ):
        found.append("slow")
    if database.is_read_only:
        found.append("read_only")
    return found


def health(database: Database) -> dict[str, Any]:
    """The state and the last look of the probe."""
    state, reason = database_state(database.guard.signs())
    look = database.last_look
    error = None if look is None or look.error is None else str(look.error)
    return {
        "healthy": error is None and state.value == "healthy",
        "state": state.value,
        "reason": reason,
        "conditions": conditions(database),
        "response_time_ms": None if look is None else look.took_s * 1000,
        "circuit_breaker": circuit_breaker(database),
        "pool_status": pool_status(database),
        "last_health_check": None if look is None else iso(look.at_wall_s),
        "error": error,
        "timestamp": iso(database.clock.wall()),
    }


def detailed_status(database: Database) -> dict[str, Any]:
    """Health, pool metrics and configuration in one; no URL, since that may hold a password."""
    options = database.options
    return {
        **pool_metrics(database),
        **health(database),
        "configuration": {
            "driver": database.driver_name,
            "pool_size": options.pool_size,
            "max_overflow": options.max_overflow,
            "pool_timeout": options.pool_timeout_s,
            "pool_recycle": options.pool_recycle_s,
            "scope_timeout": options.scope_timeout_s,
            "slow_call": options.slow_call_s,
            "max_retries": options.retry.attempts_max - 1,
            "health_check_interval": options.probe_interval_s,
            "exactly_once": options.exactly_once,
        },
    }
