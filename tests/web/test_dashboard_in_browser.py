"""The page at /dashboard/ as people and strangers meet it, in a real browser.

A machine without Chromium skips these; `test_dashboard.py` holds there what can be held without.
"""

from __future__ import annotations

import asyncio
import json
import math
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse

from koo.budget_options import BudgetOptions
from koo.errors import Kind
from koo.monitoring.runbook import runbook
from koo.options import DAY_S, BreakerOptions, LimitOptions, ServiceOptions
from koo.passage import Passage
from koo.platform import Platform
from koo.policies.breaker import CLOSED, OPEN
from koo.policies.verdict import FAILURE, Fault
from koo.testing.providers import FakeAnthropic, answer, error
from koo.testing.proxy import FaultProxy
from koo.testing.skipping import SkippingClock
from koo.web import create_app, mount
from tests.web.browser import WAIT_S, Window, chromium, needs_browser, window
from tests.web.serving import Client, claude, options, platform, served
from tests.web.test_dashboard import below

pytestmark = [needs_browser, pytest.mark.slow]

LONG = "x" * 64
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><b>bold" + "x" * 60


@pytest.fixture(scope="module")
def browser() -> Iterator[str]:
    with chromium() as address:
        yield address


@asynccontextmanager
async def shown(
    browser: str, koo: Platform, path: str = "/dashboard/"
) -> AsyncIterator[tuple[Window, Client]]:
    """The page of a platform, in a window."""
    async with served(create_app(koo)) as client, window(browser) as page:
        await page.go(client.url + path)
        yield page, client


async def break_database(koo: Platform) -> None:
    """As many failures as open its breaker. Its probe is answered, but that does not end the outage early."""
    guard = koo.database.guard
    guard.breaker.early_s = math.inf
    for _ in range(5):
        passage = Passage(None, guard.now() + 1, None)
        permit = await guard.enter(passage)
        guard.leave(passage, permit, Fault(verdict=FAILURE, kind=Kind.CONNECTION))
    assert guard.breaker.phase is OPEN


@asynccontextmanager
async def proxied(app: FastAPI) -> AsyncIterator[FaultProxy]:
    """A server behind something that breaks connections."""
    async with served(app) as client, FaultProxy("127.0.0.1", urlsplit(client.url).port or 0) as proxy:
        yield proxy


async def try_now(page: Window) -> None:
    """Click the button that ends a pause, unless it has just ended by itself."""
    await page.run("document.querySelector('[data-act=again]')?.click()")


async def ask(client: Client, service: str = "claude", times: int = 1) -> int:
    status = 0
    for _ in range(times):
        reply = await client.post("/api/v1/ai/query", json={"service": service, "prompt": "Hello?"})
        status = reply.status
    return status


# ── what it shows ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_shows_the_state_of_everything_and_follows_it_by_itself(browser: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with FakeAnthropic() as fake:
            off = ServiceOptions(name="openai", kind="openai", model="gpt-6.1-terra")
            local = ServiceOptions(
                name="local", kind="local", model="local", disabled_by="AI_LOCAL_ENABLED=false"
            )
            koo = platform(tmp_path, claude(fake, breaker=BreakerOptions(failure_threshold=3)), off, local)
            async with shown(browser, koo) as (page, client):
                await page.until_text("h1", "Healthy")
                assert await page.run("document.title") == "● Healthy · koo"
                assert "The database and the AI service work" in await page.text("#verdict")
                assert "No alert is active" in await page.text("main")
                assert "1 service has no key" in await page.text(".unconfigured")
                assert "openai" in await page.text(".unconfigured")
                assert "local takes no part in anything above: switched off by AI_LOCAL_ENABLED=false." in (
                    await page.text(".unconfigured")
                )
                await page.run("window.here = true")

                fake.script(*[error(529, "overloaded_error")] * 3)
                await ask(client, times=3)
                await page.until_text("h1", "Unhealthy")  # all AI services refuse
                alerts = await page.until_text(".alerts", "Cannot be asked")
                assert "Critical" in alerts and "claude" in alerts and "Tests recovery in" in alerts
                assert await page.run("document.title") == "■ Unhealthy · koo"
                assert "svg" in await page.run("document.querySelector('link[rel=icon]').href")
                card = await page.text("[aria-labelledby=service-0]")
                broke = ("Last error overloaded", "status 529, overloaded_error")
                for words in (
                    "circuit open",
                    "3 failures in a row",
                    "Asked again in",
                    "0 %",
                    "3 of 60",
                    *broke,
                ):
                    assert words in card

                koo.reset_service("claude")
                assert await ask(client) == 200
                await page.until_text("h1", "Healthy")
                assert "The service can be asked again" in await page.until_text(".over", "claude")
                assert await page.run("window.here")  # it refreshed itself, nobody loaded it anew
            assert page.told == []

    asyncio.run(main())


