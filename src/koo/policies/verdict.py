"""The outcome of a call: three verdicts, not two, and a fourth for "too fast".

NEUTRAL is needed for calls that say nothing about the dependency, such as cancelled ones. Counted as failures, they
would open circuits when users navigate away. Counted as successes, they would close the circuit of a dead backend. Not
recorded at all, each would leak its probe's slot forever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from koo.errors import Failure, Kind
from koo.failures import failure_of


class Verdict(IntEnum):
    """How a settled call counts for the breaker."""

    SUCCESS = 0
    FAILURE = 1
    NEUTRAL = 2
    THROTTLED = 3


# These are module globals, because each access through the enum class costs an extra lookup, and every call makes
# several.
SUCCESS, FAILURE, NEUTRAL, THROTTLED = Verdict

Reach = Literal["model", "service"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What an error means: the result of a classifier.

    `repeatable`: a repeat may succeed; the guard decides whether it is safe. `reach`: how far the failure extends (an
    unreachable host counts for all models). `block`: refuse calls until the key, or the key for this model, works
    again. `billed`: the service may have done paid work. `in_part`: the refused call may have been carried out in part.
    `anew`: the same call may pass immediately in another form. `unmade`: the call was not made, so it enters the gates
    again, as often as its deadline allows. `error`: raise this instead, `from` the original. `until_wall_s`: when a key
    block or quota ends, if known. `failure`: a description for people, if `error` has none; a guard adds the time.
    """

    verdict: Verdict
    kind: Kind = Kind.UNKNOWN
    repeatable: bool = False
    retry_after_s: float | None = None
    until_wall_s: float | None = None
    anew: bool = False
    unmade: bool = False
    reach: Reach = "model"
    block: Reach | None = None
    billed: bool = True
    in_part: bool = False
    error: Exception | None = None
    failure: Failure | None = field(default=None, compare=False)

    @property
    def met(self) -> Failure:
        """What to report: the fault's own description, else its error's, else at least its kind."""
        if self.failure is not None:
            return self.failure
        if self.error is not None:
            return failure_of(self.error, self.kind)
        return Failure(self.kind, f"it ended with {self.kind.value}")


Classify = Callable[[Exception], Fault]

CANCELLED = Fault(verdict=NEUTRAL, kind=Kind.CANCELLED)
"""The fault for any `BaseException` that is not an `Exception`: the caller is gone."""
UNJUDGED = Fault(verdict=NEUTRAL)
"""The fault for an error whose classifier itself raised. It is NEUTRAL, so that the permit ends without a wrong
verdict."""
