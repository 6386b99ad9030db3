"""The settings: variables, defaults, and messages about invalid values."""

from __future__ import annotations

import base64
import json
import logging
import re
import traceback
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import certifi
import pytest
from rich.console import Console

from docs.generate_configuration import pages, variables_by_section
from koo.ai.models import not_configured
from koo.budget_options import BudgetOptions
from koo.configuration.sources import read_env_file
from koo.configuration.variables import BUILT_IN, BudgetSettings, ServiceSettings
from koo.errors import ConfigurationError
from koo.hidden import Secret
from koo.options import PlatformOptions, ServiceOptions
from koo.settings import SecretStr, Settings

ROOT = Path(__file__).parents[1]
SECRET = "s3cret-9f8e7d"
LONG, OTHER = "l" * 16, "o" * 16
"""Tokens that are long enough where others can try them."""
SIGNING = "whsec_" + base64.b64encode(SECRET.encode() * 2).decode()
HOOK = "https://hooks.example/T0/B0?key=x"
SMTP = "smtp://koo%40example.com:p%2Fw@mail.example"
BESIDE = {
    "KOO_TOKEN_2": {"KOO_TOKEN": "t"},
    "KOO_READ_TOKEN": {"KOO_TOKEN": "t"},
    "KOO_READ_TOKEN_2": {"KOO_TOKEN": "t", "KOO_READ_TOKEN": "r"},
    "KOO_ALERT_WEBHOOK_SECRET": {"KOO_ALERT_WEBHOOK": HOOK},
    "KOO_ALERT_EMAIL": {"KOO_SMTP_URL": SMTP},
    "KOO_SMTP_URL": {"KOO_ALERT_EMAIL": "ops@example.com"},
}
"""What has to be set together with a variable."""
PLACES = {name: f"services.{index}" for index, name in enumerate(BUILT_IN)}
KNOWN = ", ".join(sorted(BUILT_IN))
KEYS = {variable: PLACES[name] for name, (_, variable) in BUILT_IN.items() if variable}
"""The place of each key's service in `PlatformOptions`."""

# The promised defaults, except paths.
DEFAULTS: dict[str, Any] = {
    "DATABASE_POOL_SIZE": 10,
    "DATABASE_MAX_OVERFLOW": 20,
    "DATABASE_POOL_TIMEOUT": 5.0,
    "DATABASE_POOL_RECYCLE": 3600.0,
    "DATABASE_PREPARED_STATEMENTS": True,
    "DATABASE_SCOPE_TIMEOUT": 60.0,
    "DATABASE_HELD_WARNING": 20.0,
    "DATABASE_CONNECT_CONCURRENCY": 4,
    "DATABASE_KEEPALIVE": 30.0,
    "DATABASE_TCP_USER_TIMEOUT": 30.0,
    "DATABASE_SERVER_TIMEOUTS": True,
    "DB_CIRCUIT_BREAKER_FAILURE_THRESHOLD": 5,
    "DB_CIRCUIT_BREAKER_RECOVERY_TIMEOUT": 60.0,
    "DB_CIRCUIT_BREAKER_SUCCESS_THRESHOLD": 2,
    "DB_MAX_RETRIES": 3,
    "DB_RETRY_BASE_DELAY": 0.2,
    "DB_RETRY_MAX_DELAY": 30.0,
    "DB_RETRY_BACKOFF_MULTIPLIER": 2.0,
    "DB_SLOW_CALL_SECONDS": 1.0,
    "DB_EXACTLY_ONCE": "off",
    "DB_RESOLVE_TIMEOUT": 10.0,
    "DB_MARKER_RETENTION": 86_400.0,
    "DB_HEALTH_CHECK_INTERVAL": 30.0,
    "HEALTH_CHECK_TIMEOUT": 5.0,
    "AI_CIRCUIT_BREAKER_FAILURE_THRESHOLD": 5,
    "AI_CIRCUIT_BREAKER_RECOVERY_TIMEOUT": 60.0,
    "AI_CIRCUIT_BREAKER_SUCCESS_THRESHOLD": 2,
    "AI_MAX_RETRIES": 3,
    "AI_RETRY_BASE_DELAY": 1.0,
    "AI_RETRY_MAX_DELAY": 30.0,
    "AI_RETRY_BACKOFF_MULTIPLIER": 2.0,
    "AI_QUERY_TIMEOUT": 120.0,
    "AI_ATTEMPT_TIMEOUT": 60.0,
    "AI_FIRST_TOKEN_TIMEOUT": 30.0,
    "AI_STALL_TIMEOUT": 30.0,
    "AI_DEFAULT_REQUESTS_PER_MINUTE": 60,
    "AI_DEFAULT_REQUESTS_PER_HOUR": 1000,
    "AI_DEFAULT_REQUESTS_PER_DAY": 10_000,
    "AI_DEFAULT_DAILY_BUDGET": Decimal("10.0"),
    "AI_DEFAULT_MAX_TOKENS": 4096,
    "AI_HEALTH_CHECK_INTERVAL": 60.0,
    "AI_IDLE_CONNECTION_TIMEOUT": 4.0,
    "AI_LOCAL_ENABLED": True,
    **dict.fromkeys(KEYS),
    "HTTPS_PROXY": None,
    "HTTP_PROXY": None,
    "ALL_PROXY": None,
    "NO_PROXY": "",
    "SSL_CERT_FILE": None,
    "SSL_CERT_DIR": None,
    "KOO_LEDGER_DAYS": 400,
    "KOO_VERSION_LABEL": "",
    "KOO_ENVIRONMENT": "",
    "KOO_HOST": "127.0.0.1",
    "KOO_PORT": 8000,
    "KOO_URL": "http://127.0.0.1:8000",
    "KOO_SHUTDOWN_DELAY": 5.0,
    "KOO_TOKEN": None,
    "KOO_TOKEN_2": None,
    "KOO_READ_TOKEN": None,
    "KOO_READ_TOKEN_2": None,
    "KOO_TRUSTED_PROXIES": (),
    "KOO_LOG_FORMAT": "auto",
    "KOO_LOG_LEVEL": "info",
    "KOO_LOG_REQUESTS": "failed",
    "KOO_ALERT_WEBHOOK": None,
    "KOO_ALERT_WEBHOOK_SECRET": None,
    "KOO_ALERT_SLACK": None,
    "KOO_ALERT_EMAIL": (),
    "KOO_ALERT_EMAIL_FROM": None,
    "KOO_SMTP_URL": None,
    "KOO_ALERT_SEVERITY": "warning",
    "KOO_ALERT_REMINDER_INTERVAL": 14_400.0,
    "KOO_PUBLIC_URL": None,
}
PATHS = {"KOO_HOME", "DATABASE_URL", "KOO_STATE_URL"}


@pytest.fixture(autouse=True)
def _empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the developer's own settings: the folder is empty, and `read` passes an environment."""
    monkeypatch.chdir(tmp_path)


def read(environ: dict[str, str] | None = None, /, **arguments: Any) -> Settings:
    return Settings(environ=environ or {}, **arguments)


