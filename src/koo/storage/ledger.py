"""The ledger: calls hold and settle money in this process's purses, and a background beat keeps the store up to date.

A call that finds room in its purses never waits. A call that does not waits for the reply to the next beat, which is
sent immediately. While the store is unreachable, calls spend what the purses still contain. After that, a budget that
was set refuses calls, and a default budget continues in memory ("budget scope: this process"). The spending is reported
when the store is back.

Beats carry the ledger's entries. One beat at a time is in flight. It is sent again, unchanged, until a reply arrives,
and later bookings wait for the next beat. A process that is killed loses the entries of its last beat but no money,
because everything it was granted stays booked.
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
from koo.storage.postings import Ids, Posting
from koo.storage.rounds import Rounds

log = logging.getLogger("koo")

IDLE_S = 2.0
"""An idle process still reports its limits this often, so that a lower limit stays in force (LIMIT_STANDS_MS)."""
AWAY_S = 1.0
"""How often a beat is tried while the store is unreachable. The store's return also triggers one; this covers a missed
trigger."""
LOOK_S = 2.0
"""How often a beat also requests the standings of all budgets, for display."""
BEATS_TO_FINISH = 3
"""One that may be in flight, one that reports the rest, and one under a new name if the old name was taken."""
POSTINGS_PER_BEAT = 500
"""A limit, because the entries that pile up in an outage would otherwise form one transaction that always exceeds the
store's timeout."""
POSTINGS_MAX = 100_000
"""How many entries may wait for an unreachable store. Others are dropped and counted; their money is never lost."""


Settled = tuple[float, str, int, int, int, Bill, How]
"""A settled call whose entry waits: wall time in seconds, service, day, amount, bound, bill, and how the call went. The
beat builds the entry and its id. Building them at settlement would double what accounting costs each call."""


@dataclass(slots=True)
class Known:
    """A budget's standing as last read from the store, minus this process's own share, and the time of that reading."""

    others: Standing
    wall_s: float


