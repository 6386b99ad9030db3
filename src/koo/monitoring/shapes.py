"""What is seen, once: the shape of each answer about the state of things.

Each key is a promise; its sentence, with the unit and when it is None, stands beside it. `monitoring.snapshot` builds
the shapes, and mypy checks each key where it is built and where it is read: alert rules, metrics, the command line,
routes, `backend/`. The description of the API and the types of the page are made of them, sentences included.

Times are ISO 8601 in UTC with offset. Durations are seconds, except where a name ends in `_ms`. Ratios are 0 to 1.
Money is an exact decimal number in a string, in USD. Counts cover the process's life; rates and percentiles the last
five minutes. Keys may be added; a key that stands here never disappears and never changes its type.
"""

# Without `from __future__ import annotations`: the types are read at run time, where the API is described.

from typing import Annotated, Final, Literal, NotRequired, get_args

from koo.events import Severity
from koo.monitoring.breaker_shapes import (
    BreakerStatus,
    BreakerWord,
    Doc,
    LastError,
    Outcomes,
    OverrideWord,
    Time,
    TypedDict,
    Usd,
    WindowCounts,
)
from koo.monitoring.database_shapes import (
    ConnectionCounts,
    DatabaseBreaker,
    DatabaseConfiguration,
    DatabaseErrors,
    DatabaseGate,
    DatabaseHealth,
    DatabaseMetrics,
    DatabaseRetries,
    DatabaseServer,
    DatabaseStatus,
    DatabaseWord,
    Phases,
    PhaseTimes,
    PoolStatus,
    ResponseTimes,
    Spread,
)
from koo.monitoring.own_shapes import KooHealth

__all__ = [
    "BreakerStatus", "BreakerWord", "ConnectionCounts", "DatabaseBreaker", "DatabaseConfiguration",
    "DatabaseErrors", "DatabaseGate", "DatabaseHealth", "DatabaseMetrics", "DatabaseRetries", "DatabaseServer",
    "DatabaseStatus", "DatabaseWord", "Doc", "LastError", "Outcomes", "OverrideWord", "PhaseTimes", "Phases",
    "PoolStatus", "ResponseTimes", "Spread", "Time", "TypedDict", "Usd", "WindowCounts",
]  # fmt: skip
"""Written elsewhere, and taken from here like all that stands below."""

OverallHealth = Literal["healthy", "degraded", "unhealthy"]
Gravest = Literal["critical", "warning"]
ServiceWord = Literal["healthy", "degraded", "unhealthy", "circuit_open", "rate_limited"]
RequestWindow = Literal["requests_per_minute", "requests_per_hour", "requests_per_day"]
WINDOWS: tuple[RequestWindow, ...] = get_args(RequestWindow)
"""The keys of `RateLimits` that are limits on requests."""
TOKENS: Final = "tokens_per_minute"
LimitName = Literal["requests_per_minute", "requests_per_hour", "requests_per_day", "tokens_per_minute"]
LIMITS: tuple[LimitName, ...] = get_args(LimitName)


# ── AI services ───────────────────────────────────────────────────────────────────────────────────────────────────


class ServiceBreaker(Outcomes):
    """The breaker of a service's default model, and what became of the calls to all its models."""

    circuit_breaker_state: BreakerWord
    consecutive_failures: int
    next_attempt: Annotated[Time | None, Doc("when an open breaker is tried again; null: it is not open")]


class RecentCalls(TypedDict):
    """Calls of the last `window_s` seconds."""

    calls: int
    failed: int
    slow: int
    window_s: float


class ServiceMetrics(TypedDict):
    """Counts of the process's life; rates and percentiles (seconds) of the last five minutes."""

    total_requests: int
    successful_requests: int
    failed_requests: Annotated[int, Doc("throttled ones included")]
    neutral_requests: Annotated[int, Doc("requests that say nothing about the service")]
    throttled_requests: Annotated[int, Doc("requests that the provider answered with a limit")]
    refused_requests: Annotated[int, Doc("calls that koo refused; they are not requests to the service")]
    refusals: Annotated[dict[str, int], Doc("refused calls by kind")]
    refusing: Annotated[
        dict[str, Time], Doc("kinds of refusals of the last 30 seconds, and when the last one of each was")
    ]
    retries: Annotated[int, Doc("requests that were repeats")]
    recent: RecentCalls
    success_rate: Annotated[float, Doc("0 to 1; 1 where nothing was asked")]
    average_response_time: float
    error_counts: Annotated[dict[str, int], Doc("errors by kind")]
    p50: float
    p95: float
    p99: float


