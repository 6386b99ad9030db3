"""Prices from the table, configured, free or unknown; exact costs, and bounds that no bill exceeds."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koo.ai.model_price import FREE, ModelPrice
from koo.ai.models import DEFAULT_MODELS
from koo.ai.pricing import KNOWN_MAX, TABLE_NAMES, Prices
from koo.ai.types import Query, Usage
from koo.configuration.variables import BUILT_IN
from koo.options import ServiceOptions
from koo.testing.clock import StandingClock
from koo.testing.providers import FakeAnthropic, FakeCompatible, FakeGemini, FakeOpenAI, FakeProvider
from koo.testing.providers.script import Raw
from tests.ai.worlds import among_fakes


def at(when: str = "2026-11-23T12:00:00+00:00") -> StandingClock:
    return StandingClock(datetime.fromisoformat(when).timestamp())


def service(kind: Any = "anthropic", **options: Any) -> ServiceOptions:
    return ServiceOptions(name="svc", kind=kind, **{"api_key": "k", **options})


def price(
    model: str, kind: Any = "anthropic", clock: StandingClock | None = None, **options: Any
) -> ModelPrice:
    found = Prices(clock or at()).find(service(kind, **options), model)
    assert found is not None, f"{model} has no price"
    return found


# ── where prices come from ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "model", "usage", "usd"),
    [
        # USD per million tokens, as the vendors publish them: input, cache read, cache write, output.
        ("anthropic", "claude-sonnet-5-5", (1_000_000, 0, 0, 0), "2"),
        ("anthropic", "claude-sonnet-5-5", (0, 0, 0, 1_000_000), "10"),
        ("anthropic", "claude-sonnet-5-5", (0, 1_000_000, 0, 0), "0.1"),
        ("anthropic", "claude-sonnet-5-5", (0, 0, 1_000_000, 0), "2.5"),
        ("anthropic", "claude-sonnet-5-5", (14, 3, 2, 5), "0.0000833"),
        ("openai", "gpt-6.1-terra", (1000, 0, 0, 1000), "0.006"),
        ("openai", "gpt-5-mini", (1000, 1000, 0, 1000), "0.002275"),
        ("gemini", "gemini-2.5-flash", (1000, 0, 0, 1000), "0.0028"),
        # A fee for each request.
        ("perplexity", "sonar", (1000, 0, 0, 1000), "0.014"),
        # Perplexity's agent searches the web for each answer.
        ("perplexity", "perplexity/sonar", (1000, 0, 0, 1000), "0.00525"),
    ],
)
def test_costs_match_the_table(kind: Any, model: str, usage: tuple[int, int, int, int], usd: str) -> None:
    read, cached, written, out = usage
    used = Usage(input_tokens=read, cache_read_tokens=cached, cache_write_tokens=written, output_tokens=out)
    found = price(model, kind)
    assert found.cost_usd(used) == Decimal(usd)
    assert found.source == "table" and found.version.startswith("genai-prices ")


@pytest.mark.parametrize(("service_name", "model"), DEFAULT_MODELS.items())
def test_every_default_model_has_a_price(service_name: str, model: str) -> None:
    """Covers only the vendors in the price table; the others need the two price variables."""
    kind = BUILT_IN[service_name][0]
    if kind not in TABLE_NAMES:
        pytest.skip("the vendor is not in the price table")
    assert price(model, kind).cost_usd(Usage(input_tokens=1, output_tokens=1)) > 0


def test_a_tier_applies_to_every_token_of_the_prompt() -> None:
    """claude-haiku-5-5 costs five times as much for every token if the prompt is longer than 100,000 tokens."""
    found = price("claude-haiku-5-5")
    below = found.cost_usd(Usage(input_tokens=100_000, output_tokens=1000))
    above = found.cost_usd(Usage(input_tokens=100_001, output_tokens=1000))
    cached = found.cost_usd(Usage(input_tokens=1, cache_read_tokens=100_000, output_tokens=1000))
    assert below == Decimal("0.0105") and above == Decimal("0.0525005")
    assert cached == Decimal("0.0000005") + Decimal("0.005") + Decimal("0.0025")


def test_prices_change_on_their_date() -> None:
    """gemini-4-argon costs twice as much from December 1 on."""
    clock = at("2026-11-30T23:59:59+00:00")
    prices, usage = Prices(clock), Usage(input_tokens=1_000_000)
    before = prices.find(service("gemini"), "gemini-4-argon")
    clock.now = datetime(2026, 12, 1, tzinfo=UTC).timestamp()
    after = prices.find(service("gemini"), "gemini-4-argon")
    assert before is not None and after is not None
    assert [before.cost_usd(usage), after.cost_usd(usage)] == [Decimal(2), Decimal(4)]


def test_a_dated_name_has_the_price_of_its_model() -> None:
    assert price("claude-sonnet-4-5-20250929").tiers == price("claude-sonnet-4-5").tiers


@pytest.mark.parametrize(
    ("kind", "model", "options"),
    [
        ("anthropic", "claude-of-tomorrow", {}),
        ("anthropic", "", {}),
        ("openai", "x" * 500, {}),
        # A key, but an address that is not in the table.
        ("openai_compatible", "llama", {"base_url": "http://10.0.0.1/v1", "declared": True}),
        ("openai_compatible", "llama", {"declared": True}),
        # One of the two prices is not enough.
        ("openai_compatible", "llama", {"declared": True, "api_key": None, "output_price": Decimal(1)}),
        # In the table, but without an output price.
        ("perplexity", "pplx-decider-v1.2", {}),
    ],
)
def test_an_unknown_price_is_unknown_and_never_zero(kind: Any, model: str, options: dict[str, Any]) -> None:
    assert Prices(at()).find(service(kind, **options), model) is None


def test_an_aggregator_is_found_by_its_address() -> None:
    found = price(
        "llama-3.3-70b-versatile",
        "openai_compatible",
        declared=True,
        base_url="https://api.groq.com/openai/v1",
    )
    assert found.cost_usd(Usage(input_tokens=1_000_000)) > 0


def test_a_configured_price_takes_precedence() -> None:
    found = price("claude-sonnet-5-5", input_price=Decimal(3), output_price=Decimal("1.5"))
    assert found.cost_usd(Usage(input_tokens=1_000_000, output_tokens=1_000_000)) == Decimal("4.5")
    assert (found.source, found.version) == ("configured", "configured")
    assert found.unit_prices["input"] == "3" and found.unit_prices["output"] == "1.5"


def test_a_configured_price_of_zero_is_a_price() -> None:
    found = price(
        "anything", "openai_compatible", declared=True, input_price=Decimal(0), output_price=Decimal(0)
    )
    assert found.cost_usd(Usage(input_tokens=9)) == 0 and found.source == "configured"


def test_a_self_hosted_server_and_the_local_model_are_free() -> None:
    prices = Prices(at())
    own = service("openai_compatible", api_key=None, declared=True, base_url="http://127.0.0.1:8080/v1")
    assert prices.find(own, "anything") is FREE and FREE.free
    assert prices.find(service("local", api_key=None), "any.gguf") is FREE
    assert FREE.cost_usd(Usage(input_tokens=9, output_tokens=9)) == FREE.bound_usd(9, 9) == 0


@pytest.mark.parametrize(
    ("kind", "model", "body", "factor"),
    [
        ("openai", "gpt-6.1-terra", {"service_tier": "priority"}, "2.5"),
        ("openai_compatible", "openai/gpt-5.2", {"service_tier": "priority"}, "2.5"),
        ("anthropic", "claude-sonnet-5-5", {"speed": "fast"}, "6"),
        ("anthropic", "claude-sonnet-5-5", {"inference_geo": "us"}, "1.1"),
        ("anthropic", "claude-sonnet-5-5", {"inference_geo": "us", "speed": "fast"}, "6.6"),
        ("anthropic", "claude-sonnet-5-5", {"inference_geo": "global"}, "1"),
        ("openai", "gpt-6.1-terra", {"service_tier": "flex"}, "1"),
        ("anthropic", "claude-sonnet-5-5", {"service_tier": "priority"}, "1"),
        ("openai", "gpt-6.1-terra", {"service_tier": ["priority"]}, "1"),
    ],
)
def test_a_faster_tier_that_the_body_requests_multiplies_the_price(
    kind: Any, model: str, body: dict[str, Any], factor: str
) -> None:
    address: dict[str, Any] = (
        {"base_url": "https://openrouter.ai/api/v1"} if kind == "openai_compatible" else {}
    )
    usage, plain = Usage(input_tokens=1000, output_tokens=1000), price(model, kind, **address)
    fast = price(model, kind, body=body, **address)
    assert fast.cost_usd(usage) == plain.cost_usd(usage) * Decimal(factor)
    assert fast.bound_usd(1000, 1000) == plain.bound_usd(1000, 1000) * Decimal(factor)
    assert fast.cost_at_usd(usage, "default") == plain.cost_usd(usage), "a lowered tier is billed as such"


def test_a_configured_price_includes_its_tier() -> None:
    prices: dict[str, Any] = {"input_price": Decimal(1), "output_price": Decimal(1)}
    configured = price("gpt-6.1-terra", "openai", body={"service_tier": "priority"}, **prices)
    assert configured.cost_at_usd(Usage(output_tokens=1_000_000), "priority") == 1


WORDS = {"input_tokens": 1000, "output_tokens": 1000}
OUTPUT = [{"type": "message", "content": [{"type": "output_text", "text": "Paris."}]}]
RUN = {"status": "completed", "output": OUTPUT, "usage": WORDS, "service_tier": "priority"}
MESSAGE = {
    "type": "message", "content": [{"type": "text", "text": "Paris."}], "stop_reason": "end_turn",
    "usage": {**WORDS, "speed": "fast"},
}  # fmt: skip
AT_HOME: dict[str, Any] = {**MESSAGE, "usage": {**WORDS, "speed": "standard", "inference_geo": "us"}}
CHUNKS = (
    {
        "id": "1", "service_tier": "priority",
        "choices": [{"index": 0, "delta": {"content": "Paris."}, "finish_reason": "stop"}],
    },
    {"id": "1", "choices": [], "usage": {"prompt_tokens": 1000, "completion_tokens": 1000}},
)  # fmt: skip


def events(*told: dict[str, Any]) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in told)


@pytest.mark.parametrize(
    ("kind", "model", "body", "streamed", "usd"),
    [
        ("openai", "gpt-6.1-terra", json.dumps(RUN).encode(), False, "0.015"),
        ("openai", "gpt-6.1-terra", events({"type": "response.completed", "response": RUN}), True, "0.015"),
        ("anthropic", "claude-sonnet-5-5", json.dumps(MESSAGE).encode(), False, "0.072"),
        ("anthropic", "claude-sonnet-5-5", events({"type": "message_start", "message": MESSAGE},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1000}},
            {"type": "message_stop"}), True, "0.072"),
        ("anthropic", "claude-sonnet-5-5", json.dumps(AT_HOME).encode(), False, "0.0132"),
        ("anthropic", "claude-sonnet-5-5", events({"type": "message_start", "message": AT_HOME},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1000}},
            {"type": "message_stop"}), True, "0.0132"),
        ("openai_compatible", "gpt-6.1-terra", events(*CHUNKS), True, "0.015"),
        ("openai_compatible", "gpt-6.1-terra", events(*CHUNKS), False, "0.015"),
    ],
    ids=["responses", "streamed responses", "anthropic", "streamed anthropic", "in one region",
         "streamed in one region", "streamed chat", "a stream as a whole"],
)  # fmt: skip
def test_an_answer_is_booked_in_the_tier_that_it_reports(
    kind: Any, model: str, body: bytes, streamed: bool, usd: str
) -> None:
    """An account may have a faster tier by default, which no request shows."""

    async def main() -> None:
        one = ServiceOptions(name="svc", kind=kind, model=model, price_as=model, declared=True, api_key="k")
        fake: FakeProvider = FakeAnthropic() if kind == "anthropic" else FakeCompatible(models=(model,))
        fake = FakeOpenAI() if kind == "openai" else fake
        fake.default = Raw(body=body, content_type="text/event-stream" if streamed else "application/json")
        async with among_fakes((one,), svc=fake) as world:
            query = Query(service="svc", prompt="Capital?", max_tokens=1000)
            if streamed:
                async with world.platform.stream(query) as stream:
                    assert "".join([piece.text async for piece in stream]) == "Paris."
                assert stream.answer is not None and stream.answer.cost_usd == Decimal(usd)
            else:
                assert (await world.platform.query(query)).cost_usd == Decimal(usd)

    asyncio.run(main())


CACHED = {"input_tokens": 100, "cache_read_input_tokens": 900}


@pytest.mark.parametrize(
    ("first", "last"),
    [
        (CACHED, CACHED),
        (CACHED, {}),
        (CACHED, {"input_tokens": 0, "cache_read_input_tokens": None}),
        ({"input_tokens": 0}, CACHED),
        ({"input_tokens": 1000}, CACHED),
    ],
    ids=["twice", "at the start", "no longer at the end", "only at the end", "estimated at the start"],
)
def test_input_that_a_stream_reports_twice_is_booked_once(
    first: dict[str, Any], last: dict[str, Any]
) -> None:
    """Services with Anthropic's format report the cache at the start, at the end, or both."""
    body = events(
        {"type": "message_start", "message": {**MESSAGE, "usage": {**first, "output_tokens": 0}}},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn"},
            "usage": {**last, "output_tokens": 10},
        },
        {"type": "message_stop"},
    )

    async def main() -> None:
        one = ServiceOptions(
            name="svc", kind="anthropic", model="claude-sonnet-5-5", declared=True, api_key="k"
        )
        fake = FakeAnthropic()
        fake.default = Raw(body=body, content_type="text/event-stream")
        async with (
            among_fakes((one,), svc=fake) as world,
            world.platform.stream(Query(service="svc", prompt="Capital?", max_tokens=1000)) as stream,
        ):
            assert "".join([piece.text async for piece in stream]) == "Paris."
            usage = Usage(input_tokens=100, cache_read_tokens=900, output_tokens=10)
            assert stream.answer is not None and stream.answer.usage == usage

    asyncio.run(main())


