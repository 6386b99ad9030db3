"""Incidents: why each breaker opened, built from its events, kept in memory and in the state store.

Events contain everything about an opening (`policies/incidents.py`). Only the counts of calls that were refused, or
answered by another service, keep growing; they are read from the breaker once a second. The store has an event within a
second, and new counts every few seconds, so a process that is killed leaves a nearly complete incident. While the store
is unreachable, incidents wait in memory, up to the number kept there.

Successful calls do not pass through here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from koo.alert_acts import AtHome
from koo.clock import Clock
from koo.episodes import new_id
from koo.errors import CallerMistake, InvalidRequest, Kind
from koo.events import CircuitOpened, Event, OverrideSet
from koo.history import History
from koo.monitoring import incident_shapes as shapes
from koo.monitoring.guards import now_iso
from koo.monitoring.incident_markdown import markdown_of
from koo.monitoring.incidents import component_of, incident_view, summary_of
from koo.policies.incidents import Book, Incident
from koo.spans import Kept, Mark
from koo.storage.base import Store, StoreUnavailable

TOLD_EVERY_S = 5.0
BEFORE_S = 3600.0
"""A change up to an hour earlier may be the cause; a day earlier it most likely is not."""
BEFORE_MAX = 50
LIST_MAX = 200


class Breaker(Protocol):
    """The part of a breaker that is read while it is open."""

    refused: int
    passed: int
    incident: str


class Recorder:
    """Writes the incidents of one process. `find` returns the breaker of a guard by its name, or None."""

    def __init__(self, store: Store, clock: Clock, find: Callable[[str], Breaker | None]) -> None:
        self.store = store
        self.clock = clock
        self.book = Book(new_id)
        self._find = find
        self._before: dict[str, tuple[int, int]] = {}  # by guard: its counts of refused calls at the opening
        self._changed: dict[str, Incident] = {}
        self._tell_at = clock.monotonic()

    def on_event(self, event: Event) -> None:
        """Process an event. Guards of neither a service nor a database (notification channels) have no incidents."""
        if isinstance(event, (CircuitOpened, OverrideSet)) and self._find(event.source) is None:
            return
        steps = {name: len(one.steps) for name, one in self.book.lasting.items()}
        incident = self.book.follow(event, self.clock.wall())
        if incident is not None:
            self._count(incident, begins=incident.guard not in steps)
            self._changed[incident.id] = incident
        for name, one in self.book.lasting.items():
            if len(one.steps) != steps.get(name):
                self._changed[one.id] = one

    def _count(self, incident: Incident, *, begins: bool) -> None:
        breaker = self._find(incident.guard)
        if breaker is None:
            return
        if begins:
            breaker.incident = incident.id
            self._before[incident.guard] = breaker.refused, breaker.passed
        refused, passed = self._before.get(incident.guard, (0, 0))
        incident.refused, incident.passed = breaker.refused - refused, breaker.passed - passed
        if not incident.lasts:
            self._before.pop(incident.guard, None)

    def served(self, guards: Sequence[str], service: str) -> None:
        """Count a call that `service` answered after these guards had refused it, or after it had failed there."""
        for guard in guards:
            if (incident := self.book.lasting.get(guard)) is not None:
                incident.fallback[service] = incident.fallback.get(service, 0) + 1

    def look(self) -> None:
        """Update the counts of open incidents; called about once a second."""
        for guard, incident in list(self.book.lasting.items()):
            # A guard that was replaced (a re-registered operation, a dropped model) never publishes that it closed.
            # Without this its incident would stay open forever.
            breaker = self._find(guard)
            if breaker is None or breaker.incident != incident.id:
                self.book.abandon(guard, self.clock.wall(), "its guard was replaced")
                self._changed[incident.id] = incident
            else:
                self._count(incident, begins=False)

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def has_news(self) -> bool:
        """Whether anything is waiting to be written."""
        return bool(self._changed or (self.book.lasting and self.clock.monotonic() >= self._tell_at))

    async def write(self) -> None:
        """Write everything that is waiting. If it raises `StoreUnavailable`, the rest goes on waiting."""
        self.look()
        kept = {one.id for one in self.book.kept}
        changed = {key: one for key, one in self._changed.items() if key in kept}
        # The dict is taken before the write: an event that arrives during it is noted in the new dict and is not lost.
        # If the write fails, the old ones are put back, but a later version of the same incident wins.
        self._changed = {}
        try:
            if changed:
                await self.store.incidents.write(tuple(changed.values()), self.clock.wall())
            if self.clock.monotonic() >= self._tell_at:
                self._tell_at = self.clock.monotonic() + TOLD_EVERY_S
                await self.store.incidents.tell(tuple(self.book.lasting.values()), self.clock.wall())
        except BaseException:
            self._changed = {**changed, **self._changed}
            raise

    async def finish(self) -> None:
        """Write everything, because this process is ending. Raises `StoreUnavailable`."""
        self._tell_at = float("inf")
        await self.write()
        lasting = tuple(self.book.lasting.values())
        await self.store.incidents.tell(lasting, self.clock.wall(), has_left=True)
        self._tell_at = self.clock.monotonic()

    def own(self) -> list[list[Kept]]:
        """The incidents of this process alone, newest first."""
        now, process = self.clock.wall(), self.store.process
        return [[Kept(one, process, one.id, now)] for one in reversed(self.book.kept)]


class IncidentReports:
    """The incidents of one platform, from any event loop."""

    def __init__(self, recorder: Recorder, history: History, at_home: AtHome) -> None:
        self._recorder = recorder
        self._history = history
        self._at_home = at_home

    async def list(self, *, component: str | None = None, limit: int = 50) -> shapes.Incidents:
        """The last incidents of all processes, newest first: at most `limit` (200), of a `component` ("ai:claude").

        While the state store is unreachable, returns only those of this process; `trouble` has the reason. Raises
        `InvalidRequest`.
        """
        if not 1 <= limit <= LIST_MAX:
            raise InvalidRequest("incidents", f"limit must be 1 to {LIST_MAX}", kind=Kind.INVALID_REQUEST)
        return await self._at_home(lambda: self._list(component, limit))

    async def find(self, incident_id: str) -> shapes.OneIncident:
        """One incident with all details. Raises `CallerMistake` if there is none with that id."""
        return await self._at_home(lambda: self._find(incident_id))

    async def markdown(self, incident_id: str) -> str:
        """One incident as Markdown, to paste into a report. Raises `CallerMistake` if there is none with that id."""
        return markdown_of(await self.find(incident_id))

    async def _list(self, component: str | None, limit: int) -> shapes.Incidents:
        recorder, trouble = self._recorder, ""
        try:
            await recorder.write()
            found = await recorder.store.incidents.latest(component, limit=limit)
        except StoreUnavailable as error:
            trouble = str(error)
            own = recorder.own()
            found = [parts for parts in own if component in (None, component_of(parts[0].incident.guard))]
        now = recorder.clock.wall()
        return {
            "incidents": [summary_of(parts, now) for parts in found[:limit]],
            "trouble": trouble,
            "timestamp": now_iso(recorder.clock),
        }

    async def _find(self, incident_id: str) -> shapes.OneIncident:
        recorder, trouble = self._recorder, ""
        before: Sequence[Mark] = ()
        try:
            await recorder.write()
            parts = await recorder.store.incidents.read(incident_id)
            if parts:
                before = await self._what_was_before(parts[0].incident)
        except StoreUnavailable as error:
            trouble = str(error)
            parts = next((one for one in recorder.own() if one[0].incident.id == incident_id), [])
        if not parts:
            raise CallerMistake("incidents", "there is no incident with that id", kind=Kind.NOT_FOUND)
        now = recorder.clock.wall()
        return {
            "incident": incident_view(parts, before, now),
            "trouble": trouble,
            "timestamp": now_iso(recorder.clock),
        }

    async def _what_was_before(self, incident: Incident) -> Sequence[Mark]:
        """The marks of the hour before the incident, without the opening itself."""
        since, until = incident.opened_at - BEFORE_S, incident.opened_at + 0.001
        marks = await self._history.marks(since, until)
        own = ("circuit", component_of(incident.guard))
        earlier = (
            mark for mark in marks if (mark.kind, mark.component) != own or mark.at < incident.opened_at - 1.0
        )
        return tuple(earlier)[-BEFORE_MAX:]
