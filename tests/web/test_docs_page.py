"""`/docs` in a real browser: it shows every operation, talks to nobody else, and its own policy lets it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from koo.web import create_app
from tests.web.browser import chromium, needs_browser, window
from tests.web.serving import platform, served


@needs_browser
def test_the_page_shows_every_operation(tmp_path: Path) -> None:
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

    with chromium() as address:
        asyncio.run(main(address))
