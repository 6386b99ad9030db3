"""Frozen options: units in the names, checked ranges, and a reason for each default.

`koo.settings` creates them from the environment; a program may create them itself. This is the only place with an
option's meaning, unit, range and default: a variable that sets an option takes them from here. An invalid value raises
`ConfigurationError` immediately, not at the first call that uses it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from koo.alert_options import AlertOptions
from koo.budget_options import BudgetOptions
from koo.checked import Checked, Nothing, Timed, not_set, option
from koo.errors import ConfigurationError
from koo.log_options import LogOptions
from koo.network_options import NetworkOptions
from koo.once_options import OnceOptions
from koo.service_names import check_service_name

DAY_S = 86_400.0
LEDGER_DAYS_MAX = 36_500
NEVER = math.inf
"""A time that never comes, on any clock."""
QUEUE_MAX = 1000
LOCAL_QUEUE_MAX = 32
"""At about one second per answer, a query further back would reach its attempt timeout in the queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerOptions(Checked):
    """When a circuit opens, for how long, and how it closes again."""

    failure_threshold: int = option(
        5,
        "failures in a row that open it",
        "reacts fast to a total outage, even at low traffic",
        at_least=1,
        at_most=10_000,
    )
    success_threshold: int = option(
        2, "successful probes that close it", "a single success may be luck", at_least=1, at_most=1000
    )
    probe_concurrency: int = option(
        1, "concurrent probes", "a recovering backend must not be flooded", at_least=1, at_most=100
    )
    recovery_s: float = option(
        60.0,
        "shortest time that it stays open; recovery of a database is tested earlier if koo's own probe succeeds",
        "about as long as a backend's restart",
        unit="s",
        above=0,
        at_most=86_400,
    )
    open_s_max: float = option(
        600.0, "longest time that it stays open", "an operator should not wait longer", unit="s", above=0
    )
    window_s: float = option(
        30.0, "period that rates cover", "half of the recovery time", unit="s", above=0, at_most=3600
    )
    window_buckets: int = option(10, "parts of the window", "a tenth is fine enough", at_least=2, at_most=600)
    calls_min: int = option(
        20,
        "calls in the window before a rate counts",
        "at 10 % failures, a window of 20 calls trips by chance 7 times in a million",
        at_least=1,
    )
    failure_rate: float = option(
        0.5, "share of failures that opens it", "half of all calls", unit="ratio", above=0, at_most=1
    )
    slow_rate: float = option(
        0.8,
        "share of slow calls that opens it",
        "slow responses are still useful",
        unit="ratio",
        above=0,
        at_most=1,
    )
    inconclusive_max: int = option(
        10, "probes without a verdict before it opens again", "testing must not go on forever", at_least=1
    )
    streak_heals_after_s: float = option(
        600.0,
        "healthy time after which one doubling of the open time is undone",
        "as long as the longest open time",
        unit="s",
        above=0,
    )

    @property
    def lease_s(self) -> float:
        """How long a probe may run: half of the recovery time, unless the service is known to be slow."""
        return self.recovery_s / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryOptions(Checked):
    """How often a failed call is repeated, and after what pause."""

    attempts_max: int = option(4, "attempts, including the first", "three retries", at_least=1, at_most=100)
    base_s: float = option(
        1.0,
        "upper limit of the first pause",
        "long enough for a rate limiter to refill",
        unit="s",
        above=0,
        at_most=3600,
    )
    cap_s: float = option(
        30.0, "longest pause that koo chooses", "waiting longer is the caller's decision", unit="s", above=0
    )
    multiplier: float = option(2.0, "growth factor of pauses", "the usual doubling", at_least=1, at_most=100)
    budget_tokens: float = option(
        20.0, "repeats that a burst of failures may use", "enough for a burst, not a retry storm", at_least=0
    )
    budget_per_success: float = option(
        0.1, "repeats earned per first-try success", "load grows by a tenth at most", at_least=0, at_most=10
    )
    budget_per_s: float = option(
        1.0, "repeats earned each second", "so that a service with little traffic recovers too", at_least=0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitOptions(Checked):
    """koo's own limits; None means unlimited."""

    per_minute: int | None = option(
        None, "requests in any minute", "none unless set", at_least=0, none="no limit"
    )
    per_hour: int | None = option(
        None, "requests in any hour", "none unless set", at_least=0, none="no limit"
    )
    per_day: int | None = option(
        None, "requests in a UTC day", "none unless set", at_least=0, none="no limit"
    )
    tokens_per_minute: int | None = option(
        None,
        "tokens in any minute, input and output: a call takes the most that it can need, and returns the rest",
        "the provider's own limit is known from its responses",
        at_least=0,
        none="no limit",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardOptions(Timed):
    """The options of one guard."""

    timeout_s: float = option(
        120.0, "deadline of a whole call, pauses included", "people wait no longer", unit="s", above=0
    )
    attempt_timeout_s: float = option(
        not_set(), "timeout of one attempt", "half of the call's deadline, at most 60 s", unit="s", above=0
    )
    slow_s: float = option(
        not_set(), "an attempt that takes longer counts as slow", "half an attempt", unit="s", above=0
    )
    concurrency_max: int = option(
        1000, "calls that may run at the same time", "memory is limited", at_least=0, at_most=1_000_000
    )
    queue_max: int = option(
        QUEUE_MAX,
        "callers that may wait for a slot or a limit at the same time",
        "in a longer queue callers time out before their turn",
        at_least=0,
    )
    idempotent: bool = option(False, "whether repeating a call does no harm", "only the caller can know")
    breaker: BreakerOptions = field(default_factory=BreakerOptions)
    retry: RetryOptions = field(default_factory=RetryOptions)
    limits: LimitOptions = field(default_factory=LimitOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseOptions(OnceOptions):
    """The user's database, which koo guards."""

    url: str = option(
        "sqlite:///data/koo.db", "the database that koo guards", "works without a server", secret=True
    )
    pool_size: int = option(
        10, "connections kept open", "twice a small server's cores, plus a few", at_least=1, at_most=10_000
    )
    max_overflow: int = option(
        20, "further connections under load, closed after use", "for bursts", at_least=0, at_most=10_000
    )
    pool_timeout_s: float = option(
        5.0,
        "longest wait for a connection, including connecting",
        "people do not wait longer",
        unit="s",
        above=0,
    )
    pool_recycle_s: float = option(
        3600.0,
        "age at which a connection is replaced",
        "below the idle timeout of common firewalls",
        unit="s",
        above=0,
    )
    scope_timeout_s: float = option(
        60.0, "deadline of a scope", "a transaction should not last long", unit="s", above=0
    )
    slow_call_s: float = option(
        1.0, "a call with this much database time counts as slow", "users notice a second", unit="s", above=0
    )
    validate_after_idle_s: float = option(
        1.0,
        "idle time after which a connection is tested before use",
        "a test on every use would cost half a query",
        unit="s",
        at_least=0,
    )
    prepared_statements: bool = option(
        True,
        "prepare statements on the server; `false` for a pooler in transaction mode that does not support it "
        "(PgBouncer without `max_prepared_statements`, Supavisor)",
        "a prepared statement is parsed and planned only once",
    )
    cleanup_timeout_s: float = option(
        2.0,
        "longest time for the cleanup of a scope after a failure",
        "a server behind a broken network never responds",
        unit="s",
        above=0,
    )
    held_warning_s: float = option(
        20.0, "age at which an open scope is logged", "a third of the default deadline", unit="s", above=0
    )
    connect_concurrency: int = option(
        4, "connections opened at the same time", "a restarted server accepts few", at_least=1, at_most=10_000
    )
    keepalive_s: float = option(
        30.0, "idle time before TCP probes; 0: system default", "the system waits hours", unit="s", at_least=0
    )
    tcp_user_timeout_s: float = option(
        30.0, "longest time without ACK; 0: system default", "half a scope's deadline", unit="s", at_least=0
    )
    server_timeouts: bool = option(
        True,
        "PostgreSQL itself ends statements and idle transactions after a scope's deadline and cleanup time",
        "a process that is stopped or cut off must not keep its locks",
    )
    probe_interval_s: float = option(30.0, "time between health probes", "two a minute", unit="s", above=0)
    probe_timeout_s: float = option(
        5.0, "timeout of a probe", "as long as opening a connection may take", unit="s", above=0
    )
    breaker: BreakerOptions = field(default_factory=BreakerOptions)
    retry: RetryOptions = field(default_factory=lambda: RetryOptions(base_s=0.2))


KEY_HEADERS = frozenset({"authorization", "api-key", "x-api-key", "x-goog-api-key", "cf-aig-authorization"})
"""Headers that carry a key: a service that receives one belongs to a provider that charges for it."""
NOTHING: Mapping[str, Any] = Nothing()
ServiceKind = Literal["anthropic", "openai", "openai_compatible", "gemini", "perplexity", "local"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOptions(Timed):
    """One AI service. Without `api_key` a hosted service is not configured."""

    name: str
    kind: ServiceKind
    model: str = option(
        "",
        "model for queries that name none; for `local` a GGUF file",
        "the vendor's current mid-priced general model",
    )
    base_url: str | None = option(
        None, "address of the server, with its version path", "the vendor's own address"
    )
    api_key: str | None = option(
        None,
        "key; takes precedence over the vendor's own variable",
        "a self-hosted server often needs none",
        secret=True,
    )
    proxy: str | None = option(
        "",
        "proxy for this service, even if its server is on this machine",
        "the same as for everything else",
        none="no proxy",
        secret=True,
    )
    headers: Mapping[str, str] = option(
        NOTHING,
        "headers sent with each request, one per variable: `HEADERS__X_TITLE` is `x-title`",
        "a gateway may require its own",
        secret=True,
    )
    body: Mapping[str, Any] = option(
        NOTHING,
        "fields added to each request's body unless koo sends one of that name, one per variable, JSON or text: "
        "`BODY__TOP_P` is `top_p`, `BODY__PROVIDER__ORDER` is `order` inside `provider`",
        "for parameters that koo does not know",
        secret=True,
    )
    declared: bool = option(False, "a self-hosted server, which needs no key", "a vendor requires a key")
    disabled_by: str = option(
        "",
        "the setting that switched the service off, as `NAME=value`",
        "a service is on unless switched off",
    )
    timeout_s: float = option(120.0, "deadline of a whole query", "people wait no longer", unit="s", above=0)
    attempt_timeout_s: float = option(
        not_set(), "timeout of one attempt", "half of the query's deadline, at most 60 s", unit="s", above=0
    )
    first_token_timeout_s: float = option(
        30.0, "longest wait for a stream's first content", "long prompts take time", unit="s", above=0
    )
    stall_timeout_s: float = option(
        30.0, "longest silence between two pieces of content", "pings are not content", unit="s", above=0
    )
    slow_s: float = option(
        not_set(), "an attempt that takes longer counts as slow", "half an attempt", unit="s", above=0
    )
    max_tokens: int = option(
        4096, "most output tokens, always sent", "it limits how much money is held", unit="tokens", at_least=1
    )
    daily_budget_usd: Decimal | None = option(
        Decimal("10.0"),
        "most money per UTC day",
        "a forgotten loop costs no more than a lunch",
        unit="USD",
        at_least=0,
        none="no limit",
    )
    budget_is_explicit: bool = option(
        False,
        "the budget was set, so it refuses while the state store is unreachable",
        "a default must not stop what works",
    )
    input_price: Decimal | None = option(
        None, "USD per million input tokens", "the table contains most models", unit="USD/Mtok", at_least=0
    )
    output_price: Decimal | None = option(
        None, "USD per million output tokens", "the table contains most models", unit="USD/Mtok", at_least=0
    )
    price_as: str | None = option(
        None,
        "model whose price applies to its models that are not in the price table: `gpt-4o`, or `openai/gpt-4o`",
        "no price table contains a private name",
    )
    leave_out: tuple[str, ...] = option(
        (), "parameters not sent, because the server refuses them", "koo learns them from refusals"
    )
    tokens_parameter: str | None = option(
        None, "name of the output limit in chat completions", "koo learns it from a refusal"
    )
    thinks_unseen: bool | None = option(
        None,
        "the provider may bill tokens that it does not send: a stream that ends without a usage is booked at its hold",
        "a booking must not be too low",
    )
    concurrency_max: int = option(
        200, "queries that may run at the same time", "sockets are limited", at_least=1, at_most=1_000_000
    )
    queue_max: int | None = option(
        None,
        "queries that may wait for a slot at the same time; the queries of a list wait separately and do not count",
        "in longer queues callers time out first; 32 for `local`, which makes one answer at a time, else 1000",
        at_least=0,
    )
    breaker: BreakerOptions = field(default_factory=BreakerOptions)
    retry: RetryOptions = field(default_factory=RetryOptions)
    limits: LimitOptions = field(
        default_factory=lambda: LimitOptions(per_minute=60, per_hour=1000, per_day=10_000)
    )

    @property
    def queue_length(self) -> int:
        """`queue_max`, or its default for this kind of service."""
        usual = LOCAL_QUEUE_MAX if self.kind == "local" else QUEUE_MAX
        return usual if self.queue_max is None else self.queue_max

    def __post_init__(self) -> None:
        Timed.__post_init__(self)
        self.check_slow()

    @property
    def configured(self) -> bool:
        """Whether the service can be called at all: it is not switched off, and a hosted vendor has a key."""
        return not self.disabled_by and (self.api_key is not None or self.kind == "local" or self.declared)

    @property
    def has_credentials(self) -> bool:
        """Whether requests have a key, from the key setting or in a configured header."""
        return self.api_key is not None or any(name.lower() in KEY_HEADERS for name in self.headers)

    @property
    def free(self) -> bool:
        """Whether calls cost nothing: the local model, or a self-hosted server declared without key and price."""
        unpriced = self.input_price is None and self.output_price is None and self.price_as is None
        return self.kind == "local" or (self.declared and not self.has_credentials and unpriced)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformOptions(Checked):
    """All options of one process of koo."""

    home: Path = option(
        Path(),
        "folder from which all relative paths start, and whose `.env` is read",
        "a project's data stays next to its settings, whatever folder it is started from",
    )
    state_url: str = option(
        "sqlite:///data/koo-state.db",
        "where koo keeps its own state: money, limits, events",
        "a guard must not depend on the database that it guards",
        secret=True,
    )
    ledger_days: int = option(
        400,
        "how many days the ledger keeps bookings",
        "a year, and time to compare it with the previous one",
        unit="days",
        at_least=62,
        at_most=LEDGER_DAYS_MAX,
    )
    database: DatabaseOptions = field(default_factory=DatabaseOptions)
    services: tuple[ServiceOptions, ...] = ()
    budgets: tuple[BudgetOptions, ...] = ()
    network: NetworkOptions = field(default_factory=NetworkOptions)
    alerts: AlertOptions = field(default_factory=AlertOptions)
    log: LogOptions = field(default_factory=LogOptions)
    health_check_interval_s: float = option(
        60.0, "time between unbilled AI checks", "once a minute", unit="s", above=0
    )
    health_check_timeout_s: float = option(
        5.0, "timeout of a health check", "an operator may be waiting for it", unit="s", above=0
    )
    local_model_path: Path | None = option(None, "GGUF file of `local`", "the packaged model")
    version_label: str = option(
        "",
        "name of this deployment, shown with each process of the fleet: a release, a colour, a commit",
        "koo knows only its own version",
    )
    environment: str = option("", "name of the environment, shown on the dashboard", "koo cannot know it")
    host: str = option(
        "127.0.0.1",
        "address that the server listens on; one that others can reach needs `KOO_TOKEN`",
        "other machines cannot reach it",
    )
    port: int = option(8000, "TCP port of the server", "the usual one", at_least=0, at_most=65_535)
    url: str = option(
        "http://127.0.0.1:8000",
        "where the command line finds the running server",
        "follows `KOO_HOST` and `KOO_PORT`",
    )
    shutdown_delay_s: float = option(
        5.0,
        "how long after SIGTERM new connections are accepted, while `/readyz` reports not ready; if nothing polls "
        "`/readyz`, only as long as requests run",
        "a load balancer needs some seconds to notice",
        unit="s",
        at_least=0,
        at_most=600,
    )
    token: str | None = option(
        None, "token that permits everything", "without it, only this machine has access", secret=True
    )
    token_2: str | None = option(
        None,
        "a second token of the same kind",
        "both are valid while callers change from one to the other",
        secret=True,
    )
    read_token: str | None = option(
        None, "token that permits only reading", "callers with `KOO_TOKEN` may read too", secret=True
    )
    read_token_2: str | None = option(
        None,
        "a second token of the same kind",
        "both are valid while callers change from one to the other",
        secret=True,
    )
    trusted_proxies: tuple[str, ...] = option(
        (),
        "addresses and networks of proxies whose `X-Forwarded-For` is trusted",
        "any client can send that header; without this, requests through a proxy do not count as this machine's",
    )

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        for service in self.services:
            check_service_name(service.name)
        names = [budget.name for budget in self.budgets]
        for budget in self.budgets:
            if names.count(budget.name) > 1 or not budget.name or "/" in budget.name:
                what = f"a budget has the name {budget.name[:64]!r}"
                raise ConfigurationError("", f"{what}; expected a unique name without a slash")
            known = ["refuse", *(service.name for service in self.services)]
            if budget.on_exhausted not in known:
                what = f"on_exhausted of budget {budget.name[:64]!r} is {budget.on_exhausted[:64]!r}"
                raise ConfigurationError("", f"{what}; expected one of {', '.join(known)}")
