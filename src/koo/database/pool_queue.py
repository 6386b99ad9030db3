"""The fair queue in front of the pool: it admits as many callers as the pool can have connections.

SQLAlchemy's own pool can make callers wait, but it does not wake one when a connect fails: they sit out their whole
timeout next to a free slot. So no caller waits in the pool. All wait here, first come first served, each until its own
deadline. The guard does the waiting and the handing over (`koo.gates`, `Bulkhead`). This queue adds which scopes are
inside and since when, because "all connections are in use" does not help unless it says what uses them.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from koo.database.whereabouts import find, first_words
from koo.errors import PoolSaturated, describe_s
from koo.policies.bulkhead import Bulkhead

RECENT_S = 30.0
"""A full pool is reported as saturated for this long after it last turned a caller away."""
JUST_NOW_S = 2.0
"""For how long a pool that has a free slot again is still reported as saturated. Longer than a tick, so that no refusal
goes unnoticed between two ticks."""
RETRY_S_MIN = 0.1
NAMED_MAX = 3
"""How many of the running scopes a refusal describes, the oldest first."""
DESCRIBED_FOR_S = 1.0
"""A description is reused for this long: making one walks through tasks, and a full pool may refuse hundreds."""


class Holder(Protocol):
    """A scope: the task that opened it, its session, its last statement, its deadline in monotonic seconds."""

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
    """Where a scope was opened, how long ago, its last statement: "app.orders:41 for 12.3 s (UPDATE accounts SET)"."""
    words = first_words(holder.statement)
    said = f" ({words})" if words else ""
    return f"{find(holder.owner, holder.session)} for {describe_s(now - since)}{said}"


class PoolQueue(Bulkhead):
    """Permits for `limit` scopes. `holders` maps each running scope to the time at which it asked to enter."""

    __slots__ = (
        "_described",
        "_described_at",
        "_empty",
        "_logged",
        "_refused_before",
        "_short_at",
        "holders",
        "refused",
        "refused_at",
    )

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.holders: dict[Holder, float] = {}
        self.refused = 0
        self.refused_at = float("-inf")
        self._refused_before = 0  # the value of `refused` when the pool was last not saturated
        self._short_at = float("-inf")
        self._empty: asyncio.Future[None] | None = None
        self._described = ""
        self._described_at = float("-inf")
        self._logged: set[Holder] = set()

    @property
    def waiting(self) -> int:
        """Callers in the queue."""
        return sum(not waiter.done() for waiter in self.line)

    def leave_hold(self, holder: Holder) -> float:
        """Remove a scope that has ended; returns when it asked to enter. The guard returns its permit separately."""
        since = self.holders.pop(holder)
        if not self.holders and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)
        return since

    def wake_all(self) -> None:
        """Wake all callers in the queue, whatever the limit: on closing, each is refused as soon as it is inside."""
        # Each woken caller counts as inside, because it does not know that it was let in past the limit and will give
        # its slot back like any other. Without the increment `used` would end up below zero, and the pool would admit
        # more scopes than it has connections.
        while self.line:
            waiter = self.line.popleft()
            if not waiter.done():
                self.used += 1
                waiter.set_result(None)

    async def drain(self, within_s: float) -> None:
        """Wait until the last scope has ended, at most `within_s` seconds."""
        # All waiters share one future: an operator's `drain` and `close` may run at the same time. `asyncio.wait` does
        # not cancel it on a timeout, so the other one keeps waiting.
        if self.holders:
            if self._empty is None or self._empty.done():
                self._empty = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._empty], timeout=within_s)

    def shrink(self, to: int, now: float) -> bool:
        """Admit only `to` callers for now, because the server has no connection left. Returns whether this is new."""
        was_short = self._is_short(now)
        # One more after a second: if the shortage lasts, only that one caller tries to connect for nothing.
        self.narrow(1, now, running=to - 1)
        self._short_at = now
        return not was_short

    def _is_short(self, now: float) -> bool:
        return now - self._short_at < RECENT_S

    def forget(self) -> None:
        """Forget waiters and running scopes: they belong to an event loop that has ended."""
        super().forget()
        self.holders.clear()
        self._logged.clear()
        self._empty = None

    def is_saturated(self, now: float) -> bool:
        """Whether callers are waiting or being turned away. False as soon as the pressure ends, not half a minute
        later."""
        return self.waiting > 0 or self._turns_away(now)

    def turned_away(self, now: float) -> int:
        """Callers turned away since the pool became saturated; 0 if it is not saturated."""
        return self.refused - self._refused_before if self._turns_away(now) else 0

    def _turns_away(self, now: float) -> bool:
        return now - self.refused_at < (RECENT_S if self.used >= self.limit else JUST_NOW_S)

    def count_overdue(self, now: float, after_s: float) -> int:
        """How many scopes have been open for `after_s`."""
        # A dictionary keeps its order of insertion, so the oldest scopes come first. Iterates over a copy, because
        # another thread may read the metrics while a scope ends in the loop's thread.
        count = 0
        for since in list(self.holders.values()):
            if now - since < after_s:
                break
            count += 1
        return count

    def describe_oldest(self, now: float, most: int) -> list[str]:
        """Descriptions of the scopes that have been open longest, at most `most`."""
        return [describe(holder, since, now) for holder, since in list(self.holders.items())[:most]]

    def take_overdue(self, now: float, after_s: float) -> list[tuple[Holder, float]]:
        """Scopes that have been open for `after_s`, with the time each asked to enter. Returns each scope once."""
        self._logged.intersection_update(self.holders)
        overdue = [
            (holder, since)
            for holder, since in self.holders.items()
            if now - since >= after_s and holder not in self._logged
        ]
        self._logged.update(holder for holder, _ in overdue)
        return overdue

    def explain(self, refusal: PoolSaturated, now: float, usual_hold_s: float) -> PoolSaturated:
        """Add to the refusal which scopes are running, for how long, and when to try again; returns it."""
        # This is checked before `refused` rises: the first refusal after a quiet time starts a new count of callers
        # turned away.
        if not self.turned_away(now):
            self._refused_before = self.refused
        self.refused += 1
        self.refused_at = now
        if now - self._described_at >= DESCRIBED_FOR_S:
            named = self.describe_oldest(now, NAMED_MAX)
            more = len(self.holders) - len(named)
            self._described = ", ".join(named) + (f", and {more} more" if more else "")
            self._described_at = now
        waiting, most = self.waiting, min(self.cap, self.limit)
        reason = "the only connection is in use" if most == 1 else f"all {most} connections are in use"
        if waiting:
            reason += f", and {waiting} {'caller waits' if waiting == 1 else 'callers wait'} for one"
        if self.holders:
            reason += f"; held by {self._described}"
        if self._is_short(now) and self.cap < self.limit:
            reason += "; the server has no more for this pool"
        here = asyncio.current_task()
        if any(holder.owner is here for holder in self.holders):
            reason += "; this task holds one itself: nested scopes need a connection each"
        refusal.reason = reason
        # The median of past scopes is too short a guess when the running ones are stuck: a caller that came back after
        # 20 ms would be refused again. Half of them have been running for at least `ages[len // 2]`, and the best
        # estimate of how much longer they take is how long they have taken so far. `waiting + 1` callers share `most`
        # connections.
        ages = sorted(now - since for since in self.holders.values())
        hold_s = max(usual_hold_s, ages[len(ages) // 2] if ages else 0.0)
        refusal.retry_after_s = max(RETRY_S_MIN, hold_s * (waiting + 1) / most)
        return refusal
