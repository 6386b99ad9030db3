"""Injected time: monotonic seconds for durations, wall time for people and calendars.

Nothing below `Platform` reads a clock directly, so that tests run on virtual time (`koo.testing.clock`).
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol, overload

from koo.options import DAY_S


class Clock(Protocol):
    """Monotonic seconds, wall seconds since 1970 (UTC), and a sleep on the running loop."""

    def monotonic(self) -> float: ...

    def wall(self) -> float: ...

    async def sleep(self, delay_s: float) -> None: ...


class SystemClock:
    """The system's clock. `monotonic` is the event loop's own time base, so deadlines need no conversion."""

    __slots__ = ()

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)


SYSTEM_CLOCK = SystemClock()
BASE_SLACK_S = 5.0
"""Two readings on a busy machine differ by less than this; a clock with another base differs by more."""


def check_base(clock: Clock) -> None:
    """Raise ValueError for a clock that does not count the event loop's seconds.

    Timers are set in the loop's time. With another base, each deadline would already have passed when it is set, or
    would never pass. A clock may have an attribute `follows_loop`, which says that it counts the seconds of its own
    loop, which is not running yet.
    """
    loop = asyncio._get_running_loop()
    if loop is None and getattr(clock, "follows_loop", False):
        return
    base = time.monotonic() if loop is None else loop.time()
    if abs(clock.monotonic() - base) > BASE_SLACK_S:
        raise ValueError(
            f"the monotonic time of {type(clock).__name__} is {clock.monotonic():.0f} s and the event loop's is "
            f"{base:.0f} s; a clock for a Platform must count the loop's seconds, as koo.testing.SkippingClock does"
        )


@overload
def iso(wall_s: float) -> str: ...
@overload
def iso(wall_s: None) -> None: ...
@overload
def iso(wall_s: float | None) -> str | None: ...
def iso(wall_s: float | None) -> str | None:
    """Wall seconds as ISO 8601 in UTC with offset, or None."""
    return None if wall_s is None else datetime.fromtimestamp(wall_s, UTC).isoformat()


def utc_day(wall_s: float) -> int:
    """The number of the UTC day: whole days since 1970-01-01."""
    return int(wall_s // DAY_S)
