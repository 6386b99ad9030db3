"""The contenders of the query benchmark that read streams of 200 pieces; see `benchmarks.contenders`.

An `Ask` returns the text. Only the standard library is imported here before a contender is chosen.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from benchmarks.contenders import (
    ANTHROPIC,
    CHAT_BODY,
    CLAUDE,
    COMPATIBLE,
    FLOOR,
    GPT,
    KEY,
    KOO,
    MAX_TOKENS,
    MESSAGES,
    MESSAGES_BODY,
    MODELS,
    OPENAI,
    PROMPT,
    RESPONSES_BODY,
    ROUTER,
    SDK,
    SDK_AIOHTTP,
    Ask,
    Contender,
    Make,
    koo_platform,
    litellm,
)
from benchmarks.peers import load

STREAMED = "us of CPU a streamed event"
Text = Callable[[Any], str]
"""Returns the content of an event; "" if it has none."""


def of_message(event: Any) -> str:
    """The text in an event of Anthropic's format."""
    return str(event["delta"]["text"]) if event["type"] == "content_block_delta" else ""


def of_response(event: Any) -> str:
    """The text in an event of OpenAI's Responses format."""
    return str(event["delta"]) if event["type"] == "response.output_text.delta" else ""


def of_chat(event: Any) -> str:
    """The text in an event of OpenAI's chat completions."""
    return event["choices"][0]["delta"].get("content") or "" if event["choices"] else ""


def koo_stream(kind: str) -> Make:
    async def make(url: str, stack: AsyncExitStack) -> Ask:
        platform, query = await koo_platform(kind, url, stack)

        async def ask() -> str:
            return "".join([piece.text async for piece in platform.stream(query)])

        return ask

    return make


def bare_stream(path: str, body: dict[str, Any], text_of: Text) -> Make:
    """The floor: the lines of the body as aiohttp returns them, and each event decoded."""

    async def make(url: str, stack: AsyncExitStack) -> Ask:
        import aiohttp
        import msgspec

        headers = {"content-type": "application/json", "x-api-key": KEY, "authorization": f"Bearer {KEY}"}
        session = await stack.enter_async_context(aiohttp.ClientSession(headers=headers))
        encoded, decode = msgspec.json.encode({**body, "stream": True}), msgspec.json.decode

        async def ask() -> str:
            async with session.post(url + path, data=encoded) as answer:
                return "".join(
                    [
                        text_of(decode(line[6:]))
                        async for line in answer.content
                        if line.startswith(b"data: {")
                    ]
                )

        return ask

    return make


def joined(start: Callable[[], Awaitable[AsyncIterator[Any]]], text_of: Text) -> Ask:
    """Read a peer's stream to its end."""

    async def ask() -> str:
        return "".join([text_of(event) async for event in await start()])

    return ask


def anthropic_stream(*, aiohttp: bool) -> Make:
    async def make(url: str, stack: AsyncExitStack) -> Ask:
        anthropic = load("anthropic", "anthropic")
        options = {"http_client": anthropic.DefaultAioHttpClient()} if aiohttp else {}
        client = anthropic.AsyncAnthropic(api_key=KEY, base_url=url, **options)
        stack.push_async_callback(client.close)
        return joined(
            lambda: client.messages.create(
                model=CLAUDE, max_tokens=MAX_TOKENS, messages=MESSAGES, stream=True
            ),
            lambda event: event.delta.text if event.type == "content_block_delta" else "",
        )

    return make


def openai_stream(*, responses: bool, aiohttp: bool) -> Make:
    async def make(url: str, stack: AsyncExitStack) -> Ask:
        openai = load("openai", "openai")
        options = {"http_client": openai.DefaultAioHttpClient()} if aiohttp else {}
        client = openai.AsyncOpenAI(api_key=KEY, base_url=url, **options)
        stack.push_async_callback(client.close)
        if responses:
            return joined(
                lambda: client.responses.create(
                    model=GPT, input=PROMPT, max_output_tokens=MAX_TOKENS, stream=True
                ),
                lambda event: event.delta if event.type == "response.output_text.delta" else "",
            )
        return joined(
            lambda: client.chat.completions.create(
                model=GPT, messages=MESSAGES, max_completion_tokens=MAX_TOKENS, stream=True
            ),
            content_of,
        )

    return make


def litellm_stream(model: str) -> Make:
    async def make(url: str, stack: AsyncExitStack) -> Ask:
        router = litellm(model, url)
        return joined(
            lambda: router.acompletion(model="bench", messages=MESSAGES, max_tokens=MAX_TOKENS, stream=True),
            content_of,
        )

    return make


def content_of(chunk: Any) -> str:
    """The content of a chunk of OpenAI's classes."""
    return chunk.choices[0].delta.content or "" if chunk.choices else ""


STREAMERS = {
    contender.name: contender
    for contender in (
        *(Contender(KOO, kind, koo_stream(kind), figure=STREAMED) for kind in MODELS),
        Contender(FLOOR, ANTHROPIC, bare_stream("/v1/messages", MESSAGES_BODY, of_message), figure=STREAMED),
        Contender(FLOOR, OPENAI, bare_stream("/responses", RESPONSES_BODY, of_response), figure=STREAMED),
        Contender(FLOOR, COMPATIBLE, bare_stream("/chat/completions", CHAT_BODY, of_chat), figure=STREAMED),
        *(
            Contender(who, ANTHROPIC, anthropic_stream(aiohttp=aiohttp), "anthropic", figure=STREAMED)
            for who, aiohttp in ((SDK, False), (SDK_AIOHTTP, True))
        ),
        *(
            Contender(
                who, kind, openai_stream(responses=kind == OPENAI, aiohttp=aiohttp), "openai", figure=STREAMED
            )
            for who, aiohttp in ((SDK, False), (SDK_AIOHTTP, True))
            for kind in (OPENAI, COMPATIBLE)
        ),
        *(
            Contender(ROUTER, kind, litellm_stream(model), "litellm", apart=True, figure=STREAMED)
            for kind, model in ((ANTHROPIC, f"anthropic/{CLAUDE}"), (COMPATIBLE, f"openai/{GPT}"))
        ),
    )
}
