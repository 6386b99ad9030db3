"""Finds the price of a model in the operator's settings or in a price table. A price in neither is unknown, not zero.

The table is `genai-prices`, with a history by date and tiers by prompt length. A price is looked up once per model and
day and kept as computed numbers (`koo.ai.model_price`), so that a call only multiplies. `koo.ai.price_names` maps a
model's spellings to names in the table. Only three things cost nothing: the local model, a self-hosted server declared
without key and price, and OpenRouter's free entries.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from koo.ai.model_price import (
    FREE,
    NOTHING,
    TIERS,
    ModelPrice,
    UnitPrices,
    as_text,
    dearest,
    factor_of,
    of_one,
    raised,
    tier_of,
)
from koo.ai.operation_prompt import read_prompt
from koo.ai.price_names import AWS, Spelling, bedrock_spellings, factor_at, global_address, spellings, undated
from koo.clock import SYSTEM_CLOCK, Clock, utc_day
from koo.options import ServiceOptions
from koo.policies.money import EXACT
from koo.policies.treatment import out_of_resources
from koo.shortages import shortage_in

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, Provider

THOUSAND = Decimal(1000)

TABLE_NAMES = {"anthropic": "anthropic", "openai": "openai", "gemini": "google", "perplexity": "perplexity"}
"""The vendor in the table that a kind of service pays, unless the service's address shows a different one."""
OPENROUTER = "openrouter"
SEARCHES_MAX = 3
"""The number of web searches that a bound assumes for models that search: one answer may trigger several."""
SEARCH_USD = Decimal("0.0025")
"""The price of one Perplexity search with any model, if the table has none (checked in October 2026)."""
TIER_FIELDS = {"anthropic": ("speed",)}
"""The field that requests a faster answer, where it is not `service_tier`. Anthropic's field of that name does not
change the price."""
SEARCH_FIELDS = ("tools", "web_search_options", "plugins")
"""The fields with which a service's `BODY` can let the vendor search."""
EMBEDS = "embed"
"""Part of the names of embedding models, which write nothing and so have no output price."""
BASES = {
    "cache_write_1h": "cache_write_mtok",
    "input_audio": "input_mtok",
    "input_image": "input_mtok",
    "input_video": "input_mtok",
    "output_audio": "output_mtok",
    "output_image": "output_mtok",
    "output_video": "output_mtok",
}
"""Kinds of tokens with a separate price in the table, and the price of the class in which they are counted."""
SEARCHES = ("web_searches", "storage_searches")
KNOWN_MAX = 10_000
"""The most prices kept: callers choose the models' names, so without a limit they could fill the memory."""
MAKER = ServiceOptions(name="", kind="openai_compatible")
"""Stands for the maker of a model, for prices that are not looked up for a service."""


