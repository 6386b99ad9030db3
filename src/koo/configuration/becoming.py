"""What becomes of the variables: the frozen options that the rest of koo sees."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from koo.ai.models import DEFAULT_MODELS
from koo.configuration.fields import about
from koo.configuration.variables import BUILT_IN, ServiceSettings, Variables
from koo.errors import ConfigurationError
from koo.options import (
    BreakerOptions,
    DatabaseOptions,
    LimitOptions,
    PlatformOptions,
    RetryOptions,
    ServiceKind,
    ServiceOptions,
)

PACKAGED_MODEL = "SmolLM2-135M-Instruct"
FREE = Decimal(0)


def platform_options(settings: Variables) -> PlatformOptions:
    """Everything that one process of koo needs to know. Raises `ConfigurationError`, in terms of the variables."""
    try:
        return _platform_options(settings)
    except ConfigurationError as error:
        raise in_terms_of_variables(error) from None


def in_terms_of_variables(error: ConfigurationError) -> ConfigurationError:
    """An option's refusal, for people who know the variable that it came from."""
    option = re.match(r"\w+Options\.\w+", error.reason)
    names = [
        name.upper()
        for name, one in Variables.model_fields.items()
        if option is not None and about(one).option == option[0]
    ]
    return ConfigurationError("", f"{' or '.join(names)}: {error.reason}" if names else error.reason)


def _platform_options(settings: Variables) -> PlatformOptions:
    declared = sorted(settings.ai_services.keys() - BUILT_IN.keys())
    return PlatformOptions(
        home=settings.koo_home,
        state_url=settings.koo_state_url.get_secret_value(),
        database=_database_options(settings),
        services=tuple(_service_options(settings, name) for name in (*BUILT_IN, *declared)),
        health_check_interval_s=settings.ai_health_check_interval,
        health_check_timeout_s=settings.health_check_timeout,
        local_model_path=local_model_path(settings),
        host=settings.koo_host,
        port=settings.koo_port,
        url=settings.koo_url,
        token=_open(settings.koo_token),
        read_token=_open(settings.koo_read_token),
    )


def _database_options(settings: Variables) -> DatabaseOptions:
    return DatabaseOptions(
        url=settings.database_url.get_secret_value(),
        pool_size=settings.database_pool_size,
        max_overflow=settings.database_max_overflow,
        pool_timeout_s=settings.database_pool_timeout,
        pool_recycle_s=settings.database_pool_recycle,
        scope_timeout_s=settings.database_scope_timeout,
        slow_call_s=settings.db_slow_call_seconds,
        probe_interval_s=settings.db_health_check_interval,
        probe_timeout_s=settings.health_check_timeout,
        exactly_once=settings.db_exactly_once,
        breaker=BreakerOptions(
            failure_threshold=settings.db_circuit_breaker_failure_threshold,
            success_threshold=settings.db_circuit_breaker_success_threshold,
            recovery_s=settings.db_circuit_breaker_recovery_timeout,
        ),
        retry=RetryOptions(
            attempts_max=settings.db_max_retries + 1,
            base_s=settings.db_retry_base_delay,
            cap_s=settings.db_retry_max_delay,
            multiplier=settings.db_retry_backoff_multiplier,
        ),
    )


def _service_options(settings: Variables, name: str) -> ServiceOptions:
    own = settings.ai_services.get(name, ServiceSettings())
    kind, key = _kind_and_key(settings, name, own)
    attempt_timeout_s = own.attempt_timeout or settings.ai_attempt_timeout
    return ServiceOptions(
        name=name,
        kind=kind,
        model=_model(settings, kind, own),
        base_url=own.base_url,
        api_key=key,
        declared=name not in BUILT_IN,
        disabled_by="AI_LOCAL_ENABLED=false" if kind == "local" and not settings.ai_local_enabled else "",
        timeout_s=own.timeout or settings.ai_query_timeout,
        attempt_timeout_s=attempt_timeout_s,
        first_token_timeout_s=own.first_token_timeout or settings.ai_first_token_timeout,
        stall_timeout_s=own.stall_timeout or settings.ai_stall_timeout,
        slow_s=own.slow_call_seconds or attempt_timeout_s / 2,
        max_tokens=own.max_tokens or settings.ai_default_max_tokens,
        **_money(settings, own, free=kind == "local" or (name not in BUILT_IN and key is None)),
        breaker=BreakerOptions(
            failure_threshold=settings.ai_circuit_breaker_failure_threshold,
            success_threshold=settings.ai_circuit_breaker_success_threshold,
            recovery_s=settings.ai_circuit_breaker_recovery_timeout,
        ),
        retry=RetryOptions(
            attempts_max=settings.ai_max_retries + 1,
            base_s=settings.ai_retry_base_delay,
            cap_s=settings.ai_retry_max_delay,
            multiplier=settings.ai_retry_backoff_multiplier,
        ),
        limits=LimitOptions(
            per_minute=_own_or_default(settings, own, "requests_per_minute"),
            per_hour=_own_or_default(settings, own, "requests_per_hour"),
            per_day=_own_or_default(settings, own, "requests_per_day"),
        ),
    )


def _money(settings: Variables, own: ServiceSettings, *, free: bool) -> dict[str, Any]:
    """Prices and budget. What costs nothing has no budget: its queries need not wait for a ledger."""
    budget_set = "daily_budget" in own.model_fields_set
    free = free and own.input_price is None
    return {
        "input_price": FREE if free else own.input_price,
        "output_price": FREE if free else own.output_price,
        "daily_budget_usd": None
        if free and not budget_set
        else _own_or_default(settings, own, "daily_budget"),
        "budget_is_explicit": budget_set or "ai_default_daily_budget" in settings.model_fields_set,
    }


def _own_or_default(settings: Variables, own: ServiceSettings, name: str) -> Any:
    """A service's limit. None is a value there (no limit), so what counts is whether somebody set it."""
    return getattr(own, name) if name in own.model_fields_set else getattr(settings, f"ai_default_{name}")


def _kind_and_key(settings: Variables, name: str, own: ServiceSettings) -> tuple[ServiceKind, str | None]:
    key = _open(own.api_key)
    if name in BUILT_IN:
        kind, variable = BUILT_IN[name]
        return kind, key or (_open(getattr(settings, variable)) if variable else None)
    if own.kind in {None, "openai"}:
        # A server of somebody's own speaks chat completions; OpenAI's own has the newer Responses.
        return ("openai_compatible" if own.base_url else "openai"), key
    return ("anthropic" if own.kind == "anthropic" else "gemini"), key


def _model(settings: Variables, kind: ServiceKind, own: ServiceSettings) -> str:
    if kind == "local":
        path = local_model_path(settings)
        return path.stem if path else PACKAGED_MODEL
    vendor = next((name for name, (its_kind, _) in BUILT_IN.items() if its_kind == kind), "")
    return own.model or DEFAULT_MODELS.get(vendor, "")


def local_model_path(settings: Variables) -> Path | None:
    """The file that `AI_SERVICES__LOCAL__MODEL` names, or None: the packaged one."""
    own = settings.ai_services.get("local")
    return (settings.koo_home / Path(own.model).expanduser()).resolve() if own and own.model else None


def _open(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret is not None else None
