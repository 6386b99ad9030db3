"""Streams of the vendors' own SDKs and of HTTP libraries through koo, over real sockets to fake servers."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import httpx
import httpx2
import openai
import perplexity
import pytest
from google import genai
from google.genai import types

from koo import ExternalServiceError, Kind, Platform, PlatformOptions
from koo.ai.operation_stream import OperationStream
from koo.policies.verdict import FAILURE, NEUTRAL, SUCCESS
from koo.testing.polling import until
from koo.testing.providers import FakeAnthropic, FakeGemini, FakeOpenAI, FakePerplexity, error, stream
from koo.testing.providers.script import Step
from koo.testing.providers.server import FakeProvider

QUESTION: Any = [{"role": "user", "content": "Count."}]
MESSAGE: dict[str, Any] = {"model": "claude-sonnet-5-5", "max_tokens": 50, "messages": QUESTION}
CHAT: dict[str, Any] = {"model": "gpt-4.1", "messages": QUESTION}
RESPONSE: dict[str, Any] = {"model": "gpt-6.1-terra", "input": "Count."}
GEMINI: dict[str, Any] = {"model": "gemini-3.5-flash", "contents": "Count."}
SONAR: dict[str, Any] = {"model": "perplexity/sonar", "input": "Count."}


class Lab:
    """A platform, a fake of each vendor, and each vendor's client."""

    def __init__(self, platform: Platform, **fakes: FakeProvider) -> None:
        self.platform = platform
        self.fakes = fakes
        urls = {name: fake.base_url for name, fake in fakes.items()}
        once: dict[str, Any] = {"api_key": "test-key", "max_retries": 0}
        self.openai = openai.AsyncOpenAI(base_url=urls["openai"], **once)
        self.anthropic = anthropic.AsyncAnthropic(base_url=urls["anthropic"], **once)
        self.perplexity = perplexity.AsyncPerplexity(base_url=urls["perplexity"].removesuffix("/v1"), **once)
        # A separate HTTP client, because the SDK would otherwise subclass one of aiohttp's classes, which warns.
        self.transport = httpx2.AsyncClient()
        options = types.HttpOptions(base_url=urls["gemini"], httpx_async_client=self.transport)
        self.gemini = genai.Client(api_key="test-key", http_options=options).aio
        self.httpx = httpx.AsyncClient(base_url=urls["openai"], headers={"Authorization": "Bearer test-key"})
        self.aiohttp = aiohttp.ClientSession(headers={"Authorization": "Bearer test-key"})

    async def close(self) -> None:
        for client in (self.openai, self.anthropic, self.perplexity, self.aiohttp):
            await client.close()
        for transport in (self.transport, self.httpx):
            await transport.aclose()

    def register(self, name: str, **options: Any) -> Seen:
        """A separate service for each way, so that each starts healthy."""
        own = name.replace(" ", "-")
        self.platform.register_service(own, **{"max_cost_usd": 1, "daily_budget": 100, **options})
        return Seen(self, own, WAYS[name])


class Seen:
    """One way to stream, under its own service, and the outcome of its calls."""

    def __init__(self, lab: Lab, service: str, way: Way) -> None:
        self.service = service
        self.way = way
        self.fake = lab.fakes[way.server]
        self.lab = lab
        self._asked_before = len(self.fake.queries)
        self._left_before = self.fake.abandoned

    def open(self) -> OperationStream[Any]:
        operation, kwargs = self.way.operation(self.lab)
        return self.lab.platform.execute_stream(self.service, operation, **kwargs)

    @property
    def asked(self) -> int:
        return len(self.fake.queries) - self._asked_before

    @property
    def abandoned(self) -> int:
        """The number of requests that their client abandoned."""
        return self.fake.abandoned - self._left_before

    @property
    def verdicts(self) -> list[int]:
        return self.lab.platform.services[self.service].default_guard.tally.totals().verdicts

    @property
    def spent_usd(self) -> Decimal:
        return self.lab.platform.parts.budgets.view(self.service).spent_usd

    def nothing_is_taken(self) -> bool:
        service = self.lab.platform.services[self.service]
        breaker = service.default_guard.breaker
        held = self.lab.platform.parts.budgets.view(self.service).held_usd
        return not (service.gates.bulkhead.used or breaker.running or breaker.leases or held)


@dataclass(frozen=True, slots=True)
class Way:
    """A way to call a library: the server, the function, and the part of its object that is read (None: its pieces)."""

    server: str
    operation: Callable[[Lab], tuple[Callable[..., Any], dict[str, Any]]]
    read: Callable[[Any], AsyncIterator[Any]] | None = None


def posted() -> dict[str, Any]:
    return {"json": {**CHAT, "stream": True}}


