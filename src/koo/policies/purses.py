"""All purses of one process: calls hold and settle, and behind them a beat talks to the treasury.

A beat reports what was spent, sends home what is not needed, and asks for more (`treasury.py` explains the chain of
beats). A call that finds no room waits for an answer. Waiters of one set of budgets ask together: all or none of what
the first one *needs*, and up to what all of them *want*. Asking for the whole sum would starve all of them if it does
not fit.

Nothing here waits, reads a clock, or knows of a store: `now` is monotonic seconds. The owner of the purses sends
`beat()` to the store when something rings or a beat is due, and passes the answer to `hear()`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from koo.policies.purse import Budget, Hold, Purse, Refusal, Waiter
from koo.policies.treasury import Ask, Beat, Key, Limit, Met, Reply, period_at, starts_ms

TRIP_S_MAX = 2.0
"""A store that takes longer to answer is away."""
PATIENCE = 3
"""How many beats a patient caller's need may go unmet: a recall takes two, and one may have been on its way."""


class Purses:
    """All purses of one process, under one name.

    `draw` returns a random word from the operating system, for names and tokens: a fork would copy the state of a
    generator of this process's own. `ring` is called when a beat should go out at once. `wall_ms` (at `now`) is this
    machine's clock, which decides what day it is until the store has answered once.
    """

    def __init__(
        self, draw: Callable[[], str], *, beat_s: float, wall_ms: int, now: float, ring: Callable[[], None]
    ) -> None:
        self.name = draw()
        self.budgets: dict[str, Budget] = {}
        self.purses: dict[Key, Purse] = {}
        self.waiting: list[Waiter] = []
        self.flying: Beat | None = None
        self._draw = draw
        self._ring = ring
        self._beat_s = beat_s
        self._number = 0
        self._last_token = ""
        self._groups_asked: list[tuple[Key, ...]] = []
        self._recalled: frozenset[Key] = frozenset()
        self._store_ms, self._heard_at = wall_ms, now
        # A beat's time includes its wait and its answer.
        self._span_s = beat_s
        self._sent_at = now
        self._paced_at = -math.inf

    # ── budgets and their periods ─────────────────────────────────────────────────────────────────────────────

    def add(self, budget: Budget, now: float) -> Budget:
        """Know a budget from now on. It replaces one of the same name, and what was spent of that stays spent."""
        self.budgets[budget.name] = budget
        self._open(budget, now)
        return budget

    def forget(self, name: str) -> bool:
        """Forget a budget, if it was not used in this period; a purse that was granted something stays."""
        budget = self.budgets[name]
        purse = budget.purse
        is_told = self.flying is not None and purse.key in self.flying.totals
        is_waited_for = any(budget in waiter.budgets for waiter in self.waiting)
        if purse.granted or purse.over or purse.held or is_told or is_waited_for:
            return False
        del self.budgets[name]
        self.purses.pop(purse.key, None)
        return True

    def wall_ms(self, now: float) -> int:
        """The store's clock as last heard, plus this process's own steady time since."""
        return self._store_ms + int((now - self._heard_at) * 1000)

    def roll(self, budgets: Iterable[Budget], now: float) -> None:
        """Move on to the purses of the period that has begun."""
        for budget in budgets:
            if now >= budget.ends_at:
                self._open(budget, now)

    def _open(self, budget: Budget, now: float) -> None:
        wall_ms = self.wall_ms(now)
        period = period_at(budget.kind, wall_ms)
        key = Key(budget.name, period)
        budget.purse = self.purses.setdefault(key, Purse(budget, key))
        budget.purse.budget = budget
        budget.ends_at = now + (starts_ms(budget.kind, period + 1) - wall_ms) / 1000

    # ── a call ────────────────────────────────────────────────────────────────────────────────────────────────

    def hold(self, budgets: tuple[Budget, ...], amount: int, now: float) -> Hold | None:
        """Hold `amount` in every budget; None if one has no room, and then nothing is held."""
        for budget in budgets:
            if now >= budget.ends_at:
                self._open(budget, now)
            if budget.purse.room < amount and budget.limit is not None:
                return None
        return self._held(budgets, amount, ())

    def hold_without(self, budgets: tuple[Budget, ...], amount: int, now: float) -> Hold | None:
        """As `hold` while the store is away: a default budget continues in memory, one that was set does not."""
        self.roll(budgets, now)
        short = tuple([b.purse for b in budgets if b.limit is not None and b.purse.room < amount])
        if not all(self._may_go_on(purse, amount) for purse in short):
            return None
        return self._held(budgets, amount, short)

    def _may_go_on(self, purse: Purse, amount: int) -> bool:
        budget = purse.budget
        total = purse.elsewhere + purse.spent + purse.held + amount
        return budget.is_default and budget.limit is not None and total <= budget.limit

    def _held(self, budgets: tuple[Budget, ...], amount: int, without: tuple[Purse, ...]) -> Hold:
        for budget in budgets:
            purse = budget.purse
            purse.held += amount
            if budget.limit is None:
                without += (purse,)
                purse.over += amount
            elif without and purse in without:
                purse.over += amount
            else:
                purse.room -= amount
                if amount > purse.bound:  # noqa: PLR1730 - `max` would be one more call on every call's way
                    purse.bound = amount
                if purse.room < purse.low:
                    purse.low = 0  # ring once; the answer sets it again
                    self._ring()
        return Hold(tuple([budget.purse for budget in budgets]), amount, without)

    def shrink(self, hold: Hold, amount: int) -> None:
        """The bound has proved smaller: the difference is room again. A larger amount changes nothing."""
        less = hold.amount - amount
        if less <= 0:
            return
        for purse in hold.purses:
            purse.held -= less
            if purse in hold.without:
                purse.back += less
            else:
                purse.room += less
        hold.amount = amount

    def settle(self, hold: Hold, cost: int) -> None:
        """Book what a call cost, in the periods in which it was held. A second time changes nothing."""
        bound, purses, without = hold.amount, hold.purses, hold.without
        hold.purses = ()
        for purse in purses:
            purse.held -= bound
            purse.spent += cost
            if cost > bound:
                purse.above += cost - bound
                purse.over += cost - bound
            elif without and purse in without:
                purse.back += bound - cost
            else:
                purse.room += bound - cost
            # The last call has ended. What the purse would not keep goes home now, not with the next beat: a process
            # killed within that second would leave it behind, booked for the whole period.
            if not purse.held and purse.room > 0 and not purse.keep():
                self._ring()

    def release(self, hold: Hold) -> None:
        """Nothing was billed."""
        self.settle(hold, 0)

    def count(self, budget: Budget, period: int, amount: int) -> None:
        """Count without a limit, in a period of the caller's choice; a negative amount takes back."""
        key = Key(budget.name, period)
        purse = self.purses.setdefault(key, Purse(budget, key))
        if amount < 0:
            purse.back -= amount
        else:
            purse.spent += amount
            purse.over += amount

    # ── waiting ───────────────────────────────────────────────────────────────────────────────────────────────

    def wait(self, waiter: Waiter) -> None:
        """Queue a call that found no room, and ask."""
        self.waiting.append(waiter)
        self._ring()

    def leave(self, waiter: Waiter) -> None:
        """The call no longer waits: it was cancelled, or its deadline has passed."""
        if waiter in self.waiting:
            self.waiting.remove(waiter)

    def refuse_all(self, why: Refusal) -> None:
        """Refuse all waiters."""
        waiting, self.waiting = self.waiting, []
        for waiter in waiting:
            waiter.decided(why)

    def decide_without(self, now: float) -> None:
        """The store is away: waiters continue in memory where their budgets allow it, else they are refused."""
        waiting, self.waiting = self.waiting, []
        for waiter in waiting:
            waiter.decided(self.hold_without(waiter.budgets, waiter.amount, now) or Refusal.AWAY)

    # ── the beat ──────────────────────────────────────────────────────────────────────────────────────────────

    def has_news(self) -> bool:
        """Whether anything is unknown to the store, or should go home."""
        return bool(self.waiting) or any(purse.has_news() for purse in self.purses.values())

    def may_send_home(self, purse: Purse) -> bool:
        """Whether the next beat may take something out of it. How much it keeps of its pace is known only then."""
        stays = purse.budget.purse is purse and purse.key not in self._recalled
        return purse.room > (purse.least if stays else 0)

    def send_home(self) -> None:
        """This process ends: with the next beat it keeps only what calls hold."""
        self._recalled = frozenset(self.purses)
        for purse in self.purses.values():
            purse.least = 0

    def may_end(self) -> bool:
        """Whether anything was reported under this name, and no call holds or waits for more."""
        is_known = self._number > 0 or self.flying is not None
        return is_known and not self.waiting and not any(purse.held for purse in self.purses.values())

    def beat(self, now: float, *, is_last: bool = False) -> Beat:
        """The next beat, or the same one again until it is answered. `is_last`: of this process, if it may end."""
        if self.flying is not None:
            return self.flying
        self._take_paces(now)
        self.roll(self.budgets.values(), now)
        for purse in self.purses.values():
            # What goes back leaves the purse before it is reported. Reported first, it could be spent here and granted
            # elsewhere as well.
            purse.send_back(self._keep_of(purse))
        self._groups_asked, asks = self._asks()
        asked = {key for ask in asks for key in ask.need}
        # All of this period each time: a store that has forgotten is told everything in one beat.
        totals = {
            key: purse.totals()
            for key, purse in self.purses.items()
            if purse.budget.purse is purse or key in asked or not purse.is_settled()
        }
        limits = {name: Limit(budget.limit, budget.kind) for name, budget in self.budgets.items()}
        self._sent_at = now
        is_last = is_last and not asks and not any(p.held or p.room for p in self.purses.values())
        self.flying = Beat(
            self.name, self._number + 1, self._draw(), self._last_token, totals, limits, asks, is_last
        )
        return self.flying

    def _take_paces(self, now: float) -> None:
        beats = (now - self._paced_at) / self._span_s
        if beats < 1:
            return  # this beat goes out early: what was spent since the last one says nothing about a whole beat
        self._paced_at = now
        for purse in self.purses.values():
            purse.take_pace(beats if math.isfinite(beats) else 1.0)

    def _keep_of(self, purse: Purse) -> int:
        is_over = purse.budget.purse is not purse
        return 0 if is_over or purse.key in self._recalled else purse.keep()

    def _asks(self) -> tuple[list[tuple[Key, ...]], list[Ask]]:
        """One ask per set of budgets with waiters (its keys first), then one per purse that runs low."""
        groups, asks, asked = self._groups(), [], set[Key]()
        for group in groups.values():
            purses = [budget.purse for budget in group[0].budgets if budget.limit is not None]
            first, everybody = group[0].amount, sum(waiter.amount for waiter in group)
            extra = {p.key: 0 if p.key in asked else self._keep_of(p) for p in purses}
            need = {p.key: max(0, first - p.room) for p in purses}
            want = {p.key: max(0, everybody + extra[p.key] - p.room) for p in purses}
            asks.append(Ask(need, want, first))
            asked |= need.keys()
        for purse in self.purses.values():
            keep = self._keep_of(purse)
            if purse.key not in asked and purse.room < keep and purse.budget.limit is not None:
                asks.append(Ask({purse.key: 0}, {purse.key: keep - purse.room}, 0))
        return list(groups), asks

    def _groups(self) -> dict[tuple[Key, ...], list[Waiter]]:
        groups: dict[tuple[Key, ...], list[Waiter]] = {}
        for waiter in self.waiting:
            keys = _keys_of(waiter)
            if keys != waiter.keys:
                waiter.keys, waiter.unmet, waiter.unmet_at = (
                    keys,
                    0,
                    -math.inf,
                )  # a new period has money of its own
            groups.setdefault(keys, []).append(waiter)
        return groups

    # ── the answer ────────────────────────────────────────────────────────────────────────────────────────────

    def hear(self, answer: Reply, now: float, waited_at: float | None = None) -> bool:
        """Take in the store's answer, and decide waiters by it. False: this beat was answered before.

        `waited_at`: seconds of the event loop, in which callers wait; `now` if it is omitted.
        """
        beat = self.flying
        if beat is None or answer.beat.token != beat.token:
            return False
        if not answer.is_you:
            self.begin_again()
            return True
        self.flying = None
        # Two beats of spending must last until the next answer arrives, however far away the store is.
        self._span_s = self._beat_s + min(now - self._sent_at, TRIP_S_MAX)
        self._number, self._last_token = beat.number, beat.token
        self._recalled = answer.recalled
        self._take_answer(answer, beat, now)
        self._decide(answer, now, now if waited_at is None else waited_at)
        if any(self.purses[key].room > 0 for key in answer.recalled if key in self.purses):
            self._ring()  # what is recalled goes home now
        if beat.is_last:
            self.begin_again()  # if it does continue, its totals must not be added to those that have ended
        return True

    def _take_answer(self, answer: Reply, beat: Beat, now: float) -> None:
        for key, told in beat.totals.items():
            purse = self.purses[key]
            purse.take_granted(answer.granted.get(key, 0))
            purse.confirm(told)
        # By our own clock on arrival: late by one trip, and never early.
        self._store_ms, self._heard_at = answer.now_ms, now
        for budget in self.budgets.values():
            self._open(budget, now)
        for key, purse in list(self.purses.items()):
            purse.low = self._keep_of(purse) // 3  # after a beat of steady spending half of it is left
            if purse.budget.purse is not purse and purse.is_settled():
                del self.purses[key]

    def _decide(self, answer: Reply, now: float, waited_at: float) -> None:
        unmet = self._unmet(answer)
        before, self.waiting = self.waiting, []
        for waiter in before:
            # A period that ended while the beat was on its way has no money left, and says nothing about the next one.
            told = unmet.get(waiter.keys) if waiter.keys == _keys_of(waiter) else None
            verdict = self._verdict(waiter, told, now, waited_at)
            if verdict is None:
                self.waiting.append(waiter)
            else:
                waiter.decided(verdict)
        if self.waiting and not unmet and not answer.frozen:
            self._ring()

    def _unmet(self, answer: Reply) -> dict[tuple[Key, ...], tuple[Met, int, Key | None]]:
        """What each set of budgets was answered, for its first waiter's amount. A freeze says nothing about that."""
        if answer.frozen:
            return {}
        asked = zip(self._groups_asked, answer.beat.asks, answer.met, answer.short, strict=False)
        return {keys: (met, ask.amount, short) for keys, ask, met, short in asked if met is not Met.YES}

    def _verdict(
        self, waiter: Waiter, unmet: tuple[Met, int, Key | None] | None, now: float, waited_at: float
    ) -> Hold | Refusal | None:
        hold = self.hold(waiter.budgets, waiter.amount, now)
        if hold is not None or unmet is None:
            return hold
        met, amount, waiter.short = unmet
        if waiter.amount < amount:
            return None  # an unmet need also decides for callers that need as much or more
        if met is Met.NEVER:
            return Refusal.NEVER
        if waited_at - waiter.unmet_at >= self._beat_s:
            # Other calls make beats go out early. Three of them within a moment leave recalled money no time to arrive.
            waiter.unmet, waiter.unmet_at = waiter.unmet + 1, waited_at
        return Refusal.NOT_MET if waiter.unmet >= waiter.patience else None

    # ── another name ──────────────────────────────────────────────────────────────────────────────────────────

    def begin_again(self) -> None:
        """Continue under another name: this one is another copy's, or was written off."""
        self._rename()
        for purse in self.purses.values():
            purse.begin_again()
        self._ring()

    def empty(self) -> None:
        """In a forked child: what was granted is the parent's, and so are the waiting callers."""
        self._rename()
        self.waiting, self.purses = [], {}
        for budget in self.budgets.values():
            before = budget.purse
            budget.purse = self.purses[before.key] = Purse(budget, before.key)
            budget.purse.elsewhere = before.elsewhere + before.spent

    def _rename(self) -> None:
        self.name, self._number, self._last_token, self.flying = self._draw(), 0, "", None
        self._recalled = frozenset()


def _keys_of(waiter: Waiter) -> tuple[Key, ...]:
    """The purses that it waits for, in the current periods."""
    return tuple([budget.purse.key for budget in waiter.budgets])
