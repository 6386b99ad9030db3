"""The gate of koo's own limits: take a unit of each, immediately, after the store's reply or from a queue; or refuse.

With a fleet-wide limit, this process may have no unit left although the fleet has one. Then every caller waits for the
store's reply, even with `on_limit="refuse"`: only the store can tell whether the limit is full. If it replies that the
remaining units are held by other processes, the caller waits up to five seconds for their return. In the first five
seconds after the store becomes unreachable, a caller beyond this process's share waits for the store: its file may only
be locked for a moment, and a limit with room must not refuse a call. Only `on_limit="wait"` waits for units that are
used up.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Any, NoReturn, Protocol

from koo.clock import Clock
from koo.errors import Cause, Kind
from koo.options import NEVER
from koo.passage import LOOK_AGAIN_S, Passage
from koo.policies.bulkhead import Bulkhead
from koo.policies.limiter import CAUSES, Limits
from koo.refusals import Family

PATIENCE_S = 5.0
"""A process notices within three leases or beats that its calls have ended; then it returns its units to the store."""


class Gate(Protocol):
    """The part of the gates that this module uses."""

    limits: Limits
    limit_queue: Bulkhead
    clock: Clock
    family: Family
    quiet: bool

    @property
    def kin(self) -> Iterable[Any]:
        """All gates that share these limits."""
        ...

    def refuse(
        self,
        guard: Any,
        error: Any,
        reason: str,
        wait_s: float | None,
        kind: Kind,
        cause: Cause | None = None,
    ) -> NoReturn:
        """Count a refusal and raise it."""
        ...

    def stand_in_line(self, bulkhead: Bulkhead, guard: Any, deadline: float) -> Awaitable[bool]:
        """Wait for a slot; False if the deadline passed first."""
        ...


async def take_limits(gate: Gate, guard: Any, passage: Passage) -> float:
    """Take one unit of each limit; returns the time at which it was taken, needed to refund it. Raises a refusal."""
    limits, queue, deadline = gate.limits, gate.limit_queue, passage.deadline
    now = gate.clock.monotonic()
    # A newcomer must not take a unit ahead of callers already in the queue, even if it would not queue itself.
    if not queue.used:
        if limits.take(now) is None:
            return now
        if limits.ask is not None:
            taken_at = await _answered(gate, deadline)
            if taken_at is not None:
                return taken_at
            now = gate.clock.monotonic()
    # A call that cannot get a unit before its deadline is refused now: in the queue it would only delay the others.
    if passage.on_limit != "wait" or limits.usable_at(now) >= deadline:
        refuse_limit(gate, guard)
    if not await gate.stand_in_line(queue, guard, deadline):
        refuse_limit(gate, guard)
    # Calls with any key of the service must now queue: on its fast path each would take a unit past this queue.
    for one in gate.kin:
        one.quiet = False
    try:
        while limits.take(now := gate.clock.monotonic()) is not None:
            taken_at = await _answered(gate, deadline, 1 + len(queue.line))
            if taken_at is not None:
                return taken_at
            usable_at = limits.usable_at(now := gate.clock.monotonic())
            if usable_at >= deadline:
                refuse_limit(gate, guard)
            # The call sleeps in steps: a refund may free a unit earlier, but wakes no sleeping call. Only the head of
            # the queue wakes, so a freed unit costs one check and not one for each caller in the queue.
            await gate.clock.sleep(min(usable_at - now, LOOK_AGAIN_S))
        return now
    finally:
        queue.give_back()


async def _answered(gate: Gate, deadline: float, callers: int = 1) -> float | None:
    """Wait for the store's reply and take a unit; returns the time at which it was taken, None if there is none."""
    limits, now = gate.limits, gate.clock.monotonic()
    patient_until = min(deadline, now + PATIENCE_S)
    while limits.ask is not None and now < deadline:
        # `waiting` tells the lease how many units to request: for the whole queue at once, as `callers` counts it. The
        # `finally` keeps a cancelled caller from requesting a unit forever.
        if limits.lacks(now):
            limits.waiting += callers
            try:
                await limits.ask(deadline)
            finally:
                limits.waiting -= callers
        elif (home_at := limits.comes_home_at(now)) < patient_until:
            await gate.clock.sleep(home_at - now)
        else:
            return None
        now = gate.clock.monotonic()
        if limits.take(now) is None:
            return now
    return None


def refuse_limit(gate: Gate, guard: Any) -> NoReturn:
    """Refuse, with the limit's name and the time at which it is usable: soon, if only the queue is in the way."""
    limits, now = gate.limits, gate.clock.monotonic()
    full = limits.full(now)
    if full is not None and not (limits.ask is not None and limits.lacks(now)):
        wait_s = _known_s(limits.usable_at(now) - now)
        cause = CAUSES.get(full.name)
        gate.refuse(guard, gate.family.limited, limits.why(full), wait_s, Kind.RATE_LIMITED, cause)
    if full is not None:
        reason = (
            "the state store (KOO_STATE_URL) did not confirm before the deadline that koo's limit has room"
        )
        gate.refuse(guard, gate.family.limited, reason, LOOK_AGAIN_S, Kind.RATE_LIMITED)
    ahead = len(gate.limit_queue.line) + gate.limit_queue.used
    limit = " and ".join(f"{count.limit} {count.name}" for count in limits.counts)
    others = {0: "other callers are", 1: "another caller is"}.get(ahead, f"{ahead} callers are")
    reason = f"{others} already waiting for koo's limit of {limit}"
    free_at = max(now + LOOK_AGAIN_S, limits.usable_at(now, ahead + 1))
    last = max(limits.counts, key=lambda count: count.usable_at(now, ahead + 1))
    cause = CAUSES.get(last.name)
    gate.refuse(guard, gate.family.limited, reason, _known_s(free_at - now), Kind.RATE_LIMITED, cause)


def _known_s(wait_s: float) -> float | None:
    """The wait in seconds; None if it is infinite."""
    return None if wait_s == NEVER else wait_s