class Pause(TypedDict):
    """The other side asked calls to stay away."""

    kind: Annotated[
        str, Doc("throttled: one of its rate limits; quota, billing: the account has nothing left")
    ]
    reason: str
    since: Time
    until: Annotated[Time, Doc("when it is asked again")]


class Shortage(TypedDict):
    """A call was refused for money, and the same call would be refused again."""

    component: Annotated[str, Doc("the budget: ai:SERVICE for its day's, budget:NAME for one that was set")]
    budget: Annotated[str, Doc("its name in a sentence")]
    needed: Annotated[Usd, Doc("the worst case of the call that was refused last")]
    left: Usd
    resets_at: Time


class RateLimit(TypedDict):
    """One limit of ours."""

    used: int
    limit: Annotated[int | None, Doc("null: none")]
    remaining: Annotated[int | None, Doc("null: there is no limit")]
    resets_at: Annotated[
        Time | None, Doc("when the day ends, or the next unit comes back; null: nothing to come back")
    ]


class TokenRate(RateLimit):
    """Our limit on tokens."""

    refuses: Annotated[bool, Doc("a call found too few tokens left, within the last half minute")]


class RunOut(TypedDict):
    """When a budget is used up if spending goes on: by the last hour's pace, and by that of the period so far."""

    earliest: Time
    latest: Annotated[Time | None, Doc("null: by the slower pace not before the period ends")]
    then: Annotated[str, Doc("what happens then")]


class BudgetMoney(TypedDict):
    """A budget's money in its current period."""

    spent: Usd
    reserved: Annotated[Usd, Doc("held for requests that are running")]
    limit: Annotated[Usd | None, Doc("null: none")]
    remaining: Annotated[Usd | None, Doc("limit - spent - reserved - unsettled; null: there is no limit")]
    used_up: Annotated[bool, Doc("nothing is left: calls that cost money are refused until it resets")]
    idle: Annotated[
        Usd, Doc("granted to processes in advance and not in use; recalled when another process needs it")
    ]
    unsettled: Annotated[
        Usd, Doc("granted to processes that no longer report; it stays booked until the period is over")
    ]
    resets_at: Time
    above_hold: Annotated[Usd, Doc("by how much this process's bills exceeded their worst cases")]
    currency: Literal["USD"]
    scope: Annotated[str, Doc("whose spending this is: shared, or this process")]
    as_of: Annotated[Time | None, Doc("when the numbers were read; null: not yet")]
    runs_out: Annotated[RunOut | None, Doc("null: not before the period ends, at either pace")]


class DailyBudget(BudgetMoney):
    """Money of today (UTC) of one service."""


class Budget(BudgetMoney):
    """A budget that an operator set, beside the daily ones of services."""

    name: str
    title: Annotated[str, Doc("its name, and the tag where each tag has its own budget: NAME/TAG")]
    period: Literal["day", "month"]
    service: Annotated[str | None, Doc("the one that it counts; null: all together")]
    model: Annotated[str | None, Doc("the one that it counts; null: all together")]
    tag: Annotated[str | None, Doc("the one that it counts; null: with any tag or none")]
    on_exhausted: Annotated[str, Doc("refuse, or the service that is asked instead")]


class RateLimits(TypedDict):
    """Our own limits."""

    requests_per_minute: RateLimit
    requests_per_hour: RateLimit
    requests_per_day: RateLimit
    tokens_per_minute: TokenRate
    daily_budget: DailyBudget
    scope: Annotated[
        str, Doc("whose requests these are: shared (all processes on the state store), or this process")
    ]
    notice: Annotated[str, Doc("what holds of the limits while the state store is away; empty: it is there")]


class ModelStatus(BreakerStatus):
    """One model of a service: its circuit breaker, and whether it takes our key."""

    key_refused: Annotated[str, Doc("why the key is refused for it; empty if it is not")]
    key_checked_at: Annotated[Time | None, Doc("when a refused key is tried again; null: it is not refused")]
    pause: Annotated[Pause | None, Doc("null: the provider's limits allow calls")]


