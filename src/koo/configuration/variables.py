"""Every variable, declared: its type, its bounds, its default, and the words that are said about it.

No behaviour but the check of one value at a time; how they are read, what they must be together and what becomes of
them is `koo.settings`.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationInfo
from pydantic import field_validator as validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from koo.configuration.fields import ALLOWED_SECRET, check_secret, tidy, variable, variable_of
from koo.configuration.sources import SERVICE_PREFIX
from koo.configuration.urls import (
    ALLOWED_DATABASES,
    ALLOWED_HOSTS,
    ALLOWED_WEB,
    check_host,
    check_web_url,
    effective_database_url,
    effective_state_url,
    url_of,
)
from koo.options import (
    BreakerOptions,
    DatabaseOptions,
    LimitOptions,
    PlatformOptions,
    RetryOptions,
    ServiceKind,
    ServiceOptions,
)

BUILT_IN: dict[str, tuple[ServiceKind, str]] = {
    "claude": ("anthropic", "anthropic_api_key"),
    "openai": ("openai", "openai_api_key"),
    "gemini": ("gemini", "gemini_api_key"),
    "perplexity": ("perplexity", "perplexity_api_key"),
    "local": ("local", ""),
}
"""The services that need no declaration: what they speak, and the attribute that holds their key."""

_DATABASE = DatabaseOptions()
_LIMITS = ServiceOptions(name="", kind="openai").limits


class ServiceSettings(BaseModel):
    """`AI_SERVICES__<NAME>__…`: what differs for one service, or makes a new one; None is as for all services."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["openai", "anthropic", "gemini"] | None = variable(
        None,
        "format that a declared server speaks",
        "most servers speak OpenAI's",
        default="openai",
        allowed="openai, anthropic or gemini, for a declared service only",
    )
    base_url: str | None = variable(
        None,
        "address of the server, with its version path",
        "the vendor's own address",
        allowed=ALLOWED_WEB,
    )
    api_key: SecretStr | None = variable(
        None,
        "key; wins over the vendor's own variable",
        "a server of one's own often needs none",
        allowed=ALLOWED_SECRET,
    )
    model: str | None = variable(
        None,
        "model of a query that names none; for `local` a GGUF file",
        "the vendor's current mid-priced general model",
        default="see the table of services",
        allowed="the name of a model, for `local` the path of a file that exists",
    )
    daily_budget: Decimal | None = variable_of(
        ServiceOptions,
        "daily_budget_usd",
        None,
        may_be_none=True,
        default="as `AI_DEFAULT_DAILY_BUDGET`",
        meaning="most money of a UTC day",
    )
    input_price: Decimal | None = variable_of(ServiceOptions, "input_price", default="from the price table")
    output_price: Decimal | None = variable_of(ServiceOptions, "output_price", default="from the price table")
    requests_per_minute: int | None = variable_of(
        LimitOptions,
        "per_minute",
        may_be_none=True,
        default="as `AI_DEFAULT_REQUESTS_PER_MINUTE`",
        why="one rule for all is easily kept in mind",
    )
    requests_per_hour: int | None = variable_of(
        LimitOptions,
        "per_hour",
        may_be_none=True,
        default="as `AI_DEFAULT_REQUESTS_PER_HOUR`",
        why="one rule for all is easily kept in mind",
    )
    requests_per_day: int | None = variable_of(
        LimitOptions,
        "per_day",
        may_be_none=True,
        default="as `AI_DEFAULT_REQUESTS_PER_DAY`",
        why="one rule for all is easily kept in mind",
    )
    timeout: float | None = variable_of(ServiceOptions, "timeout_s", None, default="as `AI_QUERY_TIMEOUT`")
    attempt_timeout: float | None = variable_of(
        ServiceOptions, "attempt_timeout_s", None, default="as `AI_ATTEMPT_TIMEOUT`"
    )
    first_token_timeout: float | None = variable_of(
        ServiceOptions, "first_token_timeout_s", None, default="as `AI_FIRST_TOKEN_TIMEOUT`"
    )
    stall_timeout: float | None = variable_of(
        ServiceOptions, "stall_timeout_s", None, default="as `AI_STALL_TIMEOUT`"
    )
    slow_call_seconds: float | None = variable_of(
        ServiceOptions, "slow_s", None, default="half of the attempt's timeout"
    )
    max_tokens: int | None = variable_of(
        ServiceOptions, "max_tokens", None, default="as `AI_DEFAULT_MAX_TOKENS`"
    )

    _tidied = validator("*", mode="before")(classmethod(tidy))
    _checked_key = validator("api_key")(check_secret)

    @validator("base_url")
    @classmethod
    def _check_base_url(cls, value: str | None) -> str | None:
        return None if value is None else check_web_url(value)

    @validator("model")
    @classmethod
    def _check_model(cls, value: str | None) -> str | None:
        if value is not None and (len(value) > 4096 or not value.isprintable()):
            raise ValueError
        return value


