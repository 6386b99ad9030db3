"""A ledger that ends with the process: it stands in for the shared one while the store is away."""

from __future__ import annotations

import itertools
import logging
import os
import secrets

from koo.clock import SYSTEM_CLOCK, Clock, utc_day
from koo.options import DAY_S
from koo.policies.budget import Budget, Held
from koo.storage.base import Bill, BudgetView, Hold, HoldRequest
from koo.storage.money import refusal

log = logging.getLogger("koo")

SCOPE = "this process"


class Ids:
    """Ids for holds: unique across processes and machines, and in order within one process."""

    __slots__ = ("_next", "_pid", "_prefix")

    def __init__(self) -> None:
        self._pid = 0
        self._prefix = ""
        self._next = itertools.count(1)

    def new(self) -> str:
        if self._pid != os.getpid():  # A fork would go on with its parent's numbers.
            self._pid = os.getpid()
            self._prefix = secrets.token_hex(8)
        return f"{self._prefix}{next(self._next):012x}"


class MemoryLedger:
    """Money of this process."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._ids = Ids()
        self._budgets: dict[str, Budget] = {}
        self._open: dict[str, tuple[Held, Hold, float]] = {}  # id → what is held, and when its lease is over

    def start_from(self, service: str, view: BudgetView) -> None:
        """Begin today with what another ledger last knew; what was held there counts as spent."""
        budget = self._budget(service)
        if view.day == budget.today.number:
            budget.today.settled_usd = view.spent_usd + view.held_usd

    async def hold(self, request: HoldRequest) -> Hold:
        """Put the worst case aside. Raises `BudgetExceeded`, and ValueError for an amount that is no money."""
        service = request.service
        budget = self._budgets.get(service) or self._budget(service)
        budget.limit_usd = request.allowance.limit_usd
        now = self._clock.monotonic()
        held = budget.hold(request.amount_usd, now)
        if held is None:
            today = budget.today
            raise refusal(request, today.settled_usd, today.held_usd, self._clock.wall())
        day = held.day.number
        hold = Hold(self._ids.new(), service, day, request.amount_usd)
        self._open[hold.id] = (held, hold, now + request.lease_s)
        return hold

    def settle(self, hold: Hold, bill: Bill) -> None:
        """Book what it cost, to the hold's own day. A cost that is no money is booked at the hold's bound."""
        entry = self._open.pop(hold.id, None)
        if entry is None:
            return
        budget = self._budgets[hold.service]
        try:
            budget.settle(entry[0], bill.amount_usd)
        except (ValueError, ArithmeticError):
            log.error("%s: a cost of %s USD is no money; its bound was booked", hold.service, bill.amount_usd)
            budget.settle(entry[0], hold.amount_usd)

    def release(self, hold: Hold) -> None:
        """Nothing was billed."""
        entry = self._open.pop(hold.id, None)
        if entry is not None:
            self._budgets[hold.service].release(entry[0])

    def view(self, service: str) -> BudgetView:
        """Today's numbers, which in memory are always the last."""
        budget = self._budget(service)
        budget.roll(self._clock.monotonic())
        today = budget.today
        return BudgetView(today.number, today.settled_usd, today.held_usd, self._clock.wall(), SCOPE)

    async def sweep(self) -> list[Hold]:
        """Book holds whose lease is over (somebody lost them), and anchor each day's end to the wall clock again."""
        now = self._clock.monotonic()
        ends_at, day = self._day()
        for budget in self._budgets.values():
            budget.anchor(ends_at, day)
        lost = [hold for _, hold, lease_ends_at in self._open.values() if now >= lease_ends_at]
        for hold in lost:
            self.settle(hold, Bill(amount_usd=hold.amount_usd, source="estimate", model=""))
        return lost

    async def flush(self) -> None:
        """Nothing waits."""

    async def refresh(self) -> None:
        """Nothing is older than it could be."""

    def _budget(self, service: str) -> Budget:
        budget = self._budgets.get(service)
        if budget is None:
            ends_at, day = self._day()
            budget = self._budgets[service] = Budget(None, ends_at, day)
        return budget

    def _day(self) -> tuple[float, int]:
        """When today ends, in monotonic seconds, and its number."""
        wall = self._clock.wall()
        day = utc_day(wall)
        return self._clock.monotonic() + (day + 1) * DAY_S - wall, day
