"""Spreads calls under the provider's own limit, before a 429 comes.

The provider's headers say, with every answer, how much is left of each of its limits and when that is full again.
While more than half of all is left nothing is held back. Below that, the calls that are left are spread evenly over the
time until the limit is full: the generic cell rate algorithm with one cell each `interval_s`, and no burst. Of several
limits the one that asks for the longest interval decides: the others would let more calls out than it has left.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

COMFORT = 0.5
INTERVAL_S_MAX = 60.0


@dataclass(frozen=True, slots=True)
class LimitLeft:
    """One of the provider's limits, counted in calls: `remaining` of `limit`, full again in `resets_in_s`.

    None: the provider does not say. Fractions are right: they come from limits that count tokens.
    """

    limit: float | None
    remaining: float | None
    resets_in_s: float | None

    def interval_s(self) -> float | None:
        """The pause between calls that it asks for, 0 for none; None where a number is missing or absurd."""
        limit, remaining, resets_in_s = self.limit, self.remaining, self.resets_in_s
        if limit is None or remaining is None or resets_in_s is None or limit <= 0 or resets_in_s <= 0:
            return None
        return 0.0 if remaining >= COMFORT * limit else min(resets_in_s / max(remaining, 1), INTERVAL_S_MAX)


class Pacer:
    """One provider's credential. `interval_s` is 0 while nothing has to be spread."""

    __slots__ = ("_until", "interval_s", "next_at")

    def __init__(self) -> None:
        self.interval_s = 0.0
        self.next_at = 0.0
        self._until = 0.0

    def learn(self, limits: Iterable[LimitLeft], now: float) -> None:
        """Take in all limits that one answer's headers name; what cannot be read is ignored."""
        read = [(interval_s, limit) for limit in limits if (interval_s := limit.interval_s()) is not None]
        if read:
            self.interval_s, scarcest = max(read, key=lambda one: one[0])
            self._until = now + (scarcest.resets_in_s or 0.0)

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