SEARCHED = {**WORDS, "server_tool_use": {"web_search_requests": 2}}
GROUNDED = {
    "candidates": [{
        "content": {"parts": [{"text": "Paris."}]}, "finishReason": "STOP",
        "groundingMetadata": {"webSearchQueries": ["capital of france", "", "paris", "paris"]},
    }],
    "usageMetadata": {"promptTokenCount": 1000, "candidatesTokenCount": 1000},
}  # fmt: skip
CALLS = [{"type": "web_search_call"}, {"type": "web_search_call"}, *OUTPUT]
FOUND = {"status": "completed", "output": CALLS, "usage": WORDS}
MIXED = (
    {"id": "1", "choices": [{"index": 0, "delta": {"content": "Paris."}, "finish_reason": "stop"}]},
    {"id": "1", "choices": [], "usage": {
        "prompt_tokens": 1000, "completion_tokens": 1000, "server_tool_use": {"web_search_requests": 2}}},
)  # fmt: skip


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("kind", "model", "whole", "pieces", "search_usd"),
    [
        ("openai", "gpt-6.1-terra", FOUND, [{"type": "response.completed", "response": FOUND}], "0.01"),
        ("anthropic", "claude-sonnet-5-5", {**MESSAGE, "usage": SEARCHED},
            [{"type": "message_start", "message": {**MESSAGE, "usage": WORDS}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": SEARCHED},
            {"type": "message_stop"}], "0.01"),
        ("gemini", "gemini-3.5-flash", GROUNDED, [GROUNDED], "0.014"),
        ("openai_compatible", "claude-sonnet-5-5", None, MIXED, "0.01"),
    ],
)  # fmt: skip
def test_the_searches_of_an_answer_are_booked_at_their_own_price(
    kind: Any, model: str, whole: Any, pieces: Any, search_usd: str, streamed: bool
) -> None:
    """A service's `BODY` can let the vendor search."""
    body = json.dumps(whole).encode() if whole and not streamed else events(*pieces)

    async def main() -> None:
        one = ServiceOptions(
            name="svc", kind=kind, model=model, price_as=model, declared=True, api_key="k", body={"tools": []}
        )
        fakes: dict[str, Any] = {"anthropic": FakeAnthropic, "gemini": FakeGemini, "openai": FakeOpenAI}
        fake = fakes[kind]() if kind in fakes else FakeCompatible(models=(model,))
        fake.default = Raw(body=body, content_type="text/event-stream" if streamed else "application/json")
        async with among_fakes((one,), svc=fake) as world:
            query = Query(service="svc", prompt="Capital?", max_tokens=1000)
            if streamed:
                async with world.platform.stream(query) as stream:
                    assert "".join([piece.text async for piece in stream]) == "Paris."
                answer = stream.answer
            else:
                answer = await world.platform.query(query)
            words = price(model, kind if kind in fakes else "anthropic").cost_usd(
                Usage(input_tokens=1000, output_tokens=1000)
            )
            assert answer is not None and answer.cost_usd == words + 2 * Decimal(search_usd)

    asyncio.run(main())


