"""The fakes of Gemini and Perplexity are realistic: the vendors' SDKs talk to them and raise their own errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import httpx2
import openai
import perplexity
import pytest
from google import genai
from google.genai import errors as google_errors
from google.genai import types

from koo.testing.providers import FakeGemini, FakePerplexity, answer, blocked, error, html, quota, stream

FLASH = "gemini-3.8-flash"
SONAR = "perplexity/sonar"
QUESTION = "What is the capital of France?"
SEARCH: Any = [{"type": "web_search"}]


@asynccontextmanager
async def google(server: FakeGemini, **options: Any) -> AsyncIterator[Any]:
    # The timeout is in milliseconds, and by default the SDK has none. It gets a separate HTTP client, because
    # it would otherwise subclass one of aiohttp's classes, which warns.
    async with httpx2.AsyncClient() as transport:
        http = types.HttpOptions(
            base_url=server.base_url, timeout=10_000, httpx_async_client=transport, **options
        )
        client = genai.Client(api_key="test-key", http_options=http).aio
        try:
            yield client
        finally:
            await client.aclose()


def sonar(server: FakePerplexity, **options: Any) -> perplexity.AsyncPerplexity:
    return perplexity.AsyncPerplexity(
        base_url=server.url, api_key="test-key", **{"max_retries": 0, **options}
    )


# ── Gemini ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_googles_sdk_reads_a_plain_response(version: str) -> None:
    async def main() -> None:
        async with FakeGemini() as server, google(server, api_version=version) as client:
            server.script(
                answer("Paris.", input_tokens=60, cache_read_tokens=40, output_tokens=9, reasoning_tokens=4)
            )
            config = types.GenerateContentConfig(
                max_output_tokens=100, system_instruction="Be brief.", temperature=0.5
            )
            response = await client.models.generate_content(model=FLASH, contents=QUESTION, config=config)
            assert response.text == "Paris." and response.model_version == FLASH
            assert response.candidates[0].finish_reason is types.FinishReason.STOP
            usage = response.usage_metadata
            assert (usage.prompt_token_count, usage.cached_content_token_count) == (100, 40)
            assert (usage.candidates_token_count, usage.thoughts_token_count) == (5, 4)
            assert usage.total_token_count == 109
            assert server.queries[0].path == f"/{version}/models/{FLASH}:generateContent"
            assert server.bills[0].model == FLASH and server.bills[0].output_tokens == 9

    asyncio.run(main())


def test_googles_sdk_reads_a_stream() -> None:
    async def main() -> None:
        async with FakeGemini() as server, google(server) as client:
            server.script(stream(["Par", "is ", "€"], input_tokens=7, reasoning=["hm"]))
            chunks = [
                chunk
                async for chunk in await client.models.generate_content_stream(model=FLASH, contents=QUESTION)
            ]
            parts = [part for chunk in chunks for part in chunk.candidates[0].content.parts if part.text]
            assert [part.text for part in parts if not part.thought] == ["Par", "is ", "€"]
            assert [part.text for part in parts if part.thought] == ["hm"]
            assert chunks[-1].candidates[0].finish_reason is types.FinishReason.STOP
            used = chunks[-1].usage_metadata
            assert (used.candidates_token_count, used.thoughts_token_count) == (3, 1)
            assert used.total_token_count == 11
            assert chunks[0].usage_metadata.prompt_token_count == 7

    asyncio.run(main())


def test_googles_sdk_lists_models() -> None:
    async def main() -> None:
        async with FakeGemini(models=("gemini-a", "gemini-b")) as server, google(server) as client:
            names = [model.name async for model in await client.models.list()]
            assert names == ["models/gemini-a", "models/gemini-b"]

    asyncio.run(main())


def test_googles_sdk_reads_a_blocked_prompt() -> None:
    async def main() -> None:
        async with FakeGemini() as server, google(server) as client:
            server.script(blocked("PROHIBITED_CONTENT"), answer("", stop_reason="SAFETY"), answer("x" * 400))
            response = await client.models.generate_content(model=FLASH, contents=QUESTION)
            assert response.prompt_feedback.block_reason is types.BlockedReason.PROHIBITED_CONTENT
            assert not response.candidates
            response = await client.models.generate_content(model=FLASH, contents=QUESTION)
            assert response.candidates[0].finish_reason is types.FinishReason.SAFETY and response.text is None
            config = types.GenerateContentConfig(max_output_tokens=10)
            response = await client.models.generate_content(model=FLASH, contents=QUESTION, config=config)
            assert response.candidates[0].finish_reason is types.FinishReason.MAX_TOKENS

    asyncio.run(main())


@pytest.mark.parametrize(
    ("step", "raised", "status"),
    [
        (error(400, "INVALID_ARGUMENT", code="API_KEY_INVALID"), google_errors.ClientError, "INVALID_ARGUMENT"),
        (error(403, "PERMISSION_DENIED"), google_errors.ClientError, "PERMISSION_DENIED"),
        (
            error(429, "RESOURCE_EXHAUSTED", extra=quota("GenerateRequestsPerDay", retry_delay="39s")),
            google_errors.ClientError, "RESOURCE_EXHAUSTED",
        ),
        (error(503, "UNAVAILABLE"), google_errors.ServerError, "UNAVAILABLE"),
        (html(502), google_errors.ServerError, "Bad Gateway"),
    ],
)  # fmt: skip
def test_googles_sdk_raises_its_own_error(step: Any, raised: type[Exception], status: str) -> None:
    async def main() -> None:
        async with FakeGemini() as server, google(server) as client:
            server.script(step)
            with pytest.raises(raised) as caught:
                await client.models.generate_content(model=FLASH, contents=QUESTION)
            fault: Any = caught.value
            assert (fault.code, fault.status) == (step.status, status)

    asyncio.run(main())


def test_an_error_inside_a_stream_reaches_googles_sdk_with_its_own_code() -> None:
    async def main() -> None:
        async with FakeGemini() as server, google(server) as client:
            server.script(stream(["Par"], error_after=1, error=error(503, "UNAVAILABLE")))
            with pytest.raises(google_errors.ServerError) as caught:
                async for _ in await client.models.generate_content_stream(model=FLASH, contents=QUESTION):
                    pass
            assert (caught.value.code, caught.value.status) == (503, "UNAVAILABLE")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"model": "gpt-6"}, 404, "models/gpt-6 is not found"),
        ({"contents": {"parts": []}}, 400, "must not be empty"),
        ({"config": {"max_output_tokens": 0}}, 400, "must be positive"),
        ({"config": {"temperature": 2.5}}, 400, "temperature"),
        ({"config": {"http_options": {"extra_body": {"nonsense": 1}}}}, 400, 'Unknown name "nonsense"'),
    ],
)
def test_the_fake_refuses_what_google_refuses(change: dict[str, Any], code: int, words: str) -> None:
    async def main() -> None:
        async with FakeGemini(strict=False) as server, google(server) as client:
            with pytest.raises(google_errors.ClientError) as caught:
                await client.models.generate_content(**{"model": FLASH, "contents": QUESTION, **change})
            assert caught.value.code == code and words in str(caught.value)
            assert server.bills == []

    asyncio.run(main())


def test_a_wrong_key_is_a_400_at_google() -> None:
    async def main() -> None:
        async with FakeGemini(key="another", strict=False) as server, google(server) as client:
            with pytest.raises(google_errors.ClientError, match="API key not valid") as caught:
                await client.models.list()
            assert caught.value.code == 400

    asyncio.run(main())


# ── Perplexity ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_perplexitys_sdk_reads_a_plain_response_and_its_cost() -> None:
    async def main() -> None:
        async with FakePerplexity(search_tokens=1000) as server, sonar(server) as client:
            server.script(answer("Paris."))
            response = await client.responses.create(
                model=SONAR, input=QUESTION, tools=SEARCH, max_output_tokens=100, store=False, max_steps=1
            )
            assert (response.output_text, response.status, response.model) == ("Paris.", "completed", SONAR)
            assert [item.type for item in response.output] == ["search_results", "message"]
            usage = response.usage
            assert usage is not None and usage.cost is not None and usage.tool_calls_details is not None
            # The prompt was read twice, and the search results once.
            assert (usage.input_tokens, usage.output_tokens) == (15 + 1000, 2)
            assert usage.tool_calls_details["search_web"].invocation == 1
            assert Decimal(str(usage.cost.total_cost)) == server.billed_usd > Decimal("0.0025")

    asyncio.run(main())


def test_perplexitys_sdk_reads_a_stream() -> None:
    async def main() -> None:
        async with FakePerplexity() as server, sonar(server) as client:
            server.script(stream(["Par", "is"], input_tokens=7))
            events: list[Any] = [
                event
                async for event in await client.responses.create(
                    model=SONAR, input=QUESTION, tools=SEARCH, stream=True
                )
            ]
            kinds = [event.type for event in events]
            assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
            assert "response.reasoning.search_results" in kinds
            assert [event.delta for event in events if event.type == "response.output_text.delta"] == [
                "Par",
                "is",
            ]
            assert events[-1].response.usage.input_tokens == 7

    asyncio.run(main())


def test_openais_sdk_can_read_perplexity() -> None:
    """Perplexity documents that OpenAI's SDK works with its API."""

    async def main() -> None:
        async with (
            FakePerplexity() as server,
            openai.AsyncOpenAI(base_url=server.base_url, api_key="test-key", max_retries=0) as client,
        ):
            response = await client.responses.create(model=SONAR, input=QUESTION, tools=SEARCH)
            assert response.output_text == "Paris." and response.usage is not None

    asyncio.run(main())


