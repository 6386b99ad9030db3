"""The charge for a query: the hold is its worst case by prompt length, the bill follows from the reported usage.

The hold shrinks as soon as a usage report shows that less can be billed. The booked cost is the cost that the provider
reports, or else the price of its complete usage. If the report is incomplete, the cost is an estimate: the price of
what arrived, or the whole hold if the model may have hidden thinking or nothing arrived. An estimate is never above the
hold, and never below what was reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from typing import NamedTuple

from koo.ai.budgets import Budgets
from koo.ai.charge import ServiceCharge, priced_bill
from koo.ai.conversations import Conversations, Measure
from koo.ai.model_price import NOTHING, ModelPrice
from koo.ai.providers.base import Completion, Provider, Request
from koo.ai.providers.transport import bound_text
from koo.ai.service import Service
from koo.ai.threads import aside
from koo.ai.types import Usage
from koo.errors import BudgetExceeded, Kind
from koo.http.connector import Departure
from koo.policies.money import EXACT, from_pico, in_words, to_pico
from koo.storage.base import NO_WORDS, Bill

LONG_ASCII = 512 * 1024
LONG_TEXT = 32 * 1024
"""Characters. Longer prompts are measured in a thread, because that takes a few milliseconds per megabyte of ASCII and
about a hundred per megabyte of other text."""


class Terms(NamedTuple):
    """The options of a query that concern money."""

    tag: str | None = None
    metadata: Mapping[str, str] = NO_WORDS
    max_cost_usd: Decimal | None = None
    is_clamped: bool = False
    is_patient: bool = False


NO_TERMS = Terms()


class QueryCharge(ServiceCharge):
    """The charge for one query.

    `request` is the next attempt's request; `departure` records how far it got. `reported` is the usage that the
    provider has reported for this attempt so far; never less than that is booked.
    """

    __slots__ = (
        "_asked", "_conversations", "_max_cost_usd", "_measure", "_provider", "_thinks_unseen", "departure",
        "is_clamped", "price", "reported", "request",
    )  # fmt: skip

    def __init__(
        self,
        service: Service,
        budgets: Budgets,
        provider: Provider,
        request: Request,
        price: ModelPrice,
        terms: Terms = NO_TERMS,
        *,
        conversations: Conversations | None = None,
        thinks_unseen: bool = True,
    ) -> None:
        super().__init__(
            service,
            budgets,
            model=request.model,
            tag=terms.tag,
            metadata=terms.metadata,
            is_patient=terms.is_patient,
        )
        self._provider = provider
        self._asked = self.request = request
        self.price = price
        self._max_cost_usd = terms.max_cost_usd
        self.is_clamped = terms.is_clamped
        self._conversations = conversations
        self._thinks_unseen = thinks_unseen
        self._measure: Measure | None = None
        self.departure = Departure()
        self.reported: Usage | None = None

    @property
    def clamped(self) -> bool:
        """Whether `max_tokens` was lowered to what the money allows."""
        return self.request.max_tokens < self._asked.max_tokens

    @property
    def input_tokens_max(self) -> int:
        """An upper bound of the prompt's tokens."""
        # The bound is computed when first needed: a query that a gate refuses must not spend time on measuring a long
        # prompt.
        if self._measure is None:
            self._measure = self._take_measure()
        return self._measure.tokens_max

    def _take_measure(self) -> Measure:
        bound = self._provider.bound_input_tokens
        if self._conversations is None:
            return Measure(bound(self._asked))
        return self._conversations.measure(self._service.name, self._asked, bound)

    def bound_usd(self) -> Decimal:
        return self.price.bound_usd(self.input_tokens_max, self.request.max_tokens)

    def bound_tokens(self) -> int:
        return self.input_tokens_max + self.request.max_tokens

    async def hold(self, deadline: float) -> None:
        self.departure, self.reported = Departure(), None
        if self._measure is None and _is_long(self._asked):
            self._measure = await aside(self._service.name, self._take_measure)
        self.request = self._asked
        if self.is_clamped:
            self._clamp()
        self._look_at_cost()
        while True:
            try:
                return await super().hold(deadline)
            except BudgetExceeded as error:
                # The first `_clamp` used what this process knew of the budget. The refusal came from the store, and has
                # updated what is known: less may be left, because other processes hold money too. So clamp again and
                # retry. The loop ends because `_clamp` returns False unless it has lowered `max_tokens`.
                if not self.is_clamped or error.kind is Kind.DEADLINE or not self._clamp():
                    raise

    def _clamp(self) -> bool:
        """Lower `max_tokens` to what the budgets have room for; False if that changes nothing."""
        room = self._budgets.room(self._budgets.of(self._service.name, self.model, self._tag))
        amounts = [] if room is None else [from_pico(max(0, room))]
        if self._max_cost_usd is not None:
            amounts.append(self._max_cost_usd)
        if not amounts:
            return False
        # The cap is not below the vendor's own minimum: with a smaller `max_tokens` it would refuse a request that the
        # budget allows. If even the minimum costs too much, the hold or `_look_at_cost` refuses it.
        fitting = max(
            self._provider.output_tokens_min, self.price.tokens_within(min(amounts), self.input_tokens_max)
        )
        if fitting >= self.request.max_tokens:
            return False
        self.request = replace(self.request, max_tokens=fitting)
        return True

    def _look_at_cost(self) -> None:
        if self._max_cost_usd is None:
            return
        bound_usd = self.bound_usd()
        if bound_usd > self._max_cost_usd:
            reason = (
                f"one attempt may cost up to {in_words(bound_usd)}, more than max_cost_usd allows "
                f"({in_words(self._max_cost_usd)}); lower max_tokens or raise max_cost_usd"
            )
            raise BudgetExceeded(self._service.name, reason)

    # ── reported usage ────────────────────────────────────────────────────────────────────────────────────────

    def report(self, usage: Usage, *, input_counted: bool) -> None:
        """Record a usage report of a running stream, and shrink the hold to what can still be billed."""
        self.reported = usage
        hold = self._hold
        # The hold assumes a token per byte of the prompt, about four times what it turns out to be. A long stream would
        # keep that money from other calls for minutes. Only a final input count may shrink it: a vendor that reports an
        # intermediate one could still bill more than would be left in the hold.
        if hold is not None and input_counted and usage.read_tokens:
            rest_usd = self.price.rest_usd(usage, self.request.max_tokens)
            with suppress(ValueError):  # counts so large that they are not a possible amount of money
                self._budgets.ledger.shrink(hold, to_pico(rest_usd))

    def note(self, completion: Completion) -> Bill:
        """Record what the attempt cost: the provider's own price if it reports one, else the table's.

        If the usage is incomplete, the cost is an estimate, never above the hold and never below what was reported.
        """
        usage, price = self._completed(completion), self.price
        more_usd = price.units_usd(completion.units) if completion.units else NOTHING
        if completion.cost_usd is not None and not usage.estimated:
            self.bill = self._bill(completion.cost_usd, "reported", usage)
        elif usage.estimated:
            least_usd = max(EXACT.add(self._reported_usd(), more_usd), completion.cost_usd or NOTHING)
            self.bill = self._bill(max(least_usd, self._estimate_usd(usage, more_usd)), "estimate", usage)
        else:
            tier = completion.tier
            cost_usd = price.cost_usd(usage) if tier is None else price.cost_at_usd(usage, tier)
            if more_usd:
                cost_usd = EXACT.add(cost_usd, more_usd)
            self.bill = self._bill(cost_usd, price.source, usage)
            # koo learns only from complete usage: an estimate would make the bound of the next prompt a guess.
            if self._conversations is not None and self._measure is not None:
                self._conversations.learn(self._measure.mark, usage, completion.text)
        return self.bill

    def _completed(self, completion: Completion) -> Usage:
        """The usage of a completion; a half that the provider left out is replaced with the most that it can be."""
        usage = completion.usage
        if completion.cost_usd is not None or self.price.free:
            return usage
        if not usage.read_tokens:
            usage = replace(usage, input_tokens=self.input_tokens_max, estimated=True)
        if completion.text and not usage.output_tokens:
            usage = replace(usage, output_tokens=bound_text(completion.text), estimated=True)
        return usage

    def _estimate_usd(self, usage: Usage, more_usd: Decimal) -> Decimal:
        if self.price.free:
            return NOTHING
        # A reasoning model may have written thousands of billed tokens before the first visible one. The price of what
        # arrived would understate that bill by an unknown factor, so the whole hold is booked.
        held_usd = self.bound_usd() if self._hold is None else from_pico(self._hold.amount)
        if self._thinks_unseen:
            return held_usd
        return min(held_usd, EXACT.add(self.price.cost_usd(usage), more_usd))

    def _reported_usd(self) -> Decimal:
        return NOTHING if self.reported is None else self.price.cost_usd(self.reported)

    def settle(self) -> None:
        hold = self._hold
        if self.bill is None and hold is not None:
            # A cancellation usually means that the request may have been billed, so the hold is booked. But if the call
            # was still waiting for a connection, nothing was sent. If its hold were booked all the same, a burst of
            # cancelled calls on a host that is down would use up the day's budget.
            if self.departure.waits:
                self.release()
                return
            amount_usd = max(from_pico(hold.amount), self._reported_usd())
            self.bill = self._bill(amount_usd, "estimate", self.reported or Usage())
        super().settle()

    def _bill(self, amount_usd: Decimal, source: str, usage: Usage) -> Bill:
        return priced_bill(self.price, amount_usd, source, self.model, usage)


def _is_long(request: Request) -> bool:
    """Whether measuring the prompt would block the event loop. Non-ASCII text is checked character by character."""
    prompt, system = request.prompt, request.system or ""
    if len(prompt) <= LONG_TEXT and len(system) <= LONG_TEXT:
        return False
    return any(len(text) > (LONG_ASCII if text.isascii() else LONG_TEXT) for text in (prompt, system))