def refused(environ: dict[str, str], **arguments: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read(environ, **arguments)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def service(settings: Settings, name: str) -> ServiceOptions:
    return next(one for one in settings.platform_options().services if one.name == name)


# ── defaults ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("variable", "default"), DEFAULTS.items())
def test_each_variable_has_its_promised_default(variable: str, default: Any) -> None:
    value = getattr(read(), variable.lower())
    assert value == default and type(value) is type(default)


def test_each_variable_is_promised() -> None:
    assert {row.variable for row in read().explain()} == DEFAULTS.keys() | PATHS


def test_the_default_database_files_are_below_the_home(tmp_path: Path) -> None:
    settings = read()
    assert settings.koo_home == tmp_path
    assert settings.database_url.get_secret_value() == f"sqlite:///{tmp_path}/data/koo.db"
    assert settings.koo_state_url.get_secret_value() == f"sqlite:///{tmp_path}/data/koo-state.db"


def test_with_nothing_set_the_options_have_their_own_defaults(tmp_path: Path) -> None:
    """There is one source of defaults: a program that uses the options directly gets the same values."""
    options, default = read().platform_options(), PlatformOptions()
    names = ("database", "host", "port", "url", "health_check_interval_s", "health_check_timeout_s")
    for name in names:
        ours = getattr(options, name)
        assert repr(ours) == repr(getattr(default, name))
    claude = service(read(), "claude")
    plain = ServiceOptions(name="claude", kind="anthropic", model=claude.model)
    assert claude == plain


def test_each_limit_of_a_variable_is_accepted_by_its_option() -> None:
    """Otherwise a value could pass here and be refused later, with a message about an option that its author never
    set."""
    tried = 0
    for row in read().explain():
        for bound in re.findall(r"(?:at least|at most|,) (\d+)|to (\d+)", row.allowed):
            read({row.variable: "".join(bound)}).platform_options()
            tried += 1
    assert tried > 25


# ── every variable arrives ────────────────────────────────────────────────────────────────────────────────────────

ARRIVALS: list[tuple[str, str, str, Any]] = [
    ("DATABASE_URL", "postgres://u:p@h/d", "database.url", "postgresql://u:p@h/d"),
    ("DATABASE_POOL_SIZE", "7", "database.pool_size", 7),
    ("DATABASE_MAX_OVERFLOW", "0", "database.max_overflow", 0),
    ("DATABASE_POOL_TIMEOUT", "1.5", "database.pool_timeout_s", 1.5),
    ("DATABASE_POOL_RECYCLE", "100", "database.pool_recycle_s", 100.0),
    ("DATABASE_PREPARED_STATEMENTS", "false", "database.prepared_statements", False),
    ("DATABASE_SCOPE_TIMEOUT", "9", "database.scope_timeout_s", 9.0),
    ("DATABASE_HELD_WARNING", "2.5", "database.held_warning_s", 2.5),
    ("DATABASE_CONNECT_CONCURRENCY", "2", "database.connect_concurrency", 2),
    ("DATABASE_KEEPALIVE", "0", "database.keepalive_s", 0.0),
    ("DATABASE_TCP_USER_TIMEOUT", "5", "database.tcp_user_timeout_s", 5.0),
    ("DATABASE_SERVER_TIMEOUTS", "off", "database.server_timeouts", False),
    ("DB_CIRCUIT_BREAKER_FAILURE_THRESHOLD", "6", "database.breaker.failure_threshold", 6),
    ("DB_CIRCUIT_BREAKER_RECOVERY_TIMEOUT", "61", "database.breaker.recovery_s", 61.0),
    ("DB_CIRCUIT_BREAKER_SUCCESS_THRESHOLD", "3", "database.breaker.success_threshold", 3),
    ("DB_MAX_RETRIES", "0", "database.retry.attempts_max", 1),
    ("DB_RETRY_BASE_DELAY", "0.5", "database.retry.base_s", 0.5),
    ("DB_RETRY_MAX_DELAY", "31", "database.retry.cap_s", 31.0),
    ("DB_RETRY_BACKOFF_MULTIPLIER", "3", "database.retry.multiplier", 3.0),
    ("DB_SLOW_CALL_SECONDS", "0.3", "database.slow_call_s", 0.3),
    ("DB_EXACTLY_ONCE", "Marker", "database.exactly_once", "marker"),
    ("DB_RESOLVE_TIMEOUT", "20", "database.resolve_timeout_s", 20.0),
    ("DB_MARKER_RETENTION", "604800", "database.marker_retention_s", 604_800.0),
    ("DB_HEALTH_CHECK_INTERVAL", "11", "database.probe_interval_s", 11.0),
    ("HEALTH_CHECK_TIMEOUT", "4", "database.probe_timeout_s", 4.0),
    ("HEALTH_CHECK_TIMEOUT", "4", "health_check_timeout_s", 4.0),
    ("AI_HEALTH_CHECK_INTERVAL", "12", "health_check_interval_s", 12.0),
    ("AI_IDLE_CONNECTION_TIMEOUT", "9", "network.idle_connection_s", 9.0),
    ("AI_CIRCUIT_BREAKER_FAILURE_THRESHOLD", "8", "services.0.breaker.failure_threshold", 8),
    ("AI_CIRCUIT_BREAKER_RECOVERY_TIMEOUT", "62", "services.0.breaker.recovery_s", 62.0),
    ("AI_CIRCUIT_BREAKER_SUCCESS_THRESHOLD", "4", "services.0.breaker.success_threshold", 4),
    ("AI_MAX_RETRIES", "5", "services.0.retry.attempts_max", 6),
    ("AI_RETRY_BASE_DELAY", "2", "services.0.retry.base_s", 2.0),
    ("AI_RETRY_MAX_DELAY", "32", "services.0.retry.cap_s", 32.0),
    ("AI_RETRY_BACKOFF_MULTIPLIER", "1.5", "services.0.retry.multiplier", 1.5),
    ("AI_QUERY_TIMEOUT", "121", "services.0.timeout_s", 121.0),
    ("AI_ATTEMPT_TIMEOUT", "40", "services.0.attempt_timeout_s", 40.0),
    ("AI_ATTEMPT_TIMEOUT", "40", "services.0.slow_s", 20.0),
    ("AI_FIRST_TOKEN_TIMEOUT", "13", "services.0.first_token_timeout_s", 13.0),
    ("AI_STALL_TIMEOUT", "14", "services.0.stall_timeout_s", 14.0),
    ("AI_DEFAULT_REQUESTS_PER_MINUTE", "none", "services.0.limits.per_minute", None),
    ("AI_DEFAULT_REQUESTS_PER_HOUR", "0", "services.0.limits.per_hour", 0),
    ("AI_DEFAULT_REQUESTS_PER_DAY", "15", "services.0.limits.per_day", 15),
    ("AI_DEFAULT_DAILY_BUDGET", "0.30", "services.0.daily_budget_usd", Decimal("0.30")),
    ("AI_DEFAULT_DAILY_BUDGET", "None", "services.0.daily_budget_usd", None),
    ("AI_DEFAULT_MAX_TOKENS", "16", "services.0.max_tokens", 16),
    ("AI_LOCAL_ENABLED", "False", f"{PLACES['local']}.disabled_by", "AI_LOCAL_ENABLED=false"),
    ("AI_LOCAL_ENABLED", "on", f"{PLACES['local']}.disabled_by", ""),
    *((variable, f" k{place}\n", f"{place}.api_key", f"k{place}") for variable, place in KEYS.items()),
    ("HTTPS_PROXY", "http://u:p@proxy:1", "network.https_proxy", "http://u:p@proxy:1"),
    ("HTTP_PROXY", "proxy:1", "network.http_proxy", "proxy:1"),
    ("ALL_PROXY", "socks5://proxy:1", "network.all_proxy", "socks5://proxy:1"),
    ("NO_PROXY", ".a, b", "network.no_proxy", ".a, b"),
    ("SSL_CERT_FILE", certifi.where(), "network.cert_file", Path(certifi.where()).resolve()),
    ("SSL_CERT_DIR", "/", "network.cert_dir", "/"),
    ("KOO_STATE_URL", "postgresql+asyncpg://h/d", "state_url", "postgresql+asyncpg://h/d"),
    ("KOO_LEDGER_DAYS", "100", "ledger_days", 100),
    ("KOO_VERSION_LABEL", "blue", "version_label", "blue"),
    ("KOO_ENVIRONMENT", "staging", "environment", "staging"),
    ("KOO_HOST", "::1", "host", "::1"),
    ("KOO_PORT", "9000", "port", 9000),
    ("KOO_PORT", "9000", "url", "http://127.0.0.1:9000"),
    ("KOO_HOST", "::1", "url", "http://[::1]:8000"),
    ("KOO_URL", "https://koo.test/x/", "url", "https://koo.test/x"),
    ("KOO_TOKEN", "t", "token", "t"),
    ("KOO_SHUTDOWN_DELAY", "0", "shutdown_delay_s", 0.0),
    ("KOO_TOKEN_2", "t2", "token_2", "t2"),
    ("KOO_READ_TOKEN", "r", "read_token", "r"),
    ("KOO_READ_TOKEN_2", "r2", "read_token_2", "r2"),
    ("KOO_TRUSTED_PROXIES", "127.0.0.1, 10.1.0.0/16,", "trusted_proxies", ("127.0.0.1/32", "10.1.0.0/16")),
    ("KOO_LOG_FORMAT", "JSON", "log.format", "json"),
    ("KOO_LOG_LEVEL", "warning", "log.level", "warning"),
    ("KOO_LOG_REQUESTS", "all", "log.requests", "all"),
    ("KOO_ALERT_WEBHOOK", HOOK, "alerts.webhook", HOOK),
    ("KOO_ALERT_WEBHOOK_SECRET", SIGNING, "alerts.webhook_secret", SIGNING),
    ("KOO_ALERT_SLACK", HOOK, "alerts.slack", HOOK),
    ("KOO_ALERT_EMAIL", "a@x.example, b@y.example,", "alerts.email", ("a@x.example", "b@y.example")),
    ("KOO_ALERT_EMAIL_FROM", "koo@x.example", "alerts.sender", "koo@x.example"),
    ("KOO_SMTP_URL", SMTP, "alerts.smtp_url", SMTP),
    ("KOO_ALERT_SEVERITY", "Critical", "alerts.severity", "critical"),
    ("KOO_ALERT_REMINDER_INTERVAL", "0", "alerts.reminder_every_s", 0.0),
    ("KOO_PUBLIC_URL", "https://koo.example/", "alerts.public_url", "https://koo.example"),
]


@pytest.mark.parametrize(("variable", "text", "place", "expected"), ARRIVALS)
def test_each_variable_becomes_its_option(variable: str, text: str, place: str, expected: Any) -> None:
    value: Any = read({variable: text, **BESIDE.get(variable, {})}).platform_options()
    for step in place.split("."):
        value = value[int(step)] if step.isdigit() else getattr(value, step)
    kind = Secret if variable in SECRETS and isinstance(expected, str) else type(expected)
    assert value == expected and type(value) is kind


def test_the_table_of_variables_and_their_options_contains_every_variable() -> None:
    assert {row[0] for row in ARRIVALS} == DEFAULTS.keys() | {"DATABASE_URL", "KOO_STATE_URL"}


def test_arguments_take_precedence_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("DATABASE_POOL_SIZE=1\nDATABASE_MAX_OVERFLOW=1\nKOO_PORT=1\n")
    environ = {"DATABASE_POOL_SIZE": "2", "DATABASE_MAX_OVERFLOW": "2"}
    settings = read(environ, database_pool_size=3)
    assert (settings.database_pool_size, settings.database_max_overflow, settings.koo_port) == (3, 2, 1)
    sources = {row.variable: row.source for row in settings.explain()}
    assert sources["DATABASE_POOL_SIZE"] == "argument"
    assert sources["DATABASE_MAX_OVERFLOW"] == "environment"
    assert sources["KOO_PORT"] == ".env"
    assert sources["KOO_HOST"] == "default"


def test_an_empty_variable_counts_as_not_set_and_hides_the_files(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OPENAI_API_KEY=from-the-file\nKOO_PORT=\n")
    assert read().openai_api_key == SecretStr("from-the-file")
    assert read({"OPENAI_API_KEY": " "}).openai_api_key is None
    assert read().koo_port == 8000


def test_the_process_environment_and_working_directory_are_read_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KOO_PORT", "1234")
    monkeypatch.delenv("KOO_HOME", raising=False)
    settings = Settings()
    assert settings.koo_port == 1234 and settings.koo_home == tmp_path


# ── KOO_HOME ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_home_is_the_nearest_folder_upwards_with_an_env_file(tmp_path: Path) -> None:
    below = tmp_path / "a" / "b" / "c"
    below.mkdir(parents=True)
    (tmp_path / ".env").write_text("KOO_PORT=1\n")
    (tmp_path / "a" / "b" / ".env").write_text("KOO_PORT=2\n")
    (below / ".env").mkdir()  # a virtual environment named .env is not a settings file
    settings = Settings(environ={}, working_directory=below)
    assert settings.koo_home == tmp_path / "a" / "b" and settings.koo_port == 2
    assert settings.database_url.get_secret_value() == f"sqlite:///{tmp_path}/a/b/data/koo.db"


def test_home_can_be_given_and_may_be_relative_to_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / ".env").write_text("KOO_PORT=1\n")
    (tmp_path / "there" / ".env").write_text("KOO_PORT=2\n")
    for settings in (read({"KOO_HOME": "there"}), read(koo_home=tmp_path / "there")):
        assert settings.koo_home == tmp_path / "there" and settings.koo_port == 2


def test_a_home_that_is_not_a_folder_is_refused(tmp_path: Path) -> None:
    assert refused({"KOO_HOME": "/no/such"}) == 'KOO_HOME is "/no/such"; expected an existing folder'


def test_an_env_file_cannot_move_the_home_that_it_was_found_by(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("KOO_HOME=/somewhere\n")
    assert refused({}).startswith('KOO_HOME is "/somewhere" in ')
    (tmp_path / ".env").write_text(f"KOO_HOME={tmp_path}\nKOO_PORT=1\n")
    assert read().koo_port == 1


def test_a_missing_working_directory_is_a_configuration_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "working directory no longer exists" in refused({})


# ── invalid values ────────────────────────────────────────────────────────────────────────────────────────────────

WRONG: list[tuple[str, str, str]] = [
    ("DATABASE_POOL_SIZE", "-1", 'is "-1"; expected a whole number, 1 to 10000'),
    ("DATABASE_POOL_SIZE", "0", "1 to 10000"),
    ("DATABASE_POOL_SIZE", "10001", "1 to 10000"),
    ("DATABASE_POOL_SIZE", "ten", 'is "ten"; expected a whole number'),
    ("DATABASE_POOL_SIZE", "5.5", "a whole number"),
    ("DATABASE_POOL_SIZE", "true", "a whole number"),
    ("DATABASE_POOL_SIZE", "none", "a whole number"),
    ("DATABASE_POOL_SIZE", "9" * 5000, "a whole number"),
    ("DATABASE_POOL_TIMEOUT", "0", "a number of seconds, above 0"),
    ("DATABASE_POOL_TIMEOUT", "nan", 'is "nan"; expected a number of seconds'),
    ("DATABASE_POOL_TIMEOUT", "inf", "a number of seconds"),
    ("DATABASE_POOL_TIMEOUT", "1e999", "a number of seconds"),
    ("DATABASE_POOL_TIMEOUT", "5s", "a number of seconds"),
    ("DATABASE_POOL_TIMEOUT", "yes", "a number of seconds"),
    ("DB_MAX_RETRIES", "100", "0 to 99"),
    ("DB_RETRY_BACKOFF_MULTIPLIER", "0.5", "a number, 1 to 100"),
    ("DB_EXACTLY_ONCE", "on", 'is "on"; expected off or marker'),
    ("AI_DEFAULT_DAILY_BUDGET", "-0.01", "an amount of USD, at least 0, or none for no limit"),
    ("AI_DEFAULT_DAILY_BUDGET", "NaN", "an amount of USD"),
    ("AI_DEFAULT_DAILY_BUDGET", "Infinity", "an amount of USD"),
    ("AI_DEFAULT_DAILY_BUDGET", "$10", "an amount of USD"),
    ("AI_DEFAULT_DAILY_BUDGET", "1e999", "an amount of USD"),
    ("AI_DEFAULT_MAX_TOKENS", "1" + "0" * 400, 'is "1000'),
    ("AI_DEFAULT_MAX_TOKENS", "٣", 'is "٣"; expected a whole number, at least 1'),
    ("AI_DEFAULT_REQUESTS_PER_DAY", "1.5", "a whole number, at least 0, or none for no limit"),
    ("AI_DEFAULT_MAX_TOKENS", "0", "at least 1"),
    ("KOO_PORT", "65536", "0 to 65535"),
    ("KOO_VERSION_LABEL", "b" * 65, "at most 64 characters"),
    ("KOO_HOST", "http://127.0.0.1", "without scheme and port"),
    ("KOO_HOST", "127.0.0.1:80", "without scheme and port"),
    ("KOO_HOST", "*", "without scheme and port"),
    ("KOO_HOST", "0.0.0.0", "without KOO_TOKEN, expected 127.0.0.1, ::1 or localhost"),
    ("KOO_HOST", "koo.example", "without KOO_TOKEN"),
    ("KOO_URL", "127.0.0.1:8000", "begins with http:// or https://"),
    ("KOO_URL", "ftp://x", "begins with http:// or https://"),
    ("KOO_URL", "http://", "begins with http:// or https://"),
    ("KOO_URL", "http://x:99999", "begins with http:// or https://"),
    ("DATABASE_URL", "mysql://h/d", 'is "mysql://…"; expected a URL that begins with one of sqlite://'),
    ("DATABASE_URL", "koo.db", 'is "…"; expected a URL'),
    ("DATABASE_URL", "postgresql+psycopg2://h/d", "postgresql+psycopg://"),
    ("DATABASE_URL", "sqlite://data/koo.db", "sqlite:/// and a path relative to KOO_HOME"),
    ("DATABASE_URL", "sqlite:///.", "this is a folder"),
    ("DATABASE_URL", "postgresql://u:p@h:port/d", "with a port from 1 to 65535"),
    ("DATABASE_URL", "postgresql://u:p@h:0/d", "with a port from 1 to 65535"),
    ("DATABASE_URL", "postgresql://u:pass/word@h/d", "/ as %2F"),
    ("KOO_STATE_URL", "mongodb://h", "begins with one of sqlite://"),
    ("KOO_ALERT_WEBHOOK", "hooks.example/x", "begins with http:// or https://, without user, password and #"),
    ("KOO_ALERT_WEBHOOK", "https://u:p@hooks.example/x", 'is "https://…"; expected a URL'),
    ("KOO_ALERT_WEBHOOK", "https://hooks.example/x y", "begins with http:// or https://"),
    ("KOO_ALERT_SLACK", "ftp://hooks.example", "begins with http:// or https://"),
    (
        "KOO_ALERT_WEBHOOK_SECRET",
        "secret",
        'is "…"; expected whsec_ and the base64 of 24 random bytes or more',
    ),
    ("KOO_ALERT_WEBHOOK_SECRET", "whsec_c2hvcnQ=", 'is "…"; expected whsec_ and the base64'),
    ("KOO_ALERT_EMAIL", "ops", "e-mail addresses without names"),
    ("KOO_ALERT_EMAIL", "Ops <ops@example.com>", "e-mail addresses without names"),
    ("KOO_ALERT_EMAIL", "ops@example.com\nBcc: all@example.com", "e-mail addresses without names"),
    ("KOO_ALERT_EMAIL_FROM", "a@b@c", "an e-mail address, such as"),
    ("KOO_SMTP_URL", "mail.example", "a URL such as smtp://user:password@mail.example:587"),
    ("KOO_SMTP_URL", "smtp://mail.example/inbox", "a URL such as smtp://"),
    (
        "KOO_SMTP_URL",
        "smtp://u:p@mail.example?starttls=no",
        "must have no user and password, because others could read them",
    ),
    ("KOO_SMTP_URL", "smtps://mail.example?starttls=no", "TLS from the first byte"),
    ("KOO_ALERT_SEVERITY", "loud", 'is "loud"; expected critical, warning or info'),
    ("KOO_PUBLIC_URL", "koo.example", "begins with http:// or https://"),
    ("AI_LOCAL_ENABLED", "maybe", 'is "maybe"; expected true or false'),
    ("ANTHROPIC_API_KEY", '"quoted"', 'is "…"; expected a value without quotes'),
    ("KOO_TOKEN", "two words", 'is "…"; expected ASCII text without quotes and spaces'),
    ("AI_SERVICES__CLAUDE__DAILY_BUDGET", "-1", "an amount of USD, at least 0, or none for no limit"),
    ("AI_SERVICES__CLAUDE__REQUESTS_PER_MINUTE", "many", "a whole number, at least 0"),
    ("AI_SERVICES__CLAUDE__TIMEOUT", "none", "a number of seconds, above 0"),
    ("AI_SERVICES__CLAUDE__BASE_URL", "localhost:1", "begins with http:// or https://"),
    ("AI_SERVICES__CLAUDE__API_KEY", "two words", 'is "…"'),
    (
        "AI_SERVICES__CLAUDE__KIND",
        "openai",
        'is "openai", but claude always uses anthropic; remove it',
    ),
    ("AI_SERVICES__X__KIND", "mistral", "openai, anthropic or gemini"),
    (
        "AI_SERVICES__CLAUDE__INPUT_PRICE",
        "3",
        'is "3", but AI_SERVICES__CLAUDE__OUTPUT_PRICE, which it requires, is not set',
    ),
    (
        "AI_SERVICES__CLAUDE__OUTPUT_PRICE",
        "3",
        'is "3", but AI_SERVICES__CLAUDE__INPUT_PRICE, which it requires, is not set',
    ),
    ("AI_SERVICES__LOCAL__KIND", "openai", "has no meaning for local"),
    (
        "AI_SERVICES__FOO__MODEL",
        "x",
        f"belongs to an unknown service; expected {', '.join(BUILT_IN)}, or a new",
    ),
    ("AI_SERVICES__LOCAL__API_KEY", "k", "has no meaning for local"),
    ("AI_SERVICES__LOCAL__BASE_URL", "http://x", "has no meaning for local"),
    (
        "AI_SERVICES__LOCAL__MODEL",
        "none.gguf",
        'is "none.gguf"; expected the path of an existing GGUF file',
    ),
    ("AI_SERVICES__CLAUDE__MODEL", "a\x07b", "expected the name of a model"),
]


@pytest.mark.parametrize(("variable", "text", "said"), WRONG, ids=lambda value: str(value)[:40])
def test_an_invalid_value_is_refused_in_one_sentence(variable: str, text: str, said: str) -> None:
    sentence = refused({variable: text})
    assert sentence.startswith(f"{variable} ") and said in sentence
    assert len(sentence) < 400


def test_a_boolean_is_not_a_number() -> None:
    assert refused({}, database_pool_size=True).startswith('DATABASE_POOL_SIZE is "True"; expected')


@pytest.mark.parametrize(
    ("name", "value"), [("openai_api_key", False), ("koo_host", 1), ("database_url", ["x"])]
)
def test_an_argument_of_another_type_is_refused(name: str, value: object) -> None:
    """Otherwise `False` would be sent to a vendor as a five-letter key."""
    assert f"{name.upper()} is " in refused({}, **{name: value})


def test_an_argument_may_be_several_values_in_a_tuple() -> None:
    settings = read(koo_alert_email=("a@x.example", "b@y.example"), koo_smtp_url=SMTP)
    assert settings.koo_alert_email == ("a@x.example", "b@y.example")
    assert "e-mail addresses" in refused({}, koo_alert_email=("a@x.example", "b"), koo_smtp_url=SMTP)


def test_an_argument_may_be_a_number_or_its_text_and_a_secret_may_be_wrapped() -> None:
    settings = read(database_pool_size="7", ai_default_daily_budget=2.5, openai_api_key=SecretStr("k"))
    assert settings.database_pool_size == 7 and settings.ai_default_daily_budget == Decimal("2.5")
    assert settings.openai_api_key == SecretStr("k")


def test_a_refusal_says_which_file_set_the_value(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("KOO_PORT=high\n")
    assert refused({}).endswith(f"(set in {tmp_path}/.env)")
    assert "set in" not in refused({"KOO_PORT": "high"})
    (tmp_path / ".env").write_text("KOO_HOST=0.0.0.0\n")
    assert refused({}).endswith(f"localhost (set in {tmp_path}/.env)")


def test_contradictory_values_are_refused() -> None:
    sentence = refused({"DB_RETRY_BASE_DELAY": "9", "DB_RETRY_MAX_DELAY": "3"})
    assert sentence == 'DB_RETRY_BASE_DELAY is "9"; expected at most 3, the value of DB_RETRY_MAX_DELAY'
    read({"DB_RETRY_MAX_DELAY": "0.1"})  # a default contradicts nothing
    whole = "the timeout of the whole query (AI_QUERY_TIMEOUT)"
    long = refused({"AI_QUERY_TIMEOUT": "10", "AI_ATTEMPT_TIMEOUT": "20"})
    assert long == f'AI_ATTEMPT_TIMEOUT is "20"; expected at most 10, {whole}'
    claude = "AI_SERVICES__CLAUDE__"
    assert refused({f"{claude}ATTEMPT_TIMEOUT": "130"}) == (
        f'{claude}ATTEMPT_TIMEOUT is "130"; expected at most 120, {whole}'
    )
    assert refused({f"{claude}TIMEOUT": "10", "AI_ATTEMPT_TIMEOUT": "20"}) == (
        f'{claude}TIMEOUT is "10"; expected at least 20, the timeout of one attempt (AI_ATTEMPT_TIMEOUT)'
    )
    assert refused({f"{claude}TIMEOUT": "10", f"{claude}SLOW_CALL_SECONDS": "6"}) == (
        f'{claude}SLOW_CALL_SECONDS is "6"; expected at most 5, the timeout of one attempt'
    )
    mail = {"KOO_ALERT_EMAIL": "ops@example.com"}
    assert refused(mail) == "KOO_ALERT_EMAIL is set without KOO_SMTP_URL, which it requires"
    assert refused({"KOO_SMTP_URL": SMTP}).startswith("KOO_SMTP_URL is set without ")
    assert refused({"KOO_ALERT_WEBHOOK_SECRET": SIGNING}).endswith(
        "is set without KOO_ALERT_WEBHOOK, which it requires"
    )
    nameless = mail | {"KOO_SMTP_URL": "smtp://koo:pw@mail.example"}
    assert refused(nameless).startswith(
        "KOO_ALERT_EMAIL_FROM is not set; it is required, because the user of"
    )
    read(nameless | {"KOO_ALERT_EMAIL_FROM": "koo@example.com"})
    same = refused({"KOO_TOKEN": SECRET, "KOO_READ_TOKEN": SECRET})
    assert same.startswith("KOO_READ_TOKEN ") and SECRET not in same


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (120, 60, 30)),
        ({"AI_QUERY_TIMEOUT": "10"}, (10, 5, 2.5)),
        ({"AI_SERVICES__CLAUDE__TIMEOUT": "8"}, (8, 4, 2)),
        ({"AI_QUERY_TIMEOUT": "600"}, (600, 60, 30)),
        ({"AI_QUERY_TIMEOUT": "30", "AI_ATTEMPT_TIMEOUT": "30"}, (30, 30, 15)),
        ({"AI_SERVICES__CLAUDE__SLOW_CALL_SECONDS": "50"}, (120, 60, 50)),
    ],
)
def test_times_that_are_not_set_are_derived_from_the_querys(
    environ: dict[str, str], expected: tuple[float, float, float]
) -> None:
    one = service(read(environ), "claude")
    assert (one.timeout_s, one.attempt_timeout_s, one.slow_s) == expected


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "koo.example"])
def test_an_address_that_others_can_reach_is_allowed_with_a_token(host: str) -> None:
    assert read({"KOO_HOST": host, "KOO_TOKEN": LONG}).koo_host == host
    assert "KOO_TOKEN" in refused({"KOO_HOST": host, "KOO_READ_TOKEN": "t"})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_loopback_needs_no_token(host: str) -> None:
    assert read({"KOO_HOST": host}).koo_host == host


