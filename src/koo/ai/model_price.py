"""The price of one model, in exact decimals, and the upper bound that is held before a call.

Two rules make the bound higher than a simple multiplication. A prompt one token above a tier's threshold pays that
tier's price for every token, so the bound uses the most expensive tier that the prompt can reach. Tokens read from a
cache are cheaper than fresh ones, but tokens written to a cache are more expensive, so the bound uses the highest of
the three prices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from koo.ai.types import Usage
from koo.policies.money import EXACT

NOTHING = Decimal(0)
MILLION = Decimal(1_000_000)
TOKENS_MAX = 10**12
"""The longest answer that is allowed if output costs nothing: more than any answer has."""
CLASSES = ("input_usd", "cache_read_usd", "cache_write_usd", "output_usd", "reasoning_usd")
"""The names of the prices in `UnitPrices`."""
REGIONAL = "regional"
TIERS = {"priority": Decimal("2.5"), "fast": Decimal(6), REGIONAL: Decimal("1.1")}
"""The most by which a faster answer multiplies the table's price: OpenAI's priority tier and Anthropic's fast mode, and
Anthropic's surcharge for an answer that was computed in one region (their price pages, November 2026). Slower tiers
cost half, but are charged at the full price."""
WORLDWIDE = ("", "global", "not_available")
"""The values of Anthropic's `inference_geo` without a surcharge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPrices:
    """USD per token of each class, for prompts longer than `above_tokens`."""

    above_tokens: int = 0
    input_usd: Decimal
    cache_read_usd: Decimal
    cache_write_usd: Decimal
    output_usd: Decimal
    reasoning_usd: Decimal
    dearest_input_usd: Decimal = field(init=False)
    dearest_output_usd: Decimal = field(init=False)

    def __post_init__(self) -> None:
        # They are computed here because the bound of every call uses them.
        object.__setattr__(
            self, "dearest_input_usd", max(self.input_usd, self.cache_read_usd, self.cache_write_usd)
        )
        object.__setattr__(self, "dearest_output_usd", max(self.output_usd, self.reasoning_usd))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPrice:
    """The current price of one model.

    `tiers` are ordered by prompt length; the first begins at 0. `request_usd` is a fee for each request, `extra_usd`
    the most that may be added to it. `more_usd` is keyed by the table's names: what one unit costs on top of its
    class's price ("cache_write_1h", "output_audio", ...), or the whole cost of one that has no class ("web_searches").
    `source` is "table", "configured" or "free". `version` identifies the table. `unit_prices` is for the ledger: USD
    per million tokens, as text. `ordinary` is the price without the tier that each request asks for, if that multiplies
    it.
    """

    tiers: tuple[UnitPrices, ...]
    request_usd: Decimal = NOTHING
    extra_usd: Decimal = NOTHING
    more_usd: Mapping[str, Decimal] = field(default_factory=dict)
    source: str = "table"
    version: str = ""
    free: bool = False
    unit_prices: dict[str, str] = field(default_factory=dict)
    ordinary: ModelPrice | None = None

    def cost_usd(self, usage: Usage) -> Decimal:
        """The exact cost of a usage."""
        if self.free:
            return NOTHING
        # Each `fma` replaces a multiplication and an addition, which makes half as many Decimals on every call. `EXACT`
        # has 60 digits, so nothing is rounded. Reasoning tokens are already part of `output_tokens`, so only the
        # difference of the two prices is added for them.
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

    def cost_at_usd(self, usage: Usage, tier: str) -> Decimal:
        """The exact cost of a usage in the tier that the answer reports, whichever was requested."""
        # An operator who configures a price has included the tier.
        if self.source != "table":
            return self.cost_usd(usage)
        return EXACT.multiply((self.ordinary or self).cost_usd(usage), factor_of(tier))

    def units_usd(self, units: Mapping[str, int]) -> Decimal:
        """The extra cost of units with a separate price. A unit without one costs no more than its class's price."""
        return add_up(
            EXACT.multiply(count, self.more_usd.get(name, NOTHING)) for name, count in units.items()
        )

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
        """The most that a call can cost if it reads and writes at most this many tokens."""
        if self.free:
            return NOTHING
        # The bound is the maximum over all tiers in reach, not the price of the last one: a call may turn out shorter
        # than its bound, and nothing guarantees that prices rise with the length.
        fma, fees = EXACT.fma, EXACT.add(self.request_usd, self.extra_usd)
        return max(
            [
                fma(
                    output_tokens_max,
                    tier.dearest_output_usd,
                    fma(input_tokens_max, tier.dearest_input_usd, fees),
                )
                for tier in self._reached(input_tokens_max)
            ]
        )

    def _reached(self, input_tokens_max: int) -> Sequence[UnitPrices]:
        """The tiers that a prompt of up to this length can fall into."""
        tiers = self.tiers
        if len(tiers) == 1:
            return tiers
        return [tier for tier in tiers if not tier.above_tokens or input_tokens_max > tier.above_tokens]

    def tier_from(self, length: int) -> UnitPrices:
        """The prices for a prompt longer than `length`."""
        return next(tier for tier in reversed(self.tiers) if tier.above_tokens <= length)

    def rest_usd(self, read: Usage, output_tokens_max: int) -> Decimal:
        """Like `bound_usd`, for a call whose input is already counted: `read` has its tokens by class."""
        if self.free:
            return NOTHING
        # The input is known now, so its exact cost replaces its bound. The output is not: `max_tokens` of it may still
        # come, or more if the provider has already reported more.
        written = max(output_tokens_max, read.output_tokens)
        cost = self.cost_usd(replace(read, output_tokens=0, reasoning_tokens=0))
        return EXACT.fma(written, self._tier(read).dearest_output_usd, EXACT.add(cost, self.extra_usd))

    def tokens_within(self, amount_usd: Decimal, input_tokens_max: int) -> int:
        """The longest answer for which `bound_usd` does not exceed an amount; less than 1 if none fits."""
        # The inverse of `bound_usd`. The answer must fit in every tier that the prompt can reach, so the smallest
        # result counts. Rounding down keeps the bound within the amount.
        left = EXACT.subtract(amount_usd, EXACT.add(self.request_usd, self.extra_usd))
        most = TOKENS_MAX
        for tier in self._reached(input_tokens_max):
            rest = EXACT.subtract(left, EXACT.multiply(input_tokens_max, tier.dearest_input_usd))
            if rest < 0:
                return 0
            if tier.dearest_output_usd:
                most = min(most, int(EXACT.divide_int(rest, tier.dearest_output_usd)))
        return most


