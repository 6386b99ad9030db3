"""Counts of the last seconds, in a ring of buckets.

The totals of the whole window are three plain integers. Recording a call compares the time with `rolls_at` and makes
one to three additions; all other arithmetic is done when a bucket ends.
"""

from __future__ import annotations


class Window:
    """Counts of calls, failures and slow calls over `window_s` seconds, forgotten a bucket at a time."""

    __slots__ = ("_begun", "_bucket_s", "_buckets", "_past", "calls", "failures", "rolls_at", "slow")

    def __init__(self, window_s: float, buckets: int, now: float) -> None:
        self._bucket_s = window_s / buckets
        self._buckets = buckets
        self.clear(now)

    def clear(self, now: float) -> None:
        """Forget everything; a new bucket starts now."""
        self.calls = self.failures = self.slow = 0
        self._begun = (0, 0, 0)  # the totals when the current bucket began
        self._past: list[tuple[int, int, int]] = []  # the counts of each older bucket, oldest first
        self.rolls_at = now + self._bucket_s

    @property
    def begun_at(self) -> float:
        """When the oldest bucket in the window began."""
        return self.rolls_at - self._bucket_s * (len(self._past) + 1)

    def record(self, failed: bool, slow: bool, now: float) -> None:
        """Count one call."""
        if now >= self.rolls_at:
            self.roll(now)
        self.calls += 1
        if failed:
            self.failures += 1
        if slow:
            self.slow += 1

    def roll(self, now: float) -> None:
        """End the current bucket if its time is over, and drop those that have left the window."""
        if now < self.rolls_at:
            return
        # After a gap of a whole window, no old call counts. Clearing the window also keeps the first call after an
        # idle night cheap, which would otherwise append thousands of empty buckets.
        ended = int((now - self.rolls_at) // self._bucket_s) + 1
        if ended >= self._buckets:
            self.clear(now)
            return
        # The current bucket has no counters of its own: its counts are the growth of the totals since it began. So a
        # call increments only the totals, and a bucket that leaves is subtracted from them.
        calls, failures, slow = self._begun
        self._past.append((self.calls - calls, self.failures - failures, self.slow - slow))
        self._past.extend([(0, 0, 0)] * (ended - 1))
        while len(self._past) >= self._buckets:
            calls, failures, slow = self._past.pop(0)
            self.calls -= calls
            self.failures -= failures
            self.slow -= slow
        self._begun = (self.calls, self.failures, self.slow)
        self.rolls_at += ended * self._bucket_s
