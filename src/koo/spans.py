"""The history, as protocols: samples of spans of time, marks of what happened at a moment, and incidents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from koo.policies.incidents import Incident
from koo.policies.samples import Span


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at a moment (wall seconds) to a component, as a sentence's end; `kind` is its family."""

    at: float
    kind: str
    component: str
    text: str


Spans = dict[int, Span]
"""Samples by the beginning of their span, in wall seconds."""


class PastSpans(Protocol):
    """The history of all processes on one store. Each method raises `StoreUnavailable`."""

    async def write(self, spans: Iterable[tuple[int, int, Span]]) -> None:
        """Write spans of this process: seconds, beginning in wall seconds, samples. A later one replaces its like."""
        ...

    async def read(self, step_s: int, since_s: int, until_s: int, every_s: int) -> Spans:
        """Spans of `every_s` seconds of all processes together, made of those of `step_s`."""
        ...

    async def spent(self, since_s: int, until_s: int, every_s: int) -> dict[tuple[str, int], int]:
        """What was booked, in pico-dollars by service and beginning of its span."""
        ...

    async def mark(self, marks: Sequence[Mark]) -> None:
        """Write down what happened."""
        ...

    async def mark_change(self, mark: Mark) -> None:
        """Write it down unless the last mark of this kind and component says the same."""
        ...

    async def mark_settings(self, at: float, component: str, digests: Mapping[str, str]) -> None:
        """Write down which settings differ, by their digests, from those of the process that began last."""
        ...

    async def marks(self, since: float, until: float, *, limit: int) -> list[Mark]:
        """What happened from one wall time to another, oldest first; of more than `limit` the newest."""
        ...

    async def prune(self, now_s: float) -> bool:
        """Forget what is too old; True where there may be more."""
        ...


@dataclass(frozen=True, slots=True)
class Kept:
    """An incident as the store has it: of which process, and when that last reported it (wall seconds).

    `outage`: the id of the incident that another process had open when this one began, or its own. `has_left`: its
    process was closed while it lasted.
    """

    incident: Incident
    process: str
    outage: str
    seen_at: float
    has_left: bool = False


class PastIncidents(Protocol):
    """The incidents of all processes on one store. Each method raises `StoreUnavailable`."""

    async def write(self, incidents: Sequence[Incident], now: float) -> None:
        """Write incidents of this process, as they are now."""
        ...

    async def tell(self, incidents: Sequence[Incident], now: float, *, has_left: bool = False) -> None:
        """They last, and only their counts have changed. `has_left`: this process ends."""
        ...

    async def latest(self, component: str | None, *, limit: int) -> list[list[Kept]]:
        """Each outage with its parts, the newest first; a part is what one process saw, the first of them first."""
        ...

    async def read(self, incident_id: str) -> list[Kept]:
        """The parts of the outage that an incident belongs to; empty: it is not known."""
        ...

    async def prune(self, now_s: float) -> None:
        """Forget what is too old."""
        ...
