"""Response shapes that only HTTP has. Those for services and the database are in `koo.monitoring.shapes`."""

# No `from __future__ import annotations` here: the types are evaluated at run time to generate the API description.

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

# ── queries ───────────────────────────────────────────────────────────────────────────────────────────────────────


class TokenUsage(TypedDict):
    """Token counts. The first four are disjoint; reasoning tokens are part of the output."""

    input_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    total_tokens: int
    estimated: Annotated[bool, Doc("the provider reported no usage, so koo estimated it")]


class QueryAnswer(TypedDict):
    """A response, and what it cost."""

    response: str
    service: Annotated[str, Doc("the service that answered, possibly a fallback")]
    model: str
    usage: TokenUsage
    cost: Usd
    cost_source: Annotated[str, Doc("the source of the cost: reported, table, configured or estimate")]
    attempts: int
    latency_s: float
    stop_reason: str | None
    max_tokens: Annotated[int | None, Doc("the requested limit on the response's length")]
    clamped: Annotated[bool, Doc("`max_tokens` was lowered to fit, as `clamp` allows")]
    timestamp: Time


class BatchSuccess(QueryAnswer):
    """The response to one of several queries."""

    success: Literal[True]


class BatchFailure(TypedDict):
    """Why one of several queries failed."""

    success: Literal[False]
    service: str
    error: str
    kind: Annotated[str, Doc("the kind of failure, a stable identifier")]
    status: Annotated[int, Doc("the status that this query would have had as a single request")]
    retry_after_s: Annotated[float | None, Doc("seconds to wait before trying again; null: unknown")]
    attempts: int


class BatchAnswer(TypedDict):
    """One result for each query, in the same order."""

    results: list[BatchSuccess | BatchFailure]
    total_queries: int
    successful_queries: int
    failed_queries: int
    total_cost: Usd
    timestamp: Time


ServiceChecks = dict[str, ServiceCheck]
"""The results of unbilled checks, by service."""


class ServiceReset(TypedDict):
    """A service's errors were reset."""

    message: str
    service: str
    timestamp: Time


class ServicesReset(TypedDict):
    """The errors of all services were reset."""

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
    """The result of a check made now."""

    health_check_result: DatabaseHealth
    detailed_status: DatabaseStatus
    timestamp: Time


class DatabaseReset(TypedDict):
    """The database's breaker was closed."""

    message: str
    new_state: DatabaseWord
    timestamp: Time


class DatabaseAct(TypedDict):
    """The result of an operator's act on the database's scopes or connections, in this process."""

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
    """The process is alive."""

    status: Literal["alive"]


class Ready(TypedDict):
    """The process is ready for traffic."""

    status: Literal["ready"]


# ── sessions ──────────────────────────────────────────────────────────────────────────────────────────────────────


class SessionView(TypedDict):
    """Who sent the request, and what they may do."""

    role: Annotated[Literal["write", "read"], Doc("read: requests that change something are refused")]
    who: Annotated[
        str, Doc("token, read token, session, read session, this machine; empty: the application decides")
    ]
    expires_at: Annotated[Time | None, Doc("when the session ends; null: the request has no session")]
    login: Annotated[bool, Doc("a session can be started here; false: no token is set")]
    timestamp: Time


# ── breakers ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Breakers(TypedDict):
    """All circuit breakers, the database's first."""

    breakers: list[BreakerStatus]
    timestamp: Time


class BreakerAct(TypedDict):
    """The current state of the breakers that an operator acted on."""

    message: str
    breakers: list[BreakerStatus]
    timestamp: Time
