"""The day's units in hand: a limit per day is a purse of units (`treasury.py`), spent one by one as calls are admitted.

A unit is spent when it is taken. If its call is never made, the next call of the same day uses it, because the total
that a process reports as spent never shrinks. A few units stay in the purse while calls come, so that not every call
has to ask the store.
"""

from __future__ import annotations

from collections.abc import Callable

from koo.options import NEVER
from koo.policies.purse import Budget, Purse

FLOAT_MAX = 10
FLOAT_PART = 100
"""At most a hundredth of the limit: what a killed process had in hand is lost for the day."""
AGAIN_S = 2.0
"""Two beats: by then, what other processes were asked to send home has arrived."""


class DayHand:
    """This process's units of a daily limit. `is_away` says whether the store cannot be asked; `ring` asks it.

    `budget` is the ledger's, with its purse of today; `roll` moves on to tomorrow's.
    """

    __slots__ = ("_credit", "_is_away", "_of", "_ring", "_roll", "budget", "is_lent", "last_at", "shut_until")

    def __init__(
        self,
        budget: Budget,
        *,
        roll: Callable[[float], None],
        ring: Callable[[], None],
        is_away: Callable[[], bool],
    ) -> None:
        self.budget = budget
        self.shut_until = self.last_at = -NEVER
        self.is_lent = False
        self._roll = roll
        self._ring = ring
        self._is_away = is_away
        self._credit = 0
        self._of: Purse | None = None  # the purse that the credit belongs to

    def elsewhere(self, now: float) -> int:
        """Zero: the day's count already covers all processes."""
        return 0

    @property
    def share(self) -> int:
        """How much of the limit this process may use while the store is away: as a default budget does, all of it."""
        return max(0, (self.budget.limit or 0) - self.budget.purse.elsewhere)

    @property
    def is_alone(self) -> bool:
        """Whether the store is away and the purse is used up."""
        return self._is_away() and self._in_hand() <= 0

    @property
    def sentence(self) -> str:
        """The same in words, for people."""
        return "the state store is away, so this process counts by itself"

    def _in_hand(self) -> int:
        purse = self.budget.purse
        return purse.room + (self._credit if purse is self._of else 0)

    def units(self, now: float, used: int) -> tuple[int, float]:
        """How many units may be taken, and until when."""
        if now >= self.budget.ends_at:
            self._roll(now)
        self.last_at = now
        in_hand = self._in_hand()
        if in_hand > 0:
            return in_hand, self.budget.ends_at
        if self._is_away():
            purse = self.budget.purse
            return max(0, self.share - purse.spent), self.budget.ends_at
        return 0, now

    def book(self, units: int) -> None:
        """`units` of those were taken."""
        purse = self.budget.purse
        if purse is self._of:
            credit = min(units, self._credit)
            self._credit -= credit
            units -= credit
        if not units:
            return
        purse.spent += units
        if units > purse.room:
            purse.over += units - max(0, purse.room)
            purse.room = min(0, purse.room)
        else:
            purse.room -= units
        purse.bound = max(purse.bound, 1)
        purse.least = min(FLOAT_MAX, (self.budget.limit or 0) // FLOAT_PART)
        if purse.room < purse.low:
            purse.low = 0  # ring once; the answer sets it again
            self._ring()

    def refund(self, units: int, taken_at: float) -> None:
        """`units` were taken but never used: the next calls of this day use them."""
        purse = self.budget.purse
        if taken_at < self.budget.ends_at - 86_400:
            return
        self._credit = units + (self._credit if purse is self._of else 0)
        self._of = purse

    def may_ask(self, now: float) -> bool:
        """Whether a call that found nothing may wait for the store's answer."""
        return not self._is_away() and now >= self.shut_until

    def comes_home_at(self, now: float) -> float:
        """When units that other processes hold may be here; never where they hold none."""
        return self.shut_until if self.is_lent else NEVER

    def refused(self, now: float, *, is_used_up: bool) -> None:
        """The store refused: other processes hold what is left, or nothing is left."""
        self.shut_until = self.budget.ends_at if is_used_up else now + AGAIN_S
        self.is_lent = not is_used_up

    def clear(self, used: int | None) -> None:
        """An operator resets the `used` units that were counted; None: another process reports it."""
        self.shut_until = -NEVER
        if used:
            # Booked for the whole fleet and taken back by one process: `spent` only grows.
            self.budget.purse.back += used
            self._ring()

    def rest(self, now: float, idle_s: float) -> None:
        """After `idle_s` without a call, the purse's units go home."""
        purse = self.budget.purse
        if purse.least and now - self.last_at >= idle_s:
            purse.least = 0
            self._ring()
