"""All purses of one process: calls hold and settle in memory, and a beat in the background updates the treasury.

A beat reports what was spent, returns what is not needed, and requests more; `treasury.py` explains the chain of beats.
A call that finds no room waits for the next reply. All waiters of one set of budgets make one request: all or nothing
of what the first one *needs*, and up to what all of them *want*. If the request were for the whole sum or nothing, a
sum that does not fit would starve every one of them.

Nothing here awaits, reads a clock, or uses a store; `now` is monotonic seconds. The owner of the purses sends `beat()`
to the store when `ring` is called or a beat is due, and passes the reply to `hear()`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from koo.policies.purse import Budget, Hold, Purse, Refusal, Waiter
from koo.policies.treasury import Ask, Beat, Key, Limit, Met, Reply, period_at, starts_ms

TRIP_S_MAX = 2.0
"""A store that takes longer than this to reply counts as unreachable, so longer trips need not be planned for."""
PATIENCE = 3
"""How many beats the need of a patient caller may go unmet while no call holds money. A recall takes two, and one beat
may have been on its way to the store when the caller arrived."""

Unmet = tuple[Met, int, Key | None, bool]
"""Whether it can be met later, the first waiter's amount, the budget that is short, and whether running calls hold
some of it."""


class Purses:
    """All purses of one process, under one name.

    `draw` returns a random word for names and tokens. It must come from the operating system: a fork copies the state
    of a generator in memory, and parent and child would draw the same names. `ring` is called when a beat should be
    sent immediately. `wall_ms` (at `now`) is this machine's clock, which decides what day it is until the first reply
    brings the store's clock.
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
        # How much time really passes between two replies: the pause between beats plus the trip to the store.
        self._span_s = beat_s
        self._sent_at = now
        self._paced_at = -math.inf

    # ── budgets and their periods ─────────────────────────────────────────────────────────────────────────────

    def add(self, budget: Budget, now: float) -> Budget:
        """Add a budget. It replaces one of the same name, and what was spent of that one stays spent."""
        self.budgets[budget.name] = budget
        self._open(budget, now)
        return budget

    def forget(self, name: str) -> bool:
        """Remove a budget if it was not used in this period; returns whether it was removed."""
        # A purse that was granted anything, or that a beat under way has reported, stays: the store has a row with its
        # totals. If the purse were dropped and created again, its totals would start at zero, and the store, which
        # takes the larger number, would ignore all spending up to the old total.
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
        """The store's clock as last received, plus the monotonic time that has passed since."""
        return self._store_ms + int((now - self._heard_at) * 1000)

    def roll(self, budgets: Iterable[Budget], now: float) -> None:
        """Move each budget whose period is over on to the purse of the current period."""
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
        # All are checked before the first is booked, and nothing is awaited in between, so no other call can take the
        # room and no partial hold ever has to be undone.
        for budget in budgets:
            if now >= budget.ends_at:
                self._open(budget, now)
            if budget.purse.room < amount and budget.limit is not None:
                return None
        return self._held(budgets, amount, ())

    def hold_without(self, budgets: tuple[Budget, ...], amount: int, now: float) -> Hold | None:
        """Like `hold`, while the store is unreachable: a default budget goes on in memory, a set one does not."""
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
                if amount > purse.bound:  # noqa: PLR1730 - every guarded call passes here; `max` would cost one more call
                    purse.bound = amount
                # Request more while there is still room, so that no call has to wait for the store. Zero makes this
                # ring once per beat; the next reply sets `low` again.
                if purse.room < purse.low:
                    purse.low = 0
                    self._ring()
        return Hold(tuple([budget.purse for budget in budgets]), amount, without)

    def shrink(self, hold: Hold, amount: int) -> None:
        """Reduce a hold to `amount`, the call's new bound; the difference is free again. A larger one changes
        nothing."""
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
        """Book what a call cost, in the periods in which it was held. Settling a hold again changes nothing."""
        bound, purses, without = hold.amount, hold.purses, hold.without
        # The hold is emptied first, because a cancellation and a late result may both settle it.
        hold.purses = ()
        for purse in purses:
            purse.held -= bound
            purse.spent += cost
            # A cost above the bound is booked as `over`, which the treasury adds to what is granted. If it were taken
            # from the room, the room could become negative, and other calls would be refused because of a wrong price.
            if cost > bound:
                purse.above += cost - bound
                purse.over += cost - bound
            elif without and purse in without:
                purse.back += bound - cost
            else:
                purse.room += bound - cost
            # The last call has ended. The room that the purse would not keep is returned now, not with the next regular
            # beat: if the process were killed within that second, the amount would stay booked for the whole period.
            if not purse.held and purse.room > 0 and not purse.keep():
                self._ring()

    def release(self, hold: Hold) -> None:
        """End a hold of a call that was not billed."""
        self.settle(hold, 0)

    def count(self, budget: Budget, period: int, amount: int) -> None:
        """Count spending without a limit, in a period that the caller chooses; a negative amount takes some back."""
        key = Key(budget.name, period)
        purse = self.purses.setdefault(key, Purse(budget, key))
        # `spent` and `over` only grow, because the store keeps the larger number it has seen. What is taken back is
        # therefore added to `back`.
        if amount < 0:
            purse.back -= amount
        else:
            purse.spent += amount
            purse.over += amount

    # ── waiting ───────────────────────────────────────────────────────────────────────────────────────────────

    def wait(self, waiter: Waiter) -> None:
        """Queue a call that found no room, and request a beat."""
        self.waiting.append(waiter)
        self._ring()

    def leave(self, waiter: Waiter) -> None:
        """Remove a call that no longer waits: it was cancelled, or its deadline has passed."""
        if waiter in self.waiting:
            self.waiting.remove(waiter)

    def refuse_all(self, why: Refusal) -> None:
        """Refuse all waiters."""
        waiting, self.waiting = self.waiting, []
        for waiter in waiting:
            waiter.decided(why)

    def decide_without(self, now: float) -> None:
        """The store is unreachable: waiters continue in memory if their budgets allow it; the others are refused."""
        waiting, self.waiting = self.waiting, []
        for waiter in waiting:
            waiter.decided(self.hold_without(waiter.budgets, waiter.amount, now) or Refusal.AWAY)

    # ── the beat ──────────────────────────────────────────────────────────────────────────────────────────────

    def has_news(self) -> bool:
        """Whether there is anything to report to the store, to request or to return."""
        return bool(self.waiting) or any(purse.has_news() for purse in self.purses.values())

    def may_send_home(self, purse: Purse) -> bool:
        """Whether the next beat may return some of the purse's room. Only the beat itself computes how much must stay
        for the pace."""
        stays = purse.budget.purse is purse and purse.key not in self._recalled
        return purse.room > (purse.least if stays else 0)

    def send_home(self) -> None:
        """Prepare to end the process: from the next beat on, it keeps only what calls hold."""
        self._recalled = frozenset(self.purses)
        for purse in self.purses.values():
            purse.least = 0

    def may_end(self) -> bool:
        """Whether a last beat makes sense: the store knows this name, and no call holds money or waits for it."""
        is_known = self._number > 0 or self.flying is not None
        return is_known and not self.waiting and not any(purse.held for purse in self.purses.values())

    def beat(self, now: float, *, is_last: bool = False) -> Beat:
        """The next beat, or the same one again until it is answered. `is_last`: the process ends with it if it can."""
        # A beat is repeated unchanged, although the totals have grown since. If its reply was lost, the store has it
        # already and recognises it by the token alone. If the repeat had newer totals, the store would acknowledge them
        # without reading them, and `confirm` would mark them as reported.
        if self.flying is not None:
            return self.flying
        self._take_paces(now)
        self.roll(self.budgets.values(), now)
        for purse in self.purses.values():
            # Returned room leaves the purse before it is reported. If it were reported first, a call could spend it
            # here while the reply is on its way, after the store has granted it to another process.
            purse.send_back(self._keep_of(purse))
        self._groups_asked, asks = self._asks()
        asked = {key for ask in asks for key in ask.need}
        # The beat reports all purses of the current period, not only the changed ones. If the store was replaced by an
        # older copy of itself, this one beat restores everything that it has lost about this process.
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
            return  # an early beat: what was spent since the last one says little about the spending of a whole beat
        self._paced_at = now
        for purse in self.purses.values():
            purse.take_pace(beats if math.isfinite(beats) else 1.0)

    def _keep_of(self, purse: Purse) -> int:
        is_over = purse.budget.purse is not purse
        return 0 if is_over or purse.key in self._recalled else purse.keep()

    def _asks(self) -> tuple[list[tuple[Key, ...]], list[Ask]]:
        """One request for each set of budgets with waiters (with the keys of the sets), then one for each purse that is
        low.

        A purse that occurs in several sets gets its extra room for the pace only once, with the first of them.
        """
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
                # A new period has begun, with a limit of its own: beats that went unmet in the old one do not count.
                waiter.keys, waiter.unmet, waiter.unmet_at = keys, 0, -math.inf
            groups.setdefault(keys, []).append(waiter)
        return groups

    # ── the answer ────────────────────────────────────────────────────────────────────────────────────────────

    def hear(self, answer: Reply, now: float, waited_at: float | None = None) -> bool:
        """Process the store's reply, and decide waiters by it. False: this beat has been answered before.

        `waited_at`: the event loop's time, by which callers wait; `now` if it is omitted.
        """
        # A beat that timed out was sent again, and now both replies arrive. The second must not be taken: the next
        # beat may be under way by then, and this would end it unread.
        beat = self.flying
        if beat is None or answer.beat.token != beat.token:
            return False
        if not answer.is_you:
            self.begin_again()
            return True
        self.flying = None
        # The room for two beats must last until the next reply arrives, so a beat's length includes the trip to a
        # distant store.
        self._span_s = self._beat_s + min(now - self._sent_at, TRIP_S_MAX)
        self._number, self._last_token = beat.number, beat.token
        self._recalled = answer.recalled
        # Grants first, then decisions: whether a waiter passes depends on the room that this very reply has brought.
        self._take_answer(answer, beat, now)
        self._decide(answer, now, now if waited_at is None else waited_at)
        if any(self.purses[key].room > 0 for key in answer.recalled if key in self.purses):
            self._ring()  # return recalled money immediately: a caller in another process waits for it
        if beat.is_last:
            # The store has merged this name's totals into the purse of all ended processes. If this process goes on
            # after all, it needs another name: its totals would otherwise be counted a second time.
            self.begin_again()
        return True

    def _take_answer(self, answer: Reply, beat: Beat, now: float) -> None:
        for key, told in beat.totals.items():
            purse = self.purses[key]
            purse.take_granted(answer.granted.get(key, 0))
            purse.confirm(told)
        # The store read its clock before the reply travelled here, so this clock is late by the trip and never early.
        # A process never sends a request for a period that has not begun by the store's clock.
        self._store_ms, self._heard_at = answer.now_ms, now
        for budget in self.budgets.values():
            self._open(budget, now)
        for key, purse in list(self.purses.items()):
            # Steady spending leaves half of what is kept after one beat, so a third is reached only if spending is
            # faster than planned. Then the next beat is sent early.
            purse.low = self._keep_of(purse) // 3
            # A purse of an old period is dropped only when the store has everything: it may still hold a call that
            # began before midnight.
            if purse.budget.purse is not purse and purse.is_settled():
                del self.purses[key]

    def _decide(self, answer: Reply, now: float, waited_at: float) -> None:
        unmet = self._unmet(answer)
        # Each waiter tries to hold in the order of arrival, so the oldest gets what the reply has brought, and those
        # that stay keep their places in the queue.
        before, self.waiting = self.waiting, []
        for waiter in before:
            # If the period ended while the beat was on its way, "unmet" is true of the old period only. The waiter is
            # decided by the new one.
            told = unmet.get(waiter.keys) if waiter.keys == _keys_of(waiter) else None
            verdict = self._verdict(waiter, told, now, waited_at)
            if verdict is None:
                self.waiting.append(waiter)
            else:
                waiter.decided(verdict)
        # Every need was met, so more may be available: request it for the remaining waiters now. After an unmet need
        # the next due beat is early enough, and an immediate request would only repeat the refusal.
        if self.waiting and not unmet and not answer.frozen:
            self._ring()

    def _unmet(self, answer: Reply) -> dict[tuple[Key, ...], Unmet]:
        """The unmet requests by set of budgets. Empty while the store is frozen."""
        # A frozen store grants nothing to any process, which does not mean that nothing is left: no caller is refused.
        if answer.frozen:
            return {}
        asked = zip(self._groups_asked, answer.beat.asks, answer.met, answer.short, strict=False)
        return {
            keys: (met, ask.amount, short, short is not None and answer.standings[short].held > 0)
            for keys, ask, met, short in asked
            if met is not Met.YES
        }

    def _verdict(
        self, waiter: Waiter, unmet: Unmet | None, now: float, waited_at: float
    ) -> Hold | Refusal | None:
        hold = self.hold(waiter.budgets, waiter.amount, now)
        if hold is not None or unmet is None:
            return hold
        met, amount, waiter.short, is_held = unmet
        if waiter.amount < amount:
            return None  # the reply is about a larger amount; a smaller one may still fit
        if met is Met.NEVER:
            return Refusal.NEVER
        # Running calls seldom cost as much as they hold, so a patient caller waits for them until its own deadline.
        # Otherwise a long list would be refused by its own calls, with most of the budget unspent.
        if waiter.patience > 1 and is_held:
            return None
        if waited_at - waiter.unmet_at >= self._beat_s:
            # An unmet beat counts at most once per beat's length. Other calls cause early beats, and three replies
            # within a few milliseconds would use up the patience before recalled money can arrive.
            waiter.unmet, waiter.unmet_at = waiter.unmet + 1, waited_at
        return Refusal.NOT_MET if waiter.unmet >= waiter.patience else None

    # ── another name ──────────────────────────────────────────────────────────────────────────────────────────

    def begin_again(self) -> None:
        """Continue under a new name, because another copy uses the old one or an operator wrote it off."""
        self._rename()
        for purse in self.purses.values():
            purse.begin_again()
        self._ring()

    def empty(self) -> None:
        """In a forked child: start with empty purses. The grants, the running calls and the waiters are the
        parent's."""
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
    """The keys of the purses that a caller is waiting for, in the current periods."""
    return tuple([budget.purse.key for budget in waiter.budgets])
