"""The shapes of questions and answers. Answers may hold more than is listed; what is listed never goes away."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, RootModel, model_validator

from koo.web import examples

Health = Literal["healthy", "degraded", "unhealthy"]
DatabaseState = Literal["healthy", "unhealthy", "circuit_open", "degraded"]
ServiceState = Literal["healthy", "degraded", "unhealthy", "circuit_open", "rate_limited"]
BreakerState = Literal["closed", "open", "half_open", "forced_open", "disabled"]
NAMES_MAX = 50
Timestamp = str
"""ISO 8601 in UTC, with offset."""
Money = str
"""USD, exact, as a decimal number in a string."""


def _shaped(example: Any = None) -> ConfigDict:
    return ConfigDict(extra="allow", json_schema_extra=None if example is None else {"example": example})


class View(BaseModel):
    """An answer: the listed keys, and maybe more."""

    model_config = _shaped()


# ── the database ──────────────────────────────────────────────────────────────────────────────────────────────────


class Breaker(View):
    """A circuit breaker."""

    state: BreakerState
    reason: str = Field(description="why it is not closed")
    next_attempt: Timestamp | None = Field(description="when an open one is tried again")


class PoolStatus(View):
    """Connections of the pool, now."""

    size: int
    active_connections: int
    idle_connections: int
    overflow_connections: int
    waiting: int
    max_connections: int
    utilization: float = Field(description="share of `max_connections` in use, 0 to 1")


class PoolMetrics(View):
    """What the pool is doing and has done."""

    pool_status: PoolStatus
    connection_metrics: dict[str, Any]
    response_times: dict[str, Any]
    errors: dict[str, Any]
    circuit_breaker: Breaker


class DatabaseHealth(View):
    """The database as its guard sees it."""

    healthy: bool
    state: DatabaseState
    conditions: list[str] = Field(description="what is true beside the state: saturated, slow, read_only, …")
    response_time_ms: float | None
    circuit_breaker: Breaker
    pool_status: PoolStatus
    last_health_check: Timestamp | None
    error: str | None


# ── AI services ───────────────────────────────────────────────────────────────────────────────────────────────────


class ServiceBreaker(View):
    """The breaker of a service's default model, and counts of the process's life."""

    circuit_breaker_state: BreakerState
    failure_count: int
    success_count: int
    last_failure: Timestamp | None
    last_success: Timestamp | None
    next_attempt: Timestamp | None


class ServiceMetrics(View):
    """Counts of the process's life; rates and percentiles (seconds) of the last five minutes."""

    total_requests: int
    successful_requests: int
    failed_requests: int
    refused_requests: int = Field(description="refused by us; these are no requests to the service")
    success_rate: float
    average_response_time: float
    error_counts: dict[str, int]
    p50: float
    p95: float
    p99: float


class RateLimit(View):
    """One limit; `limit` null: none."""

    used: int
    limit: int | None
    remaining: int | None
    resets_at: Timestamp | None


class Budget(View):
    """Money of today (UTC); `limit` null: none."""

    spent: Money
    reserved: Money
    limit: Money | None
    remaining: Money | None
    resets_at: Timestamp | None
    currency: str


class RateLimits(View):
    """Our own limits."""

    requests_per_minute: RateLimit
    requests_per_hour: RateLimit
    requests_per_day: RateLimit
    daily_budget: Budget


class ServiceHealth(View):
    """One AI service."""

    model_config = _shaped(examples.SERVICE)

    service_name: str
    state: ServiceState
    configured: bool
    reason: str
    health: ServiceBreaker
    metrics: ServiceMetrics
    rate_limits: RateLimits
    configuration: dict[str, Any]
    last_updated: Timestamp


class ServicesHealth(View):
    """All AI services; only configured ones are counted."""

    model_config = _shaped(examples.SERVICES)

    overall_health: Health
    healthy_services: int
    total_services: int
    services: dict[str, ServiceHealth]
    timestamp: Timestamp


