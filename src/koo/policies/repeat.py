"""Whether a failed call may be repeated, and after what pause.

The checks, in this order: Is a repeat safe? Are attempts left? Does the breaker admit it? How long is the pause? Does
the deadline leave time for that pause and a usual response? Is there a token in the retry budget? The token comes last,
because a token that is taken and not used is missing for a call that could have been repeated.

If a call's own failure opens the breaker, the call ends: the breaker refuses a repeat like any other call. It waits for
the next test of recovery only if its caller chose to wait and there is no other service to fall back to.
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
"""A repeat is not started if less time than this, or than the usual latency if that is longer, is left."""
BAD_ANSWERS_MAX = 2
"""Attempts in all if the response is unreadable. Each is billed, and a third is unlikely to be better than the
second."""
ANEW_MAX = 4
"""How many other forms of one call may be tried in addition to its repeats. A server may reject several parameters, one
after another."""


class Repeats:
    """One guard's repeats. All guards of a dependency share the `budget`, which bounds the load added by repeats."""

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
        """The pause before the next attempt, with a token taken for it; or None and the reason why there is none.

        The reason is empty if no repeat was expected. `paused_until`: when the cooldown that the fault has caused ends.
        Times in monotonic seconds.
        """
        retry, breaker = self._options.retry, self._breaker
        throttled = fault.verdict is THROTTLED
        # A throttled call was not carried out, so a repeat is safe even if the call is not idempotent.
        safe = self._options.idempotent or (throttled and not fault.in_part)
        attempts_max = retry.attempts_max
        if fault.kind is Kind.BAD_ANSWER:
            attempts_max = min(attempts_max, BAD_ANSWERS_MAX)
        if not fault.repeatable or not safe or attempt >= attempts_max:
            return None, ""
        # If the server asks for a longer pause than the cap, the call ends: after a shorter pause it would only be
        # refused again. After a 429 any hint is accepted, because the cooldown keeps all calls away for that time
        # anyway, and the deadline decides whether this call can wait.
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
        # A repeat that has too little time for a usual response would be billed, and then cut off by the deadline.
        usual_s = max(self._tally.recent(now).percentile_s(0.5), LATENCY_S_MIN)
        if now + pause + usual_s > deadline:
            return None, "the deadline is too near"
        if not self._budget.take(now):
            return None, "the retry budget is empty"
        return pause, ""


def why_shut(breaker: Breaker) -> str:
    """Why the breaker admits no call now, as a note for an error that names the last failure itself."""
    if breaker.override is FORCED_OPEN:
        return f"the circuit was {why_forced(breaker.act)}"
    return (
        f"the circuit has opened after {breaker.cause}"
        if breaker.phase is OPEN
        else "recovery is being tested"
    )
