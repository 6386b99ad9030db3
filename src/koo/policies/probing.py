"""Probes of a fleet: when recovery is tested, few calls go to the provider, however many processes wait for it.

A probe needs a *unit*, which the store hands out with a beat. There are `probe_concurrency` of them for all processes
together. One whose probe failed is not handed out again before a recovery time has passed since it was. One that is not
used within three beats is given back, because a process without calls tests nothing. A breaker closes by its own probes
alone; each that has closed lets two more units be handed out (as rule R16 lets calls through), so a hundred processes
have recovered after seven rounds and not after a hundred.

A process alone on its store, and each process while the store is away, has all probes of its own breaker.
"""

from __future__ import annotations

from typing import NamedTuple

from koo.policies.fleet import GuardKey, ProbeAsk

UNUSED_BEATS = 3
"""How long a unit stays with a process that does not use it."""
HELD_BEATS = 5
"""How long one lasts of which nothing more is heard: its process was killed. Longer than any process keeps one."""
RAMP_FACTOR = 2
"""How many units each process that has recovered makes room for: it has shown that the provider answers."""


def units_of_fleet(probe_concurrency: int, recovered: int) -> int:
    """How many probes may run at once, where so many processes have closed by their own probes lately."""
    return max(probe_concurrency, RAMP_FACTOR * recovered)


def granted(wanted: int, units: int, others_have: int) -> int:
    """How many of them a process gets."""
    return max(0, min(wanted, units - others_have))


class Sight(NamedTuple):
    """What is seen of a breaker at a beat. `is_due`: it tests recovery, or will before the next beat.

    `given`: how many permits it ever gave; of one that is not closed each was a probe. `is_wanted`: it was called
    lately.
    """

    is_closed: bool
    is_open: bool
    is_due: bool
    is_probing: bool
    is_wanted: bool
    given: int


class Unit:
    """What one process has of the units of one guard; times are monotonic seconds."""

    __slots__ = ("_given", "_is_used", "_used_at", "_waits_until", "count")

    def __init__(self) -> None:
        self.count = 0
        self._used_at = self._waits_until = float("-inf")
        self._given = 0
        self._is_used = False

    def ask(self, about: Terms, sight: Sight, now: float) -> ProbeAsk | None:
        """What the next beat says about it; None: nothing."""
        if self.count:
            return self._use(about, sight, now)
        if sight.is_due and sight.is_wanted and now >= self._waits_until:
            return about.ask(about.concurrency, HELD_BEATS * about.beat_s)
        return None

    def _use(self, about: Terms, sight: Sight, now: float) -> ProbeAsk | None:
        if sight.given > self._given:
            self._given, self._used_at, self._is_used = sight.given, now, True
        count = self.count
        if sight.is_open and self._is_used:
            # Its probe failed: no other process tries before this one could have tried again.
            self.count, self._waits_until = 0, now + about.recovery_s
            return about.ask(count, about.recovery_s, is_kept=True)
        idle_s = UNUSED_BEATS * about.beat_s
        if sight.is_closed or (not sight.is_probing and now - self._used_at >= idle_s):
            # The others first: a process that asks again at once would have it again.
            self.count, self._waits_until = 0, now + idle_s
            return about.ask(0, 0.0)
        return about.ask(count, HELD_BEATS * about.beat_s, is_kept=True)

    def hear(self, count: int, given: int, now: float) -> None:
        """So many were granted, for what was asked at `now`."""
        self.count, self._used_at, self._given, self._is_used = count, now, given, False

    def give_up(self) -> None:
        """There is no fleet now: nothing is had of it."""
        self.count, self._waits_until = 0, float("-inf")


class Terms(NamedTuple):
    """What holds for one guard's units: how many there are, and for how long one is used up by a failed probe."""

    key: GuardKey
    concurrency: int
    recovery_s: float
    beat_s: float

    def ask(self, units: int, for_s: float, *, is_kept: bool = False) -> ProbeAsk:
        """Ask for so many, or tell that they are kept; none: they are given back."""
        return ProbeAsk(self.key, units, for_s, self.concurrency, is_kept)
