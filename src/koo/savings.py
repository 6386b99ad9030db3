"""What koo saved today, in all processes: calls refused immediately, answers despite an outage, and money.

The counts are part of the history's samples. Those of other processes, and of this one before a restart, are in the
state store in spans of five minutes; those that this process has not written yet are in memory. The store is read again
after each write of this process, which is once a minute.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from koo.clock import iso, utc_day
from koo.history import FIVE_MINUTES_S, History
from koo.monitoring.guards import money, now_iso
from koo.monitoring.live_shapes import Saved, SavedOf
from koo.options import DAY_S
from koo.policies.money import from_pico
from koo.policies.samples import SAVINGS, Span
from koo.storage.base import StoreUnavailable

Counts = Mapping[str, int]


class Stored(NamedTuple):
    """The stored counts of a day, and the number of writes at the time of reading."""

    day: int
    writes: int
    counts: Mapping[str, Counts]


class Savings:
    """The savings of the platform with this history."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._stored: Stored | None = None

    async def report(self) -> Saved:
        """What was saved since midnight (UTC). While the state store is unreachable, returns what was last read."""
        clock = self._history.clock
        day = utc_day(clock.wall())
        stored = await self._read(day)
        midnight_s = int(day * DAY_S)
        own = _counts(self._history.unwritten_since(midnight_s))
        components = _add(own if stored is None else stored.counts, {} if stored is None else own)
        since_s = midnight_s if stored is not None else max(midnight_s, self._history.began_at)
        return {
            **_view(_total(components)),
            "since": iso(since_s),
            "scope": "this process" if stored is None else "all processes",
            "components": {name: _view(counts) for name, counts in sorted(components.items())},
            "timestamp": now_iso(clock),
        }

    async def _read(self, day: int) -> Stored | None:
        history = self._history
        begin_s, every_s = int(day * DAY_S), int(DAY_S)
        while self._stored is None or self._stored[:2] != (day, history.writes):
            writes = history.writes
            try:
                spans = await history.store.history.read(FIVE_MINUTES_S, begin_s, begin_s + every_s, every_s)
            except StoreUnavailable:
                break
            # If this process wrote during the read, the new rows may be missing from the result although they no longer
            # count as unwritten, or they may be counted twice. The loop then reads again.
            self._stored = Stored(day, writes, _counts(spans.get(begin_s, {})))
        return self._stored if self._stored is not None and self._stored.day == day else None


def _counts(span: Span) -> dict[str, Counts]:
    return {component: sample.saved for component, sample in span.items() if sample.saved}


def _add(one: Mapping[str, Counts], other: Mapping[str, Counts]) -> dict[str, Counts]:
    return {
        component: {
            name: one.get(component, {}).get(name, 0) + other.get(component, {}).get(name, 0)
            for name in SAVINGS
        }
        for component in {**one, **other}
    }


def _total(components: Mapping[str, Counts]) -> Counts:
    return {name: sum(counts.get(name, 0) for counts in components.values()) for name in SAVINGS}


def _view(counts: Counts) -> SavedOf:
    return {
        "refused": counts.get("refused", 0),
        "repeated": counts.get("repeated", 0),
        "fallen_back": counts.get("fallen_back", 0),
        "over_budget": counts.get("over_budget", 0),
        "not_spent": money(from_pico(counts.get("not_spent", 0))),
    }