def test_the_address_of_a_server_that_listens_everywhere_is_loopback() -> None:
    assert read({"KOO_HOST": "0.0.0.0", "KOO_TOKEN": LONG}).koo_url == "http://127.0.0.1:8000"


def test_an_unknown_argument_is_refused() -> None:
    assert (
        refused({}, database_pol_size=1)
        == "Settings has no attribute database_pol_size; did you mean database_pool_size?"
    )


# ── unknown names ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_misspelt_setting_of_a_service_is_refused_with_the_right_one() -> None:
    sentence = refused({"AI_SERVICES__CLAUDE__DALY_BUDGET": "20"})
    assert (
        sentence.startswith('AI_SERVICES__CLAUDE__DALY_BUDGET is "20"')
        and "did you mean DAILY_BUDGET?" in sentence
        and "REQUESTS_PER_MINUTE" in sentence
    )


def test_a_setting_that_is_like_no_other_is_refused_with_all_of_them_and_without_its_value() -> None:
    sentence = refused({"AI_SERVICES__CLAUDE__XYZ": SECRET})
    assert all(name.upper() in sentence for name in ServiceSettings.rows) and SECRET not in sentence


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("AI_SERVICES__CLAUDE_DAILY_BUDGET", "AI_SERVICES__CLAUDE__DAILY_BUDGET"),
        ("AI_SERVICES__CLAUDE__DAILY__BUDGET", "DAILY_BUDGET"),
        ("AI_SERVICES__CLAUD__DAILY_BUDGET", "AI_SERVICES__CLAUDE__DAILY_BUDGET"),
        ("AI_SERVICES____MODEL", "AI_SERVICES__<NAME>__<SETTING>"),
        ("AI_SERVICES__OLLAMA", "AI_SERVICES__<NAME>__<SETTING>"),
    ],
)
def test_a_malformed_name_of_a_service_is_refused(variable: str, meant: str) -> None:
    sentence = refused({variable: "20"})
    assert sentence.startswith(variable) and meant in sentence


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("DATABASE_POOLSIZE", "DATABASE_POOL_SIZE"),
        ("DB_MAX_RETRYS", "DB_MAX_RETRIES"),
        ("AI_DEFAULT_DAYLY_BUDGET", "AI_DEFAULT_DAILY_BUDGET"),
        ("KOO_TOKENS", "KOO_TOKEN"),
        ("koo_port", "KOO_PORT"),
        ("AI_SERVICES_CLAUDE__MODEL", "AI_SERVICES__CLAUDE__MODEL"),
        ("DB_SOMETHING_OF_OTHERS", None),
    ],
)
def test_a_misspelt_variable_is_logged_and_ignored(variable: str, meant: str | None) -> None:
    (unknown,) = read({variable: SECRET, "PATH": "/bin"}).unknown_variables
    assert (unknown.name, unknown.meant, unknown.source) == (variable, meant, "environment")
    assert variable in str(unknown) and (meant is None or f"did you mean {meant}?" in str(unknown))
    assert SECRET not in str(unknown) + repr(unknown)


