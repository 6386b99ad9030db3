"""A chat endpoint of an application that streams a library's answer through koo, and a client that disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi import FastAPI, Request, Response
from starlette.responses import StreamingResponse

from koo.ai.operation_stream import OperationStream
from koo.errors import KooError
from koo.platform import Platform
from koo.policies.verdict import NEUTRAL, SUCCESS
from koo.testing.polling import until
from koo.testing.providers import FakeOpenAI, stream
from koo.web.problems import problem_answer
from tests.web.serving import KEY, Client, options, served

CHAT: dict[str, Any] = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Count."}]}
Body = Callable[[OperationStream[str]], AsyncIterator[str]]


class Chain:
    """A chain like LangChain's models: nested generators, with the SDK's stream in the innermost one."""

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self._client = client

    async def astream(self, question: str) -> AsyncIterator[str]:
        async for text in self._texts(question):
            yield text

    async def _texts(self, question: str) -> AsyncIterator[str]:
        asked = {**CHAT, "messages": [{"role": "user", "content": question}]}
        async with await self._client.chat.completions.create(stream=True, **asked) as answer:
            async for chunk in answer:
                if chunk.choices and chunk.choices[0].delta.content:
                    yield chunk.choices[0].delta.content


async def in_a_loop(texts: OperationStream[str]) -> AsyncIterator[str]:
    async for text in texts:
        yield text


async def in_a_block(texts: OperationStream[str]) -> AsyncIterator[str]:
    async with texts as opened:
        async for text in opened:
            yield text


def application(platform: Platform, chain: Chain, body: Body | None) -> FastAPI:
    """`body` None: Starlette iterates over the stream itself."""
    app = FastAPI()

    @app.get("/chat")
    async def chat() -> StreamingResponse:
        texts = await platform.execute_stream("chat", chain.astream, "Count.")
        return StreamingResponse(texts if body is None else body(texts), media_type="text/plain")

    @app.exception_handler(KooError)
    async def refuse(_: Request, error: KooError) -> Response:
        answer = problem_answer(error)
        return Response(answer.body, answer.status, answer.headers)

    return app


async def leave_after(client: Client, piece: bytes) -> None:
    """Read until this has arrived, then disconnect."""
    host, _, port = client.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /chat HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readuntil(piece)
    writer.transport.abort()


@pytest.mark.parametrize("body", [in_a_loop, in_a_block, None])
@pytest.mark.parametrize("pause", ["between pieces", "silence"])
def test_a_client_that_disconnects_frees_permit_and_slot_and_the_money_is_settled(
    pause: str, body: Body | None, tmp_path: Path
) -> None:
    """The client disconnects while the provider is silent, or while chunks arrive that can no longer be sent."""

    async def main() -> None:
        async with FakeOpenAI(key=KEY) as fake, Platform(options(tmp_path)) as platform:
            platform.register_service("chat", max_cost_usd=1, daily_budget=10, concurrency_max=1)
            client = openai.AsyncOpenAI(base_url=fake.base_url, api_key=KEY, max_retries=0)
            if pause == "silence":
                fake.default = stream(["one ", "two "], stall_after=1)
            else:
                fake.default = stream(["one "] * 100_000, interval_s=0.001)
            service = platform.services["chat"]
            verdicts = service.default_guard.tally
            async with client, served(application(platform, Chain(client), body)) as there:
                for times in (1, 2):
                    await leave_after(there, b"one ")
                    await until(lambda: verdicts.totals().verdicts[NEUTRAL] == times)  # noqa: B023
                    await until(lambda: fake.abandoned == times)  # noqa: B023
                    assert not service.gates.bulkhead.used and not service.default_guard.breaker.running
                    money = platform.parts.budgets.view("chat")
                    assert money.spent_usd == times and not money.held_usd
                fake.default = stream(["one ", "two"])
                assert (await there.get("/chat")).text == "one two"
            assert verdicts.totals().verdicts[SUCCESS] == 1

    asyncio.run(main())


def test_a_refusal_is_a_normal_response_and_not_a_broken_stream(tmp_path: Path) -> None:
    """The endpoint awaits the stream before it starts its response."""

    async def main() -> None:
        async with FakeOpenAI(key=KEY) as fake, Platform(options(tmp_path)) as platform:
            platform.register_service("chat", requests_per_minute=1)
            client = openai.AsyncOpenAI(base_url=fake.base_url, api_key=KEY, max_retries=0)
            async with client, served(application(platform, Chain(client), None)) as there:
                assert (await there.get("/chat")).status == 200
                refused = await there.get("/chat")
                assert (refused.status, refused.body["kind"]) == (429, "rate_limited")
                assert len(fake.queries) == 1

    asyncio.run(main())
