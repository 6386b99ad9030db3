"""The cost of a call by a registration's `cost_usd` function: of its result, or of the pieces of its stream."""

from __future__ import annotations

import logging
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from koo.errors import ConfigurationError

log = logging.getLogger("koo")


def usd(name: str, value: Any, most: Decimal = Decimal("Infinity")) -> Decimal:
    """An amount of USD from a caller. Raises `ConfigurationError`."""
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
    """What one call cost by the caller's function; for a stream the last amount found in a piece: they grow."""

    __slots__ = ("_amount_usd", "_cost_of", "_error", "_is_last")

    def __init__(self, cost_of: Callable[[Any], Any]) -> None:
        self._cost_of = cost_of
        self._amount_usd: Decimal | None = None
        self._is_last = False
        self._error: Exception | None = None

    def of(self, result: object) -> Decimal | None:
        """The cost of a whole result; None if the function returns nothing sensible."""
        try:
            return usd("cost_usd", self._cost_of(result))
        except Exception:
            # The call was made and is paid for: its answer must not be lost, nor its money given back.
            log.exception("cost_usd failed, so the call's maximum cost is booked")
            return None

    def note(self, piece: object) -> None:
        """Look at a piece. Most have no usage, and a function that expects it may raise there."""
        self._is_last = False
        try:
            told = self._cost_of(piece)
            if told is not None:
                self._amount_usd = usd("cost_usd", told)
                self._is_last = True
        except Exception as error:  # noqa: BLE001 - looked at in the end, where no piece had an amount
            self._error = error

    def whole(self) -> Decimal | None:
        """At the stream's own end; None if no piece had a cost."""
        if self._amount_usd is None and self._error is not None:
            log.error(
                "cost_usd failed for each piece, so the call's maximum cost is booked",
                exc_info=self._error,
            )
        return self._amount_usd

    def so_far(self) -> Decimal | None:
        """When it ended early; None if something arrived that no amount covers."""
        return self._amount_usd if self._is_last else None
