"""Whatever a provider writes into its errors, no state, alert, problem or event repeats a key, prompt or control
code."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from koo import ExternalServiceError, Query
from koo.events import Event
from koo.platform import Platform
from koo.testing.polling import until
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
SECRETS = (
    KEY, KEY[7:], GOOGLES, PROMPT, "script", "\x1b", "\u202e", "\\u001b", "\\u202e", "HTTP/1.1",
)  # fmt: skip


@pytest.mark.parametrize("status", [401, 403, 429, 500])
def test_no_view_repeats_the_text_of_a_hostile_provider(
    tmp_path: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All texts at the same time, each on its own platform, because most of the time is spent waiting."""
    monkeypatch.setattr("koo.upkeep.TICK_S", 0.05)
    homes = [tmp_path / str(number) for number in range(len(HOSTILE))]
    for home in homes:
        home.mkdir()

    async def main() -> None:
        seen = await asyncio.gather(*map(_seen, homes, [status] * len(HOSTILE), HOSTILE))
        for words, texts in zip(HOSTILE, seen, strict=True):
            for one in texts:
                assert [secret for secret in SECRETS if secret in one] == [], (words, one)
                assert len(one) < 20_000
        # A failing provider opens a breaker; one that throttles or refuses a key does not.
        opened = sum(any(one.startswith("# Incident") for one in texts) for texts in seen)
        assert opened >= (len(HOSTILE) - 1 if status == 500 else 0)

    asyncio.run(main())


async def _seen(home: Path, status: int, words: Words) -> list[str]:
    """Everything that is shown of the platform."""
    async with FakeAnthropic(strict=False) as fake:
        koo = platform(home, claude(fake))
        events: list[Event] = []
        koo.events.listen(events.append)
        async with koo:
            fake.default = error(status, *words)
            problems = [await _problem(koo.query) for _ in range(4)]
            await until(lambda: any(alert["active"] for alert in koo.active_alerts()))
            view = koo.service_health("claude")
            assert view["last_error"] is not None and view["last_error"]["status"] == status
            incidents = await _incidents(koo)
            return [
                json.dumps(view),
                json.dumps(koo.active_alerts()),
                *problems,
                *map(repr, events),
                *incidents,
            ]


async def _incidents(koo: Platform) -> list[str]:
    """Each incident with all details, and as Markdown."""
    seen = []
    for one in (await koo.incidents.list())["incidents"]:
        seen += [json.dumps(await koo.incidents.find(one["id"])), await koo.incidents.markdown(one["id"])]
    return seen


async def _problem(query: Callable[[Query], object]) -> str:
    try:
        await query(Query(service="claude", prompt=PROMPT, max_tokens=10))  # type: ignore[misc]
    except ExternalServiceError as failure:
        return problem_answer(failure).body.decode()
    raise AssertionError("it answered")
