"""Probe units: a fleet sends few probes to a recovering provider, however many processes are waiting for it.

A probe needs a *unit*, which the store grants with a beat. All processes together have `probe_concurrency` units. After
a failed probe its unit is not granted again until a recovery time has passed. A unit that is not used for three beats
is given back, because a process without calls tests nothing. A breaker closes only after its own probes succeed. Each
breaker that has closed makes room for two more units (a closed breaker admits its calls in the same way), so a hundred
processes recover in seven rounds instead of a hundred.

A process that is alone on its store has all probes of its own breaker, and so has every process while the store is
unreachable.
"""

from __future__ import annotations

from typing import NamedTuple

from koo.policies.fleet import GuardKey, ProbeAsk

UNUSED_BEATS = 3
"""How many beats a process keeps a unit that it does not use. Meanwhile a process that has calls must wait for it."""
HELD_BEATS = 5
"""How many beats a unit lasts in the store without a report from its process, which was probably killed. It exceeds
`UNUSED_BEATS`, so a living process always gives a unit back before the store takes it away."""
RAMP_FACTOR = 2
"""How many units each recovered process makes room for. Its success is evidence that the provider answers, and doubling
per round is how every breaker ramps up its own calls."""


def units_of_fleet(probe_concurrency: int, recovered: int) -> int:
    """How many probes may run at once when `recovered` processes closed by their own probes in the last minute."""
    return max(probe_concurrency, RAMP_FACTOR * recovered)


def granted(wanted: int, units: int, others_have: int) -> int:
    """How many of the wanted units a process is granted."""
    return max(0, min(wanted, units - others_have))


class Sight(NamedTuple):
    """A breaker as a beat finds it. `is_due`: it is testing recovery, or will before the next beat.

    `given`: how many permits it has granted so far; while it is not closed, each new one is a probe. `is_wanted`: it
    was called in the last minute.
    """

    is_closed: bool
    is_open: bool
    is_due: bool
    is_probing: bool
    is_wanted: bool
    given: int


class Unit:
    """The units that one process holds for one guard; times are monotonic seconds."""

    __slots__ = ("_given", "_is_used", "_used_at", "_waits_until", "count")

    def __init__(self) -> None:
        self.count = 0
        self._used_at = self._waits_until = float("-inf")
        self._given = 0
        self._is_used = False

    def ask(self, about: Terms, sight: Sight, now: float) -> ProbeAsk | None:
        """What the next beat requests or reports; None if there is nothing to report."""
        if self.count:
            return self._use(about, sight, now)
        if sight.is_due and sight.is_wanted and now >= self._waits_until:
            return about.ask(about.concurrency, HELD_BEATS * about.beat_s)
        return None

    def _use(self, about: Terms, sight: Sight, now: float) -> ProbeAsk | None:
        # Whether the unit was used is inferred from the breaker's permit count: probes run between beats, and one may
        # have been granted and have failed before this beat sees the breaker.
        if sight.given > self._given:
            self._given, self._used_at, self._is_used = sight.given, now, True
        count = self.count
        if sight.is_open and self._is_used:
            # Its probe failed. The unit stays booked for one recovery time. If it were given back, the next process
            # would probe within a second, and a hundred processes would send a probe a second to a provider that one
            # process alone would try once a minute.
            self.count, self._waits_until = 0, now + about.recovery_s
            return about.ask(count, about.recovery_s, is_kept=True)
        idle_s = UNUSED_BEATS * about.beat_s
        if sight.is_closed or (not sight.is_probing and now - self._used_at >= idle_s):
            # Wait before the next request. A process that requests one again with its next beat would often get the
            # same unit back, and a process with real traffic would never have its turn.
            self.count, self._waits_until = 0, now + idle_s
            return about.ask(0, 0.0)
        return about.ask(count, HELD_BEATS * about.beat_s, is_kept=True)

    def hear(self, count: int, given: int, now: float) -> None:
        """The store granted `count` units. `given`: the breaker's permit count when they were requested, at `now`."""
        self.count, self._used_at, self._given, self._is_used = count, now, given, False

    def give_up(self) -> None:
        """The process has left the fleet, or the store is unreachable: its units are void."""
        self.count, self._waits_until = 0, float("-inf")


class Terms(NamedTuple):
    """The terms of one guard's units: how many exist, and how long a failed probe keeps one booked."""

    key: GuardKey
    concurrency: int
    recovery_s: float
    beat_s: float

    def ask(self, units: int, for_s: float, *, is_kept: bool = False) -> ProbeAsk:
        """Request this many units, or report that they are kept; zero gives all of them back."""
        return ProbeAsk(self.key, units, for_s, self.concurrency, is_kept)
