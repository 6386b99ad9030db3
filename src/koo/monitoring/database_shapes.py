"""What is seen of the database: its shapes, as `shapes` has those of everything else."""

# Without `from __future__ import annotations`: the types are read at run time, where the API is described.

from typing import Annotated, Literal

from koo.monitoring.breaker_shapes import BreakerStatus, Doc, LastError, Outcomes, Time, TypedDict

DatabaseWord = Literal["healthy", "unhealthy", "circuit_open", "degraded"]


class DatabaseBreaker(BreakerStatus, Outcomes):
    """The database's circuit breaker, and what became of the calls that it saw."""

    neutral_count: Annotated[int, Doc("calls that say nothing about the database")]
    refused_count: Annotated[int, Doc("calls that koo refused; the database did not see them")]


class PoolStatus(TypedDict):
    """Connections of the pool, now."""

    size: Annotated[int, Doc("connections that are kept open")]
    active_connections: int
    idle_connections: int
    suspect_connections: Annotated[int, Doc("idle ones, while the server does not answer its probe")]
    overflow_connections: Annotated[int, Doc("open ones beyond `size`")]
    open_connections: int
    waiting: Annotated[int, Doc("callers in line for a connection")]
    max_connections: int
    utilization: Annotated[float, Doc("share of `max_connections` in use, 0 to 1")]
    turned_away: Annotated[
        int, Doc("callers that got no connection since the pool became full; 0: none lately")
    ]
    overdue: Annotated[int, Doc("scopes that have been open for longer than DATABASE_HELD_WARNING")]
    held_by: Annotated[
        list[str], Doc("the oldest scopes in words, while the pool is full or a scope is overdue")
    ]


class ConnectionCounts(TypedDict):
    """What became of connections."""

    created: int
    closed: int
    broken: Annotated[int, Doc("lost while in use")]
    stale_replaced: Annotated[int, Doc("found dead before use, and replaced unseen")]
    aborted: Annotated[int, Doc("cut off by koo because they took too long")]


class Spread(TypedDict):
    """Seconds of the last five minutes."""

    average: float
    p50: float
    p95: float
    p99: float


class PhaseTimes(Spread):
    """One phase of a scope."""

    count: Annotated[int, Doc("in the process's life")]


class Phases(TypedDict):
    """The phases of a scope, separately, because each blames a different party."""

    gate_wait: Annotated[PhaseTimes, Doc("waiting for a place in the pool")]
    connect: PhaseTimes
    statement: PhaseTimes
    commit: PhaseTimes
    hold: Annotated[PhaseTimes, Doc("how long a scope kept its connection")]


class ResponseTimes(Spread):
    """Seconds of scopes, and of each of their phases."""

    success_rate: Annotated[float, Doc("0 to 1; 1 where nothing was asked")]
    phases: Phases


class DatabaseErrors(TypedDict):
    """Errors by kind, and what koo made of them."""

    by_kind: dict[str, int]
    total: int
    contention: Annotated[int, Doc("transactions that conflicted with others")]
    unknown_commits: Annotated[int, Doc("COMMITs whose outcome is unknown")]
    resolved_commits: Annotated[int, Doc("lost COMMITs whose outcome was learned by their markers")]
    pool_timeouts: Annotated[int, Doc("callers that got no connection in time")]
    last_error: Annotated[str | None, Doc("its kind and the driver's name for it; null: none yet")]


class DatabaseRetries(TypedDict):
    """What was repeated."""

    connects: int
    transactions: int
    first_statements: int


class DatabaseMetrics(TypedDict):
    """What the pool is doing and has done."""

    pool_status: PoolStatus
    connection_metrics: ConnectionCounts
    response_times: ResponseTimes
    errors: DatabaseErrors
    retries: DatabaseRetries
    circuit_breaker: DatabaseBreaker
    timestamp: Time


class DatabaseServer(TypedDict):
    """Which database it is; never its user or password."""

    host: Annotated[str | None, Doc("null: a file, or a socket of this machine")]
    port: int | None
    name: Annotated[str | None, Doc("of the database, or of its file; null: the server's default")]


class DatabaseHealth(TypedDict):
    """The database as its guard and the last probe see it."""

    healthy: Annotated[bool, Doc("the last probe got its answer, and the state is healthy")]
    state: DatabaseWord
    reason: Annotated[str, Doc("why it is not healthy; empty if it is")]
    conditions: Annotated[list[str], Doc("what is true beside the state: saturated, slow, read_only, …")]
    last_error: Annotated[LastError | None, Doc("kept after it recovers; null: none yet")]
    server: DatabaseServer
    answers_since: Annotated[
        Time | None,
        Doc("since when its probe succeeds again while calls are still refused; null: not the case"),
    ]
    response_time_ms: Annotated[
        float | None, Doc("of the last probe, answered or (see `error`) not; null: none yet")
    ]
    circuit_breaker: DatabaseBreaker
    pool_status: PoolStatus
    last_health_check: Annotated[Time | None, Doc("null: none yet")]
    error: Annotated[str | None, Doc("what the last probe met; null: nothing wrong")]
    timestamp: Time


class DatabaseGate(TypedDict):
    """Whether new scopes of a database may begin, and which are open."""

    gate: Annotated[str, Doc("open; paused: new scopes wait; draining: they are refused")]
    running: Annotated[int, Doc("scopes that are open")]
    waiting: Annotated[int, Doc("callers that wait to begin one")]
    open_connections: int
    held_by: Annotated[
        list[str], Doc("the oldest scopes: where, for how long, their last statement's first words")
    ]


class DatabaseConfiguration(TypedDict):
    """What is in force; never the URL, which may hold a password."""

    driver: str
    pool_size: int
    max_overflow: int
    pool_timeout: float
    pool_recycle: float
    scope_timeout: float
    slow_call: Annotated[float, Doc("seconds from which a call counts as slow")]
    max_retries: int
    health_check_interval: float
    exactly_once: str


class DatabaseStatus(DatabaseHealth, DatabaseMetrics):
    """Health, metrics and configuration in one."""

    configuration: DatabaseConfiguration
