"""What tokens cost: exact decimals from a price table, and an upper bound for what is held before a call.

The table is `genai-prices`: history by date, tiers by prompt length. A price is looked up once for each model and day
and kept as ready numbers, so that a call only multiplies. An unknown price is unknown, never zero; only a server of
one's own, declared without key and price, and the local model are free.

Two traps. Tiers are cliffs: a prompt one token above the threshold pays the higher price for every token, so the bound
takes the dearest tier that it can reach. And what comes out of a cache is cheaper than a fresh token, but what goes
into one is dearer, so the bound takes the dearest of the three.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from koo.ai.types import Usage
from koo.clock import SYSTEM_CLOCK, Clock, utc_day
from koo.options import ServiceOptions
from koo.policies.money import EXACT

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo

NOTHING = Decimal(0)
MILLION = Decimal(1_000_000)
THOUSAND = Decimal(1000)

TABLE_NAMES = {"anthropic": "anthropic", "openai": "openai", "gemini": "google", "perplexity": "perplexity"}
"""Which vendor of the table a kind of service pays; others are found by their address."""
SEARCHES_MAX = 3
"""Web searches that a bound reckons with, for models whose answers come with one: a model may send some at once."""
SEARCH_USD = Decimal("0.0025")
"""One search of Perplexity, whatever model reads it, where the table does not say (checked in October 2026)."""
TOKENS_MAX = 10**12
"""More than any answer has: what an answer may be long where it costs nothing."""
KNOWN_MAX = 10_000
"""Models remembered: callers choose their names, and memory must not grow with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPrices:
    """USD per token of each class, from prompts longer than `above_tokens`."""

    above_tokens: int = 0
    input_usd: Decimal
    cache_read_usd: Decimal
    cache_write_usd: Decimal
    output_usd: Decimal
    reasoning_usd: Decimal

    @property
    def dearest_input_usd(self) -> Decimal:
        return max(self.input_usd, self.cache_read_usd, self.cache_write_usd)

    @property
    def dearest_output_usd(self) -> Decimal:
        return max(self.output_usd, self.reasoning_usd)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPrice:
    """What one model costs now.

    `tiers` by rising prompt length, the first from 0. `request_usd` is a fee for each request, `extra_usd` what may
    come on top of it. `source` is "table", "configured" or "free"; `version` names the table; `unit_prices` is for the
    ledger: USD per million tokens as text.
    """

    tiers: tuple[UnitPrices, ...]
    request_usd: Decimal = NOTHING
    extra_usd: Decimal = NOTHING
    source: str = "table"
    version: str = ""
    free: bool = False
    unit_prices: dict[str, str] = field(default_factory=dict)

    def cost_usd(self, usage: Usage) -> Decimal:
        """The exact cost of what was used."""
        if self.free:
            return NOTHING
        tier, fma = self._tier(usage), EXACT.fma
        cost = fma(
            usage.input_tokens, tier.input_usd, fma(usage.output_tokens, tier.output_usd, self.request_usd)
        )
        if usage.cache_read_tokens or usage.cache_write_tokens:
            cost = fma(usage.cache_read_tokens, tier.cache_read_usd, cost)
            cost = fma(usage.cache_write_tokens, tier.cache_write_usd, cost)
        if usage.reasoning_tokens and tier.reasoning_usd != tier.output_usd:
            cost = fma(usage.reasoning_tokens, EXACT.subtract(tier.reasoning_usd, tier.output_usd), cost)
        return cost

    def _tier(self, usage: Usage) -> UnitPrices:
        tier = self.tiers[0]
        if len(self.tiers) > 1:
            tier = next(
                tier
                for tier in reversed(self.tiers)
                if usage.read_tokens > tier.above_tokens or not tier.above_tokens
            )
        return tier

    def bound_usd(self, input_tokens_max: int, output_tokens_max: int) -> Decimal:
        """Never less than the bill of a call that reads and writes at most so many tokens."""
        if self.free:
            return NOTHING
        bound = max(
            EXACT.fma(output_tokens_max, tier.dearest_output_usd, input_usd)
            for tier, input_usd in self._reached(input_tokens_max)
        )
        return EXACT.add(bound, EXACT.add(self.request_usd, self.extra_usd))

    def _reached(self, input_tokens_max: int) -> Iterator[tuple[UnitPrices, Decimal]]:
        """Each tier that so long a prompt can reach, with the most that the prompt costs there."""
        for tier in self.tiers:
            if tier.above_tokens and input_tokens_max <= tier.above_tokens:
                return
            yield tier, EXACT.multiply(input_tokens_max, tier.dearest_input_usd)

    def rest_usd(self, read: Usage, output_tokens_max: int) -> Decimal:
        """As `bound_usd` for a call of which is known what it has `read`, by class."""
        if self.free:
            return NOTHING
        written = max(output_tokens_max, read.output_tokens)
        cost = self.cost_usd(replace(read, output_tokens=0, reasoning_tokens=0))
        return EXACT.fma(written, self._tier(read).dearest_output_usd, EXACT.add(cost, self.extra_usd))

    def tokens_within(self, amount_usd: Decimal, input_tokens_max: int) -> int:
        """How long an answer may be at most, so that `bound_usd` is not above an amount; below 1 where nothing fits."""
        left = EXACT.subtract(amount_usd, EXACT.add(self.request_usd, self.extra_usd))
        most = TOKENS_MAX
        for tier, input_usd in self._reached(input_tokens_max):
            rest = EXACT.subtract(left, input_usd)
            if rest < 0:
                return 0
            if tier.dearest_output_usd:
                most = min(most, int(EXACT.divide_int(rest, tier.dearest_output_usd)))
        return most


