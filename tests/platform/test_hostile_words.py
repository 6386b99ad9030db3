"""Whatever a provider writes into its errors, no state, alert, problem or event repeats a key, a prompt, a control."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from koo import ExternalServiceError, Query
from koo.events import Event
from koo.testing.providers import FakeAnthropic, error
from koo.web.problems import problem_answer
from tests.web.serving import claude, platform

KEY = "sk-ant-api03-0123456789abcdefghij"
GOOGLES = "AIzaSyA0123456789abcdefghijklmnop"
PROMPT = "the patient is called Alice and"
CONTROLS = "\x1b[2J\r\nHTTP/1.1 200 OK\u202e\u2028"

Words = tuple[str, str]
HOSTILE: list[Words] = [
    ("api_error", f"Incorrect API key provided: {KEY}. {PROMPT}"),
    (KEY, "the key as a type"),
    (GOOGLES, "another one's"),
    (f"Bearer {KEY}", PROMPT),
    (f"{CONTROLS}api_error", CONTROLS * 100),
    (PROMPT, f"{PROMPT} " * 10_000),
    ("<script>alert(1)</script>", "[bold red]markup[/]"),
]


@pytest.mark.parametrize("status", [401, 403, 429, 500])
@pytest.mark.parametrize(
    "words", HOSTILE, ids=["message", "type", "other", "bearer", "controls", "long", "markup"]
)
def test_a_hostile_provider_is_not_repeated(tmp_path: Path, status: int, words: Words) -> None:
    async def main() -> None:
        async with FakeAnthropic(strict=False) as fake:
            koo = platform(tmp_path, claude(fake))
            events: list[Event] = []
            koo.events.listen(events.append)
            async with koo:
                fake.default = error(status, *words)
                problems = [await _problem(koo.query) for _ in range(4)]
                await _until(lambda: any(alert["active"] for alert in koo.active_alerts()))
                view = koo.service_health("claude")
                seen = [json.dumps(view), json.dumps(koo.active_alerts()), *problems, *map(repr, events)]
                assert view["last_error"] is not None and view["last_error"]["status"] == status
        for one in seen:
            for secret in (
                KEY,
                KEY[7:],
                GOOGLES,
                PROMPT,
                "script",
                "\x1b",
                "\u202e",
                "\\u001b",
                "\\u202e",
                "HTTP/1.1",
            ):
                assert secret not in one, (secret, one)
            assert len(one) < 20_000

    asyncio.run(main())


async def _problem(query: Callable[[Query], object]) -> str:
    try:
        await query(Query(service="claude", prompt=PROMPT, max_tokens=10))  # type: ignore[misc]
    except ExternalServiceError as failure:
        return problem_answer(failure).body.decode()
    raise AssertionError("it answered")


async def _until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not done():  # noqa: ASYNC110 - it happens elsewhere
            await asyncio.sleep(0.05)
