"""The phases of a circuit breaker, an operator's overrides, and the table of all transitions."""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """The state of a breaker; `TRANSITIONS` lists every allowed change."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Override(Enum):
    """What an operator has ordered, independent of the phase."""

    NONE = "none"
    FORCED_OPEN = "forced_open"
    DISABLED = "disabled"
    METRICS_ONLY = "metrics_only"


class Trigger(Enum):
    """What moves a breaker from one phase to another; the values are the reasons shown to people."""

    TRIPPED = "too many failures in a row, or too large a share of failed or slow calls"
    TIME_WAS_OVER = "its open time is over"
    ANSWERED = "a database answers its checks again"
    ANSWERED_ELSEWHERE = "a probe in another process succeeded"
    PROBES_SUCCEEDED = "enough probes succeeded"
    PROBE_FAILED = "a probe failed, or its lease ended"
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
"""Every transition; `docs/states.md` is generated from this table. A trigger in a phase that is not listed is a bug."""
