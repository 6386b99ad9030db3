"""Rules map the model names of vendors, clouds and gateways to a price that is never below the possible bill."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from koo.ai.model_price import ModelPrice
from koo.ai.pricing import Prices
from koo.ai.types import Usage
from koo.errors import PriceUnknown
from koo.options import ServiceOptions
from tests.ai.test_pricing import at
from tests.ai.worlds import World, run

OPENROUTER = "https://openrouter.ai/api/v1"
AZURE = "https://acme.openai.azure.com/openai/v1"
BEDROCK = "https://bedrock-runtime.eu-west-1.amazonaws.com/openai/v1"
NOWHERE = "http://10.0.0.1/v1"
READ = Usage(input_tokens=1_000_000)
WRITTEN = Usage(output_tokens=1_000_000)


def find(
    name: str, /, kind: Any = "openai_compatible", base_url: str | None = None, **options: Any
) -> ModelPrice | None:
    options = {"api_key": "k", "declared": base_url is not None, **options}
    return Prices(at()).find(ServiceOptions(name="svc", kind=kind, base_url=base_url, **options), name)


def usd(
    name: str, /, kind: Any = "openai_compatible", base_url: str | None = None, **options: Any
) -> tuple[str, str]:
    """The prices of a million input tokens and a million output tokens, in USD."""
    price = find(name, kind, base_url, **options)
    assert price is not None, f"{name} has no price"
    return f"{price.cost_usd(READ).normalize():f}", f"{price.cost_usd(WRITTEN).normalize():f}"


@pytest.mark.parametrize(
    ("model", "kind", "as_model"),
    [
        ("models/gemini-2.5-flash", "gemini", "gemini-2.5-flash"),
        ("Models/Gemini-2.5-Flash", "gemini", "gemini-2.5-flash"),
        ("publishers/google/models/gemini-2.5-flash", "gemini", "gemini-2.5-flash"),
        ("projects/p/locations/l/publishers/google/models/gemini-2.5-flash", "gemini", "gemini-2.5-flash"),
        ("google/gemini-2.5-flash", "gemini", "gemini-2.5-flash"),
        ("gemini-2.5-flash-001", "gemini", "gemini-2.5-flash"),
        ("gemini-2.5-flash@default", "gemini", "gemini-2.5-flash"),
        ("anthropic/claude-sonnet-4-5", "anthropic", "claude-sonnet-4-5"),
        ("claude-sonnet-4-5@20250929", "anthropic", "claude-sonnet-4-5"),
        ("claude-sonnet-5-5-latest", "anthropic", "claude-sonnet-5-5"),
        ("openai/gpt-6.1-terra", "openai", "gpt-6.1-terra"),
        ("gpt-6.1-terra-20261026", "openai", "gpt-6.1-terra"),
        (" gpt-6.1-terra ", "openai", "gpt-6.1-terra"),
        ("gpt-5-mini:nitro", "openai", "gpt-5-mini"),
    ],
)
def test_a_model_has_its_price_in_every_spelling(model: str, kind: Any, as_model: str) -> None:
    found, known = find(model, kind), find(as_model, kind)
    assert found is not None and known is not None
    assert found.tiers == known.tiers


@pytest.mark.parametrize(
    ("model", "kind", "base_url", "prices"),
    [
        # Bedrock's own table, at any address. Its regional profiles cost a tenth more than the global ones.
        ("anthropic.claude-sonnet-4-5-20250929-v1:0", "openai_compatible", BEDROCK, ("3.3", "16.5")),
        ("eu.anthropic.claude-sonnet-4-5-20250929-v1:0", "anthropic", None, ("3.3", "16.5")),
        ("eu.anthropic.claude-sonnet-4-5-20250929-v1:0", "openai_compatible", NOWHERE, ("3.3", "16.5")),
        ("global.anthropic.claude-sonnet-4-5-20250929-v1:0", "anthropic", None, ("3", "15")),
        ("us.anthropic.claude-sonnet-5-5-20261001-v1:0", "anthropic", None, ("2.2", "11")),
        ("bedrock/us.amazon.nova-pro-v1:0", "openai_compatible", NOWHERE, ("0.8", "3.2")),
        (
            "arn:aws:bedrock:eu-west-1::foundation-model/anthropic.claude-sonnet-4-5-20250929-v1:0",
            "anthropic",
            None,
            ("3.3", "16.5"),
        ),
        # Hosts in different spellings. Those that stay in one region cost more.
        ("gpt-5-mini", "openai_compatible", "http://API.OpenAI.com:443/v1", ("0.25", "2")),
        ("gpt-5-mini", "openai", "https://eu.api.openai.com/v1", ("0.275", "2.2")),
        ("gemini-2.5-flash", "gemini", "https://aiplatform.googleapis.com/v1", ("0.3", "2.5")),
        ("gemini-2.5-flash", "gemini", "https://europe-west1-aiplatform.googleapis.com/v1", ("0.33", "2.75")),
        ("grok-4", "openai_compatible", "https://us-east-1.api.x.ai/v1", ("3.3", "16.5")),
        # A deployment may be in a data zone, and its name does not show that.
        ("gpt-5-mini", "openai", AZURE, ("0.3", "2.4")),
        # The address says more about the price than the API format that is used there.
        ("eu.anthropic.claude-sonnet-4-5-20250929-v1:0", "anthropic", BEDROCK, ("3.3", "16.5")),
        # OpenRouter: suffixes that choose among hosts, and suffixes of separate entries.
        ("mistralai/mistral-large", "openai_compatible", OPENROUTER, ("2", "6")),
        ("openai/gpt-4o:extended", "openai_compatible", OPENROUTER, ("6", "18")),
        ("meta-llama/llama-3.3-70b-instruct:free", "openai_compatible", OPENROUTER, ("0", "0")),
        ("brand-new/model:free", "openai_compatible", OPENROUTER, ("0", "0")),
    ],
)
def test_the_price_is_that_of_the_vendor_that_is_paid(
    model: str, kind: Any, base_url: str | None, prices: tuple[str, str]
) -> None:
    assert usd(model, kind, base_url) == prices


@pytest.mark.parametrize("suffix", ["nitro", "floor", "exacto"])
def test_if_any_host_may_answer_the_highest_price_is_charged(suffix: str) -> None:
    model = "meta-llama/llama-3.3-70b-instruct"
    base, routed = find(model, base_url=OPENROUTER), find(f"{model}:{suffix}", base_url=OPENROUTER)
    together = find("meta-llama/llama-3.3-70b-instruct-turbo", base_url="https://api.together.xyz/v1")
    assert base is not None and routed is not None
    for one in filter(None, (base, together)):
        assert routed.cost_usd(READ) >= one.cost_usd(READ) and routed.cost_usd(WRITTEN) >= one.cost_usd(
            WRITTEN
        )
    assert routed.cost_usd(READ) > base.cost_usd(READ), "another host charges more for it"


def test_an_unknown_date_costs_as_much_as_the_most_expensive_known_one() -> None:
    """gpt-4o of May 2024 costs twice as much as the later ones."""
    assert usd("gpt-4o", "openai") == ("2.5", "10")
    assert usd("gpt-4o-2026-01-01", "openai") == usd("gpt-4o-2024-05-13", "openai") == ("5", "15")


@pytest.mark.parametrize(
    ("model", "kind", "base_url"),
    [
        ("tunedModels/gemini-2.5-flash", "gemini", None),
        ("ft:gpt-5-mini-2025-08-07:acme::abc", "openai", None),
        ("claude-sonnet-latest", "anthropic", None),
        ("openai/gpt-5-mini:online", "openai_compatible", OPENROUTER),
        ("openai/gpt-5-mini:extended", "openai_compatible", OPENROUTER),
        ("openrouter/auto", "openai_compatible", OPENROUTER),
        # Another vendor's model costs what this vendor charges for it, which is unknown.
        ("anthropic/claude-sonnet-5-5", "openai", None),
        # A tag on a self-hosted server, not OpenRouter's suffix for free entries.
        ("llama3:free", "openai_compatible", NOWHERE),
        ("gpt-5-mini:nitro", "openai_compatible", NOWHERE),
        ("prod", "openai", AZURE),
        (":free", "openai_compatible", OPENROUTER),
        (":nitro", "openai", None),
        ("models/", "gemini", None),
        ("eu.anthropic.claude-of-tomorrow-v1:0", "anthropic", None),
        ("arn:aws:bedrock:eu-west-1:123:application-inference-profile/abcd", "anthropic", BEDROCK),
        ("gpt-5-mini" + "-2026-01-01" * 1000, "openai", None),
    ],
)
def test_a_name_that_no_rule_covers_stays_unknown(model: str, kind: Any, base_url: str | None) -> None:
    assert find(model, kind, base_url) is None


# ── PRICE_AS ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("price_as", "kind", "base_url", "prices"),
    [
        ("gpt-4o", "openai_compatible", NOWHERE, ("2.5", "10")),
        ("openai/gpt-4o", "openai_compatible", NOWHERE, ("2.5", "10")),
        ("anthropic/claude-sonnet-5-5", "openai_compatible", NOWHERE, ("2", "10")),
        ("claude-sonnet-5-5", "openai_compatible", NOWHERE, ("2", "10")),
        ("models/gemini-2.5-flash", "gemini", None, ("0.3", "2.5")),
        ("groq/llama-3.3-70b-versatile", "openai_compatible", NOWHERE, ("0.59", "0.79")),
        ("gpt-5-mini", "openai", None, ("0.25", "2")),
        ("gpt-4o", "openai_compatible", AZURE, ("3", "12")),
    ],
)
def test_a_private_name_has_the_price_of_its_services_price_as(
    price_as: str, kind: Any, base_url: str | None, prices: tuple[str, str]
) -> None:
    assert usd("prod", kind, base_url, model="prod", price_as=price_as) == prices


def test_price_as_overrides_the_name_of_the_services_own_model() -> None:
    """A deployment may have the name of a different model."""
    assert usd("gpt-4o", "openai", AZURE, model="gpt-4o", price_as="gpt-5-mini") == ("0.3", "2.4")


def test_another_model_of_the_service_costs_what_the_table_says() -> None:
    asked: dict[str, Any] = {"model": "prod", "price_as": "gpt-5-mini"}
    assert usd("gpt-5-pro", "openai", **asked) == ("15", "120")
    assert usd("staging", "openai", **asked) == ("0.25", "2")
    # At an address with unknown prices, the higher of the two possible prices.
    assert usd("gpt-5-pro", base_url=NOWHERE, **asked) == ("15", "120")
    assert usd("gpt-5-nano", base_url=NOWHERE, **asked) == ("0.25", "2")


def test_price_as_with_an_unknown_model_gives_no_price() -> None:
    assert find("prod", base_url=NOWHERE, model="prod", price_as="nonsense") is None


def test_a_configured_price_takes_precedence_over_price_as() -> None:
    own: dict[str, Any] = {"input_price": Decimal(7), "output_price": Decimal(8)}
    assert usd("prod", "openai", model="prod", price_as="gpt-4o", **own) == ("7", "8")


def test_a_self_hosted_server_with_price_as_is_not_free() -> None:
    options: dict[str, Any] = {"api_key": None, "model": "prod", "price_as": "gpt-4o"}
    assert usd("prod", base_url=NOWHERE, **options) == ("2.5", "10")


def test_the_error_of_an_unknown_price_names_the_setting() -> None:
    async def test(here: World) -> None:
        with pytest.raises(PriceUnknown, match="AI_SERVICES__CLAUDE__PRICE_AS to a model of the same price"):
            await here.ask(model="claude-of-tomorrow")

    run(test)


# ── free services ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_free_entry_holds_nothing_and_is_booked_with_its_price_source() -> None:
    price = find("a/b:free", base_url=OPENROUTER)
    assert price is not None and price.bound_usd(1000, 1000) == 0
    assert not price.free, "a free service has no bill, and a cost that OpenRouter reports would be lost"
    assert price.unit_prices["input"] == "0" and price.version.startswith("genai-prices ")


def test_a_free_model_answers_even_with_a_used_up_budget() -> None:
    async def test(here: World) -> None:
        assert (await here.ask()).cost_usd == 0

    run(test, input_price=Decimal(0), output_price=Decimal(0), daily_budget_usd=Decimal(0))


def test_the_price_of_any_host_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lookup takes milliseconds, and callers choose names."""
    from genai_prices.types import Provider

    asked: list[str] = []
    real = Provider.find_model

    def watched(self: Provider, model: str, **options: Any) -> Any:
        asked.append(model)
        return real(self, model, **options)

    async def main() -> None:
        prices = Prices(at())
        service = ServiceOptions(
            name="s", kind="openai_compatible", base_url=OPENROUTER, api_key="k", declared=True
        )
        prices.find(service, "openai/gpt-5-nano:nitro")
        monkeypatch.setattr(Provider, "find_model", watched)
        prices.find(service, "openai/gpt-5-nano:floor")

    asyncio.run(main())
    assert 1 <= len(asked) < 5
