"""The options of a budget that an operator sets."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from koo.checked import Checked, option


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetOptions(Checked):
    """A budget that an operator sets, in addition to the budget of each service."""

    name: str
    limit_usd: Decimal = option(Decimal(0), "most money per period", "it must be set", unit="USD", at_least=0)
    period: Literal["day", "month"] = option(
        "day", "the period that the limit applies to, in UTC", "the same as a service's own budget"
    )
    service: str | None = option(None, "the only service that it counts", "all services together")
    model: str | None = option(None, "the only model that it counts", "all models together")
    tag: str | None = option(
        None, "the only tag that it counts; * gives each tag its own budget", "all tags together"
    )
    on_exhausted: str = option(
        "refuse", "`refuse`, or the service to use instead", "a limit that is enforced"
    )
