"""Samples: what became of the calls to one component in a span of time, and how it was at its worst.

A span is some seconds, a minute, five minutes. Samples add up in two directions. `follow` makes one span of two that
come one after the other: counts add, and of what is a level (connections in use) the highest stays. `join` makes one
fleet of two processes in the same span: levels add too. Both keep the worst state, so a bad minute is seen in a month.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from koo.policies.tally import BOUNDS_S, Bucket

GRAVITY: Mapping[str, int] = {
    "": 0,
    "healthy": 1,
    "rate_limited": 2,
    "degraded": 3,
    "unhealthy": 4,
    "circuit_open": 5,
}
"""The states that services and databases report, from the best to the worst."""
COUNTS = ("successes", "failures", "throttled", "neutral", "refused", "retries", "slow")
LEVELS = ("used", "waiting", "places")
NUMBERS = COUNTS + LEVELS


@dataclass(slots=True)
class Sample:
    """One component in one span. `state`: the worst one, empty where it is not known.

    `latency`: successes by cell of `BOUNDS_S`. `used`, `waiting`, `places`: a pool's connections in use, its queue and
    its size, at most.
    """

    state: str = ""
    successes: int = 0
    failures: int = 0
    throttled: int = 0
    neutral: int = 0
    refused: int = 0
    retries: int = 0
    slow: int = 0
    latency: dict[int, int] = field(default_factory=dict)
    used: int = 0
    waiting: int = 0
    places: int = 0

    @property
    def calls(self) -> int:
        """Calls that the other side has answered, or failed to."""
        return self.successes + self.failures + self.throttled

    def follow(self, later: Sample) -> None:
        """The span goes on with that of `later`."""
        self._add(later)
        for name in LEVELS:
            setattr(self, name, max(getattr(self, name), getattr(later, name)))

    def join(self, other: Sample) -> None:
        """Another process saw that in the same span."""
        self._add(other)
        for name in LEVELS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def _add(self, other: Sample) -> None:
        self.state = max(self.state, other.state, key=lambda word: GRAVITY.get(word, 0))
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for cell, count in other.latency.items():
            self.latency[cell] = self.latency.get(cell, 0) + count

    def since(self, before: Sample) -> Sample:
        """What was counted since `before`, where both count from the same beginning. Never less than nothing.

        A count falls when a guard goes with what it counted.
        """
        new = Sample(self.state, used=self.used, waiting=self.waiting, places=self.places)
        for name in COUNTS:
            setattr(new, name, max(0, getattr(self, name) - getattr(before, name)))
        for cell, count in self.latency.items():
            more = count - before.latency.get(cell, 0)
            if more > 0:
                new.latency[cell] = more
        return new

    def percentile_s(self, share: float) -> float | None:
        """The latency below which `share` of the successes lie; None without any."""
        if not self.latency:
            return None
        bucket = Bucket()
        for cell, count in self.latency.items():
            bucket.latency[cell] = count
        return bucket.percentile_s(share)

    # ── as stored ───────────────────────────────────────────────────────────────────────────────────────────

    def packed(self) -> list[Any]:
        """As JSON-ready values, without the zeros at its end."""
        cells = [part for cell in sorted(self.latency) for part in (cell, self.latency[cell])]
        values = [self.state, *(getattr(self, name) for name in NUMBERS), cells]
        while len(values) > 1 and not values[-1]:
            values.pop()
        return values

    @classmethod
    def unpacked(cls, values: Sequence[Any]) -> Sample:
        """The sample that was packed. Raises `ValueError` or `TypeError` for what is none."""
        state, *rest = values
        new = cls(str(state))
        for name, value in zip(NUMBERS, rest, strict=False):
            setattr(new, name, int(value))
        cells = rest[len(NUMBERS)] if len(rest) > len(NUMBERS) else []
        new.latency = {
            int(cell): int(count)
            for cell, count in zip(cells[::2], cells[1::2], strict=True)
            if 0 <= cell <= len(BOUNDS_S)
        }
        return new


Span = dict[str, Sample]
"""Samples of one span, by component."""


def extend(span: Span, later: Mapping[str, Sample]) -> None:
    """Let a span go on with a later one."""
    for component, sample in later.items():
        span.setdefault(component, Sample()).follow(sample)


def unite(span: Span, other: Mapping[str, Sample]) -> None:
    """Add what another process saw in the same span."""
    for component, sample in other.items():
        span.setdefault(component, Sample()).join(sample)