WAYS: dict[str, Way] = {
    "openai create": Way("openai", lambda lab: (lab.openai.chat.completions.create, {**CHAT, "stream": True})),
    "openai responses": Way("openai", lambda lab: (lab.openai.responses.create, {**RESPONSE, "stream": True})),
    "openai stream": Way("openai", lambda lab: (lab.openai.chat.completions.stream, CHAT), lambda it: it),
    "openai responses.stream": Way("openai", lambda lab: (lab.openai.responses.stream, RESPONSE), lambda it: it),
    "openai with_streaming_response": Way(
        "openai",
        lambda lab: (
            lab.openai.chat.completions.with_streaming_response.create,
            {**CHAT, "stream": True},
        ),
        lambda it: it.iter_lines(),
    ),
    "openai with_raw_response": Way(
        "openai",
        lambda lab: (lab.openai.chat.completions.with_raw_response.create, {**CHAT, "stream": True}),
        lambda it: it.parse(),
    ),
    "anthropic create": Way("anthropic", lambda lab: (lab.anthropic.messages.create, {**MESSAGE, "stream": True})),
    "anthropic stream": Way("anthropic", lambda lab: (lab.anthropic.messages.stream, MESSAGE)),
    "anthropic text_stream": Way(
        "anthropic", lambda lab: (lab.anthropic.messages.stream, MESSAGE), lambda it: it.text_stream
    ),
    "gemini": Way("gemini", lambda lab: (lab.gemini.models.generate_content_stream, GEMINI)),
    "perplexity": Way("perplexity", lambda lab: (lab.perplexity.responses.create, {**SONAR, "stream": True})),
    "httpx": Way(
        "openai",
        lambda lab: (lab.httpx.stream, {"method": "POST", "url": "/chat/completions", **posted()}),
        lambda it: it.aiter_lines(),
    ),
    "httpx send": Way(
        "openai",
        lambda lab: (
            lab.httpx.send,
            {"request": lab.httpx.build_request("POST", "/chat/completions", **posted()), "stream": True},
        ),
        lambda it: it.aiter_lines(),
    ),
    "aiohttp": Way(
        "openai",
        lambda lab: (
            lab.aiohttp.post,
            {"url": f"{lab.fakes['openai'].base_url}/chat/completions", **posted()},
        ),
        lambda it: it.content,
    ),
}  # fmt: skip
LINES = ("httpx", "httpx send", "aiohttp", "openai with_streaming_response")
SDKS = [name for name in WAYS if name not in LINES]
"""The ways that recognise an error in the middle of a stream; the others return lines."""


def run(test: Callable[[Lab], Awaitable[None]], home: Path) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            fakes = {
                "openai": FakeOpenAI(), "anthropic": FakeAnthropic(), "gemini": FakeGemini(),
                "perplexity": FakePerplexity(),
            }  # fmt: skip
            for fake in fakes.values():
                await stack.enter_async_context(fake)
            made = PlatformOptions(home=home, state_url=f"sqlite:///{home / 'state.db'}")
            lab = Lab(await stack.enter_async_context(Platform(made)), **fakes)
            stack.push_async_callback(lab.close)
            await test(lab)

    asyncio.run(main())


def run_each(
    home: Path,
    step: Step,
    test: Callable[[Seen], Awaitable[None]],
    names: Iterable[str] = WAYS,
    **options: Any,
) -> None:
    """Run the same test for each way, with a server that follows this script; a failure names the way."""

    async def main(lab: Lab) -> None:
        for name in names:
            seen = lab.register(name, **options)
            seen.fake.default = step
            try:
                await test(seen)
            except BaseException as error:
                error.add_note(f"it was {name}")
                raise

    run(main, home)


async def read(seen: Seen, left_after: int | None = None) -> int:
    """The number of pieces that arrived."""
    came, way = 0, seen.way
    async with seen.open() as block:
        async for _ in block if way.read is None else way.read(block):
            came += 1
            if came == left_after:
                break
    return came


def test_a_whole_stream_is_one_success_and_one_request(tmp_path: Path) -> None:
    async def test(seen: Seen) -> None:
        assert await read(seen) >= 3
        assert seen.verdicts[SUCCESS] == 1 == sum(seen.verdicts) == seen.asked
        assert seen.nothing_is_taken()

    run_each(tmp_path, stream(["one ", "two ", "three"]), test)


def test_a_cut_stream_is_a_failure_and_is_booked(tmp_path: Path) -> None:
    async def test(seen: Seen) -> None:
        with pytest.raises(ExternalServiceError):
            await read(seen)
        assert seen.verdicts[FAILURE] == 1 == sum(seen.verdicts) and seen.nothing_is_taken()
        assert seen.spent_usd == 1

    run_each(tmp_path, stream(["one ", "two ", "three"], cut_after=1), test)


def test_an_error_in_the_middle_keeps_its_kind(tmp_path: Path) -> None:
    async def test(seen: Seen) -> None:
        with pytest.raises(ExternalServiceError) as caught:
            await read(seen)
        assert caught.value.kind in (Kind.OVERLOADED, Kind.SERVER_ERROR)
        assert seen.verdicts[FAILURE] == 1 == sum(seen.verdicts) and seen.nothing_is_taken()

    names = [name for name in SDKS if name != "perplexity"]  # its SDK returns an error as a piece
    run_each(tmp_path, stream(["one ", "two "], error_after=1), test, names)


