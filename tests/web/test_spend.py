"""Spending over HTTP: totals with estimates marked, budgets, and write-offs by an operator."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from koo.budget_options import BudgetOptions
from koo.monitoring import shapes, spend_shapes
from koo.platform import Platform
from koo.policies.treasury import LIVES_MS
from koo.storage.base import StoreUnavailable
from koo.storage.store import SqlStore
from koo.testing.providers import FakeAnthropic
from koo.web import create_app
from tests.storage.support import Place, hold
from tests.web.exact import check_exactly
from tests.web.serving import Client, claude, platform, served

SPEND = "/api/v1/ai/spend"
WRITE_OFF = "/api/v1/ai/spend/write-off"
Work = Callable[[Client, FakeAnthropic, Platform], Awaitable[None]]


def with_server(folder: Path, work: Work, **more: Any) -> None:
    async def main() -> None:
        async with FakeAnthropic() as fake:
            koo = platform(folder, claude(fake), **more)
            async with served(create_app(koo)) as client:
                await work(client, fake, koo)

    asyncio.run(main())


def today() -> str:
    return datetime.now(UTC).date().isoformat()


async def ask(client: Client, **more: Any) -> None:
    reply = await client.post("/api/v1/ai/query", json={"service": "claude", "prompt": "Say hello.", **more})
    assert reply.status == 200, reply.text


def test_the_report_includes_the_last_call_to_the_last_digit(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        await ask(client, tag="night")
        await ask(client)
        report = (await client.get(f"{SPEND}?by=tag&by=service&by=day")).body
        check_exactly(report, spend_shapes.Spend)
        assert Decimal(report["amount"]) == fake.billed_usd and report["calls"] == 2
        assert report["by"] == ["day", "service", "tag"]
        assert {(row["day"], row["service"], row["tag"], row["calls"]) for row in report["rows"]} == {
            (today(), "claude", "night", 1),
            (today(), "claude", None, 1),
        }
        assert all(row["estimated"] == "0" and row["input_tokens"] > 0 for row in report["rows"])
        assert report["first_day"] == today()[:8] + "01" and report["last_day"] >= today()

    with_server(tmp_path, work)


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("days=1", 0, 0),
        ("days=7", 6, 0),
        ("from={3}&to={1}", 3, 1),
        ("to={0}&from={0}", 0, 0),
    ],
)
def test_a_period_includes_its_first_and_last_day(tmp_path: Path, asked: str, first: int, last: int) -> None:
    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        days = [(datetime.now(UTC).date() - timedelta(days=ago)).isoformat() for ago in range(7)]
        report = (await client.get(f"{SPEND}?{asked.format(*days)}")).body
        assert (report["first_day"], report["last_day"], report["rows"]) == (days[first], days[last], [])

    with_server(tmp_path, work)


def test_a_month_is_a_whole_calendar_month(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        report = (await client.get(f"{SPEND}?month=2024-02")).body
        assert (report["first_day"], report["last_day"], report["amount"]) == (
            "2024-02-01",
            "2024-02-29",
            "0",
        )

    with_server(tmp_path, work)


@pytest.mark.parametrize(
    "asked",
    [
        "days=0", "days=x", "month=2026-13", "month=November", "from=2026-11-31", "from=2026-11-02&to=2026-11-01",
        "days=1&month=2026-11", "by=weekday", "month=1969-12", "from=1960-01-01",
    ],
)  # fmt: skip
def test_an_invalid_period_is_a_problem(tmp_path: Path, asked: str) -> None:
    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        reply = await client.get(f"{SPEND}?{asked}")
        assert (reply.status, reply.body["kind"]) == (422, "invalid_request"), reply.text

    with_server(tmp_path, work)


def test_while_the_store_is_unreachable_the_report_is_a_503(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        async def away(*given: object, **more: object) -> None:
            raise StoreUnavailable("the disk is full")

        monkeypatch.setattr(koo.parts.store.executor, "run", away)  # type: ignore[attr-defined]
        for reply in (
            await client.get(SPEND),
            await client.post(WRITE_OFF, json={"all": True, "by": "ada"}),
        ):
            assert (reply.status, reply.headers["Retry-After"]) == (503, "5"), reply.text
            assert "the disk is full" in reply.body["detail"]
        monkeypatch.undo()

    with_server(tmp_path, work)


# ── budgets ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_operators_budgets_are_in_the_overview_and_an_exhausted_one_rate_limits_the_service(
    tmp_path: Path,
) -> None:
    budgets = (
        BudgetOptions(name="month", limit_usd=Decimal(5), period="month"),
        BudgetOptions(name="each", limit_usd=Decimal("0.0011"), tag="*"),
        BudgetOptions(name="small", limit_usd=Decimal("0.0012")),
    )

    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        await ask(client, tag="night", max_tokens=10)
        await client.get(SPEND)
        overview = (await client.get("/api/v1/ai/services/health")).body
        check_exactly(overview, shapes.ServicesHealth)
        month, each, _ = overview["budgets"]
        assert (month["title"], month["period"], month["limit"]) == ("month", "month", "5")
        assert (each["title"], each["name"], each["tag"]) == ("each/night", "each", "night")
        assert Decimal(month["spent"]) == Decimal(each["spent"]) == fake.billed_usd
        assert Decimal(each["remaining"]) == Decimal("0.0011") - fake.billed_usd
        assert overview["services"]["claude"]["state"] == "healthy"

        reply = await client.post(
            "/api/v1/ai/query", json={"service": "claude", "prompt": "Say hello.", "tag": "night"}
        )
        assert (
            reply.status == 429
            and "the budget 'each/night' of $0.0011 does not cover this call" in reply.text
        )
        view = (await client.get("/api/v1/ai/services/claude/health")).body
        assert view["state"] == "healthy", "callers with other tags can use it"
        reply = await client.post("/api/v1/ai/query", json={"service": "claude", "prompt": "Say hello."})
        assert reply.status == 429
        view = (await client.get("/api/v1/ai/services/claude/health")).body
        assert view["state"] == "rate_limited" and "the budget 'small' of $0.0012" in view["reason"]

    with_server(tmp_path, work, budgets=budgets)


# ── writing off ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def leave_money_behind(koo: Platform) -> str:
    """A process that held 0.25 USD and has not reported for a while. Returns its name."""
    place = Place("sqlite", koo.options.state_url)
    dead = SqlStore(koo.options.state_url)
    dead.ledger.budget("service/claude", 10**13)
    await hold(dead, "0.25")
    await dead.ledger.beat()
    await dead.executor.stop()
    long_ago = int(time.time() * 1000) - LIVES_MS - 1000
    name = dead.ledger.purses.name
    place.sql(f"UPDATE koo_processes SET seen_ms = {long_ago} WHERE name = '{name}'")
    return name


def test_money_of_a_dead_process_is_listed_and_written_off_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        name = await leave_money_behind(koo)
        report = (await client.get(SPEND)).body
        check_exactly(report, spend_shapes.Spend)
        (left,) = report["unsettled"]
        assert left["process"] == name
        assert left["amounts"] == [{"budget": "ai:claude", "period": today(), "amount": "0.25"}]

        reply = await client.post(WRITE_OFF, json={"process": "another", "by": "ada"})
        assert (reply.status, reply.body["kind"]) == (404, "not_found")
        with caplog.at_level(logging.WARNING, "koo"):
            reply = await client.post(
                WRITE_OFF, json={"process": name, "by": "ada", "reason": "its host is gone"}
            )
        check_exactly(reply.body, spend_shapes.WriteOffs)
        assert "may be overspent by its amount" in reply.body["message"] and name in reply.body["message"]
        (line,) = [one.getMessage() for one in caplog.records if "wrote off" in one.getMessage()]
        assert (
            "ada" in line and name in line and "0.25 USD of ai:claude" in line and "its host is gone" in line
        )

        report = (await client.get(SPEND)).body
        assert report["unsettled"] == []
        (done,) = report["written_off"]
        assert (done["process"], done["by"], done["reason"]) == (name, "ada", "its host is gone")
        view = (await client.get("/api/v1/ai/services/claude/health")).body
        assert view["rate_limits"]["daily_budget"]["unsettled"] == "0"

    with_server(tmp_path, work)


@pytest.mark.parametrize(
    "body",
    [
        {"by": "ada"}, {"by": "ada", "process": "x", "all": True}, {"process": "x"}, {"all": "yes", "by": "ada"},
        {"all": True, "by": ""}, {"all": True, "by": "ada", "amount": 3},
    ],
)  # fmt: skip
def test_a_write_off_names_its_author_and_one_process_or_all(tmp_path: Path, body: dict[str, Any]) -> None:
    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        assert (await client.post(WRITE_OFF, json=body)).status == 422

    with_server(tmp_path, work)


def test_a_read_token_can_see_spending_but_not_write_off(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        reader = {"Authorization": "Bearer reader"}
        assert (await client.get(SPEND)).status == 401
        assert (await client.get(SPEND, headers=reader)).status == 200
        body = {"all": True, "by": "ada"}
        assert (await client.post(WRITE_OFF, json=body, headers=reader)).status == 403
        reply = await client.post(WRITE_OFF, json=body, headers={"Authorization": "Bearer actor"})
        assert reply.status == 200 and reply.body["written_off"] == []

    with_server(tmp_path, work, token="actor", read_token="reader")
