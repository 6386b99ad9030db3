"""When a budget will run out: a range, computed from the pace of the last hour and the pace of the period so far.

The two paces answer different questions. The last hour shows a runaway loop that has just started; the whole period
shows what is usual. If they differ, the truth is probably in between, so both ends are reported.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

HOUR_S = 3600.0
SAMPLE_S = 60.0
"""The time between two samples. Sixty samples cover the hour; more would not change its pace visibly."""
SPAN_S_MIN = 300.0
"""A pace over less than five minutes is noise: one expensive call would forecast an empty budget."""


class RunOut(NamedTuple):
    """When a budget is used up, in wall seconds; `latest` is None if at the slower pace it lasts for the period."""

    earliest: float
    latest: float | None


class SpendingPace:
    """The spending of one budget over the last hour, sampled once a minute. Amounts in any unit, times in seconds."""

    __slots__ = ("_period", "_samples")

    def __init__(self) -> None:
        self._period: int | None = None
        self._samples: deque[tuple[float, int]] = deque()

    def note(self, now: float, period: int, spent: int) -> None:
        """Record the total spent in a period; a new period discards the samples of the last one."""
        # Samples are also discarded if the total fell (the state store was replaced by an older copy, for example): a
        # pace across that moment would be negative.
        if period != self._period or (self._samples and spent < self._samples[-1][1]):
            self._period = period
            self._samples.clear()
        if not self._samples or now - self._samples[-1][0] >= SAMPLE_S:
            self._samples.append((now, spent))
        # The second sample decides, so that the first stays an hour old or a little older. If the first were dropped
        # as soon as it is an hour old, the pace would cover an hour less one sample.
        while len(self._samples) > 1 and self._samples[1][0] <= now - HOUR_S:
            self._samples.popleft()

    def of_last_hour(self, now: float, period: int, spent: int) -> float | None:
        """The spending per second of the last hour; None if the samples cover less than five minutes."""
        if period != self._period or not self._samples:
            return None
        began, before = self._samples[0]
        return (spent - before) / (now - began) if now - began >= SPAN_S_MIN else None


def pace_of_period(spent: int, starts_at: float, now: float) -> float | None:
    """The spending per second since the period began; None in its first five minutes."""
    return spent / (now - starts_at) if now - starts_at >= SPAN_S_MIN else None


def run_out(left: int, paces: tuple[float | None, ...], now: float, ends_at: float) -> RunOut | None:
    """When `left` is used up; None if not before the period ends at `ends_at`. Wall seconds."""
    if left <= 0:
        return RunOut(now, now)
    # A pace of 0 means that the budget lasts, which is different from an unknown pace (None). If it were left out, a
    # range with an open end would become one exact time.
    times = [now + left / pace if pace > 0 else ends_at for pace in paces if pace is not None]
    earliest, latest = min(times, default=ends_at), max(times, default=ends_at)
    if earliest >= ends_at:
        return None
    return RunOut(earliest, latest if latest < ends_at else None)
