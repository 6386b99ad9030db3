"""The source of the live stream's parts: one platform.

What is in memory is read each second. What is in the state store (the fleet, marks, requests) is read every few
seconds, however many pages are open, and never delays the rest.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Hashable, Iterable
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

import koo
from koo.clock import iso
from koo.errors import KooError
from koo.history import SAMPLE_S
from koo.monitoring.history import series_of
from koo.monitoring.history_shapes import HistoryMark
from koo.monitoring.live_shapes import LiveStatus, Point, PointValues
from koo.monitoring.overview import dashboard_view
from koo.monitoring.runbook import runbook_path
from koo.monitoring.shapes import Summary, SystemHealth
from koo.monitoring.spend_shapes import BookedCall
from koo.platform import Platform
from koo.policies.samples import Sample, Span

T = TypeVar("T")

PROBE_WAIT_S = 0.5
"""A healthy database answers within this time. If it does not, the last known state is shown."""
MARKS_S = 60.0
"""How far back to look for marks: a process may record one a little later than it happened."""
LINES_MAX = 20
"""How many requests of one read are sent one by one; the rest is sent as a count."""
REQUESTS_LOOKED_AT = 200
SEEN_MAX = 1000
BASE = "koo-base:8d1f0c6e"
"""A placeholder for the path prefix of links: it may differ from stream to stream."""


class Source(Protocol):
    """What the stream's producer needs."""

    async def parts(self) -> dict[str, Any]:
        """Parts by key that are in this process's memory."""
        ...

    def point(self) -> Point | None:
        """The newest sample, or None if it was already returned."""
        ...

    async def stored_parts(self) -> dict[str, Any]:
        """Parts by key that are read from the state store."""
        ...

    async def marks(self) -> list[HistoryMark]:
        """Marks not returned before, oldest first."""
        ...

    async def requests(self) -> tuple[list[BookedCall], int]:
        """Requests not returned before, oldest first, and the number of further ones."""
        ...


class PlatformSource:
    """The source for one platform. It starts with what is new from now on; older data is in the API."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._asking: asyncio.Task[SystemHealth] | None = None
        self._point_at: int | None = None
        self._marks, self._requests = Seen(), Seen()

    async def parts(self) -> dict[str, Any]:
        """The whole state, by the keys in docs/live.md."""
        health, platform = await self._health(), self._platform
        alerts = platform.active_alerts()
        for alert in alerts:
            alert["runbook"] = runbook_path(alert["kind"], BASE)
        found: dict[str, Any] = {
            "status": self._status(health, dashboard_view(health, alerts)["summary"]),
            "alerts": alerts,
            "database": health["database"],
            "pool": platform.database.get_pool_metrics(),
            "budgets": health["ai_services"]["budgets"],
        }
        for name, service in health["ai_services"]["services"].items():
            found[f"service/{name}"] = service
        return found

    async def _health(self) -> SystemHealth:
        """Return the system's health with a fresh database check if that answers quickly.

        A database that hangs must not hide everything else.
        """
        # One check at a time, and it is not cancelled when the wait below ends: `asyncio.wait` leaves its tasks alone.
        # A database that hangs for a minute thus costs one task, not one for each second.
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._platform.system_health(), name="koo live look")
        await asyncio.wait({self._asking}, timeout=PROBE_WAIT_S)
        if self._asking.done():
            return self._asking.result()
        return self._platform.parts.system_health(self._platform.database.get_health())

    def _status(self, health: SystemHealth, summary: Summary) -> LiveStatus:
        platform = self._platform
        return {
            **summary,
            "koo": health["koo"],
            "version": koo.__version__,
            "label": platform.options.version_label,
            "process": platform.parts.store.process,
        }

    async def stored_parts(self) -> dict[str, Any]:
        """The fleet, and what koo saved today."""
        return {"fleet": await self._platform.fleet(), "saved": await self._platform.history.saved()}

    def point(self) -> Point | None:
        """One value for each series of the history."""
        newest = self._platform.parts.history.newest
        if newest is None or newest[0] == self._point_at:
            return None
        self._point_at = newest[0]
        return point_of(*newest)

    async def marks(self) -> list[HistoryMark]:
        """Marks of the last minute that were not returned before."""
        since = datetime.fromtimestamp(self._platform.parts.clock.wall() - MARKS_S, UTC)
        found = await self._platform.history.marks(since)
        return self._marks.new_of(found, mark_key)

    async def requests(self) -> tuple[list[BookedCall], int]:
        """Requests recorded since the last read."""
        try:
            found = await self._platform.history.newest_requests(REQUESTS_LOOKED_AT)
        except KooError:
            return [], 0  # the state store is unreachable, which `status` and the alerts report
        new = self._requests.new_of(reversed(found), lambda one: one["id"])
        return new[-LINES_MAX:], len(new[:-LINES_MAX])

    def forget(self) -> None:
        """The last listener has left: cancel a check that is still running."""
        if self._asking is not None:
            self._asking.cancel()


class Seen:
    """Remembers what was returned before. Everything that the first read finds counts as returned."""

    def __init__(self) -> None:
        self._keys: dict[Hashable, None] | None = None

    def new_of(self, found: Iterable[T], key_of: Callable[[T], Hashable]) -> list[T]:
        """Return those items of `found` that are new."""
        is_first, keys = self._keys is None, self._keys or {}
        new = []
        for one in found:
            key = key_of(one)
            if key not in keys:
                new.append(one)
            keys[key] = None
        # Drop the keys seen first. Reads no longer return them: one read returns the marks of a minute, or 200
        # requests.
        while len(keys) > SEEN_MAX:
            del keys[next(iter(keys))]
        self._keys = keys
        return [] if is_first else new


def mark_key(mark: HistoryMark) -> Hashable:
    """Return a key under which two marks count as the same: the numbers in an alert's message change while it is
    active.
    """
    return mark["kind"], mark["component"], re.sub(r"\d+", "#", mark["text"]), mark["at"][:19]


def point_of(at_s: int, span: Span) -> Point:
    """One sample of every series."""
    series = {component: values_of(component, sample) for component, sample in span.items()}
    return {"at": iso(at_s), "step_s": SAMPLE_S, "series": series}


def values_of(component: str, sample: Sample) -> PointValues:
    """One sample as the history shows it. Money is left out, because only the ledger has it."""
    series = series_of(component, [sample], None, [0])
    values: Any = {name: several[0] for name, several in series.items() if name != "spent"}  # type: ignore[index]
    return values  # type: ignore[no-any-return]
