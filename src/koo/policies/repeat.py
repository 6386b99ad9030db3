"""May a failed call be made again, and after what pause?

The checks, in this order: is a repeat safe, are attempts left, does the breaker admit it, what pause, does the deadline
leave room for that pause and a usual answer, and last: is there a token of the retry budget. The token is last, because
one taken in vain is missing for calls that could have been repeated.

A call whose own failure opens the breaker ends there, as the next caller's does: only one that asked to wait, and has
no other service to go to, waits until the breaker tests recovery.
"""

from __future__ import annotations

from koo.errors import Kind, describe_s
from koo.options import GuardOptions
from koo.policies.backoff import pause_s
from koo.policies.breaker import FORCED_OPEN, OPEN, Breaker, Draw
from koo.policies.overrides import why_forced
from koo.policies.retry_budget import RetryBudget
from koo.policies.tally import Tally
from koo.policies.verdict import THROTTLED, Fault

LATENCY_S_MIN = 1.0
"""A repeat is not started when less than this (or the usual latency, if longer) is left of the deadline."""
BAD_ANSWERS_MAX = 2
"""Each unreadable answer is paid for, and the one after the second would be no better."""
ANEW_MAX = 4
"""Forms of one call that may be tried beyond its repeats: a server may refuse a few parameters, one after another."""


class Repeats:
    """One guard's repeats; `budget`, which all guards of a dependency share, bounds the load that they add."""

    __slots__ = ("_breaker", "_budget", "_options", "_tally")

    def __init__(self, options: GuardOptions, breaker: Breaker, tally: Tally, budget: RetryBudget) -> None:
        self._options = options
        self._breaker = breaker
        self._tally = tally
        self._budget = budget

    def plan(
        self,
        fault: Fault,
        attempt: int,
        deadline: float,
        paused_until: float,
        now: float,
        draw: Draw,
        *,
        waits_for_breaker: bool,
    ) -> tuple[float | None, str]:
        """The pause before the next attempt, with a token taken for it; or None and why there is none.

        The reason is empty if no repeat was to be expected. `paused_until`: the end of the cooldown that the fault
        belongs to. Times in monotonic seconds.
        """
        retry, breaker = self._options.retry, self._breaker
        throttled = fault.verdict is THROTTLED
        # A call that was turned away was not carried out, so repeating it is safe.
        safe = self._options.idempotent or (throttled and not fault.in_part)
        attempts_max = retry.attempts_max
        if fault.kind is Kind.BAD_ANSWER:
            attempts_max = min(attempts_max, BAD_ANSWERS_MAX)
        if not fault.repeatable or not safe or attempt >= attempts_max:
            return None, ""
        hint_s = fault.retry_after_s or 0.0
        if hint_s > retry.cap_s and not throttled:
            return None, f"it asks for a pause of {describe_s(hint_s)}"
        pause = pause_s(retry, attempt, draw, hint_s)
        if throttled:
            pause = max(pause, paused_until - now)
        if breaker.refuses(now):
            if not waits_for_breaker or breaker.override is FORCED_OPEN:
                return None, why_shut(breaker)
            pause = max(pause, breaker.refusal(now)[1])
        usual_s = max(self._tally.recent(now).percentile_s(0.5), LATENCY_S_MIN)
        if now + pause + usual_s > deadline:
            return None, "the deadline is too near"
        if not self._budget.take(now):
            return None, "the retry budget is empty"
        return pause, ""


def why_shut(breaker: Breaker) -> str:
    """Why the breaker admits nothing now; the error that this is written on says what it opened after."""
    if breaker.override is FORCED_OPEN:
        return f"the circuit was {why_forced(breaker.act)}"
    return (
        f"the circuit has opened after {breaker.cause}"
        if breaker.phase is OPEN
        else "recovery is being tested"
    )