class Prices:
    """Finds prices. `load()` loads the table into memory once, which takes a few tenths of a second."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._known: dict[tuple[str, str], ModelPrice | None] = {}
        self._day = -1

    async def load(self) -> None:
        """Import the table in a thread, off the event loop. Raises `ServiceRefused` if no thread or memory is free."""
        try:
            await asyncio.to_thread(_table)
        except (RuntimeError, OSError) as error:
            if shortage_in(error) is None:
                raise
            raise out_of_resources("koo", error) from None

    def find(self, service: ServiceOptions, model: str) -> ModelPrice | None:
        """The price of a model at a service; None if it is unknown."""
        if service.free:
            return FREE
        if service.input_price is not None and service.output_price is not None:
            search_usd = SEARCH_USD if service.kind == "perplexity" else NOTHING
            return _configured(service.input_price, service.output_price, search_usd)
        return self._look_up(service, model)

    def find_anywhere(self, model: str) -> ModelPrice | None:
        """The price of a model at its maker, or at the vendor in its name (`azure/gpt-4o`); None if it is unknown."""
        return self._look_up(MAKER, model)

    def _look_up(self, service: ServiceOptions, model: str) -> ModelPrice | None:
        wall_s = self._clock.wall()
        day = utc_day(wall_s)
        # The table's history is by date, so prices change at midnight UTC. A price kept from yesterday may be too low.
        if day != self._day or len(self._known) >= KNOWN_MAX:
            self._known.clear()
            self._day = day
        key = (service.name, model)
        try:
            return self._known[key]
        except KeyError:
            price = self._known[key] = _with_body(service, _from_table(service, model, wall_s))
            return price


# ── the table ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _table() -> DataSnapshot:
    """The data of `genai_prices`, imported when first needed because that takes 160 ms."""
    from genai_prices.data_snapshot import get_snapshot

    return get_snapshot()


def _from_table(service: ServiceOptions, model: str, wall_s: float) -> ModelPrice | None:
    """The price under the model's own name, or under `price_as`.

    `price_as` replaces the name of the service's own model, and of other models that the vendor's table does not list.
    """
    now, stand_in = datetime.fromtimestamp(wall_s, UTC), service.price_as
    if service is MAKER:
        return _price_at(service, _makers(model), model, now) or _price_of_any(model, now)
    own = tuple(_own_vendors(service))
    if stand_in is None:
        return _price_at(service, own, model, now)
    price = _price_at(service, own, model, now) if model != service.model else None
    if price is None:
        price = _price_at(service, (*own, *_makers(stand_in)), stand_in, now)
        # `price_as` was chosen for the service's own model, but a caller may name another one. If that is known
        # elsewhere at a higher price, charge the higher of the two.
        other = _price_at(service, _makers(model), model, now) if model != service.model else None
        if price is not None and other is not None:
            price = dearest((price, other))
    return price


def _with_body(service: ServiceOptions, price: ModelPrice | None) -> ModelPrice | None:
    """The price with what the service's `BODY` requests: a cache kept for an hour, searches, a faster tier."""
    if price is None or not service.body:
        return price
    if "cache_write_1h" in price.more_usd and read_prompt(service.body, "").keeps_1h:
        price = _kept_for_an_hour(price)
    if any(name in service.body for name in SEARCH_FIELDS):
        search_usd = max((price.more_usd.get(name, NOTHING) for name in SEARCHES), default=NOTHING)
        price = replace(price, extra_usd=EXACT.fma(SEARCHES_MAX, search_usd, price.extra_usd))
    tiers = [service.body.get(name) for name in TIER_FIELDS.get(service.kind, ("service_tier",))]
    faster = next((tier for tier in tiers if isinstance(tier, str) and tier in TIERS), None)
    tier = tier_of(faster, service.body.get("inference_geo") if service.kind == "anthropic" else None)
    return price if tier is None else replace(raised(price, factor_of(tier)), ordinary=price)


def _kept_for_an_hour(price: ModelPrice) -> ModelPrice:
    """The price if everything that is written to the cache is kept for an hour."""
    more = price.more_usd["cache_write_1h"]
    tiers = tuple(
        replace(tier, cache_write_usd=EXACT.add(tier.cache_write_usd, more)) for tier in price.tiers
    )
    rest = {name: usd for name, usd in price.more_usd.items() if name != "cache_write_1h"}
    return replace(price, tiers=tiers, more_usd=rest, unit_prices=as_text(tiers[0]))


def context_tokens(service: ServiceOptions, model: str) -> int | None:
    """A model's context window in tokens; the largest one if its name is ambiguous, None if it is not in the table."""
    entries = (
        _entry(vendor, spelling.name) for vendor in _own_vendors(service) for spelling in spellings(model)
    )
    return max(
        (one.context_window for one in entries if one is not None and one.context_window), default=None
    )


def _price_of_any(model: str, now: datetime) -> ModelPrice | None:
    """The price of a model whose maker is not in its name.

    It is looked up at the vendors that koo has adapters for; otherwise the highest price of all hosts is used.
    """
    vendors = [vendor for name in TABLE_NAMES.values() for vendor in _called(name)]
    price = _price_at(MAKER, vendors, model, now)
    if price is not None:
        return price
    found = (_price_of(MAKER, one, now) for one in _anywhere(model))
    prices = [one for one in found if one is not None]
    return dearest(prices) if prices else None