def test_a_body_that_lets_the_vendor_search_holds_three_searches() -> None:
    plain = price("claude-sonnet-5-5", "anthropic")
    searching = price("claude-sonnet-5-5", "anthropic", body={"tools": [{"type": "web_search_20260209"}]})
    assert searching.bound_usd(10, 10) == plain.bound_usd(10, 10) + Decimal("0.03")


def test_a_cache_that_the_body_keeps_for_an_hour_has_its_own_price() -> None:
    kept = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    hour, five = (price("claude-sonnet-5-5", "anthropic", body=body) for body in (kept, {"ttl": "5m"}))
    usage = Usage(cache_write_tokens=1_000_000)
    assert hour.cost_usd(usage) == 4 and five.cost_usd(usage) == Decimal("2.5")
    assert hour.bound_usd(1_000_000, 0) == 4 and five.bound_usd(1_000_000, 0) == Decimal("2.5")
    assert hour.unit_prices["cache_write"] == "4"


def test_unit_prices_are_formatted_for_the_ledger() -> None:
    found = price("claude-sonnet-5-5")
    assert found.unit_prices == {
        "input": "2", "cache_read": "0.1", "cache_write": "2.5", "output": "10", "reasoning": "10",
    }  # fmt: skip
    assert json.loads(json.dumps(found.unit_prices)) == found.unit_prices


