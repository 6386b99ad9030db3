"""How many calls may run at once, and who is next.

A slot is handed from the call that leaves to the one that has waited longest: a newcomer cannot barge in, so no waiter
starves. It is handed on in the same step in which it becomes free, so while one is free no call waits. The guard does
the waiting; here is only a queue of things that can be woken.

After an outage all callers return at once, and what has just recovered falls over again. So a breaker that closes
narrows the slots to the calls running at that moment and a few more; the few double each second until the limit is
reached. Calls of the same service's other models keep their slots: those models have not failed.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

DOUBLES_AFTER_S = 1.0
"""From four calls to a thousand in eight seconds: each step lasts long enough to see slow answers before the next."""
DOUBLINGS_MAX = 30
"""A billion times the first few: above any limit, and small enough to compute."""


class Waiter(Protocol):
    """What stands in the queue: an asyncio future, or a test's own."""

    def done(self) -> bool: ...

    def set_result(self, result: None, /) -> None: ...


class Bulkhead:
    """`used` of `limit`; `line` holds the waiters, longest first. `cap` is less than `limit` while a ramp lasts."""

    __slots__ = ("_base", "_few", "_narrowed_at", "cap", "limit", "line", "used", "widens_at")

    def __init__(self, limit: int) -> None:
        self.limit = self.cap = limit
        self.used = 0
        self.line: deque[Waiter] = deque()
        self._base = self._few = 0
        self._narrowed_at = self.widens_at = 0.0

    def take(self) -> bool:
        """Take a slot if one is free; then no call is waiting."""
        if self.used >= self.cap:
            return False
        self.used += 1
        return True

    def give_back(self) -> None:
        """Hand the slot to the next waiter, or free it."""
        full = self.used >= self.cap
        self.used -= 1
        if full:
            self._hand_out()

    def keep(self) -> None:
        """The slot that is given back next stays taken, until it is given back once more."""
        self.used += 1

    def leave(self, waiter: Waiter, *, granted: bool) -> None:
        """A waiter gives up. If it had just been handed a slot, the slot goes on to the next.
        Dropped silently, that slot would be lost for good, and one after another all of them."""
        if granted:
            self.give_back()
        elif waiter in self.line:
            self.line.remove(waiter)

    def forget(self) -> None:
        """Slots and waiters are gone for good, with their process or their loop."""
        self.used = 0
        self.line.clear()

    # ── the ramp ──────────────────────────────────────────────────────────────────────────────────────────────

    def narrow(self, few: int, now: float) -> None:
        """Begin a ramp: running calls may continue, and `few` more may start; see `widen`."""
        self._base, self._few, self._narrowed_at = self.used, few, now
        self.widen(now)

    def widen(self, now: float) -> None:
        """Raise `cap` to what the ramp allows by now; `widens_at` is when it allows more."""
        doublings = min(int((now - self._narrowed_at) / DOUBLES_AFTER_S), DOUBLINGS_MAX)
        self.cap = min(self.limit, self._base + self._few * 2**doublings)
        self.widens_at = self._narrowed_at + (doublings + 1) * DOUBLES_AFTER_S
        self._hand_out()

    def _hand_out(self) -> None:
        # A waiter that is done was cancelled, and is not awake to give the slot back: it is passed over. `used` is
        # raised here, not when the waiter wakes, because a newcomer could otherwise take the slot in between.
        while self.line and self.used < self.cap:
            waiter = self.line.popleft()
            if not waiter.done():
                self.used += 1
                waiter.set_result(None)
