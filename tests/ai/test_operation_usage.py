"""koo reads the usage that a result reports from the objects of the vendors' own SDKs, whole and streamed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import anthropic
import httpx2
import openai
import perplexity
import pytest
from google import genai
from google.genai import types

from koo.ai.operation_usage import Meter, Report, read_report
from koo.ai.types import Usage
from koo.testing.providers import FakeAnthropic, FakeGemini, FakeOpenAI, FakePerplexity, answer, stream

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
KEY: Any = {"api_key": "test-key", "max_retries": 0}


def usage(*counts: int) -> Usage:
    names = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
    classes: Any = dict(zip(names, counts, strict=False))
    return Usage(**classes)


# ── the vendors' own objects ──────────────────────────────────────────────────────────────────────────────────────────


async def of_anthropic(streamed: bool, **step: Any) -> list[object]:
    async with (
        FakeAnthropic() as server,
        anthropic.AsyncAnthropic(base_url=server.base_url, **KEY) as client,
    ):
        server.script(stream(["Par", "is"], **step) if streamed else answer("Paris", **step))
        ask: Any = {"model": "claude-sonnet-5-5", "max_tokens": 100, "messages": QUESTION}
        if not streamed:
            return [await client.messages.create(**ask)]
        return [event async for event in await client.messages.create(stream=True, **ask)]


async def of_anthropics_helper(streamed: bool, **step: Any) -> list[object]:
    async with (
        FakeAnthropic() as server,
        anthropic.AsyncAnthropic(base_url=server.base_url, **KEY) as client,
    ):
        server.script(stream(["Par", "is"], **step))
        ask: Any = {"model": "claude-sonnet-5-5", "max_tokens": 100, "messages": QUESTION}
        async with client.messages.stream(**ask) as events:
            return [event async for event in events]


async def of_chat(streamed: bool, **step: Any) -> list[object]:
    async with (
        FakeOpenAI() as server,
        openai.AsyncOpenAI(base_url=server.base_url, **KEY) as client,
    ):
        server.script(stream(["Par", "is"], **step) if streamed else answer("Paris", **step))
        ask: Any = {"model": "gpt-4.1", "messages": QUESTION}
        if not streamed:
            return [await client.chat.completions.create(**ask)]
        chunks = await client.chat.completions.create(
            stream=True, stream_options={"include_usage": True}, **ask
        )
        return [chunk async for chunk in chunks]


async def of_responses(streamed: bool, **step: Any) -> list[object]:
    async with (
        FakeOpenAI() as server,
        openai.AsyncOpenAI(base_url=server.base_url, **KEY) as client,
    ):
        server.script(stream(["Par", "is"], **step) if streamed else answer("Paris", **step))
        if not streamed:
            return [await client.responses.create(model="gpt-6.1-terra", input="Hi.")]
        events = await client.responses.create(model="gpt-6.1-terra", input="Hi.", stream=True)
        return [event async for event in events]


async def of_raw_response(streamed: bool, **step: Any) -> list[object]:
    async with (
        FakeOpenAI() as server,
        openai.AsyncOpenAI(base_url=server.base_url, **KEY) as client,
    ):
        server.script(answer("Paris", **step))
        ask = client.chat.completions.with_raw_response.create
        return [await ask(model="gpt-4.1", messages=QUESTION)]


async def of_gemini(streamed: bool, **step: Any) -> list[object]:
    # A separate HTTP client, because the SDK would otherwise subclass one of aiohttp's classes, which warns.
    async with FakeGemini() as server, httpx2.AsyncClient() as transport:
        server.script(stream(["Par", "is"], **step) if streamed else answer("Paris", **step))
        options = types.HttpOptions(base_url=server.url, httpx_async_client=transport)
        client = genai.Client(api_key="test-key", http_options=options).aio
        ask: Any = {"model": "gemini-3.8-flash", "contents": "Hi."}
        try:
            if not streamed:
                return [await client.models.generate_content(**ask)]
            return [chunk async for chunk in await client.models.generate_content_stream(**ask)]
        finally:
            await client.aclose()


async def of_perplexity(streamed: bool, **step: Any) -> list[object]:
    async with (
        FakePerplexity() as server,
        perplexity.AsyncPerplexity(base_url=server.url, **KEY) as client,
    ):
        server.script(stream(["Par", "is"], **step) if streamed else answer("Paris", **step))
        ask: Any = {"model": "perplexity/sonar", "input": "Hi.", "tools": [{"type": "web_search"}]}
        if not streamed:
            return [await client.responses.create(**ask)]
        return [event async for event in await client.responses.create(stream=True, **ask)]


@dataclass(frozen=True)
class Cases:
    ask: Callable[..., Any]
    model: str
    counted: tuple[int, ...]
    streamed: tuple[bool, ...] = (False, True)


TOKENS: dict[str, int] = {"input_tokens": 14, "cache_read_tokens": 100, "cache_write_tokens": 30}
ALL = {
    "anthropic": Cases(of_anthropic, "claude-sonnet-5-5", (14, 100, 30)),
    "anthropic's helper": Cases(of_anthropics_helper, "claude-sonnet-5-5", (14, 100, 30), (True,)),
    "chat": Cases(of_chat, "gpt-4.1", (14, 100, 30)),
    "responses": Cases(of_responses, "gpt-6.1-terra", (14, 100, 30)),
    "raw response": Cases(of_raw_response, "gpt-4.1", (14, 100, 30), (False,)),
    "gemini": Cases(of_gemini, "gemini-3.8-flash", (44, 100, 0)),
    "perplexity": Cases(of_perplexity, "perplexity/sonar", (14, 100, 30), (False, True)),
}
PAIRS = [(name, streamed) for name, one in ALL.items() for streamed in one.streamed]


@pytest.mark.parametrize(("name", "streamed"), PAIRS)
@pytest.mark.filterwarnings("ignore")  # the SDKs warn about themselves
def test_the_usage_of_each_vendors_sdk_is_read_by_class(name: str, streamed: bool) -> None:
    meter, case = Meter(), ALL[name]
    for piece in asyncio.run(case.ask(streamed, **TOKENS)):
        meter.take(piece)
    (report,) = meter.reports
    assert report.is_whole and report.is_last
    written = report.usage.output_tokens
    assert written > 0
    assert report.usage == usage(*case.counted, written)
    assert report.model == case.model


@pytest.mark.filterwarnings("ignore")
def test_reasoning_tokens_are_read() -> None:
    tokens = {"input_tokens": 5, "output_tokens": 9, "reasoning_tokens": 4}
    for name in ("anthropic", "chat", "responses", "gemini"):
        (piece,) = asyncio.run(ALL[name].ask(False, **tokens))
        report = read_report(piece)
        assert report is not None and report.usage == usage(5, 0, 0, 9, 4), name


@pytest.mark.filterwarnings("ignore")
def test_a_stream_left_early_has_no_final_report() -> None:
    for name in ("anthropic", "anthropic's helper"):
        meter = Meter()
        meter.take(asyncio.run(ALL[name].ask(True, **TOKENS))[0])
        (report,) = meter.reports
        assert report.usage.read_tokens == 144 and not report.is_last


# ── the wrappers' objects, and mappings ───────────────────────────────────────────────────────────────────────────────

CHAT_USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


def langchains(**fields: Any) -> object:
    made = type("AIMessage", (SimpleNamespace,), {"__module__": "langchain_core.messages.ai"})
    return made(**fields)


def pydantic_ais(**fields: Any) -> object:
    return type("RunUsage", (SimpleNamespace,), {"__module__": "pydantic_ai.usage"})(**fields)


@pytest.mark.parametrize(
    ("told", "counted"),
    [
        ({"usage": CHAT_USAGE, "model": "m"}, usage(10, 0, 0, 5)),
        (CHAT_USAGE, usage(10, 0, 0, 5)),
        (SimpleNamespace(_raw_response=SimpleNamespace(usage=CHAT_USAGE)), usage(10, 0, 0, 5)),
        (SimpleNamespace(raw={"usage": CHAT_USAGE}), usage(10, 0, 0, 5)),
        (b'{"usage": {"prompt_tokens": 10, "completion_tokens": 5}}', usage(10, 0, 0, 5)),
        (
            {"usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 5, "thoughtsTokenCount": 3}},
            usage(10, 0, 0, 8, 3),
        ),
        (
            {"usage": {"inputTokens": 10, "outputTokens": 5, "cacheReadInputTokens": 7, "totalTokens": 22}},
            usage(10, 7, 0, 5),
        ),
        (
            langchains(
                usage_metadata={
                    "input_tokens": 10,
                    "output_tokens": 5,
                    "total_tokens": 15,
                    "input_token_details": {"cache_read": 4},
                }
            ),
            usage(6, 4, 0, 5),
        ),
        (
            {"usage": pydantic_ais(input_tokens=10, output_tokens=5, cache_read_tokens=4)},
            usage(6, 4, 0, 5),
        ),
        (Usage(input_tokens=3, output_tokens=2), usage(3, 0, 0, 2)),
        ([{"usage": CHAT_USAGE}, {"usage": dict(CHAT_USAGE)}], usage(20, 0, 0, 10)),
        (({"x": 1}, {"usage": CHAT_USAGE}, {"usage": CHAT_USAGE}), usage(10, 0, 0, 5)),
    ],
)
def test_usage_is_found_wherever_a_library_puts_it(told: object, counted: Usage) -> None:
    report = read_report(told)
    assert report is not None and report.usage == counted and report.is_whole


def test_langchains_pieces_report_increments_and_are_added_up() -> None:
    meter = Meter()
    for read, written in ((10, 2), (0, 3), (0, 4)):
        meter.take(langchains(usage_metadata={"input_tokens": read, "output_tokens": written}))
    (report,) = meter.reports
    assert report.usage == usage(10, 0, 0, 9)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"object": "chat.completion.chunk"}, {"delta": {}}),
        ({"object": "text_completion"}, {"text": "a"}),
        ({}, {"delta": {}}),
    ],
    ids=["chat", "text", "unnamed"],
)
def test_chunks_with_ids_of_their_own_are_one_answer(named: dict[str, str], said: dict[str, object]) -> None:
    meter = Meter()
    for number, choices in enumerate(([said], [{**said, "finish_reason": "stop"}], [])):
        meter.take({**named, "id": f"c{number}", "choices": choices, "usage": CHAT_USAGE})
    (report,) = meter.reports
    assert report.usage == usage(10, 0, 0, 5) and report.is_last


@pytest.mark.parametrize(
    "told",
    [
        None,
        "text",
        7,
        {},
        {"usage": None},
        {"usage": {}},
        [],
        object(),
        SimpleNamespace(usage="much"),
        b"<html>",
    ],
)
def test_a_result_without_usage_has_no_report(told: object) -> None:
    assert read_report(told) is None


class Raises:
    @property
    def usage(self) -> object:
        raise RuntimeError("a property of the application's own")


def test_a_property_that_raises_counts_as_missing() -> None:
    assert read_report(Raises()) is None


@pytest.mark.parametrize(
    ("told", "counted", "whole"),
    [
        ({"prompt_tokens": -5, "completion_tokens": 5}, usage(0, 0, 0, 5), False),
        ({"prompt_tokens": None, "completion_tokens": 5}, usage(0, 0, 0, 5), False),
        ({"prompt_tokens": 10, "completion_tokens": None}, usage(10), False),
        ({"prompt_tokens": 10}, usage(10), False),
        ({"prompt_tokens": "10", "completion_tokens": "5"}, usage(10, 0, 0, 5), True),
        ({"prompt_tokens": 10.2, "completion_tokens": 5.0}, usage(11, 0, 0, 5), True),
        ({"prompt_tokens": float("nan"), "completion_tokens": "many"}, usage(), False),
        ({"prompt_tokens": True, "completion_tokens": []}, usage(), False),
        (
            {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 40}},
            usage(10, 40, 0, 5),
            True,
        ),
        ({"prompt_tokens": 10, "completion_tokens": 0, "total_tokens": 30}, usage(10, 0, 0, 20), True),
        ({"prompt_tokens": 10, "total_tokens": 10}, usage(10), True),
    ],
)
def test_ambiguous_counts_never_make_a_bill_too_small(
    told: dict[str, Any], counted: Usage, whole: bool
) -> None:
    report = read_report({"usage": told})
    assert report is not None and (report.usage, report.is_whole) == (counted, whole)


def test_separately_priced_units_are_counted_under_the_price_tables_names() -> None:
    claude = {
        "usage": {
            "input_tokens": 10,
            "output_tokens": 5,
            "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 30},
            "server_tool_use": {"web_search_requests": 2},
            "service_tier": "priority",
        }
    }
    google = {
        "usage_metadata": {
            "prompt_token_count": 10,
            "candidates_token_count": 5,
            "candidates_tokens_details": [{"modality": "IMAGE", "token_count": 4}],
        }
    }
    responses = {"usage": {"input_tokens": 1, "output_tokens": 1}, "output": [{"type": "web_search_call"}]}
    grounding = types.GroundingMetadata(web_search_queries=["capital of france", "", "paris", "paris"])
    metadata = types.GenerateContentResponseUsageMetadata(prompt_token_count=1, candidates_token_count=1)
    searched = types.GenerateContentResponse(
        candidates=[types.Candidate(grounding_metadata=grounding)],
        usage_metadata=metadata,
        model_version="gemini-3.5-flash",
    )
    report = read_report(claude)
    assert _units(searched) == {"web_searches": 2}
    by_prompt = searched.model_copy(update={"model_version": "gemini-2.5-flash"})
    assert _units(by_prompt) == {"web_searches": 1}
    assert report is not None and report.usage == usage(10, 0, 50, 5) and report.tier == "priority"
    assert report.units == {"cache_write_1h": 30, "web_searches": 2}
    assert _units(google) == {"output_image": 4} and _units(responses) == {"web_searches": 1}


def _units(told: object) -> object:
    report = read_report(told)
    return report and report.units


def test_googles_sdk_reports_only_the_last_of_several_requests() -> None:
    turns: Any = [{"role": role, "parts": []} for role in ("user", "model", "user", "model", "user")]
    told = {
        "usage_metadata": {"prompt_token_count": 10, "candidates_token_count": 5},
        "automatic_function_calling_history": turns,
    }
    report = read_report(types.GenerateContentResponse.model_validate(told))
    assert report is not None and report.usage == usage(30, 0, 0, 15) and not report.is_whole


def test_a_cost_that_the_provider_reports_is_read() -> None:
    assert _cost({**CHAT_USAGE, "cost": 0.015}) == Decimal("0.015")
    assert _cost({**CHAT_USAGE, "cost": {"total_cost": "0.02", "currency": "USD"}}) == Decimal("0.02")
    for odd in (-1, "much", True, float("nan"), 10**9, "1e999999", {"total_cost": 1, "currency": "EUR"}, {}):
        assert _cost({**CHAT_USAGE, "cost": odd}) is None, odd


def _cost(told: object) -> Decimal | None:
    report: Report | None = read_report({"usage": told})
    assert report is not None
    return report.cost_usd
