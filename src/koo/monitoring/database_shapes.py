"""The shapes of the database's state; the rules of `shapes` apply here too."""

# There is no `from __future__ import annotations` here, because the API description reads the types at run time.

from typing import Annotated, Literal

from koo.monitoring.breaker_shapes import BreakerStatus, Doc, LastError, Outcomes, Time, TypedDict

DatabaseWord = Literal["healthy", "unhealthy", "circuit_open", "degraded"]


class DatabaseBreaker(BreakerStatus, Outcomes):
    """The database's circuit breaker, and the results of its calls."""

    neutral_count: Annotated[int, Doc("calls whose result says nothing about the database")]
    refused_count: Annotated[int, Doc("calls that koo refused and the database never received")]


class PoolStatus(TypedDict):
    """The pool's current connections."""

    size: Annotated[int, Doc("connections kept open")]
    active_connections: int
    idle_connections: int
    suspect_connections: Annotated[int, Doc("idle connections while the server does not answer its probe")]
    overflow_connections: Annotated[int, Doc("open connections beyond `size`")]
    open_connections: int
    waiting: Annotated[int, Doc("callers waiting for a connection")]
    max_connections: int
    utilization: Annotated[float, Doc("share of `max_connections` in use, 0 to 1")]
    turned_away: Annotated[
        int, Doc("callers that got no connection since the pool became full; 0 if none recently")
    ]
    overdue: Annotated[int, Doc("scopes open for longer than DATABASE_HELD_WARNING")]
    held_by: Annotated[
        list[str], Doc("descriptions of the oldest scopes, while the pool is full or a scope is overdue")
    ]


class ConnectionCounts(TypedDict):
    """Counts of connections, by what happened to them."""

    created: int
    closed: int
    broken: Annotated[int, Doc("lost while in use")]
    stale_replaced: Annotated[int, Doc("found dead before use, and replaced without an error")]
    aborted: Annotated[int, Doc("closed by koo because they took too long")]


class Spread(TypedDict):
    """Durations in the last five minutes, in seconds."""

    average: float
    p50: float
    p95: float
    p99: float


class PhaseTimes(Spread):
    """One phase of a scope."""

    count: Annotated[int, Doc("since the process started")]


class Phases(TypedDict):
    """The durations of a scope's phases. They are separate because each points to a different cause."""

    gate_wait: Annotated[PhaseTimes, Doc("waiting for a slot in the pool")]
    connect: PhaseTimes
    statement: PhaseTimes
    commit: PhaseTimes
    hold: Annotated[PhaseTimes, Doc("how long a scope kept its connection")]


class ResponseTimes(Spread):
    """Durations of scopes and of their phases, in seconds."""

    success_rate: Annotated[float, Doc("0 to 1; 1 if there were no calls")]
    phases: Phases


class DatabaseErrors(TypedDict):
    """Errors by kind, and how koo handled them."""

    by_kind: dict[str, int]
    total: int
    contention: Annotated[int, Doc("transactions that conflicted with others")]
    unknown_commits: Annotated[int, Doc("COMMITs whose outcome is unknown")]
    resolved_commits: Annotated[int, Doc("lost COMMITs whose outcome was found through their markers")]
    pool_timeouts: Annotated[int, Doc("callers that got no connection in time")]
    last_error: Annotated[
        str | None, Doc("its kind and the driver's name for it; null if there was none yet")
    ]


class DatabaseRetries(TypedDict):
    """Counts of retries."""

    connects: int
    transactions: int
    first_statements: int


class DatabaseMetrics(TypedDict):
    """The pool's current state and its counts."""

    pool_status: PoolStatus
    connection_metrics: ConnectionCounts
    response_times: ResponseTimes
    errors: DatabaseErrors
    retries: DatabaseRetries
    circuit_breaker: DatabaseBreaker
    timestamp: Time


class DatabaseServer(TypedDict):
    """The database server, without user and password."""

    host: Annotated[str | None, Doc("null for a file or a local socket")]
    port: int | None
    name: Annotated[str | None, Doc("the database or its file; null for the server's default")]


class DatabaseHealth(TypedDict):
    """The database as its guard and the last probe see it."""

    healthy: Annotated[bool, Doc("the last probe succeeded, and the state is healthy")]
    state: DatabaseWord
    reason: Annotated[str, Doc("why it is not healthy; empty if it is")]
    conditions: Annotated[
        list[str], Doc("conditions in addition to the state: saturated, slow, read_only, …")
    ]
    operator: Annotated[str, Doc("who paused or drained it, and why; empty if it is open to new scopes")]
    last_error: Annotated[LastError | None, Doc("kept after recovery; null if there was none yet")]
    server: DatabaseServer
    answers_since: Annotated[
        Time | None,
        Doc("since when its probe has been succeeding again while calls are still refused; otherwise null"),
    ]
    response_time_ms: Annotated[
        float | None,
        Doc("of the last probe, whether it succeeded or failed (see `error`); null if there was none yet"),
    ]
    circuit_breaker: DatabaseBreaker
    pool_status: PoolStatus
    last_health_check: Annotated[Time | None, Doc("null if there was none yet")]
    error: Annotated[str | None, Doc("the last probe's error; null if it succeeded")]
    timestamp: Time


class DatabaseGate(TypedDict):
    """Whether new scopes of a database may begin, and which scopes are open."""

    gate: Annotated[str, Doc("open; paused (new scopes wait); draining (new scopes are refused)")]
    running: Annotated[int, Doc("open scopes")]
    waiting: Annotated[int, Doc("callers waiting to begin a scope")]
    open_connections: int
    held_by: Annotated[
        list[str], Doc("the oldest scopes: code location, age, and the first words of their last statement")
    ]


class DatabaseConfiguration(TypedDict):
    """The options in force. The URL is omitted, because it may contain a password."""

    driver: str
    pool_size: int
    max_overflow: int
    pool_timeout: float
    pool_recycle: float
    scope_timeout: float
    slow_call: Annotated[float, Doc("duration in seconds from which a call counts as slow")]
    max_retries: int
    health_check_interval: float
    exactly_once: str


class DatabaseStatus(DatabaseHealth, DatabaseMetrics):
    """Health, metrics and configuration together."""

    configuration: DatabaseConfiguration
