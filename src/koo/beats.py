"""Whether koo's once-a-second work still runs on time, measured by the event loop's clock."""

from __future__ import annotations

import asyncio

LATE_S = 30.0
"""Without beats no alert starts, ends or is sent. Shorter gaps are normal on a slow machine."""
KEPT_S = 300.0
"""How long a gap is reported after it has ended."""


class Beats:
    """`beat` is called each second. The other methods may be called from any thread; nothing is late before the first
    beat."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._at = 0.0
        self._blocked_s = 0.0
        self._blocked_until = float("-inf")

    def beat(self, now: float) -> None:
        """Record a beat on the running loop; `now` is in the clock's monotonic seconds."""
        loop = asyncio.get_running_loop()
        at = loop.time()
        if loop is self._loop and at - self._at > LATE_S:
            self._blocked_s, self._blocked_until = at - self._at, now + KEPT_S
        self._loop, self._at = loop, at

    def stop(self) -> None:
        """No further beat is expected."""
        self._loop = None

    @property
    def is_late(self) -> bool:
        """Whether the next beat is long overdue."""
        loop = self._loop
        return loop is not None and loop.is_running() and loop.time() - self._at > LATE_S

    def blocked_s(self, now: float) -> float:
        """The length of a gap that ended within the last `KEPT_S` seconds; 0 if there was none."""
        return self._blocked_s if now < self._blocked_until else 0.0
