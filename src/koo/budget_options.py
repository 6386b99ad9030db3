"""The options of a budget that an operator sets."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from koo.checked import Checked, option


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetOptions(Checked):
    """A budget that an operator set, beside those that each service has."""

    name: str
    limit_usd: Decimal = option(
        Decimal(0), "most money per period", "it has to be set", unit="USD", at_least=0
    )
    period: Literal["day", "month"] = option(
        "day", "the UTC day or month that it counts", "as a service's own budget"
    )
    service: str | None = option(None, "the one service that it counts", "all together")
    model: str | None = option(None, "the one model that it counts", "all together")
    tag: str | None = option(
        None, "the one tag that it counts; * gives each tag a budget of its own", "all together"
    )
    on_exhausted: str = option("refuse", "`refuse`, or the service to use instead", "a cap that holds")
