"""The fair queue in front of the pool: as many may pass as the pool can have connections.

SQLAlchemy's own pool can let callers wait, but does not wake them when a connect fails: they sit out their whole time
beside a free place. So no caller waits in the pool; all wait here, first come first served, each until its own
deadline. Waiting and handing over are the guard's (`koo.gates`, `Bulkhead`); this queue knows who is inside, and since
when, because "all in use" is useless without knowing by whom.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from koo.errors import PoolSaturated, describe_s
from koo.policies.bulkhead import Bulkhead

RECENT_S = 30.0
"""For so long after a caller had to be turned away the pool is said to be saturated."""
RETRY_S_MIN = 0.1


class Holder(Protocol):
    """A scope, the task that opened it, and its deadline in monotonic seconds."""

    owner: asyncio.Task[Any] | None
    deadline: float

    @property
    def expired(self) -> bool: ...

    def expire(self) -> None: ...


class PoolQueue(Bulkhead):
    """Permits for `limit` scopes. `holders` maps each scope inside to when it asked."""

    __slots__ = ("_empty", "holders", "refused", "refused_at")

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.holders: dict[Holder, float] = {}
        self.refused = 0
        self.refused_at = float("-inf")
        self._empty: asyncio.Future[None] | None = None

    @property
    def waiting(self) -> int:
        """Callers in line."""
        return sum(not waiter.done() for waiter in self.line)

    def leave_hold(self, holder: Holder) -> float:
        """A scope has left; returns when it had asked. The permit itself comes back with the guard's settlement."""
        since = self.holders.pop(holder)
        if not self.holders and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)
        return since

    def wake_all(self) -> None:
        """Wake all in line, whatever the limit: it is being closed, and inside each one is refused at once."""
        while self.line:
            waiter = self.line.popleft()
            if not waiter.done():
                self.used += 1
                waiter.set_result(None)

    async def drain(self, within_s: float) -> None:
        """Wait until the last scope has left, for so long at most."""
        if self.holders:
            self._empty = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._empty], timeout=within_s)
            self._empty = None

    def forget(self) -> None:
        """Another event loop begins: the waiters and holders belong to one that has ended."""
        super().forget()
        self.holders.clear()

    def is_saturated(self, now: float) -> bool:
        """Whether callers wait, or one was turned away lately."""
        return self.waiting > 0 or now - self.refused_at < RECENT_S

    def explain(self, refusal: PoolSaturated, now: float, usual_hold_s: float) -> PoolSaturated:
        """The refusal with what a person needs: who is inside, for how long, and when to come back."""
        self.refused += 1
        self.refused_at = now
        reason = f"all {self.limit} connections are in use and {self.waiting} callers wait"
        if self.holders:
            holder, since = min(self.holders.items(), key=lambda item: item[1])
            owner = f" (task {holder.owner.get_name()!r})" if holder.owner is not None else ""
            reason += f"; the oldest of {len(self.holders)} scopes is {describe_s(now - since)} old{owner}"
        here = asyncio.current_task()
        if any(holder.owner is here for holder in self.holders):
            reason += "; this task holds one itself: nested scopes need a connection each"
        refusal.reason = reason
        refusal.retry_after_s = max(RETRY_S_MIN, usual_hold_s * (self.waiting + 1) / self.limit)
        return refusal
