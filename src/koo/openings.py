"""Why a breaker opened, as facts: the arithmetic of the trigger, the calls behind it, and what an operator did.

Events carry them (`events.py`), incidents are made of them (`incidents.py`). A call is known by what it met: there is
no prompt, key or address in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from koo.errors import Failure

CallWord = Literal[
    "failed", "failed_elsewhere", "slow", "cut", "running", "succeeded", "hung", "inconclusive"
]
"""What became of a call. "failed_elsewhere": another model could not reach the host that this one shares; "cut": its
caller's deadline ended it when it was slow already; "running": it has not ended, and is slow already; "hung": a probe
whose time was over."""

Rule = Literal[
    "failures_in_a_row", "failure_rate", "slow_rate", "probe_failed", "probe_hung", "probes_inconclusive"
]
"""What moved a breaker to open."""


@dataclass(frozen=True, slots=True)
class SeenCall:
    """A call that a breaker judged: it ended `ago_s` seconds before the event that reports it, after `took_s`.

    `failure`: what it met; None: it did not fail, or only another model did. `in_row`: its position in a run of
    failures; 0: it is not in one.
    """

    ago_s: float
    took_s: float
    outcome: CallWord
    failure: Failure | None = None
    in_row: int = 0


@dataclass(frozen=True, slots=True)
class Trip:
    """The arithmetic of one opening: the counts as they were, and the thresholds that they met.

    `in_row` failures in a row open at `in_row_max` (fewer where it is `primed`: by others, in words). Of `calls` in the
    last `window_s` seconds `failures` failed and `slow` took `slow_s` or longer; `running_slow` are those of them that
    have not ended. From `calls_min` calls on, the shares `failure_rate_max` and `slow_rate_max` open. `seen`: the calls
    that failed or were slow, the oldest first; `left_out` of them are not kept.
    """

    rule: Rule
    in_row: int
    in_row_max: int
    calls: int
    failures: int
    slow: int
    running_slow: int
    calls_min: int
    failure_rate_max: float
    slow_rate_max: float
    window_s: float
    slow_s: float
    primed: str = ""
    seen: tuple[SeenCall, ...] = ()
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Act:
    """An operator's act: by whom, why, and until when (wall seconds; None: until it is taken back)."""

    by: str = ""
    reason: str = ""
    until: float | None = None

    @property
    def words(self) -> str:
        """ "ada@desk: the provider repairs it"; empty where neither is known."""
        return ": ".join(part for part in (self.by, self.reason) if part)
