"""koo's own limits: calls per minute, hour and day, taken together (all or nothing) and refundable.

"60 a minute" is never 61 in any minute, wherever the minute begins; a token bucket of 60 would let 119 through. So the
minute and the hour are sliding counts in sixty sub-buckets, and a sub-bucket leaves the count only when its *end* is a
whole period ago. The promise holds at every instant, and the price is that a unit becomes free up to one sub-bucket
late. The day is a calendar day in UTC. Its end is passed in as monotonic time, so that no call reads a wall clock.

A call does not check every count. Until the first count rolls, time alone neither returns a unit nor takes one away. So
one check finds how many units may be taken until then. They are *granted ahead*, and each call takes one of them.

A fleet-wide limit has its units *in hand*: leased (`hand.py`), or for the day in a purse. They are one more bound on
what is granted ahead, so a call does not have to check them.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from copy import copy
from typing import Protocol

from koo.errors import Cause
from koo.options import DAY_S, NEVER
from koo.policies.hand import Hand

SUB_BUCKETS = 60
"""A unit becomes free at most a sixtieth of its period late: a second of a minute, a minute of an hour."""
GRANT_MAX = 250
"""How many units are granted ahead at most. CPython caches the integers up to 256; counting down from a larger number
would create an object for each call."""


class InHand(Protocol):
    """A process's part of a shared limit. `shut_until`: when it may get more units."""

    shut_until: float

    def elsewhere(self, now: float) -> int:
        """How many units other processes have used, as last reported, beyond those counted here."""
        ...

    @property
    def share(self) -> int:
        """How much of the limit this process may use when `is_alone`."""
        ...

    @property
    def is_alone(self) -> bool:
        """Whether this process decides on its own, because the store is unreachable."""
        ...

    @property
    def sentence(self) -> str:
        """A sentence for people: that this process decides on its own, and why."""
        ...

    def units(self, now: float, used: int) -> tuple[int, float]:
        """How many may be taken, and until when; `used`: how many this process used in the last period."""
        ...

    def book(self, units: int) -> None:
        """Book `units` that were taken."""
        ...

    def refund(self, units: int, taken_at: float) -> None:
        """`units` were taken but never used."""
        ...

    def comes_home_at(self, now: float) -> float:
        """When units that other processes hold may arrive here; infinite if none can."""
        ...

    def may_ask(self, now: float) -> bool:
        """Whether a call that found no unit may wait for the store's reply."""
        ...

    def clear(self, used: int | None) -> None:
        """An operator's reset of the `used` units that were counted; None if another process reports it."""
        ...


