"""The last calls that a breaker judged and that did not simply succeed, so that an opening can be explained.

A call that succeeds in time never comes here: it is counted in the window, and a diary of successes would cost each of
them. The number kept is bounded, in time order; a breaker whose calls all succeed keeps nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from koo.errors import Failure
from koo.openings import CallWord, Rule, SeenCall, Trip
from koo.options import BreakerOptions
from koo.policies.verdict import FAILURE, SUCCESS, Verdict
from koo.policies.window import Window

CALLS_MAX = 200
"""More than any threshold needs, and some kilobytes at most for one breaker in trouble."""

SLACK_S = 1e-6
"""A window's beginning is worked out of its end, and may be off by a rounding."""
FAILED = ("failed", "failed_elsewhere")
PROBES: dict[Verdict, CallWord] = {SUCCESS: "succeeded", FAILURE: "failed"}
"""What a probe with a verdict is called; any other is inconclusive."""
OF_PROBES = ("probe_failed", "probe_hung", "probes_inconclusive")


class Counted(Protocol):
    """What the arithmetic of an opening is made of: the breaker's own numbers."""

    window: Window
    options: BreakerOptions
    consecutive: int
    threshold: int
    slow_s: float
    primed: str


class Row(NamedTuple):
    """A call that ended at monotonic `at`."""

    at: float
    took_s: float
    outcome: CallWord
    failure: Failure | None
    in_row: int

    def seen_from(self, now: float) -> SeenCall:
        """The same, told at `now`."""
        return SeenCall(max(now - self.at, 0.0), self.took_s, self.outcome, self.failure, self.in_row)


NONE: deque[Row] = deque(maxlen=0)
"""In place of the rows of a breaker that has none: ten thousand of them would fill the memory with empty queues."""


class Diary:
    """The rows of one breaker."""

    __slots__ = ("rows",)

    def __init__(self) -> None:
        self.rows = NONE

    def note(
        self, at: float, took_s: float, outcome: CallWord, failure: Failure | None = None, in_row: int = 0
    ) -> None:
        """A call has ended, or is given up."""
        if self.rows is NONE:
            self.rows = deque(maxlen=CALLS_MAX)
        self.rows.append(Row(at, took_s, outcome, failure, in_row))

    def clear(self) -> None:
        """What was, explains nothing of what comes."""
        self.rows = NONE

    def all(self, now: float) -> tuple[SeenCall, ...]:
        """Every row, the oldest first."""
        return tuple(row.seen_from(now) for row in self.rows)

    def trip(self, rule: Rule, now: float, counted: Counted, hung_s: Sequence[float]) -> Trip:
        """Why the breaker opens now. `hung_s`: how long each call has lasted that runs and is slow already."""
        window, options = counted.window, counted.options
        if rule in OF_PROBES:  # what runs then are probes, with a time of their own
            hung_s = ()
        rows, left_out = list(self.rows), 0
        if rule not in OF_PROBES:
            rows = self._judged(window.begun_at - SLACK_S, rule == "failures_in_a_row")
            failed = sum(row.outcome in FAILED for row in rows)
            left_out = max(window.failures - failed, 0)
        running = [SeenCall(0.0, took_s, "running") for took_s in hung_s]
        seen = [*(row.seen_from(now) for row in rows), *running]
        return Trip(
            rule=rule,
            in_row=counted.consecutive,
            in_row_max=counted.threshold,
            calls=window.calls + len(running),
            failures=window.failures,
            slow=window.slow + len(running),
            running_slow=len(running),
            calls_min=options.calls_min,
            failure_rate_max=options.failure_rate,
            slow_rate_max=options.slow_rate,
            window_s=options.window_s,
            slow_s=counted.slow_s,
            primed=counted.primed,
            seen=tuple(seen[-CALLS_MAX:]),
            left_out=left_out + max(len(seen) - CALLS_MAX, 0),
        )

    def _judged(self, begun_at: float, by_row: bool) -> list[Row]:
        """The rows of the window, and `by_row` those of a row of failures that began before it."""
        kept: list[Row] = []
        for row in reversed(self.rows):
            if row.at < begun_at and not by_row:
                break
            kept.append(row)
            by_row = by_row and row.in_row != 1
        return kept[::-1]
