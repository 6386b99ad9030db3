"""A limit on tokens per minute: a call takes the most that it can need, and returns what it did not use.

A call's tokens count from the moment it takes them, as providers count them. A call that may need more than the whole
limit can never be made.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from koo.options import NEVER
from koo.policies.hand import Hand
from koo.policies.limiter import SlidingCount


class TokenLimit:
    """At most `limit` tokens in any minute. `waiting`: the needs of the callers that wait for the store, in order.

    `ask(deadline)` waits for the store's reply; None if the limit is not shared. `refused_at`: when a call was last
    refused because too few tokens were left. Calls that need fewer tokens may have passed at the same time.
    """

    __slots__ = ("ask", "count", "refused_at", "waiting")

    def __init__(self, limit: int, now: float) -> None:
        self.count = SlidingCount("tokens a minute", limit, 60.0, now)
        self.ask: Callable[[float], Awaitable[None]] | None = None
        self.waiting: list[int] = []
        self.refused_at: float | None = None

    @property
    def _hand(self) -> Hand | None:
        hand = self.count.hand
        return hand if isinstance(hand, Hand) else None

    def take(self, tokens: int, now: float) -> bool:
        """Take this many tokens, or none if there are too few."""
        # Both bounds are checked before anything is booked: the limit's own window, and the units that the store has
        # leased to this process. If tokens were booked in one and then refused by the other, they would be lost for a
        # minute.
        count, hand = self.count, self._hand
        count.roll(now)
        if count.used + tokens > count.limit or (hand is not None and not hand.has(tokens, now, count.used)):
            return False
        count.used += tokens
        if hand is not None:
            hand.book(tokens)
        return True

    def settle(self, taken: int, used: int, taken_at: float) -> None:
        """End a call that took `taken` tokens at `taken_at` and used `used` of them."""
        # The bound was an estimate, and a provider may count more. The excess is booked although it may exceed the
        # limit: it has been used, and the next calls must wait for it. What was not used is returned to the sub-bucket
        # that it was taken from. If it were subtracted from the current one, it would free tokens that other calls have
        # just used.
        count, hand = self.count, self._hand
        if used > taken:
            count.used += used - taken
            if hand is not None:
                hand.book(used - taken)
        elif used < taken:
            count.refund(taken_at, taken - used)
            if hand is not None:
                hand.refund(taken - used, taken_at)

    def lacks(self, tokens: int, now: float) -> bool:
        """Whether this many tokens must be requested from the store."""
        # The store is not queried if this process's own use alone fills the limit: then only time can help, and a trip
        # would be wasted.
        count, hand = self.count, self._hand
        count.roll(now)
        if hand is None or count.used + tokens > count.limit:
            return False
        return not hand.has(tokens, now, count.used) and hand.may_ask(now)

    def usable_at(self, tokens: int, now: float) -> float:
        """When this many tokens may be available; infinite if that exceeds the limit."""
        count, hand = self.count, self._hand
        if tokens > count.limit:
            return NEVER
        count.roll(now)
        at = count.usable_at(now, tokens)
        # If enough tokens are in hand, only this process's own window decides. Otherwise the other processes count
        # too: while the store is unreachable, this process's use must fall far enough below the share, and while it is
        # reachable, its last reply says when tokens will be free.
        if hand is None or hand.has(tokens, now, count.used):
            return at
        if hand.is_alone:
            return max(at, count.usable_below(now, hand.share - tokens + 1))
        return max(at, now, hand.shut_until)

    def comes_home_at(self, tokens: int, now: float) -> float:
        """When units may arrive from other processes, or from a store that has just become unreachable; else
        infinite."""
        count, hand = self.count, self._hand
        count.roll(now)
        if hand is None or count.used + tokens > count.limit or hand.has(tokens, now, count.used):
            return NEVER
        return NEVER if hand.may_ask(now) else hand.comes_home_at(now)

    def clear(self, now: float, *, is_told: bool = False) -> None:
        """An operator's reset of the limit. `is_told`: another process reports it to the store."""
        if self.count.hand is not None:
            self.count.hand.clear(None if is_told else self.count.used)
        self.count.clear(now)

    def hands(self) -> list[Hand]:
        """This process's units, if the limit is fleet-wide."""
        hand = self._hand
        return [] if hand is None else [hand]

    def leased(self, now: float) -> list[tuple[SlidingCount, Hand]]:
        """The count with its units, if the limit is fleet-wide."""
        self.count.roll(now)
        hand = self._hand
        return [] if hand is None else [(self.count, hand)]

    def wanted(self) -> tuple[int, int]:
        """What the first caller that waits for the store needs, and what all of them need together."""
        return (self.waiting[0], sum(self.waiting)) if self.waiting else (0, 0)
