"""The beat of koo's work each second, in the event loop's own time: does it still come, and was it late?"""

from __future__ import annotations

import asyncio

LATE_S = 30.0
"""While no beat comes, no alert begins, ends or is sent. Shorter gaps are normal on a slow machine."""
KEPT_S = 300.0


class Beats:
    """`beat` is called each second. All others ask, from any thread; nothing is late before the first beat."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._at = 0.0
        self._blocked_s = 0.0
        self._blocked_until = float("-inf")

    def beat(self, now: float) -> None:
        """It runs, on the running loop; `now` in the clock's monotonic seconds."""
        loop = asyncio.get_running_loop()
        at = loop.time()
        if loop is self._loop and at - self._at > LATE_S:
            self._blocked_s, self._blocked_until = at - self._at, now + KEPT_S
        self._loop, self._at = loop, at

    def stop(self) -> None:
        """It ends, and is no longer expected."""
        self._loop = None

    @property
    def is_late(self) -> bool:
        """Whether the next beat should have come long ago."""
        loop = self._loop
        return loop is not None and loop.is_running() and loop.time() - self._at > LATE_S

    def blocked_s(self, now: float) -> float:
        """For how long no beat came, within the last minutes; 0: they come."""
        return self._blocked_s if now < self._blocked_until else 0.0
