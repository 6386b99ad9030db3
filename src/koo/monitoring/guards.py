"""Views of guards, and the formats of times and money. Services and the database share them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import overload

from koo.clock import SYSTEM_CLOCK, Clock, iso
from koo.errors import Failure
from koo.guard import Guard
from koo.monitoring.shapes import BreakerStatus, BreakerWord, LastError, Outcomes
from koo.options import NEVER
from koo.policies.breaker import CLOSED, OPEN, Breaker, Override
from koo.policies.money import EXACT
from koo.policies.overrides import BY_RESET, SHADOW_BY_HAND, said_of, why_forced
from koo.policies.tally import Bucket, Tally
from koo.policies.verdict import FAILURE, SUCCESS, THROTTLED

FLOAT_SLACK_MS = 0.01


class Wall:
    """Converts monotonic seconds to wall time, for people."""

    __slots__ = ("_offset_s", "now", "wall")

    def __init__(self, clock: Clock) -> None:
        self.now = clock.monotonic()
        self.wall = clock.wall()
        self._offset_s = self.wall - self.now

    @overload
    def iso(self, monotonic_s: float) -> str: ...
    @overload
    def iso(self, monotonic_s: None) -> None: ...
    @overload
    def iso(self, monotonic_s: float | None) -> str | None: ...
    def iso(self, monotonic_s: float | None) -> str | None:
        """ISO 8601 in UTC, rounded up to the millisecond; None stays None."""
        if monotonic_s is None:
            return None
        # The time is rounded up, because callers wait until then: one that returns a fraction too early is refused once
        # more. The sum of two large floats is off by a fraction of a microsecond, so a small slack is subtracted first.
        # Otherwise exactly midnight would sometimes be shown as one millisecond past it.
        return iso(math.ceil((monotonic_s + self._offset_s) * 1000 - FLOAT_SLACK_MS) / 1000)


def now_iso(clock: Clock = SYSTEM_CLOCK) -> str:
    """The current time in the format of all responses."""
    return iso(clock.wall())


def money(amount_usd: Decimal) -> str:
    """An exact amount, without an exponent and without trailing zeros."""
    text = f"{EXACT.normalize(amount_usd):f}"
    return text if text != "-0" else "0"


# ── breakers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def breaker_word(breaker: Breaker) -> BreakerWord:
    """How a breaker treats calls, in one word: the operator's override if there is one, otherwise its phase."""
    if breaker.override is Override.FORCED_OPEN:
        return "forced_open"
    return "disabled" if breaker.override is Override.DISABLED else breaker.phase.value


def _why(breaker: Breaker) -> str:
    if breaker.override is Override.FORCED_OPEN:
        return why_forced(breaker.act)
    return breaker.reason if breaker.phase is not CLOSED else ""


def _said_of_override(breaker: Breaker) -> str:
    if breaker.override is Override.NONE:
        return ""
    return said_of(breaker.act, SHADOW_BY_HAND if breaker.override is Override.METRICS_ONLY else BY_RESET)


def next_attempt(breaker: Breaker) -> float | None:
    """When an open breaker is tried again, in monotonic seconds; None if it is not open or waits for an operator."""
    if breaker.override is Override.FORCED_OPEN:
        return None if breaker.act_ends_at == NEVER else breaker.act_ends_at
    return breaker.opens_until() if breaker.phase is OPEN else None


def breaker_view(guard: Guard, wall: Wall) -> BreakerStatus:
    """One breaker: its phase, the reason, and when it is tried again."""
    breaker = guard.breaker
    window = breaker.window
    return {
        "name": breaker.name,
        "state": breaker_word(breaker),
        "override": breaker.override.value,
        "operator": _said_of_override(breaker),
        "reason": _why(breaker),
        "primed": breaker.primed,
        "last_error": last_error_view(breaker.last_error),
        "consecutive_failures": breaker.consecutive,
        "failure_threshold": breaker.threshold,
        "success_threshold": breaker.options.success_threshold,
        "recovery_timeout": breaker.options.recovery_s,
        "window": {"calls": window.calls, "failures": window.failures, "slow": window.slow},
        "opened_at": wall.iso(breaker.opened_at) if breaker.trips else None,
        "next_attempt": wall.iso(next_attempt(breaker)),
        "times_opened": breaker.trips,
        "stale_results": breaker.stale,
        "running": breaker.running,
        "incident": breaker.incident or None,
    }


def last_error_view(failure: Failure | None) -> LastError | None:
    """The error of the last call or check that failed."""
    if failure is None:
        return None
    return {
        "kind": failure.kind.value,
        "status": failure.status,
        "sentence": failure.sentence,
        "at": iso(failure.at),
    }


def outcomes_view(tallies: Sequence[Tally], wall: Wall) -> Outcomes:
    """The results of the counted calls; throttled calls count as failed."""
    verdicts = total_of(tallies).verdicts
    failures = [tally.last_failure_at for tally in tallies if tally.last_failure_at is not None]
    successes = [tally.last_success_at for tally in tallies if tally.last_success_at is not None]
    return {
        "failure_count": verdicts[FAILURE] + verdicts[THROTTLED],
        "success_count": verdicts[SUCCESS],
        "last_failure": wall.iso(max(failures, default=None)),
        "last_success": wall.iso(max(successes, default=None)),
    }


def total_of(tallies: Sequence[Tally]) -> Bucket:
    """Several tallies added up, since the process started."""
    total = Bucket()
    for tally in tallies:
        total.add(tally.totals())
    return total


def recent_of(tallies: Sequence[Tally], now: float) -> Bucket:
    """Several tallies added up, over the last five minutes."""
    recent = Bucket()
    for tally in tallies:
        recent.add(tally.recent(now))
    return recent
