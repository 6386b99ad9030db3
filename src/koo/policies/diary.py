"""The last calls of a breaker that failed, were slow or were probes, so that an opening can be explained.

Calls that succeed in time are not recorded: the window counts them, and recording each one would slow down every call.
The rows are in chronological order, and their number is bounded. A breaker whose calls all succeed has none.
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
"""More rows than an explanation needs, and only a few kilobytes for a breaker in trouble."""

SLACK_S = 1e-6
"""The beginning of a window is computed from its end, and may be off by a rounding error."""
FAILED = ("failed", "failed_elsewhere")
PROBES: dict[Verdict, CallWord] = {SUCCESS: "succeeded", FAILURE: "failed"}
"""The word for a probe's verdict; a probe with any other verdict is inconclusive."""
OF_PROBES = ("probe_failed", "probe_hung", "probes_inconclusive")


class Counted(Protocol):
    """The numbers of a breaker that explain an opening."""

    window: Window
    options: BreakerOptions
    consecutive: int
    threshold: int
    slow_s: float
    primed: str


class Row(NamedTuple):
    """A call that ended at `at` (monotonic seconds)."""

    at: float
    took_s: float
    outcome: CallWord
    failure: Failure | None
    in_row: int

    def seen_from(self, now: float) -> SeenCall:
        """The call of this row, as reported at `now`."""
        return SeenCall(max(now - self.at, 0.0), self.took_s, self.outcome, self.failure, self.in_row)


NONE: deque[Row] = deque(maxlen=0)
"""Shared by all breakers that have no rows. An empty deque takes 760 bytes, and there may be ten thousand guards."""


class Diary:
    """The rows of one breaker."""

    __slots__ = ("rows",)

    def __init__(self) -> None:
        self.rows = NONE

    def note(
        self, at: float, took_s: float, outcome: CallWord, failure: Failure | None = None, in_row: int = 0
    ) -> None:
        """Record a call that has ended or was given up."""
        if self.rows is NONE:
            self.rows = deque(maxlen=CALLS_MAX)
        self.rows.append(Row(at, took_s, outcome, failure, in_row))

    def clear(self) -> None:
        """Drop all rows: a new phase begins, and they explain nothing that happens in it."""
        self.rows = NONE

    def all(self, now: float) -> tuple[SeenCall, ...]:
        """Every row, the oldest first."""
        return tuple(row.seen_from(now) for row in self.rows)

    def trip(self, rule: Rule, now: float, counted: Counted, hung_s: Sequence[float]) -> Trip:
        """The explanation of an opening at `now`. `hung_s`: for each running call that is already slow, its
        duration."""
        window, options = counted.window, counted.options
        # In HALF_OPEN the running calls are probes. They are judged by their leases, not by the slow rate.
        if rule in OF_PROBES:
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
        """The rows in the window; with `by_row` also the failures in a row that happened before it."""
        # Goes back to the first of the failures in a row. With rare calls, five failures may reach back hours. Without
        # those before the window, the explanation would show fewer failures than the threshold.
        kept: list[Row] = []
        for row in reversed(self.rows):
            if row.at < begun_at and not by_row:
                break
            kept.append(row)
            by_row = by_row and row.in_row != 1
        return kept[::-1]