def variable_of_service(service: str, name: str) -> str:
    """("claude", "daily_budget") → `AI_SERVICES__CLAUDE__DAILY_BUDGET`."""
    return f"{SERVICE_PREFIX}{service}__{name}".upper()


def _key_of(service: str) -> Any:
    return variable(
        None, f"key of `{service}`", "without it the service is not configured", allowed=ALLOWED_SECRET
    )


def _token_of(whom: str) -> Any:
    return variable(
        None,
        f"token of those who may {whom}",
        "without one, only this machine may ask",
        allowed=ALLOWED_SECRET,
    )


class Variables(BaseSettings):
    """What can be set, one attribute a variable: `DATABASE_POOL_SIZE` is `database_pool_size`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    koo_home: Path = variable(
        Path(),
        "folder where all relative paths start, and whose `.env` is read",
        "a project keeps its data beside its settings, whatever folder it is started from",
        default="the nearest folder with a `.env`, from the working directory upwards; else the working directory",
        allowed="a folder that exists; set in the environment, not in a `.env`",
    )

    # ── the database that koo guards ──
    database_url: SecretStr = variable(
        SecretStr(_DATABASE.url),
        "the database that koo guards",
        "works without a server",
        allowed=ALLOWED_DATABASES,
    )
    database_pool_size: int = variable_of(DatabaseOptions, "pool_size")
    database_max_overflow: int = variable_of(DatabaseOptions, "max_overflow")
    database_pool_timeout: float = variable_of(DatabaseOptions, "pool_timeout_s")
    database_pool_recycle: float = variable_of(DatabaseOptions, "pool_recycle_s")
    database_scope_timeout: float = variable_of(DatabaseOptions, "scope_timeout_s")
    db_circuit_breaker_failure_threshold: int = variable_of(BreakerOptions, "failure_threshold")
    db_circuit_breaker_recovery_timeout: float = variable_of(BreakerOptions, "recovery_s")
    db_circuit_breaker_success_threshold: int = variable_of(BreakerOptions, "success_threshold")
    db_max_retries: int = variable(
        _DATABASE.retry.attempts_max - 1,
        "repeats after the first run; 0 repeats nothing",
        "most failures that pass have passed by then",
        option="RetryOptions.attempts_max",
        at_least=0,
        at_most=99,
    )
    db_retry_base_delay: float = variable_of(
        RetryOptions,
        "base_s",
        _DATABASE.retry.base_s,
        why="pauses of at most 0.2, 0.4 and 0.8 s: together long enough for the restart of a small server, and "
        "hardly noticed by a person who waits",
    )
    db_retry_max_delay: float = variable_of(RetryOptions, "cap_s")
    db_retry_backoff_multiplier: float = variable_of(RetryOptions, "multiplier")
    db_slow_call_seconds: float = variable_of(DatabaseOptions, "slow_call_s")
    db_exactly_once: Literal["off", "marker"] = variable(
        _DATABASE.exactly_once,
        "`marker` writes a row with each transaction, which tells after a connection was lost during COMMIT whether it "
        "happened; this version knows `off` only, and refuses to use the database with the other",
        "koo puts no table into your database unless told to",
        allowed="off or marker",
    )
    db_health_check_interval: float = variable_of(DatabaseOptions, "probe_interval_s")
    health_check_timeout: float = variable_of(
        PlatformOptions,
        "health_check_timeout_s",
        meaning="longest time of a health check, of database and AI services",
    )

    # ── AI services ──
    ai_circuit_breaker_failure_threshold: int = variable_of(BreakerOptions, "failure_threshold")
    ai_circuit_breaker_recovery_timeout: float = variable_of(BreakerOptions, "recovery_s")
    ai_circuit_breaker_success_threshold: int = variable_of(BreakerOptions, "success_threshold")
    ai_max_retries: int = variable(
        RetryOptions().attempts_max - 1,
        "repeats after the first attempt; 0 repeats nothing",
        "more would only add to an overload",
        option="RetryOptions.attempts_max",
        at_least=0,
        at_most=99,
    )
    ai_retry_base_delay: float = variable_of(RetryOptions, "base_s")
    ai_retry_max_delay: float = variable_of(RetryOptions, "cap_s")
    ai_retry_backoff_multiplier: float = variable_of(RetryOptions, "multiplier")
    ai_query_timeout: float = variable_of(ServiceOptions, "timeout_s")
    ai_attempt_timeout: float = variable_of(ServiceOptions, "attempt_timeout_s")
    ai_first_token_timeout: float = variable_of(ServiceOptions, "first_token_timeout_s")
    ai_stall_timeout: float = variable_of(ServiceOptions, "stall_timeout_s")
    ai_default_requests_per_minute: int | None = variable_of(
        LimitOptions, "per_minute", _LIMITS.per_minute, may_be_none=True, why="below most vendors' first tier"
    )
    ai_default_requests_per_hour: int | None = variable_of(
        LimitOptions, "per_hour", _LIMITS.per_hour, may_be_none=True, why="a busy hour, not a runaway loop"
    )
    ai_default_requests_per_day: int | None = variable_of(
        LimitOptions, "per_day", _LIMITS.per_day, may_be_none=True, why="ten busy hours"
    )
    ai_default_daily_budget: Decimal | None = variable_of(
        ServiceOptions, "daily_budget_usd", may_be_none=True, meaning="most money of a UTC day"
    )
    ai_default_max_tokens: int = variable_of(ServiceOptions, "max_tokens")
    ai_health_check_interval: float = variable_of(PlatformOptions, "health_check_interval_s")
    ai_local_enabled: bool = variable(
        True,
        "whether the built-in service `local` is there; without it, it is not configured and no model is loaded",
        "a machine without keys can answer too",
        allowed="true or false",
    )
    anthropic_api_key: SecretStr | None = _key_of("claude")
    openai_api_key: SecretStr | None = _key_of("openai")
    gemini_api_key: SecretStr | None = _key_of("gemini")
    perplexity_api_key: SecretStr | None = _key_of("perplexity")
    ai_services: dict[str, ServiceSettings] = variable(
        {}, "what differs for one service, and services of your own", "the built-in services need nothing"
    )

    # ── koo itself ──
    koo_state_url: SecretStr = variable(
        SecretStr(PlatformOptions().state_url),
        "where koo keeps its own state: money, limits, events",
        "a guard must not depend on the database that it guards",
        allowed=ALLOWED_DATABASES,
    )
    koo_host: str = variable(
        PlatformOptions().host,
        "address that the server listens on; one that others can reach needs `KOO_TOKEN`",
        "nobody else can reach it",
        allowed=ALLOWED_HOSTS,
    )
    koo_port: int = variable_of(PlatformOptions, "port")
    koo_url: str = variable(
        "",
        "where the command line finds the running server",
        "follows `KOO_HOST` and `KOO_PORT`",
        default=PlatformOptions().url,
        allowed=ALLOWED_WEB,
    )
    koo_token: SecretStr | None = _token_of("do everything")
    koo_read_token: SecretStr | None = _token_of("only look")

    _tidied = validator("*", mode="before")(classmethod(tidy))
    _checked_keys = validator(
        "anthropic_api_key",
        "openai_api_key",
        "gemini_api_key",
        "perplexity_api_key",
        "koo_token",
        "koo_read_token",
    )(check_secret)

    @validator("database_url")
    @classmethod
    def _check_database_url(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        return SecretStr(effective_database_url(value.get_secret_value(), info.data["koo_home"]))

    @validator("koo_state_url")
    @classmethod
    def _check_state_url(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        return SecretStr(effective_state_url(value.get_secret_value(), info.data["koo_home"]))

    @validator("koo_host")
    @classmethod
    def _check_host(cls, value: str) -> str:
        return check_host(value)

    @validator("koo_url")
    @classmethod
    def _check_url(cls, value: str, info: ValidationInfo) -> str:
        if value:
            return check_web_url(value)
        # A host or port that was refused is told as itself, and leaves nothing to follow here.
        known = {"koo_host", "koo_port"} <= info.data.keys()
        return url_of(info.data["koo_host"], info.data["koo_port"]) if known else value
