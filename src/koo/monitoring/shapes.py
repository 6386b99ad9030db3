"""The shapes of all responses about koo's state, each defined once.

Each key is a promise, with a description of its unit and of when it is null. `monitoring.snapshot` builds the shapes,
and mypy checks each key where it is built and where it is read: alert rules, metrics, the command line, routes,
`backend/`. The API description and the types of the page are generated from them, including the descriptions.

Times are ISO 8601 in UTC with offset. Durations are in seconds unless a name ends in `_ms`. Ratios are from 0 to 1.
Money is an exact decimal number in a string, in USD. Counts cover the time since the process started; rates and
percentiles cover the last five minutes. Keys may be added, but a key never disappears and never changes its type.
"""

# There is no `from __future__ import annotations` here, because the API description reads the types at run time.

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
"""Names that are defined elsewhere and imported from here, like everything below."""

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
    """The breaker of a service's default model, and the results of the calls to all its models."""

    circuit_breaker_state: BreakerWord
    consecutive_failures: int
    next_attempt: Annotated[Time | None, Doc("when the breaker is tried again; null if it is not open")]


class RecentCalls(TypedDict):
    """Calls of the last `window_s` seconds."""

    calls: int
    failed: int
    slow: int
    window_s: float


class ServiceMetrics(TypedDict):
    """Counts since the process started; rates and percentiles (in seconds) of the last five minutes."""

    total_requests: int
    successful_requests: int
    failed_requests: Annotated[int, Doc("throttled ones included")]
    neutral_requests: Annotated[int, Doc("requests whose result says nothing about the service")]
    throttled_requests: Annotated[int, Doc("requests that the provider refused because of a rate limit")]
    refused_requests: Annotated[int, Doc("calls that koo refused; they never reached the service")]
    refusals: Annotated[dict[str, int], Doc("refused calls by kind")]
    refusing: Annotated[
        dict[str, Time],
        Doc("the kinds of refusals in the last 30 seconds, each with the time of the last one"),
    ]
    retries: Annotated[int, Doc("requests that were retries")]
    recent: RecentCalls
    success_rate: Annotated[float, Doc("0 to 1; 1 if there were no calls")]
    average_response_time: float
    error_counts: Annotated[dict[str, int], Doc("errors by kind")]
    p50: float
    p95: float
    p99: float


class Pause(TypedDict):
    """The provider asked for a pause."""

    kind: Annotated[str, Doc("throttled: a rate limit; quota, billing: the account has no credit left")]
    reason: str
    since: Time
    until: Annotated[Time, Doc("when calls to it continue")]


class Shortage(TypedDict):
    """A call was refused for lack of money, and the same call would be refused again."""

    component: Annotated[
        str, Doc("the budget: ai:SERVICE for its daily one, budget:NAME for one that was set")
    ]
    budget: Annotated[str, Doc("its name in a sentence")]
    needed: Annotated[Usd, Doc("the worst case of the last refused call")]
    left: Usd
    resets_at: Time


class RateLimit(TypedDict):
    """One of koo's own limits."""

    used: int
    limit: Annotated[int | None, Doc("null if there is none")]
    remaining: Annotated[int | None, Doc("null if there is no limit")]
    resets_at: Annotated[
        Time | None, Doc("when the day ends or the next unit becomes free; null if none is used")
    ]


class TokenRate(RateLimit):
    """koo's own limit on tokens."""

    refuses: Annotated[bool, Doc("within the last half minute a call found too few tokens left")]


class RunOut(TypedDict):
    """When a budget will be used up, at the last hour's pace and at the pace of the period so far."""

    earliest: Time
    latest: Annotated[Time | None, Doc("null if at the slower pace it lasts until the period ends")]
    then: Annotated[str, Doc("what happens when it is used up")]


class BudgetMoney(TypedDict):
    """A budget's money in its current period."""

    spent: Usd
    reserved: Annotated[Usd, Doc("held for running requests")]
    limit: Annotated[Usd | None, Doc("null if there is none")]
    remaining: Annotated[Usd | None, Doc("limit - spent - reserved - unsettled; null if there is no limit")]
    used_up: Annotated[bool, Doc("nothing is left; calls that cost money are refused until it resets")]
    idle: Annotated[
        Usd, Doc("granted to processes in advance and unused; recalled when another process needs it")
    ]
    unsettled: Annotated[
        Usd, Doc("granted to processes that no longer report; it stays booked until the period ends")
    ]
    resets_at: Time
    above_hold: Annotated[Usd, Doc("the amount by which this process's bills exceeded their worst cases")]
    currency: Literal["USD"]
    scope: Annotated[str, Doc("whose spending this is: shared, or this process")]
    as_of: Annotated[Time | None, Doc("when the numbers were read; null if not yet")]
    runs_out: Annotated[RunOut | None, Doc("null if it lasts until the period ends at either pace")]


class DailyBudget(BudgetMoney):
    """One service's budget of the current UTC day."""


