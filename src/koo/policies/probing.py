"""Probes of a fleet: when recovery is tested, few calls go to the provider, however many processes wait for it.

A probe needs a *unit*, which the store grants with a beat. All processes together have `probe_concurrency` of them. If
a unit's probe failed, it is not granted again before a recovery time has passed. A unit unused for three beats is given
back, because a process without calls tests nothing. A breaker closes by its own probes only; each one that has closed
makes room for two more units (as rule R16 admits calls), so a hundred processes recover after seven rounds instead of a
hundred.

A process alone on its store, and each process while the store is away, has all probes of its own breaker.
"""

from __future__ import annotations

from typing import NamedTuple

from koo.policies.fleet import GuardKey, ProbeAsk

UNUSED_BEATS = 3
"""How long a unit stays with a process that does not use it."""
HELD_BEATS = 5
"""How long a unit lasts without news: its process was killed. Longer than any process keeps one."""
RAMP_FACTOR = 2
"""How many units each recovered process makes room for: it has shown that the provider answers."""


def units_of_fleet(probe_concurrency: int, recovered: int) -> int:
    """How many probes may run at once, after `recovered` processes have lately closed by their own probes."""
    return max(probe_concurrency, RAMP_FACTOR * recovered)


def granted(wanted: int, units: int, others_have: int) -> int:
    """How many of the wanted units a process gets."""
    return max(0, min(wanted, units - others_have))


class Sight(NamedTuple):
    """A breaker as seen at a beat. `is_due`: it tests recovery, or will before the next beat.

    `given`: permits ever granted; each one of a breaker that is not closed was a probe. `is_wanted`: it was called
    lately.
    """

    is_closed: bool
    is_open: bool
    is_due: bool
    is_probing: bool
    is_wanted: bool
    given: int


class Unit:
    """What one process holds of one guard's units; times are monotonic seconds."""

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
            # Its probe failed: no other process may try before this one could have tried again.
            self.count, self._waits_until = 0, now + about.recovery_s
            return about.ask(count, about.recovery_s, is_kept=True)
        idle_s = UNUSED_BEATS * about.beat_s
        if sight.is_closed or (not sight.is_probing and now - self._used_at >= idle_s):
            # Other processes come first: one that asks again at once would get the same unit again.
            self.count, self._waits_until = 0, now + idle_s
            return about.ask(0, 0.0)
        return about.ask(count, HELD_BEATS * about.beat_s, is_kept=True)

    def hear(self, count: int, given: int, now: float) -> None:
        """`count` units were granted, for the request made at `now`."""
        self.count, self._used_at, self._given, self._is_used = count, now, given, False

    def give_up(self) -> None:
        """There is no fleet now: units held from it are void."""
        self.count, self._waits_until = 0, float("-inf")


class Terms(NamedTuple):
    """Conditions of one guard's units: how many exist, and for how long a failed probe uses one up."""

    key: GuardKey
    concurrency: int
    recovery_s: float
    beat_s: float

    def ask(self, units: int, for_s: float, *, is_kept: bool = False) -> ProbeAsk:
        """Request this many units, or report that they are kept; zero gives them back."""
        return ProbeAsk(self.key, units, for_s, self.concurrency, is_kept)
