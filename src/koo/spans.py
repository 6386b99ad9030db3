"""The protocols of the stored history: samples of time spans, marks of single events, and incidents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from koo.policies.incidents import Incident
from koo.policies.samples import Span


@dataclass(frozen=True, slots=True)
class Mark:
    """An event of a component at one moment (wall seconds). `text` completes a sentence about the component; `kind`
    groups similar events."""

    at: float
    kind: str
    component: str
    text: str


Spans = dict[int, Span]
"""Samples by the start of their span, in wall seconds."""


class PastSpans(Protocol):
    """The history of all processes on one store. Each method raises `StoreUnavailable`."""

    async def write(self, spans: Iterable[tuple[int, int, Span]]) -> None:
        """Write spans of this process: length in seconds, start in wall seconds, samples. A rewritten span replaces the
        earlier one."""
        ...

    async def read(self, step_s: int, since_s: int, until_s: int, every_s: int) -> Spans:
        """Spans of `every_s` seconds over all processes, combined from spans of `step_s`."""
        ...

    async def spent(self, since_s: int, until_s: int, every_s: int) -> dict[tuple[str, int], int]:
        """The booked cost in pico-dollars, by service and start of the span."""
        ...

    async def mark(self, marks: Sequence[Mark]) -> None:
        """Write marks."""
        ...

    async def mark_change(self, mark: Mark) -> None:
        """Write the mark, unless the last mark of the same kind and component has the same text."""
        ...

    async def mark_settings(self, at: float, component: str, digests: Mapping[str, str]) -> None:
        """Write which settings differ, by their digests, from those of the process that started last."""
        ...

    async def marks(self, since: float, until: float, *, limit: int) -> list[Mark]:
        """The marks between two wall times, oldest first; if there are more than `limit`, the newest."""
        ...

    async def prune(self, now_s: float) -> bool:
        """Delete what is too old; True if there may be more."""
        ...


@dataclass(frozen=True, slots=True)
class Kept:
    """An incident as stored, with its process and the time of its last report (wall seconds).

    `outage`: the id of the incident that another process had open when this one began, or its own id. `has_left`: the
    process was closed during the incident.
    """

    incident: Incident
    process: str
    outage: str
    seen_at: float
    has_left: bool = False


class PastIncidents(Protocol):
    """The incidents of all processes on one store. Each method raises `StoreUnavailable`."""

    async def write(self, incidents: Sequence[Incident], now: float) -> None:
        """Write the current state of incidents of this process."""
        ...

    async def tell(self, incidents: Sequence[Incident], now: float, *, has_left: bool = False) -> None:
        """Update incidents of which only the counts have changed. `has_left`: this process is ending."""
        ...

    async def latest(self, component: str | None, *, limit: int) -> list[list[Kept]]:
        """The outages, newest first, each as a list of its parts. A part is what one process saw; the earliest is
        first."""
        ...

    async def read(self, incident_id: str) -> list[Kept]:
        """The parts of the outage that an incident belongs to; empty if it is unknown."""
        ...

    async def prune(self, now_s: float) -> None:
        """Delete what is too old."""
        ...
