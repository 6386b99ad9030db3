"""The cost of a usage report, and the public function `price_usd`."""

from __future__ import annotations

from decimal import Decimal
from functools import cache

from koo.ai.model_price import ModelPrice, factor_of
from koo.ai.operation_usage import Report, read_report
from koo.ai.pricing import Prices
from koo.errors import InvalidRequest, Kind, PriceUnknown
from koo.policies.money import EXACT


def cost_usd(price: ModelPrice, report: Report) -> Decimal:
    """The exact cost: the one that the provider reports, or else the one computed from the price table."""
    if report.cost_usd is not None:
        return report.cost_usd
    cost = EXACT.add(price.cost_usd(report.usage), price.units_usd(report.units))
    return cost if report.tier is None else EXACT.multiply(cost, factor_of(report.tier))


def price_usd(model: str, usage: object) -> Decimal:
    """The exact cost of an answer in USD, at the prices of the model's maker in today's price table.

    `usage` is koo's `Usage`, the usage object or the whole result of a vendor's SDK (openai, anthropic, google-genai,
    perplexity and compatible ones), or a mapping with the same names. Cache reads and writes, reasoning, audio, images
    and searches are priced separately. A cost that the provider reports takes precedence. A model given as
    `vendor/model` is priced at that vendor.

    Raises `PriceUnknown` for a model that is not in the table, and `InvalidRequest` for a usage without counts. The
    first call loads the table, which takes a few tenths of a second.
    """
    report = read_report(usage)
    if report is None:
        reason = "usage has no token counts: pass an SDK's usage, its whole result, or koo's Usage"
        raise InvalidRequest("price_usd", reason, kind=Kind.INVALID_REQUEST)
    if report.cost_usd is not None:
        return report.cost_usd
    price = _prices().find_anywhere(model)
    if price is None:
        raise PriceUnknown(
            "price_usd", f"the price of model {model[:80]!r} is unknown: it is not in the price table"
        )
    return cost_usd(price, report)


@cache
def _prices() -> Prices:
    return Prices()