def test_in_the_file_a_near_miss_is_logged_whatever_its_prefix(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("DATABSE_URL=x\nANTROPIC_API_KEY=x\nFOREIGN_THING=x\n")
    told = {one.name: one.meant for one in read().unknown_variables}
    assert told == {"DATABSE_URL": "DATABASE_URL", "ANTROPIC_API_KEY": "ANTHROPIC_API_KEY"}
    assert read({"ANTROPIC_API_KEY": "x"}, koo_home=ROOT / "docs").unknown_variables == ()


def test_an_unknown_variable_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "koo"):
        for _ in range(3):
            read({"KOO_PORTT": SECRET})
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "did you mean KOO_PORT?" in record.getMessage()
    assert SECRET not in caplog.text


# ── services ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_built_in_services_come_first_and_in_order() -> None:
    services = read().platform_options().services
    assert [one.name for one in services] == list(BUILT_IN)
    assert [one.configured for one in services] == [name == "local" for name in BUILT_IN]
    assert all(one.model for one in services)


def test_two_lines_declare_an_openai_compatible_server(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "AI_SERVICES__OLLAMA__BASE_URL=http://127.0.0.1:11434/v1/\nAI_SERVICES__OLLAMA__MODEL=llama3.2\n"
    )
    ollama = service(read(), "ollama")
    assert (ollama.kind, ollama.model, ollama.base_url) == (
        "openai_compatible",
        "llama3.2",
        "http://127.0.0.1:11434/v1",
    )
    assert ollama.declared and ollama.configured
    assert (ollama.input_price, ollama.output_price, ollama.daily_budget_usd) == (
        Decimal(0),
        Decimal(0),
        None,
    )
    assert ollama.limits == service(read(), "claude").limits


