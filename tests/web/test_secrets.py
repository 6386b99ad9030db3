"""Marked keys, passwords, tokens and prompts go through every path; then all output is searched for them."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from koo.options import DatabaseOptions
from koo.testing.providers import FakeAnthropic, Step, answer, error, html, nothing
from koo.web import create_app
from koo.web.logs import ConsoleLines, JsonLines
from tests.web.serving import Client, claude, platform, served

MARK = "marked4711"
KEY, PASSWORD, TOKEN, PROMPT = (f"{what}-{MARK}" for what in ("key", "password", "token", "prompt"))
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
ASKED: dict[str, Any] = {"service": "claude", "prompt": PROMPT, "system": PROMPT, "tag": PROMPT}


async def go_everywhere(client: Client, fake: FakeAnthropic) -> list[str]:
    """Return all responses, with and without failures."""
    replies = []
    paths = (await client.get("/openapi.json")).body["paths"]
    for headers in ({}, HEADERS, {"Authorization": "Bearer wrong"}):
        for path, ways in paths.items():
            for method in ways:
                place = path.replace("{service}", "claude")
                # The live stream does not end; its first event is the whole state.
                ask = client.begin if place.endswith("/live") else client.ask
                replies.append(await ask(method.upper(), place, headers=headers))
    errors = [
        error(status, "api_error", message=f"{KEY} {PROMPT}")
        for status in (400, 401, 403, 404, 429, 500, 529)
    ]
    steps: list[Step] = [*errors, html(500), nothing(), answer("Paris.")]
    for step in steps:
        fake.script(step)
        replies.append(await client.post("/api/v1/ai/services/claude/reset-errors", headers=HEADERS))
        replies.append(await client.post("/api/v1/ai/query", json=ASKED, headers=HEADERS))
    batch = {"queries": [ASKED, {**ASKED, "service": "nobody"}]}
    replies.append(await client.post("/api/v1/ai/batch-query", json=batch, headers=HEADERS))
    wrong = ({**ASKED, PROMPT: 1}, {**ASKED, "prompt": [PROMPT]}, {**ASKED, "on_limit": PROMPT})
    replies += [await client.post("/api/v1/ai/query", json=one, headers=HEADERS) for one in wrong]
    replies.append(await client.post("/api/v1/ai/query", data=f'{{"prompt": "{PROMPT}', headers=HEADERS))
    replies.append(await client.get(f"/api/v1/monitoring/health?token={TOKEN}", headers=HEADERS))
    return [reply.text + str(reply.headers) for reply in replies]


@pytest.mark.parametrize("formatter", [JsonLines(), ConsoleLines()], ids=["json", "console"])
def test_no_secret_and_no_prompt_is_output_anywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, formatter: logging.Formatter
) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        database = DatabaseOptions(url=f"postgresql://user:{PASSWORD}@127.0.0.1:1/none")
        async with FakeAnthropic(key=KEY) as fake:
            koo = platform(tmp_path, claude(fake, api_key=KEY), database=database, token=TOKEN)
            async with served(create_app(koo)) as client:
                for text in await go_everywhere(client, fake):
                    assert MARK not in text, text
            assert any(PROMPT in str(request.body) for request in fake.queries)  # it did reach the provider

    asyncio.run(main())
    lines = [formatter.format(record) for record in caplog.records]
    assert len(lines) > 50
    assert [line for line in lines if MARK in line] == []


def test_a_log_line_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """A path with a line break must not look like a line of ours."""
    caplog.set_level(logging.INFO)
    logging.getLogger("koo.web").info("GET /%s 200", "x\n2026-11-23 ERROR all is lost\x1b[2J")
    for formatter in (JsonLines(), ConsoleLines()):
        line = formatter.format(caplog.records[-1])
        assert "\n" not in line and "\x1b" not in line
