"""Which budgets a user's own operation spends from: those of its registration, or those of a built-in service."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Protocol

from koo.ai.budgets import Budgets
from koo.ai.operation_ask import is_free, read_ask
from koo.ai.operation_charge import AskCharge, FixedCharge, OperationCharge
from koo.ai.pricing import Prices
from koo.ai.service import Service
from koo.ai.told_cost import usd
from koo.errors import ConfigurationError
from koo.options import ServiceOptions
from koo.storage.base import Allowance

MONEY = ("daily_budget", "max_cost_usd", "cost_usd")
USAGE = "usage"
"""The value of `cost_usd` that computes a call's cost from the usage in its result."""
BOUND_USD_MAX = Decimal(1_000_000)
"""The most that a ledger can hold for one call. With a higher bound every call would be refused."""


class OperationMoney(Protocol):
    """Makes the charges of an operation's calls. `needs_prices`: the price table must be loaded first."""

    needs_prices: bool

    def charge(
        self,
        service: Service,
        budgets: Budgets,
        operation: object,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> OperationCharge | None:
        """The charge of one call; None if it costs nothing."""
        ...


class Money:
    """The money options of a registration."""

    __slots__ = ("_cost_of", "_prices", "allowance", "bound_usd", "needs_prices")

    def __init__(self, options: Mapping[str, Any], prices: Prices | None = None) -> None:
        budget = options.get("daily_budget")
        bound = options.get("max_cost_usd")
        if budget is not None and bound is None:
            raise ConfigurationError(
                "register_service", "daily_budget needs max_cost_usd: the most that one call can cost"
            )
        if bound is None and options.get("cost_usd") is not None:
            # Without a bound nothing is held, and what was not held cannot be booked: the option would do nothing.
            raise ConfigurationError(
                "register_service", "cost_usd needs max_cost_usd: the most that one call can cost"
            )
        limit_usd = None if budget is None else usd("daily_budget", budget)
        self.allowance = Allowance(limit_usd, explicit=budget is not None)
        self.bound_usd = None if bound is None else usd("max_cost_usd", bound, BOUND_USD_MAX)
        cost_of = options.get("cost_usd")
        self.needs_prices = cost_of == USAGE
        self._prices = (prices or Prices()) if self.needs_prices else None
        self._cost_of: Callable[[Any], Any] | None = None if self.needs_prices else cost_of

    def charge(
        self,
        service: Service,
        budgets: Budgets,
        operation: object,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> OperationCharge | None:
        """The charge of one call; None if it costs nothing."""
        if self.bound_usd is None:
            return None
        model = kwargs.get("model") if self.needs_prices else None
        return FixedCharge(
            service, budgets, self.bound_usd, prices=self._prices, model=model if isinstance(model, str) else "",
            cost_of=self._cost_of,
        )  # fmt: skip


class SharedMoney:
    """Creates the charges for an SDK's calls under the name of a built-in service, whose budgets they share."""

    __slots__ = ("_options", "_prices", "needs_prices")

    def __init__(self, options: ServiceOptions, prices: Prices) -> None:
        self._options = options
        self._prices = prices
        self.needs_prices = not options.free

    def charge(
        self,
        service: Service,
        budgets: Budgets,
        operation: object,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> OperationCharge | None:
        """The charge of one call; None if it costs nothing."""
        if self._options.free or is_free(operation):
            return None
        return AskCharge(service, budgets, self._options, self._prices, read_ask(operation, args, kwargs))
