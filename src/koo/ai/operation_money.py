"""What a registration of an own operation says about money, and what its calls are charged."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from koo.ai.budgets import Budgets
from koo.ai.charge import FixedCharge
from koo.ai.service import Service
from koo.errors import ConfigurationError
from koo.storage.base import Allowance

log = logging.getLogger("koo")

MONEY = ("daily_budget", "max_cost_usd", "cost_usd")
BOUND_USD_MAX = Decimal(1_000_000)
"""More no ledger holds for one call: each would be refused."""


class Money:
    """What a registration says about money."""

    __slots__ = ("_cost_of", "allowance", "bound_usd")

    def __init__(self, options: Mapping[str, Any]) -> None:
        budget = options.get("daily_budget")
        bound = options.get("max_cost_usd")
        if budget is not None and bound is None:
            raise ConfigurationError(
                "register_service", "daily_budget needs max_cost_usd, the most that one call can cost"
            )
        if bound is None and options.get("cost_usd") is not None:
            # Without a hold nothing would ever be booked.
            raise ConfigurationError(
                "register_service", "cost_usd needs max_cost_usd, the most that one call can cost"
            )
        limit_usd = None if budget is None else _usd("daily_budget", budget)
        self.allowance = Allowance(limit_usd, explicit=budget is not None)
        self.bound_usd = None if bound is None else _usd("max_cost_usd", bound, BOUND_USD_MAX)
        self._cost_of: Callable[[Any], Any] | None = options.get("cost_usd")

    def charge(self, service: Service, budgets: Budgets) -> FixedCharge | None:
        """The charge of one call; None where it costs nothing."""
        return None if self.bound_usd is None else FixedCharge(service, budgets, self.bound_usd)

    def cost_usd(self, result: object) -> Decimal | None:
        """What the call that returned `result` cost; None where the caller does not say, or says nothing sensible."""
        if self._cost_of is None:
            return None
        try:
            return _usd("cost_usd", self._cost_of(result))
        except Exception:
            # The call was made and is paid for: its answer is not thrown away, and its money not given back.
            log.exception("cost_usd failed; the most that the call can cost is booked")
            return None


def _usd(name: str, value: Any, most: Decimal = Decimal("Infinity")) -> Decimal:
    try:
        amount = Decimal(str(value))
    except ArithmeticError:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        raise ConfigurationError("register_service", f"{name} must be an amount of USD, at least 0")
    if amount > most:
        raise ConfigurationError("register_service", f"{name} must be at most {most:,} USD")
    return amount