# ── bounds ────────────────────────────────────────────────────────────────────────────────────────────────────────────

tokens = st.integers(0, 2_000_000)
known_price = cache(price)


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("anthropic", "claude-sonnet-5-5"), ("anthropic", "claude-haiku-5-5"), ("anthropic", "claude-sonnet-4-5"),
        ("openai", "gpt-6.1-terra"), ("openai", "gpt-5.4"), ("openai", "gpt-4o"), ("gemini", "gemini-2.5-pro"),
        ("perplexity", "sonar-deep-research"), ("perplexity", "sonar"),
    ],
)  # fmt: skip
@settings(deadline=None)  # The first example imports the table.
@given(read=tokens, cached=tokens, written=tokens, out=tokens, thought=tokens, more=tokens)
def test_no_bill_is_above_its_bound(
    kind: Any, model: str, read: int, cached: int, written: int, out: int, thought: int, more: int
) -> None:
    found = known_price(model, kind)
    usage = Usage(
        input_tokens=read, cache_read_tokens=cached, cache_write_tokens=written, output_tokens=out,
        reasoning_tokens=min(thought, out),
    )  # fmt: skip
    assert found.cost_usd(usage) <= found.bound_usd(read + cached + written + more, out + more)


def test_a_bound_uses_the_most_expensive_tier_that_the_call_can_reach() -> None:
    found = price("claude-haiku-5-5")
    assert found.bound_usd(100_000, 0) == Decimal("0.0125")  # at the price of cache writes, the highest
    assert found.bound_usd(100_001, 0) > 4 * found.bound_usd(100_000, 0)


