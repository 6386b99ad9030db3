"""Spreads calls under the provider's own limit, before a 429 comes.

The provider's headers say, with every answer, how many requests are left and when they are full again. While more
than half is left nothing is held back. Below that, what is left is spread evenly over the time until it is full: the
generic cell rate algorithm with one cell each `interval_s`, and no burst.
"""

from __future__ import annotations

COMFORT = 0.5
INTERVAL_S_MAX = 60.0


class Pacer:
    """One provider's credential. `interval_s` is 0 while nothing has to be spread."""

    __slots__ = ("_until", "interval_s", "next_at")

    def __init__(self) -> None:
        self.interval_s = 0.0
        self.next_at = 0.0
        self._until = 0.0

    def learn(self, limit: int | None, remaining: int | None, resets_in_s: float | None, now: float) -> None:
        """Take in one answer's headers; numbers that are missing or absurd are ignored."""
        if limit is None or remaining is None or resets_in_s is None or limit <= 0 or resets_in_s <= 0:
            return
        if remaining >= COMFORT * limit:
            self.interval_s = 0.0
            return
        self.interval_s = min(resets_in_s / max(remaining, 1), INTERVAL_S_MAX)
        self._until = now + resets_in_s

    def wait_s(self, now: float) -> float:
        """How long the next call should wait; 0 is now. Takes nothing."""
        if not self.interval_s:
            return 0.0
        if now >= self._until:
            self.interval_s = 0.0
            return 0.0
        return max(0.0, self.next_at - now)

    def take(self, now: float) -> float:
        """Book the next cell and say how long to wait for it; each caller gets a later one."""
        wait_s = self.wait_s(now)
        if self.interval_s:
            self.next_at = max(self.next_at, now) + self.interval_s
        return wait_s

    def give_back(self) -> None:
        """A cell was booked for a call that is never made: later callers need not wait for it."""
        self.next_at -= self.interval_s
