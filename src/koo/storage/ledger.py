"""The ledger: calls hold and settle in this process's purses, and a beat behind them keeps the store up to date.

A call with room in its purses never waits. A call without waits for the answer to the next beat, which goes out at
once. While the store is away, purses last until they are used up; then a budget that was set refuses, and a default one
goes on in memory ("budget scope: this process"). What was spent meanwhile is reported when the store is back.

Beats carry the ledger's entries. One beat at a time is in flight, and is sent again, unchanged, until it is answered;
bookings made meanwhile wait for the next one. A killed process loses the entries of its last beat, but never money:
what it was granted stays booked.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from koo.clock import Clock
from koo.forks import forget_in_child
from koo.policies.money import from_pico, to_pico
from koo.policies.purse import Budget, Hold, Refusal, Waiter
from koo.policies.purses import PATIENCE, Purses
from koo.policies.treasury import (
    DAY_MS,
    Beat,
    Key,
    PeriodKind,
    Reply,
    Standing,
    Totals,
    starts_ms,
)
from koo.storage.base import UNTOLD, Bill, BudgetView, How, StoreUnavailable
from koo.storage.exchanges import Exchange
from koo.storage.executor import IN_USE
from koo.storage.postings import Ids, Posting

log = logging.getLogger("koo")

IDLE_S = 2.0
"""A process that spends nothing still reports its limits this often, so that a lower one stands (LIMIT_STANDS_MS)."""
AWAY_S = 1.0
"""How often a beat is tried while the store is away. The store's return rings too; this covers a missed ring."""
LOOK_S = 2.0
"""How often a beat also asks how all budgets stand, for display."""
BEATS_TO_FINISH = 3
"""One that may be in flight, one that reports the rest, and one for a new name if the old one was another's."""
POSTINGS_PER_BEAT = 500
"""So that what gathers in an outage does not become one transaction that always exceeds the store's timeout."""
POSTINGS_MAX = 100_000
"""Entries that wait for an absent store. More are dropped and counted; the money itself is never lost."""


Settled = tuple[float, str, int, int, int, Bill, How]
"""When (wall seconds), service, day, amount, bound, bill and course of a call whose entry waits. The beat makes the
entry, with its id: at settlement it would cost each call as much as everything else about its money."""


@dataclass(slots=True)
class Known:
    """How a budget stood when the store was last asked, without what this process had reported, and when that was."""

    others: Standing
    wall_s: float