def test_a_declared_server_with_a_key_needs_a_price_and_has_a_budget() -> None:
    own = {"AI_SERVICES__VLLM__BASE_URL": "http://h/v1", "AI_SERVICES__VLLM__API_KEY": "k"}
    vllm = service(read(own), "vllm")
    assert (vllm.api_key, vllm.input_price, vllm.daily_budget_usd) == ("k", None, Decimal(10))
    prices = {"AI_SERVICES__VLLM__INPUT_PRICE": "0.15", "AI_SERVICES__VLLM__OUTPUT_PRICE": "0"}
    vllm = service(read(own | prices), "vllm")
    assert (vllm.input_price, vllm.output_price) == (Decimal("0.15"), Decimal(0))


def test_a_declared_server_may_be_priced_as_a_model_of_the_table() -> None:
    own = {"BASE_URL": "http://h", "PRICE_AS": "gpt-4o"}
    priced = service(read({f"AI_SERVICES__X__{name}": value for name, value in own.items()}), "x")
    assert (priced.price_as, priced.input_price, priced.daily_budget_usd) == ("gpt-4o", None, Decimal(10))
    assert not priced.free


def test_a_declared_server_without_a_key_costs_its_declared_price() -> None:
    own = {"BASE_URL": "http://h", "INPUT_PRICE": "1", "OUTPUT_PRICE": "2"}
    priced = service(read({f"AI_SERVICES__X__{name}": value for name, value in own.items()}), "x")
    assert (priced.input_price, priced.output_price, priced.daily_budget_usd) == (
        Decimal(1),
        Decimal(2),
        Decimal(10),
    )


