"""What one guarded call costs, in counts that have no noise: calls, turns of the event loop, bytes.

Time is measured by `make bench`; these counts are the gate, because they are the same on every machine.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from koo.clock import SystemClock
from koo.deadlines import Deadline, Deadlines
from koo.errors import CircuitOpen
from koo.gates import Gates
from koo.guard import Guard
from koo.options import GuardOptions
from koo.policies.breaker import FORCED_OPEN
from koo.policies.limiter import DayCount, Limits, SlidingCount

CALLS_MAX = 36
BYTES_MAX = 2048


class Memory:
    """A budget in memory, in cents: as small as money can be, so that the guard's own cost is seen."""

    __slots__ = ("held", "limit", "settled")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = self.settled = 0

    async def hold(self, deadline: float) -> None:
        if self.settled + self.held + 1 > self.limit:
            raise AssertionError("spent")
        self.held += 1

    def settle(self) -> None:
        self.held -= 1
        self.settled += 1

    def release(self) -> None:
        self.held -= 1


async def nothing() -> None:
    """The cheapest operation there is."""


def everything_on() -> Guard:
    """Deadline, breaker, three windows, places, counts: as a service has them."""
    now = SystemClock.monotonic()
    limits = Limits(
        SlidingCount("requests a minute", 10**6, 60.0, now),
        SlidingCount("requests an hour", 10**6, 3600.0, now),
        DayCount("requests a day", 10**6, now + 40_000.0, 7),
    )
    options = GuardOptions(idempotent=True)
    return Guard(Gates("claude", options, deadlines=Deadlines(), limits=limits))


def counted(coroutine: Any) -> dict[str, int]:
    """Python and C calls until it is done; a coroutine that gives a turn to the loop is counted under "turns"."""
    seen = {"call": 0, "c_call": 0, "turns": 0}

    def count(frame: FrameType, event: str, argument: Any) -> None:
        if event in seen:
            seen[event] += 1

    send = coroutine.send
    sys.setprofile(count)
    try:
        while True:
            send(None)
            seen["turns"] += 1
    except StopIteration:
        pass
    finally:
        sys.setprofile(None)
    seen["c_call"] -= 2  # `send` and `setprofile`
    return seen


def least(make: Callable[[], Any]) -> dict[str, int]:
    """The cheapest of three: in the others a new second, or a quarter of one, may have begun, which costs some more."""
    return min((counted(make()) for _ in range(3)), key=lambda seen: sum(seen.values()))


@pytest.mark.parametrize("charge", [None, Memory(10**6)], ids=["without money", "with money"])
def test_one_guarded_call_makes_few_calls_and_gives_no_turn_to_the_loop(charge: Memory | None) -> None:
    async def main() -> dict[str, int]:
        guard = everything_on()
        async with Deadline(600):
            for _ in range(50):
                await guard.call(nothing, charge=charge)
            return least(lambda: guard.call(nothing, charge=charge))

    seen = asyncio.run(main())
    assert seen["turns"] == 0
    assert 10 < seen["call"] + seen["c_call"] <= CALLS_MAX, seen


def test_one_guarded_call_leaves_nothing_and_needs_little() -> None:
    async def main() -> tuple[int, int]:
        guard, charge = everything_on(), Memory(10**6)
        for _ in range(50):
            await guard.call(nothing, charge=charge)
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            seen = []
            for _ in range(5):
                before = tracemalloc.get_traced_memory()[0]
                tracemalloc.reset_peak()
                await guard.call(nothing, charge=charge)
                after, peak = tracemalloc.get_traced_memory()
                seen.append((peak - before, after - before))
        finally:
            tracemalloc.stop()
            gc.enable()
        return min(seen)

    peak, left = asyncio.run(main())
    assert 0 < peak < BYTES_MAX
    assert left < 200, "what a call leaves would grow with the calls"


def test_a_refusal_by_an_open_breaker_is_cheap() -> None:
    async def main() -> dict[str, int]:
        guard = everything_on()
        guard.set_override(FORCED_OPEN)

        async def refused() -> None:
            try:
                await guard.call(nothing)
            except CircuitOpen:
                pass

        await refused()
        return least(refused)

    seen = asyncio.run(main())
    assert seen["turns"] == 0 and seen["call"] + seen["c_call"] <= 20, seen


def test_a_call_costs_the_same_however_many_are_running() -> None:
    async def main() -> tuple[dict[str, int], dict[str, int]]:
        guard = everything_on()
        guard.gates.bulkhead.limit = guard.gates.bulkhead.cap = 10_000
        for _ in range(5):
            await guard.call(nothing)
        alone = least(lambda: guard.call(nothing))
        ended = asyncio.Event()
        tasks = [asyncio.create_task(guard.call(ended.wait)) for _ in range(2000)]
        await asyncio.sleep(0)
        crowded = least(lambda: guard.call(nothing))
        ended.set()
        await asyncio.gather(*tasks)
        return alone, crowded

    alone, crowded = asyncio.run(main())
    assert crowded == alone
