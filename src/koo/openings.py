"""Why a breaker opened, as data: the counts that triggered it, the calls behind them, and what an operator did.

Events carry this data (`events.py`), and incidents are built from it (`incidents.py`). A call is described by its
outcome only: it contains no prompt, key or address.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from koo.errors import Failure

CallWord = Literal[
    "failed", "failed_elsewhere", "slow", "cut", "running", "succeeded", "hung", "inconclusive"
]
"""The outcome of a call. "failed_elsewhere": another model could not reach the host that this one shares; "cut": its
caller's deadline ended it when it was already slow; "running": it has not ended and is already slow; "hung": a probe
whose lease ran out."""

Rule = Literal[
    "failures_in_a_row", "failure_rate", "slow_rate", "probe_failed", "probe_hung", "probes_inconclusive"
]
"""The rule that opened a breaker."""


@dataclass(frozen=True, slots=True)
class SeenCall:
    """A call that a breaker judged: it ended `ago_s` seconds before the event that reports it, after `took_s`.

    `failure` is None if the call did not fail, or if only another model's call did. `in_row`: its position in a run of
    failures; 0 if it is not part of one.
    """

    ago_s: float
    took_s: float
    outcome: CallWord
    failure: Failure | None = None
    in_row: int = 0


@dataclass(frozen=True, slots=True)
class Trip:
    """The arithmetic of one opening: the counts at that moment, and the thresholds that they reached.

    The breaker opens at `in_row_max` failures in a row (`in_row` is the count). The threshold is lower while `primed`
    is not empty: it says which other processes have the circuit open. Of `calls` in the last `window_s` seconds,
    `failures` failed and `slow` took `slow_s` or longer; `running_slow` of the slow calls are still running. From
    `calls_min` calls on, a failure share of `failure_rate_max` or a slow share of `slow_rate_max` opens the breaker.
    `seen`: the calls that failed or were slow, oldest first; `left_out` of them were dropped from the list.
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
    """An operator's act: by whom, why, until when (None: until it is revoked), and when, if that was before now.

    Both times are wall seconds. A process that starts later, or a model that is first used later, meets an old act.
    """

    by: str = ""
    reason: str = ""
    until: float | None = None
    at: float | None = field(default=None, compare=False)

    @property
    def words(self) -> str:
        """For example "ada@desk: the provider is repairing it"; empty if neither part is known."""
        return ": ".join(part for part in (self.by, self.reason) if part)