class Budget(BudgetMoney):
    """A budget that an operator set, in addition to the services' daily budgets."""

    name: str
    title: Annotated[str, Doc("its name, with the tag if each tag has its own budget: NAME/TAG")]
    period: Literal["day", "month"]
    service: Annotated[str | None, Doc("the service that counts against it; null if all do")]
    model: Annotated[str | None, Doc("the model that counts against it; null if all do")]
    tag: Annotated[str | None, Doc("the tag that counts against it; null if any tag, or none, does")]
    on_exhausted: Annotated[str, Doc("refuse, or the service that is used instead")]


class RateLimits(TypedDict):
    """koo's own limits."""

    requests_per_minute: RateLimit
    requests_per_hour: RateLimit
    requests_per_day: RateLimit
    tokens_per_minute: TokenRate
    daily_budget: DailyBudget
    scope: Annotated[
        str, Doc("whose requests are counted: shared (all processes on the state store), or this process")
    ]
    notice: Annotated[
        str, Doc("which limits apply while the state store is unreachable; empty if it is reachable")
    ]


class ModelStatus(BreakerStatus):
    """One model of a service: its circuit breaker, and whether the provider accepts the key for it."""

    key_refused: Annotated[str, Doc("why the provider refuses the key for it; empty if it does not")]
    key_checked_at: Annotated[
        Time | None, Doc("when a refused key is tried again; null if it is not refused")
    ]
    pause: Annotated[Pause | None, Doc("null if the provider's limits allow calls")]


class ServiceConfiguration(TypedDict):
    """The options in force, without the key. Your own operations have only the keys that are always present."""

    model: str | None
    timeout: float
    attempt_timeout: float
    slow_call: Annotated[
        float | None, Doc("duration in seconds from which a call counts as slow; null if never")
    ]
    max_retries: int
    failure_threshold: int
    recovery_timeout: float
    success_threshold: int
    idempotent: NotRequired[bool]
    kind: NotRequired[Annotated[str, Doc("the API format")]]
    base_url: NotRequired[str | None]
    proxy: NotRequired[Annotated[str | None, Doc("the proxy, without its password; null if there is none")]]
    headers: NotRequired[Annotated[list[str], Doc("names of headers added by an operator")]]
    body: NotRequired[Annotated[list[str], Doc("names of body fields added by an operator")]]
    has_key: NotRequired[bool]
    max_tokens: NotRequired[int]
    first_token_timeout: NotRequired[float]
    stall_timeout: NotRequired[float]
    concurrency: NotRequired[int | None]
    price_as: NotRequired[Annotated[str | None, Doc("the model whose price is used; null for its own")]]
    queue_length: NotRequired[Annotated[int, Doc("the number of queries that may wait for a slot")]]
    input_price: NotRequired[
        Annotated[Usd | None, Doc("per million tokens; null if it comes from the price table")]
    ]
    output_price: NotRequired[
        Annotated[Usd | None, Doc("per million tokens; null if it comes from the price table")]
    ]


class Clients(TypedDict):
    """Clients that bring their own keys."""

    known: Annotated[int, Doc("clients that made calls recently, at most 1024")]
    refused: Annotated[int, Doc("clients whose key the provider refuses, for some or all models")]


class ServiceHealth(TypedDict):
    """One AI service."""

    service_name: str
    state: ServiceWord
    configured: Annotated[
        bool, Doc("if false, the service is left out of all counts, alerts and the overall health")
    ]
    reason: Annotated[str, Doc("why it is not healthy; empty if it is")]
    last_error: Annotated[LastError | None, Doc("kept after recovery; null if there was none yet")]
    health: ServiceBreaker
    metrics: ServiceMetrics
    rate_limits: RateLimits
    pause: Annotated[Pause | None, Doc("of the whole service or of its default model; null if there is none")]
    shortage: Annotated[Shortage | None, Doc("null if no call was refused for lack of money recently")]
    clients: Annotated[Clients | None, Doc("null if no client has its own key")]
    models: Annotated[dict[str, ModelStatus], Doc("by name, the default model first")]
    configuration: ServiceConfiguration
    last_updated: Time


class ServicesHealth(TypedDict):
    """All AI services; only the configured ones are counted."""

    overall_health: OverallHealth
    healthy_services: int
    total_services: int
    services: dict[str, ServiceHealth]
    budgets: Annotated[
        list[Budget], Doc("budgets set by an operator; of a budget per tag, the tags that spent most")
    ]
    timestamp: Time


class ServiceCheck(TypedDict):
    """The result of an unbilled check."""

    service_name: str
    healthy: bool
    state: ServiceWord
    error: Annotated[str | None, Doc("null if it answered and accepted the key")]
    response_time_ms: float
    last_updated: Time


# ── everything together ───────────────────────────────────────────────────────────────────────────────────────────


class SystemHealth(TypedDict):
    """The database, the services, and koo itself."""

    overall_health: Annotated[
        OverallHealth,
        Doc(
            "unhealthy: the database or every service refuses calls; degraded: any part is not healthy or refuses calls"
        ),
    ]
    severity: Annotated[
        Gravest | None, Doc("the worst severity, which is the verdict's colour; null if nothing is wrong")
    ]
    database: DatabaseHealth
    ai_services: ServicesHealth
    koo: KooHealth
    home: NotRequired[
        Annotated[str, Doc("a digest of KOO_HOME, by which a command recognises its own server")]
    ]
    timestamp: Time


