"""The page at /dashboard/ in a real browser, used by people and attacked by other sites.

These tests are skipped on a machine without Chromium; `test_page.py` tests what needs no browser. What the page's
modules decide is tested in `test_page_modules.py`.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import math
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Receive, Scope, Send

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
from tests.web.test_page import below

pytestmark = [needs_browser, pytest.mark.slow]

LONG = "x" * 64
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><b>bold" + "x" * 60
AXE = Path(__file__).parents[1] / "page" / "axe.min.js.gz"
AXE_SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
FOUND = """axe.run(document, {resultTypes: ['violations']}).then(({violations}) => violations.flatMap(
    ({id, nodes}) => nodes.map(({target, failureSummary}) => `${id}: ${target} ${failureSummary}`)))"""
VIEWS = ("", "/service/claude", "/database", "/incidents", "/timeline", "/spend", "/requests", "/fleet")


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
    """Fail as often as it takes to open the breaker. Its probe succeeds, but that does not close the breaker early."""
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
    """Click the button that ends a pause, unless the pause has just ended."""
    await page.run("document.querySelector('[data-act=again]')?.click()")


async def ask(client: Client, service: str = "claude", times: int = 1) -> int:
    status = 0
    for _ in range(times):
        reply = await client.post("/api/v1/ai/query", json={"service": service, "prompt": "Hello?"})
        status = reply.status
    return status


async def trip(client: Client, fake: FakeAnthropic, service: str, **more: str) -> None:
    """Open a service's breaker."""
    fake.script(*[error(529, "overloaded_error")] * 3)
    for _ in range(3):
        await client.post("/api/v1/ai/query", json={"service": service, "prompt": "Hello?", **more})


# ── what it shows ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_page_shows_the_state_of_everything_and_updates_itself(browser: str, tmp_path: Path) -> None:
    """A service goes down and comes back: the verdict, the reason, what koo does, what to do, the card."""

    async def main() -> None:
        async with FakeAnthropic() as fake, FakeAnthropic() as well:
            off = ServiceOptions(name="openai", kind="openai", model="gpt-6.1-terra")
            local = ServiceOptions(
                name="local", kind="local", model="local", disabled_by="AI_LOCAL_ENABLED=false"
            )
            second = replace(claude(well), name="second")
            koo = platform(
                tmp_path, second, claude(fake, breaker=BreakerOptions(failure_threshold=3)), off, local
            )
            async with shown(browser, koo) as (page, client):
                await page.until_text("h1", "Healthy")
                assert await page.run("document.title") == "● Healthy · koo"
                await page.until_text("#verdict", "The database and both AI services work")
                await page.until_text(".unconfigured", "1 service has no key")
                assert "local is not included above: switched off by AI_LOCAL_ENABLED=false." in (
                    await page.text(".unconfigured")
                )
                assert await page.run("document.querySelectorAll('.card, .alert, .lead').length") == 0
                await page.run("window.here = true")

                await trip(client, fake, "claude")
                await page.until_text("h1", "Degraded")
                lead = await page.until_text(".lead", "Check now")
                for words in ("Cause claude: Cannot be called", "Refuses every call", "tests recovery in"):
                    assert words in lead
                assert await page.run("document.title") == "■ Degraded · koo"
                assert await page.run("document.querySelector('#verdict').classList.contains('critical')")
                assert "svg" in await page.run("document.querySelector('link[rel=icon]').href")
                card = await page.text("[data-card=claude]")
                for words in ("circuit open", "3 failures in a row", "Next attempt in", "0 %", "status 529"):
                    assert words in card
                await page.until_text(".well", "second")  # a healthy service stays one line

                await page.click(".alert .toggle")
                listed = (await client.get("/api/v1/monitoring/alerts")).body["alerts"][0]
                known = runbook(listed["kind"])
                assert known is not None and known.advice[1:60] in await page.text(".runbook")
                assert await page.run("document.querySelector('.runbook a').pathname") == listed["runbook"]
                await page.until_text(".told", "No channel is configured")

                koo.reset_service("claude")
                assert await ask(client) == 200
                await page.until_text("h1", "Healthy")
                assert "The service can be called again" in await page.until_text(".over", "claude")
                assert await page.run("window.here")  # it updated itself and was not reloaded
                urls = [url for url in page.urls if not url.startswith(("data:", "about:"))]
                assert len(urls) > 40 and [url for url in urls if not url.startswith(client.url)] == []
            assert page.told == []

    asyncio.run(main())


