"""The charge for one operation of the application's own. Its money is held before the operation is awaited, and from
then on counts as spent.

There are two charges:

- `FixedCharge` is for a registered name. Its caller sets the most that a call can cost. The bill comes from the
  caller's `cost_usd` function, or from the usage in the result.
- `AskCharge` is for a vendor's SDK under a built-in name. The worst case is read from the call's arguments, the bill
  from the usage in the result.

An operation under a built-in name may be anything, so its worst case may be unknown. A budget that was set then refuses
the call, because it could not be kept. Under a default budget the call runs: nothing is held, and the cost reported in
its result is booked, even if that exceeds the limit.

The owner of a stream passes each piece to `take`, and calls `end` if the stream reached its own end. A stream that
ended before the vendor's last usage report is booked at its hold, or at what arrived if the model has no hidden
thinking. It is never booked below what was reported.
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
from koo.ai.operation_usage import Meter, Report, added_up, tokens_in
from koo.ai.pricing import Prices, context_tokens
from koo.ai.service import Service
from koo.ai.threads import aside
from koo.ai.told_cost import ToldCost
from koo.ai.types import Usage
from koo.ai.usage_price import cost_usd
from koo.errors import PriceUnknown
from koo.options import ServiceOptions
from koo.policies.money import EXACT, from_pico
from koo.storage.base import Bill

log = logging.getLogger("koo")

LONG_TEXT = 32 * 1024
"""Non-ASCII characters. More are measured in a thread, because that takes up to 100 ms for each megabyte."""
_warned: set[tuple[str, str]] = set()


class OperationCharge(ServiceCharge):
    """The common part of both charges. `begun`: the operation was awaited in this attempt."""

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
        """Read the usage and cost in a piece of a streamed answer."""
        self._meter.take(piece)

    def end(self) -> None:
        """Note that the stream reached its own end, so that no more usage will be reported."""
        self._ended = self.is_whole = True

    def answered(self, result: object) -> None:
        """Read the usage and cost in a whole result."""
        self._meter.take(result)
        self.end()

    def settle(self) -> None:
        # The guard calls this whenever something may have been billed, after a cancellation for example. Only this
        # charge knows that the operation was never awaited, so that nothing can have been sent.
        if not self.begun:
            self.release()
            return
        reports = self._meter.reports
        if self.bill is None:
            self.bill = self._bill_of(reports) if reports else self._guess()
        super().settle()

    @abstractmethod
    def _price(self, report: Report) -> ModelPrice | None:
        """The price of the model that answered; None if unknown."""

    def _bill_of(self, reports: list[Report]) -> Bill | None:
        """The bill for these answers; None if neither the cost nor the price of one of them is known.

        An incomplete report is billed at the estimate, but never below its own cost.
        """
        cost, prices = NOTHING, []
        for report in reports:
            price = self._price(report)
            if report.cost_usd is None and price is None:
                return None
            prices.append(price or ModelPrice(tiers=()))
            cost = EXACT.add(cost, cost_usd(prices[-1], report))
        last, price = reports[-1], prices[-1]
        model, usage = self.model or last.model or "", added_up(report.usage for report in reports)
        # Vendors report intermediate counts while a stream runs. Before the last report, or the stream's own end, the
        # count is only what had been written by then, and booking it would understate the bill.
        is_over = (last.is_last or self._ended) and all(report.is_last for report in reports[:-1])
        if is_over and all(report.is_whole for report in reports):
            source = price.source if last.cost_usd is None else "reported"
            return priced_bill(price, cost, source, model, usage)
        return priced_bill(price, max(self._estimate_usd(), cost), "estimate", model, usage)

    def _estimate_usd(self) -> Decimal:
        """The amount to book if the report is incomplete."""
        return NOTHING if self._hold is None else from_pico(self._hold.amount)

    def _guess(self) -> Bill | None:
        """The bill if nothing was reported; None books the hold."""
        return None


class FixedCharge(OperationCharge):
    """Money for a registered operation, whose caller sets its worst case.

    `cost_of` computes the cost from the result; with `prices` it is computed from the usage in the result. With neither
    of them the worst case is booked.
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
            why = f"the price of model {model[:80]!r} is unknown" if model else "its result names no model"
            warn_once(self._service.name, model, f"{why}, so each call is booked at its max_cost_usd")
        return price


