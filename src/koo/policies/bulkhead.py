"""The bulkhead: how many calls may run at once, with a fair queue for the others.

A slot passes from the call that leaves to the call that has waited longest. A newcomer cannot overtake the queue, so no
waiter starves. The slot passes in the same step in which it becomes free, so no call waits while a slot is free. The
guard does the waiting; this module only has a queue of objects that can be woken.

After an outage all callers return at the same time, and a backend that has just recovered may fail again under their
load. So a breaker that closes starts a ramp: it narrows the slots to the calls running at that moment and a few extra
ones. The number of extra slots doubles every second until the limit is reached. Calls to the service's other models
keep their slots, because those models have not failed.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

DOUBLES_AFTER_S = 1.0
"""How often the ramp doubles: from four calls to a thousand in eight seconds. Each step lasts long enough for slow
responses to show before the next one."""
DOUBLINGS_MAX = 30
"""A billion times the first few: above any limit, and small enough to compute."""


class Waiter(Protocol):
    """An entry of the queue: an asyncio future, or a test's own object."""

    def done(self) -> bool: ...

    def set_result(self, result: None, /) -> None: ...


class Bulkhead:
    """`used` slots of `limit` are taken. `line`: the waiters, oldest first. `cap`: below `limit` during a ramp."""

    __slots__ = ("_base", "_few", "_narrowed_at", "cap", "limit", "line", "used", "widens_at")

    def __init__(self, limit: int) -> None:
        self.limit = self.cap = limit
        self.used = 0
        self.line: deque[Waiter] = deque()
        self._base = self._few = 0
        self._narrowed_at = self.widens_at = 0.0

    def take(self) -> bool:
        """Take a slot if one is free."""
        # The queue need not be checked. A free slot is handed out in the step that frees it, so if one is free, the
        # queue is empty, and this call overtakes no waiter.
        if self.used >= self.cap:
            return False
        self.used += 1
        return True

    def give_back(self) -> None:
        """Pass the slot to the next waiter, or free it."""
        # A call can be waiting only if all slots were taken. Below the cap the queue is empty, and nothing is woken.
        full = self.used >= self.cap
        self.used -= 1
        if full:
            self._hand_out()

    def keep(self) -> None:
        """Count a slot once more: it must be given back twice, and stays taken until the second time."""
        self.used += 1

    def leave(self, waiter: Waiter, *, granted: bool) -> None:
        """Remove a waiter that gives up. `granted`: it had already been handed a slot."""
        # A waiter can be cancelled after it was handed a slot, but before its task has run again. If that slot were
        # not passed on, it would be lost for good, and one after another all of them would be.
        if granted:
            self.give_back()
        elif waiter in self.line:
            self.line.remove(waiter)

    def forget(self) -> None:
        """Forget all slots and waiters, which have ended with their process or their event loop."""
        self.used = 0
        self.line.clear()

    # ── the ramp ──────────────────────────────────────────────────────────────────────────────────────────────

    def narrow(self, few: int, now: float, *, running: int | None = None) -> None:
        """Begin a ramp: `running` calls (all, by default) keep their slots, and `few` more may start. `widen` raises
        the number."""
        self._base, self._few, self._narrowed_at = self.used if running is None else running, few, now
        self.widen(now)

    def widen(self, now: float) -> None:
        """Raise `cap` to what the ramp allows by now; `widens_at`: when it will allow more."""
        doublings = min(int((now - self._narrowed_at) / DOUBLES_AFTER_S), DOUBLINGS_MAX)
        self.cap = min(self.limit, self._base + self._few * 2**doublings)
        self.widens_at = self._narrowed_at + (doublings + 1) * DOUBLES_AFTER_S
        self._hand_out()

    def _hand_out(self) -> None:
        # A waiter that is done was cancelled while it waited. It must not get a slot, since it may never run again to
        # give the slot back. `used` is raised here, not when the waiter wakes: between `set_result` and that moment
        # other tasks run, and a newcomer could take the same slot, which would then be in use twice.
        while self.line and self.used < self.cap:
            waiter = self.line.popleft()
            if not waiter.done():
                self.used += 1
                waiter.set_result(None)