def test_each_view_fits_and_axe_finds_nothing(browser: str, tmp_path: Path) -> None:
    """Each view is tested wide and narrow, dark and light, with as many problems as possible."""

    async def main() -> None:
        script = gzip.decompress(AXE.read_bytes())
        assert hashlib.sha256(script).hexdigest() == AXE_SHA256
        async with FakeAnthropic() as fake:
            team = BudgetOptions(name="team", limit_usd=Decimal(3), tag="*")
            koo = platform(tmp_path, claude(fake), replace(claude(fake), name="second"), budgets=(team,))
            async with shown(browser, koo) as (page, client):
                await page.until_text("h1", "Healthy")
                body = {"service": "second", "prompt": "Hello?", "tag": "a b"}
                assert (await client.post("/api/v1/ai/query", json=body)).status == 200
                await trip(client, fake, "claude")
                await page.until_text(".lead", "Check now")
                await page.run(script.decode())
                for number, view in enumerate(VIEWS):
                    await page.run(f"location.hash = '#{view}'")
                    await page.until("!document.querySelector('main').innerText.includes('Loading…')")
                    for width in (320, 768, 1280):
                        await page.resize(width)
                        await page.until(f"document.documentElement.scrollWidth <= {width}")
                    scheme = ("dark", "light")[number % 2]
                    await page.prefer(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
                    assert await page.run(FOUND) == [], (view, scheme)
                    heights = "[...document.querySelectorAll('main button')].map(it => it.offsetHeight)"
                    assert await page.run(f"Math.min(99, ...{heights})") >= 24
                await page.run("location.hash = '#/incidents?component=ai:claude'")
                await page.click("tbody a")
                incident = await page.until_text("main", "Why it opened")
                assert "claude/claude-sonnet-5-5 open" in incident and "Refused 0 calls in all" in incident
                assert await page.run(FOUND) == []
                wanted = await page.run("document.querySelector('a[download]').href")
                report = await client.get(wanted.removeprefix(client.url))
                assert report.status == 200 and "claude" in report.text
                assert await page.run("document.querySelectorAll('.chart').length") == 0
                await page.run("location.hash = '#ai:claude/some-model'")
                await page.until_text("h1", "claude")
                await page.until("document.querySelectorAll('.chart canvas').length === 4")
                await page.click(".chart summary")
                await page.until("document.querySelectorAll('.chart tbody tr').length > 10")
            assert page.told == []

    asyncio.run(main())


def test_a_card_without_changes_is_not_redrawn(browser: str, tmp_path: Path) -> None:
    """Only text changes each second, and a change of one part redraws no other."""

    async def main() -> None:
        async with FakeAnthropic() as fake:
            koo = platform(tmp_path, claude(fake), replace(claude(fake), name="second"))
            async with shown(browser, koo) as (page, client):
                await page.until("document.querySelectorAll('.lines .sparkline').length >= 3")
                await page.run("""{
                    window.touched = [];
                    const note = (records) => touched.push(...records.map(({target, type}) => {
                        const element = target.closest ? target : target.parentElement;
                        return `${type} ${element?.closest('[data-line]')?.dataset.line}`;
                    }));
                    new MutationObserver(note).observe(document.body,
                        {subtree: true, childList: true, characterData: true, attributes: true});
                }""")
                assert await ask(client) == 200
                await page.until("touched.some((it) => it.endsWith(' claude'))")
                touched = await page.run("touched")
                assert not [it for it in touched if it.startswith("childList") and it.endswith(" second")]

    asyncio.run(main())


def test_the_page_shows_money_and_the_database_as_the_api_does(browser: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with FakeAnthropic() as fake:
            limits = LimitOptions(per_minute=2, per_hour=1000, per_day=10_000)
            service = claude(fake, limits=limits, daily_budget_usd=Decimal("0.5"))
            async with shown(browser, koo := platform(tmp_path, service)) as (page, client):
                async with koo.database.session_scope():
                    await page.until_text("[data-line=Database]", "1 of 30 used")
                assert await ask(client, times=3) == 429
                await page.run("location.hash = '#/service/claude'")
                shown_limits = await page.until_text(".limits", "2 of 2")
                assert "2 of 1,000" in shown_limits
                health = (await client.get("/api/v1/ai/services/claude/health")).body
                spent = health["rate_limits"]["daily_budget"]["spent"]
                exact = f"{spent} spent and 0 reserved of 0.5, in USD"
                await page.until(f"document.querySelector('.money .beside')?.title === {json.dumps(exact)}")
                await page.until_text(".money", f"${Decimal(spent):.6f}".rstrip("0"))
                await page.run("location.hash = '#/requests?service=claude'")
                await page.until("document.querySelectorAll('tbody tr').length === 2")
            assert page.told == []

    asyncio.run(main())


def leave_unsettled(file: Path, budget: str, pico: int) -> None:
    """Money granted to a process that is then killed."""
    with sqlite3.connect(file) as state:
        state.execute(
            "INSERT INTO koo_purses SELECT budget, period, 'gone', ?, 0, 0, 0, 0 FROM koo_treasuries WHERE budget = ?",
            (pico, budget),
        )
        state.execute("UPDATE koo_treasuries SET booked = booked + ? WHERE budget = ?", (pico, budget))
    state.close()


def noon() -> SkippingClock:
    """Pretend that the test began at noon: in the last hours of a day nothing is used up before the day ends."""
    return SkippingClock(time.time() // DAY_S * DAY_S + DAY_S / 2)


def test_the_page_shows_budgets_of_every_kind(browser: str, tmp_path: Path) -> None:
    """Each budget shows what it counts, how close it is to its limit and what happens then. Idle and unsettled money
    is shown separately.
    """

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
                card = await page.until_text("#budget-all", "$0.01 unsettled")
                for words in (
                    "all",
                    "each month",
                    "Counts all services together",
                    "of $0.05",
                    "calls are refused",
                ):
                    assert words in card
                dear = await page.until_text("#budget-dear", "$0.0024 spent of $0.0028")
                for words in (
                    f"Counts {model}",
                    "second is used instead",
                    "Above 80 % of the limit",
                    "Runs out in",
                ):
                    assert words in dear
                await page.until_text(".budgets", HOSTILE)
                await page.resize(320)
                assert await page.run("document.documentElement.scrollWidth") <= 320
            assert page.told == []

    asyncio.run(main())


def test_a_hostile_model_name_stays_text_and_a_long_one_fits(browser: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with FakeAnthropic() as fake:
            koo = platform(
                tmp_path, replace(claude(fake), name=LONG, model=f"{HOSTILE}</b><script>1"), claude(fake)
            )
            async with shown(browser, koo) as (page, _):
                assert f"{HOSTILE}</b><script>1" in await page.until_text(".lines", HOSTILE)
                await page.resize(320)
                assert await page.run("document.documentElement.scrollWidth") <= 320
                await page.run(f"location.hash = '#/service/{LONG}'")
                await page.until_text("h1", LONG)
                assert await page.run("document.querySelectorAll('main img, main b b').length") == 0
                assert await page.run("document.title") == "● Healthy · koo"
                await page.click(".menu summary")
                await page.click("[data-reset]")
                await page.until_text("#act-title", LONG)
                await page.click("#act-go")
                assert "was reset" in await page.until_text("#act-result", "Done")
                assert await page.run("document.documentElement.scrollWidth") <= 320
            assert page.told == []

    asyncio.run(main())


def test_the_page_works_below_a_path_and_without_motion(browser: str, tmp_path: Path) -> None:
    async def main() -> None:
        koo = platform(tmp_path)
        async with served(below(create_app(koo), "/a/b")) as client, window(browser) as page:
            await page.go(f"{client.url}/a/b/dashboard")
            await page.until_text("h1", "Healthy")
            assert await page.run("location.pathname") == "/a/b/dashboard/"
            moving = "document.getAnimations().filter(one => one.playState === 'running').length"
            await page.until(f"document.querySelector('.pulse') && {moving}")
            await page.prefer(prefers_reduced_motion="reduce")
            await page.until(f"{moving} === 0")
            await page.run("location.hash = '#/database'")
            await page.until("document.querySelectorAll('.chart canvas').length === 4")
            await page.click(".menu summary")
            await page.click("[data-reset=database]")
            await page.click("#act-go")
            await page.until_text("#act-result", "Done")
            assert [url for url in page.urls if "/a/b/" not in url and url.startswith(client.url)] == []

    asyncio.run(main())


def test_the_page_of_a_mounted_application_shows_the_applications_name(browser: str, tmp_path: Path) -> None:
    async def main() -> None:
        app = FastAPI(title="<b>Shop</b>")
        mount(app, platform(tmp_path))
        async with served(app) as client, window(browser) as page:
            await page.go(client.url + "/dashboard/")
            await page.until_text("h1", "Healthy")
            assert (await page.text(".brand")).startswith("<b>Shop</b> koo · 127.0.0.1")
            assert await page.run("document.title") == "● Healthy · <b>Shop</b> · koo"

    asyncio.run(main())


# ── what an operator does ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_failing_service_is_checked_immediately_and_without_cost(browser: str, tmp_path: Path) -> None:
    """The reset is hidden in a menu: while the dependency is down, it only causes more failures."""

    async def main() -> None:
        async with FakeAnthropic(strict=False) as fake:
            wrong = replace(claude(fake), name="second", api_key="wrong")
            async with shown(browser, platform(tmp_path, claude(fake), wrong)) as (page, client):
                await trip(client, fake, "claude")
                await page.until_text(".lead", "Check now")
                assert not await page.run("document.querySelector('[data-reset]').checkVisibility()")
                assert (
                    await page.run(
                        "[...document.querySelectorAll('button:not(.quiet)')].map(it => it.innerText).join()"
                    )
                    == "Check now"
                )
                asked = len(fake.queries)
                await page.click(".lead [data-check='ai:claude']")
                await page.until_text(".lead .found", "It responded in ")
                await page.run("location.hash = '#/service/second'")
                await page.until_text("h1", "second")
                await page.click("[data-check='ai:second']")
                await page.until_text(".found", "The check failed: ")
                assert len(fake.queries) == asked
            assert page.told == []

    asyncio.run(main())


async def alert_of(client: Client) -> dict[str, Any]:
    """Return the only listed alert."""
    listed = (await client.get("/api/v1/monitoring/alerts")).body["alerts"]
    found: dict[str, Any] = listed[0]
    return found


def test_an_alert_is_acknowledged_and_silenced_on_the_page(browser: str, tmp_path: Path) -> None:
    """The operator enters a name, a reason and an end, and can withdraw both there."""

    async def main() -> None:
        async with FakeAnthropic() as fake:
            async with shown(browser, platform(tmp_path, claude(fake))) as (page, client):
                await trip(client, fake, "claude")
                await page.until_text(".alert", "Cannot be called")
                await page.click(".alert .toggle")
                await page.click("[data-hush=acknowledge]")
                await page.until_text("#act-title", "Acknowledge the alert of claude?")
                await page.click("#act-go")  # the page asks for a name first
                assert (await alert_of(client))["acknowledged"] is None
                await page.type("#act-by", "ada <b>")
                await page.type("#act-reason", "restarting it")
                await page.click("#act-go")
                await page.until_text("#act-result", "is acknowledged")
                await page.click("#act-go")
                await page.until_text(".hushed", "Acknowledged by ada <b>: restarting it")
                assert (await alert_of(client))["acknowledged"]["by"] == "ada <b>"

                await page.click("[data-hush=silence]")
                await page.type("#act-reason", "a drill")
                assert await page.run("document.querySelector('#act-by').value") == "ada <b>"
                await page.click("#act-go")
                await page.until_text("#act-result", "is silenced")
                await page.click("#act-go")
                await page.until_text(".hushed", "Silenced by ada <b> until")

                await page.run("location.hash = '#/timeline'")
                await page.until_text(".told", "Silenced: service down of ai:claude, by ada <b>")
                row = await page.until_text("[aria-labelledby=week] tbody", "ai:claude")
                assert "active" in row and "critical" in row and "Cannot be called" in row
                marks = await page.until_text(".marks", "circuit claude Opened: ")
                assert "act koo" not in marks and "alert claude Cannot be called: " in marks
                await page.click("[data-hush=unsilence]")
                await page.click("#act-go")
                await page.until_text("#act-result", "has ended")
                assert (await alert_of(client))["silenced"] is None
            assert page.told == []

    asyncio.run(main())


def test_a_reset_explains_its_effect_asks_and_reports(
    browser: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The keyboard alone is enough, and closing the dialog changes nothing."""

    async def main() -> None:
        koo = platform(tmp_path)
        async with shown(browser, koo, "/dashboard/#database") as (page, _):
            await page.until_text("h1", "Database healthy")
            await break_database(koo)
            await page.until_text("h1", "circuit open")
            await page.run("document.querySelector('.menu summary').focus()")
            await page.press("Enter", 13)
            await page.press("Tab", 9)
            await page.run("window.button = document.activeElement")
            assert await page.run("button.dataset.reset") == "database"
            await page.press("Enter", 13)
            said = await page.until_text("#act", "Reset the database's circuit breaker?")
            for words in ("circuit open", "Calls pass immediately", "5 failures in a row open it again"):
                assert words in said
            await page.press("Escape", 27)
            await page.until("!document.querySelector('#act') && document.activeElement === window.button")
            assert koo.database.guard.breaker.phase is OPEN

            await page.press("Enter", 13)
            await page.until("document.querySelector('#act')?.open")
            await page.type("#act-reason", "host replaced")
            await page.type("#act-by", "ada")
            await page.press("Enter", 13)
            assert "its state is healthy" in await page.until_text("#act-result", "Done")
            assert koo.database.guard.breaker.phase is CLOSED
            assert "by 'ada', reason: 'host replaced'" in caplog.text
            await page.until_text("#act-effect", "Now: healthy")
            await page.press("Enter", 13)  # Close has the focus
            await page.until("!document.querySelector('#act')")
        assert page.told == []

    asyncio.run(main())


# ── one stream per browser ────────────────────────────────────────────────────────────────────────────────────────


def test_two_tabs_share_one_stream_and_the_second_takes_it_over(browser: str, tmp_path: Path) -> None:
    """Over HTTP/1.1 a browser opens six connections to a server: seven tabs with a stream each would block."""

    async def main() -> None:
        koo = platform(tmp_path)
        app = create_app(koo)
        streams: list[str] = []
        taken_over = asyncio.Event()

        @app.middleware("http")
        async def count(request: Request, call_next: Any) -> Any:
            if request.url.path.endswith("/live"):
                streams.append(request.url.path)
                if len(streams) == 2:
                    taken_over.set()
            return await call_next(request)

        async with served(app) as client, window(browser) as page:
            await page.go(client.url + "/dashboard/")
            await page.until("document.querySelector('#link')?.title === 'over a stream'")
            await page.run("void (window.other = window.open(location.href))")
            link = "other.document.querySelector('#link')"
            await page.until(f"{link}?.title === 'over another tab'")
            await break_database(koo)
            heard = f"{link}.title === 'over another tab'"
            await page.until(f"{heard} && other.document.querySelector('h1').innerText === 'Unhealthy'")
            assert len(streams) == 1
            await page.go("about:blank")
            async with asyncio.timeout(WAIT_S):
                await taken_over.wait()
        assert page.told == []

    asyncio.run(main())


# ── when the server does not respond ──────────────────────────────────────────────────────────────────────────────


def _colour_of(css: str) -> str:
    return f"""(() => {{ const it = document.body.appendChild(document.createElement('i')); it.style.color = '{css}';
        const found = getComputedStyle(it).color; it.remove(); return found; }})()"""


def test_without_its_server_the_page_says_so_and_keeps_the_last_state(browser: str, tmp_path: Path) -> None:
    """First responses are late, then the server is gone, then it is back: no number looks newer than it is."""

    async def main() -> None:
        koo = platform(tmp_path)
        async with proxied(create_app(koo)) as proxy, window(browser) as page:
            await page.go(f"http://127.0.0.1:{proxy.port}/dashboard/")
            await page.until_text("#link", "live")
            proxy.black_hole()
            # the page's clock jumps, so that the test need not wait
            await page.run("{ const real = Date.now; Date.now = () => real() + 60_000; }")
            await page.until_text("#link", "stale since")
            assert "The state below is from" in await page.until_text("#verdict", "Healthy (stale)")
            await proxy.refuse()
            proxy.reset_all()
            await page.until_text("h1", "Disconnected")
            assert await page.run("document.title") == "○ Disconnected · koo"
            said = await page.text("#verdict")
            assert "cannot be reached" in said and "when it was healthy" in said
            await page.until_text("#link", "disconnected · numbers from")
            await page.until_text(".lines", "Database")
            grey, ink = "var(--muted)", "getComputedStyle(document.querySelector('.lines .shape')).color"
            assert await page.run(ink) == await page.run(_colour_of(grey))
            assert "Trying again in" in await page.until_text(".lost", "Trying again in")
            proxy.heal()
            await proxy.accept()
            await try_now(page)
            await page.until_text("h1", "Healthy")
            await page.until_text("#link", "live")
            assert await page.run(ink) == await page.run(_colour_of("var(--ok)"))

    asyncio.run(main())


class HeldBack:
    """A proxy that collects a response before it sends any of it: the stream's never ends."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/monitoring/live"):
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        await self._app(scope, receive, send)


def test_behind_a_proxy_that_holds_the_stream_back_the_page_polls_every_two_seconds(
    browser: str, tmp_path: Path
) -> None:
    """With the pause of a working stream, its numbers would be stale before the next ones."""

    async def main() -> None:
        app = create_app(platform(tmp_path))
        app.add_middleware(HeldBack)
        async with served(app) as client, window(browser) as page:
            await page.go(client.url + "/dashboard/")
            await page.until_text("#link", "live")
            await page.until(
                "performance.getEntriesByType('resource').filter((one) => /dashboard$/.test(one.name)).length > 1"
            )
            link = "import(new URL('data/store.js', location.href)).then(({ link: { value } }) => value)"
            assert await page.until(f"{link}.then((it) => !it.asking && it.dueAt - it.cameAt)") < 2_500
            assert any(url.endswith("/monitoring/live") for url in page.urls)

    asyncio.run(main())


WRONG_CLOCK = "{ const real = Date.now; Date.now = () => real() + 10 * 86_400_000; }"


def test_the_timeline_follows_the_servers_clock_if_the_browsers_is_wrong(
    browser: str, tmp_path: Path
) -> None:
    async def main() -> None:
        async with served(create_app(platform(tmp_path))) as client, window(browser) as page:
            await page.send("Page.addScriptToEvaluateOnNewDocument", source=WRONG_CLOCK)
            await page.go(client.url + "/dashboard/#/timeline")
            assert "None." in await page.until_text("[aria-labelledby=week]", ".")
            # Until the first event of the stream, the page counts from the wrong clock.
            await page.until_text(".marks", " koo")
            await page.until("!/\\d{4}-/.test(document.querySelector('.marks').innerText)")
        assert page.told == []

    asyncio.run(main())


def test_the_page_shows_no_numbers_from_another_server_on_the_port(browser: str, tmp_path: Path) -> None:
    """For a proxy's page with status 200 or an older server, the page shows no numbers and the reason."""

    async def main() -> None:
        app = create_app(platform(tmp_path))
        answers: list[HTMLResponse] = []

        @app.middleware("http")
        async def between(request: Request, call_next: Any) -> Any:
            if request.url.path.endswith("/live"):
                return HTMLResponse(status_code=503)  # a stream that is already open would continue
            return answers[0] if answers and "/api/" in request.url.path else await call_next(request)

        async with served(app) as client, window(browser) as page:
            await page.go(client.url + "/dashboard/")
            await page.until_text("h1", "Healthy")
            answers.append(HTMLResponse("<h1>Welcome</h1>"))
            await page.until_text("h1", "Unknown")
            await page.until_text("#verdict", "not JSON")
            answers[0] = HTMLResponse("[]")
            await try_now(page)
            await page.until_text("#verdict", "not koo's")
            answers[0] = HTMLResponse('{"summary": {"overall_health": "healthy"}, "database": 3}')
            await try_now(page)
            await page.until_text("#verdict", "cannot show the server's response")
            answers.clear()
            await try_now(page)
            await page.until_text("h1", "Healthy")
            await page.until_text(".lines", "Database")

    asyncio.run(main())


# ── tokens ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def log_in(page: Window, token: str) -> None:
    """Log in with the form, as people do."""
    await page.until("document.querySelector('#token') !== null")
    await page.type("#token", token)
    await page.press("Enter", 13)


def test_a_session_opens_the_page_and_a_read_session_offers_no_acts(browser: str, tmp_path: Path) -> None:
    """The token is typed into the form once, and is then nowhere in the browser where a script could read it."""

    async def main() -> None:
        koo = platform(tmp_path, token="write-4711", read_token="read-4711")
        async with shown(browser, koo, "/dashboard/") as (page, client):
            await log_in(page, "nonsense")
            await page.until_text(".wrong", "This token is not valid")
            await log_in(page, "read-4711")
            await page.until_text("h1", "Healthy")
            await break_database(koo)
            await page.run("location.hash = '#/database'")
            await page.until_text("h1", "circuit open")
            assert await page.run("document.querySelector('[data-check]') === null")
            await page.click(".menu summary")
            await page.click("[data-reset=database]")
            said = await page.until_text("#act", "read-only")
            assert "Calls pass immediately" in said and "act-go" not in await page.run(
                "document.body.innerHTML"
            )
            await page.click("#act-cancel")
            places = "[{...localStorage}, {...sessionStorage}, document.cookie, location.href, document.body.innerHTML]"
            assert "4711" not in await page.run(f"JSON.stringify({places})")
            assert [url for url in page.urls if "4711" in url] == []
            await page.click("#log-out")
            await log_in(page, "write-4711")
            await page.until_text("h1", "Unhealthy")
            await page.click(".lead [data-check=database]")
            await page.until_text(".lead .found", "It responded in ")
            # The session ends elsewhere: the page shows nothing more and leads to the login form.
            await page.send("Network.clearBrowserCookies")
            await page.click(".lead [data-check=database]")
            await page.until_text("h1", "Log in to see the state")
            assert await page.run("document.title") == "○ Locked · koo"
            assert "Database" not in await page.text("main")
            assert await page.run("document.querySelector('#locked a').href") == f"{client.url}/koo-login"

    asyncio.run(main())


# ── other sites ───────────────────────────────────────────────────────────────────────────────────────────────────

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
def test_another_sites_page_can_reset_nothing_and_read_nothing(
    browser: str, tmp_path: Path, stranger: str
) -> None:
    """The requests come from another port, another name of this machine, and another site, and do arrive."""

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
                assert tried == ["failed"] * 5, "not even an opaque response reaches another origin"
                async with asyncio.timeout(WAIT_S):
                    await all_came.wait()
                assert set(posts) == {403}
                assert koo.database.guard.breaker.phase is OPEN
                # Nor can it show the page in a frame, to have its buttons clicked.
                await page.until("document.getElementById('framed').contentDocument === null")
                await page.until_told("frame-ancestors")

    asyncio.run(main())


def test_a_foreign_name_that_resolves_to_this_server_is_not_served(browser: str, tmp_path: Path) -> None:
    """DNS rebinding: the attacker's own name resolves to this machine, so its page has the same origin as ours."""

    async def main() -> None:
        koo = platform(tmp_path)
        async with served(create_app(koo)) as client, window(browser) as page:
            await break_database(koo)
            await page.go(f"http://evil.example:{urlsplit(client.url).port}/dashboard/")
            await page.until_text("body", "is not a name of this server")
            reset = "fetch('/api/v1/monitoring/database/reset-circuit-breaker', {method: 'POST'})"
            # The refusal's own policy allows the page nothing, so the request is not even sent.
            assert await page.run(f"{reset}.then(a => a.status, () => 'blocked')") == "blocked"
            assert koo.database.guard.breaker.phase is OPEN

    asyncio.run(main())
