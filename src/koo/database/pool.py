"""What the pool is doing, in plain integers from SQLAlchemy's events and koo's own phases.

Each phase has its own latencies, because they blame different parties: `gate_wait` is our own saturation, `connect`,
`statement` and `commit` are the database, and `hold` (how long a scope keeps its connection) is the user's code.
"""

from __future__ import annotations

from typing import Any

from koo.policies.tally import Tally

PHASES = ("gate_wait", "connect", "statement", "commit", "hold")


class PoolMetrics:
    """Counts of the process's life and latencies of the last five minutes."""

    __slots__ = (
        "aborted",
        "broken",
        "closed",
        "commit",
        "connect",
        "contention",
        "created",
        "errors",
        "gate_wait",
        "hold",
        "last_error",
        "repeats",
        "replays",
        "stale",
        "statement",
        "unknown_commits",
    )  # fmt: skip

    def __init__(self, now: float) -> None:
        self.gate_wait = Tally(now)
        self.connect = Tally(now)
        self.statement = Tally(now)
        self.commit = Tally(now)
        self.hold = Tally(now)
        self.created = self.closed = 0
        self.broken = 0  # lost while in use
        self.stale = 0  # found dead before use, and replaced unseen
        self.aborted = 0  # cut off by koo, because they were too late
        self.replays = 0
        self.repeats = 0
        self.contention = 0
        self.unknown_commits = 0
        self.errors: dict[str, int] = {}
        self.last_error: str | None = None

    def count_error(self, kind: str, name: str) -> None:
        """An error that the engine reported: its kind, and the class of the driver's exception."""
        self.errors[kind] = self.errors.get(kind, 0) + 1
        self.last_error = f"{kind} ({name})"

    def connections(self) -> dict[str, int]:
        """What became of connections."""
        return {
            "created": self.created,
            "closed": self.closed,
            "broken": self.broken,
            "stale_replaced": self.stale,
            "aborted": self.aborted,
        }

    def times(self, now: float) -> dict[str, Any]:
        """Seconds of each phase: `count` of the process's life, the rest of the last five minutes."""
        return {phase: _times(getattr(self, phase), now) for phase in PHASES}


def _times(tally: Tally, now: float) -> dict[str, float]:
    recent = tally.recent(now)
    return {
        "count": tally.first_successes,
        "average": recent.mean_s(),
        "p50": recent.percentile_s(0.50),
        "p95": recent.percentile_s(0.95),
        "p99": recent.percentile_s(0.99),
    }