class ServiceConfiguration(TypedDict):
    """What is in force; never the key. Operations of your own have no more than the keys that are always there."""

    model: str | None
    timeout: float
    attempt_timeout: float
    slow_call: Annotated[float | None, Doc("seconds from which a call counts as slow; null: never")]
    max_retries: int
    failure_threshold: int
    recovery_timeout: float
    success_threshold: int
    idempotent: NotRequired[bool]
    kind: NotRequired[Annotated[str, Doc("whose format it speaks")]]
    base_url: NotRequired[str | None]
    proxy: NotRequired[
        Annotated[str | None, Doc("what requests go through, without its password; null: nothing")]
    ]
    headers: NotRequired[Annotated[list[str], Doc("names of the headers that an operator added")]]
    body: NotRequired[Annotated[list[str], Doc("names of fields that an operator added")]]
    has_key: NotRequired[bool]
    max_tokens: NotRequired[int]
    first_token_timeout: NotRequired[float]
    stall_timeout: NotRequired[float]
    concurrency: NotRequired[int | None]
    price_as: NotRequired[Annotated[str | None, Doc("the model whose price it has; null: its own")]]
    queue_length: NotRequired[Annotated[int, Doc("queries that may wait for a place at once")]]
    input_price: NotRequired[Annotated[Usd | None, Doc("per million tokens; null: from the price table")]]
    output_price: NotRequired[Annotated[Usd | None, Doc("per million tokens; null: from the price table")]]


class Clients(TypedDict):
    """Clients that bring their own keys."""

    known: Annotated[int, Doc("whose calls came lately, at most 1024")]
    refused: Annotated[int, Doc("whose key the provider refuses, for some model or for all of them")]


class ServiceHealth(TypedDict):
    """One AI service."""

    service_name: str
    state: ServiceWord
    configured: Annotated[bool, Doc("false: outside all counts, alerts and the overall health")]
    reason: Annotated[str, Doc("why it is not healthy; empty if it is")]
    last_error: Annotated[LastError | None, Doc("kept after it recovers; null: none yet")]
    health: ServiceBreaker
    metrics: ServiceMetrics
    rate_limits: RateLimits
    pause: Annotated[Pause | None, Doc("of the whole service, or of its default model; null: none")]
    shortage: Annotated[Shortage | None, Doc("null: no call was refused for money lately")]
    clients: Annotated[Clients | None, Doc("null: no client has brought its own key")]
    models: Annotated[dict[str, ModelStatus], Doc("by name; the default one first")]
    configuration: ServiceConfiguration
    last_updated: Time


class ServicesHealth(TypedDict):
    """All AI services; only configured ones are counted."""

    overall_health: OverallHealth
    healthy_services: int
    total_services: int
    services: dict[str, ServiceHealth]
    budgets: Annotated[
        list[Budget], Doc("those that an operator set; of one for each tag the tags that spent most")
    ]
    timestamp: Time


class ServiceCheck(TypedDict):
    """What an unbilled check found."""

    service_name: str
    healthy: bool
    state: ServiceWord
    error: Annotated[str | None, Doc("null: it answered, and accepted the key")]
    response_time_ms: float
    last_updated: Time


# ── everything together ───────────────────────────────────────────────────────────────────────────────────────────


class SystemHealth(TypedDict):
    """Database, services, and koo itself."""

    overall_health: Annotated[
        OverallHealth,
        Doc("unhealthy: the database or every service refuses; degraded: any part is not healthy or refuses"),
    ]
    severity: Annotated[
        Gravest | None, Doc("the worst of what is wrong: the verdict's colour; null: nothing is wrong")
    ]
    database: DatabaseHealth
    ai_services: ServicesHealth
    koo: KooHealth
    home: NotRequired[
        Annotated[str, Doc("a digest of KOO_HOME, by which a command recognizes its own server")]
    ]
    timestamp: Time


class AlertData(TypedDict, total=False):
    """The numbers behind an alert, as its kind has them."""

    refuses: Annotated[str, Doc("which calls are refused because of it; absent or empty: none")]
    since: Annotated[Time | None, Doc("since when what it found is so, which may be before it was found")]
    also: Annotated[list[str], Doc("other kinds with the same cause, which are not listed separately")]
    unconfirmed: Annotated[
        bool, Doc("an earlier process found it; this one has neither met it nor seen enough to end it")
    ]
    turned_away: Annotated[int, Doc("callers that got no connection since it began")]
    next_attempt: Annotated[
        Time | None, Doc("when an open breaker is tried again; null: only after an operator's act")
    ]
    resets_at: Annotated[Time | None, Doc("when a limit or a budget is free again")]
    error_rate: Annotated[float, Doc("share of recent calls that failed, 0 to 1")]
    p95: Annotated[float, Doc("seconds")]
    services: Annotated[list[str], Doc("whom it concerns")]
    lasted_s: Annotated[float, Doc("how long what has ended lasted")]
    clients: Annotated[int, Doc("of how many clients the key is refused")]
    share: Annotated[float, Doc("of a budget that is spent or held, 0 to 1")]
    runs_out: Annotated[RunOut | None, Doc("when a budget is used up if spending goes on")]
    amount: Annotated[Usd, Doc("the money that it is about")]
    last_error: Annotated[LastError | None, Doc("what the last call or check that failed met")]
    server: Annotated[DatabaseServer, Doc("which database it is")]
    answers_since: Annotated[Time | None, Doc("since when its probe succeeds again; null: it does not")]
    incident: Annotated[str, Doc("the id of the incident that it is about; absent: it is about none")]


