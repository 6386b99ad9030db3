"""An answer stays the answer that was paid for if any of its optional fields has any JSON value.

In each format, whole and streamed, each field in turn is left out or given a value of every type. koo's caller gets the
text after a single request. Only an `error` with content is an error. A stream whose only end mark cannot be read
counts as cut.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koo.ai.gateway import Gateway
from koo.ai.types import Answer, Query
from koo.errors import ExternalServiceError, Kind
from koo.http.client import HttpClient, HttpResponse
from koo.http.events import EventParser, ServerSentEvent
from tests.ai.odd_answers import (
    BLOCK_STOP,
    MESSAGE_START,
    MESSAGE_STOP,
    RUN_START,
    block_start,
    candidates,
    delta,
    message,
    message_end,
    run,
    run_end,
    words,
)
from tests.ai.odd_server import odd_gateway
from tests.ai.oddities import CHAT_USAGE, DONE, USED, Format, chat, chunk

Path = tuple[str | int, ...]
Document = dict[str, Any]

GONE = object()
"""Stands for a field that is left out."""
VALUES: tuple[Any, ...] = (
    GONE, None, True, False, 0, -7, 1.5, 10**40, 1e308, float("nan"), float("inf"), "", "x", "12", "\ud83d", [], [1],
    ["x"], [[]], [None], {}, {"x": 1}, {"text": None}, {"0": "x"}, [{"message": "x"}],
)  # fmt: skip

DETAILS = {"cached_tokens": 0, "reasoning_tokens": 0}
WHOLE: dict[Format, Document] = {
    "anthropic": message(usage={
        "input_tokens": 12, "output_tokens": 3, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0,
        "output_tokens_details": {"thinking_tokens": 0},
    }),
    "openai_compatible": chat(error=None, system_fingerprint="f", usage={
        **CHAT_USAGE, "prompt_tokens_details": DETAILS, "completion_tokens_details": DETAILS, "cost": 0.00001,
    }),
    "openai": run(usage={
        "input_tokens": 12, "output_tokens": 3, "total_tokens": 15, "input_tokens_details": DETAILS,
        "output_tokens_details": DETAILS,
    }),
    "perplexity": run(usage={
        "input_tokens": 12, "output_tokens": 3, "cost": {"total_cost": 0.00001, "currency": "USD"},
    }),
    "gemini": candidates(error=None, promptFeedback={"blockReason": None}),
}  # fmt: skip
STREAMED: dict[Format, list[Document]] = {
    "anthropic": [
        MESSAGE_START,
        block_start(),
        delta("Par"),
        delta("is."),
        BLOCK_STOP,
        message_end(),
        MESSAGE_STOP,
    ],
    "openai_compatible": [
        chunk(""),
        chunk("Par"),
        chunk("is.", logprobs=None, error=None),
        chunk(None, "stop"),
        USED,
    ],
    "openai": [RUN_START, words("Par"), words("is."), run_end()],
    "perplexity": [RUN_START, words("Par"), words("is."), run_end(usage={"cost": {"total_cost": 0.00001}})],
    "gemini": [candidates("Par", None), candidates("is.")],
}
REQUIRED = {
    "text", "content", "delta", "choices", "message", "candidates", "parts", "output", "content_block", "response"
}  # fmt: skip
"""The path of the text, and of everything that contains it."""
FORMATS = tuple(WHOLE)
NAMED = {"anthropic", "openai"}
"""The formats whose events have an `event:` line. Perplexity's events have only a `type`, so that is required there."""


def paths_in(value: Any, path: Path = ()) -> Iterator[Path]:
    """The path of every field below a value that an answer can do without."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if key not in REQUIRED and not isinstance(key, int):
            yield (*path, key)
        yield from paths_in(inner, (*path, key))


def changed(document: Any, path: Path, value: Any) -> Any:
    """A copy of the document in which this field has the value."""
    changed = copy.deepcopy(document)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    if value is GONE:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return changed


# ── koo, and a server in memory ───────────────────────────────────────────────────────────────────────────────────────


class Scripted(HttpClient):
    """Answers every request with the same body; `requests` counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = b""
        self.requests = 0

    async def request(self, *_: Any, **__: Any) -> HttpResponse:
        self.requests += 1
        return HttpResponse(200, {}, self.body)

    async def stream(self, *_: Any, **__: Any) -> Any:
        self.requests += 1
        return ScriptedStream(self.body)


