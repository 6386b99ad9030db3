"""What happens to money while the shared ledger is away.

* A budget that somebody set: the call is refused. Nobody can prove that it still fits, and a cap that holds only
  while all goes well is none.
* The default budget, or none: the call goes on. Money is counted in this process, from the numbers that were last
  seen (what was held then counts as spent), and `view` says "this process". Each of several processes does so
  for itself: together they can spend more than the one cap.

What is held and spent meanwhile is told to the shared ledger too, whose queue keeps it until the store is back: then
it is in the books as if it had never been away. Only a process that dies before that takes its numbers with it.

A bill above its hold is booked whole, here as there, and published: the cap rests on worst cases that are true.

The shared ledger knows by itself that it is away (`trouble`), and tries to come back without any caller's help. So an
outage costs those who were waiting when it began up to the store's timeout, and everybody after them some
microseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal

from koo.clock import SYSTEM_CLOCK, Clock
from koo.errors import Kind, ServiceRefused
from koo.events import BillExceededHold, Event, StoreFound, StoreLost
from koo.storage.base import Bill, BudgetView, Hold, HoldRequest, SharedLedger, StoreUnavailable
from koo.storage.memory import SCOPE, MemoryLedger
from koo.storage.money import in_words, to_pico
from koo.storage.transaction import StatementRejected

SOURCE = "state store"
RETRY_AFTER_S = 5.0
"""When to ask again: the longest pause between two of the store's own attempts to come back."""


class GuardedLedger:
    """The shared ledger, and what stands in for it while it is away.

    It publishes `StoreLost`, `StoreFound` and `BillExceededHold`.

    `store_changed` must be called when the store is lost (with the reason) or found (with None): give it to the store's
    `watch`.
    """

    def __init__(
        self,
        shared: SharedLedger,
        clock: Clock = SYSTEM_CLOCK,
        publish: Callable[[Event], None] | None = None,
    ) -> None:
        self._shared = shared
        self._clock = clock
        self._publish = publish
        self._alone = MemoryLedger(clock)
        self._started: set[str] = set()  # services whose numbers `_alone` has taken over
        self._above: dict[
            str, tuple[int, Decimal]
        ] = {}  # service → day, by how much bills were above their holds

    def store_changed(self, trouble: str | None) -> None:
        """The store was lost, or found again."""
        if trouble is not None:
            # A new one for each outage: what the last one knew is in the shared ledger's view.
            self._alone = MemoryLedger(self._clock)
            self._started = set()
        if self._publish is not None:
            self._publish(StoreFound(SOURCE) if trouble is None else StoreLost(SOURCE, _meaning(trouble)))

    async def hold(self, request: HoldRequest) -> Hold:
        """Put the worst case aside.

        Raises `BudgetExceeded`; `ServiceRefused` where the ledger is away and somebody set this budget; ValueError
        for an amount that is no money.
        """
        trouble = self._shared.trouble
        if trouble is None:
            try:
                return await self._shared.hold(request)
            except StatementRejected as error:
                raise _refusal(request, str(error)) from error
            except StoreUnavailable as error:
                trouble = str(error)
        return await self._hold_alone(request, trouble)

    async def _hold_alone(self, request: HoldRequest, trouble: str) -> Hold:
        allowance = request.allowance
        if allowance.explicit and allowance.limit_usd is not None and request.amount_usd:
            raise _refusal(request, trouble)
        self._take_over(request.service)
        hold = await self._alone.hold(request)
        self._shared.adopt(hold, request)
        return hold

    def _take_over(self, service: str) -> None:
        if service not in self._started:
            self._started.add(service)
            self._alone.start_from(service, self._shared.view(service))

    def settle(self, hold: Hold, bill: Bill) -> None:
        """Book what it cost, in both: the one that does not know the hold ignores it."""
        self._alone.settle(hold, bill)
        self._shared.settle(hold, bill)
        if _exceeds(bill, hold):
            self._note_excess(hold, bill.amount_usd)

    def _note_excess(self, hold: Hold, billed_usd: Decimal) -> None:
        day, above_usd = self._above.get(hold.service, (hold.day, Decimal(0)))
        if hold.day >= day:
            before_usd = above_usd if day == hold.day else Decimal(0)
            self._above[hold.service] = (hold.day, before_usd + billed_usd - hold.amount_usd)
        if self._publish is not None:
            self._publish(BillExceededHold(hold.service, f"{billed_usd:f}", f"{hold.amount_usd:f}"))

    def release(self, hold: Hold) -> None:
        """Nothing was billed."""
        self._alone.release(hold)
        self._shared.release(hold)

    def view(self, service: str) -> BudgetView:
        """The last view; its `scope` is "this process" while the shared ledger is away."""
        view = self._shared.view(service)
        if self._shared.trouble is not None:
            view = self._alone.view(service) if service in self._started else replace(view, scope=SCOPE)
        day, above_usd = self._above.get(service, (view.day, Decimal(0)))
        return replace(view, above_hold_usd=above_usd) if above_usd and day == view.day else view

    async def sweep(self) -> list[Hold]:
        """Book what dead processes left, at its bound; nothing while the shared ledger is away."""
        await self._alone.sweep()
        if self._shared.trouble is not None:
            return []
        try:
            return await self._shared.sweep()
        except StoreUnavailable:
            return []

    async def refresh(self) -> None:
        """Read today's numbers anew. Raises `StoreUnavailable`."""
        await self._shared.refresh()

    async def flush(self) -> None:
        """Wait until everything said so far is written. Raises `StoreUnavailable`."""
        await self._shared.flush()


def _exceeds(bill: Bill, hold: Hold) -> bool:
    try:
        return to_pico(bill.amount_usd) > to_pico(hold.amount_usd)
    except ValueError:  # A cost that is no money is booked at the hold's bound.
        return False


def _refusal(request: HoldRequest, trouble: str) -> ServiceRefused:
    limit_usd = request.allowance.limit_usd
    budget = "the budget" if limit_usd is None else f"the day's budget of {in_words(limit_usd)}"
    reason = f"nobody can tell whether {budget} covers this call, because {trouble}"
    return ServiceRefused(request.service, reason, RETRY_AFTER_S, kind=Kind.CIRCUIT_OPEN)


def _meaning(trouble: str) -> str:
    return f"{trouble}; budgets that somebody set refuse until it is back, the default ones count in this process only"
