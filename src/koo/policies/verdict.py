"""What a call came to: three verdicts, not two, and a fourth for "too fast".

NEUTRAL is a necessity. A cancelled call counted as a failure opens circuits when users navigate away; counted as a
success it closes one on a dead backend; not recorded at all it leaks the probe's slot forever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from koo.errors import Failure, Kind
from koo.failures import failure_of


class Verdict(IntEnum):
    """How a settled call moves the breaker."""

    SUCCESS = 0
    FAILURE = 1
    NEUTRAL = 2
    THROTTLED = 3


# Module names, because a class attribute of an enum costs a dictionary lookup on each use.
SUCCESS, FAILURE, NEUTRAL, THROTTLED = Verdict

Reach = Literal["model", "service"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What an error means: a classifier's answer.

    `repeatable`: a repeat may succeed; whether it is safe is the guard's decision. `reach`: how far the failure
    extends, so that an unreachable host counts for all models. `block`: refuse from now on until the key (or the key
    for this model) works again. `billed`: the other side may have done paid work. `in_part`: something beyond what was
    turned away may have been done. `anew`: the same may pass at once, in another form. `error`: raise this instead,
    `from` the original. `until_wall_s`: a key block's or quota's known end. `failure`: what it was, for people, if
    `error` does not say so; a guard adds the time.
    """

    verdict: Verdict
    kind: Kind = Kind.UNKNOWN
    repeatable: bool = False
    retry_after_s: float | None = None
    until_wall_s: float | None = None
    anew: bool = False
    reach: Reach = "model"
    block: Reach | None = None
    billed: bool = True
    in_part: bool = False
    error: Exception | None = None
    failure: Failure | None = field(default=None, compare=False)

    @property
    def met(self) -> Failure:
        """What to report of it: its own words, its error's, or at least its kind."""
        if self.failure is not None:
            return self.failure
        if self.error is not None:
            return failure_of(self.error, self.kind)
        return Failure(self.kind, f"it ended with {self.kind.value}")


Classify = Callable[[Exception], Fault]

CANCELLED = Fault(verdict=NEUTRAL, kind=Kind.CANCELLED)
"""Any `BaseException` that is not an `Exception`: the caller left."""
UNJUDGED = Fault(verdict=NEUTRAL)
"""A classifier that itself raised must not keep the permit."""
