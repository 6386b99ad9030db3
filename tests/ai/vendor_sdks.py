"""The vendors' own SDKs, called as their documentation says, with the bytes that koo receives in the same tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import anthropic
import httpx2
import openai
import perplexity
from google import genai
from google.genai import types

from tests.ai.odd_server import MODELS
from tests.ai.oddities import Format

PROMPT = "Capital of France?"
KEY = "test-key"
Ask = Callable[[str, bool], AsyncIterator[str]]
"""Takes a server's address and whether to stream, and returns the texts of the answer."""


async def ask_anthropic(base_url: str, streamed: bool) -> AsyncIterator[str]:
    async with anthropic.AsyncAnthropic(
        base_url=base_url.removesuffix("/v1"), api_key=KEY, max_retries=0
    ) as client:
        messages: list[anthropic.types.MessageParam] = [{"role": "user", "content": PROMPT}]
        model = MODELS["anthropic"]
        if not streamed:
            answer = await client.messages.create(model=model, max_tokens=100, messages=messages)
            yield "".join(block.text for block in answer.content if block.type == "text")
            return
        async for event in await client.messages.create(
            model=model, max_tokens=100, messages=messages, stream=True
        ):
            if event.type == "content_block_delta" and event.delta.type == "text_delta":
                yield event.delta.text


async def ask_chat(base_url: str, streamed: bool) -> AsyncIterator[str]:
    async with openai.AsyncOpenAI(base_url=base_url, api_key=KEY, max_retries=0) as client:
        if not streamed:
            answer = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": PROMPT}]
            )
            yield answer.choices[0].message.content or ""
            return
        async for chunk in await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": PROMPT}], stream=True
        ):
            if chunk.choices:
                yield chunk.choices[0].delta.content or ""


async def ask_responses(base_url: str, streamed: bool) -> AsyncIterator[str]:
    async with openai.AsyncOpenAI(base_url=base_url, api_key=KEY, max_retries=0) as client:
        model = MODELS["openai"]
        if not streamed:
            yield (await client.responses.create(model=model, input=PROMPT)).output_text
            return
        async for event in await client.responses.create(model=model, input=PROMPT, stream=True):
            if event.type == "response.output_text.delta":
                yield event.delta


async def ask_gemini(base_url: str, streamed: bool) -> AsyncIterator[str]:
    model = MODELS["gemini"]
    # A separate HTTP client, because the SDK would otherwise subclass one of aiohttp's classes, which warns.
    async with httpx2.AsyncClient() as transport:
        options = types.HttpOptions(base_url=base_url.removesuffix("/v1"), httpx_async_client=transport)
        client = genai.Client(api_key=KEY, http_options=options).aio
        try:
            if streamed:
                async for chunk in await client.models.generate_content_stream(model=model, contents=PROMPT):
                    yield chunk.text or ""
            else:
                yield (await client.models.generate_content(model=model, contents=PROMPT)).text or ""
        finally:
            await client.aclose()


async def ask_perplexity(base_url: str, streamed: bool) -> AsyncIterator[str]:
    async with perplexity.AsyncPerplexity(base_url=base_url, api_key=KEY, max_retries=0) as client:
        model = MODELS["perplexity"]
        if not streamed:
            yield (await client.responses.create(model=model, input=PROMPT)).output_text or ""
            return
        async for event in await client.responses.create(model=model, input=PROMPT, stream=True):
            if event.type == "response.output_text.delta":
                yield event.delta


ASKS: dict[Format, Ask] = {
    "anthropic": ask_anthropic,
    "openai_compatible": ask_chat,
    "openai": ask_responses,
    "gemini": ask_gemini,
    "perplexity": ask_perplexity,
}
