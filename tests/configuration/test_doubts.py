"""Settings that have no effect because of another one are reported, but only if they were set."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from koo.errors import ConfigurationError
from koo.settings import Settings

CLAUDE = "AI_SERVICES__CLAUDE__"
NIGHT = "AI_BUDGETS__NIGHT__"


def told(home: Path, **environ: str) -> tuple[str, ...]:
    return Settings(environ={"KOO_HOME": str(home), **environ}).doubts


TOLD = [
    (
        {"AI_FIRST_TOKEN_TIMEOUT": "90"},
        'AI_FIRST_TOKEN_TIMEOUT is "90", but an attempt ends after 60 s, so it never takes effect',
    ),
    (
        {"AI_STALL_TIMEOUT": "30", "AI_QUERY_TIMEOUT": "20"},
        'AI_STALL_TIMEOUT is "30", but a query ends after 20 s, so it never takes effect',
    ),
    (
        {f"{CLAUDE}FIRST_TOKEN_TIMEOUT": "30", f"{CLAUDE}ATTEMPT_TIMEOUT": "10"},
        f'{CLAUDE}FIRST_TOKEN_TIMEOUT is "30", but an attempt ends after 10 s, so it never takes effect',
    ),
    (
        {f"{CLAUDE}STALL_TIMEOUT": "30", f"{CLAUDE}TIMEOUT": "25"},
        f'{CLAUDE}STALL_TIMEOUT is "30", but a query ends after 25 s, so it never takes effect',
    ),
    (
        {"DATABASE_HELD_WARNING": "20", "DATABASE_SCOPE_TIMEOUT": "15"},
        'DATABASE_HELD_WARNING is "20", but a scope ends after 15 s, so it never takes effect',
    ),
    (
        {"DB_SLOW_CALL_SECONDS": "60"},
        'DB_SLOW_CALL_SECONDS is "60", but a scope ends after 60 s, so it never takes effect',
    ),
    (
        {"DB_RETRY_BASE_DELAY": "60"},
        'DB_RETRY_BASE_DELAY is "60", but DB_RETRY_MAX_DELAY, which is not set, limits it to 30',
    ),
    (
        {"DB_HEALTH_CHECK_INTERVAL": "2", "HEALTH_CHECK_TIMEOUT": "4"},
        'DB_HEALTH_CHECK_INTERVAL is "2", but a check may take 4 s (HEALTH_CHECK_TIMEOUT): '
        "a check that hangs delays the next one",
    ),
    (
        {"DATABASE_URL": "sqlite+aiosqlite:///./koo.db", "KOO_STATE_URL": "sqlite:///data/../koo.db"},
        "KOO_STATE_URL names the same file as DATABASE_URL: "
        "each write transaction of the application blocks koo's state store",
    ),
    (
        {"KOO_ALERT_EMAIL_FROM": "koo@example.com"},
        "KOO_ALERT_EMAIL_FROM is set, but no mail is sent without KOO_ALERT_EMAIL",
    ),
    (
        {"KOO_ALERT_SEVERITY": "critical"},
        "KOO_ALERT_SEVERITY is set, but nothing is sent without KOO_ALERT_WEBHOOK, _SLACK or _EMAIL",
    ),
    (
        {"AI_DEFAULT_REQUESTS_PER_MINUTE": "90", "AI_DEFAULT_REQUESTS_PER_HOUR": "80"},
        'AI_DEFAULT_REQUESTS_PER_MINUTE is "90", above the 80 of REQUESTS_PER_HOUR, so it never takes effect',
    ),
    (
        {f"{CLAUDE}REQUESTS_PER_HOUR": "90", f"{CLAUDE}REQUESTS_PER_DAY": "80"},
        f'{CLAUDE}REQUESTS_PER_HOUR is "90", above the 80 of REQUESTS_PER_DAY, so it never takes effect',
    ),
    (
        {f"{NIGHT}LIMIT": "5", f"{NIGHT}ON_EXHAUSTED": "claude"},
        f'{NIGHT}ON_EXHAUSTED is "claude", which has no key, so it cannot take over when the budget is used up',
    ),
]


@pytest.mark.parametrize(
    ("environ", "sentence"), TOLD, ids=lambda it: "+".join(it) if isinstance(it, dict) else ""
)
def test_a_value_without_effect_is_reported(
    environ: dict[str, str], sentence: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "koo.settings"):
        assert told(tmp_path, **environ) == (sentence,)


def test_a_value_without_effect_is_logged_once_per_process_with_its_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".env").write_text("AI_STALL_TIMEOUT=500\n")
    for _ in range(2):
        Settings(environ={}, working_directory=tmp_path)
    logged = [one.getMessage() for one in caplog.records if "AI_STALL_TIMEOUT" in one.getMessage()]
    assert len(logged) == 1 and logged[0].endswith(f"(set in {tmp_path}/.env)")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        # Defaults contradict nothing.
        {"AI_QUERY_TIMEOUT": "20"}, {"DATABASE_SCOPE_TIMEOUT": "10"}, {"DB_HEALTH_CHECK_INTERVAL": "2"},
        {"AI_DEFAULT_REQUESTS_PER_HOUR": "30"}, {"DB_RETRY_MAX_DELAY": "0.1"},
        # Values that fit together.
        {"AI_FIRST_TOKEN_TIMEOUT": "59"}, {"DATABASE_HELD_WARNING": "59"},
        {"DB_HEALTH_CHECK_INTERVAL": "4", "HEALTH_CHECK_TIMEOUT": "4"},
        {"AI_DEFAULT_REQUESTS_PER_MINUTE": "80", "AI_DEFAULT_REQUESTS_PER_HOUR": "80"},
        {"KOO_ALERT_SEVERITY": "critical", "KOO_ALERT_WEBHOOK": "https://hooks.example/x"},
        {f"{NIGHT}LIMIT": "5", f"{NIGHT}ON_EXHAUSTED": "claude", "ANTHROPIC_API_KEY": "k"},
        {f"{NIGHT}LIMIT": "5", f"{NIGHT}ON_EXHAUSTED": "local"},
        {f"{NIGHT}LIMIT": "5", f"{NIGHT}ON_EXHAUSTED": "refuse"},
    ],
    ids=str,
)  # fmt: skip
def test_no_other_value_is_reported(environ: dict[str, str], tmp_path: Path) -> None:
    assert told(tmp_path, **environ) == ()


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        (
            {"DATABASE_POOL_TIMEOUT": "9", "DATABASE_SCOPE_TIMEOUT": "3"},
            'DATABASE_POOL_TIMEOUT is "9"; expected at most 3, the value of DATABASE_SCOPE_TIMEOUT',
        ),
        (
            {f"{NIGHT}LIMIT": "5", f"{NIGHT}ON_EXHAUSTED": "local", "AI_LOCAL_ENABLED": "false"},
            f'{NIGHT}ON_EXHAUSTED is "local", but AI_LOCAL_ENABLED=false disables that service; '
            "expected an enabled one",
        ),
    ],
    ids=["pool in scope", "a fallback that is switched off"],
)
def test_a_contradiction_stops_the_start(environ: dict[str, str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        told(tmp_path, **environ)
    assert str(refused.value) == sentence
