"""The time that a stream waits after its stop reason, on virtual time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from koo.ai.assembly import HOSTED
from koo.ai.providers.base import Request
from koo.ai.providers.ends import OUTCOMES, failure_of
from koo.http.client import HttpClient
from koo.http.connector import TransportError
from koo.http.events import EventParser, ServerSentEvent
from koo.testing.clock import run_virtual
from tests.ai.odd_answers import MESSAGE_START, candidates, delta, message_end
from tests.ai.oddities import Format, chunk

SILENT_S = 1e6


class Slow(HttpClient):
    """Sends each event after the given number of seconds, then nothing more, not even an end, unless it `breaks`."""

    def __init__(self, *events: tuple[float, dict[str, Any]], breaks: bool = False) -> None:
        super().__init__()
        self.status, self.headers = 200, dict[str, str]()
        self._events = list(events)
        self._parser = EventParser()
        self._breaks = breaks

    async def stream(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Any:
        return self

    async def next_events(self) -> list[ServerSentEvent]:
        if not self._events and self._breaks:
            raise TransportError("answer", "the answer broke off")
        after_s, event = self._events.pop(0) if self._events else (SILENT_S, {})
        await asyncio.sleep(after_s)
        return self._parser.feed(f"data: {json.dumps(event)}\n\n".encode())

    async def aclose(self, *, read_out: bool = False) -> None: ...


def read(name: Format, http: HttpClient) -> tuple[str, float]:
    """The text of a stream, and when it ended."""

    async def main() -> tuple[str, float]:
        provider: Any = HOSTED[name]("svc", http, base_url="http://x/v1", api_key="k")
        began, text = asyncio.get_running_loop().time(), ""
        async for piece in provider.stream(Request(prompt="x", model="m", max_tokens=100)):
            text += piece.text
        return text, asyncio.get_running_loop().time() - began

    return run_virtual(main())


ENDED: list[tuple[Format, list[dict[str, Any]]]] = [
    ("openai_compatible", [chunk("Par"), chunk("is.", "stop")]),
    ("anthropic", [MESSAGE_START, delta("Par"), delta("is."), message_end()]),
    ("gemini", [candidates("Par", None), candidates("is.")]),
]


@pytest.mark.parametrize(("name", "events"), ENDED)
def test_a_silent_stream_is_complete_a_second_after_its_stop_reason(
    name: Format, events: list[dict[str, Any]]
) -> None:
    text, took_s = read(name, Slow(*((1.5, event) for event in events)))
    assert text == "Paris." and took_s == pytest.approx(1.5 * len(events) + 1.0)


@pytest.mark.parametrize(("name", "events"), ENDED)
def test_a_stream_that_breaks_after_its_stop_reason_is_complete(
    name: Format, events: list[dict[str, Any]]
) -> None:
    assert read(name, Slow(*((0.0, event) for event in events), breaks=True)) == ("Paris.", 0.0)


@pytest.mark.parametrize(
    ("name", "events"),
    [
        ("gemini", [candidates("Par"), candidates("i"), candidates("s.")]),
        ("openai_compatible", [chunk("Par", "stop"), chunk("i", "stop"), chunk("s.", "stop")]),
        ("openai_compatible", [chunk("", "stop"), chunk("Paris"), chunk(".", "stop")]),
        ("openai_compatible", [chunk("Par"), chunk("is", "stop"), chunk(".")]),
    ],
    ids=["Gemini, in each", "in each", "before the text", "within the text"],
)
def test_a_server_that_sends_stop_reasons_early_gets_more_time_for_the_next_piece(
    name: Format, events: list[dict[str, Any]]
) -> None:
    text, took_s = read(name, Slow(*zip((0.0, 3.0, 0.9), events, strict=True)))
    assert text == "Paris." and took_s == pytest.approx(3.0 + 0.9 + 5.0)


def test_a_server_that_sends_stop_reasons_with_its_reasoning_is_read_to_the_text() -> None:
    first, second = ({"choices": [{"delta": {"reasoning": "so"}, "finish_reason": "stop"}]} for _ in "ab")
    text, _ = read("openai_compatible", Slow((0.0, first), (4.0, second), (4.0, chunk("Paris.", "stop"))))
    assert text == "soso" + "Paris."


@pytest.mark.parametrize("reason", ["null", ""])
def test_null_written_as_a_text_is_not_a_stop_reason(reason: str) -> None:
    events = [chunk("Par", reason), chunk("is.", reason), chunk(None, "stop")]
    text, took_s = read("openai_compatible", Slow(*((8.0, event) for event in events)))
    assert text == "Paris." and took_s == pytest.approx(3 * 8.0 + 1.0)


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("error", 200), ("ERROR", 200), ("network_error", 200), ("abort", 200), ("cancelled", 200),
        ("MALFORMED_RESPONSE", 200), ("insufficient_system_resource", 503), ("overloaded", 503), ("timeout", 504),
    ],
)  # fmt: skip
def test_some_stop_reasons_are_failures(reason: str, status: int) -> None:
    parsed = failure_of(reason)
    assert parsed is not None and parsed.status == status


@pytest.mark.parametrize("reason", [*sorted(filter(None, OUTCOMES)), "eos", "COMPLETE", "of_tomorrow", "1"])
def test_other_stop_reasons_are_outcomes(reason: str) -> None:
    assert failure_of(reason) is None