class AskCharge(OperationCharge):
    """Money for a vendor's SDK under a built-in name. `ask` is None if the worst case is unknown."""

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
        # Once per call, not per attempt: the arguments stay the same, and reading a long prompt takes milliseconds. Not
        # in the constructor: a call that an open breaker refuses must not pay for it.
        if self._bound is None:
            await self._look()
        await super().hold(deadline)

    async def _look(self) -> None:
        """Find the worst case. If it is unknown and the operator has set a budget, raises `PriceUnknown`."""
        ask = self._ask
        self._found = price = None if ask is None else self._prices.find(self._options, ask.model)
        if ask is None or price is None:
            # A budget that someone set is a promise, and a call with an unknown worst case can break it. The default
            # budget is only a precaution: refusing every unknown SDK call there would break programs that never asked
            # for a budget.
            if self._budgets.is_capped(self._service.name):
                raise PriceUnknown(self._service.name, self._why_unseen())
            self._bound = Bound(NOTHING, 0)
            return
        # The objects are read here, on the loop: they belong to the caller, which may change them while a thread reads
        # them. Only the counting of the texts' bytes goes to a thread, because texts cannot change.
        reading = read_prompt(ask.said, ask.model)
        window = partial(context_tokens, self._options, ask.model)
        if _is_long(reading):
            self._bound = await aside(self._service.name, partial(bound_of, ask, reading, price, window))
        else:
            self._bound = bound_of(ask, reading, price, window)

    def _why_unseen(self) -> str:
        if self._ask is None:
            return (
                "the most that this operation can cost is unknown, so its budget could not be kept; call an SDK's own "
                "method with model and prompt as its arguments, or give it a name of its own: "
                "register_service(..., max_cost_usd=...)"
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
        # Counting what arrived bounds the output only if all of it arrives in a known form. One unknown piece may be of
        # any length, so from then on the hold is the only safe estimate.
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
        # Without a price the hold is zero, so there is nothing to estimate from.
        if self._found is None:
            return None
        return priced_bill(self._found, self._estimate_usd(), "estimate", self.model, Usage())

    def _price(self, report: Report) -> ModelPrice | None:
        """The price of the requested model, as for a query; if it is unknown, that of the model that answered."""
        if self._found is None and report.model is not None:
            return self._prices.find(self._options, report.model)
        return self._found

    def settle(self) -> None:
        if not self.begun or self._found is not None:
            super().settle()
            return
        # The worst case was unknown and nothing is held (a default budget). The cost of the result, if it names one or
        # names a model with a price, is booked all the same: otherwise this money would never appear in any budget.
        reports, hold = self._meter.reports, self._hold
        bill = self._bill_of(reports) if reports else None
        if bill is None or hold is None:
            self.release()
            if self._ended:
                why = "the cost of its operations is unknown, so it is not booked"
                warn_once(self._service.name, "", f"{why}; {HOW_TO_COUNT}")
            return
        # This does not use `Budgets.settle`: this hold is zero because the worst case was unknown, and every bill above
        # zero would be published as a bill above its hold.
        self._hold = None
        if self._tokens is not None:
            self._tokens.settle(tokens_of(bill))
        self._budgets.ledger.settle(hold, self._service.name, bill, self.how)


HOW_TO_COUNT = (
    'to count it, give them a name of their own: register_service(..., max_cost_usd=..., cost_usd="usage")'
)


def _is_long(reading: Reading) -> bool:
    return sum(len(text) for text in reading.texts if not text.isascii()) > LONG_TEXT


def warn_once(service: str, about: str, sentence: str) -> None:
    """Log a warning once for each service and subject, for at most 1,000 of them."""
    if (service, about) not in _warned and len(_warned) < 1000:
        _warned.add((service, about))
        log.warning("%s: %s", service, sentence)
