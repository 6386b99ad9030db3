"""The counts of a guard, in plain integers that are read on demand.

There are two views of the same calls: counts for the process's life, and rates and percentiles of the last five
minutes. A call is recorded only in the current bucket; when a bucket ends, it is added to the totals. koo's own
refusals never reach the dependency, so they are counted separately.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Collection

from koo.policies.verdict import FAILURE, NEUTRAL, SUCCESS, THROTTLED, Verdict

BOUNDS_S = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
    1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0,
)  # fmt: skip
"""Upper bounds of the latency histogram, in seconds. From 2 ms to 30 s each is at most two thirds larger than the one
before, which bounds the error of a percentile."""
BUCKET_S = 15.0
BUCKETS = 20
"""Twenty buckets of fifteen seconds are five minutes: the usual range of a dashboard, and long enough for percentiles
of a service with a call every few seconds. A bucket that leaves changes a rate by about a twentieth."""


def value_in(cell: int, share: float) -> float:
    """The latency, in seconds, at a share (0 to 1) of the width of a cell of the histogram."""
    low = BOUNDS_S[cell - 1] if cell else 0.0
    high = BOUNDS_S[cell] if cell < len(BOUNDS_S) else BOUNDS_S[-1] * 2
    return low + (high - low) * share


class Bucket:
    """The counts of some span of time: calls by verdict, successes by latency, and slow calls."""

    __slots__ = ("_others", "latency", "latency_sum_s", "slow")

    def __init__(self) -> None:
        self._others: dict[Verdict, int] = {}
        self.latency = [0] * (len(BOUNDS_S) + 1)
        self.latency_sum_s = 0.0
        self.slow = 0

    def add(self, other: Bucket) -> None:
        for verdict, count in other._others.items():
            self.add_other(verdict, count)
        for i, count in enumerate(other.latency):
            self.latency[i] += count
        self.latency_sum_s += other.latency_sum_s
        self.slow += other.slow

    def add_other(self, verdict: Verdict, count: int = 1) -> None:
        """Count calls that did not succeed."""
        self._others[verdict] = self._others.get(verdict, 0) + count

    @property
    def successes(self) -> int:
        return sum(self.latency)

    @property
    def verdicts(self) -> list[int]:
        """How many calls had each verdict, in the order of `Verdict`."""
        return [self.successes if verdict is SUCCESS else self._others.get(verdict, 0) for verdict in Verdict]

    @property
    def answered(self) -> int:
        """Calls with a verdict about the dependency. Neutral calls say nothing about it."""
        return self.successes + self._others.get(FAILURE, 0) + self._others.get(THROTTLED, 0)

    def success_rate(self) -> float:
        """The share of successes; 1.0 without any call."""
        return self.successes / self.answered if self.answered else 1.0

    def mean_s(self) -> float:
        successes = self.successes
        return self.latency_sum_s / successes if successes else 0.0

    def percentile_s(self, share: float) -> float:
        """The latency below which `share` of the successes are, interpolated within a cell; 0.0 without any."""
        rank = share * self.successes
        below = 0
        for i, count in enumerate(self.latency):
            if count and below + count >= rank:
                return value_in(i, (rank - below) / count)
            below += count
        return 0.0


class Tally:
    """The counts of one guard, for its life and for the last five minutes."""

    __slots__ = (
        "_cut_at", "_cuts", "_healthy", "_past", "_rolls_at", "bucket", "errors", "last_failure_at", "last_other_at",
        "last_success_at", "late_successes", "life", "refused", "refused_at", "retries",
    )  # fmt: skip

    def __init__(self, now: float) -> None:
        self.life = Bucket()  # excluding the current bucket
        self.bucket = Bucket()
        self._past: deque[Bucket] = deque(maxlen=BUCKETS - 1)
        # The last buckets in which a call succeeded. An outage empties `_past` of successes, and then the usual
        # latency, by which a probe's lease is set, would be unknown exactly when recovery is tested.
        self._healthy: deque[Bucket] = deque(maxlen=BUCKETS - 1)
        self._rolls_at = now + BUCKET_S
        self.late_successes = 0  # successes of repeats
        self.retries = 0
        self.refused: dict[str, int] = {}
        self.refused_at: dict[str, float] = {}  # the last refusal of each kind
        self.errors: dict[str, int] = {}
        self.last_failure_at: float | None = None
        self.last_success_at: float | None = None
        self.last_other_at = now
        self._cuts = 0
        self._cut_at = now

    def record_success(self, latency_s: float, slow: bool, first: bool, now: float) -> None:
        if now >= self._rolls_at:
            self.roll(now)
        bucket = self.bucket
        bucket.latency[bisect_left(BOUNDS_S, latency_s)] += 1
        bucket.latency_sum_s += latency_s
        self.last_success_at = now
        if slow:
            bucket.slow += 1
        if not first:
            self.late_successes += 1

    def record_successes(self, latencies_s: Collection[float], now: float) -> None:
        """Record many calls at once, none of them slow and each a first attempt."""
        # A busy connection pool has thousands of them per second: one roll and one sum serve them all.
        self.roll(now)
        bucket = self.bucket
        latency = bucket.latency
        for latency_s in latencies_s:
            latency[bisect_left(BOUNDS_S, latency_s)] += 1
        bucket.latency_sum_s += sum(latencies_s)
        self.last_success_at = now

    @property
    def first_successes(self) -> int:
        """How many first attempts have succeeded in the process's life: the income of the retry budget."""
        return self.life.successes + self.bucket.successes - self.late_successes

    def record_other(self, verdict: Verdict, kind: str, slow: bool, now: float) -> None:
        """Count a call that did not succeed; `kind` names the error."""
        self.roll(now)
        self.bucket.add_other(verdict)
        self.bucket.slow += slow
        self.errors[kind] = self.errors.get(kind, 0) + 1
        self.last_other_at = now
        if verdict is not NEUTRAL:
            self.last_failure_at = now

    def note_cut(self, now: float) -> None:
        """Count a call that its caller's deadline cut short after it had lasted longer than usual."""
        self._cuts = self.cuts_in_row(now) + 1
        self._cut_at = now

    def cuts_in_row(self, now: float) -> int:
        """How many calls were cut short since the last success, with less than five minutes from each to the next."""
        # Any success ends the count, and so does a long quiet time: three impatient callers spread over a day say
        # nothing about the service.
        success_at = self.last_success_at
        is_over = now - self._cut_at > BUCKET_S * BUCKETS or (
            success_at is not None and success_at > self._cut_at
        )
        return 0 if is_over else self._cuts

    def forget_cuts(self) -> None:
        """Forget the cut calls, on an operator's reset."""
        self._cuts = 0

    def record_refusal(self, kind: str, now: float) -> None:
        self.refused[kind] = self.refused.get(kind, 0) + 1
        self.refused_at[kind] = now

    def roll(self, now: float) -> None:
        """End the current bucket if its time is over."""
        if now < self._rolls_at:
            return
        # Several buckets may have ended since the last call. The empty ones count too: without them, the calls of an
        # hour ago would still be "the last five minutes" of a guard that was idle since.
        ended = int((now - self._rolls_at) // BUCKET_S) + 1
        self.life.add(self.bucket)
        self._past.append(self.bucket)
        if self.bucket.latency_sum_s:
            self._healthy.append(self.bucket)
        for _ in range(min(ended - 1, BUCKETS)):
            self._past.append(Bucket())
        self.bucket = Bucket()
        self._rolls_at += ended * BUCKET_S

    @property
    def idle_since(self) -> float:
        """When the last call ended; before the first call, when counting began."""
        return max(self.last_other_at, self.last_success_at or self.last_other_at)

    def take_over(self, other: Tally, now: float) -> None:
        """Add the counts of `other`, which is no longer used, so that no total shrinks when its guard is dropped."""
        # The buckets are added pairwise, from the newest. Those of two tallies start at different moments, so a call
        # may move by less than one bucket's length.
        self.roll(now)
        other.roll(now)
        self.life.add(other.life)
        self.bucket.add(other.bucket)
        for age, ended in enumerate(reversed(other._past), start=1):
            if age > len(self._past):
                self._past.appendleft(Bucket())
            self._past[-age].add(ended)
        self.late_successes += other.late_successes
        self.retries += other.retries
        for counts, more in ((self.errors, other.errors), (self.refused, other.refused)):
            for key, count in more.items():
                counts[key] = counts.get(key, 0) + count
        for kind, at in other.refused_at.items():
            self.refused_at[kind] = max(at, self.refused_at.get(kind, at))
        self.last_failure_at = _later(self.last_failure_at, other.last_failure_at)
        self.last_success_at = _later(self.last_success_at, other.last_success_at)

    def totals(self) -> Bucket:
        """The counts of the process's life."""
        total = Bucket()
        total.add(self.life)
        total.add(self.bucket)
        return total

    def healthy(self) -> Bucket:
        """The counts of the last buckets in which a call succeeded, five minutes in all, however long ago."""
        total = Bucket()
        for bucket in (*self._healthy, self.bucket):
            total.add(bucket)
        return total

    def recent(self, now: float) -> Bucket:
        """The counts of the last five minutes. Changes nothing."""
        # A status read must not roll the buckets. Those that have expired since the last call are left out instead: as
        # many of the oldest as buckets should have ended by now.
        idle = max(0, int((now - self._rolls_at) // BUCKET_S) + 1)
        total = Bucket()
        buckets = [*self._past, self.bucket]
        for bucket in buckets[len(buckets) - (BUCKETS - idle) if len(buckets) > BUCKETS - idle else 0 :]:
            total.add(bucket)
        return total


def _later(one: float | None, other: float | None) -> float | None:
    return max((at for at in (one, other) if at is not None), default=None)
