"""The phases of a circuit breaker, what an operator may do to it, and every transition there is."""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """The only source of transitions."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Override(Enum):
    """What an operator allows the breaker to do."""

    NONE = "none"
    FORCED_OPEN = "forced_open"
    DISABLED = "disabled"
    METRICS_ONLY = "metrics_only"


class Trigger(Enum):
    """What moves a breaker from phase to phase."""

    TRIPPED = "too many failures in a row, or too large a share of failed or slow calls"
    TIME_WAS_OVER = "the time to stay open is over"
    ANSWERED = "a database answers its checks again"
    ANSWERED_ELSEWHERE = "a probe of another process succeeded"
    PROBES_SUCCEEDED = "enough probes succeeded"
    PROBE_FAILED = "a probe failed, or its lease ran out"
    PROBES_SAID_NOTHING = "too many probes ended without a verdict"
    STAYED_IDLE = "a check succeeded after a long time without calls"
    RESET = "an operator reset it"


CLOSED, OPEN, HALF_OPEN = Phase
NONE, FORCED_OPEN, DISABLED, METRICS_ONLY = Override

TRANSITIONS: dict[tuple[Phase, Trigger], Phase] = {
    (CLOSED, Trigger.TRIPPED): OPEN,
    (OPEN, Trigger.TIME_WAS_OVER): HALF_OPEN,
    (OPEN, Trigger.ANSWERED): HALF_OPEN,
    (OPEN, Trigger.ANSWERED_ELSEWHERE): HALF_OPEN,
    (HALF_OPEN, Trigger.PROBES_SUCCEEDED): CLOSED,
    (HALF_OPEN, Trigger.PROBE_FAILED): OPEN,
    (HALF_OPEN, Trigger.PROBES_SAID_NOTHING): OPEN,
    (HALF_OPEN, Trigger.STAYED_IDLE): CLOSED,
    (CLOSED, Trigger.RESET): CLOSED,
    (OPEN, Trigger.RESET): CLOSED,
    (HALF_OPEN, Trigger.RESET): CLOSED,
}
"""Every transition; `docs/states.md` is generated from it. An event in a state that is missing here is a bug."""
