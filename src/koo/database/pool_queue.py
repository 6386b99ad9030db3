"""The fair queue in front of the pool: it admits as many callers as the pool can have connections.

SQLAlchemy's own pool can make callers wait, but does not wake them when a connect fails: they wait for their whole time
beside a free place. So no caller waits in the pool; all wait here, first come first served, each until its own
deadline. The guard waits and hands over (`koo.gates`, `Bulkhead`); this queue knows which scopes are inside, and since
when, because "all in use" is useless without naming what uses them.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from koo.database.whereabouts import find, first_words
from koo.errors import PoolSaturated, describe_s
from koo.policies.bulkhead import Bulkhead

RECENT_S = 30.0
"""For this long after a caller was turned away, a pool that is still full is reported as saturated."""
JUST_NOW_S = 2.0
"""And one with a free place for this long: longer than a tick, so that each tick sees that callers are turned away."""
RETRY_S_MIN = 0.1
NAMED_MAX = 3
"""How many of the scopes inside a refusal describes, the oldest first."""
DESCRIBED_FOR_S = 1.0
"""A description is reused for this long: each one walks through tasks, and a full pool refuses hundreds of callers."""


class Holder(Protocol):
    """A scope: the task that opened it, its session, its last statement, and its deadline in monotonic seconds."""

    owner: asyncio.Task[Any] | None
    deadline: float

    @property
    def session(self) -> object: ...

    @property
    def statement(self) -> str | None: ...

    @property
    def expired(self) -> bool: ...

    def leave_to_parent(self) -> object: ...

    def expire(self) -> None: ...


def describe(holder: Holder, since: float, now: float) -> str:
    """Where a scope is open, for how long, and what it ran last: "app.orders:41 for 12.3 s (UPDATE accounts SET)"."""
    words = first_words(holder.statement)
    said = f" ({words})" if words else ""
    return f"{find(holder.owner, holder.session)} for {describe_s(now - since)}{said}"


class PoolQueue(Bulkhead):
    """Permits for `limit` scopes. `holders` maps each scope inside to when it asked."""

    __slots__ = (
        "_described",
        "_described_at",
        "_empty",
        "_logged",
        "_refused_before",
        "holders",
        "refused",
        "refused_at",
    )

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.holders: dict[Holder, float] = {}
        self.refused = 0
        self.refused_at = float("-inf")
        self._refused_before = 0  # how many were refused when the pool was last not saturated
        self._empty: asyncio.Future[None] | None = None
        self._described = ""
        self._described_at = float("-inf")
        self._logged: set[Holder] = set()

    @property
    def waiting(self) -> int:
        """Callers in the queue."""
        return sum(not waiter.done() for waiter in self.line)

    def leave_hold(self, holder: Holder) -> float:
        """A scope has left; returns when it asked. The permit itself comes back when the guard settles it."""
        since = self.holders.pop(holder)
        if not self.holders and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)
        return since

    def wake_all(self) -> None:
        """Wake all callers in the queue, whatever the limit: on closing, each is refused as soon as it is inside."""
        while self.line:
            waiter = self.line.popleft()
            if not waiter.done():
                self.used += 1
                waiter.set_result(None)

    async def drain(self, within_s: float) -> None:
        """Wait until the last scope has left, at most `within_s` seconds."""
        if self.holders:
            if self._empty is None or self._empty.done():
                self._empty = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._empty], timeout=within_s)

    def forget(self) -> None:
        """Another event loop starts: waiters and holders belong to one that has ended."""
        super().forget()
        self.holders.clear()
        self._logged.clear()
        self._empty = None

    def is_saturated(self, now: float) -> bool:
        """Whether callers wait or are turned away. It ends with the pressure, not half a minute later."""
        return self.waiting > 0 or self._turns_away(now)

    def turned_away(self, now: float) -> int:
        """Callers turned away since the pool became saturated; 0 if none was lately."""
        return self.refused - self._refused_before if self._turns_away(now) else 0

    def _turns_away(self, now: float) -> bool:
        return now - self.refused_at < (RECENT_S if self.used >= self.limit else JUST_NOW_S)

    def count_overdue(self, now: float, after_s: float) -> int:
        """How many scopes have been open for `after_s`."""
        count = 0
        for since in list(
            self.holders.values()
        ):  # oldest first; a copy, because a scope may leave in another thread
            if now - since < after_s:
                break
            count += 1
        return count

    def describe_oldest(self, now: float, most: int) -> list[str]:
        """Describe the scopes that have been open longest."""
        return [describe(holder, since, now) for holder, since in list(self.holders.items())[:most]]

    def take_overdue(self, now: float, after_s: float) -> list[tuple[Holder, float]]:
        """Scopes that have been open for `after_s`, each reported once, with when they asked."""
        self._logged.intersection_update(self.holders)
        overdue = [
            (holder, since)
            for holder, since in self.holders.items()
            if now - since >= after_s and holder not in self._logged
        ]
        self._logged.update(holder for holder, _ in overdue)
        return overdue

    def explain(self, refusal: PoolSaturated, now: float, usual_hold_s: float) -> PoolSaturated:
        """Add to the refusal what a person needs: which scopes are inside, for how long, and when to come back."""
        if not self.turned_away(now):
            self._refused_before = self.refused
        self.refused += 1
        self.refused_at = now
        if now - self._described_at >= DESCRIBED_FOR_S:
            named = self.describe_oldest(now, NAMED_MAX)
            more = len(self.holders) - len(named)
            self._described = ", ".join(named) + (f", and {more} more" if more else "")
            self._described_at = now
        waiting, most = self.waiting, self.limit
        reason = "the only connection is in use" if most == 1 else f"all {most} connections are in use"
        if waiting:
            reason += f", and {waiting} {'caller waits' if waiting == 1 else 'callers wait'} for one"
        if self.holders:
            reason += f"; held by {self._described}"
        here = asyncio.current_task()
        if any(holder.owner is here for holder in self.holders):
            reason += "; this task holds one itself: nested scopes need a connection each"
        refusal.reason = reason
        # Scopes inside have held their connections longer than usual, or this caller would not be refused: the time
        # that they have held them is the best guess of how much longer they will.
        ages = sorted(now - since for since in self.holders.values())
        hold_s = max(usual_hold_s, ages[len(ages) // 2] if ages else 0.0)
        refusal.retry_after_s = max(RETRY_S_MIN, hold_s * (waiting + 1) / most)
        return refusal
