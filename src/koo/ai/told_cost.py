"""Computes the cost of a call with its registration's `cost_usd` function, from its result or its stream's pieces."""

from __future__ import annotations

import logging
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from koo.errors import ConfigurationError

log = logging.getLogger("koo")


def usd(name: str, value: Any, most: Decimal = Decimal("Infinity")) -> Decimal:
    """A caller's amount in USD as a Decimal. Raises `ConfigurationError` if it is not a number from 0 to `most`."""
    try:
        amount = Decimal(str(value))
    except ArithmeticError:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        raise ConfigurationError("register_service", f"{name} must be an amount in USD, at least 0")
    if amount > most:
        raise ConfigurationError("register_service", f"{name} must be at most {most:,} USD")
    return amount


class ToldCost:
    """The cost of one call as the caller's function computes it.

    For a stream it is the last amount found in a piece, because amounts are running totals.
    """

    __slots__ = ("_amount_usd", "_cost_of", "_error", "_is_last")

    def __init__(self, cost_of: Callable[[Any], Any]) -> None:
        self._cost_of = cost_of
        self._amount_usd: Decimal | None = None
        self._is_last = False
        self._error: Exception | None = None

    def of(self, result: object) -> Decimal | None:
        """The cost of a whole result; None if the function fails or does not return a valid amount."""
        try:
            return usd("cost_usd", self._cost_of(result))
        except Exception:
            # The caller's function has a bug, but the operation has succeeded and been billed. Raising would lose its
            # result, and releasing the hold would lose its cost.
            log.exception("cost_usd failed, so the call's maximum cost is booked")
            return None

    def note(self, piece: object) -> None:
        """Read the cost of one piece. Most pieces have no usage, and the function may raise for those."""
        # A piece without an amount makes the last amount outdated: it covers only what had arrived by then.
        self._is_last = False
        try:
            told = self._cost_of(piece)
            if told is not None:
                self._amount_usd = usd("cost_usd", told)
                self._is_last = True
        except Exception as error:  # noqa: BLE001 - logged at the end if no piece had an amount
            self._error = error

    def whole(self) -> Decimal | None:
        """The cost of a stream that reached its end; None if no piece had a cost."""
        if self._amount_usd is None and self._error is not None:
            log.error(
                "cost_usd failed for each piece, so the call's maximum cost is booked",
                exc_info=self._error,
            )
        return self._amount_usd

    def so_far(self) -> Decimal | None:
        """The cost of a stream that ended early; None if pieces arrived after the last amount."""
        return self._amount_usd if self._is_last else None