@pytest.mark.parametrize(
    ("kind", "base_url", "becomes"),
    [
        ("openai", "http://h", "openai_compatible"),
        ("OpenAI", "", "openai"),
        ("", "", "openai"),
        ("anthropic", "http://h", "anthropic"),
        ("anthropic", "", "anthropic"),
        ("gemini", "", "gemini"),
    ],
)
def test_a_declared_service_has_the_declared_kind(kind: str, base_url: str, becomes: str) -> None:
    own = {"KIND": kind, "BASE_URL": base_url, "API_KEY": "k"}
    made = service(read({f"AI_SERVICES__SECOND__{name}": value for name, value in own.items()}), "second")
    assert made.kind == becomes and made.declared
    # A vendor's second account uses the vendor's model; for a self-hosted server no model is known.
    assert bool(made.model) is (becomes != "openai_compatible")


def test_every_setting_of_a_service_applies_to_that_service_alone() -> None:
    own = {
        "MODEL": "m", "BASE_URL": "http://h", "API_KEY": "k", "DAILY_BUDGET": "20", "INPUT_PRICE": "1",
        "OUTPUT_PRICE": "2", "PRICE_AS": "gpt-4o", "REQUESTS_PER_MINUTE": "3", "REQUESTS_PER_HOUR": "none",
        "REQUESTS_PER_DAY": "4", "TOKENS_PER_MINUTE": "5000",
        "TIMEOUT": "60", "ATTEMPT_TIMEOUT": "20", "FIRST_TOKEN_TIMEOUT": "7", "STALL_TIMEOUT": "8",
        "SLOW_CALL_SECONDS": "9", "MAX_TOKENS": "10", "THINKS_UNSEEN": "false", "LEAVE_OUT": "temperature",
        "TOKENS_PARAMETER": "max_completion_tokens", "KIND": "anthropic",
        "CONCURRENCY": "11", "QUEUE_LENGTH": "0",
        "PROXY": "http://p:1", "HEADERS": "", "BODY": "",
    }  # fmt: skip
    assert own.keys() == {name.upper() for name in ServiceSettings.rows}
    own |= {"KIND": "", "HEADERS__X_TITLE": "t", "BODY__TOP_P": "0.5"}
    settings = read(
        {f"AI_SERVICES__CLAUDE__{name}": value for name, value in own.items()} | {"ANTHROPIC_API_KEY": "no"}
    )
    one = service(settings, "claude")
    assert (one.model, one.base_url, one.api_key, one.kind) == ("m", "http://h", "k", "anthropic")
    assert (one.proxy, one.headers, one.body) == ("http://p:1", {"x-title": "t"}, {"top_p": 0.5})
    assert (one.daily_budget_usd, one.input_price, one.output_price) == (Decimal(20), Decimal(1), Decimal(2))
    assert one.price_as == "gpt-4o"
    assert (one.limits.per_minute, one.limits.per_hour, one.limits.per_day) == (3, None, 4)
    assert one.limits.tokens_per_minute == 5000
    assert (one.timeout_s, one.attempt_timeout_s, one.first_token_timeout_s, one.stall_timeout_s) == (
        60,
        20,
        7,
        8,
    )
    assert (one.slow_s, one.max_tokens, one.thinks_unseen) == (9, 10, False)
    assert (one.leave_out, one.tokens_parameter) == (("temperature",), "max_completion_tokens")
    assert (one.concurrency_max, one.queue_length) == (11, 0)
    assert service(settings, "openai") == service(read(), "openai")


def test_a_budget_is_explicit_if_it_was_set() -> None:
    assert not service(read(), "claude").budget_is_explicit
    assert service(read({"AI_DEFAULT_DAILY_BUDGET": "10.0"}), "claude").budget_is_explicit
    settings = read({"AI_SERVICES__CLAUDE__DAILY_BUDGET": "10"})
    assert (
        service(settings, "claude").budget_is_explicit and not service(settings, "openai").budget_is_explicit
    )


def test_the_local_service_is_free_and_has_a_budget_only_if_one_is_set() -> None:
    local = service(read({"AI_DEFAULT_DAILY_BUDGET": "1"}), "local")
    assert (local.input_price, local.output_price, local.daily_budget_usd) == (Decimal(0), Decimal(0), None)
    assert service(read({"AI_SERVICES__LOCAL__DAILY_BUDGET": "1"}), "local").daily_budget_usd == Decimal(1)
    assert read().platform_options().local_model_path is None


def test_the_local_service_can_be_switched_off_and_is_then_not_configured() -> None:
    local = service(read({"AI_LOCAL_ENABLED": "false"}), "local")
    assert not local.configured and not_configured(local) == "switched off by AI_LOCAL_ENABLED=false"
    assert service(read(), "local").configured
    assert service(read(ai_local_enabled=False), "local").disabled_by == "AI_LOCAL_ENABLED=false"


