"""The login form in a real browser: without JavaScript, behind a proxy's path prefix, and then with the live stream."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from koo.web import create_app
from koo.web.audit import audit_of
from koo.web.session_routes import WRONG
from tests.web.browser import Window, chromium, needs_browser, window
from tests.web.serving import platform, served

pytestmark = needs_browser
WRITE = "w" * 32
EVENT = """new Promise((heard) => {
  const stream = new EventSource("PATHapi/v1/monitoring/live");
  stream.addEventListener("whole", (event) => { stream.close(); heard(JSON.parse(event.data).session.who); });
  stream.onerror = () => heard("refused");
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[str]:
    with chromium() as address:
        yield address


def below(path: str, app: ASGIApp) -> Any:
    """Behind a proxy that strips `path` without a header."""

    async def proxied(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": scope["path"].removeprefix(path), "raw_path": b""}
        await app(scope, receive, send)

    return proxied


async def arrive(page: Window, wanted: str) -> None:
    """Wait until this is true. While one page is replaced by the next, an evaluation returns nothing."""
    while True:
        try:
            await page.until(wanted)
        except AssertionError as error:
            if "navigated" not in str(error):
                raise
        else:
            return


@pytest.mark.parametrize("path", ["", "/a/b"], ids=["at the root", "below a proxy's path"])
def test_a_person_logs_in_and_the_page_receives_the_stream(tmp_path: Path, browser: str, path: str) -> None:
    async def main() -> None:
        app = below(path, create_app(platform(tmp_path, token=WRITE)))
        async with served(app) as client, window(browser) as page:
            await page.send("Emulation.setScriptExecutionDisabled", value=True)
            await page.go(f"{client.url}{path}/koo-login")
            await page.until_text("label", "Token")
            await page.type("#token", "x" * 32)
            await page.press("Enter", 13)
            await arrive(page, f"document.querySelector('[role=alert]')?.innerText === '{WRONG}'")
            await page.type("#token", WRITE)
            await page.press("Enter", 13)
            await arrive(page, f"location.pathname === '{path}/dashboard/'")
            await page.send("Emulation.setScriptExecutionDisabled", value=False)
            assert await page.run(EVENT.replace("PATH", f"{path}/")) == "session"
            assert await page.run("document.cookie") == ""  # no script can read it
            if path:
                assert await page.run(EVENT.replace("PATH", "/")) == "refused"
            left = f"fetch('{path}/koo-logout', {{method: 'POST', redirect: 'manual'}}).then((a) => a.type)"
            assert await page.run(left) == "opaqueredirect"
            assert await page.run(EVENT.replace("PATH", f"{path}/")) == "refused"
            assert [line for line in page.told if "Content Security Policy" in line] == []

    asyncio.run(main())


def test_another_site_in_the_same_browser_cannot_use_the_session(tmp_path: Path, browser: str) -> None:
    """Another port of this host is the same site, so the browser sends the cookie. The origin decides."""
    act = """fetch("URL/api/v1/monitoring/database/pause", {method: "POST", mode: "no-cors", credentials: "include"})
        .catch(() => null)  // the answer may not be read, but the request was sent"""

    async def main() -> None:
        koo = platform(tmp_path, token=WRITE)
        evil = Starlette(routes=[Route("/", lambda _: HTMLResponse("<p>Free shoes"))])
        async with served(create_app(koo)) as client, served(evil) as other, window(browser) as page:
            await page.go(f"{client.url}/koo-login")
            await page.until_text("label", "Token")
            await page.type("#token", WRITE)
            await page.press("Enter", 13)
            await arrive(page, "location.pathname === '/dashboard/'")
            await page.go(other.url)
            await page.until_text("body", "Free shoes")
            await page.run(act.replace("URL", client.url))
            refused = audit_of(koo).entries()[0]
            assert (refused["who"], refused["what"], refused["status"]) == (
                "session",
                "POST /monitoring/database/pause",
                403,
            )

    asyncio.run(main())