def test_perplexitys_sdk_lists_models() -> None:
    async def main() -> None:
        async with FakePerplexity() as server, sonar(server) as client:
            models = await client.models.list()
            assert [model.id for model in models.data] == [SONAR]

    asyncio.run(main())


def test_without_the_tool_no_search_is_made_or_billed() -> None:
    async def main() -> None:
        async with FakePerplexity(search_tokens=1000) as server, sonar(server) as client:
            response = await client.responses.create(model=SONAR, input=QUESTION)
            assert [item.type for item in response.output] == ["message"]
            assert server.bills[0].input_tokens == 8 and server.billed_usd == Decimal("0.000007")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("step", "raised", "type_"),
    [
        (error(400, "invalid_request"), perplexity.BadRequestError, "invalid_request"),
        (error(401, "invalid_api_key"), perplexity.AuthenticationError, "invalid_api_key"),
        (error(403, "forbidden"), perplexity.PermissionDeniedError, "forbidden"),
        (error(429, "request_rate_limit_exceeded"), perplexity.RateLimitError, "request_rate_limit_exceeded"),
        (error(500, "internal_error"), perplexity.InternalServerError, "internal_error"),
        (html(524), perplexity.InternalServerError, None),
    ],
)  # fmt: skip
def test_perplexitys_sdk_raises_its_own_error(
    step: Any, raised: type[perplexity.APIStatusError], type_: str | None
) -> None:
    async def main() -> None:
        async with FakePerplexity() as server, sonar(server) as client:
            server.script(step)
            with pytest.raises(raised) as caught:
                await client.responses.create(model=SONAR, input=QUESTION)
            body: Any = caught.value.body
            if type_ is not None:
                assert body["error"]["type"] == type_ and body["error"]["code"] == step.status

    asyncio.run(main())