class ScriptedStream:
    status = 200
    headers: Mapping[str, str] = {"content-type": "text/event-stream"}

    def __init__(self, body: bytes) -> None:
        self._parser = EventParser()
        self._portions = [*(body[at : at + 700] for at in range(0, len(body), 700)), None]

    async def next_events(self) -> list[ServerSentEvent]:
        while self._portions:
            portion = self._portions.pop(0)
            if events := self._parser.finish() if portion is None else self._parser.feed(portion):
                return events
        return []

    async def aclose(self, *, read_out: bool = False) -> None: ...


def body_of(name: Format, answer: Any) -> bytes:
    if isinstance(answer, dict):
        return json.dumps(answer).encode()
    done = DONE if name == "openai_compatible" else ""
    good = STREAMED[name]
    names = [f"event: {event['type']}\n" if name in NAMED else "" for event in good]
    return (
        "".join(f"{line}data: {json.dumps(event)}\n\n" for line, event in zip(names, answer, strict=True))
        + done
    ).encode()


async def ask(gateway: Gateway, streamed: bool) -> tuple[str, Answer | ExternalServiceError]:
    query, text = Query(service="odd", prompt="Capital of France?", max_tokens=100), ""
    try:
        if not streamed:
            answer = await gateway.query(query)
            return answer.text, answer
        async with gateway.stream(query) as stream:
            async for piece in stream:
                text += piece.text
        assert stream.answer is not None
        return text, stream.answer
    except ExternalServiceError as error:
        return text, error


def hold(path: Path, value: Any, outcome: tuple[str, Answer | ExternalServiceError], requests: int) -> None:
    text, end = outcome
    where = f"{path} = {value!r}: {text!r} {end!r}"
    if isinstance(end, Answer):
        assert (text, end.text, requests) == ("Paris.", "Paris.", 1), where
        assert end.cost_usd >= 0 and end.usage.input_tokens >= 0 and end.usage.output_tokens >= 0, where
        end.text.encode()
    elif path[-1] == "error":
        assert value and end.kind is Kind.SERVER_ERROR, where
    else:
        # This is the only end mark of Gemini's streams. Without it the stream counts as cut, and the reader keeps what
        # arrived.
        assert path[-1] == "finishReason" and end.kind is Kind.TRUNCATED_STREAM and text == "Paris.", where


async def in_gateway(name: Format, test: Callable[[Gateway, Scripted], Awaitable[None]]) -> None:
    http = Scripted()
    async with odd_gateway(name, "http://127.0.0.1:1/v1", http) as gateway:
        await test(gateway, http)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", FORMATS)
def test_no_value_of_an_optional_field_loses_an_answer(name: Format, streamed: bool) -> None:
    good: Any = STREAMED[name] if streamed else WHOLE[name]

    async def main(gateway: Gateway, http: Scripted) -> None:
        tried = 0
        for path in paths_in(good):
            if name == "perplexity" and streamed and path[1:] == ("type",):
                continue
            for value in VALUES:
                http.body, http.requests = body_of(name, changed(good, path, value)), 0
                gateway.services["odd"].service.reset()
                hold(path, value, await ask(gateway, streamed), http.requests)
                tried += 1
        assert tried > 200

    asyncio.run(in_gateway(name, main))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
EVERY_FIELD = [(name, path) for name in FORMATS for path in paths_in(WHOLE[name])]


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(EVERY_FIELD), JSON)
def test_no_generated_json_value_loses_an_answer(field: tuple[Format, Path], value: Any) -> None:
    name, path = field

    async def main(gateway: Gateway, http: Scripted) -> None:
        http.body = body_of(name, changed(WHOLE[name], path, value))
        hold(path, value, await ask(gateway, streamed=False), http.requests)

    asyncio.run(in_gateway(name, main))
