"""How many calls may run at once, and who is next.

A slot is handed from the one who leaves to the one who has waited longest: nobody barges in between, so nobody starves.
It is handed on in the step in which it becomes free, so while one is free nobody waits. Waiting itself is the guard's;
here it is only a line of things that can be woken.

After an outage everybody comes back at once, and what has just recovered falls over again. So a breaker that closes
narrows the slots to what runs at that moment and a few more; the few double each second until the limit is reached.
What other models of the same service have running stays theirs: they have not been ill.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

DOUBLES_AFTER_S = 1.0
"""From four calls to a thousand in eight seconds: each step lasts long enough to see slow answers before the next."""
DOUBLINGS_MAX = 30


class Waiter(Protocol):
    """What stands in line: an asyncio future, or a test's own."""

    def done(self) -> bool: ...

    def set_result(self, result: None, /) -> None: ...


class Bulkhead:
    """`used` of `limit`; `line` holds those who wait, longest first. `cap` is less than `limit` while a ramp lasts."""

    __slots__ = ("_base", "_few", "_narrowed_at", "cap", "limit", "line", "used", "widens_at")

    def __init__(self, limit: int) -> None:
        self.limit = self.cap = limit
        self.used = 0
        self.line: deque[Waiter] = deque()
        self._base = self._few = 0
        self._narrowed_at = self.widens_at = 0.0

    def take(self) -> bool:
        """A slot now, if one is free: then nobody waits."""
        if self.used >= self.cap:
            return False
        self.used += 1
        return True

    def give_back(self) -> None:
        """Hand the slot to the next in line, or free it."""
        full = self.used >= self.cap
        self.used -= 1
        if full:
            self._hand_out()

    def keep(self) -> None:
        """The slot that is given back next stays taken, until it is given back once more."""
        self.used += 1

    def leave(self, waiter: Waiter, *, granted: bool) -> None:
        """A waiter gives up. If it had just been handed a slot, the slot goes on to the next."""
        if granted:
            self.give_back()
        elif waiter in self.line:
            self.line.remove(waiter)

    def forget(self) -> None:
        """Those that have a slot or wait for one are gone for good: with their process, or with their loop."""
        self.used = 0
        self.line.clear()

    # ── the ramp ──────────────────────────────────────────────────────────────────────────────────────────────

    def narrow(self, few: int, now: float) -> None:
        """Begin a ramp: what runs now may run on, and `few` more; see `widen`."""
        self._base, self._few, self._narrowed_at = self.used, few, now
        self.widen(now)

    def widen(self, now: float) -> None:
        """As much of the limit as the ramp allows by now; `widens_at` is when it will allow more."""
        doublings = min(int((now - self._narrowed_at) / DOUBLES_AFTER_S), DOUBLINGS_MAX)
        self.cap = min(self.limit, self._base + self._few * 2**doublings)
        self.widens_at = self._narrowed_at + (doublings + 1) * DOUBLES_AFTER_S
        self._hand_out()

    def _hand_out(self) -> None:
        while self.line and self.used < self.cap:
            waiter = self.line.popleft()
            if not waiter.done():
                self.used += 1
                waiter.set_result(None)
