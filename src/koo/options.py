"""Frozen options: the unit in the name, the range checked, each default with its reason.

`koo.settings` makes them from the environment; a program may make them itself. An option's meaning, unit, range and
default are here and nowhere else: a variable that sets an option takes them from it. An invalid value raises
`ConfigurationError` here, at once, not at the first call that meets it.
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
"""A time that never comes, in the seconds of any clock."""
QUEUE_MAX = 1000
LOCAL_QUEUE_MAX = 32
"""At about a second an answer, a later query would meet its attempt's timeout in the queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerOptions(Checked):
    """When a circuit opens, for how long, and how it closes again."""

    failure_threshold: int = option(
        5,
        "failures in a row that open it",
        "fast for a total outage, also at low traffic",
        at_least=1,
        at_most=10_000,
    )
    success_threshold: int = option(
        2, "successful probes that close it", "one may be luck", at_least=1, at_most=1000
    )
    probe_concurrency: int = option(
        1, "probes that may run at once", "a recovering backend needs no crowd", at_least=1, at_most=100
    )
    recovery_s: float = option(
        60.0,
        "shortest time that it stays open; a database that answers its probe again is tried earlier",
        "about one restart of a backend",
        unit="s",
        above=0,
        at_most=86_400,
    )
    open_s_max: float = option(
        600.0, "longest opening that our own backoff makes", "an operator's patience", unit="s", above=0
    )
    window_s: float = option(
        30.0, "how far back rates look", "half a recovery", unit="s", above=0, at_most=3600
    )
    window_buckets: int = option(10, "parts of the window", "a tenth is fine enough", at_least=2, at_most=600)
    calls_min: int = option(
        20,
        "calls in the window before a rate means anything",
        "at 10 % failures a window of 20 trips by chance 7 times in a million",
        at_least=1,
    )
    failure_rate: float = option(
        0.5, "share of failures that opens it", "half", unit="ratio", above=0, at_most=1
    )
    slow_rate: float = option(
        0.8,
        "share of slow calls that opens it",
        "slow answers are still answers",
        unit="ratio",
        above=0,
        at_most=1,
    )
    inconclusive_max: int = option(
        10, "probes without a verdict before it opens again", "a probe must lead somewhere", at_least=1
    )
    streak_heals_after_s: float = option(
        600.0,
        "time of health after which one repeated failure is forgotten",
        "as long as the longest opening",
        unit="s",
        above=0,
    )

    @property
    def lease_s(self) -> float:
        """How long a probe may run: half a recovery, unless the service is known to be slow (rule R9)."""
        return self.recovery_s / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryOptions(Checked):
    """How often, and after what pause, a failed call is made again."""

    attempts_max: int = option(4, "calls in all", "three repeats", at_least=1, at_most=100)
    base_s: float = option(
        1.0,
        "the first pause at most",
        "long enough for a rate limiter to refill",
        unit="s",
        above=0,
        at_most=3600,
    )
    cap_s: float = option(
        30.0, "the longest pause of our own", "waiting longer is the caller's decision", unit="s", above=0
    )
    multiplier: float = option(2.0, "growth of the pause", "the customary doubling", at_least=1, at_most=100)
    budget_tokens: float = option(
        20.0, "repeats that may be made at once", "a burst of failures, not a storm", at_least=0
    )
    budget_per_success: float = option(
        0.1, "repeats earned by each first success", "load grows by a tenth at most", at_least=0, at_most=10
    )
    budget_per_s: float = option(
        1.0, "repeats earned each second", "so that a quiet service recovers", at_least=0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitOptions(Checked):
    """Our own limits; None means unlimited."""

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
        "tokens in any minute, read and written: a call takes the most that it can need, and gives back the rest",
        "the provider's own limit is kept by its answers",
        at_least=0,
        none="no limit",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardOptions(Timed):
    """What one guard does for one dependency."""

    timeout_s: float = option(
        120.0, "deadline of a whole call, pauses included", "a person's patience", unit="s", above=0
    )
    attempt_timeout_s: float = option(
        not_set(), "longest time of one attempt", "half the call, also of a shorter one", unit="s", above=0
    )
    slow_s: float = option(
        not_set(), "an attempt that takes longer counts as slow", "half an attempt", unit="s", above=0
    )
    concurrency_max: int = option(
        1000, "calls that may run at once", "memory is finite", at_least=0, at_most=1_000_000
    )
    queue_max: int = option(
        QUEUE_MAX,
        "callers that may wait for a place or a limit at once",
        "longer queues outlive their callers",
        at_least=0,
    )
    idempotent: bool = option(False, "a repeat does no harm", "only the caller can know")
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
        10, "connections kept", "about twice a small server's cores, plus a few", at_least=1, at_most=10_000
    )
    max_overflow: int = option(
        20, "connections above that, closed after use", "a burst", at_least=0, at_most=10_000
    )
    pool_timeout_s: float = option(
        5.0,
        "longest wait for a connection, connecting included",
        "a person does not wait longer",
        unit="s",
        above=0,
    )
    pool_recycle_s: float = option(
        3600.0,
        "age at which a connection is replaced",
        "below the idle limit of usual firewalls",
        unit="s",
        above=0,
    )
    scope_timeout_s: float = option(
        60.0, "deadline of a scope", "a transaction should not last long", unit="s", above=0
    )
    slow_call_s: float = option(
        1.0, "database time that counts as slow", "users notice a second", unit="s", above=0
    )
    validate_after_idle_s: float = option(
        1.0,
        "idle time after which a connection is tried before use",
        "a ping on every use costs half a query",
        unit="s",
        at_least=0,
    )
    prepared_statements: bool = option(
        True,
        "statements are prepared on the server; `false` for a pooler in transaction mode that keeps none (PgBouncer "
        "without `max_prepared_statements`, Supavisor)",
        "what is prepared is parsed and planned once",
    )
    cleanup_timeout_s: float = option(
        2.0,
        "longest time that leaving a scope takes after a failure",
        "a black hole never answers",
        unit="s",
        above=0,
    )
    held_warning_s: float = option(
        20.0, "age at which an open scope is logged", "a third of the longest", unit="s", above=0
    )
    connect_concurrency: int = option(
        4, "connections opened at a time", "a restarted server accepts few", at_least=1, at_most=10_000
    )
    keepalive_s: float = option(
        30.0, "idle time until TCP checks the peer; 0: the system's", "it waits hours", unit="s", at_least=0
    )
    tcp_user_timeout_s: float = option(
        30.0, "longest time unacknowledged; 0: the system's", "half a scope", unit="s", at_least=0
    )
    server_timeouts: bool = option(
        True,
        "PostgreSQL itself ends statements and idle transactions after the longest scope and its cleanup",
        "a process that is stopped or cut off must not keep its locks",
    )
    probe_interval_s: float = option(30.0, "time between health probes", "two a minute", unit="s", above=0)
    probe_timeout_s: float = option(
        5.0, "longest time of a probe", "as long as a connection may take", unit="s", above=0
    )
    breaker: BreakerOptions = field(default_factory=BreakerOptions)
    retry: RetryOptions = field(default_factory=lambda: RetryOptions(base_s=0.2))


