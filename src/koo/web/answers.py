"""The shapes of answers that only HTTP has; what is seen of services and the database is `koo.monitoring.shapes`."""

# Without `from __future__ import annotations`: the types are read at run time, where the API is described.

from typing import Annotated, Literal

from koo.monitoring.shapes import (
    BreakerStatus,
    DatabaseGate,
    DatabaseHealth,
    DatabaseMetrics,
    DatabaseStatus,
    DatabaseWord,
    Doc,
    ServiceCheck,
    ServiceHealth,
    ServicesHealth,
    Time,
    TypedDict,
    Usd,
)

# ── questions ─────────────────────────────────────────────────────────────────────────────────────────────────────


class TokenUsage(TypedDict):
    """Tokens; the first four classes are disjoint, reasoning is a part of the output."""

    input_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    total_tokens: int
    estimated: Annotated[bool, Doc("the provider reported none, so koo counted")]


class QueryAnswer(TypedDict):
    """An answer, and what it cost."""

    response: str
    service: Annotated[str, Doc("the one that answered, which may be a fallback")]
    model: str
    usage: TokenUsage
    cost: Usd
    cost_source: Annotated[str, Doc("where the cost comes from: reported, table, configured or estimate")]
    attempts: int
    latency_s: float
    stop_reason: str | None
    max_tokens: Annotated[int | None, Doc("the longest answer that was asked for")]
    clamped: Annotated[bool, Doc("`max_tokens` was lowered to what fitted, as `clamp` allows")]
    timestamp: Time


class BatchSuccess(QueryAnswer):
    """The answer to one of several questions."""

    success: Literal[True]


class BatchFailure(TypedDict):
    """Why one of several questions has no answer."""

    success: Literal[False]
    service: str
    error: str
    kind: Annotated[str, Doc("what happened, in one word; stable, so programs can rely on it")]
    status: Annotated[int, Doc("the status that the question alone would have had")]
    retry_after_s: Annotated[float | None, Doc("seconds to wait before asking again; null: not known")]
    attempts: int


class BatchAnswer(TypedDict):
    """A result for each question, in the same order."""

    results: list[BatchSuccess | BatchFailure]
    total_queries: int
    successful_queries: int
    failed_queries: int
    total_cost: Usd
    timestamp: Time


ServiceChecks = dict[str, ServiceCheck]
"""What unbilled checks found, by service."""


class ServiceReset(TypedDict):
    """A service starts afresh."""

    message: str
    service: str
    timestamp: Time


class ServicesReset(TypedDict):
    """All services start afresh."""

    message: str
    results: dict[str, bool]
    timestamp: Time


# ── monitoring ────────────────────────────────────────────────────────────────────────────────────────────────────


class DatabaseMonitoring(TypedDict):
    """The database in detail."""

    database_monitoring: DatabaseStatus
    timestamp: Time


class PoolMetrics(TypedDict):
    """The connection pool."""

    pool_metrics: DatabaseMetrics
    timestamp: Time


class DatabaseCheck(TypedDict):
    """What a check made now found."""

    health_check_result: DatabaseHealth
    detailed_status: DatabaseStatus
    timestamp: Time


class DatabaseReset(TypedDict):
    """The database's breaker is closed."""

    message: str
    new_state: DatabaseWord
    timestamp: Time


class DatabaseAct(TypedDict):
    """What an operator's act on the database's scopes or connections came to, in this process."""

    message: str
    database: DatabaseGate
    timestamp: Time


class ServicesMonitoring(TypedDict):
    """All AI services in detail."""

    ai_services_monitoring: ServicesHealth
    timestamp: Time


class ServiceMonitoring(TypedDict):
    """One AI service in detail."""

    service_metrics: ServiceHealth
    timestamp: Time


# ── probes ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Alive(TypedDict):
    """The process lives."""

    status: Literal["alive"]


class Ready(TypedDict):
    """Traffic is welcome."""

    status: Literal["ready"]


# ── sessions ──────────────────────────────────────────────────────────────────────────────────────────────────────


class SessionView(TypedDict):
    """Who asks, and what they may do."""

    role: Annotated[Literal["write", "read"], Doc("read: what changes something is refused")]
    who: Annotated[
        str, Doc("token, read token, session, read session, this machine; empty: your application decides")
    ]
    expires_at: Annotated[Time | None, Doc("when the session ends; null: the request has no session")]
    login: Annotated[bool, Doc("a session can be begun here; false: no token is set")]
    timestamp: Time


# ── breakers ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Breakers(TypedDict):
    """All circuit breakers, the database's first."""

    breakers: list[BreakerStatus]
    timestamp: Time


class BreakerAct(TypedDict):
    """Breakers that an operator did something to, as they are now."""

    message: str
    breakers: list[BreakerStatus]
    timestamp: Time