def add_up(amounts: Iterable[Decimal]) -> Decimal:
    """The exact sum."""
    total = NOTHING
    for amount in amounts:
        total = EXACT.add(total, amount)
    return total


FREE = ModelPrice(tiers=(), source="free", version="free", free=True)


class Prices:
    """Finds prices. `load()` brings the table into memory, which takes some tenths of a second once."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._known: dict[tuple[str, str, str | None], ModelPrice | None] = {}
        self._day = -1

    async def load(self) -> None:
        """Import the table in a thread, so that the event loop goes on."""
        await asyncio.to_thread(_table)

    def find(self, service: ServiceOptions, model: str) -> ModelPrice | None:
        """The price of a model at a service, or None where nobody knows it."""
        if service.free:
            return FREE
        if service.input_price is not None and service.output_price is not None:
            search_usd = SEARCH_USD if service.kind == "perplexity" else NOTHING
            return _configured(service.input_price, service.output_price, search_usd)
        return self._look_up(service, model)

    def _look_up(self, service: ServiceOptions, model: str) -> ModelPrice | None:
        wall_s = self._clock.wall()
        day = utc_day(wall_s)
        if day != self._day or len(self._known) >= KNOWN_MAX:
            # Prices change at midnight, UTC.
            self._known.clear()
            self._day = day
        key = (service.kind, model, service.base_url)
        try:
            return self._known[key]
        except KeyError:
            price = self._known[key] = _from_table(service, model, wall_s)
            return price


# ── the table ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _table() -> Any:
    """`genai_prices` with its data, imported when it is first needed: 160 ms."""
    from genai_prices.data_snapshot import get_snapshot

    return get_snapshot()


def _from_table(service: ServiceOptions, model: str, wall_s: float) -> ModelPrice | None:
    found = _find_model(service, model)
    if found is None:
        return None
    now = datetime.fromtimestamp(wall_s, UTC)
    prices = {key: value for key, value in found.get_prices(now).__dict__.items() if value is not None}
    if "input_mtok" not in prices or "output_mtok" not in prices:
        return None
    tiers = tuple(_unit_prices(prices, start) for start in _starts(prices))
    request_usd = EXACT.divide(_at(prices.get("requests_kcount", NOTHING), 0), THOUSAND)
    search_usd = _search_usd(prices) if service.kind == "perplexity" else NOTHING
    return ModelPrice(
        tiers=tiers,
        request_usd=EXACT.add(request_usd, search_usd),
        extra_usd=EXACT.multiply(SEARCHES_MAX - 1, search_usd),
        version=_version(),
        unit_prices=_as_text(tiers[0]),
    )


def _search_usd(prices: dict[str, Any]) -> Decimal:
    """What one search costs; the models of old, which always searched, have it in a fee for each request."""
    if "web_searches_kcount" in prices:
        return EXACT.divide(_at(prices["web_searches_kcount"], 0), THOUSAND)
    return NOTHING if "requests_kcount" in prices else SEARCH_USD


def _find_model(service: ServiceOptions, model: str) -> ModelInfo | None:
    vendor = TABLE_NAMES.get(service.kind)
    if vendor is None and service.base_url is None:
        return None
    try:
        _, found = _table().find_provider_model(model, None, vendor, None if vendor else service.base_url)
    except LookupError:
        return None
    info: ModelInfo = found
    return info


def _starts(prices: dict[str, Any]) -> Iterator[int]:
    """0, and every prompt length from which some price changes."""
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
        input_usd=_of_one(read),
        cache_read_usd=_of_one(price("cache_read_mtok", read)),
        cache_write_usd=_of_one(price("cache_write_mtok", read)),
        output_usd=_of_one(written),
        reasoning_usd=_of_one(price("output_reasoning_mtok", written)),
    )


def _of_one(mtok: Decimal) -> Decimal:
    """The price of one token, of that of a million."""
    return EXACT.divide(mtok, MILLION)


@lru_cache(KNOWN_MAX)
def _configured(input_mtok: Decimal, output_mtok: Decimal, search_usd: Decimal = NOTHING) -> ModelPrice:
    read, written = _of_one(input_mtok), _of_one(output_mtok)
    tier = UnitPrices(
        input_usd=read, cache_read_usd=read, cache_write_usd=read, output_usd=written, reasoning_usd=written
    )
    return ModelPrice(
        tiers=(tier,),
        request_usd=search_usd,
        extra_usd=EXACT.multiply(SEARCHES_MAX - 1, search_usd),
        source="configured",
        version="configured",
        unit_prices=_as_text(tier),
    )


def _as_text(tier: UnitPrices) -> dict[str, str]:
    prices = {
        "input": tier.input_usd,
        "cache_read": tier.cache_read_usd,
        "cache_write": tier.cache_write_usd,
        "output": tier.output_usd,
        "reasoning": tier.reasoning_usd,
    }
    return {name: f"{EXACT.normalize(EXACT.multiply(usd, MILLION)):f}" for name, usd in prices.items()}


def _version() -> str:
    from importlib.metadata import version

    return f"genai-prices {version('genai_prices')}"