KEY_HEADERS = frozenset({"authorization", "api-key", "x-api-key", "x-goog-api-key", "cf-aig-authorization"})
"""Headers that hold a key: a service that is sent one belongs to a party that counts what it costs."""
NOTHING: Mapping[str, Any] = Nothing()
ServiceKind = Literal["anthropic", "openai", "openai_compatible", "gemini", "perplexity", "local"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOptions(Timed):
    """One AI service. Without `api_key` a hosted service is not configured."""

    name: str
    kind: ServiceKind
    model: str = option(
        "",
        "model of a query that names none; for `local` a GGUF file",
        "the vendor's current mid-priced general model",
    )
    base_url: str | None = option(
        None, "address of the server, with its version path", "the vendor's own address"
    )
    api_key: str | None = option(
        None,
        "key; wins over the vendor's own variable",
        "a self-hosted server often needs none",
        secret=True,
    )
    proxy: str | None = option(
        "",
        "proxy on the way to it, for a server on this machine too",
        "the same way as everything else",
        none="no proxy",
        secret=True,
    )
    headers: Mapping[str, str] = option(
        NOTHING,
        "headers that are sent with each request, one each: `HEADERS__X_TITLE` is `x-title`",
        "a gateway may ask for its own",
        secret=True,
    )
    body: Mapping[str, Any] = option(
        NOTHING,
        "fields that are added to each request's body if koo sends none of that name, one each, JSON or text: "
        "`BODY__TOP_P` is `top_p`, `BODY__PROVIDER__ORDER` is `order` inside `provider`",
        "for parameters that koo does not know",
        secret=True,
    )
    declared: bool = option(False, "a self-hosted server, which needs no key", "a vendor asks for a key")
    disabled_by: str = option(
        "",
        "the setting that switched the service off, as `NAME=value`",
        "a service is on unless switched off",
    )
    timeout_s: float = option(120.0, "deadline of a whole query", "a person's patience", unit="s", above=0)
    attempt_timeout_s: float = option(
        not_set(), "longest time of one attempt", "half the query, also of a shorter one", unit="s", above=0
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
        4096, "longest answer, always sent", "it gives a hold its bound", unit="tokens", at_least=1
    )
    daily_budget_usd: Decimal | None = option(
        Decimal("10.0"),
        "most money per UTC day",
        "a forgotten loop costs a lunch",
        unit="USD",
        at_least=0,
        none="no limit",
    )
    budget_is_explicit: bool = option(
        False,
        "the budget was set, so it refuses while the state store is away",
        "a default must not stop what works",
    )
    input_price: Decimal | None = option(
        None, "USD per million tokens read", "from the price table", unit="USD/Mtok", at_least=0
    )
    output_price: Decimal | None = option(
        None, "USD per million tokens written", "from the price table", unit="USD/Mtok", at_least=0
    )
    price_as: str | None = option(
        None,
        "model whose price its own has, and others that the table does not know: `gpt-4o`, or `openai/gpt-4o`",
        "no price table knows a private name",
    )
    leave_out: tuple[str, ...] = option(
        (), "parameters that its server refuses, not sent", "koo learns it from a refusal, one for each model"
    )
    tokens_parameter: str | None = option(
        None, "name of the longest answer in chat completions", "koo learns it from a refusal"
    )
    thinks_unseen: bool | None = option(
        None,
        "its models may bill what they do not send: a stream that ends before its usage is known is booked at its hold",
        "a bill must not be too small",
    )
    concurrency_max: int = option(
        200, "queries that may run at once", "sockets are finite", at_least=1, at_most=1_000_000
    )
    queue_max: int | None = option(
        None,
        "queries that may wait for a place at once; a list of queries waits beside them, whatever its length",
        "longer queues outlive their callers; 32 for `local`, which makes one answer at a time, else 1000",
        at_least=0,
    )
    breaker: BreakerOptions = field(default_factory=BreakerOptions)
    retry: RetryOptions = field(default_factory=RetryOptions)
    limits: LimitOptions = field(
        default_factory=lambda: LimitOptions(per_minute=60, per_hour=1000, per_day=10_000)
    )

    @property
    def queue_length(self) -> int:
        """`queue_max` as it is in force."""
        usual = LOCAL_QUEUE_MAX if self.kind == "local" else QUEUE_MAX
        return usual if self.queue_max is None else self.queue_max

    def __post_init__(self) -> None:
        Timed.__post_init__(self)
        self.check_slow()

    @property
    def configured(self) -> bool:
        """Whether it can be called at all: it is not switched off, and a hosted vendor has a key."""
        return not self.disabled_by and (self.api_key is not None or self.kind == "local" or self.declared)

    @property
    def has_credentials(self) -> bool:
        """Whether a request identifies its sender, by a key or by a header that holds one."""
        return self.api_key is not None or any(name.lower() in KEY_HEADERS for name in self.headers)

    @property
    def free(self) -> bool:
        """Whether it costs nothing: the local model, or a self-hosted server declared without key and price."""
        unpriced = self.input_price is None and self.output_price is None and self.price_as is None
        return self.kind == "local" or (self.declared and not self.has_credentials and unpriced)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformOptions(Checked):
    """Everything that one process of koo needs to know."""

    home: Path = option(
        Path(),
        "folder where all relative paths start, and whose `.env` is read",
        "a project keeps its data beside its settings, from whatever folder it is started",
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
        5.0, "longest time of a health check", "an operator waits", unit="s", above=0
    )
    local_model_path: Path | None = option(None, "GGUF file of `local`", "the packaged model")
    version_label: str = option(
        "",
        "name of this deployment, shown with each process of the fleet: a release, a colour, a commit",
        "koo knows only its own version",
    )
    environment: str = option("", "name of the environment, shown on the page", "koo cannot know it")
    host: str = option(
        "127.0.0.1",
        "address that the server listens on; one that others can reach needs `KOO_TOKEN`",
        "other machines cannot reach it",
    )
    port: int = option(8000, "TCP port of the server", "the customary one", at_least=0, at_most=65_535)
    url: str = option(
        "http://127.0.0.1:8000",
        "where the command line finds the running server",
        "follows `KOO_HOST` and `KOO_PORT`",
    )
    shutdown_delay_s: float = option(
        5.0,
        "how long after SIGTERM new connections are still answered, while `/readyz` says no; without a watcher of "
        "`/readyz` only as long as requests run",
        "a balancer needs some seconds to notice",
        unit="s",
        at_least=0,
        at_most=600,
    )
    token: str | None = option(
        None, "token of callers that may do everything", "without one, only this machine may ask", secret=True
    )
    token_2: str | None = option(
        None,
        "a second token of the same kind",
        "both are valid while callers change from one to the other",
        secret=True,
    )
    read_token: str | None = option(
        None, "token of callers that may only look", "callers with `KOO_TOKEN` may look too", secret=True
    )
    read_token_2: str | None = option(
        None,
        "a second token of the same kind",
        "both are valid while callers change from one to the other",
        secret=True,
    )
    trusted_proxies: tuple[str, ...] = option(
        (),
        "addresses and networks of proxies whose `X-Forwarded-For` is believed",
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