def _word() -> str:
    """A random name, for people to see where an absent process has money, and for its chain of tokens."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(8)}"


class Ledger:
    """This process's money over one store. `heard` is called with an answer that gives this process another name, or
    says that the store has forgotten something.

    Use it on one event loop at a time. `run` is its background task. Without it nothing is reported, and a temporary
    task asks for what callers wait for, while any of them waits.
    """

    def __init__(self, exchange: Exchange, clock: Clock) -> None:
        self.heard: Callable[[Reply], None] = lambda answer: None
        self.before_beats: Callable[[], None] = lambda: None
        """Books what was taken of purses and is not booked yet: otherwise a beat would send it home, and it would be
        granted once more elsewhere."""
        self._exchange = exchange
        self.clock = clock
        self._now = clock.monotonic
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self._has_left = False  # its loop, which may still run
        self._is_closed = False
        self._runs = 0
        self._helper: asyncio.Task[None] | None = None
        self._refused = 0
        self._ids = Ids()
        self._settled: deque[Settled] = deque()
        self._flying: list[Posting] = []
        self._known: dict[Key, Known] = {}
        self._looked_at = float("-inf")
        self.purses = Purses(
            _word,
            beat_s=exchange.beat_s,
            wall_ms=int(clock.wall() * 1000),
            now=clock.monotonic(),
            ring=self.ring,
        )
        forget_in_child(self)

    # ── budgets ───────────────────────────────────────────────────────────────────────────────────────────────

    def budget(
        self, name: str, limit: int | None, kind: PeriodKind = "day", *, is_default: bool = False
    ) -> Budget:
        """Know a budget from now on; `limit` in pico-dollars per period, None only counts."""
        return self.purses.add(Budget(name, limit, kind, is_default), self._now())

    def forget(self, name: str) -> bool:
        """Forget a budget, if it was not used in this period."""
        budget = self.purses.budgets[name]
        self.purses.roll((budget,), self._now())
        return self.purses.forget(name)

    def standing(self, name: str) -> Standing:
        """How a budget stands in this period: the store's last answer, with this process's own current numbers."""
        budget = self.purses.budgets[name]
        self.purses.roll((budget,), self._now())
        purse, known = budget.purse, self._known.get(budget.purse.key)
        if known is None:
            return Standing(budget.limit, 0, purse.spent, purse.held, max(0, purse.room), 0, 1)
        others = known.others
        return replace(
            others,
            limit=budget.limit if others.limit is None else others.limit,
            booked=others.booked + purse.granted - purse.back + purse.over,
            spent=others.spent + purse.spent,
            held=others.held + purse.held,
        )

    def knows(self, name: str) -> bool:
        """Whether the store has said how this budget stands in this period."""
        return self.purses.budgets[name].purse.key in self._known

    def view(self, name: str) -> BudgetView:
        """How a budget stands, for people."""
        standing, budget = self.standing(name), self.purses.budgets[name]
        purse, known = budget.purse, self._known.get(budget.purse.key)
        return BudgetView(
            limit_usd=None if standing.limit is None else from_pico(standing.limit),
            spent_usd=from_pico(standing.spent),
            held_usd=from_pico(max(0, standing.held)),
            idle_usd=from_pico(standing.idle),
            unsettled_usd=from_pico(standing.unsettled),
            resets_at=starts_ms(budget.kind, purse.key.period + 1) / 1000,
            as_of=None if known is None else known.wall_s,
            scope="shared" if self._exchange.trouble is None else "this process",
            above_hold_usd=from_pico(purse.above),
        )

    @property
    def trouble(self) -> str | None:
        """Why the store cannot be used now; None: no trouble is known."""
        return self._exchange.trouble

    @property
    def dropped(self) -> int:
        """Entries that are lost: too many waited, or the store rejected them."""
        return self._refused + self._exchange.dropped

    # ── a call ────────────────────────────────────────────────────────────────────────────────────────────────

    def hold(self, budgets: tuple[Budget, ...], amount: int) -> Hold | None:
        """Hold a call's worst case now; None if it has to wait.

        A newcomer must not take room ahead of callers that already wait for one of its budgets.
        """
        waiting = self.purses.waiting
        if amount and waiting and not {b for waiter in waiting for b in waiter.budgets}.isdisjoint(budgets):
            return None
        return self.purses.hold(budgets, amount, self._now())

    async def wait(
        self, budgets: tuple[Budget, ...], amount: int, deadline: float, *, is_patient: bool
    ) -> Hold | tuple[Refusal, Key | None]:
        """Wait for the store's answer; a patient caller also waits for what is recalled from other processes.

        Returns a hold, or why there is none and which budget is short. Raises TimeoutError at `deadline`.
        """
        if self._is_closed:
            # A straggler would open the store again, and what it was granted would never be reported.
            return Refusal.CLOSED, None
        if self._exchange.trouble is not None:
            return self.purses.hold_without(budgets, amount, self._now()) or (Refusal.AWAY, None)
        future: asyncio.Future[Hold | Refusal] = asyncio.get_running_loop().create_future()
        waiter = Waiter(
            budgets, amount, PATIENCE if is_patient else 1, lambda verdict: self._tell(future, verdict)
        )
        self._come_to_this_loop()
        self.purses.wait(waiter)
        if not self._runs and (self._helper is None or self._helper.done()):
            self._helper = asyncio.create_task(self._run_for_waiters())
        try:
            async with asyncio.timeout(deadline - self._now()):
                verdict = await future
        except BaseException:
            self.purses.leave(waiter)
            # Cancelled at the very moment when the answer had already arrived: without this its hold would stay held.
            if future.done() and not future.cancelled() and isinstance(future.result(), Hold):
                self._give_up(future.result())
            raise
        return verdict if isinstance(verdict, Hold) else (verdict, waiter.short)

    def _tell(self, future: asyncio.Future[Hold | Refusal], verdict: Hold | Refusal) -> None:
        if not future.done():
            future.set_result(verdict)
        else:
            self._give_up(verdict)

    def _give_up(self, verdict: Hold | Refusal) -> None:
        if isinstance(verdict, Hold):
            self.purses.release(verdict)

    def shrink(self, hold: Hold, amount: int) -> None:
        """A call's worst case has proved smaller."""
        self.purses.shrink(hold, amount)

    def settle(self, hold: Hold, service: str, bill: Bill, how: How = UNTOLD) -> int:
        """Book what a call cost; returns it in pico-dollars. An invalid cost is booked at the call's bound.

        A hold ends once: a second settlement, or a release, changes nothing.
        """
        if not hold.purses:
            return 0
        try:
            amount = to_pico(bill.amount_usd)
        except ValueError:
            log.error(
                "%s: a cost of %s USD is not an amount of money; its bound is booked",
                service,
                bill.amount_usd,
            )
            amount = hold.amount
        bound, first = hold.amount, hold.purses[0]
        day = first.key.period if first.budget.kind == "day" else self._day_of(hold)
        self.purses.settle(hold, amount)
        if len(self._settled) < POSTINGS_MAX:
            self._settled.append((self.clock.wall(), service, day, amount, bound, bill, how))
        else:
            self._refuse()
        return amount

    def _day_of(self, hold: Hold) -> int:
        """The UTC day whose budget pays."""
        for purse in hold.purses:
            if purse.budget.kind == "day":
                return purse.key.period
        return self.purses.wall_ms(self._now()) // DAY_MS

    def release(self, hold: Hold) -> None:
        """Nothing was billed."""
        self.purses.release(hold)

    def count(self, budget: Budget, day: int, amount: int) -> None:
        """Count requests of a UTC day; a negative amount takes back."""
        self.purses.count(budget, day, amount)

    def counted_elsewhere(self, budget: Budget, day: int) -> int:
        """What other processes, and earlier ones, have counted on that day, as last known."""
        known = self._known.get(Key(budget.name, day))
        return 0 if known is None else max(0, known.others.booked)

    def _refuse(self) -> None:
        self._refused += 1
        if self._refused % 1000 == 1:
            log.error(
                "the state store is away and %d entries of the ledger wait; %d were dropped (their money is counted)",
                len(self._settled),
                self._refused,
            )

    # ── the beat ──────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Beat until cancelled."""
        await self._run(lambda: True)

    async def _run_for_waiters(self) -> None:
        await self._run(lambda: bool(self.purses.waiting))

    async def _run(self, goes_on: Callable[[], bool]) -> None:
        self._come_to_this_loop()
        loop = self._loop
        self._runs += 1
        try:
            while goes_on():
                await self._until_due()
                await self._try_to_beat()
        finally:
            if self._loop is loop:
                self._runs -= 1

    def _come_to_this_loop(self) -> None:
        """Leave a loop that has ended, with what waited there: an event and a lock belong to one loop.

        Raises RuntimeError while the other loop runs.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._loop is not None and self._loop.is_running() and not self._has_left:
                raise RuntimeError(IN_USE)
            self._loop, self._runs, self._helper = loop, 0, None
            self._wake, self._one_at_a_time = asyncio.Event(), asyncio.Lock()
            self._wake.set()
            self.purses.waiting.clear()  # a caller on a loop that has ended cannot be answered
        self._has_left = False

    async def _try_to_beat(self) -> None:
        try:
            await self.beat()
        except StoreUnavailable:
            self.purses.decide_without(self._now())
        except Exception:
            log.exception("the ledger's beat failed, and is tried again")
            self.purses.decide_without(self._now())

    async def beat(self, *, is_last: bool = False) -> None:
        """One exchange with the store. Raises `StoreUnavailable`; the same beat is then sent the next time."""
        self._come_to_this_loop()
        # Two at once would send one beat twice, and take the second answer for that of the next beat.
        async with self._one_at_a_time:
            await self._beat(is_last)

    async def _beat(self, is_last: bool) -> None:
        if self.purses.flying is None:
            while self._settled and len(self._flying) < POSTINGS_PER_BEAT:
                at_s, service, day, amount, bound, bill, how = self._settled.popleft()
                at_ms = int(at_s * 1000)
                self._flying.append(Posting(self._ids.new(), at_ms, service, day, amount, bound, bill, how))
        self.before_beats()
        now = self._now()
        is_asked = now - self._looked_at >= LOOK_S
        beat = self.purses.beat(now, is_last=is_last and not self._settled)
        answer = await self._exchange.send(beat, self._flying, is_asked=is_asked)
        self.before_beats()
        if answer.is_you:
            self._flying = []
            self._learn(answer, beat, is_asked)
            if beat.is_last:
                for key, told in beat.totals.items():
                    self._disown(key, told)
        else:
            for key, purse in self.purses.purses.items():
                spent, back, over, _ = purse.told  # what is held is reported again, under the new name
                self._disown(key, Totals(purse.granted, back, spent, over))
        self.purses.hear(answer, self._now(), asyncio.get_running_loop().time())
        if len(self._settled) >= POSTINGS_PER_BEAT:
            self.ring()
        self._report(answer)

    def _learn(self, answer: Reply, beat: Beat, is_asked: bool) -> None:
        if is_asked:
            self._looked_at = self._now()
            self._known = {}
        for key, standing in answer.standings.items():
            told = beat.totals.get(key)
            others = standing
            if told is not None:
                others = replace(
                    standing,
                    # When a last beat is repeated, the store no longer has its purses.
                    booked=standing.booked - answer.granted.get(key, told.granted) + told.granted - told.net,
                    spent=standing.spent - told.spent,
                    held=standing.held - told.held,
                )
            self._known[key] = Known(others, self.clock.wall())
            purse = self.purses.purses.get(key)
            if purse is not None:
                purse.elsewhere = others.spent

    def _disown(self, key: Key, told: Totals) -> None:
        """What was reported under an abandoned name belongs to another process from now on."""
        known = self._known.setdefault(key, Known(Standing(), self.clock.wall()))
        others = known.others
        known.others = replace(
            others,
            booked=others.booked + told.net,
            spent=others.spent + told.spent,
            held=others.held + told.held,
        )

    def _report(self, answer: Reply) -> None:
        if not answer.is_you or answer.has_forgotten:
            self.heard(answer)

    @property
    def process(self) -> str:
        """The name under which this process is known to the store."""
        return self.purses.name

    async def refresh(self) -> None:
        """Report what is new, and learn how all budgets stand. Raises `StoreUnavailable`.

        A ledger that was finished is in use again after this.
        """
        self._is_closed = False
        self._looked_at = float("-inf")
        await self.beat()

    async def finish(self) -> None:
        """This process ends: report everything, and send home what no call holds. Raises `StoreUnavailable`.

        Callers that wait for money are refused, and later ones too.
        """
        self._is_closed = True
        self.purses.refuse_all(Refusal.CLOSED)
        for _ in range(BEATS_TO_FINISH + len(self._settled) // POSTINGS_PER_BEAT):
            self.purses.send_home()
            has_more = self._settled or self._flying or self.purses.flying or self.purses.has_news()
            if not has_more and not self.purses.may_end():
                return
            await self.beat(is_last=True)

    def leave(self) -> None:
        """The store is closed: another loop may have it, although this one still runs."""
        self._has_left = True

    def store_changed(self, trouble: str | None) -> None:
        """The store was lost, or found again."""
        if trouble is None:
            self.ring()
        else:
            self.purses.decide_without(self._now())

    async def _until_due(self) -> None:
        has_news = self.purses.flying is not None or bool(self._settled) or self.purses.has_news()
        delay_s = self._exchange.beat_s if has_news else IDLE_S
        if self._exchange.trouble is not None:
            delay_s = AWAY_S
        timer = asyncio.get_running_loop().call_later(delay_s, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()
        self._wake.clear()

    def ring(self) -> None:
        """Beat now."""
        if (
            self._loop is None or not self._loop.is_closed()
        ):  # ringing would wake a task of a loop that has ended
            self._wake.set()

    def forget_parent(self) -> None:
        """In a forked child, where the parent's spending is another process's."""
        self._loop = None
        self._wake, self._one_at_a_time = asyncio.Event(), asyncio.Lock()
        self._settled.clear()
        self._flying = []
        for key, purse in self.purses.purses.items():
            self._disown(key, purse.totals())
        self.purses.empty()
