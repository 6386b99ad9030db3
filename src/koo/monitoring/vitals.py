"""Builds the views of the database from what a `Database` hands over.

Nothing here does I/O or changes state. The database passes its own numbers (open scopes, the last probe's result) as
`Vitals`. Counts, rates and the breaker are read from its guard and its pool's counters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from koo.clock import Clock, iso
from koo.errors import DatabaseError, Kind
from koo.guard import Guard
from koo.monitoring.guards import Wall, breaker_view, last_error_view, now_iso, outcomes_view
from koo.monitoring.pool import PoolMetrics, spread_of
from koo.monitoring.shapes import (
    DatabaseBreaker,
    DatabaseConfiguration,
    DatabaseErrors,
    DatabaseHealth,
    DatabaseMetrics,
    DatabaseRetries,
    DatabaseServer,
    DatabaseStatus,
    PoolStatus,
    ResponseTimes,
)
from koo.openings import Act
from koo.options import DatabaseOptions
from koo.policies.breaker import CLOSED
from koo.policies.overrides import said_of
from koo.policies.reported import database_state
from koo.policies.verdict import NEUTRAL

SLOW_CALLS_MIN = 20
AWAY = (Kind.CONNECTION, Kind.TIMEOUT)
UNKNOWN_COMMIT_KEPT_S = 12 * 3600.0
"""Until the next morning, because only an operator can find out whether the transaction happened."""


@dataclass(frozen=True, slots=True)
class Look:
    """The result of a probe. `read_only` tells whether writes are refused; None if unknown.

    `answered_since` is the wall time of the first of the consecutive successful probes; None if this one failed.
    """

    at_wall_s: float
    took_s: float
    error: DatabaseError | None
    read_only: bool | None = None
    answered_since: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """A database at one moment.

    `open` counts connections, `active` callers with a connection, `waiting` callers in the queue. `turned_away` counts
    callers that got no connection since the pool became saturated. `overdue` counts scopes that are open for longer
    than usual, and `held_by` describes the oldest. `gate` is open, paused or draining, as an operator set
    it by `gate_act`.
    """

    options: DatabaseOptions
    driver: str
    server: DatabaseServer
    clock: Clock
    guard: Guard
    metrics: PoolMetrics
    open: int
    active: int
    waiting: int
    pool_timeouts: int
    is_saturated: bool
    turned_away: int
    overdue: int
    held_by: Sequence[str]
    gate: str
    gate_act: Act | None
    look: Look | None

    @property
    def most(self) -> int:
        """The maximum number of connections."""
        return self.options.pool_size + self.options.max_overflow


def pool_view(vitals: Vitals) -> PoolStatus:
    """How full the pool is."""
    size, active = vitals.options.pool_size, min(vitals.active, vitals.most)
    idle = max(0, vitals.open - active)
    # While the server does not answer, idle connections are probably dead, so they are not shown as available.
    is_away = vitals.look is not None and vitals.look.error is not None and vitals.look.error.kind in AWAY
    return {
        "size": size,
        "active_connections": active,
        "idle_connections": 0 if is_away else idle,
        "suspect_connections": idle if is_away else 0,
        "overflow_connections": max(0, vitals.open - size),
        "open_connections": vitals.open,
        "waiting": vitals.waiting,
        "max_connections": vitals.most,
        "utilization": active / vitals.most,
        "turned_away": vitals.turned_away,
        "overdue": vitals.overdue,
        "held_by": list(vitals.held_by),
    }


def database_breaker(vitals: Vitals) -> DatabaseBreaker:
    """The breaker, and the results of its calls."""
    guard, wall = vitals.guard, Wall(vitals.clock)
    return {
        **breaker_view(guard, wall),
        **outcomes_view([guard.tally], wall),
        "neutral_count": guard.tally.totals().verdicts[NEUTRAL],
        "refused_count": sum(guard.tally.refused.values()),
    }


def database_metrics(vitals: Vitals) -> DatabaseMetrics:
    """All counts and latencies."""
    return {
        "pool_status": pool_view(vitals),
        "connection_metrics": vitals.metrics.connections(),
        "response_times": _response_times(vitals),
        "errors": _errors(vitals),
        "retries": _retries(vitals),
        "circuit_breaker": database_breaker(vitals),
        "timestamp": now_iso(vitals.clock),
    }


def _response_times(vitals: Vitals) -> ResponseTimes:
    now = vitals.clock.monotonic()
    recent = vitals.guard.tally.recent(now)
    return {
        **spread_of(recent),
        "success_rate": recent.success_rate(),
        "phases": vitals.metrics.times(now),
    }


def _errors(vitals: Vitals) -> DatabaseErrors:
    metrics = vitals.metrics
    return {
        "by_kind": dict(metrics.errors),
        "total": sum(metrics.errors.values()),
        "contention": metrics.contention,
        "unknown_commits": metrics.unknown_commits,
        "resolved_commits": metrics.resolved_commits,
        "pool_timeouts": vitals.pool_timeouts,
        "last_error": metrics.last_error,
    }


def _retries(vitals: Vitals) -> DatabaseRetries:
    metrics = vitals.metrics
    return {
        "connects": vitals.guard.tally.retries - metrics.repeats,
        "transactions": metrics.repeats,
        "first_statements": metrics.replays,
    }


def _conditions(vitals: Vitals) -> list[str]:
    now = vitals.clock.monotonic()
    statements = vitals.metrics.statement.recent(now)
    is_slow = (
        statements.answered >= SLOW_CALLS_MIN and statements.percentile_s(0.95) >= vitals.options.slow_call_s
    )
    known = {
        "saturated": vitals.is_saturated,
        "leaking": vitals.overdue > 0,
        "slow": is_slow,
        "read_only": vitals.metrics.is_read_only,
        "without_wal": vitals.metrics.is_without_wal,
        "paused": vitals.gate == "paused",
        "draining": vitals.gate == "draining",
        "markers_unusable": vitals.metrics.marker_problem is not None,
        "commit_unknown": now - vitals.metrics.unknown_commit_at < UNKNOWN_COMMIT_KEPT_S,
    }
    return [condition for condition, holds in known.items() if holds]


def words_since(since: float) -> str:
    """A sentence about when the database began to answer again; `since` is in wall seconds."""
    return f"it has been answering again since {iso(since)[11:19]} UTC"


def answers_since(vitals: Vitals) -> float | None:
    """When the probe began to succeed again (wall seconds) while the breaker is not closed; otherwise None."""
    look, breaker = vitals.look, vitals.guard.breaker
    return None if look is None or breaker.phase is CLOSED else look.answered_since


def database_health(vitals: Vitals) -> DatabaseHealth:
    """The state, and the result of the last probe."""
    state, reason = database_state(vitals.guard.evidence())
    look = vitals.look
    # `reason` only, without the database's name and a retry time: views show the name in front of it, and the time is
    # the breaker's.
    error = None if look is None or look.error is None else look.error.reason
    since = answers_since(vitals)
    return {
        "healthy": error is None and state.value == "healthy",
        "state": state.value,
        "reason": reason,
        "last_error": last_error_view(vitals.guard.breaker.last_error),
        "server": vitals.server,
        "answers_since": None if since is None else iso(since),
        "conditions": _conditions(vitals),
        "operator": "" if vitals.gate == "open" else said_of(vitals.gate_act, "until it is resumed"),
        "response_time_ms": None if look is None else look.took_s * 1000,
        "circuit_breaker": database_breaker(vitals),
        "pool_status": pool_view(vitals),
        "last_health_check": None if look is None else iso(look.at_wall_s),
        "error": error,
        "timestamp": now_iso(vitals.clock),
    }


def database_status(vitals: Vitals, checked: DatabaseHealth) -> DatabaseStatus:
    """Metrics, configuration, and the health that was just checked."""
    return {**database_metrics(vitals), **checked, "configuration": _configuration(vitals)}


def _configuration(vitals: Vitals) -> DatabaseConfiguration:
    options = vitals.options
    return {
        "driver": vitals.driver,
        "pool_size": options.pool_size,
        "max_overflow": options.max_overflow,
        "pool_timeout": options.pool_timeout_s,
        "pool_recycle": options.pool_recycle_s,
        "scope_timeout": options.scope_timeout_s,
        "slow_call": options.slow_call_s,
        "max_retries": options.retry.attempts_max - 1,
        "health_check_interval": options.probe_interval_s,
        "exactly_once": options.exactly_once,
    }
