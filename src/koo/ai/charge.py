"""The charge for one call, held and settled for each attempt.

Every attempt goes through `hold → run → settle`, even one that fails: its request may have reached the provider and
been billed before the response was lost. The worst case is held. The attempt's `bill` is booked. If its cost is unknown
and it may have been billed, the whole hold is booked, marked as an estimate.

All charges hold and settle in the same way. They differ in the worst case and in the source of the bill: for a query,
the bill comes from the provider's usage and a price; for a user's own operation, from its caller or its result
(`operation_charge.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from decimal import Decimal

from koo.ai.budgets import Budgets
from koo.ai.model_price import ModelPrice
from koo.ai.service import Service
from koo.ai.token_gate import Tokens
from koo.ai.types import Usage
from koo.errors import BudgetExceeded, Kind
from koo.logs.lines import request_id
from koo.policies.money import from_pico, to_pico
from koo.policies.purse import Budget, Hold
from koo.storage.base import NO_WORDS, Bill, How


class ServiceCharge(ABC):
    """The charge for one call to a service; implements the guard's `Charge`. `bill` is None while its cost is unknown.

    `is_patient`: wait for money that running calls hold, or that other processes were asked to return to the store.
    """

    __slots__ = (
        "_attempt",
        "_budgets",
        "_held_at",
        "_hold",
        "_is_patient",
        "_metadata",
        "_service",
        "_tag",
        "_tokens",
        "bill",
        "is_whole",
        "model",
    )

    def __init__(
        self,
        service: Service,
        budgets: Budgets,
        *,
        model: str = "",
        tag: str | None = None,
        metadata: Mapping[str, str] = NO_WORDS,
        is_patient: bool = False,
    ) -> None:
        self._service = service
        self._budgets = budgets
        self._hold: Hold | None = None
        self._held_at, self._attempt = 0.0, 0
        self.is_whole = False  # whether the answer reached its end
        self.model = model
        self._tag = tag
        self._metadata = metadata
        self._is_patient = is_patient
        self._tokens = Tokens(service) if service.tokens is not None else None
        self.bill: Bill | None = None

    @abstractmethod
    def bound_usd(self) -> Decimal:
        """The worst case of one attempt."""

    def bound_tokens(self) -> int:
        """The most tokens that one attempt can take; 0 if unknown."""
        return 0

    async def hold(self, deadline: float) -> None:
        """Hold the worst case, waiting for the store until `deadline` (monotonic seconds) if necessary.

        Raises `RateLimited` if the limit on tokens has no room. Raises `BudgetExceeded` if a budget has no room, or if
        the store does not answer in time. After an error nothing is held.
        """
        self.bill, self.is_whole = None, False
        self._attempt += 1
        tokens = self._tokens
        if tokens is None:
            await self._hold_money(deadline)
        else:
            await self._hold_both(tokens, deadline)
        self._held_at = self._service.clock.monotonic()

    async def _hold_both(self, tokens: Tokens, deadline: float) -> None:
        # Tokens first, then money. Waiting for tokens may take a minute, and money held during that time would make
        # other calls' budgets look used up. If the money is refused or the wait for it is cancelled, the tokens go
        # back; otherwise calls that the budget refuses would also use up the limit on tokens.
        while True:
            await tokens.take(self.bound_tokens(), deadline, waits=self._is_patient)
            try:
                await self._hold_money(deadline)
            except BaseException:
                tokens.settle(0)
                raise
            # With patience the wait for money may take minutes. If the tokens counted from its start, calls that waited
            # together could use them in the same minute as others for which those tokens were free again.
            if tokens.take_again():
                return
            self._release_money()

    @property
    def how(self) -> How:
        """How the attempt went: recorded with its booking."""
        took_s = self._service.clock.monotonic() - self._held_at
        return How(took_s, "answered" if self.is_whole else "unfinished", request_id.get(), self._attempt)

    async def _hold_money(self, deadline: float) -> None:
        service = self._service.name
        try:
            amount = to_pico(self.bound_usd())
        except ValueError as error:
            reason = "the worst case of this call costs more than koo can book; check the price of its model"
            raise BudgetExceeded(service, reason) from error
        budgets = self._budgets.of(service, self.model, self._tag)
        # The common case needs no await: this process's purses have room. The store is queried only if they have none.
        self._hold = self._budgets.ledger.hold(budgets, amount)
        if self._hold is None:
            await self._wait(budgets, amount, deadline)

    async def _wait(self, budgets: tuple[Budget, ...], amount: int, deadline: float) -> None:
        service, ledger = self._service, self._budgets.ledger
        try:
            answer = await ledger.wait(budgets, amount, deadline, is_patient=self._is_patient)
        except TimeoutError as error:
            reason = "the state store (KOO_STATE_URL) did not confirm the budget before the deadline"
            raise BudgetExceeded(service.name, reason, kind=Kind.DEADLINE) from error
        if not isinstance(answer, tuple):
            self._hold = answer
            return
        why, short = answer
        name = None if short is None else short.budget
        raise self._budgets.refusal(service.name, budgets, amount, why, name, service.clock.wall())

    def settle(self) -> None:
        """Book the cost, or the worst case if there is no bill."""
        if self._tokens is not None:
            self._tokens.settle(tokens_of(self.bill))
        # The hold is taken out before it is booked, so that it is booked only once even if booking raises.
        hold, self._hold = self._hold, None
        if hold is None:
            return
        bill = self.bill or Bill(amount_usd=from_pico(hold.amount), source="estimate", model=self.model)
        if self._tag is not None or self._metadata:
            bill = bill._replace(tag=self._tag, metadata=self._metadata)
        self._budgets.settle(hold, self._service.name, bill, self.how)

    def release(self) -> None:
        """Release the hold and the tokens, because nothing can have been billed."""
        if self._tokens is not None:
            self._tokens.settle(0)
        self._release_money()

    def _release_money(self) -> None:
        hold, self._hold = self._hold, None
        if hold is not None:
            self._budgets.ledger.release(hold)


def tokens_of(bill: Bill | None) -> int | None:
    """How many tokens an attempt took of the limit on tokens; None if its bill is an estimate.

    Like providers' own limits, this does not count tokens read from the cache.
    """
    if bill is None or bill.source == "estimate":
        return None
    return bill.input_tokens + bill.cache_write_tokens + bill.output_tokens


def priced_bill(price: ModelPrice, amount_usd: Decimal, source: str, model: str, usage: Usage) -> Bill:
    """A bill with its tokens and unit prices; `source` as in `Bill`."""
    return Bill(
        amount_usd=amount_usd,
        source=source,
        model=model,
        input_tokens=usage.input_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        output_tokens=usage.output_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        unit_prices=price.unit_prices,
        price_version=price.version,
    )