def test_the_path_of_the_local_model_starts_at_the_home(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("AI_SERVICES__LOCAL__MODEL=models/tiny.gguf\n")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny.gguf").write_bytes(b"GGUF")
    settings = Settings(environ={}, working_directory=tmp_path / "models")
    assert settings.platform_options().local_model_path == tmp_path / "models" / "tiny.gguf"
    assert service(settings, "local").model == "tiny"


def test_the_name_of_a_service_may_be_written_in_any_case_but_only_once() -> None:
    assert service(read({"AI_SERVICES__claude__Model": "m"}), "claude").model == "m"
    sentence = refused({"AI_SERVICES__claude__MODEL": "m", "AI_SERVICES__CLAUDE__MODEL": "n"})
    assert sentence == "AI_SERVICES__CLAUDE__MODEL is set twice, in upper and lower case; set it once"


def test_services_can_be_given_as_arguments() -> None:
    settings = read({"AI_SERVICES__X__MODEL": "a"}, ai_services={"x": {"base_url": "http://h", "model": "b"}})
    assert (service(settings, "x").model, service(settings, "x").base_url) == ("b", "http://h")
    assert "is not a name for a service" in refused({}, ai_services={"No Name": {}})
    assert "belongs to an unknown service" in refused({}, ai_services={"empty": {}})


@pytest.mark.parametrize("name", ["A/B", "A.B", "A B", "_A", "Ä", "X" * 65])
def test_a_service_name_must_fit_into_a_path_and_a_variable(name: str) -> None:
    variable = f"AI_SERVICES__{name}__BASE_URL"
    assert refused({variable: "http://h/v1"}).startswith(
        f"{variable.upper()} does not name a setting of a service; expected AI_SERVICES__<NAME>__<SETTING> "
        "with a name of 1 to 64 lower-case letters, digits, - and _, starting with a letter or digit"
    )


def test_a_hint_names_only_settings_that_the_service_has() -> None:
    """`local` has no address and no proxy."""
    assert "did you mean" not in refused({"AI_SERVICES__LOCAL!__BASE_URL": "http://h/v1"})
    assert "did you mean" not in refused({"AI_SERVICES__LOCA__PROXY": "http://proxy:1"})
    assert "did you mean" not in refused({"AI_SERVICES__MY.LLM__BASE_URL": "http://h/v1"})
    assert "did you mean AI_SERVICES__LOCAL__MODEL?" in refused({"AI_SERVICES__LOCA__MODEL": "x"})
    assert "did you mean AI_SERVICES__CLAUDE__MODEL?" in refused({"AI_SERVICES__CLAUDE!__MODEL": "x"})


@pytest.mark.parametrize("name", ["database", "all"])
def test_a_service_cannot_have_a_name_that_is_reserved_for_resets(name: str) -> None:
    variable = f"AI_SERVICES__{name.upper()}__BASE_URL"
    assert refused({variable: "http://h/v1"}) == (
        f'{variable} names a service "{name}", which is a reserved name; choose another one'
    )
    assert "is a reserved name" in refused({}, ai_services={name: {"base_url": "http://h/v1"}})


# ── secrets ───────────────────────────────────────────────────────────────────────────────────────────────────────

SECRETS = {
    "DATABASE_URL": f"postgresql://{SECRET}:{SECRET}@db.example:5433/app?sslpassword={SECRET}",
    "KOO_STATE_URL": f"postgresql://u:{SECRET}@db.example/state",
    **dict.fromkeys(KEYS, SECRET),
    "ANTHROPIC_API_KEY": f"sk-ant-{SECRET}",
    "AI_SERVICES__OLLAMA__API_KEY": SECRET,
    "AI_SERVICES__OLLAMA__PROXY": f"http://u:{SECRET}@proxy:1",
    "AI_SERVICES__OLLAMA__HEADERS__X_KEY": SECRET,
    "AI_SERVICES__OLLAMA__BODY__USER": SECRET,
    "HTTPS_PROXY": f"http://u:{SECRET}@proxy:1",
    "HTTP_PROXY": f"http://{SECRET}@proxy:1",
    "ALL_PROXY": f"socks5://u:{SECRET}@proxy:1",
    "KOO_TOKEN": SECRET,
    "KOO_TOKEN_2": f"{SECRET}3",
    "KOO_READ_TOKEN": f"{SECRET}2",
    "KOO_READ_TOKEN_2": f"{SECRET}4",
    "KOO_ALERT_WEBHOOK": f"https://hooks.example/{SECRET}?key={SECRET}",
    "KOO_ALERT_WEBHOOK_SECRET": SIGNING,
    "KOO_ALERT_SLACK": f"https://hooks.slack.example/services/{SECRET}",
    "KOO_ALERT_EMAIL": "ops@example.com",
    "KOO_SMTP_URL": f"smtp://koo%40example.com:{SECRET}@mail.example",
}


def test_no_way_to_show_settings_shows_a_secret() -> None:
    settings = read(SECRETS)
    console = Console(record=True, width=4000)
    with console.capture():
        console.print(settings)
        console.print(settings.explain())
    views = [
        repr(settings), str(settings), f"{settings}", repr(settings.explain()), repr(settings.ai_services),
        repr(vars(settings)), f"{settings.database_url} {[settings.openai_api_key]}", repr(settings.platform_options()),
        repr(asdict(settings.platform_options())), json.dumps(asdict(settings.platform_options()), default=str),
        console.export_text(),
    ]  # fmt: skip
    assert [view for view in views if SECRET in view or SIGNING in view] == []
    explained = {row.variable: row.value for row in settings.explain()}
    assert explained["DATABASE_URL"] == "postgresql://…@db.example:5433/app?sslpassword=…"
    assert explained["ANTHROPIC_API_KEY"] == explained["AI_SERVICES__OLLAMA__API_KEY"] == "…"
    assert (
        explained["OPENAI_API_KEY"]
        and not {row.variable: row.value for row in read().explain()}["OPENAI_API_KEY"]
    )


def test_every_secret_of_the_declarations_is_in_the_table_above() -> None:
    settings = read(SECRETS)
    secret = {name.upper() for name, value in vars(settings).items() if isinstance(value, SecretStr)}
    assert secret == {name for name in SECRETS if "__" not in name} - {"KOO_ALERT_EMAIL"}


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("DATABASE_URL", f"mysql://u:{SECRET}@h/d"),
        ("DATABASE_URL", f"postgresql://u:{SECRET}@h:x/d"),
        ("DATABASE_URL", f"{SECRET}"),
        ("KOO_STATE_URL", f"mysql://u:{SECRET}@h"),
        ("OPENAI_API_KEY", f"{SECRET} {SECRET}"),
        ("KOO_TOKEN", f"'{SECRET}'"),
        ("AI_SERVICES__CLAUDE__API_KEY", f"{SECRET}\n{SECRET}"),
        ("AI_SERVICES__CLAUDE__APIKEY", SECRET),
        ("AI_SERVICES__CLAUDE__PROXY", f"ftp://u:{SECRET}@h"),
        ("AI_SERVICES__CLAUDE__HEADERS__X_KEY", f"{SECRET}\r\nx: y"),
        ("AI_SERVICES__CLAUDE__HEADERS__HOST", SECRET),
        ("AI_SERVICES__CLAUDE__HEADER__X", SECRET),
        ("AI_SERVICES__CLAUDE__HEADERS", SECRET),
        ("AI_SERVICES__CLAUDE__BODY__MAX_TOKENS", SECRET),
        ("HTTPS_PROXY", f"http://u:{SECRET} @proxy:1"),
        ("AI_SERVICES__CLAUDE__BASE_URL", f"https://u:{SECRET}@h"),
        ("AI_SERVICES__CLAUDE_API_KEY", SECRET),
        ("KOO_URL", f"https://{SECRET}@h"),
        ("AI_DEFAULT_MAX_TOKENS", f"sk-ant-{SECRET}"),
        ("DATABASE_POOL_SIZE", f"postgresql://u:{SECRET}@h/d"),
        ("KOO_ALERT_WEBHOOK", f"https://u:{SECRET}@h/"),
        ("KOO_ALERT_SLACK", f"hooks.slack.example/{SECRET}"),
        ("KOO_ALERT_WEBHOOK_SECRET", SECRET),
        ("KOO_SMTP_URL", f"smtp://u:{SECRET}@h/x"),
        ("KOO_ALERT_EMAIL", f"smtp://u:{SECRET}@h"),
    ],
)
def test_a_refusal_contains_no_secret_even_in_its_traceback(variable: str, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read({variable: text})
    error = caught.value
    assert SECRET not in "".join(traceback.format_exception(error)) and SECRET not in repr(error)
    assert error.__context__ is None and error.__cause__ is None


def test_a_broken_line_of_the_file_is_named_and_not_repeated(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"# a comment\n\nKOO_PORT=1\nOPENAI_API_KEY {SECRET}\n")
    sentence = refused({})
    assert sentence.startswith(f"{tmp_path}/.env, line 4: ") and SECRET not in sentence


# ── explanations, documents, house ────────────────────────────────────────────────────────────────────────────────


def test_the_values_in_force_can_be_explained() -> None:
    rows = {
        row.variable: row
        for row in read({"AI_SERVICES__CLAUDE__DAILY_BUDGET": "none", "KOO_PORT": "1"}).explain()
    }
    assert rows.keys() == DEFAULTS.keys() | PATHS | {"AI_SERVICES__CLAUDE__DAILY_BUDGET"}
    assert rows["AI_SERVICES__CLAUDE__DAILY_BUDGET"][:3] == (
        "AI_SERVICES__CLAUDE__DAILY_BUDGET",
        "none",
        "environment",
    )
    assert rows["KOO_PORT"][1:3] == ("1", "environment")
    assert rows["DATABASE_POOL_TIMEOUT"].value == "5"
    assert all(row.meaning and row.allowed for row in rows.values())


def test_every_setting_of_a_budget_is_applied() -> None:
    own = {
        "LIMIT": "12.50",
        "PERIOD": "Month",
        "SERVICE": "Claude",
        "MODEL": "m",
        "TAG": "*",
        "ON_EXHAUSTED": "local",
    }
    assert own.keys() == {name.upper() for name in BudgetSettings.rows}
    settings = read(
        {f"AI_BUDGETS__TEAM__{name}": value for name, value in own.items()} | {"AI_BUDGETS__ALL__LIMIT": "3"}
    )
    assert settings.platform_options().budgets == (
        BudgetOptions(name="all", limit_usd=Decimal(3)),
        BudgetOptions(
            name="team",
            limit_usd=Decimal("12.50"),
            period="month",
            service="claude",
            model="m",
            tag="*",
            on_exhausted="local",
        ),
    )
    assert settings.ai_budgets["all"].period is None
    shown = {row.variable: (row.value, row.source) for row in settings.explain()}
    assert (
        shown["AI_BUDGETS__TEAM__LIMIT"] == ("12.50", "environment")
        and "AI_BUDGETS__ALL__PERIOD" not in shown
    )


def test_budgets_can_be_given_as_arguments() -> None:
    settings = read({"AI_BUDGETS__X__LIMIT": "1"}, ai_budgets={"x": {"limit": Decimal(2), "tag": "night"}})
    (budget,) = settings.platform_options().budgets
    assert (budget.limit_usd, budget.tag) == (Decimal(2), "night")
    assert "is not a name for a budget" in refused({}, ai_budgets={"No Name": {}})


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("LIMIT", "-1", 'LIMIT is "-1"; expected an amount of USD, at least 0'),
        ("LIMIT", "none", 'LIMIT is "none"; expected an amount of USD, at least 0'),
        ("PERIOD", "week", 'PERIOD is "week"; expected day or month'),
        ("SERVICE", "clade", f'SERVICE is "clade" (did you mean claude?); expected one of {KNOWN}'),
        ("ON_EXHAUSTED", "stop", f'ON_EXHAUSTED is "stop"; expected one of refuse, {KNOWN}'),
        ("TAG", "x" * 201, "expected a tag of at most 200 characters, or * for a separate budget for each tag"),
        ("LIMT", "3", 'LIMT is "3", but a budget has no such setting (did you mean LIMIT?)'),
        ("ON_EXHAUSTED", "sk-s3cret9f8e7d", 'ON_EXHAUSTED is "…"; expected one of refuse'),
    ],
)  # fmt: skip
def test_an_invalid_setting_of_a_budget_is_refused(name: str, value: str, sentence: str) -> None:
    said = refused({"AI_BUDGETS__TEAM__LIMIT": "1"} | {f"AI_BUDGETS__TEAM__{name}": value})
    assert said.startswith("AI_BUDGETS__TEAM__") and sentence in said


