"""Time, handed in: monotonic seconds for durations, wall time for people and calendars.

Nothing below `Platform` reads a clock of its own, so that tests run on virtual time (`koo.testing.clock`).
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
