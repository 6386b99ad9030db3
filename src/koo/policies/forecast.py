"""When a budget runs out at the current pace: a range, from the last hour's pace and the whole period's so far.

The two paces answer different questions. The last hour shows a loop that went wild an hour ago; the whole period shows
what is usual. If they differ the truth lies somewhere between, so both ends are reported.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

HOUR_S = 3600.0
SAMPLE_S = 60.0
"""Sixty notes cover the hour; more would not move its pace visibly."""
SPAN_S_MIN = 300.0
"""A pace over less than five minutes is noise: one expensive call would predict ruin."""


class RunOut(NamedTuple):
    """When a budget is used up, in wall seconds; `latest` None: at the slower pace not within this period."""

    earliest: float
    latest: float | None


class SpendingPace:
    """What was spent of one budget, noted about once a minute, for an hour. Amounts in any unit, times in seconds."""

    __slots__ = ("_period", "_samples")

    def __init__(self) -> None:
        self._period: int | None = None
        self._samples: deque[tuple[float, int]] = deque()

    def note(self, now: float, period: int, spent: int) -> None:
        """Record what is spent; a new period starts afresh."""
        if period != self._period or (self._samples and spent < self._samples[-1][1]):
            self._period = period
            self._samples.clear()
        if not self._samples or now - self._samples[-1][0] >= SAMPLE_S:
            self._samples.append((now, spent))
        while len(self._samples) > 1 and self._samples[1][0] <= now - HOUR_S:
            self._samples.popleft()

    def of_last_hour(self, now: float, period: int, spent: int) -> float | None:
        """Spent per second within the last hour; None if less than five minutes are known."""
        if period != self._period or not self._samples:
            return None
        began, before = self._samples[0]
        return (spent - before) / (now - began) if now - began >= SPAN_S_MIN else None


def pace_of_period(spent: int, starts_at: float, now: float) -> float | None:
    """Spent per second since the period began; None in its first five minutes."""
    return spent / (now - starts_at) if now - starts_at >= SPAN_S_MIN else None


def run_out(left: int, paces: tuple[float | None, ...], now: float, ends_at: float) -> RunOut | None:
    """When `left` is used up; None: not before the period ends at `ends_at`. Wall seconds."""
    if left <= 0:
        return RunOut(now, now)
    times = [now + left / pace if pace > 0 else ends_at for pace in paces if pace is not None]
    earliest, latest = min(times, default=ends_at), max(times, default=ends_at)
    if earliest >= ends_at:
        return None
    return RunOut(earliest, latest if latest < ends_at else None)