def test_contradictory_settings_of_a_budget_are_refused() -> None:
    assert refused({"AI_BUDGETS__TEAM__TAG": "night"}) == (
        "AI_BUDGETS__TEAM__TAG belongs to a budget without a limit; set AI_BUDGETS__TEAM__LIMIT too"
    )
    own = {"LIMIT": "1", "SERVICE": "claude", "ON_EXHAUSTED": "claude"}
    assert 'is "claude", the service that the budget is for' in refused(
        {f"AI_BUDGETS__TEAM__{name}": value for name, value in own.items()}
    )
    assert "does not name a setting of a budget" in refused({"AI_BUDGETS__LIMIT": "1"})
    declared = {"AI_SERVICES__LAB__BASE_URL": "http://h/v1", "AI_BUDGETS__TEAM__ON_EXHAUSTED": "LAB"}
    settings = read(declared | {"AI_BUDGETS__TEAM__LIMIT": "1"})
    assert settings.platform_options().budgets[0].on_exhausted == "lab"


def test_settings_are_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        read().koo_port = 1


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_the_generated_file_is_up_to_date(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == pages()[path], "run: python -m docs.generate_configuration"


def test_each_variable_is_described_in_the_documents() -> None:
    rows = [row for _, section in variables_by_section() for row in section]
    assert {row.name.upper() for row in rows} == DEFAULTS.keys() | PATHS
    assert [row.name for row in rows if not (row.meaning and row.why and row.allowed)] == []
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    names = (
        [row.name.upper() for row in rows]
        + [name.upper() for table in (ServiceSettings, BudgetSettings) for name in table.rows]
        + list(BUILT_IN)
    )
    assert [name for name in names if f"`{name}`" not in page] == []


def test_the_example_uncommented_sets_the_defaults(tmp_path: Path) -> None:
    """Copying `.env.example` and removing all comment signs changes nothing."""
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    lines = re.findall(r"^#((?:[A-Z]+_)+[A-Z0-9]+=.*)$", example.split("one by one")[0], re.MULTILINE)
    assert len(lines) == len(DEFAULTS) + 3
    (tmp_path / ".env").write_text("\n".join(lines))
    copied, plain = read(), read()
    (tmp_path / ".env").unlink()
    plain = read()
    assert copied.unknown_variables == ()
    assert [row[:2] for row in copied.explain()] == [row[:2] for row in plain.explain()]
    assert copied.database_url == plain.database_url and copied.koo_state_url == plain.koo_state_url


def test_the_services_of_the_example_can_be_uncommented_too(tmp_path: Path) -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8").split("one by one")[1]
    text = "\n".join(re.findall(r"^#(AI_SERVICES__\w+=.*)$", example, re.MULTILINE))
    (tmp_path / ".env").write_text(text)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "another.gguf").touch()
    assert len(read_env_file(tmp_path / ".env")) == 4
    assert {"claude", "local", "ollama"} == read().ai_services.keys()


@pytest.mark.parametrize(
    ("environ", "variable"),
    [
        ({"KOO_READ_TOKEN": LONG}, "KOO_READ_TOKEN"),
        ({"KOO_TOKEN_2": LONG}, "KOO_TOKEN_2"),
        ({"KOO_TOKEN": LONG, "KOO_READ_TOKEN_2": OTHER}, "KOO_READ_TOKEN_2"),
        ({"KOO_TOKEN": LONG, "KOO_READ_TOKEN": LONG}, "KOO_READ_TOKEN"),
        ({"KOO_TOKEN": OTHER, "KOO_TOKEN_2": LONG, "KOO_READ_TOKEN": LONG}, "KOO_READ_TOKEN"),
        ({"KOO_TOKEN": LONG, "KOO_READ_TOKEN": OTHER, "KOO_READ_TOKEN_2": LONG}, "KOO_READ_TOKEN_2"),
        ({"KOO_HOST": "0.0.0.0", "KOO_TOKEN": "l" * 15}, "KOO_TOKEN"),
        ({"KOO_HOST": "10.0.0.7", "KOO_TOKEN": LONG, "KOO_READ_TOKEN": "short"}, "KOO_READ_TOKEN"),
        ({"KOO_TRUSTED_PROXIES": "nginx"}, "KOO_TRUSTED_PROXIES"),
    ],
)
def test_tokens_that_protect_less_than_they_seem_stop_the_start(
    environ: dict[str, str], variable: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Settings(environ=environ, working_directory=tmp_path)
    assert str(refused.value).startswith(f"{variable} is ")
    assert LONG not in str(refused.value) and OTHER not in str(refused.value)


@pytest.mark.parametrize(
    "environ",
    [
        {"KOO_TOKEN": "short"},
        {"KOO_HOST": "0.0.0.0", "KOO_TOKEN": LONG, "KOO_READ_TOKEN": OTHER},
        {"KOO_TOKEN": LONG, "KOO_TOKEN_2": OTHER, "KOO_READ_TOKEN": "r" * 16, "KOO_READ_TOKEN_2": "s" * 16},
        {"KOO_TRUSTED_PROXIES": "127.0.0.1, ::1,10.0.0.0/8"},
    ],
)
def test_valid_combinations_of_tokens_are_accepted(environ: dict[str, str], tmp_path: Path) -> None:
    Settings(environ=environ, working_directory=tmp_path).platform_options()
