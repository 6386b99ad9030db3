"""The day's units in hand: a daily limit is a purse of units (`treasury.py`), spent one by one as calls are admitted.

A unit is spent when it is taken. If its call is never made, the next call of the same day uses the unit, because the
total that a process reports as spent must never shrink. While calls arrive, a few units stay in the purse, so that not
every call has to wait for the store.
"""

from __future__ import annotations

from collections.abc import Callable

from koo.options import NEVER
from koo.policies.purse import Budget, Purse

FLOAT_MAX = 10
"""How many units stay in the purse while calls arrive: ten calls then cost one trip to the store instead of ten."""
FLOAT_PART = 100
"""At most a hundredth of the limit stays: the units of a process that is killed are lost for the rest of the day."""
AGAIN_S = 2.0
"""How long after a refusal the store is queried again. Two beats: by then, recalled units have been returned."""


class DayHand:
    """This process's units of a daily limit. `is_away()`: whether the store is unreachable; `ring()` requests a beat.

    `budget` is the ledger's, with today's purse; `roll` moves it on to the next day's.
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
        # Units that were spent in the books but whose calls were never made, and the purse (the day) they belong to.
        self._credit = 0
        self._of: Purse | None = None

    def elsewhere(self, now: float) -> int:
        """Always 0: the day's count already covers all processes."""
        return 0

    @property
    def share(self) -> int:
        """How much of the limit this process may use while the store is unreachable: all that others had not used."""
        return max(0, (self.budget.limit or 0) - self.budget.purse.elsewhere)

    @property
    def is_alone(self) -> bool:
        """Whether the store is unreachable and the purse is used up."""
        return self._is_away() and self._in_hand() <= 0

    @property
    def sentence(self) -> str:
        """A sentence for people: that this process counts on its own, and why."""
        return "the state store is unreachable, so this process counts on its own"

    def _in_hand(self) -> int:
        purse = self.budget.purse
        return purse.room + (self._credit if purse is self._of else 0)

    def units(self, now: float, used: int) -> tuple[int, float]:
        """How many units may be taken, and until when."""
        # This comes first, because yesterday's purse may still have room, and a call of today must not be booked
        # there.
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
        """Book `units` that were taken."""
        purse = self.budget.purse
        # Units of calls that were never made come first. They are already in `spent`, and must not be added again.
        if purse is self._of:
            credit = min(units, self._credit)
            self._credit -= credit
            units -= credit
        if not units:
            return
        purse.spent += units
        # There was no room for these units: they were taken while the store was unreachable. They are booked as
        # `over`, like a call's cost above its bound, so that the treasury counts them without a grant.
        if units > purse.room:
            purse.over += units - max(0, purse.room)
            purse.room = min(0, purse.room)
        else:
            purse.room -= units
        purse.bound = max(purse.bound, 1)
        purse.least = min(FLOAT_MAX, (self.budget.limit or 0) // FLOAT_PART)
        if purse.room < purse.low:
            purse.low = 0  # ring once per beat; the next reply sets it again
            self._ring()

    def refund(self, units: int, taken_at: float) -> None:
        """`units` were taken but never used: the next calls of this day use them."""
        purse = self.budget.purse
        # A unit that was taken yesterday belongs to yesterday: as a credit it would admit a call beyond today's limit.
        if taken_at < self.budget.ends_at - 86_400:
            return
        self._credit = units + (self._credit if purse is self._of else 0)
        self._of = purse

    def may_ask(self, now: float) -> bool:
        """Whether a call that found no unit may wait for the store's reply."""
        return not self._is_away() and now >= self.shut_until

    def comes_home_at(self, now: float) -> float:
        """When units that other processes hold may arrive here; infinite if they hold none."""
        return self.shut_until if self.is_lent else NEVER

    def refused(self, now: float, *, is_used_up: bool) -> None:
        """The store refused: nothing is left (`is_used_up`), or other processes hold what is left."""
        self.shut_until = self.budget.ends_at if is_used_up else now + AGAIN_S
        self.is_lent = not is_used_up

    def clear(self, used: int | None) -> None:
        """An operator's reset of the `used` units that were counted; None if another process reports it."""
        self.shut_until = -NEVER
        if used:
            # `spent` only grows, so the reset sends the units `back`. One process does it for all: if each did, the
            # fleet would be given the units back once per process.
            self.budget.purse.back += used
            self._ring()

    def rest(self, now: float, idle_s: float) -> None:
        """Return the purse's units to the store after `idle_s` without a call."""
        purse = self.budget.purse
        if purse.least and now - self.last_at >= idle_s:
            purse.least = 0
            self._ring()
