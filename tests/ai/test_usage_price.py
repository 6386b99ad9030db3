"""`koo.price_usd`: the cost of an answer from the objects of the vendors' own SDKs, at the table's prices."""

from __future__ import annotations

from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from anthropic.types import Usage as ClaudeUsage
from genai_prices import Usage as TableUsage
from genai_prices import calc_price
from google.genai.types import GenerateContentResponseUsageMetadata
from openai.types import CompletionUsage, CreateEmbeddingResponse
from openai.types.responses import ResponseUsage
from perplexity.types.responses_usage import ResponsesUsage

from koo import InvalidRequest, PriceUnknown, Usage, price_usd

MILLION = 1_000_000


def usd(*parts: tuple[int, str]) -> Decimal:
    """The cost of several parts, each given as a number of tokens and its price in USD per million."""
    return sum((count * Decimal(price) for count, price in parts), Decimal(0)) / MILLION


def pydantic_ais(**fields: int) -> object:
    return type("RequestUsage", (SimpleNamespace,), {"__module__": "pydantic_ai.usage"})(**fields)


CHAT = {
    "prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500,
    "prompt_tokens_details": {"cached_tokens": 400},
    "completion_tokens_details": {"reasoning_tokens": 300},
}  # fmt: skip
RESPONSES = {
    "input_tokens": 1000, "output_tokens": 500, "total_tokens": 1500,
    "input_tokens_details": {"cached_tokens": 400, "cache_write_tokens": 0},
    "output_tokens_details": {"reasoning_tokens": 300},
}  # fmt: skip
CLAUDE = {"input_tokens": 600, "output_tokens": 500, "cache_read_input_tokens": 400}
GOOGLE = {
    "prompt_token_count": 1000, "candidates_token_count": 200, "thoughts_token_count": 300,
    "cached_content_token_count": 400, "total_token_count": 1500,
}  # fmt: skip

GPT = usd((600, "2"), (400, "0.5"), (500, "8"))
SONNET = usd((600, "2"), (400, "0.1"), (500, "10"))
FLASH = usd((600, "0.75"), (400, "0.075"), (500, "3.75"))


@pytest.mark.parametrize(
    ("model", "usage", "cost"),
    [
        ("gpt-4.1", CompletionUsage.model_validate(CHAT), GPT),
        ("gpt-4.1", ResponseUsage.model_validate(RESPONSES), GPT),
        ("gpt-4.1-2025-04-14", CHAT, GPT),
        ("gpt-4.1", {"model": "gpt-4.1", "usage": CHAT}, GPT),
        ("claude-sonnet-5-5", ClaudeUsage.model_validate(CLAUDE), SONNET),
        ("claude-sonnet-5-5", CLAUDE, SONNET),
        (
            "claude-sonnet-5-5",
            Usage(input_tokens=600, cache_read_tokens=400, output_tokens=500, reasoning_tokens=300),
            SONNET,
        ),
        (
            "claude-sonnet-5-5",
            pydantic_ais(input_tokens=1000, cache_read_tokens=400, output_tokens=500),
            SONNET,
        ),
        ("gemini-3.8-flash", GenerateContentResponseUsageMetadata.model_validate(GOOGLE), FLASH),
        ("gemini-3.8-flash", GOOGLE, FLASH),
    ],
)
def test_cached_tokens_reasoning_and_thoughts_cost_what_the_table_says(
    model: str, usage: object, cost: Decimal
) -> None:
    assert price_usd(model, usage) == cost


@pytest.mark.parametrize(
    ("model", "vendor"),
    [
        ("gpt-4.1", "openai"),
        ("gpt-6.1-terra", "openai"),
        ("claude-sonnet-5-5", "anthropic"),
        ("gemini-2.5-pro", "google"),
    ],
)
def test_the_price_of_a_model_is_that_of_the_table(model: str, vendor: str) -> None:
    usage = TableUsage(input_tokens=300_000, cache_read_tokens=100_000, output_tokens=500)
    assert price_usd(model, usage) == calc_price(usage, model, provider_id=vendor).total_price


def test_hour_long_caching_searches_fast_answers_and_answers_from_one_region_cost_more() -> None:
    kept: dict[str, Any] = {"input_tokens": 0, "output_tokens": 1}
    five = {**kept, "cache_creation": {"ephemeral_5m_input_tokens": 1000, "ephemeral_1h_input_tokens": 0}}
    hour = {**kept, "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 1000}}
    assert price_usd("claude-sonnet-5-5", ClaudeUsage.model_validate(five)) == usd((1000, "2.5"), (1, "10"))
    assert price_usd("claude-sonnet-5-5", ClaudeUsage.model_validate(hour)) == usd((1000, "4"), (1, "10"))
    searched = {**kept, "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 0}}
    assert price_usd("claude-sonnet-5-5", searched) == usd((1, "10")) + Decimal("0.02")
    assert price_usd("claude-sonnet-5-5", {**kept, "speed": "fast"}) == 6 * usd((1, "10"))
    for geo, factor in (("us", "1.1"), ("global", "1"), ("not_available", "1"), (None, "1")):
        told = ClaudeUsage.model_validate({**kept, "inference_geo": geo})
        assert price_usd("claude-sonnet-5-5", told) == Decimal(factor) * usd((1, "10"))


def test_a_generated_picture_has_its_own_price() -> None:
    details = [{"modality": "IMAGE", "token_count": 1290}]
    made = {"prompt_token_count": 10, "candidates_token_count": 1290, "candidates_tokens_details": details}
    usage = GenerateContentResponseUsageMetadata.model_validate(made)
    assert price_usd("gemini-2.5-flash-image", usage) == usd((10, "0.3"), (1290, "30"))


def test_embeddings_cost_only_their_input() -> None:
    made = {
        "object": "list",
        "data": [],
        "model": "text-embedding-3-small",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
    assert price_usd("text-embedding-3-small", CreateEmbeddingResponse.model_validate(made)) == usd(
        (7, "0.02")
    )


def test_a_cost_that_the_provider_reports_takes_precedence() -> None:
    cost = {"currency": "USD", "input_cost": 0.001, "output_cost": 0.002, "total_cost": 0.008}
    told = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2, "cost": cost}
    assert price_usd("perplexity/sonar", ResponsesUsage.model_validate(told)) == Decimal("0.008")
    assert price_usd("a/private-name", {**CHAT, "cost": 0.25}) == Decimal("0.25")


def test_a_model_that_no_vendor_has_is_unknown_and_never_free() -> None:
    for model in ("gpt-99-nobody", "", "ft:gpt-4o:mine"):
        with pytest.raises(PriceUnknown, match="not in the price table"):
            price_usd(model, CHAT)


def test_a_usage_without_counts_is_the_callers_mistake() -> None:
    for usage in ({}, None, "many", {"usage": None}, object()):
        with pytest.raises(InvalidRequest, match="no token counts"):
            price_usd("gpt-4.1", usage)


def test_a_host_may_be_named_before_the_model() -> None:
    at_azure, at_groq = price_usd("azure/gpt-4.1", CHAT), price_usd("groq/llama-3.3-70b-versatile", CHAT)
    assert at_azure > price_usd("gpt-4.1", CHAT) > at_groq > 0