class ServiceCheck(View):
    """What an unbilled check found."""

    service_name: str
    healthy: bool
    state: ServiceState
    error: str | None
    response_time_ms: float
    last_updated: Timestamp


class ServiceChecks(RootModel[dict[str, ServiceCheck]]):
    """What unbilled checks found, by service."""

    model_config = ConfigDict(json_schema_extra={"example": {"claude": examples.CHECK}})


class ServiceReset(View):
    """A service starts afresh."""

    model_config = _shaped(
        {"message": "claude starts afresh", "service": "claude", "timestamp": examples.NOW}
    )

    message: str
    service: str
    timestamp: Timestamp


class ServicesReset(View):
    """All services start afresh."""

    model_config = _shaped(
        {
            "message": "2 services start afresh",
            "results": {"claude": True, "local": True},
            "timestamp": examples.NOW,
        }
    )

    message: str
    results: dict[str, bool]
    timestamp: Timestamp


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 50.0 is a whole one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _few(given: Any) -> Any:
    """pydantic looks at each of half a million names, and makes an error of each, before it counts them."""
    if isinstance(given, dict) and len(given) > NAMES_MAX:
        raise ValueError(f"has more than {NAMES_MAX} names")
    return given


class Body(BaseModel):
    """What somebody sends."""

    @model_validator(mode="before")
    @classmethod
    def _has_few_names(cls, given: Any) -> Any:
        return _few(given)


class QueryBody(Body):
    """One question to one service."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, json_schema_extra={"example": examples.QUERY}
    )

    service: str = Field(
        max_length=64, description="claude, openai, gemini, perplexity, local, or one you declared"
    )
    prompt: str = Field(
        description="at most 8 Mi characters, not only blanks", json_schema_extra={"pattern": r"\S"}
    )
    model: str | None = Field(default=None, min_length=1, max_length=200)
    system: str | None = None
    max_tokens: Annotated[int | None, BeforeValidator(_whole)] = Field(
        default=None, ge=1, le=10_000_000, description="longest answer"
    )
    temperature: float | None = Field(default=None, ge=0, le=2)
    timeout_s: float | None = Field(default=None, gt=0, le=86_400, description="deadline of the whole query")
    fallback: list[str] = Field(
        default_factory=list,
        max_length=20,
        description="services asked in order when this one refuses or fails",
    )
    on_limit: Literal["refuse", "wait"] | None = Field(
        default=None,
        description="wait: queue for limits within the deadline; refuse: wait for nothing; without it: wait only for "
        "a pause that the provider asked for",
    )
    tag: str | None = Field(default=None, max_length=200, description="your own word, for the ledger")
    metadata: Annotated[dict[str, str], BeforeValidator(_few)] = Field(
        default_factory=dict, max_length=50, description="your own words; never sent"
    )


class Usage(View):
    """Tokens; the first four classes are disjoint, reasoning is a part of the output."""

    input_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    total_tokens: int
    estimated: bool


class QueryAnswer(View):
    """An answer, and what it cost."""

    model_config = _shaped(examples.ANSWER)

    response: str
    service: str
    model: str
    usage: Usage
    cost: Money
    cost_source: str
    attempts: int
    latency_s: float
    stop_reason: str | None
    timestamp: Timestamp


class BatchBody(Body):
    """Several questions at once."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"example": {"queries": [examples.QUERY]}}
    )

    queries: list[QueryBody] = Field(min_length=1, max_length=100)


class BatchResult(View):
    """The keys of an answer if `success`; else `error`, `kind`, `status` and maybe `retry_after_s`."""

    success: bool
    service: str


class BatchAnswer(View):
    """A result for each question, in the same order."""

    model_config = _shaped(
        {
            "results": [{"success": True, **examples.ANSWER}, examples.FAILURE],
            "total_queries": 2,
            "successful_queries": 1,
            "failed_queries": 1,
            "total_cost": "0.000082",
            "timestamp": examples.NOW,
        }
    )

    results: list[BatchResult]
    total_queries: int
    successful_queries: int
    failed_queries: int
    total_cost: Money
    timestamp: Timestamp


