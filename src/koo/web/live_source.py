"""Where the live stream takes its parts from: one platform.

What a process knows is looked at each second. What lies in the state store (the fleet, marks, requests) is read every
few seconds at most, however many pages are open, and never keeps the rest waiting.
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
"""A database that answers does so by then; of one that does not, what is known is shown."""
MARKS_S = 60.0
"""So far back marks are looked for: a process may write one down a little later than it happened."""
LINES_MAX = 20
"""Requests that are sent one by one, of those that one look finds."""
REQUESTS_LOOKED_AT = 200
SEEN_MAX = 1000
BASE = "koo-base:8d1f0c6e"
"""What stands for the way to this server's routes in links: each stream may have another."""


class Source(Protocol):
    """What the stream's producer asks."""

    async def parts(self) -> dict[str, Any]:
        """Parts by key that this process knows without asking."""
        ...

    def point(self) -> Point | None:
        """The newest sample; None: there is none that was not given before."""
        ...

    async def stored_parts(self) -> dict[str, Any]:
        """Parts by key that are read in the state store."""
        ...

    async def marks(self) -> list[HistoryMark]:
        """Those that were not given before, the oldest first."""
        ...

    async def requests(self) -> tuple[list[BookedCall], int]:
        """Those that were not given before, the oldest first; and how many more there were."""
        ...


class PlatformSource:
    """One platform. It begins with what is new from now on: what was before, the API has."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._asking: asyncio.Task[SystemHealth] | None = None
        self._point_at: int | None = None
        self._marks, self._requests = Seen(), Seen()

    async def parts(self) -> dict[str, Any]:
        """The state of everything, by the keys of docs/live.md."""
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
        """With a fresh look at the database, if it answers; a database that hangs must not hide all others."""
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
        """The fleet, and what was saved."""
        return {"fleet": await self._platform.fleet(), "saved": await self._platform.history.saved()}

    def point(self) -> Point | None:
        """One value for each list of the history."""
        newest = self._platform.parts.history.newest
        if newest is None or newest[0] == self._point_at:
            return None
        self._point_at = newest[0]
        return point_of(*newest)

    async def marks(self) -> list[HistoryMark]:
        """Those of the last minute that were not given before."""
        since = datetime.fromtimestamp(self._platform.parts.clock.wall() - MARKS_S, UTC)
        found = await self._platform.history.marks(since)
        return self._marks.new_of(found, mark_key)

    async def requests(self) -> tuple[list[BookedCall], int]:
        """Those that were booked since the last look."""
        try:
            found = await self._platform.history.newest_requests(REQUESTS_LOOKED_AT)
        except KooError:
            return [], 0  # the state store is away, which `status` and alerts say
        new = self._requests.new_of(reversed(found), lambda one: one["id"])
        return new[-LINES_MAX:], len(new[:-LINES_MAX])

    def forget(self) -> None:
        """The last listener has left: cancel what a look still waits for."""
        if self._asking is not None:
            self._asking.cancel()


class Seen:
    """What was given before. All that the first look finds counts as given."""

    def __init__(self) -> None:
        self._keys: dict[Hashable, None] | None = None

    def new_of(self, found: Iterable[T], key_of: Callable[[T], Hashable]) -> list[T]:
        """Those of `found` that are new."""
        is_first, keys = self._keys is None, self._keys or {}
        new = []
        for one in found:
            key = key_of(one)
            if key not in keys:
                new.append(one)
            keys[key] = None
        while len(keys) > SEEN_MAX:
            del keys[next(iter(keys))]
        self._keys = keys
        return [] if is_first else new


def mark_key(mark: HistoryMark) -> Hashable:
    """What makes two marks one: the numbers in an alert's sentence change while it lasts."""
    return mark["kind"], mark["component"], re.sub(r"\d+", "#", mark["text"]), mark["at"][:19]


def point_of(at_s: int, span: Span) -> Point:
    """One sample of everything."""
    series = {component: values_of(component, sample) for component, sample in span.items()}
    return {"at": iso(at_s), "step_s": SAMPLE_S, "series": series}


def values_of(component: str, sample: Sample) -> PointValues:
    """One sample as the history shows it; money is missing, because only the ledger knows it."""
    series = series_of(component, [sample], None, [0])
    values: Any = {name: several[0] for name, several in series.items() if name != "spent"}  # type: ignore[index]
    return values  # type: ignore[no-any-return]
