"""Acts and refusals: each has who, what and where from. An unknown client fills neither the log nor the list."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from koo.testing.providers import FakeAnthropic
from koo.web import create_app
from koo.web.audit import AGAIN_S, KEPT, Audit
from koo.web.guesses import ADDRESSES_MAX, GUESSES_MAX, WINDOW_S, Guesses
from koo.web.logs import JsonLines
from koo.web.security import Denial
from tests.web.serving import claude, platform, served

WRITE, READ = "w" * 32, "r" * 32
REFUSED = Denial(401, "the token is unknown", is_guess=True)


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_act_has_who_what_and_where_from(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "koo.audit")
    audit = Audit()
    audit.note("token", "POST /ai/services/{service}/reset-errors", "10.0.0.7", None)
    [entry] = audit.entries()
    assert (entry["who"], entry["what"], entry["peer"], entry["status"], entry["reason"]) == (
        "token", "POST /ai/services/{service}/reset-errors", "10.0.0.7", 200, "",
    )  # fmt: skip
    assert caplog.messages == ["POST /ai/services/{service}/reset-errors by token from 10.0.0.7"]
    line = as_json(caplog.records[0])
    assert line["level"] == "info" and "reason" not in line
    assert [line[name] for name in ("what", "who", "route", "peer", "status")] == [
        "act", "token", "POST /ai/services/{service}/reset-errors", "10.0.0.7", 200,
    ]  # fmt: skip


def test_a_refusal_is_a_warning_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    Audit().note("", "GET /monitoring/health", "203.0.113.9", REFUSED)
    line = as_json(caplog.records[0])
    assert line["level"] == "warning"
    assert [line[name] for name in ("what", "who", "route", "peer", "status", "reason")] == [
        "refused_at_the_door", "unknown", "GET /monitoring/health", "203.0.113.9", 401, "the token is unknown",
    ]  # fmt: skip


def as_json(record: logging.LogRecord) -> dict[str, Any]:
    """Format as `koo serve` does."""
    line: dict[str, Any] = json.loads(JsonLines().format(record))
    return line


def test_repeated_refusals_of_one_address_are_logged_once_a_minute_with_their_number(
    caplog: pytest.LogCaptureFixture,
) -> None:
    time = Time()
    audit = Audit(monotonic=time)
    for _ in range(5000):
        audit.note("", "GET /monitoring/health", "203.0.113.9", REFUSED)
    audit.note("", "GET /monitoring/health", "203.0.113.10", REFUSED)
    time.now += AGAIN_S
    audit.note("", "GET /monitoring/health", "203.0.113.9", REFUSED)
    assert [(one["peer"], one["more"]) for one in reversed(audit.entries())] == [
        ("203.0.113.9", 0), ("203.0.113.10", 0), ("203.0.113.9", 4999),
    ]  # fmt: skip
    assert len(caplog.messages) == 3 and "4999 more like it before" in caplog.messages[-1]


def test_one_ipv6_network_is_one_address_for_the_log_and_for_guesses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One subscriber has as many addresses in a /64 as it wants."""
    audit = Audit(monotonic=Time())
    slowed = False
    for number in range(1000):
        address = f"2001:db8::{number:x}"
        audit.note("", "GET /monitoring/health", address, REFUSED)
        slowed = audit.guesses.are_too_many(address)
    assert (
        slowed and [one["peer"] for one in audit.entries()] == ["2001:db8::0"] and len(caplog.messages) == 1
    )


def test_the_oldest_of_many_addresses_are_forgotten_and_the_list_is_bounded() -> None:
    audit = Audit()
    for number in range(3 * KEPT):
        audit.note("", "GET /x", f"address {number}", REFUSED)
    assert [one["peer"] for one in audit.entries(2)] == [f"address {3 * KEPT - 1}", f"address {3 * KEPT - 2}"]
    assert len(audit.entries()) == KEPT


def test_an_address_with_control_characters_is_one_plain_line(caplog: pytest.LogCaptureFixture) -> None:
    Audit().note("", "GET /x", "1.2.3.4\r\nFORGED \x1b[31m", REFUSED)
    assert len(caplog.messages) == 1
    assert not {"\r", "\n", "\x1b"} & set(caplog.messages[0])


def test_too_many_guesses_are_refused_for_a_minute() -> None:
    time = Time()
    guesses = Guesses(time)
    assert [guesses.are_too_many("a") for _ in range(GUESSES_MAX + 1)] == [False] * GUESSES_MAX + [True]
    assert not guesses.are_too_many("b")
    time.now += WINDOW_S
    assert not guesses.are_too_many("a")
    for number in range(ADDRESSES_MAX):
        guesses.are_too_many(str(number))
    assert not guesses.are_too_many("a")


def test_a_guesser_is_slowed_down_but_a_valid_token_of_the_same_address_passes(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(create_app(platform(tmp_path, token=WRITE, read_token=READ))) as client:
            health, audit = "/api/v1/monitoring/health", "/api/v1/monitoring/audit"
            wrong = {"Authorization": f"Bearer {'x' * 32}"}
            statuses = [(await client.get(health, headers=wrong)).status for _ in range(GUESSES_MAX + 1)]
            assert statuses == [401] * GUESSES_MAX + [429]
            slowed = await client.get(health, headers=wrong)
            assert int(slowed.headers["Retry-After"]) > 0
            assert (await client.get(health, headers={"Authorization": f"Bearer {READ}"})).status == 200
            reset = await client.post(
                "/api/v1/ai/services/reset-all-errors", headers={"Authorization": f"Bearer {WRITE}"}
            )
            assert reset.status == 200
            shown = (await client.get(audit, headers={"Authorization": f"Bearer {READ}"})).body["entries"]
            assert [(one["who"], one["what"].split()[0], one["status"]) for one in shown] == [
                ("token", "POST", 200), ("unknown", "GET", 429), ("unknown", "GET", 401),
            ]  # fmt: skip
            assert "x" * 32 not in str(shown) and WRITE not in str(shown)

    asyncio.run(main())


def test_an_allowed_query_is_not_an_act_and_a_refused_one_is_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A healthy server is quiet, however many requests it gets. Only what changes something for others is recorded."""
    caplog.set_level(logging.INFO, "koo")

    async def main() -> None:
        async with FakeAnthropic() as fake:
            koo = platform(tmp_path, claude(fake), token=WRITE, read_token=READ)
            async with served(create_app(koo)) as client:
                right = {"Authorization": f"Bearer {WRITE}"}
                asked = {"service": "claude", "prompt": "Hi"}
                for path, body in (("query", asked), ("batch-query", {"queries": [asked, asked]})):
                    assert (await client.post(f"/api/v1/ai/{path}", json=body, headers=right)).status == 200
                assert [one for one in caplog.messages if "ai/" in one] == []
                for path in ("query", "batch-query"):
                    wrong = {"Authorization": f"Bearer {READ}"}
                    assert (await client.post(f"/api/v1/ai/{path}", json=asked, headers=wrong)).status == 403
                reset = "/api/v1/ai/services/claude/reset-errors"
                assert (await client.post(reset, headers=right)).status == 200
                shown = (await client.get("/api/v1/monitoring/audit", headers=right)).body["entries"]
        assert [(one["what"], one["status"]) for one in shown] == [
            ("POST /ai/services/{service}/reset-errors", 200), ("POST /ai/query", 403),
        ]  # fmt: skip

    asyncio.run(main())