def _own_vendors(service: ServiceOptions) -> Iterator[Provider]:
    """The vendors that a service may pay: the one at its address first, then the one of its kind."""
    # The address is the better evidence: an "openai" service may point at Azure or at a gateway. The vendor of the
    # service's kind is tried second, for addresses that are not in the table.
    if service.base_url is not None:
        for address in (service.base_url, global_address(service.base_url)):
            at = [one for one in _table().providers if re.match(one.api_pattern, address)]
            if at:
                yield at[0]
                break
    if service.kind in TABLE_NAMES:
        yield from _called(TABLE_NAMES[service.kind])


def _makers(model: str) -> Iterator[Provider]:
    """The possible makers of a model, found by the vendor in front of its name or by the name itself."""
    yield from _called(model.partition("/")[0].lower())
    for one in _table().providers:
        if one.model_match is not None and one.model_match.is_match(model.lower()):
            yield one


def _called(name: str) -> Iterator[Provider]:
    """The vendor with this name; none if the table has no such vendor."""
    # This does not use the table's own search, which caches every name that it is given: callers choose names.
    providers = _table().providers
    exact = [one for one in providers if one.id == name]
    like = [one for one in providers if one.provider_match is not None and one.provider_match.is_match(name)]
    yield from (exact or like)[:1]


def _price_at(
    service: ServiceOptions, vendors: Iterable[Provider], model: str, now: datetime
) -> ModelPrice | None:
    """The price at the first vendor whose table lists one of the model's spellings."""
    for vendor in vendors:
        for spelling in spellings(model):
            if (price := _price_as_spelt(service, vendor, spelling, now)) is not None:
                return price
    for spelling in bedrock_spellings(model):
        for aws in _called(AWS):
            if (price := _price_as_spelt(service, aws, spelling, now)) is not None:
                return price
    return None


def _price_as_spelt(
    service: ServiceOptions, vendor: Provider, spelling: Spelling, now: datetime
) -> ModelPrice | None:
    """The price of one spelling; if it may mean several entries, the highest one."""
    # OpenRouter's free entries are separate models. If this one does not exist, OpenRouter refuses the call and bills
    # nothing, so a price of zero is safe without looking it up.
    if spelling.free and vendor.id == OPENROUTER:
        return replace(_NOTHING_TO_PAY, version=_version())
    first = _entry(vendor, spelling.name)
    if first is None:
        return None
    # An alias may be pointed at another dated version tomorrow, and a routed model may be answered by any host. All
    # that may be meant are collected, and the highest price among them is held and booked.
    found = [first]
    if spelling.dated:
        found += [one for one in vendor.models if undated(one.id.lower()) == spelling.name]
    if spelling.anywhere:
        found += _anywhere(spelling.name)
    prices = [price for one in found if (price := _price_of(service, one, now)) is not None]
    if not prices:
        return None
    price = prices[0] if len(prices) == 1 else dearest(prices)
    factor = factor_at(service.base_url, vendor.id)
    return price if factor == 1 else raised(price, factor)


@lru_cache(256)
def _anywhere(name: str) -> list[ModelInfo]:
    """The entries of a model at every host, with or without its maker in the name. Takes about ten milliseconds."""
    names = dict.fromkeys((name, name.rpartition("/")[2]))
    return [found for host in _table().providers for one in names if (found := host.find_model(one))]


def _entry(vendor: Provider, name: str) -> ModelInfo | None:
    """The vendor's entry for a name, which may have the vendor's own name in front."""
    found = vendor.find_model(name, all_providers=_table().providers)
    prefix, _, rest = name.partition("/")
    if found is None and rest and vendor in _called(prefix):
        found = vendor.find_model(rest, all_providers=_table().providers)
    return found


