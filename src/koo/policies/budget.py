"""A day's money, in memory: settled + held ≤ limit at every instant.

Before a call its worst case is held; after it, the hold ends once: settled at what was billed, or released. Between
the two nobody else can spend that money, so the limit is kept under any concurrency, and not just "about kept": a
check that only looks at what was spent lets every call pass that starts before the first bill comes in.

What may happen at the edges:

* A bill above its hold is booked whole. The day is then overspent, and `hold` refuses until the day is over: what was
  billed is owed, and a lower number would be a lie.
* What costs nothing is never refused: a free service goes on when the money is gone.
* A hold belongs to the day in which it was made. Each hold points at its day, so a settlement after midnight books to
  yesterday, and today begins at zero; a day that nobody points at any more is forgotten by itself.
* The day ends at `rolls_at`, in the monotonic time that the caller hands in, so that no call reads a wall clock. The
  two clocks drift apart over weeks, and people set the wall clock: a tick `anchor`s the end again. A day never goes
  back: else a clock that somebody corrects would hand out the same day's money twice.

Sums are made in a context of their own: in the caller's context, which any library may have set to six digits, money
would be rounded away.
"""

from __future__ import annotations

from decimal import Context, Decimal

from koo.options import DAY_S

ZERO = Decimal(0)
AMOUNT_USD_MAX = Decimal(10**12)

_exact = Context(prec=200)
_plus = _exact.add
_minus = _exact.subtract


class Day:
    """What one UTC day has seen: `number` counts days since 1970."""

    __slots__ = ("held_usd", "number", "settled_usd")

    def __init__(self, number: int, settled_usd: Decimal = ZERO) -> None:
        self.number = number
        self.settled_usd = settled_usd
        self.held_usd = ZERO


class Held:
    """Money put aside for one call, of the `day` in which it was asked for."""

    __slots__ = ("amount_usd", "day", "ended")

    def __init__(self, day: Day, amount_usd: Decimal) -> None:
        self.day = day
        self.amount_usd = amount_usd
        self.ended = False


class Budget:
    """One service's money. `limit_usd` None is no limit; `rolls_at` is when `today` ends, in monotonic seconds."""

    __slots__ = ("limit_usd", "rolls_at", "today")

    def __init__(
        self, limit_usd: Decimal | None, ends_at: float, day: int, settled_usd: Decimal = ZERO
    ) -> None:
        self.limit_usd = limit_usd
        self.rolls_at = ends_at
        self.today = Day(day, settled_usd)

    def hold(self, amount_usd: Decimal, now: float) -> Held | None:
        """Put `amount_usd` aside, or None: it does not fit into what is left of today.

        Raises ValueError for an amount that is negative or no number.
        """
        if now >= self.rolls_at:
            self.roll(now)
        if not ZERO <= amount_usd <= AMOUNT_USD_MAX:
            raise ValueError(f"an amount of {amount_usd} USD cannot be held")
        today = self.today
        held_usd = _plus(today.held_usd, amount_usd)
        limit_usd = self.limit_usd
        if limit_usd is not None and _plus(today.settled_usd, held_usd) > limit_usd and amount_usd:
            return None
        today.held_usd = held_usd
        return Held(today, amount_usd)

    def settle(self, held: Held, spent_usd: Decimal) -> bool:
        """End a hold at what it cost, to the day of the hold; False: it had ended already, and nothing is booked.

        Raises ValueError for an amount that is negative or no number: then the hold still stands.
        """
        if not ZERO <= spent_usd <= AMOUNT_USD_MAX:
            raise ValueError(f"a cost of {spent_usd} USD cannot be booked")
        if held.ended:
            return False
        held.ended = True
        day = held.day
        day.held_usd = _minus(day.held_usd, held.amount_usd)
        day.settled_usd = _plus(day.settled_usd, spent_usd)
        return True

    def release(self, held: Held) -> bool:
        """End a hold that cost nothing; False: it had ended already."""
        if held.ended:
            return False
        held.ended = True
        held.day.held_usd = _minus(held.day.held_usd, held.amount_usd)
        return True

    def roll(self, now: float) -> None:
        """Begin the day of `now`, if it is a later one."""
        if now >= self.rolls_at:
            days = int((now - self.rolls_at) // DAY_S) + 1
            self.today = Day(self.today.number + days)
            self.rolls_at += days * DAY_S

    def anchor(self, ends_at: float, day: int) -> None:
        """Tell it anew which day it is and when that ends."""
        if day > self.today.number:
            self.today = Day(day)
        if day == self.today.number:
            self.rolls_at = ends_at
