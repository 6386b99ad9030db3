"""All variables, one row each; `koo.configuration.table` defines what a row is.

There is no behaviour here: `koo.settings` reads the variables, `cross_checks` checks them together, and `to_options`
converts them.
"""

from __future__ import annotations

from typing import NamedTuple

from koo.ai.models import KEY_VARIABLES
from koo.configuration.table import (
    Table,
    alone,
    for_services,
    many_of_one,
    of_budget,
    of_one,
    secret,
    variable,
)
from koo.configuration.values import (
    ADDRESS,
    ADDRESSES,
    CERTIFICATE_FILE,
    CERTIFICATE_FOLDERS,
    DATABASE_URL,
    FIELD,
    FOLDER,
    HEADER,
    HOST,
    HOSTS,
    KEY,
    LABEL,
    MODEL,
    MODEL_NAME,
    NETWORKS,
    PARAMETERS,
    PROXY,
    SERVICE_KIND,
    SERVICE_NAME,
    SERVICE_OR_REFUSE,
    SERVICE_PROXY,
    SIGNING_SECRET,
    SMTP_URL,
    STATE_URL,
    TAG,
    TOKENS_PARAMETER,
    WEB_URL,
    WEBHOOK,
    YES_OR_NO,
    SecretStr,
)
from koo.options import ServiceKind

ONE_RULE = "one rule for all is easy to remember"

BUILT_IN: dict[str, tuple[ServiceKind, str]] = {
    "claude": ("anthropic", KEY_VARIABLES["claude"]),
    "openai": ("openai", KEY_VARIABLES["openai"]),
    "gemini": ("gemini", KEY_VARIABLES["gemini"]),
    "perplexity": ("perplexity", KEY_VARIABLES["perplexity"]),
    "local": ("local", ""),
}
"""The services that need no declaration: their format, and the variable with their key."""
NOT_LOCAL = ("kind", "base_url", "api_key", "proxy", "headers", "body")
"""Settings of a service that have no meaning for `local`, which runs on this machine."""


class Name(NamedTuple):
    """One variable: ("ai_services", "claude", "daily_budget") is `AI_SERVICES__CLAUDE__DAILY_BUDGET`.

    Outside all families, `family` and `whose` are "": ("", "", "koo_port") is `KOO_PORT`.
    """

    family: str
    whose: str
    attribute: str

    @property
    def variable(self) -> str:
        """The name as written in the environment."""
        return (f"{self.family}__{self.whose}__{self.attribute}" if self.family else self.attribute).upper()


def _key_of(service: str) -> SecretStr | None:
    unset: str | None = None
    return secret(alone(unset, f"key of `{service}`", "without it the service is not configured", KEY))


class ServiceSettings(Table):
    """`AI_SERVICES__<NAME>__…`: settings of one service, or the declaration of a new one; None: the same as for all
    services."""

    kind = of_one(
        lambda service: service.kind,
        form=SERVICE_KIND,
        meaning="API format of a declared server",
        why="most servers have OpenAI's format",
        shown_default="openai",
    )
    base_url = of_one(lambda service: service.base_url, form=WEB_URL)
    api_key = secret(of_one(lambda service: service.api_key, form=KEY))
    proxy = secret(
        of_one(
            lambda service: service.proxy,
            form=SERVICE_PROXY,
            shown_default="by `HTTPS_PROXY` and the related variables; none for a server on this machine",
        )
    )
    headers = many_of_one(lambda service: service.headers, form=HEADER)
    body = many_of_one(lambda service: service.body, form=FIELD)
    model = of_one(lambda service: service.model, form=MODEL, shown_default="see the table of services")
    daily_budget = of_one(lambda service: service.daily_budget_usd)
    input_price = of_one(lambda service: service.input_price, shown_default="from the price table")
    output_price = of_one(lambda service: service.output_price, shown_default="from the price table")
    price_as = of_one(lambda service: service.price_as, form=MODEL_NAME, shown_default="its own name")
    leave_out = of_one(
        lambda service: service.leave_out, form=PARAMETERS, shown_default="learned from refusals"
    )
    tokens_parameter = of_one(
        lambda service: service.tokens_parameter, form=TOKENS_PARAMETER, shown_default="learned from refusals"
    )
    thinks_unseen = of_one(
        lambda service: service.thinks_unseen,
        form=YES_OR_NO,
        shown_default="depends on the model; true for an unknown one",
    )
    requests_per_minute = of_one(lambda service: service.limits.per_minute, why=ONE_RULE)
    requests_per_hour = of_one(lambda service: service.limits.per_hour, why=ONE_RULE)
    requests_per_day = of_one(lambda service: service.limits.per_day, why=ONE_RULE)
    tokens_per_minute = of_one(lambda service: service.limits.tokens_per_minute)
    concurrency = of_one(lambda service: service.concurrency_max)
    queue_length = of_one(lambda service: service.queue_max, shown_default="1000; 32 for `local`")
    timeout = of_one(lambda service: service.timeout_s)
    attempt_timeout = of_one(lambda service: service.attempt_timeout_s)
    first_token_timeout = of_one(lambda service: service.first_token_timeout_s)
    stall_timeout = of_one(lambda service: service.stall_timeout_s)
    slow_call_seconds = of_one(lambda service: service.slow_s, shown_default="half of the attempt's timeout")
    max_tokens = of_one(lambda service: service.max_tokens)


