"""Counts what the pool does, in plain integers, from SQLAlchemy's events and koo's own phases.

Each phase has its own latencies, because they have different causes: `gate_wait` is koo's own saturation, `connect`,
`statement` and `commit` are the database, and `hold` (how long a scope keeps its connection) is the user's code.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from koo.monitoring.shapes import ConnectionCounts, Phases, PhaseTimes, Spread
from koo.policies.tally import Bucket, Tally

SAMPLES_MAX = 20_000
FAILURES_MAX = 1000
DISK_FULL_S = 60.0
"""How long the database counts as full after a write found no room. The probe only reads, so it cannot detect this.
Without the delay an alert would begin with each write and end with each probe."""


class Latencies:
    """The durations of one phase. `note` is the queue's own `append`; the histogram is computed when it is read."""

    __slots__ = ("_samples", "_tally", "listener", "note")

    def __init__(self, now: float) -> None:
        self._tally = Tally(now)
        # The queue is bounded, because without a tick or a reader it would grow forever.
        self._samples: deque[float] = deque(maxlen=SAMPLES_MAX)
        # This is the bound method itself, because it is called for every statement: a function around it would cost
        # each call more than the append.
        self.note = self._samples.append
        self.listener: Callable[[Sequence[float]], None] | None = (
            None  # receives each duration once, in `fold`
        )

    @property
    def count(self) -> int:
        """The number of durations since the process started."""
        return self._tally.first_successes + len(self._samples)

    def fold(self, now: float) -> None:
        """Add the noted durations to the tally. The tick does so each second, so each duration is counted in the right
        15 s."""
        if self._samples:
            self._tally.record_successes(self._samples, now)
            if self.listener is not None:
                self.listener(tuple(self._samples))
            self._samples.clear()

    def recent(self, now: float) -> Bucket:
        """The durations of the last five minutes."""
        self.fold(now)
        return self._tally.recent(now)


class PoolMetrics:
    """Counts since the process started, and latencies of the last five minutes."""

    def __init__(self, now: float) -> None:
        self.gate_wait = Latencies(now)
        self.connect = Latencies(now)
        self.statement = Latencies(now)
        self.commit = Latencies(now)
        self.hold = Latencies(now)
        self.created = self.closed = 0
        self.is_read_only = False  # according to the last write or probe
        self.disk_full_at = float("-inf")  # when a write found no room
        self.is_without_wal = False  # SQLite, by the newest connection
        self.broken = 0  # lost while in use
        self.stale = 0  # found dead before use, and replaced without an error
        self.aborted = 0  # closed by koo because they took too long
        self.replays = 0
        self.repeats = 0
        self.contention = 0
        self.unknown_commits = 0
        self.resolved_commits = 0  # lost COMMITs whose outcome was found through their markers
        self.marker_problem: str | None = None  # why the table of markers cannot be used
        self.unknown_commit_at = float("-inf")  # when the last one happened
        self.errors: dict[str, int] = {}
        self.last_error: str | None = None
        # Recent failures, by kind and time, for a listener. Bounded, because there may be no listener.
        self.failures: deque[tuple[str, float]] = deque(maxlen=FAILURES_MAX)

    def count_error(self, kind: str, name: str) -> None:
        """Count an error that the engine reported, by its kind and the class of the driver's exception."""
        self.errors[kind] = self.errors.get(kind, 0) + 1
        self.last_error = f"{kind} ({name})"

    def note_unknown_commit(self, now: float) -> None:
        """Count a COMMIT whose outcome is unknown."""
        self.unknown_commits += 1
        self.unknown_commit_at = now

    def note_resolved_commit(self, *, was_unknown: bool = False) -> None:
        """Count a lost COMMIT whose outcome was found; `was_unknown` if it had been counted as unknown before."""
        self.resolved_commits += 1
        if was_unknown:
            self.unknown_commits -= 1
            if not self.unknown_commits:
                self.unknown_commit_at = float("-inf")

    def note_role(self, read_only: bool, now: float) -> None:
        """Record whether the server refused writes when it was probed."""
        self.is_read_only = read_only or now - self.disk_full_at < DISK_FULL_S

    def fold(self, now: float) -> None:
        """Add the noted durations to the tallies."""
        for phase in (self.gate_wait, self.connect, self.statement, self.commit, self.hold):
            phase.fold(now)

    def connections(self) -> ConnectionCounts:
        """Counts of connections, by what happened to them."""
        return {
            "created": self.created,
            "closed": self.closed,
            "broken": self.broken,
            "stale_replaced": self.stale,
            "aborted": self.aborted,
        }

    def times(self, now: float) -> Phases:
        """The durations of each phase: `count` since the process started, the rest for the last five minutes."""
        return {
            "gate_wait": _times(self.gate_wait, now),
            "connect": _times(self.connect, now),
            "statement": _times(self.statement, now),
            "commit": _times(self.commit, now),
            "hold": _times(self.hold, now),
        }


def _times(latencies: Latencies, now: float) -> PhaseTimes:
    return {"count": latencies.count, **spread_of(latencies.recent(now))}


def spread_of(recent: Bucket) -> Spread:
    """The mean and the percentiles."""
    return {
        "average": recent.mean_s(),
        "p50": recent.percentile_s(0.50),
        "p95": recent.percentile_s(0.95),
        "p99": recent.percentile_s(0.99),
    }