class SlidingCount:
    """At most `limit` in any `period_s`. `rolls_at`: when the count next changes by time alone.

    `hand`: this process's units, if the limit is fleet-wide; `used`: the uses of this process only.
    """

    __slots__ = (
        "_bucket",
        "_bucket_s",
        "_older",
        "_past",
        "hand",
        "limit",
        "name",
        "period_s",
        "rolls_at",
        "used",
    )

    hand: InHand | None

    rolls_at: float
    _older: int

    def __init__(self, name: str, limit: int, period_s: float, now: float) -> None:
        self.name = name
        self.limit = limit
        self.used = 0
        self.hand = None
        self.period_s = period_s
        self._bucket_s = period_s / SUB_BUCKETS
        self._past: list[list[int]] = []  # [bucket number, count], oldest first; empty buckets are not kept
        self._begin(now)

    def roll(self, now: float) -> None:
        """Start the bucket of `now`, and drop the buckets that ended a whole period ago."""
        if now < self.rolls_at:
            return
        # `_older` is the use before the current bucket began, so the current bucket's own count is a difference, and a
        # call increments a single number.
        current = self.used - self._older
        if current:
            self._past.append([self._bucket, current])
        self._begin(now)
        while self._past and self._past[0][0] < self._bucket - SUB_BUCKETS:
            self.used -= self._past.pop(0)[1]
        self._older = self.used

    def refund(self, taken_at: float, units: int = 1) -> None:
        """Give back what was taken at `taken_at`, if it still counts."""
        bucket = int(taken_at // self._bucket_s)
        if bucket == self._bucket:
            # Fewer if an operator has cleared the count in between. That use is already forgotten; if it were
            # subtracted again, the count would become negative and admit too many calls.
            self.used -= min(units, self.used - self._older)
            return
        for place, past in enumerate(self._past):
            if past[0] == bucket:
                gone = min(units, past[1])
                past[1] -= gone
                self.used -= gone
                self._older -= gone
                # `resets_at` promises a unit when the oldest bucket leaves. An empty one would bring none.
                if not past[1]:
                    del self._past[place]
                return

    def clear(self, now: float) -> None:
        """Forget all use."""
        self.used = 0
        self._past.clear()
        self._begin(now)

    def as_of(self, now: float) -> SlidingCount:
        """A copy of the count, as it is at `now`."""
        one = copy(self)
        one._past = [[*past] for past in self._past]
        one.roll(now)
        return one

    def resets_at(self, now: float) -> float:
        """When at least one unit is free; `now` if one is already free."""
        if self.used < self.limit:
            return now
        oldest = self._past[0][0] if self._past else self._bucket
        return (oldest + SUB_BUCKETS + 1) * self._bucket_s

    def usable_at(self, now: float, units: int) -> float:
        """When this many units will have become free, one after another; infinite for a limit of zero."""
        if not self.limit:
            return NEVER
        # This is for callers in a queue: the first `limit` of them use units that become free from now on. Each of
        # those units returns a whole period and a sub-bucket after its use, and serves the caller `limit` places
        # further back.
        later_s = (units - 1) // self.limit * (SUB_BUCKETS + 1) * self._bucket_s
        return later_s + self._one_usable_at(now, (units - 1) % self.limit + 1)

    def usable_below(self, now: float, limit: int) -> float:
        """When less than `limit` will be in use; infinite if that is impossible."""
        return self._one_usable_at(now, self.limit - limit + 1) if limit > 0 else NEVER

    def _one_usable_at(self, now: float, units: int) -> float:
        missing = self.used + units - self.limit
        if missing <= 0:
            return now
        for bucket, used in self._past:
            missing -= used
            if missing <= 0:
                return (bucket + SUB_BUCKETS + 1) * self._bucket_s
        return (self._bucket + SUB_BUCKETS + 1) * self._bucket_s

    def ages(self, now: float, units: int) -> list[tuple[float, int]]:
        """The last `units` that were used, newest first: at least how many seconds ago, and how many."""
        # The age is that of the end of the bucket, and the real use was earlier. So a unit may stay in the fleet's
        # window a little too long, which is safe. With too great an age, it would leave the window early.
        found, left = list[tuple[float, int]](), units
        current = (self._bucket, self.used - self._older)
        for bucket, used in (current, *map(tuple, reversed(self._past))):
            count = min(left, used)
            if count > 0:
                found.append((max(0.0, now - (bucket + 1) * self._bucket_s), count))
                left -= count
        return found

    def _begin(self, now: float) -> None:
        self._bucket = int(now // self._bucket_s)
        self._older = self.used
        self.rolls_at = (self._bucket + 1) * self._bucket_s


class DayCount:
    """At most `limit` in a calendar day that ends at `ends_at` (monotonic seconds); `day`: its number in UTC."""

    __slots__ = ("day", "hand", "limit", "name", "rolls_at", "used")

    hand: InHand | None

    def __init__(self, name: str, limit: int, ends_at: float, day: int, used: int = 0) -> None:
        self.name = name
        self.limit = limit
        self.used = used
        self.hand = None
        self.day = day
        self.rolls_at = ends_at

    def roll(self, now: float) -> None:
        if now < self.rolls_at:
            return
        days = int((now - self.rolls_at) // DAY_S) + 1
        self.used = 0
        self.day += days
        self.rolls_at += days * DAY_S

    def as_of(self, now: float) -> DayCount:
        """A copy of the count, as it is at `now`."""
        one = copy(self)
        one.roll(now)
        return one

    def anchor(self, ends_at: float, day: int) -> None:
        """Correct the end of the day: over weeks, monotonic and wall time drift apart, and clocks are set."""
        # A wall clock that was set back by a day changes nothing: with a smaller `day` the count would be emptied
        # twice for the same date.
        if day > self.day:
            self.used = 0
            self.day = day
        if day == self.day:
            self.rolls_at = ends_at

    def refund(self, taken_at: float) -> None:
        if taken_at >= self.rolls_at - DAY_S and self.used > 0:
            self.used -= 1

    def clear(self, now: float) -> None:
        """Forget all use."""
        self.used = 0

    def resets_at(self, now: float) -> float:
        return now if self.used < self.limit else self.rolls_at

    def usable_at(self, now: float, units: int) -> float:
        """When this many units will have become free, one after another; infinite for a limit of zero."""
        if not self.limit:
            return NEVER
        days = max(0, math.ceil((self.used + units) / self.limit) - 1)
        return now if not days else self.rolls_at + (days - 1) * DAY_S

    def usable_below(self, now: float, limit: int) -> float:
        """When less than `limit` will be in use; infinite if that is impossible."""
        return (now if self.used < limit else self.rolls_at) if limit > 0 else NEVER


Count = SlidingCount | DayCount

CAUSES = {
    "requests a minute": Cause.REQUESTS_PER_MINUTE,
    "requests an hour": Cause.REQUESTS_PER_HOUR,
    "requests a day": Cause.REQUESTS_PER_DAY,
    "tokens a minute": Cause.TOKENS_PER_MINUTE,
}
"""The cause of a refusal by the count of this name."""


class Limits:
    """Several counts that are taken as one.

    A check of the counts grants units ahead: `_granted` units fit into all of them until the first of them rolls, and
    `_left` of these remain. What was taken is booked in the counts when `counts` is read.

    `full_until`: when the last of the counts that were full at the last check has a unit again (monotonic seconds). It
    is kept for refusals by an open breaker, for which checking the counts would cost more than all the rest. `waiting`:
    how many callers found no unit in hand and wait for the store. `ask(deadline)` waits for the store's reply; None if
    no count is shared.
    """

    __slots__ = (
        "_counts", "_granted", "_left", "_refusal", "_shut_by", "_shut_until", "_until", "ask", "full_until", "waiting",
    )  # fmt: skip

    def __init__(self, *counts: Count) -> None:
        self._counts = counts
        self.ask: Callable[[float], Awaitable[None]] | None = None
        self._granted = self._left = self.waiting = 0
        self._until = self.full_until = self._shut_until = 0.0
        self._refusal: tuple[str, float, Cause | None] | None = None
        self._shut_by: Count | None = None

    @property
    def counts(self) -> tuple[Count, ...]:
        """The counts as they are now. Read this again after each `take`: the counts may be changed only until the next
        one."""
        # Reading ends the grant: what was taken of it is booked, and the rest is given up. So code that changes a
        # count (a refund, a reset) finds the true numbers, and the next `take` checks the changed ones. If the grant
        # outlived the change, calls would continue with the old numbers.
        self._shut_until = 0.0
        taken = self._granted - self._left
        self._granted = self._left = 0
        if taken:
            for count in self._counts:
                count.used += taken
                if count.hand is not None:
                    count.hand.book(taken)
        return self._counts

    def take(self, now: float) -> Count | None:
        """Take one unit of each count. If one is full, take nothing and return that count."""
        if not self._left or now >= self._until:
            if now < self._shut_until:
                return self._shut_by
            full = self._grant(now)
            if full is not None:
                return full
        self._left -= 1
        return None

    def _grant(self, now: float) -> Count | None:
        """Check the counts and grant units ahead; returns the count that is full, if one is."""
        # The grant is exact, not an estimate. Until the first count rolls, no unit becomes free by the passing of time,
        # and every other change reads `counts`, which ends the grant. If it lasted beyond that moment, units that are
        # free again would be refused. If it were larger than what the fullest count has left, it would admit a 61st
        # call into the minute.
        units, until = GRANT_MAX, NEVER
        for count in self.counts:
            count.roll(now)
            if count.used >= count.limit:
                self.full_until = count.usable_at(now, 1)
                self._refusal, self._shut_by = None, count
                self._shut_until = min(one.rolls_at for one in self._counts)
                return count
            units = min(units, count.limit - count.used)
            until = min(until, count.rolls_at)
            if count.hand is not None:
                in_hand, ends_at = count.hand.units(now, count.used)
                # `_shut_until` is not set here: units can arrive from the store at any moment, not only when a count
                # rolls.
                if in_hand <= 0:
                    self.full_until = _in_hand_at(count, now)
                    return count
                units, until = min(units, in_hand), min(until, ends_at)
        self._granted = self._left = units
        self._until, self.full_until = until, 0.0
        return None

    def refusal(self, now: float) -> tuple[str, float, Cause | None] | None:
        """Why `take` has just found no unit, when one will be free, and which limit it was.

        None if it may find one, or was not called.
        """
        # Nothing can change before the first count rolls, so in a storm of calls only the first refusal is computed.
        if now >= self._shut_until:
            return None
        if self._refusal is None:
            # `full` reads `counts`, which resets `_shut_until`; nothing was changed, so it is put back.
            until = self._shut_until
            full = self.full(now)
            if full is not None:
                self._refusal = self.why(full), self.usable_at(now), CAUSES.get(full.name)
            self._shut_until = until
        return self._refusal

    def lacks(self, now: float) -> bool:
        """Whether no count is full, but a unit must be requested from the store. Takes nothing."""
        is_lacking = False
        for count in self.counts:
            count.roll(now)
            if count.used >= count.limit:
                return False
            hand = count.hand
            if hand is not None and hand.units(now, count.used)[0] <= 0:
                if not hand.may_ask(now):
                    return False
                is_lacking = True
        return is_lacking

    def comes_home_at(self, now: float) -> float:
        """When units may arrive from other processes, or from a store that has just become unreachable; else
        infinite."""
        at = NEVER
        for count in self.counts:
            count.roll(now)
            hand = count.hand
            if count.used >= count.limit:
                return NEVER
            if hand is None or hand.may_ask(now) or hand.units(now, count.used)[0] > 0:
                continue
            home_at = hand.comes_home_at(now)
            if home_at == NEVER:
                return NEVER
            at = home_at if at == NEVER else max(at, home_at)
        return at

    def why(self, full: Count) -> str:
        """The sentence for a refusal by `full`."""
        reason = f"koo's limit of {full.limit} {full.name} is reached"
        if full.hand is not None and full.hand.is_alone:
            reason += f" here: {full.hand.sentence}"
        return reason

    def hands(self) -> list[Hand]:
        """The leased parts. Does not read `counts`, so the units granted ahead to the next calls stay valid."""
        return [count.hand for count in self._counts if isinstance(count.hand, Hand)]

    def leased(self, now: float) -> list[tuple[SlidingCount, Hand]]:
        """The counts whose units are leased, as they are now; what was taken is booked."""
        found = []
        for count in self.counts:
            count.roll(now)
            if isinstance(count, SlidingCount) and isinstance(count.hand, Hand):
                found.append((count, count.hand))
        return found

    def wanted(self) -> tuple[int, int]:
        """How many units the first waiting caller lacks, and how many all waiting callers lack together."""
        return min(1, self.waiting), self.waiting

    def refund(self, taken_at: float) -> None:
        """Give back what `take` took at `taken_at`: the call was never made."""
        if not self._counts:
            return
        for count in self.counts:
            count.refund(taken_at)
            if count.hand is not None:
                count.hand.refund(1, taken_at)

    def clear(self, now: float, *, is_told: bool = False) -> None:
        """An operator's reset of the counts. `is_told`: another process reports it to the store."""
        for count in self.counts:
            if count.hand is not None:
                count.hand.clear(None if is_told else count.used)
            count.clear(now)

    def roll(self, now: float) -> None:
        """Drop what has left the counts by time alone, and update `full_until`: without calls, nothing else does."""
        for count in self.counts:
            count.roll(now)
        self.full_until = max((at for c in self._counts if (at := _one_at(c, now)) > now), default=0.0)

    def usable_at(self, now: float, units: int = 1) -> float:
        """When this many units will have become free in all counts; infinite if a limit is zero."""
        self.roll(now)
        return max(
            (max(count.usable_at(now, units), _in_hand_at(count, now)) for count in self._counts), default=now
        )

    def full(self, now: float) -> Count | None:
        """The full count that stays full longest; None if every count has a unit. Takes nothing."""
        self.roll(now)
        full = [count for count in self._counts if _one_at(count, now) > now]
        return max(full, key=lambda count: _one_at(count, now), default=None)


def _one_at(count: Count, now: float) -> float:
    """When a count has a unit again."""
    return max(count.usable_at(now, 1), _in_hand_at(count, now))


def _in_hand_at(count: Count, now: float) -> float:
    """When a unit of a count may be in hand."""
    hand = count.hand
    if hand is None:
        return now
    units, until = hand.units(now, count.used)
    if units > 0:
        return now
    if hand.is_alone:
        # Two bounds may stop it (`Hand._share`). While its own use is below the share, only the bound of the first
        # period does, which ends at `until`. Otherwise one of its own units has to leave the window.
        at = count.usable_below(now, hand.share)
        return min(until, at) if at > now else until
    return max(now, hand.shut_until)