class BudgetSettings(Table):
    """`AI_BUDGETS__<NAME>__…`: an additional budget, apart from the daily one that each service has."""

    limit = of_budget(lambda budget: budget.limit_usd, shown_default="required")
    period = of_budget(lambda budget: budget.period, shown_default="day")
    service = of_budget(lambda budget: budget.service, form=SERVICE_NAME, shown_default="all together")
    model = of_budget(lambda budget: budget.model, form=MODEL_NAME, shown_default="all together")
    tag = of_budget(lambda budget: budget.tag, form=TAG, shown_default="all together")
    on_exhausted = of_budget(
        lambda budget: budget.on_exhausted, form=SERVICE_OR_REFUSE, shown_default="refuse"
    )


FAMILIES: dict[str, tuple[type[Table], str]] = {
    "ai_services": (ServiceSettings, "service"),
    "ai_budgets": (BudgetSettings, "budget"),
}
"""The tables that may exist several times, under names that the operator chooses, with the word for one of them."""


class Variables(Table):
    """All variables, one attribute each: `DATABASE_POOL_SIZE` is `database_pool_size`."""

    ai_services: dict[str, ServiceSettings]
    """Settings of single services, and declared services, by name."""
    ai_budgets: dict[str, BudgetSettings]
    """Budgets in addition to the daily ones of services, by name."""

    koo_home = variable(
        lambda koo: koo.home,
        form=FOLDER,
        shown_default="the nearest folder with a `.env`, from the working directory upwards; else the working "
        "directory",
    )

    # ── the database that koo guards ──
    database_url = secret(variable(lambda koo: koo.database.url, form=DATABASE_URL))
    database_pool_size = variable(lambda koo: koo.database.pool_size)
    database_max_overflow = variable(lambda koo: koo.database.max_overflow)
    database_pool_timeout = variable(lambda koo: koo.database.pool_timeout_s)
    database_pool_recycle = variable(lambda koo: koo.database.pool_recycle_s)
    database_prepared_statements = variable(lambda koo: koo.database.prepared_statements)
    database_scope_timeout = variable(lambda koo: koo.database.scope_timeout_s)
    database_held_warning = variable(lambda koo: koo.database.held_warning_s)
    database_connect_concurrency = variable(lambda koo: koo.database.connect_concurrency)
    database_keepalive = variable(lambda koo: koo.database.keepalive_s)
    database_tcp_user_timeout = variable(lambda koo: koo.database.tcp_user_timeout_s)
    database_server_timeouts = variable(lambda koo: koo.database.server_timeouts)
    db_circuit_breaker_failure_threshold = variable(lambda koo: koo.database.breaker.failure_threshold)
    db_circuit_breaker_recovery_timeout = variable(lambda koo: koo.database.breaker.recovery_s)
    db_circuit_breaker_success_threshold = variable(lambda koo: koo.database.breaker.success_threshold)
    db_max_retries = variable(
        lambda koo: koo.database.retry.attempts_max,
        less=1,
        meaning="retries after the first run; 0 turns retries off",
        why="most temporary failures are over by then",
    )
    db_retry_base_delay = variable(
        lambda koo: koo.database.retry.base_s,
        why="pauses of at most 0.2, 0.4 and 0.8 s: together long enough for a small server to restart, and barely "
        "noticeable to a waiting user",
    )
    db_retry_max_delay = variable(lambda koo: koo.database.retry.cap_s)
    db_retry_backoff_multiplier = variable(lambda koo: koo.database.retry.multiplier)
    db_slow_call_seconds = variable(lambda koo: koo.database.slow_call_s)
    db_exactly_once = variable(lambda koo: koo.database.exactly_once)
    db_resolve_timeout = variable(lambda koo: koo.database.resolve_timeout_s)
    db_marker_retention = variable(lambda koo: koo.database.marker_retention_s)
    db_health_check_interval = variable(lambda koo: koo.database.probe_interval_s)
    health_check_timeout = variable(
        lambda koo: koo.health_check_timeout_s,
        lambda koo: koo.database.probe_timeout_s,
        meaning="timeout of a health check, for the database and AI services",
    )

    # ── AI services ──
    ai_circuit_breaker_failure_threshold = for_services(lambda service: service.breaker.failure_threshold)
    ai_circuit_breaker_recovery_timeout = for_services(
        lambda service: service.breaker.recovery_s, meaning="shortest time that it stays open"
    )
    ai_circuit_breaker_success_threshold = for_services(lambda service: service.breaker.success_threshold)
    ai_max_retries = for_services(
        lambda service: service.retry.attempts_max,
        less=1,
        meaning="retries after the first attempt; 0 turns retries off",
        why="more would only make an overload worse",
    )
    ai_retry_base_delay = for_services(lambda service: service.retry.base_s)
    ai_retry_max_delay = for_services(lambda service: service.retry.cap_s)
    ai_retry_backoff_multiplier = for_services(lambda service: service.retry.multiplier)
    ai_query_timeout = for_services(lambda service: service.timeout_s)
    ai_attempt_timeout = for_services(lambda service: service.attempt_timeout_s)
    ai_first_token_timeout = for_services(lambda service: service.first_token_timeout_s)
    ai_stall_timeout = for_services(lambda service: service.stall_timeout_s)
    ai_default_requests_per_minute = for_services(
        lambda service: service.limits.per_minute, why="below the first tier of most vendors"
    )
    ai_default_requests_per_hour = for_services(
        lambda service: service.limits.per_hour, why="enough for a busy hour, but not for a runaway loop"
    )
    ai_default_requests_per_day = for_services(
        lambda service: service.limits.per_day, why="enough for ten busy hours"
    )
    ai_default_daily_budget = for_services(lambda service: service.daily_budget_usd)
    ai_default_max_tokens = for_services(lambda service: service.max_tokens)
    ai_health_check_interval = variable(lambda koo: koo.health_check_interval_s)
    ai_local_enabled = alone(
        True,
        "whether the built-in service `local` exists; if false, it is not configured and no model is loaded",
        "a machine without keys can answer queries too",
        YES_OR_NO,
    )
    anthropic_api_key = _key_of("claude")
    openai_api_key = _key_of("openai")
    gemini_api_key = _key_of("gemini")
    perplexity_api_key = _key_of("perplexity")

    # ── network ──
    https_proxy = secret(variable(lambda koo: koo.network.https_proxy, form=PROXY))
    http_proxy = secret(variable(lambda koo: koo.network.http_proxy, form=PROXY))
    all_proxy = secret(variable(lambda koo: koo.network.all_proxy, form=PROXY))
    no_proxy = variable(lambda koo: koo.network.no_proxy, form=HOSTS)
    ai_idle_connection_timeout = variable(lambda koo: koo.network.idle_connection_s)
    ssl_cert_file = variable(lambda koo: koo.network.cert_file, form=CERTIFICATE_FILE)
    ssl_cert_dir = variable(lambda koo: koo.network.cert_dir, form=CERTIFICATE_FOLDERS)

    # ── koo itself ──
    koo_state_url = secret(variable(lambda koo: koo.state_url, form=STATE_URL))
    koo_ledger_days = variable(lambda koo: koo.ledger_days)
    koo_version_label = variable(lambda koo: koo.version_label, form=LABEL)
    koo_environment = variable(lambda koo: koo.environment, form=LABEL)
    koo_host = variable(lambda koo: koo.host, form=HOST)
    koo_port = variable(lambda koo: koo.port)
    koo_url = variable(lambda koo: koo.url, form=WEB_URL)
    koo_shutdown_delay = variable(lambda koo: koo.shutdown_delay_s)
    koo_token = secret(variable(lambda koo: koo.token, form=KEY))
    koo_token_2 = secret(variable(lambda koo: koo.token_2, form=KEY))
    koo_read_token = secret(variable(lambda koo: koo.read_token, form=KEY))
    koo_read_token_2 = secret(variable(lambda koo: koo.read_token_2, form=KEY))
    koo_trusted_proxies = variable(lambda koo: koo.trusted_proxies, form=NETWORKS)
    koo_log_format = variable(lambda koo: koo.log.format)
    koo_log_level = variable(lambda koo: koo.log.level)
    koo_log_requests = variable(lambda koo: koo.log.requests)

    # ── alert notifications ──
    koo_alert_webhook = secret(variable(lambda koo: koo.alerts.webhook, form=WEBHOOK))
    koo_alert_webhook_secret = secret(variable(lambda koo: koo.alerts.webhook_secret, form=SIGNING_SECRET))
    koo_alert_slack = secret(variable(lambda koo: koo.alerts.slack, form=WEBHOOK))
    koo_alert_email = variable(lambda koo: koo.alerts.email, form=ADDRESSES)
    koo_alert_email_from = variable(lambda koo: koo.alerts.sender, form=ADDRESS)
    koo_smtp_url = secret(variable(lambda koo: koo.alerts.smtp_url, form=SMTP_URL))
    koo_alert_severity = variable(lambda koo: koo.alerts.severity)
    koo_alert_reminder_interval = variable(lambda koo: koo.alerts.reminder_every_s)
    koo_public_url = variable(lambda koo: koo.alerts.public_url, form=WEB_URL)
