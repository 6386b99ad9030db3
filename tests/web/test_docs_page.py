"""`/docs` in a real browser: it shows every operation, contacts no other server, and works under its own policy."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from koo.web import create_app
from tests.web.browser import chromium, needs_browser, window
from tests.web.serving import platform, served


@pytest.fixture(scope="module")
def browser() -> Iterator[str]:
    with chromium() as address:
        yield address


@needs_browser
def test_the_page_shows_every_operation(browser: str, tmp_path: Path) -> None:
    async def main(address: str) -> None:
        app = create_app(platform(tmp_path))
        operations = [one["operationId"] for ways in app.openapi()["paths"].values() for one in ways.values()]
        async with served(app) as client, window(address) as page:
            await page.go(f"{client.url}/docs#ai_query")
            await page.until("document.querySelectorAll('details').length > 0")
            shown = await page.run("[...document.querySelectorAll('details')].map((one) => one.id)")
            assert sorted(shown) == sorted(operations)
            assert await page.run("document.getElementById('ai_query').open") is True
            text = await page.text("#ai_query")
            assert f"curl -X POST {client.url}/api/v1/ai/query" in text
            assert "prompt" in text and "application/problem+json" in text
            own = await page.run(
                "performance.getEntriesByType('resource').every((one) => one.name.startsWith(location.origin))"
            )
            assert own is True

    asyncio.run(main(browser))


LINE = "document.querySelector('#{} .line pre').textContent"


@needs_browser
@pytest.mark.parametrize("token", [None, "write-4711"])
def test_the_pages_commands_can_be_pasted(browser: str, tmp_path: Path, token: str | None) -> None:
    """The commands contain the token's variable if the server requires a token, and are broken into readable lines."""

    async def main() -> None:
        app = create_app(platform(tmp_path, token=token))
        async with served(app) as client, window(browser) as page:
            await page.go(f"{client.url}/docs#monitoring_get_alerts")
            await page.until("document.querySelectorAll('details').length > 0")
            for operation, open_to_all in (
                ("monitoring_get_alerts", False),
                ("ai_query", False),
                ("probes_livez", True),
            ):
                line = await page.run(LINE.format(operation))
                assert line.endswith(" | python3 -m json.tool")
                assert ('-H "Authorization: Bearer $KOO_TOKEN"' in line) is (
                    token is not None and not open_to_all
                )
            line = await page.run(LINE.format("monitoring_get_alerts"))
            done = await asyncio.to_thread(pasted, line, token or "")
            assert json.loads(done)["alert_count"] == 0 and done.count("\n") > 3

    asyncio.run(main())


def pasted(line: str, token: str) -> str:
    """Return what a shell prints for a line of the page."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    env = {**os.environ, "KOO_TOKEN": token}
    return subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, check=True, timeout=60, env=env
    ).stdout


@needs_browser
def test_a_command_is_copied_by_its_button(browser: str, tmp_path: Path) -> None:
    """If the browser denies the page its clipboard, the older method is used."""

    async def main() -> None:
        async with served(create_app(platform(tmp_path))) as client, window(browser) as page:
            await page.go(f"{client.url}/docs#ai_query")
            await page.until("document.getElementById('ai_query')?.open")
            await page.run("navigator.clipboard.writeText = async (text) => void (window.copied = text)")
            await page.click("#ai_query .copy")
            await page.until("document.querySelector('#ai_query .copy').textContent === 'Copied'")
            assert await page.run("window.copied") == await page.run(LINE.format("ai_query"))
            await page.run("navigator.clipboard.writeText = async () => { throw new Error('no') }")
            await page.run(
                "document.addEventListener('copy', () => (window.by_hand = String(getSelection())))"
            )
            await page.click("#ai_query .copy")
            await page.until("window.by_hand?.startsWith('curl -X POST')")

    asyncio.run(main())