def test_it_shows_money_limits_and_the_database_as_the_api_has_them(browser: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with FakeAnthropic() as fake:
            limits = LimitOptions(per_minute=2, per_hour=1000, per_day=10_000)
            service = claude(fake, limits=limits, daily_budget_usd=Decimal("0.5"))
            koo = platform(tmp_path, service)
            async with shown(browser, koo) as (page, client):
                async with koo.database.session_scope():
                    await page.until_text("article.wide", "1 of 30 connections in use")
                assert await ask(client, times=3) == 429
                card = await page.until_text("[aria-labelledby=service-0]", "rate limited")
                assert "2 of 2" in card and "2 of 1,000" in card and "Asked again in" in card
                health = (await client.get("/api/v1/ai/services/claude/health")).body
                spent = health["rate_limits"]["daily_budget"]["spent"]
                exact = f"{spent} spent and 0 reserved of 0.5, in USD"
                await page.until(f"document.querySelector('.money .beside').title === {json.dumps(exact)}")
                assert f"${Decimal(spent):.6f}".rstrip("0") in await page.text(".money")
                assert "of $0.50" in await page.text(".money")

    asyncio.run(main())


def leave_unsettled(file: Path, budget: str, pico: int) -> None:
    """What a process was granted that is killed then."""
    with sqlite3.connect(file) as state:
        state.execute(
            "INSERT INTO koo_purses SELECT budget, period, 'gone', ?, 0, 0, 0, 0 FROM koo_treasuries WHERE budget = ?",
            (pico, budget),
        )
        state.execute("UPDATE koo_treasuries SET booked = booked + ? WHERE budget = ?", (pico, budget))
    state.close()


def noon() -> SkippingClock:
    """It was noon when the test began: in the last hours of a day nothing runs out before its end."""
    return SkippingClock(time.time() // DAY_S * DAY_S + DAY_S / 2)


def test_it_shows_budgets_of_every_kind(browser: str, tmp_path: Path) -> None:
    """What each counts, how near its end is and what then happens; idle and unsettled money apart from spent."""

    async def main() -> None:
        async with FakeAnthropic() as fake:
            model = "claude-sonnet-5-5"
            budgets = (
                BudgetOptions(name="all", limit_usd=Decimal("0.05"), period="month"),
                BudgetOptions(name="dear", limit_usd=Decimal("0.0028"), model=model, on_exhausted="second"),
                BudgetOptions(name="teams", limit_usd=Decimal(3), tag="*"),
            )
            second = replace(claude(fake), name="second", model="claude-haiku-5")
            koo = Platform(options(tmp_path, claude(fake), second, budgets=budgets), clock=noon())
            async with shown(browser, koo) as (page, client):
                fake.script(answer("ok", input_tokens=700, output_tokens=100))
                body = {"service": "claude", "prompt": "x" * 600, "max_tokens": 100, "tag": HOSTILE}
                assert (await client.post("/api/v1/ai/query", json=body)).status == 200
                leave_unsettled(tmp_path / "state.db", "budget/all", 10**10)
                card = await page.until_text("[aria-labelledby=budget-0]", "$0.01 unsettled")
                for words in (
                    "all",
                    "each month",
                    "Counts all services together",
                    "of $0.05",
                    "calls are refused",
                ):
                    assert words in card
                dear = await page.until_text("[aria-labelledby=budget-1]", "$0.0024 spent of $0.0028")
                for words in (
                    f"Counts {model}",
                    "second is asked instead",
                    "Above 80 % of the limit",
                    "Runs out in",
                ):
                    assert words in dear
                assert HOSTILE in await page.text("[aria-labelledby=budget-2]")
                await page.resize(320)
                assert await page.run("document.documentElement.scrollWidth") <= 320
            assert page.told == []

    asyncio.run(main())


def test_a_hostile_model_stays_text_and_a_long_name_fits(browser: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with FakeAnthropic() as fake:
            koo = platform(
                tmp_path, replace(claude(fake), name=LONG, model=f"{HOSTILE}</b><script>1"), claude(fake)
            )
            async with shown(browser, koo) as (page, _):
                assert f"{HOSTILE}</b><script>1" in await page.until_text(
                    "[aria-labelledby=service-0]", HOSTILE
                )
                assert await page.run("document.querySelectorAll('main img, main b b').length") == 0
                assert await page.run("document.title") == "● Healthy · koo"
                await page.click("[data-reset=service]")
                assert LONG in await page.text("#reset-title")
                await page.click("#reset-go")
                assert "starts afresh" in await page.until_text("#reset-result", "Done")
                await page.resize(320)
                assert await page.run("document.documentElement.scrollWidth") <= 320
            assert page.told == []

    asyncio.run(main())


def test_it_asks_nobody_but_its_own_server_and_breaks_no_policy(browser: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with shown(browser, platform(tmp_path)) as (page, client):
            await page.until_text("h1", "Healthy")
            await page.until("performance.getEntriesByType('resource').length > 12")
            urls = [url for url in page.urls if not url.startswith(("data:", "about:"))]
            assert len(urls) > 12 and [url for url in urls if not url.startswith(client.url)] == []
        assert page.told == []

    asyncio.run(main())


def test_it_fits_any_window_dark_and_light(browser: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with FakeAnthropic() as fake:
            koo = platform(tmp_path, claude(fake), replace(claude(fake), name="second"))
            async with shown(browser, koo) as (page, client):
                fake.script(*[error(529, "overloaded_error")] * 3)
                await ask(client, times=3)
                await page.until_text(".alerts", "Cannot be asked")
                for width in (320, 768, 1280):
                    await page.resize(width)
                    assert await page.run("document.documentElement.scrollWidth") <= width
                    edges = (
                        "[...document.querySelectorAll('main *')].map(it => it.getBoundingClientRect().right)"
                    )
                    assert await page.run(f"Math.max(...{edges})") <= width
                    heights = "[...document.querySelectorAll('main button')].map(it => it.offsetHeight)"
                    assert await page.run(f"Math.min(...{heights})") >= 24
                for scheme, ground in (("dark", "rgb(14, 17, 22)"), ("light", "rgb(246, 247, 249)")):
                    await page.prefer(prefers_color_scheme=scheme)
                    assert await page.run("getComputedStyle(document.body).backgroundColor") == ground

    asyncio.run(main())


def test_who_wants_no_motion_has_none(browser: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with shown(browser, platform(tmp_path)) as (page, _):
            moving = "document.getAnimations().filter(one => one.playState === 'running').length"
            await page.until(f"document.querySelector('.pulse') && {moving}")
            await page.prefer(prefers_reduced_motion="reduce")
            await page.until(f"{moving} === 0")

    asyncio.run(main())


def test_below_a_path_it_works_too(browser: str, tmp_path: Path) -> None:
    async def main() -> None:
        koo = platform(tmp_path)
        async with served(below(create_app(koo), "/a/b")) as client, window(browser) as page:
            await page.go(f"{client.url}/a/b/dashboard")
            await page.until_text("h1", "Healthy")
            assert await page.run("location.pathname") == "/a/b/dashboard/"
            await page.click("[data-reset=database]")
            await page.click("#reset-go")
            await page.until_text("#reset-result", "Done")

    asyncio.run(main())


# ── what leads where ──────────────────────────────────────────────────────────────────────────────────────────────────


ORDER = "[...document.querySelectorAll('.parts article')].map(it => it.id).join(' ')"
TARGET = "document.querySelector(':target')?.id"


async def trip(client: Client, fake: FakeAnthropic, service: str, **more: str) -> None:
    """Let a service's breaker open."""
    fake.script(*[error(529, "overloaded_error")] * 3)
    for _ in range(3):
        await client.post("/api/v1/ai/query", json={"service": service, "prompt": "Hello?", **more})


def test_an_alert_leads_to_its_card_and_the_worst_card_comes_first(browser: str, tmp_path: Path) -> None:
    """The one whose button has the focus may move up: the focus stays."""

    async def main() -> None:
        async with FakeAnthropic() as fake, FakeAnthropic() as sick:
            koo = platform(tmp_path, claude(fake), replace(claude(sick), name="second"))
            async with shown(browser, koo) as (page, client):
                await page.until_text("h1", "Healthy")
                assert await page.run(ORDER) == "ai:claude ai:second"
                await page.run("document.querySelector('[data-name=second]').focus()")
                await trip(client, sick, "second")
                await page.until(f"{ORDER} === 'ai:second ai:claude'")
                assert await page.run("document.activeElement.dataset.name") == "second"
                # The verdict has the colour of the worst alert, and the word for what still works.
                await page.until("document.title === '■ Degraded · koo'")
                assert await page.run("document.querySelector('#verdict').className") == "critical"
                await page.click(".alerts a")
                await page.until(f"{TARGET} === 'ai:second'")
                koo.reset_service("second")
                await page.until(f"{ORDER} === 'ai:claude ai:second'")
            assert page.told == []

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fragment", "target"),
    [
        ("database", "database"),
        ("ai:claude", "ai:claude"),
        ("ai:claude/another-model", "ai:claude"),
        ("budget:team%2Fa%20b", "budget:team%2Fa%20b"),
        ("ai:nobody", None),
        ("%E0%A4%A", None),
    ],
)
def test_an_address_names_a_card(browser: str, tmp_path: Path, fragment: str, target: str | None) -> None:
    """As messages about alerts do; also before the first answer came."""

    async def main() -> None:
        async with FakeAnthropic() as fake:
            team = BudgetOptions(name="team", limit_usd=Decimal(3), tag="*")
            async with shown(browser, platform(tmp_path, claude(fake), budgets=(team,))) as (page, client):
                body = {"service": "claude", "prompt": "Hello?", "tag": "a b"}
                await client.post("/api/v1/ai/query", json=body)
                await page.until_text("main", "team/a b")
                await page.go(f"{client.url}/dashboard/?again#{fragment}")
                await page.until("performance.getEntriesByType('navigation')[0].name.includes('again')")
                await page.until_text("main", "team/a b")
                await page.until(f"({TARGET} ?? null) === {json.dumps(target)}")
            assert page.told == []

    asyncio.run(main())


def test_below_an_alert_stands_what_to_do(browser: str, tmp_path: Path) -> None:
    """In a fold that stays open while the page refreshes, with a link to a page of its own."""

    async def main() -> None:
        async with FakeAnthropic() as fake:
            async with shown(browser, platform(tmp_path, claude(fake))) as (page, client):
                await trip(client, fake, "claude")
                await page.until_text(".runbook summary", "What to do")
                await page.click(".runbook summary")
                alert = (await client.get("/api/v1/monitoring/alerts")).body["alerts"][0]
                known = runbook(alert["kind"])
                assert known is not None
                advice = known.advice[:60]
                assert advice[1:] in await page.text(".runbook")
                looks = (
                    "performance.getEntriesByName(location.origin + '/api/v1/monitoring/dashboard').length"
                )
                before = await page.run(looks)
                await page.until(f"{looks} > {before} + 1")
                assert advice[1:] in await page.text(".runbook")
                assert await page.run("document.querySelector('.runbook a').pathname") == alert["runbook"]
            assert page.told == []

    asyncio.run(main())


def test_no_level_of_headings_is_skipped(browser: str, tmp_path: Path) -> None:
    """Who reads by headings would look for what stands between."""

    async def main() -> None:
        async with FakeAnthropic() as fake:
            team = BudgetOptions(name="all", limit_usd=Decimal(3))
            async with shown(browser, platform(tmp_path, claude(fake), budgets=(team,))) as (page, _):
                await page.until_text("h1", "Healthy")
                heads = "[...document.querySelectorAll('h1,h2,h3,h4')].filter(it => it.checkVisibility())"
                levels = await page.run(f"{heads}.map(it => Number(it.tagName[1]))")
                assert levels[0] == 1 and set(levels) == {1, 2, 3, 4}
                assert all(later <= before + 1 for before, later in pairwise(levels))

    asyncio.run(main())


def test_a_refused_key_is_counted_beside_open_breakers(browser: str, tmp_path: Path) -> None:
    """The card says "circuit open": a green "0 open breakers" alone would contradict it."""

    async def main() -> None:
        async with (
            FakeAnthropic() as fake,
            shown(browser, platform(tmp_path, claude(fake))) as (page, client),
        ):
            await page.until_text(".facts", "0 open breakers")
            fake.script(error(401, "authentication_error"))
            await ask(client)
            await page.until_text(".facts", "0 open breakers, 1 refused key")
            assert await page.run("document.querySelector('.facts li:last-child .critical') !== null")

    asyncio.run(main())


def test_much_news_is_folded(browser: str, tmp_path: Path) -> None:
    """After a storm it would push the first card out of sight."""

    async def main() -> None:
        async with FakeAnthropic() as fake:
            names = ("claude", "second", "third", "fourth")
            koo = platform(tmp_path, *(replace(claude(fake), name=name) for name in names))
            async with shown(browser, koo) as (page, client):
                for name in names:
                    await trip(client, fake, name)
                await page.until_text("h1", "Unhealthy")
                await page.until_text(".alerts", "fourth")
                koo.reset_services()
                await page.until_text(".news summary", "Over within the last 15 minutes")
                assert not await page.run("document.querySelector('.over').checkVisibility()")
                await page.click(".news summary")
                assert "fourth" in await page.text(".over")

    asyncio.run(main())


def test_in_an_application_it_names_it(browser: str, tmp_path: Path) -> None:
    async def main() -> None:
        for number, (app, name, said) in enumerate(
            (
                (FastAPI(title="<b>Shop</b>"), "", "<b>Shop</b> koo · 127.0.0.1"),
                (FastAPI(), "", "koo 127.0.0.1"),
                (Starlette(), 'The "shop"', 'The "shop" koo · 127.0.0.1'),
            )
        ):
            folder = tmp_path / str(number)
            folder.mkdir()
            mount(app, platform(folder), name=name)
            async with served(app) as client, window(browser) as page:
                await page.go(client.url + "/dashboard/")
                await page.until_text("h1", "Healthy")
                assert (await page.text(".brand")).startswith(said)
                title = await page.run("document.title")
                assert title.startswith("● Healthy · ") and title.endswith("koo")

    asyncio.run(main())


# ── checks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sick_part_is_checked_at_once_and_unbilled(browser: str, tmp_path: Path) -> None:
    """Its reset stands back: while the other side is down it only costs more failures."""

    async def main() -> None:
        async with FakeAnthropic(strict=False) as fake:
            wrong = replace(claude(fake), name="second", api_key="wrong")
            async with shown(browser, platform(tmp_path, claude(fake), wrong)) as (page, client):
                await trip(client, fake, "claude")
                await page.until_text("[id='ai:claude']", "circuit open")
                quiet = "document.querySelector('[data-{}]').classList.contains('quiet')"
                assert not await page.run(quiet.format("check^=ai")) and await page.run(quiet.format("name"))
                asked = len(fake.queries)
                await page.click("[data-check='ai:claude']")
                await page.until_text("[id='ai:claude'] .found", "It answers, in ")
                await page.click("[data-check='ai:second']")
                await page.until_text("[id='ai:second'] .found", "The check failed: ")
                await page.click("[data-check=database]")
                await page.until_text("#database .found", "It answers, in ")
                assert len(fake.queries) == asked
            assert page.told == []

    asyncio.run(main())


def test_a_token_that_may_only_look_checks_nothing(browser: str, tmp_path: Path) -> None:
    async def main() -> None:
        koo = platform(tmp_path, token="write-4711", read_token="read-4711")
        async with shown(browser, koo) as (page, _):
            await page.until_text("#sign-in", "asks for a token")
            await page.type("#token", "read-4711")
            await page.press("Enter", 13)
            await page.until_text("h1", "Healthy")
            await page.click("[data-check=database]")
            await page.until_text("#database .found", "Not checked: this token may only look")

    asyncio.run(main())


# ── what an operator says of alerts ───────────────────────────────────────────────────────────────────────────────────


async def alert_of(client: Client) -> dict[str, Any]:
    """The one alert that is listed."""
    listed = (await client.get("/api/v1/monitoring/alerts")).body["alerts"]
    found: dict[str, Any] = listed[0]
    return found


def test_an_alert_is_acknowledged_and_silenced_on_the_page(browser: str, tmp_path: Path) -> None:
    """With a name, a reason and an end; both are taken back there too."""

    async def main() -> None:
        async with FakeAnthropic() as fake:
            async with shown(browser, platform(tmp_path, claude(fake))) as (page, client):
                await trip(client, fake, "claude")
                await page.until_text(".hush", "Acknowledge…")
                await page.click("[data-hush=acknowledge]")
                assert "Acknowledge the alert of claude?" in await page.text("#hush-title")
                await page.click("#hush-go")  # The browser asks for a name first.
                assert (await alert_of(client))["acknowledged"] is None
                await page.type("#hush-by", "ada <b>")
                await page.type("#hush-reason", "restarting it")
                await page.click("#hush-go")
                await page.until_text("#hush-result", "is acknowledged")
                await page.click("#hush-go")
                await page.until_text(".hush", "Acknowledged by ada <b>: restarting it")
                assert (await alert_of(client))["acknowledged"]["by"] == "ada <b>"

                await page.click("[data-hush=silence]")
                await page.run("document.querySelector('#hush-lasts').value = '7200'")
                await page.type("#hush-reason", "a drill")
                assert await page.run("document.querySelector('#hush-by').value") == "ada <b>"
                await page.click("#hush-go")
                await page.until_text("#hush-result", "is silent")
                await page.click("#hush-go")
                await page.until_text(".hush", "Silenced by ada <b> until")

                await page.click("[data-fold=history] summary")
                await page.until_text(
                    "[data-fold=history]", "Silenced: service down of ai:claude, by ada <b>"
                )
                await page.click("[data-fold=history] [data-hush=unsilence]")
                await page.click("#hush-go")
                await page.until_text("#hush-result", "has ended")
                await page.click("#hush-go")
                await page.click("[data-hush=unacknowledge]")
                await page.click("#hush-go")
                await page.until_text("#hush-result", "no longer acknowledged")
                await page.click("#hush-go")
                await page.until_text(".hush [data-hush=acknowledge]", "Acknowledge…")
                assert (await alert_of(client))["silenced"] is None
            assert page.told == []

    asyncio.run(main())


def test_history_and_who_was_told_are_asked_for_when_they_are_opened(browser: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with FakeAnthropic() as fake:
            async with shown(browser, platform(tmp_path, claude(fake))) as (page, client):
                await trip(client, fake, "claude")
                await page.until_text(".fold", "Who was told")
                assert not [url for url in page.urls if "history" in url or "deliveries" in url]
                await page.click("[data-fold^=told] summary")
                await page.until_text("[data-fold^=told]", "No channel is configured")
                await page.click("[data-fold=history] summary")
                row = await page.until_text("[data-fold=history] tbody", "ai:claude")
                assert "lasts" in row and "critical" in row and "Cannot be asked" in row
                for width in (320, 768):
                    await page.resize(width)
                    assert await page.run("document.documentElement.scrollWidth") <= width
            assert page.told == []

    asyncio.run(main())


# ── resets ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_reset_tells_its_effect_asks_and_reports(browser: str, tmp_path: Path) -> None:
    """By keyboard alone; closing the dialog changes nothing."""

    async def main() -> None:
        koo = platform(tmp_path)
        async with shown(browser, koo) as (page, _):
            await page.until_text("h1", "Healthy")
            await break_database(koo)
            await page.until_text("h1", "Unhealthy")
            await page.run("document.querySelector('[data-reset=database]').focus()")
            await page.run("window.button = document.activeElement")
            await page.until(
                "performance.getEntriesByName(location.origin + '/api/v1/monitoring/dashboard').length >= 4"
            )
            assert await page.run("document.activeElement === window.button")  # refreshed, and still there
            await page.press("Enter", 13)
            said = await page.until_text("#reset", "Reset the database's circuit breaker?")
            assert (
                "circuit open" in said
                and "Calls pass at once" in said
                and "5 failures in a row open it again" in said
            )
            await page.press("Escape", 27)
            await page.until(
                "!document.querySelector('#reset').open && document.activeElement === window.button"
            )
            assert koo.database.guard.breaker.phase is OPEN

            await page.press("Enter", 13)
            await page.type("#reset-reason", "host replaced")
            await page.press("Enter", 13)
            assert "its state is healthy" in await page.until_text("#reset-result", "Done")
            assert koo.database.guard.breaker.phase is CLOSED
            await page.until_text("h1", "Healthy")
            await page.press("Enter", 13)  # Close has the focus
            await page.until("!document.querySelector('#reset').open")
        assert page.told == []

    asyncio.run(main())


def test_a_service_is_reset_by_its_own_button(
    browser: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with FakeAnthropic() as fake:
            koo = platform(tmp_path, claude(fake), replace(claude(fake), name="second"))
            async with shown(browser, koo) as (page, client):
                fake.script(*[error(529, "overloaded_error")] * 6)
                await ask(client, "claude", 3)
                await ask(client, "second", 3)
                await page.until_text("#verdict", "claude: circuit open, second: circuit open")
                await page.click("[data-name=second]")
                assert "The breaker of claude-sonnet-5-5 (open) is closed" in await page.text("#reset-effect")
                await page.type("#reset-reason", "their status page says so")
                await page.type("#reset-by", "ada")
                await page.click("#reset-go")
                await page.until_text("#reset-result", "Done: second starts afresh")
                assert "by 'ada', reason: 'their status page says so'" in caplog.text
                services = koo.services
                assert services["second"].default_guard.breaker.phase is CLOSED
                assert services["claude"].default_guard.breaker.phase is OPEN
                await page.until_text("#reset-effect", "Now: healthy")

    asyncio.run(main())


# ── when the server does not answer ───────────────────────────────────────────────────────────────────────────────


def test_without_its_server_it_says_so_and_keeps_what_it_knew(browser: str, tmp_path: Path) -> None:
    async def main() -> None:
        koo = platform(tmp_path)
        async with proxied(create_app(koo)) as proxy, window(browser) as page:
            await page.go(f"http://127.0.0.1:{proxy.port}/dashboard/")
            await page.until_text("h1", "Healthy")
            await proxy.refuse()
            proxy.reset_all()
            await page.until_text("h1", "Disconnected")
            assert await page.run("document.title") == "○ Disconnected · koo"
            said = await page.text("#verdict")
            assert "cannot be reached" in said and "then it was healthy" in said
            assert "disconnected · numbers of" in await page.text("#link")
            assert "connections in use" in await page.text("main")
            grey, ink = "var(--muted)", "getComputedStyle(document.querySelector('main .badge')).color"
            assert await page.run(ink) == await page.run(_colour_of(grey))
            assert not await page.run(
                "document.querySelector('[data-reset]').checkVisibility({visibilityProperty: true})"
            )
            assert "Trying again in" in await page.until_text("#below", "Trying again in")
            await proxy.accept()
            await try_now(page)
            await page.until_text("h1", "Healthy")
            assert "live" in await page.text("#link")
            assert await page.run(ink) == await page.run(_colour_of("var(--ok)"))

    asyncio.run(main())


def _colour_of(css: str) -> str:
    return f"""(() => {{ const it = document.body.appendChild(document.createElement('i')); it.style.color = '{css}';
        const found = getComputedStyle(it).color; it.remove(); return found; }})()"""


def test_an_answer_that_is_late_makes_the_last_one_stale(browser: str, tmp_path: Path) -> None:
    async def main() -> None:
        koo = platform(tmp_path)
        async with proxied(create_app(koo)) as proxy, window(browser) as page:
            await page.go(f"http://127.0.0.1:{proxy.port}/dashboard/")
            await page.until_text("#link", "live")
            proxy.black_hole()
            # the page's clock jumps, so that nobody has to wait
            await page.run("{ const real = Date.now; Date.now = () => real() + 60_000; }")
            said = await page.until_text("#link", "stale since")
            assert "1 min" in said or "60 s" in said or "61 s" in said
            assert await page.run("document.documentElement.dataset.link") == "stale"
            assert "So it was at" in await page.until_text("#verdict", "Healthy (stale)")
            proxy.heal()
            proxy.reset_all()

    asyncio.run(main())


def test_something_else_on_the_port_is_not_believed(browser: str, tmp_path: Path) -> None:
    """A proxy's page with status 200, an older server: no number of theirs is shown, and the page says why."""

    async def main() -> None:
        app = create_app(platform(tmp_path))
        answers: list[HTMLResponse] = []

        @app.middleware("http")
        async def between(request: Request, call_next: Any) -> Any:
            return answers[0] if answers and "/api/" in request.url.path else await call_next(request)

        async with served(app) as client, window(browser) as page:
            await page.go(client.url + "/dashboard/")
            await page.until_text("h1", "Healthy")
            answers.append(HTMLResponse("<h1>Welcome</h1>"))
            await page.until_text("h1", "Unknown")
            assert "not JSON" in await page.text("#verdict")
            answers[0] = HTMLResponse("[]")
            await try_now(page)
            await page.until_text("#verdict", "not koo's")
            answers[0] = HTMLResponse('{"summary": {"overall_health": "healthy"}, "database": 3}')
            await try_now(page)
            await page.until_text("#verdict", "cannot show the server's answer")
            assert await page.text("main") == ""
            answers.clear()
            await page.until_text("h1", "Healthy")
            assert "connections in use" in await page.text("main")

    asyncio.run(main())


def test_pauses_grow_with_failures_and_in_hidden_tabs(browser: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with shown(browser, platform(tmp_path)) as (page, _):
            await page.until_text("h1", "Healthy")
            feed = "import('/dashboard/feed.js')"
            seen = [
                await page.run(f"{feed}.then(it => it.pauseMs({n}, false))") for n in (0, 1, 2, 3, 4, 500)
            ]
            assert seen == [2000, 2000, 4000, 8000, 10_000, 10_000]
            hidden = [await page.run(f"{feed}.then(it => it.pauseMs({n}, true))") for n in (0, 9)]
            assert hidden == [15_000, 15_000]

    asyncio.run(main())


EXAMPLES = json.loads((Path(__file__).parents[1] / "words.json").read_text())
IN_MS = ("span", "until")
"""What the page counts in milliseconds, as its clock does."""
WORDS: list[tuple[str, str]] = [
    ("plainly('no time', 0)", "no time"),
    ("String(timeOf('2026-11-23T22:27:19.474790+00:00'))", "1795472839474"),
    ("String(timeOf(null))", "null"),
    ("String(timeIn('until 2026-11-23T22:27:19+00:00'))", "1795472839000"),
]


def call_of(one: dict[str, Any]) -> str:
    """An example that the terminal shares, as the page's own call."""
    given = one["given"]
    numbers = [round(number * 1000) for number in given] if one["rule"] in IN_MS else given
    return f"{one['rule']}({', '.join(map(json.dumps, numbers))})"


def test_numbers_are_written_as_people_read_them(browser: str, tmp_path: Path) -> None:
    """As the terminal writes them: `tests/cli/test_words.py` runs the same examples."""
    wanted = dict([*((call_of(one), one["reads"]) for one in EXAMPLES), *WORDS])

    async def main() -> None:
        async with shown(browser, platform(tmp_path)) as (page, _):
            await page.until_text("h1", "Healthy")
            names = sorted({call.removeprefix("String(").partition("(")[0] for call in wanted})
            calls = ", ".join(f"[{json.dumps(call)}, {call}]" for call in wanted)
            script = f"import('/dashboard/words.js').then(({{{', '.join(names)}}}) => [{calls}])"
            assert dict(await page.run(script)) == wanted

    asyncio.run(main())


# ── tokens ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_token_opens_the_page_and_stays_in_the_tab(browser: str, tmp_path: Path) -> None:
    async def main() -> None:
        koo = platform(tmp_path, token="write-4711", read_token="read-4711")
        async with shown(browser, koo) as (page, client):
            await page.until_text("#sign-in", "asks for a token")
            assert await page.run("document.title") == "○ Locked · koo"
            assert await page.text("main") == ""
            await page.type("#token", "nonsense")
            await page.press("Enter", 13)
            await page.until_text("#sign-in-why", "The token is not known")
            await page.type("#token", "ключ")  # which no header can carry
            await page.press("Enter", 13)
            await page.until_text("#sign-in-why", "letters")
            await page.type("#token", "read-4711")
            await page.press("Enter", 13)
            await page.until_text("h1", "Healthy")

            await break_database(koo)
            await page.click("[data-reset=database]")
            await page.click("#reset-go")
            assert "Nothing was reset" in await page.until_text("#reset-result", "this token may only look")
            assert koo.database.guard.breaker.phase is OPEN
            await page.type("#reset-token", "write-4711")
            await page.press("Enter", 13)
            await page.until_text("#reset-result", "Done")
            assert koo.database.guard.breaker.phase is CLOSED

            places = "[{...localStorage}, document.cookie, location.href, document.documentElement.outerHTML]"
            assert "4711" not in await page.run(f"JSON.stringify({places})")
            assert await page.run("sessionStorage.getItem('koo.token')") == "write-4711"
            assert [url for url in page.urls if "4711" in url] == []
            await page.click("#reset-go")
            await page.click("#forget")
            await page.until_text("#sign-in", "asks for a token")
            assert await page.run("sessionStorage.length") == 0
            assert await page.text("main") == ""
            await page.go(client.url + "/dashboard/")
            await page.until_text("#sign-in", "asks for a token")

    asyncio.run(main())


# ── strangers ─────────────────────────────────────────────────────────────────────────────────────────────────────

ATTACKS = """<!doctype html><title>stranger</title>
<form id="form" method="post" enctype="text/plain" target="hole" action="{reset}">
<input name='{{"reason":"' value='"}}'></form>
<iframe name="hole"></iframe><iframe id="framed" src="{koo}/dashboard/"></iframe>
<script>
const post = (options) => fetch("{reset}", {{method: "POST", ...options}})
  .then((answer) => `${{answer.type}} ${{answer.status}}`, () => "failed");
const json = {{"Content-Type": "application/json"}};
async function attack() {{
  document.getElementById("form").submit();
  const tried = [
    await post({{mode: "no-cors", body: "{{}}"}}),
    await post({{mode: "no-cors"}}),
    await post({{mode: "no-cors", credentials: "include", referrerPolicy: "no-referrer"}}),
    await post({{headers: json, body: "{{}}"}}),
    await fetch("{koo}/api/v1/monitoring/dashboard").then((answer) => answer.text(), () => "failed"),
  ];
  navigator.sendBeacon("{reset}", "{{}}");
  return tried;
}}
</script>"""


@pytest.mark.parametrize("stranger", ["http://127.0.0.1", "http://localhost", "http://evil.example"])
def test_a_strangers_page_can_reset_nothing_and_read_nothing(
    browser: str, tmp_path: Path, stranger: str
) -> None:
    """Of another port, of another name for this machine, and of another site. The requests do arrive."""

    async def main() -> None:
        koo = platform(tmp_path)
        app = create_app(koo)
        posts: list[int] = []
        all_came = asyncio.Event()

        @app.middleware("http")
        async def count(request: Request, call_next: Any) -> Any:
            answer = await call_next(request)
            if request.method == "POST":
                posts.append(answer.status_code)
                if len(posts) == 5:  # the form, three of fetch, the beacon
                    all_came.set()
            return answer

        async with served(app) as client, window(browser) as page:
            await break_database(koo)
            reset = f"{client.url}/api/v1/monitoring/database/reset-circuit-breaker"
            evil = FastAPI()
            evil.add_api_route("/", lambda: HTMLResponse(ATTACKS.format(koo=client.url, reset=reset)))
            async with served(evil) as theirs:
                await page.go(f"{stranger}:{urlsplit(theirs.url).port}/")
                await page.until("typeof attack === 'function'")
                tried = await page.run("attack()")
                assert tried == ["failed"] * 5, "not even an opaque answer reaches another origin"
                async with asyncio.timeout(WAIT_S):
                    await all_came.wait()
                assert set(posts) == {403}
                assert koo.database.guard.breaker.phase is OPEN
                # nor can it show the page in a frame, to have its buttons clicked
                await page.until("document.getElementById('framed').contentDocument === null")
                await page.until_told("frame-ancestors")

    asyncio.run(main())


def test_a_name_that_suddenly_points_here_is_not_served(browser: str, tmp_path: Path) -> None:
    """DNS rebinding: the stranger's own name leads to this machine, so its page is of the same origin as ours."""

    async def main() -> None:
        koo = platform(tmp_path)
        async with served(create_app(koo)) as client, window(browser) as page:
            await break_database(koo)
            await page.go(f"http://evil.example:{urlsplit(client.url).port}/dashboard/")
            await page.until_text("body", "not known by the name")
            reset = "fetch('/api/v1/monitoring/database/reset-circuit-breaker', {method: 'POST'})"
            # The refusal's own policy allows the page nothing, so the request is not even sent.
            assert await page.run(f"{reset}.then(a => a.status, () => 'blocked')") == "blocked"
            assert koo.database.guard.breaker.phase is OPEN

    asyncio.run(main())
