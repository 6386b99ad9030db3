"""What one model costs: exact decimals, and an upper bound for what is held before a call.

Two traps. Tiers are cliffs: a prompt one token above the threshold pays the higher price for every token, so the bound
takes the dearest tier that it can reach. And what comes out of a cache is cheaper than a fresh token, but what goes
into one is dearer, so the bound takes the dearest of the three.
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
"""More than any answer has: what an answer may be long where it costs nothing."""
CLASSES = ("input_usd", "cache_read_usd", "cache_write_usd", "output_usd", "reasoning_usd")
"""The prices of `UnitPrices`, by their names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPrices:
    """USD per token of each class, from prompts longer than `above_tokens`."""

    above_tokens: int = 0
    input_usd: Decimal
    cache_read_usd: Decimal
    cache_write_usd: Decimal
    output_usd: Decimal
    reasoning_usd: Decimal
    dearest_input_usd: Decimal = field(init=False)
    dearest_output_usd: Decimal = field(init=False)

    def __post_init__(self) -> None:
        # Each call's bound asks for these.
        object.__setattr__(
            self, "dearest_input_usd", max(self.input_usd, self.cache_read_usd, self.cache_write_usd)
        )
        object.__setattr__(self, "dearest_output_usd", max(self.output_usd, self.reasoning_usd))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPrice:
    """What one model costs now.

    `tiers` by rising prompt length, the first from 0. `request_usd` is a fee for each request, `extra_usd` what may
    come on top of it. `more_usd` is what one unit costs beyond its class, by the table's words ("cache_write_1h",
    "output_audio", ...), or at all ("web_searches"). `source` is "table", "configured" or "free"; `version` names the
    table; `unit_prices` is for the ledger: USD per million tokens as text.
    """

    tiers: tuple[UnitPrices, ...]
    request_usd: Decimal = NOTHING
    extra_usd: Decimal = NOTHING
    more_usd: Mapping[str, Decimal] = field(default_factory=dict)
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

    def units_usd(self, units: Mapping[str, int]) -> Decimal:
        """What units cost that have a price of their own; one that has none costs what its class does."""
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
        """Never less than the bill of a call that reads and writes at most so many tokens."""
        if self.free:
            return NOTHING
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
        """Each tier that so long a prompt can reach."""
        tiers = self.tiers
        if len(tiers) == 1:
            return tiers
        return [tier for tier in tiers if not tier.above_tokens or input_tokens_max > tier.above_tokens]

    def tier_from(self, length: int) -> UnitPrices:
        """What tokens cost in a prompt longer than `length`."""
        return next(tier for tier in reversed(self.tiers) if tier.above_tokens <= length)

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
        for tier in self._reached(input_tokens_max):
            rest = EXACT.subtract(left, EXACT.multiply(input_tokens_max, tier.dearest_input_usd))
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


def of_one(mtok: Decimal) -> Decimal:
    """The price of one token, of that of a million."""
    return EXACT.divide(mtok, MILLION)


def as_text(tier: UnitPrices) -> dict[str, str]:
    """For the ledger: USD per million tokens."""
    return {
        name.removesuffix("_usd"): f"{EXACT.normalize(EXACT.multiply(getattr(tier, name), MILLION)):f}"
        for name in CLASSES
    }


def dearest(prices: Sequence[ModelPrice]) -> ModelPrice:
    """A price that is in no class and for no length of prompt below any of these, which come from one table."""
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
    """The same with a surcharge on all that is counted in tokens."""
    tiers = tuple(
        UnitPrices(
            above_tokens=tier.above_tokens,
            **{name: EXACT.multiply(getattr(tier, name), factor) for name in CLASSES},
        )
        for tier in price.tiers
    )
    more_usd = {name: EXACT.multiply(usd, factor) for name, usd in price.more_usd.items()}
    return replace(price, tiers=tiers, more_usd=more_usd, unit_prices=as_text(tiers[0]))