def test_a_failed_run_has_http_status_200() -> None:
    async def main() -> None:
        async with FakePerplexity() as server, sonar(server) as client:
            server.script(error(200, "internal_error", "the model failed"))
            response = await client.responses.create(model=SONAR, input=QUESTION)
            assert response.status == "failed" and response.error is not None
            assert response.error.type == "internal_error"
            server.script(stream(["Par"], error_after=1, error=error(200, "internal_error")))
            chunks = await client.responses.create(model=SONAR, input=QUESTION, stream=True)
            last: Any = [chunk async for chunk in chunks][-1]
            assert last.type == "response.failed" and last.error.type == "internal_error"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "sonar-pro"}, "Invalid model"),
        ({"extra_body": {"max_tokens": 5}}, 'unknown field "max_tokens"'),
        ({"tools": [{"type": "web_search", "country": "US"}]}, 'unknown field "country"'),
        ({"extra_body": {"tools": [{"type": "bogus_search"}]}}, "bogus_search"),
        ({"model": "anthropic/claude-sonnet-5-5"}, "max_output_tokens is required"),
        ({"max_steps": 101}, "max_steps"),
    ],
)
def test_the_fake_refuses_what_perplexity_refuses(change: dict[str, Any], words: str) -> None:
    async def main() -> None:
        async with FakePerplexity(strict=False) as server, sonar(server) as client:
            with pytest.raises(perplexity.BadRequestError) as caught:
                await client.responses.create(**{"model": SONAR, "input": QUESTION, **change})
            assert words in str(caught.value) and server.bills == []

    asyncio.run(main())


def test_perplexitys_fake_refuses_chat_completions() -> None:
    async def main() -> None:
        async with FakePerplexity(strict=False) as server, sonar(server) as client:
            with pytest.raises(perplexity.PermissionDeniedError, match="Agent API"):
                await client.chat.completions.create(
                    model="sonar", messages=[{"role": "user", "content": "x"}]
                )

    asyncio.run(main())