class AlertData(TypedDict, total=False):
    """The data of an alert; the keys depend on its kind."""

    refuses: Annotated[str, Doc("the calls that are refused because of it; absent or empty if none are")]
    since: Annotated[Time | None, Doc("since when the condition has held, which may be before it was found")]
    also: Annotated[list[str], Doc("other kinds with the same cause, which are not listed separately")]
    unconfirmed: Annotated[
        bool, Doc("an earlier process found it; this one has neither seen it nor enough evidence to end it")
    ]
    turned_away: Annotated[int, Doc("callers that got no connection since it began")]
    next_attempt: Annotated[
        Time | None, Doc("when the breaker is tried again; null if only after an operator's act")
    ]
    resets_at: Annotated[Time | None, Doc("when a limit or budget has room again")]
    error_rate: Annotated[float, Doc("share of recent calls that failed, 0 to 1")]
    p95: Annotated[float, Doc("seconds")]
    services: Annotated[list[str], Doc("the services that it affects")]
    lasted_s: Annotated[float, Doc("how long the ended alert lasted")]
    clients: Annotated[int, Doc("the number of clients whose key is refused")]
    share: Annotated[float, Doc("the share of a budget that is spent or held, 0 to 1")]
    runs_out: Annotated[RunOut | None, Doc("when a budget is used up at the current pace")]
    amount: Annotated[Usd, Doc("the amount of money concerned")]
    last_error: Annotated[LastError | None, Doc("the error of the last call or check that failed")]
    server: Annotated[DatabaseServer, Doc("the database server")]
    answers_since: Annotated[
        Time | None, Doc("since when its probe has been succeeding again; null if it is not")
    ]
    incident: Annotated[str, Doc("the id of its incident; absent if there is none")]


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
    until: Annotated[Time | None, Doc("when reminders resume; null if not before the alert ends")]
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
    """Whether people were notified of an alert."""

    state: Annotated[
        NotificationWord, Doc("notified: a notice was written; any other word says why none was")
    ]
    at: Annotated[Time | None, Doc("when the notice was written")]
    reason: Annotated[str, Doc("why there is no notice; empty if there is one")]


class Alert(TypedDict):
    """A problem that is open or ended recently."""

    type: Severity
    component: Annotated[
        str, Doc("database, state_store, ai:SERVICE, ai:SERVICE/MODEL, budget:NAME or budget:NAME/TAG")
    ]
    message: str
    timestamp: Annotated[Time, Doc("when it began")]
    kind: Annotated[str, Doc("the rule that found it")]
    active: Annotated[bool, Doc("it has not ended; `phase` says whether it is firing")]
    ended_at: Annotated[Time | None, Doc("null while it is open")]
    data: AlertData
    id: Annotated[str, Doc("the episode's id: the same in every process and after a restart")]
    phase: Annotated[
        PhaseWord,
        Doc(
            "pending: the condition has not held long enough yet; recovering: it is gone but may return; resolved: over"
        ),
    ]
    since: Annotated[Time, Doc("when this phase began")]
    acknowledged: Acknowledged | None
    silenced: Annotated[SilenceView | None, Doc("the silence that suppresses its notifications")]
    inhibited_by: Annotated[
        str | None, Doc("KIND:COMPONENT of the alert that explains it and suppresses its notifications")
    ]
    notified: Notified
    runbook: Annotated[str, Doc("path on this server to the instructions for it; no token is needed")]


class SystemAlerts(TypedDict):
    """The current alerts, the worst first."""

    alerts: list[Alert]
    alert_count: int
    timestamp: Time


class Summary(TypedDict):
    """Everything at a glance."""

    overall_health: OverallHealth
    severity: Annotated[Gravest | None, Doc("the verdict's colour; null if nothing is wrong")]
    database_healthy: bool
    ai_services_healthy: Annotated[str, Doc('"3/5": healthy services of the configured ones')]
    active_alerts: int
    circuit_breakers_open: Annotated[int, Doc("open breakers of the database and all models")]


class Dashboard(TypedDict):
    """Everything that the overview shows."""

    summary: Summary
    database: DatabaseHealth
    ai_services: ServicesHealth
    alerts: list[Alert]
    timestamp: Time


class AuditEntry(TypedDict):
    """An act that was allowed, or a request that was refused."""

    at: Time
    who: Annotated[str, Doc("token, read token, session, read session, this machine, or unknown")]
    what: Annotated[str, Doc("the method and the route, without the caller's data")]
    peer: Annotated[str, Doc("the client's address")]
    status: Annotated[int, Doc("200 if it was allowed; its own response may have another status")]
    reason: Annotated[str, Doc("why it was refused; empty if it was allowed")]
    more: Annotated[
        int,
        Doc(
            "earlier refusals with this address and status in the same minute, which have no entry of their own"
        ),
    ]


class AuditLog(TypedDict):
    """The last acts and refusals of this process, newest first."""

    entries: list[AuditEntry]
    timestamp: Time