def _word() -> str:
    """A random word for a process's name or a beat's token. It shows people which process left money behind."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(8)}"


class Ledger:
    """This process's money in one store. `heard` is called with a reply that forces this process to take another name,
    or that reports data loss in the store.

    Use it on one event loop at a time. `run` is its background task. Without it nothing is reported, and a temporary
    task serves waiting callers for as long as any of them waits.
    """

    def __init__(self, exchange: Exchange, clock: Clock) -> None:
        self.heard: Callable[[Reply], None] = lambda answer: None
        self.before_beats: Callable[[], None] = lambda: None
        """Books units that calls have already taken from a purse. Otherwise a beat would return them, and the store
        would grant them again to another process."""
        self._exchange = exchange
        self.clock = clock
        self._now = clock.monotonic
        self._rounds = Rounds(self._try_to_beat, self._pause_s)
        self._has_left = False  # the store was closed, although the loop may still run
        self._is_closed = False
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
        """Register a budget. `limit` is in pico-dollars per period; None only counts."""
        return self.purses.add(Budget(name, limit, kind, is_default), self._now())

    def forget(self, name: str) -> bool:
        """Forget a budget that was not used in this period; returns whether it did."""
        budget = self.purses.budgets[name]
        self.purses.roll((budget,), self._now())
        return self.purses.forget(name)

    def standing(self, name: str) -> Standing:
        """A budget's standing in this period: the store's last reply plus this process's current numbers."""
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
        """Whether the store has reported this budget's standing in this period."""
        return self.purses.budgets[name].purse.key in self._known

    def view(self, name: str) -> BudgetView:
        """A budget's standing, for display."""
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
        """Why the store is unreachable; None if no trouble is known."""
        return self._exchange.trouble

    @property
    def dropped(self) -> int:
        """How many entries are lost, because too many waited or the store rejected them."""
        return self._refused + self._exchange.dropped

    # ── a call ────────────────────────────────────────────────────────────────────────────────────────────────

    def hold(self, budgets: tuple[Budget, ...], amount: int) -> Hold | None:
        """Hold a call's worst case now; returns None if the call has to wait."""
        # A newcomer must not take room ahead of callers that already wait for one of its budgets. Otherwise small
        # calls would take each bit of room as it is returned, and a large waiting call would never find enough.
        waiting = self.purses.waiting
        if amount and waiting and not {b for waiter in waiting for b in waiter.budgets}.isdisjoint(budgets):
            return None
        return self.purses.hold(budgets, amount, self._now())

    async def wait(
        self, budgets: tuple[Budget, ...], amount: int, deadline: float, *, is_patient: bool
    ) -> Hold | tuple[Refusal, Key | None]:
        """Wait for the store's reply; a patient caller also waits for money that running calls hold or other processes
        return.

        Returns a hold, or the reason why there is none and the budget that is short. Raises TimeoutError at `deadline`
        if the store has not replied.
        """
        if self._is_closed:
            # A straggler's beat would open the store again after the last beat of this process. No later beat would
            # report what it was granted, so that money would stay booked for the rest of the period.
            return Refusal.CLOSED, None
        if self._exchange.trouble is not None:
            # No beat can be answered now. The caller would only wait for its deadline and then be refused anyway.
            return self.purses.hold_without(budgets, amount, self._now()) or (Refusal.AWAY, None)
        future: asyncio.Future[Hold | Refusal] = asyncio.get_running_loop().create_future()
        waiter = Waiter(
            budgets, amount, PATIENCE if is_patient else 1, lambda verdict: self._tell(future, verdict)
        )
        self._come_to_this_loop()
        self.purses.wait(waiter)
        self._rounds.serve(lambda: bool(self.purses.waiting))
        try:
            async with asyncio.timeout(deadline - self._now()):
                verdict = await future
        except BaseException as error:
            self.purses.leave(waiter)
            # The reply may have set the future's result, and a cancellation or the timeout may then have reached this
            # task before it ran again. The task never sees that hold, so it must be released here: otherwise it would
            # stay held until the process ends.
            if future.done() and not future.cancelled() and isinstance(future.result(), Hold):
                self._give_up(future.result())
            if isinstance(error, TimeoutError) and waiter.short is not None:
                return Refusal.NOT_MET, waiter.short
            raise
        return verdict if isinstance(verdict, Hold) else (verdict, waiter.short)

    def _tell(self, future: asyncio.Future[Hold | Refusal], verdict: Hold | Refusal) -> None:
        # A timeout cancels the future immediately, but its task leaves the queue of waiters only when it runs again. A
        # reply that arrives in between still decides this waiter, and its hold belongs to no caller.
        if not future.done():
            future.set_result(verdict)
        else:
            self._give_up(verdict)

    def _give_up(self, verdict: Hold | Refusal) -> None:
        if isinstance(verdict, Hold):
            self.purses.release(verdict)

    def shrink(self, hold: Hold, amount: int) -> None:
        """Lower a hold when the call's worst case turns out smaller."""
        self.purses.shrink(hold, amount)

    def settle(self, hold: Hold, service: str, bill: Bill, how: How = UNTOLD) -> int:
        """Book what a call cost; returns it in pico-dollars. An invalid cost is booked at the call's bound.

        A hold ends once: settling or releasing it again changes nothing.
        """
        # A hold that has ended has no purses. A call can end on several paths (its result, an error, the close of its
        # stream), and without this check a second one would book the cost and write an entry again.
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
        # Both are read before settling, which empties `hold.purses`. The day is the one in which the hold was made, not
        # today: a call that runs over midnight is paid by the budget that held it.
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
        """End a hold for which nothing was billed."""
        self.purses.release(hold)

    def count(self, budget: Budget, day: int, amount: int) -> None:
        """Count requests of a UTC day; a negative amount takes them back."""
        self.purses.count(budget, day, amount)

    def counted_elsewhere(self, budget: Budget, day: int) -> int:
        """How many requests other and earlier processes counted on that day, as last known."""
        known = self._known.get(Key(budget.name, day))
        return 0 if known is None else max(0, known.others.booked)

    def _refuse(self) -> None:
        self._refused += 1
        if self._refused % 1000 == 1:
            log.error(
                "the state store is unreachable: "
                "%d ledger entries are waiting and %d were dropped (their money is counted)",
                len(self._settled),
                self._refused,
            )

    # ── the beat ──────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Beat until cancelled."""
        self._come_to_this_loop()
        await self._rounds.run()

    def _come_to_this_loop(self) -> None:
        """Move to the running loop and drop the callers that waited on the old one.

        Raises RuntimeError while the other loop is running.
        """
        if self._rounds.come(may_move=self._has_left):
            self.purses.waiting.clear()
        self._has_left = False

    async def _try_to_beat(self) -> None:
        try:
            await self.beat()
        except StoreUnavailable:
            self.purses.decide_without(self._now())
        except Exception:
            log.exception("the ledger's beat failed; it will be tried again")
            self.purses.decide_without(self._now())

    async def beat(self, *, is_last: bool = False) -> None:
        """One exchange with the store. Raises `StoreUnavailable`; the same beat is then sent the next time."""
        self._come_to_this_loop()
        # Two exchanges at the same time would send one beat twice, and the second reply would be taken for the reply
        # to the next beat.
        async with self._rounds.one_at_a_time:
            await self._beat(is_last)

    async def _beat(self, is_last: bool) -> None:
        # A beat that is being repeated keeps the entries it had. Calls that settled later are not in its totals, so
        # adding their entries would commit an entry before its money.
        #
        # An entry gets its id here, once, and not each time it is sent. If the connection is lost during COMMIT, the
        # same ids are sent again, and the unique key makes a second insert change nothing.
        if self.purses.flying is None:
            while self._settled and len(self._flying) < POSTINGS_PER_BEAT:
                at_s, service, day, amount, bound, bill, how = self._settled.popleft()
                at_ms = int(at_s * 1000)
                self._flying.append(Posting(self._ids.new(), at_ms, service, day, amount, bound, bill, how))
        self.before_beats()
        now = self._now()
        is_asked = now - self._looked_at >= LOOK_S
        # A last beat ends this process's name. While entries are left over, no beat may be the last: the entries would
        # need another name, and one more beat to end that name.
        beat = self.purses.beat(now, is_last=is_last and not self._settled)
        # If this raises, COMMIT may or may not have happened. Nothing has changed here yet: beat and entries stay in
        # flight, and the next attempt sends both unchanged. A store that did commit recognises the beat's token and
        # returns the totals again without granting twice.
        answer = await self._exchange.send(beat, self._flying, is_asked=is_asked)
        # This is called a second time, because calls took units during the exchange. `hear` hands the remaining room to
        # waiters, and under a new name it drops that room.
        self.before_beats()
        if answer.is_you:
            self._flying = []
            self._learn(answer, beat, is_asked)
            if beat.is_last:
                for key, told in beat.totals.items():
                    self._disown(key, told)
        else:
            # Another copy of this process reports under the same name, or an operator wrote it off. The store took
            # nothing from this beat, so its entries stay in `_flying` and are sent under the new name.
            for key, purse in self.purses.purses.items():
                spent, back, over, _ = purse.told  # held amounts are reported again under the new name
                self._disown(key, Totals(purse.granted, back, spent, over))
        self.purses.hear(answer, self._now(), asyncio.get_running_loop().time())
        if len(self._settled) >= POSTINGS_PER_BEAT:
            self.ring()
        self._report(answer)

    def _learn(self, answer: Reply, beat: Beat, is_asked: bool) -> None:
        # The store's numbers include what this beat reported. That part is subtracted, because `standing` adds this
        # process's numbers as they are when it is called: with both, each of its calls would be shown twice.
        if is_asked:
            self._looked_at = self._now()
            self._known = {}
        for key, standing in answer.standings.items():
            told = beat.totals.get(key)
            others = standing
            if told is not None:
                others = replace(
                    standing,
                    # The store booked its own `granted`, which may be newer than the one in the beat, less `back` and
                    # plus `over`. The default applies when a last beat is repeated: its purses are merged by then.
                    booked=standing.booked - answer.granted.get(key, told.granted) + told.granted - told.net,
                    spent=standing.spent - told.spent,
                    held=standing.held - told.held,
                )
            self._known[key] = Known(others, self.clock.wall())
            purse = self.purses.purses.get(key)
            if purse is not None:
                purse.elsewhere = others.spent

    def _disown(self, key: Key, told: Totals) -> None:
        """From now on, count what was reported under an abandoned name as another process's."""
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
        """This process's name in the store."""
        return self.purses.name

    async def refresh(self) -> None:
        """Report what is new and read the standings of all budgets. Raises `StoreUnavailable`.

        This reopens a ledger that was finished.
        """
        self._is_closed = False
        self._looked_at = float("-inf")
        await self.beat()

    async def finish(self) -> None:
        """Report everything and return what no call holds, because this process ends. Raises `StoreUnavailable`.

        Callers that wait for money are refused, and so are later ones.
        """
        self._is_closed = True
        self.purses.refuse_all(Refusal.CLOSED)
        # The number of beats is bounded: calls that still run keep settling, so "until nothing is left" might never
        # come.
        for _ in range(BEATS_TO_FINISH + len(self._settled) // POSTINGS_PER_BEAT):
            self.purses.send_home()
            has_more = self._settled or self._flying or self.purses.flying or self.purses.has_news()
            if not has_more and not self.purses.may_end():
                return
            await self.beat(is_last=True)

    def leave(self) -> None:
        """Let another loop use the ledger although this one still runs, because the store is closed."""
        self._has_left = True

    def store_changed(self, trouble: str | None) -> None:
        """React to the loss or the return of the store."""
        if trouble is None:
            self.ring()
        else:
            self.purses.decide_without(self._now())

    def _pause_s(self) -> float:
        if self._exchange.trouble is not None:
            return AWAY_S
        has_news = self.purses.flying is not None or bool(self._settled) or self.purses.has_news()
        return self._exchange.beat_s if has_news else IDLE_S

    def ring(self) -> None:
        """Send a beat now."""
        self._rounds.ring()

    def forget_parent(self) -> None:
        """In a forked child, drop the parent's entries and purses: the parent reports them itself."""
        self._rounds.forget_parent()
        self._settled.clear()
        self._flying = []
        for key, purse in self.purses.purses.items():
            self._disown(key, purse.totals())
        self.purses.empty()