def _price_of(service: ServiceOptions, found: ModelInfo, now: datetime) -> ModelPrice | None:
    prices = {key: value for key, value in found.get_prices(now).__dict__.items() if value is not None}
    # An entry without an input or output price does not mean that tokens are free. Except for embeddings, the price is
    # unknown then: a zero would make a budget useless.
    if "input_mtok" in prices and EMBEDS in found.id:
        prices.setdefault("output_mtok", NOTHING)
    if "input_mtok" not in prices or "output_mtok" not in prices:
        return None
    tiers = tuple(_unit_prices(prices, start) for start in _starts(prices))
    request_usd = EXACT.divide(_at(prices.get("requests_kcount", NOTHING), 0), THOUSAND)
    search_usd = _search_usd(prices) if service.kind == "perplexity" else NOTHING
    return ModelPrice(
        tiers=tiers,
        request_usd=EXACT.add(request_usd, search_usd),
        extra_usd=EXACT.multiply(SEARCHES_MAX - 1, search_usd),
        more_usd={} if service.kind == "perplexity" else dict(_more_usd(prices)),
        version=_version(),
        unit_prices=as_text(tiers[0]),
    )


def _more_usd(prices: dict[str, Any]) -> Iterator[tuple[str, Decimal]]:
    """What each kind of unit costs on top of its class's price, in the tier where that is highest."""
    for name, base in BASES.items():
        key = f"{name}_mtok"
        if key in prices:
            ordinary = prices.get(base, prices["input_mtok"])
            more = max(
                EXACT.subtract(_at(prices[key], start), _at(ordinary, start)) for start in _starts(prices)
            )
            if more > 0:
                yield name, of_one(more)
    for name in SEARCHES:
        if f"{name}_kcount" in prices:
            yield (
                name,
                EXACT.divide(
                    max(_at(prices[f"{name}_kcount"], start) for start in _starts(prices)), THOUSAND
                ),
            )


def _search_usd(prices: dict[str, Any]) -> Decimal:
    """The price of one search. Older models, which always search, include it in a fee for each request."""
    if "web_searches_kcount" in prices:
        return EXACT.divide(_at(prices["web_searches_kcount"], 0), THOUSAND)
    return NOTHING if "requests_kcount" in prices else SEARCH_USD


def _starts(prices: dict[str, Any]) -> Iterator[int]:
    """0, and every prompt length at which some price changes."""
    starts = {tier.start for price in prices.values() for tier in getattr(price, "tiers", ())}
    return iter(sorted({0} | starts))


def _at(price: Any, start: int) -> Decimal:
    """A price for prompts longer than `start`."""
    chosen: Decimal = getattr(price, "base", price)
    for tier in getattr(price, "tiers", ()):
        if tier.start <= start:
            chosen = tier.price
    return chosen


def _unit_prices(prices: dict[str, Any], start: int) -> UnitPrices:
    read, written = _at(prices["input_mtok"], start), _at(prices["output_mtok"], start)

    def price(key: str, default: Decimal) -> Decimal:
        return _at(prices[key], start) if key in prices else default

    return UnitPrices(
        above_tokens=start,
        input_usd=of_one(read),
        cache_read_usd=of_one(price("cache_read_mtok", read)),
        cache_write_usd=of_one(price("cache_write_mtok", read)),
        output_usd=of_one(written),
        reasoning_usd=of_one(price("output_reasoning_mtok", written)),
    )


@lru_cache(KNOWN_MAX)
def _configured(input_mtok: Decimal, output_mtok: Decimal, search_usd: Decimal = NOTHING) -> ModelPrice:
    read, written = of_one(input_mtok), of_one(output_mtok)
    tier = UnitPrices(
        input_usd=read, cache_read_usd=read, cache_write_usd=read, output_usd=written, reasoning_usd=written
    )
    return ModelPrice(
        tiers=(tier,),
        request_usd=search_usd,
        extra_usd=EXACT.multiply(SEARCHES_MAX - 1, search_usd),
        source="configured",
        version="configured",
        unit_prices=as_text(tier),
    )


def _version() -> str:
    from importlib.metadata import version

    return f"genai-prices {version('genai_prices')}"


_NO_USD = UnitPrices(
    input_usd=NOTHING,
    cache_read_usd=NOTHING,
    cache_write_usd=NOTHING,
    output_usd=NOTHING,
    reasoning_usd=NOTHING,
)
_NOTHING_TO_PAY = ModelPrice(tiers=(_NO_USD,), unit_prices=as_text(_NO_USD))
"""A price of zero, not a free service: if the provider reports a cost all the same, that cost is booked."""
