"""The money of one own operation: held before it is awaited, and paid from then on, whatever it raises.

There are two charges. `FixedCharge` is for a registered name: its caller says what a call can cost at most, and its
bill is what a function of the caller makes of the result, or the cost of the answer's usage. `AskCharge` is for a
vendor's SDK under a built-in name: the worst case is read from the call's arguments, and the bill from the answer's
usage.

An operation under a built-in name may be anything. If its worst case cannot be seen, a budget that was set refuses it,
because the budget could not hold. Under a default budget it runs: nothing is held, and the cost in its answer is
booked, whether above the limit or not.

A stream's owner passes each piece to `take`, and calls `end` if the stream ended by itself. A stream that was cut or
left before its vendor's last word is booked at its hold, or at what arrived if the model has no hidden thinking; and
never below what was reported.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any

from koo.ai.budgets import Budgets
from koo.ai.charge import ServiceCharge, priced_bill, tokens_of
from koo.ai.model_price import NOTHING, ModelPrice
from koo.ai.models import may_think_unseen
from koo.ai.operation_ask import Ask, Bound, bound_of
from koo.ai.operation_prompt import Reading, read_prompt
from koo.ai.operation_usage import Meter, Report, tokens_in
from koo.ai.pricing import Prices, context_tokens
from koo.ai.service import Service
from koo.ai.threads import aside
from koo.ai.told_cost import ToldCost
from koo.ai.types import Usage
from koo.ai.usage_price import cost_usd
from koo.errors import PriceUnknown
from koo.options import ServiceOptions
from koo.policies.money import from_pico
from koo.storage.base import Bill

log = logging.getLogger("koo")

LONG_TEXT = 32 * 1024
"""Characters beyond ASCII: more are measured in a thread, which takes up to a hundred milliseconds a megabyte."""
_warned: set[tuple[str, str]] = set()


class OperationCharge(ServiceCharge):
    """What both charges share. `begun`: the operation was awaited in this attempt."""

    __slots__ = ("_ended", "_meter", "begun")

    def __init__(self, service: Service, budgets: Budgets, model: str = "") -> None:
        super().__init__(service, budgets, model=model)
        self._begin()

    def _begin(self) -> None:
        self.begun = self._ended = False
        self._meter = Meter()

    async def hold(self, deadline: float) -> None:
        self._begin()
        await super().hold(deadline)

    def take(self, piece: object) -> None:
        """Read what a piece of a streamed answer says about its bill."""
        self._meter.take(piece)

    def end(self) -> None:
        """The stream ended by itself: nothing more comes."""
        self._ended = self.is_whole = True

    def answered(self, result: object) -> None:
        """Read what a whole answer says about its bill."""
        self._meter.take(result)
        self.end()

    def settle(self) -> None:
        if not self.begun:
            self.release()
            return
        report = self._meter.report
        if self.bill is None:
            self.bill = self._guess() if report is None else self._bill_of(report)
        super().settle()

    @abstractmethod
    def _price(self, report: Report) -> ModelPrice | None:
        """The price of what was answered; None: unknown."""

    def _bill_of(self, report: Report) -> Bill | None:
        """The cost of a report; if it is not complete, the hold, and at least that. None if nothing is known."""
        price, model = self._price(report), self.model or report.model or ""
        if report.cost_usd is None and price is None:
            return None
        price = price or ModelPrice(tiers=())
        cost = cost_usd(price, report)
        if report.is_whole and (report.is_last or self._ended):
            source = price.source if report.cost_usd is None else "reported"
            return priced_bill(price, cost, source, model, report.usage)
        return priced_bill(price, max(self._estimate_usd(), cost), "estimate", model, report.usage)

    def _estimate_usd(self) -> Decimal:
        """What is booked if not everything was reported."""
        return NOTHING if self._hold is None else from_pico(self._hold.amount)

    def _guess(self) -> Bill | None:
        """The bill if nothing was reported; None: the hold."""
        return None


class FixedCharge(OperationCharge):
    """Money for a registered operation, whose caller names its worst case.

    `cost_of` computes the cost of its result; `prices`: from its answer's usage. Without both the worst case is booked.
    """

    __slots__ = ("_bound_usd", "_cost_of", "_prices", "_told")

    def __init__(
        self,
        service: Service,
        budgets: Budgets,
        bound_usd: Decimal,
        *,
        cost_of: Callable[[Any], Any] | None = None,
        prices: Prices | None = None,
        model: str = "",
    ) -> None:
        self._cost_of = cost_of
        self._prices = prices
        self._bound_usd = bound_usd
        super().__init__(service, budgets, model)

    def _begin(self) -> None:
        super()._begin()
        self._told = None if self._cost_of is None else ToldCost(self._cost_of)

    def bound_usd(self) -> Decimal:
        return self._bound_usd

    def take(self, piece: object) -> None:
        if self._told is not None:
            self._told.note(piece)
        elif self._prices is not None:
            super().take(piece)

    def answered(self, result: object) -> None:
        self.is_whole = True
        if self._told is not None:
            self._note(self._told.of(result))
        elif self._prices is not None:
            super().answered(result)

    def settle(self) -> None:
        if self._told is not None and self.bill is None:
            self._note(self._told.whole() if self._ended else self._told.so_far())
        super().settle()

    def _note(self, cost: Decimal | None) -> None:
        self.bill = None if cost is None else Bill(amount_usd=cost, source="reported", model="")

    def _price(self, report: Report) -> ModelPrice | None:
        model = report.model or self.model
        price = self._prices.find_anywhere(model) if self._prices is not None and model else None
        if price is None and report.cost_usd is None:
            why = f"the price of model {model[:80]!r} is unknown" if model else "its answer names no model"
            warn_once(self._service.name, model, f"{why}, so each call is booked at its max_cost_usd")
        return price


class AskCharge(OperationCharge):
    """Money for a vendor's SDK under a built-in name; `ask` None: the worst case cannot be seen."""

    __slots__ = ("_ask", "_bound", "_counts", "_found", "_options", "_prices", "_written")

    def __init__(
        self, service: Service, budgets: Budgets, options: ServiceOptions, prices: Prices, ask: Ask | None
    ) -> None:
        self._options = options
        self._prices = prices
        self._ask = ask
        self._found: ModelPrice | None = None
        self._bound: Bound | None = None
        super().__init__(service, budgets, "" if ask is None else ask.model)

    def _begin(self) -> None:
        super()._begin()
        self._written = 0
        self._counts = self._ask is not None and not may_think_unseen(self._options, self._ask.model)

    async def hold(self, deadline: float) -> None:
        if self._bound is None:
            await self._look()
        await super().hold(deadline)

    async def _look(self) -> None:
        """Find the worst case. Raises `PriceUnknown` if a budget that was set could not hold."""
        ask = self._ask
        self._found = price = None if ask is None else self._prices.find(self._options, ask.model)
        if ask is None or price is None:
            if self._budgets.is_capped(self._service.name):
                raise PriceUnknown(self._service.name, self._why_unseen())
            self._bound = Bound(NOTHING, 0)
            return
        reading = read_prompt(ask.said, ask.model)
        window = partial(context_tokens, self._options, ask.model)
        if _is_long(reading):
            self._bound = await aside(self._service.name, partial(bound_of, ask, reading, price, window))
        else:
            self._bound = bound_of(ask, reading, price, window)

    def _why_unseen(self) -> str:
        if self._ask is None:
            return (
                "the worst case of this operation cannot be seen, so its budget could not hold; call an SDK's own "
                "method with model and prompt as its arguments, or register_service a name of its own with max_cost_usd"
            )
        return (
            f"the price of model {self._ask.model[:80]!r} is unknown, so its cost cannot be limited; set AI_SERVICES__"
            f"{self._options.name.upper()}__PRICE_AS to a model of the same price, or __INPUT_PRICE and __OUTPUT_PRICE"
        )

    def bound_usd(self) -> Decimal:
        return NOTHING if self._bound is None else self._bound.usd

    def bound_tokens(self) -> int:
        return 0 if self._bound is None else self._bound.read + self._bound.written

    def take(self, piece: object) -> None:
        super().take(piece)
        if self._counts:
            came = tokens_in(piece)
            self._counts = came is not None
            self._written += came or 0

    def _estimate_usd(self) -> Decimal:
        held = super()._estimate_usd()
        if not self._counts or not self._written or self._found is None or self._bound is None:
            return held
        return min(held, self._found.bound_usd(self._bound.read, self._written))

    def _guess(self) -> Bill | None:
        if self._found is None:
            return None
        return priced_bill(self._found, self._estimate_usd(), "estimate", self.model, Usage())

    def _price(self, report: Report) -> ModelPrice | None:
        """As a query's: of the model that was requested. Of another one only if that is unknown."""
        if self._found is None and report.model is not None:
            return self._prices.find(self._options, report.model)
        return self._found

    def settle(self) -> None:
        if not self.begun or self._found is not None:
            super().settle()
            return
        report, hold = self._meter.report, self._hold
        bill = None if report is None else self._bill_of(report)
        if bill is None or hold is None:
            self.release()
            if self._ended:
                why = "what its operations cost cannot be seen, and so is not booked"
                warn_once(self._service.name, "", f"{why}; {HOW_TO_COUNT}")
            return
        # Not by `Budgets.settle`: there was no worst case that this bill could exceed.
        self._hold = None
        if self._tokens is not None:
            self._tokens.settle(tokens_of(bill))
        self._budgets.ledger.settle(hold, self._service.name, bill, self.how)


HOW_TO_COUNT = 'a name of their own (register_service) with max_cost_usd and cost_usd="usage" counts them'


def _is_long(reading: Reading) -> bool:
    return sum(len(text) for text in reading.texts if not text.isascii()) > LONG_TEXT


def warn_once(service: str, about: str, sentence: str) -> None:
    """Log a warning, once for each subject."""
    if (service, about) not in _warned and len(_warned) < 1000:
        _warned.add((service, about))
        log.warning("%s: %s", service, sentence)