def test_a_stream_refused_at_first_is_requested_again(tmp_path: Path) -> None:
    async def test(seen: Seen) -> None:
        seen.fake.script(error(503, "server_error"))
        assert await read(seen) >= 2
        assert seen.verdicts[SUCCESS] == 1 == seen.verdicts[FAILURE] and seen.asked == 2

    steady = stream(["one ", "two "])
    run_each(tmp_path, steady, test, SDKS, idempotent=True, retry_base_delay=0.001)


@pytest.mark.parametrize("how", ["left", "cancelled", "dropped"])
def test_an_abandoned_stream_is_neutral_and_its_connection_is_closed(how: str, tmp_path: Path) -> None:
    async def test(seen: Seen) -> None:
        if how == "left":
            assert await read(seen, left_after=1) == 1
        elif how == "cancelled":
            reading = asyncio.create_task(read(seen))
            await until(lambda: seen.asked == 1)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        else:
            async for _ in seen.open():
                break
        await until(lambda: sum(seen.verdicts) == 1 and seen.nothing_is_taken())
        # Objects of google-genai form a cycle that holds its connection until it is garbage-collected.
        holds_itself = seen.way.server == "gemini"
        await until(lambda: seen.abandoned == 1 or (holds_itself and gc.collect() < 0))
        assert seen.verdicts[NEUTRAL] == 1 and seen.spent_usd == 1

    names = [name for name, way in WAYS.items() if how != "dropped" or way.read is None]
    run_each(tmp_path, stream(["one ", "two "], stall_after=1), test, names)


# ── the SDKs' own objects ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_final_message_and_whole_answers_are_available_in_a_block(tmp_path: Path) -> None:
    async def test(lab: Lab) -> None:
        lab.platform.register_service("own")
        lab.fakes["anthropic"].script(stream(["Par", "is."]))
        async with lab.platform.execute_stream("own", lab.anthropic.messages.stream, **MESSAGE) as events:
            assert "".join([text async for text in events.text_stream]) == "Paris."
            message = await events.get_final_message()
        assert message.content[0].text == "Paris." and isinstance(message, anthropic.types.Message)
        chat = lab.openai.chat.completions
        async with lab.platform.execute_stream("own", chat.with_streaming_response.create, **CHAT) as raw:
            assert raw.status_code == 200 and (await raw.parse()).choices[0].message.content
        lab.fakes["openai"].script(stream(["Par", "is."]))
        asked = {**CHAT, "stream": True}
        async with lab.platform.execute_stream("own", chat.with_streaming_response.create, **asked) as raw:
            texts = [
                chunk.choices[0].delta.content or "" async for chunk in await raw.parse() if chunk.choices
            ]
        assert "".join(texts) == "Paris."
        verdicts = lab.platform.services["own"].default_guard.tally.totals().verdicts
        assert verdicts[SUCCESS] == 3 == sum(verdicts)

    run(test, tmp_path)


@pytest.mark.filterwarnings("error")
def test_execute_refuses_each_stream_and_leaves_nothing_open(tmp_path: Path) -> None:
    async def test(seen: Seen) -> None:
        operation, kwargs = seen.way.operation(seen.lab)
        with pytest.raises(TypeError, match=f"stream_with_error_handling\\('{seen.service}'"):
            await seen.lab.platform.execute(seen.service, operation, **kwargs)
        assert seen.verdicts[NEUTRAL] == 1 == sum(seen.verdicts) and seen.nothing_is_taken()
        # A stream that was started before koo could recognize it is closed immediately and booked.
        await until(lambda: seen.abandoned == seen.asked)
        assert seen.spent_usd >= seen.asked

    names = [name for name in WAYS if name != "aiohttp"]  # its answer can also be awaited
    run_each(tmp_path, stream(["one ", "two "], stall_after=1), test, names)
    gc.collect()


def test_execute_accepts_finished_answers(tmp_path: Path) -> None:
    async def test(lab: Lab) -> None:
        lab.platform.register_service("own")
        url = f"{lab.fakes['openai'].base_url}/chat/completions"
        response = await lab.platform.execute("own", lab.aiohttp.post, url, json=CHAT)
        assert (await response.json())["object"] == "chat.completion"
        answer = await lab.platform.execute("own", lab.httpx.post, "/chat/completions", json=CHAT)
        assert answer.json()["object"] == "chat.completion"
        page = await lab.platform.execute("own", lab.openai.models.list)
        assert page.data
        raw = await lab.platform.execute("own", lab.openai.chat.completions.with_raw_response.create, **CHAT)
        assert raw.parse().choices
        assert lab.platform.service_health("own")["metrics"]["successful_requests"] == 4

    run(test, tmp_path)
