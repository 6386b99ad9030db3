"""Samples: the calls to one component in a span of time, by outcome, and the component's worst state in it.

A span is some seconds, a minute, or five minutes. Samples add up in two directions. `follow` joins two successive
spans: counts are added, and for a level (such as connections in use) the maximum is kept. `join` adds two processes in
the same span: levels are added too. Both keep the worst state, so a bad minute is still visible in a month.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from koo.policies.tally import BOUNDS_S, value_in

GRAVITY: Mapping[str, int] = {
    "": 0,
    "healthy": 1,
    "rate_limited": 2,
    "degraded": 3,
    "unhealthy": 4,
    "circuit_open": 5,
}
"""The states that services and databases report, from best to worst. The numbers are not stored."""
COUNTS = ("successes", "failures", "throttled", "neutral", "refused", "retries", "slow")
LEVELS = ("used", "waiting", "places")
NUMBERS = COUNTS + LEVELS
SAVINGS = ("refused", "repeated", "fallen_back", "over_budget", "not_spent")
"""What koo saved: the keys of `Sample.saved`."""


@dataclass(slots=True)
class Sample:
    """One component in one span. `state`: the worst one, empty if unknown.

    `latency`: successes by cell of `BOUNDS_S`. `used`, `waiting`, `places`: the maxima of a pool's connections in use,
    of its queue and of its size. `saved`: by name of `SAVINGS`, without zeros; money in pico-dollars.
    """

    state: str = ""
    successes: int = 0
    failures: int = 0
    throttled: int = 0
    neutral: int = 0
    refused: int = 0
    retries: int = 0
    slow: int = 0
    used: int = 0
    waiting: int = 0
    places: int = 0
    latency: dict[int, int] = field(default_factory=dict)
    saved: dict[str, int] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        """How many calls have a verdict about the dependency."""
        return self.successes + self.failures + self.throttled

    def follow(self, later: Sample) -> None:
        """Extend the span by that of `later`."""
        self._add(later)
        self.used = max(self.used, later.used)
        self.waiting = max(self.waiting, later.waiting)
        self.places = max(self.places, later.places)

    def join(self, other: Sample) -> None:
        """Add another process's sample of the same span."""
        self._add(other)
        self.used += other.used
        self.waiting += other.waiting
        self.places += other.places

    def _add(self, other: Sample) -> None:
        # This is written out instead of looping over `COUNTS`, for speed: a month of twenty components is 170,000
        # samples.
        if GRAVITY.get(other.state, 0) > GRAVITY.get(self.state, 0):
            self.state = other.state
        self.successes += other.successes
        self.failures += other.failures
        self.throttled += other.throttled
        self.neutral += other.neutral
        self.refused += other.refused
        self.retries += other.retries
        self.slow += other.slow
        latency = self.latency
        for cell, count in other.latency.items():
            latency[cell] = latency.get(cell, 0) + count
        if other.saved:
            for name, count in other.saved.items():
                self.saved[name] = self.saved.get(name, 0) + count

    def since(self, before: Sample) -> Sample:
        """The counts since `before`, if both began to count at the same time."""
        # The result is never negative, although a count can fall: a guard that is dropped takes its counts with it.
        new = Sample(self.state, used=self.used, waiting=self.waiting, places=self.places)
        for name in COUNTS:
            setattr(new, name, max(0, getattr(self, name) - getattr(before, name)))
        for cell, count in self.latency.items():
            more = count - before.latency.get(cell, 0)
            if more > 0:
                new.latency[cell] = more
        for name, count in self.saved.items():
            if (more := count - before.saved.get(name, 0)) > 0:
                new.saved[name] = more
        return new

    def percentile_s(self, share: float) -> float | None:
        """The latency that `share` of the successes did not exceed; None without any."""
        rank, below = share * sum(self.latency.values()), 0
        for cell in sorted(self.latency):
            count = self.latency[cell]
            if below + count >= rank:
                return value_in(cell, (rank - below) / count)
            below += count
        return None

    # ── as stored ───────────────────────────────────────────────────────────────────────────────────────────

    def packed(self) -> list[Any]:
        """The sample as a list of JSON-ready values, without the zeros at its end."""
        cells = [part for cell in sorted(self.latency) for part in (cell, self.latency[cell])]
        # This is written last, because in a rolling upgrade processes of the previous release read these rows too, and
        # they ignore what follows the cells.
        saved = [self.saved.get(name, 0) for name in SAVINGS] if self.saved else []
        values = [self.state, *(getattr(self, name) for name in NUMBERS), cells, saved]
        while len(values) > 1 and not values[-1]:
            values.pop()
        return values

    @classmethod
    def unpacked(cls, values: Sequence[Any]) -> Sample:
        """The sample that was packed. Raises `ValueError` or `TypeError` if `values` is not a packed sample."""
        if not values or not all(type(value) is int for value in values[1 : 1 + len(NUMBERS)]):
            raise ValueError("a count must be a whole number")
        new = cls(str(values[0]), *values[1 : 1 + len(NUMBERS)])
        if len(values) > 1 + len(NUMBERS):
            cells = values[1 + len(NUMBERS)]
            new.latency = dict(zip(cells[::2], cells[1::2], strict=True))
            if not all(type(cell) is int and 0 <= cell <= len(BOUNDS_S) for cell in new.latency):
                raise ValueError("a latency cell is outside the histogram")
        if len(values) > 2 + len(NUMBERS):
            saved = values[2 + len(NUMBERS)]
            if not all(type(count) is int for count in saved):
                raise ValueError("a saved amount must be a whole number")
            new.saved = {name: count for name, count in zip(SAVINGS, saved, strict=False) if count}
        return new


Span = dict[str, Sample]
"""Samples of one span, by component."""


def extend(span: Span, later: Mapping[str, Sample]) -> None:
    """Extend a span by a later one."""
    for component, sample in later.items():
        if (known := span.get(component)) is None:
            known = span[component] = Sample()
        known.follow(sample)


def unite(span: Span, other: Mapping[str, Sample]) -> None:
    """Add another process's samples of the same span."""
    for component, sample in other.items():
        span.setdefault(component, Sample()).join(sample)