# ── cost of the lookup ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were looked up in the price table."""
    from genai_prices.types import Provider

    models: list[str] = []
    find_model = Provider.find_model

    def watched(self: Provider, model: str, **options: Any) -> Any:
        models.append(model)
        return None if model.startswith("made-up") else find_model(self, model, **options)

    monkeypatch.setattr(Provider, "find_model", watched)
    return models


def test_a_price_is_looked_up_once_a_day(looked_up: list[str]) -> None:
    clock = at()
    prices = Prices(clock)
    for _ in range(5):
        prices.find(service(), "claude-sonnet-5-5")
        prices.find(service(), "made-up")
    assert looked_up == ["claude-sonnet-5-5", "made-up"]
    clock.now = datetime(2026, 11, 24, tzinfo=UTC).timestamp()
    prices.find(service(), "claude-sonnet-5-5")
    assert len(looked_up) == 3, "prices change at midnight"


def test_names_that_callers_make_up_do_not_fill_the_memory(looked_up: list[str]) -> None:
    """At the limit all remembered prices are dropped, and looked up again."""
    prices, asked = Prices(at()), service()
    for number in range(KNOWN_MAX + 1):
        prices.find(asked, f"made-up-{number}")
    prices.find(asked, "made-up-0")
    assert looked_up.count("made-up-0") == 2


def test_the_table_is_not_imported_before_it_is_needed() -> None:
    code = "import sys, koo.ai.pricing, koo.ai.providers.openai; sys.exit('genai_prices' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_loading_does_not_block_the_loop() -> None:
    async def main() -> None:
        prices = Prices(at())
        await prices.load()
        assert prices.find(service(), "claude-sonnet-5-5") is not None

    asyncio.run(main())
