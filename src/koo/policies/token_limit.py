"""A limit on tokens per minute: a call takes the most that it can need, and gives back what it did not use.

A call's tokens count from when it takes them, as its provider counts them. A call that may need more than the whole
limit can never be made.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from koo.options import NEVER
from koo.policies.hand import Hand
from koo.policies.limiter import SlidingCount


class TokenLimit:
    """At most `limit` tokens in any minute. `waiting`: what callers waiting for the store need, the first one first.

    `ask(deadline)` waits for the store's answer; None: the limit is this process's own. `refused_at`: when a call was
    last refused, for want of tokens; a call may be when others, which need fewer, are not.
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
        """Take this many, or nothing."""
        count, hand = self.count, self._hand
        count.roll(now)
        if count.used + tokens > count.limit or (hand is not None and not hand.has(tokens, now, count.used)):
            return False
        count.used += tokens
        if hand is not None:
            hand.book(tokens)
        return True

    def settle(self, taken: int, used: int, taken_at: float) -> None:
        """Of what was taken at `taken_at`, `used` was used."""
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
        """Whether the store has yet to say if there are this many."""
        count, hand = self.count, self._hand
        count.roll(now)
        if hand is None or count.used + tokens > count.limit:
            return False
        return not hand.has(tokens, now, count.used) and hand.may_ask(now)

    def usable_at(self, tokens: int, now: float) -> float:
        """When this many may be available; never if that exceeds the limit."""
        count, hand = self.count, self._hand
        if tokens > count.limit:
            return NEVER
        count.roll(now)
        at = count.usable_at(now, tokens)
        if hand is None or hand.has(tokens, now, count.used):
            return at
        if hand.is_alone:
            return max(at, count.usable_below(now, hand.share - tokens + 1))
        return max(at, now, hand.shut_until)

    def comes_home_at(self, tokens: int, now: float) -> float:
        """When what other processes hold, or a store just lost could grant, may be here; never if nothing may come."""
        count, hand = self.count, self._hand
        count.roll(now)
        if hand is None or count.used + tokens > count.limit or hand.has(tokens, now, count.used):
            return NEVER
        return NEVER if hand.may_ask(now) else hand.comes_home_at(now)

    def clear(self, now: float, *, is_told: bool = False) -> None:
        """An operator resets the limit. `is_told`: another process reports it to the store."""
        if self.count.hand is not None:
            self.count.hand.clear(None if is_told else self.count.used)
        self.count.clear(now)

    def hands(self) -> list[Hand]:
        """The leased part."""
        hand = self._hand
        return [] if hand is None else [hand]

    def leased(self, now: float) -> list[tuple[SlidingCount, Hand]]:
        """The count, if it is fleet-wide."""
        self.count.roll(now)
        hand = self._hand
        return [] if hand is None else [(self.count, hand)]

    def wanted(self) -> tuple[int, int]:
        """What the first caller waiting for the store needs, and all of them together."""
        return (self.waiting[0], sum(self.waiting)) if self.waiting else (0, 0)