PhaseWord = Literal["pending", "firing", "recovering", "resolved"]
NotificationWord = Literal[
    "pending",
    "due",
    "notified",
    "no_channel",
    "silenced",
    "acknowledged",
    "inhibited",
    "kept_quiet",
    "ended",
]


class Acknowledged(TypedDict):
    """A person is working on an alert."""

    by: str
    at: Time
    until: Annotated[Time | None, Doc("when reminders resume; null: not before it ends")]
    note: str


class SilenceView(TypedDict):
    """No notifications of matching alerts until it ends."""

    id: str
    kind: Annotated[str, Doc("a kind of alert, or a pattern such as `budget_*`")]
    component: Annotated[str, Doc("a component, or a pattern such as `ai:*`")]
    made_at: Time
    ends_at: Time
    by: str
    reason: str


class Notified(TypedDict):
    """Whether people are notified of an alert."""

    state: Annotated[NotificationWord, Doc("notified: a notice was written; any other says why not")]
    at: Annotated[Time | None, Doc("when the notice was written")]
    reason: Annotated[str, Doc("why there is none; empty if there is")]


class Alert(TypedDict):
    """Something that is wrong, or that ended a short while ago."""

    type: Severity
    component: Annotated[
        str, Doc("database, state_store, ai:SERVICE, ai:SERVICE/MODEL, budget:NAME or budget:NAME/TAG")
    ]
    message: str
    timestamp: Annotated[Time, Doc("when it began")]
    kind: Annotated[str, Doc("the rule that found it")]
    active: Annotated[bool, Doc("it has not ended; `phase` says whether it fires")]
    ended_at: Annotated[Time | None, Doc("null: it lasts")]
    data: AlertData
    id: Annotated[str, Doc("of the episode: the same in each process, and after a restart")]
    phase: Annotated[
        PhaseWord,
        Doc(
            "pending: it has not lasted long enough yet; recovering: gone, but it may come back; resolved: ended"
        ),
    ]
    since: Annotated[Time, Doc("when this phase began")]
    acknowledged: Acknowledged | None
    silenced: Annotated[SilenceView | None, Doc("the silence that keeps it quiet")]
    inhibited_by: Annotated[
        str | None, Doc("KIND:COMPONENT of the alert that explains it, and keeps it quiet")
    ]
    notified: Notified
    runbook: Annotated[str, Doc("path on this server to what to do about it; it needs no token")]


class SystemAlerts(TypedDict):
    """The worst first."""

    alerts: list[Alert]
    alert_count: int
    timestamp: Time


class Summary(TypedDict):
    """Everything at a glance."""

    overall_health: OverallHealth
    severity: Annotated[Gravest | None, Doc("the verdict's colour; null: nothing is wrong")]
    database_healthy: bool
    ai_services_healthy: Annotated[str, Doc('"3/5": healthy ones of the configured')]
    active_alerts: int
    circuit_breakers_open: Annotated[int, Doc("of the database and of all models")]


class Dashboard(TypedDict):
    """Everything that an overview shows."""

    summary: Summary
    database: DatabaseHealth
    ai_services: ServicesHealth
    alerts: list[Alert]
    timestamp: Time


class AuditEntry(TypedDict):
    """An act that was let through, or a request that was refused."""

    at: Time
    who: Annotated[str, Doc("token, read token, session, read session, this machine, or unknown")]
    what: Annotated[str, Doc("the method and the route, without a caller's words")]
    peer: Annotated[str, Doc("the address that it came from")]
    status: Annotated[int, Doc("200: it was let through; its own answer may have another status")]
    reason: Annotated[str, Doc("why it was refused; empty: it was not")]
    more: Annotated[int, Doc("refusals of this address and status in the minute before, which have no entry")]


class AuditLog(TypedDict):
    """The last acts and refusals of this process, the newest first."""

    entries: list[AuditEntry]
    timestamp: Time
