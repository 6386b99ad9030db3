"""Reported usage under every vendor's names: no billed token is lost between two of them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
import pytest

from koo.ai.operation_usage import read_report
from koo.ai.providers import anthropic, gemini, openai_compatible, responses
from koo.ai.providers.usage import reported_usd
from koo.ai.types import Usage


def chat(**usage: Any) -> Usage:
    return openai_compatible.usage_of(msgspec.convert(usage, openai_compatible._Usage))


def classes(usage: Usage) -> tuple[int, int, int, int, int]:
    return (
        usage.input_tokens,
        usage.cache_read_tokens,
        usage.cache_write_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
    )


@pytest.mark.parametrize(
    "names",
    [
        {"prompt_tokens_details": {"cached_tokens": 900}},
        {"prompt_cache_hit_tokens": 900, "prompt_cache_miss_tokens": 100},
        {"cached_tokens": 900},
        {"num_cached_tokens": 900},
        {"cache_read_input_tokens": 900},
        {"prompt_tokens_details": {"cached_tokens": 0}, "prompt_cache_hit_tokens": 900},
    ],
    ids=["openai", "deepseek", "moonshot", "mistral", "anthropic's name", "two names"],
)
def test_cached_tokens_are_read_under_many_names(names: dict[str, Any]) -> None:
    assert classes(chat(prompt_tokens=1000, completion_tokens=3, **names)) == (100, 900, 0, 3, 0)


def test_cache_tokens_above_the_prompts_count_are_separate_from_it() -> None:
    usage = chat(
        prompt_tokens=10, completion_tokens=3, cache_read_input_tokens=900, cache_creation_input_tokens=50
    )
    assert classes(usage) == (10, 900, 50, 3, 0)


def test_reasoning_counted_separately_is_output_too() -> None:
    details = {"reasoning_tokens": 2809}
    usage = chat(
        prompt_tokens=10120, completion_tokens=1499, total_tokens=14428, completion_tokens_details=details
    )
    assert classes(usage) == (10120, 0, 0, 4308, 2809)
    assert classes(chat(prompt_tokens=5, completion_tokens=3, reasoning_tokens=40)) == (5, 0, 0, 43, 40)


def test_reasoning_inside_the_answer_is_not_counted_twice() -> None:
    usage = chat(
        prompt_tokens=5,
        completion_tokens=43,
        total_tokens=48,
        completion_tokens_details={"reasoning_tokens": 40},
    )
    assert classes(usage) == (5, 0, 0, 43, 40)


def test_tokens_of_the_total_beyond_the_prompt_are_output() -> None:
    assert chat(prompt_tokens=5, completion_tokens=3, total_tokens=60).output_tokens == 55
    told = msgspec.convert({"input_tokens": 5, "output_tokens": 3, "total_tokens": 60}, responses._Usage)
    assert responses.usage_of(told).output_tokens == 55
    thought = gemini._Usage(prompt_token_count=5, candidates_token_count=3, total_token_count=60)
    assert gemini.usage_of(thought).output_tokens == 55


def test_a_missing_prompt_count_follows_from_the_total() -> None:
    assert classes(chat(completion_tokens=3, total_tokens=60)) == (57, 0, 0, 3, 0)


@pytest.mark.parametrize("tokens", [None, -5])
def test_null_or_negative_reasoning_counts_as_none(tokens: int | None) -> None:
    told = msgspec.convert(
        {"input_tokens": 9, "output_tokens": 5, "output_tokens_details": {"thinking_tokens": tokens}},
        anthropic._Usage,
    )
    assert classes(anthropic.usage_of(told)) == (9, 0, 0, 5, 0)


def test_a_later_report_never_lowers_a_count() -> None:
    first = anthropic._Usage(input_tokens=9, cache_read_input_tokens=40, output_tokens=1)
    later = anthropic._Usage(input_tokens=0, output_tokens=7)
    assert classes(anthropic.usage_of(first).grown(anthropic.usage_of(later))) == (9, 40, 0, 7, 0)


def test_a_count_may_be_a_float() -> None:
    assert classes(chat(prompt_tokens=12.0, completion_tokens=3.5, total_tokens=None)) == (12, 0, 0, 4, 0)


def test_the_total_never_shrinks_although_classes_may_change() -> None:
    fresh, cached = Usage(input_tokens=100, output_tokens=9), Usage(input_tokens=10, cache_read_tokens=90)
    assert classes(fresh.grown(cached)) == (10, 90, 0, 9, 0)
    assert classes(fresh.grown(Usage(input_tokens=3))) == (100, 0, 0, 9, 0)


@pytest.mark.parametrize(
    ("told", "usd"),
    [
        ({"cost": "0.05", "is_byok": True, "cost_details": {"upstream_inference_cost": 1}}, "1.05"),
        ({"cost": 0, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.25}}, "0.25"),
        ({"cost": 0.25, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.25}}, "0.25"),
        ({"cost": 0.95, "cost_details": {"upstream_inference_cost": 19}}, "19"),
        ({"cost": 0.25, "is_byok": True, "cost_details": {"upstream_inference_cost": None}}, "0.25"),
        ({"cost": 0.25, "is_byok": True, "cost_details": {"upstream_inference_cost": -1}}, "0.25"),
        ({"cost": {"total_cost": 0.25, "request_cost": 0.005}}, "0.25"),
        ({"cost": 0.25, "is_byok": True, "cost_details": {"upstream_inference_cost": "1e999999"}}, "0.25"),
    ],
    ids=[
        "a fee",
        "no fee",
        "no own key",
        "no flag",
        "nothing upstream",
        "below zero",
        "in parts",
        "no amount",
    ],
)
def test_a_cost_includes_what_the_vendor_bills_to_an_own_key(told: dict[str, Any], usd: str) -> None:
    """OpenRouter reports only its fee as the cost of a call with the account's own key for a vendor."""
    for shape, names in (
        (openai_compatible._Usage, ("prompt_tokens", "completion_tokens")),
        (responses._Usage, ("input_tokens", "output_tokens")),
    ):
        usage = dict.fromkeys(names, 3) | told
        assert reported_usd(msgspec.convert(usage, shape, strict=False)) == Decimal(usd)
        report = read_report({"usage": usage})
        assert report is not None and report.cost_usd == Decimal(usd)


@pytest.mark.parametrize("told", [2**32 - 1, 2**64 - 1, 1e308, float("inf"), float("nan"), -1])
def test_an_impossible_count_is_not_a_count(told: float) -> None:
    """A -1 becomes such a number in servers that count without a sign. As output it would cost thousands of dollars."""
    assert chat(prompt_tokens=12, completion_tokens=3, total_tokens=told) == Usage(
        input_tokens=12, output_tokens=3
    )
    assert chat(prompt_tokens=told, completion_tokens=told) == Usage()