# ── everything together ───────────────────────────────────────────────────────────────────────────────────────────


class SystemHealth(View):
    """Database and services."""

    model_config = _shaped(examples.SYSTEM)

    overall_health: Health
    database: DatabaseHealth
    ai_services: ServicesHealth
    timestamp: Timestamp


class Alert(View):
    """Something that is wrong, or has just ended to be."""

    type: Literal["critical", "warning", "info"]
    component: str
    message: str
    timestamp: Timestamp


class SystemAlerts(View):
    """The worst first."""

    model_config = _shaped({"alerts": [examples.ALERT], "alert_count": 1, "timestamp": examples.NOW})

    alerts: list[Alert]
    alert_count: int
    timestamp: Timestamp


class Summary(View):
    """Everything at a glance."""

    overall_health: Health
    database_healthy: bool
    ai_services_healthy: str = Field(description='"3/5": healthy ones of the configured')
    active_alerts: int
    circuit_breakers_open: int


class Dashboard(View):
    """Everything that an overview shows."""

    model_config = _shaped(
        {
            "summary": {
                "overall_health": "healthy",
                "database_healthy": True,
                "ai_services_healthy": "1/1",
                "active_alerts": 1,
                "circuit_breakers_open": 0,
            },
            "database": examples.DATABASE,
            "ai_services": examples.SERVICES,
            "alerts": [examples.ALERT],
            "timestamp": examples.NOW,
        }
    )

    summary: Summary
    database: DatabaseHealth
    ai_services: ServicesHealth
    alerts: list[Alert]
    timestamp: Timestamp


class DatabaseMonitoring(View):
    """The database in detail."""

    model_config = _shaped({"database_monitoring": examples.DATABASE_STATUS, "timestamp": examples.NOW})

    database_monitoring: dict[str, Any]
    timestamp: Timestamp


class PoolMetricsAnswer(View):
    """The connection pool."""

    model_config = _shaped({"pool_metrics": examples.POOL_METRICS, "timestamp": examples.NOW})

    pool_metrics: PoolMetrics
    timestamp: Timestamp


class DatabaseCheck(View):
    """What a check made now found."""

    model_config = _shaped(
        {
            "health_check_result": examples.DATABASE,
            "detailed_status": examples.DATABASE_STATUS,
            "timestamp": examples.NOW,
        }
    )

    health_check_result: DatabaseHealth
    detailed_status: dict[str, Any]
    timestamp: Timestamp


class ResetBody(Body):
    """Why; for the log. May be left out, and so may the whole body."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"example": {"reason": "host replaced"}}
    )

    reason: str | None = Field(default=None, max_length=500)


class DatabaseReset(View):
    """The database's breaker is closed."""

    model_config = _shaped(
        {
            "message": "the database's circuit breaker is closed",
            "new_state": "healthy",
            "timestamp": examples.NOW,
        }
    )

    message: str
    new_state: DatabaseState
    timestamp: Timestamp


class ServicesMonitoring(View):
    """All AI services in detail."""

    model_config = _shaped({"ai_services_monitoring": examples.SERVICES, "timestamp": examples.NOW})

    ai_services_monitoring: ServicesHealth
    timestamp: Timestamp


class ServiceMetricsAnswer(View):
    """One service in detail."""

    model_config = _shaped({"service_metrics": examples.SERVICE, "timestamp": examples.NOW})

    service_metrics: dict[str, Any]
    timestamp: Timestamp


# ── probes ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Alive(View):
    """The process lives."""

    model_config = _shaped({"status": "alive"})

    status: Literal["alive"]


class Ready(View):
    """Traffic is welcome."""

    model_config = _shaped({"status": "ready"})

    status: Literal["ready"]