def tier_of(tier: str | None, geo: object) -> str | None:
    """The tier of an answer, with a word for the surcharge if it was computed in the region `geo`."""
    if not isinstance(geo, str) or geo in WORLDWIDE:
        return tier
    return f"{tier} {REGIONAL}" if tier else REGIONAL


def factor_of(tier: str) -> Decimal:
    """The factor by which the words of a tier multiply the table's price."""
    factor = Decimal(1)
    for word in tier.split():
        factor = EXACT.multiply(factor, TIERS.get(word, Decimal(1)))
    return factor


def add_up(amounts: Iterable[Decimal]) -> Decimal:
    """The exact sum."""
    total = NOTHING
    for amount in amounts:
        total = EXACT.add(total, amount)
    return total


FREE = ModelPrice(tiers=(), source="free", version="free", free=True)


def of_one(mtok: Decimal) -> Decimal:
    """The price of one token, computed from the price of a million."""
    return EXACT.divide(mtok, MILLION)


def as_text(tier: UnitPrices) -> dict[str, str]:
    """The prices in USD per million tokens, as text for the ledger."""
    return {
        name.removesuffix("_usd"): f"{EXACT.normalize(EXACT.multiply(getattr(tier, name), MILLION)):f}"
        for name in CLASSES
    }


def dearest(prices: Sequence[ModelPrice]) -> ModelPrice:
    """The highest of several prices from one table, for each class and each prompt length separately."""
    # The prices may have tiers at different lengths. Each length at which any of them changes becomes a tier of the
    # result, so the maximum is taken over prices that are valid for the same prompts.
    starts = sorted({tier.above_tokens for price in prices for tier in price.tiers})
    tiers = tuple(
        UnitPrices(
            above_tokens=start,
            **{name: max(getattr(price.tier_from(start), name) for price in prices) for name in CLASSES},
        )
        for start in starts
    )
    return replace(
        prices[0],
        tiers=tiers,
        request_usd=max(price.request_usd for price in prices),
        extra_usd=max(price.extra_usd for price in prices),
        more_usd={
            name: max(price.more_usd.get(name, NOTHING) for price in prices)
            for name in {name for price in prices for name in price.more_usd}
        },
        unit_prices=as_text(tiers[0]),
    )


def raised(price: ModelPrice, factor: Decimal) -> ModelPrice:
    """A copy of the price with everything that is counted in tokens multiplied by `factor`."""
    tiers = tuple(
        UnitPrices(
            above_tokens=tier.above_tokens,
            **{name: EXACT.multiply(getattr(tier, name), factor) for name in CLASSES},
        )
        for tier in price.tiers
    )
    more_usd = {name: EXACT.multiply(usd, factor) for name, usd in price.more_usd.items()}
    return replace(price, tiers=tiers, more_usd=more_usd, unit_prices=as_text(tiers[0]))
