"""One query at one service: the work, and the money for it, as often as the guard repeats it.

Money follows `hold → run → settle`, for each attempt, always: an attempt that failed on the way back may have been
billed. What is held is the worst case. What is booked is what the provider reported; where it reported nothing and may
have billed, the whole hold, marked as an estimate. A free service has no money to hold, and its errand is not a charge.
"""

from __future__ import annotations

from asyncio import timeout_at
from decimal import Decimal

from koo.ai.pricing import ModelPrice
from koo.ai.providers.base import Completion, Provider, Request
from koo.ai.service import Service
from koo.ai.types import Usage
from koo.errors import BudgetExceeded, Kind
from koo.storage.base import Bill, Hold, HoldRequest, Ledger

LEASE_SLACK_S = 60.0
"""A hold outlives its call's deadline by this, so that no sweeper books a call that is just ending."""
NOTHING = Decimal(0)


class Errand:
    """A charge for the guard, and the operation that it runs."""

    __slots__ = (
        "_hold", "_ledger", "_price", "_provider", "_request", "_service", "_tag", "attempts", "completion",
        "cost_source", "cost_usd", "usage",
    )  # fmt: skip

    def __init__(
        self,
        service: Service,
        provider: Provider,
        request: Request,
        price: ModelPrice,
        ledger: Ledger,
        tag: str | None = None,
    ) -> None:
        self._service = service
        self._provider = provider
        self._request = request
        self._price = price
        self._ledger = ledger
        self._tag = tag
        self._hold: Hold | None = None
        self.attempts = 0
        self.completion: Completion | None = None
        self.usage: Usage | None = None
        self.cost_usd = NOTHING
        self.cost_source = "table"

    @property
    def charge(self) -> Errand | None:
        """Itself, where the service costs something."""
        return None if self._price.free else self

    async def run(self) -> Completion:
        """Ask once."""
        self.attempts += 1
        completion = await self._provider.complete(self._request)
        self.note(completion.usage, completion.cost_usd)
        gates = self._service.gates
        for pace in completion.pace:
            gates.pacer.learn(pace.limit, pace.remaining, pace.resets_in_s, self._service.clock.monotonic())
        if gates.pacer.interval_s:
            gates.invalidate()
        return completion

    def note(self, usage: Usage, reported_usd: Decimal | None = None) -> None:
        """What the provider said it used; its own price wins over ours."""
        self.usage = usage
        if reported_usd is not None:
            self.cost_usd, self.cost_source = reported_usd, "reported"
        else:
            self.cost_usd = self._price.cost_usd(usage)
            self.cost_source = "estimate" if usage.estimated else self._price.source

    # ── money ─────────────────────────────────────────────────────────────────────────────────────────────────

    def bound_usd(self) -> Decimal:
        """The worst case of one attempt."""
        return self._price.bound_usd(
            self._provider.bound_input_tokens(self._request), self._request.max_tokens
        )

    async def hold(self, deadline: float) -> None:
        """Put the worst case aside. Raises `BudgetExceeded`, also where the ledger does not answer in time."""
        self.usage = None
        request = HoldRequest(
            service=self._service.name,
            model=self._request.model,
            amount_usd=self.bound_usd(),
            allowance=self._service.allowance,
            lease_s=self._lease_s(deadline),
            tag=self._tag,
        )
        try:
            if self._ledger.durable:
                async with timeout_at(deadline):
                    self._hold = await self._ledger.hold(request)
            else:
                self._hold = await self._ledger.hold(request)
        except TimeoutError as error:
            reason = "the budget's ledger did not answer before the deadline"
            raise BudgetExceeded(self._service.name, reason, kind=Kind.DEADLINE) from error
        except ValueError as error:
            reason = "what this call can cost is more than any ledger holds; is the price of its model right?"
            raise BudgetExceeded(self._service.name, reason) from error
        self._service.holds_made += 1

    def _lease_s(self, deadline: float) -> float:
        """As long as the query may run: one that is swept before its end would be booked at its bound."""
        left_s = deadline - self._service.clock.monotonic()
        return max(self._service.options.timeout_s, left_s) + LEASE_SLACK_S

    def settle(self) -> None:
        """Book what it cost; without the provider's word, the worst case."""
        hold, self._hold = self._hold, None
        if hold is not None:
            self._ledger.settle(hold, self._bill(hold))

    def release(self) -> None:
        """Nothing can have been billed."""
        hold, self._hold = self._hold, None
        if hold is not None:
            self._ledger.release(hold)

    def _bill(self, hold: Hold) -> Bill:
        usage, price = self.usage, self._price
        if usage is None:
            return Bill(amount_usd=hold.amount_usd, source="estimate", model=self._request.model)
        return Bill(
            amount_usd=self.cost_usd,
            source=self.cost_source,
            model=self._request.model,
            input_tokens=usage.input_tokens,
            cache_read_tokens=usage.cache_read_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            output_tokens=usage.output_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            unit_prices=price.unit_prices,
            price_version=price.version,
        )
