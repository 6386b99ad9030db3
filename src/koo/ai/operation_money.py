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

    def streamed(self) -> StreamedCost:
        """What the pieces of one stream say that it cost."""
        return StreamedCost(self._cost_of)


class StreamedCost:
    """What a stream cost: the last amount that `cost_usd` finds in a piece, since what pieces tell only grows."""

    __slots__ = ("_amount_usd", "_cost_of", "_error", "_is_last")

    def __init__(self, cost_of: Callable[[Any], Any] | None) -> None:
        self._cost_of = cost_of
        self._amount_usd: Decimal | None = None
        self._is_last = False
        self._error: Exception | None = None

    def note(self, piece: object) -> None:
        """Look at a piece. Most have no usage, and a function that expects it may raise there."""
        if self._cost_of is None:
            return
        self._is_last = False
        try:
            told = self._cost_of(piece)
            if told is not None:
                self._amount_usd = _usd("cost_usd", told)
                self._is_last = True
        except Exception as error:  # noqa: BLE001 - looked at in the end, where no piece had an amount
            self._error = error

    def whole(self) -> Decimal | None:
        """At the stream's own end; None where no piece told."""
        if self._amount_usd is None and self._error is not None:
            log.error(
                "cost_usd failed for each piece; the most that the call can cost is booked",
                exc_info=self._error,
            )
        return self._amount_usd

    def so_far(self) -> Decimal | None:
        """Where it ended early; None where something came that no amount covers."""
        return self._amount_usd if self._is_last else None


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
