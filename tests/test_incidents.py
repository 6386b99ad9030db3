"""Incidents: the record always matches the events; it is stored for all processes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koo.clock import iso
from koo.errors import CallerMistake, Failure, Kind
from koo.events import CircuitClosed, CircuitHalfOpened, CircuitOpened, Event, KeyBlocked, OverrideSet
from koo.history import History
from koo.incidents import IncidentReports, Recorder
from koo.monitoring.incident_markdown import markdown_of
from koo.monitoring.incident_shapes import Incident, OneIncident
from koo.monitoring.incidents import incident_view
from koo.openings import Act, Trip
from koo.options import BreakerOptions
from koo.policies.breaker import Breaker, Override
from koo.policies.incidents import KEPT, Book
from koo.policies.permit import Permit
from koo.policies.verdict import FAILURE, NEUTRAL, SUCCESS, Verdict
from koo.spans import Kept
from koo.storage.base import StoreUnavailable
from koo.storage.store import SqlStore
from tests.storage.support import NOON_S, SetClock

T = TypeVar("T")
DOWN = Failure(Kind.SERVER_ERROR, "status 500, api_error", 500, "api_error")
OPTIONS = BreakerOptions(failure_threshold=3, calls_min=4, recovery_s=10.0, window_s=10.0, window_buckets=5)
ACT = Act("ada@desk", "the provider repairs it", NOON_S + 600)

# ── the record matches the events ─────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Story:
    """One breaker, the actions on it, its events with their times, and the incidents built from them."""

    now: float = 100.0
    breaker: Breaker = field(default_factory=lambda: Breaker("claude/opus", OPTIONS, 2.0, 100.0))
    running: list[Permit] = field(default_factory=list)
    told: list[tuple[float, Event]] = field(default_factory=list)
    ids: int = 0

    def __post_init__(self) -> None:
        self.breaker.last_error = DOWN
        self.book = Book(self.new_id)

    def new_id(self) -> str:
        self.ids += 1
        return f"incident{self.ids}"

    def do(self, what: str, argument: float) -> None:
        breaker = self.breaker
        if what == "begin":
            permit = breaker.admit(self.now, lambda: 0.0)
            if permit is not None:
                self.running.append(permit)
        elif what == "end" and self.running:
            verdict: Verdict = (SUCCESS, FAILURE, FAILURE, NEUTRAL)[int(argument) % 4]
            permit = self.running.pop(int(argument) % len(self.running))
            slow = self.now - permit.given_at >= breaker.slow_s
            breaker.settle(permit, verdict, slow, self.now, lambda: 0.0)
        elif what == "wait":
            self.now += argument
        elif what == "tick":
            breaker.tick(self.now, lambda: 0.0)
        elif what == "outage":
            breaker.count_outage(int(argument) % 2 == 0, self.now, lambda: 0.0)
        elif what == "override":
            breaker.set_override(list(Override)[int(argument) % 4], ACT)
        elif what == "reset":
            breaker.reset(self.now, ACT)
        self.publish()

    def publish(self) -> None:
        happened, self.breaker.happened = self.breaker.happened, []
        for event in happened:
            self.told.append((NOON_S + self.now, event))
            self.book.follow(event, NOON_S + self.now)

    def shown(self) -> list[Incident]:
        now = NOON_S + self.now
        return [incident_view([Kept(one, "web-0", one.id, now)], (), now) for one in self.book.kept]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["begin"] * 5 + ["end"] * 5 + ["wait", "wait", "tick", "outage", "override", "reset"]
        ),
        st.floats(0.0, 12.0),
    ),
    max_size=120,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_an_incidents_record_matches_the_events(steps: list[tuple[str, float]]) -> None:
    story = Story()
    for what, argument in steps:
        story.do(what, argument)
    shown = story.shown()
    expected, lasts = told_anew(story.told)
    assert [one["opened_at"] for one in shown] == [iso(at) for at, _ in (part[0] for part in expected)]
    for one, events in zip(shown, expected, strict=True):
        says_the_same(one, events, not lasts or events is not expected[-1], NOON_S + story.now)


def told_anew(told: list[tuple[float, Event]]) -> tuple[list[list[tuple[float, Event]]], bool]:
    """The events of each incident, found independently, and whether the last one is still open."""
    found: list[list[tuple[float, Event]]] = []
    phase, forced, lasts = "closed", False, False
    for at, event in told:
        if isinstance(event, CircuitOpened):
            phase = "open"
        elif isinstance(event, CircuitHalfOpened):
            phase = "half_open"
        elif isinstance(event, CircuitClosed):
            phase, forced = "closed", forced and not event.by_operator
        elif isinstance(event, OverrideSet):
            forced = event.override == "forced_open"
        refuses = phase != "closed" or forced
        if refuses and not lasts:
            found.append([])
        if refuses or lasts:
            found[-1].append((at, event))
        lasts = refuses
    return found, lasts


def says_the_same(one: Incident, events: list[tuple[float, Event]], is_over: bool, now: float) -> None:
    last_at, _ = events[-1]
    assert one["closed_at"] == (iso(last_at) if is_over else None)
    assert len(one["steps"]) == len(events)
    assert [step["at"] for step in one["steps"]] == [iso(at) for at, _ in events]
    by_operator = [
        event
        for _, event in events
        if isinstance(event, OverrideSet) or (isinstance(event, CircuitClosed) and event.by_operator)
    ]
    assert [(act["by"], act["reason"]) for act in one["acts"]] == [
        (event.act.by, event.act.reason) if event.act else ("", "") for event in by_operator
    ]
    probes = sum(
        len(event.probes)
        if isinstance(event, CircuitClosed)
        else len(event.trip.seen)
        if isinstance(event, CircuitOpened) and event.trip and event.trip.rule.startswith("probe")
        else 0
        for _, event in events
    )
    assert len(one["probes"]) == probes
    first = events[0][1]
    text = markdown_of({"incident": one, "trouble": "", "timestamp": iso(now)})
    if isinstance(first, CircuitOpened):
        assert first.trip is not None
        its_arithmetic_is_told(one, first.trip, text)
    else:
        assert one["trigger"] is None and one["rule"] == "operator" and "ada@desk" in text
    for step in one["steps"]:
        assert text.count(step["text"].replace("_", "\\_")) >= 1
    assert text.count("\n| 2") == sum(len(one[key]) for key in ("calls", "probes", "steps", "acts"))


def its_arithmetic_is_told(one: Incident, trip: Trip, text: str) -> None:
    trigger = one["trigger"]
    assert trigger is not None
    assert (trigger["failures_in_a_row"], trigger["calls"], trigger["failures"], trigger["slow"]) == (
        trip.in_row, trip.calls, trip.failures, trip.slow,
    )  # fmt: skip
    assert [call["outcome"] for call in one["calls"]] == [call.outcome for call in trip.seen]
    failed = [call for call in trip.seen if call.outcome.startswith("failed")]
    running = [call for call in trip.seen if call.outcome == "running"]
    if trip.rule == "failures_in_a_row":
        assert [call.in_row for call in failed if call.in_row][-trip.in_row :] == list(
            range(1, trip.in_row + 1)
        )
        assert len(failed) >= trip.failures, "a row of failures may have begun before the window"
    elif not trip.rule.startswith("probe"):
        assert (len(failed), len(running)) == (trip.failures, trip.running_slow)
        share = trip.failures if trip.rule == "failure_rate" else trip.slow
        most = trip.failure_rate_max if trip.rule == "failure_rate" else trip.slow_rate_max
        assert trip.calls >= trip.calls_min and share >= most * trip.calls
    assert trigger["sentence"].replace("_", "\\_") in text


def test_other_events_of_the_service_during_an_incident_are_steps_of_it() -> None:
    story = Story()
    story.breaker.set_override(Override.FORCED_OPEN, ACT)
    story.publish()
    story.book.follow(KeyBlocked("claude", "the provider refused the key"), NOON_S + 101)
    story.book.follow(KeyBlocked("openai", "another one's"), NOON_S + 102)
    (one,) = story.shown()
    assert [(step["what"], step["text"]) for step in one["steps"]] == [
        ("act", "forced open"),
        ("key", "the provider refused the key"),
    ]
    assert one["reason"] == "an operator forced it open: ada@desk: the provider repairs it"


def test_the_number_and_size_of_kept_incidents_are_bounded() -> None:
    book, ids = Book(lambda: "one"), 0
    for number in range(3 * KEPT):
        book.follow(OverrideSet(f"claude/{number}", "forced_open"), NOON_S)
        ids += 1
    assert len(book.kept) == len(book.lasting) == KEPT
    name = f"claude/{ids - 1}"
    for number in range(1000):
        book.follow(CircuitOpened(name, "again", 60.0), NOON_S + number)
    incident = book.lasting[name]
    assert len(incident.steps) == 200 and incident.left_out == 801
    assert len(json.dumps(incident.packed())) < 40_000


# ── in the store ──────────────────────────────────────────────────────────────────────────────────────────────────────


class FakeCounts:
    """The counts that a recorder reads of a breaker."""

    refused = passed = 0
    incident = ""


class Process:
    """One process with a breaker, and its own connection to the store."""

    def __init__(self, folder: Path, clock: SetClock) -> None:
        self.clock = clock
        self.store = SqlStore(f"sqlite:///{folder}/koo.db", clock=clock)
        self.counts: FakeCounts | None = FakeCounts()
        self.recorder = Recorder(self.store, clock, lambda name: self.counts)
        history = History(self.store, clock, version=lambda: "1.0")
        self.reports = IncidentReports(self.recorder, history, at_home)

    async def open(self, guard: str = "claude/opus") -> str:
        """Open its breaker; returns the id of the incident, which the store has."""
        assert self.counts is not None
        self.recorder.on_event(CircuitOpened(guard, "5 failures in a row", 60.0))
        await self.recorder.write()
        return self.counts.incident

    async def find(self, incident: str) -> Incident:
        found: OneIncident = await self.reports.find(incident)
        assert not found["trouble"]
        return found["incident"]


async def at_home(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return await work()


def with_processes(tmp_path: Path, test: Callable[[Process, Process], Awaitable[None]]) -> None:
    async def main() -> None:
        clock = SetClock()
        one, other = Process(tmp_path, clock), Process(tmp_path, clock)
        await test(one, other)
        await one.store.close()
        await other.store.close()

    asyncio.run(main())


def test_two_processes_that_see_one_outage_report_one(tmp_path: Path) -> None:
    async def test(one: Process, other: Process) -> None:
        first = await one.open()
        one.clock.advance(2)
        second = await other.open()
        assert other.counts is not None
        other.counts.refused = 7
        other.recorder.look()
        await one.open("openai/terra")
        one.clock.advance(6)
        await other.recorder.write()
        told = (await one.reports.list())["incidents"]
        assert [(told_of["guard"], told_of["processes"], told_of["refused"]) for told_of in told] == [
            ("openai/terra", 1, 0),
            ("claude/opus", 2, 7),
        ]
        assert [found["id"] for found in (await one.reports.list(component="ai:claude"))["incidents"]] == [
            first
        ]
        for asked in (first, second):
            whole = await one.find(asked)
            assert whole["id"] == first and [part["id"] for part in whole["elsewhere"]] == [second]
        one.recorder.on_event(CircuitClosed("claude/opus"))
        other.recorder.on_event(CircuitClosed("claude/opus"))
        await other.recorder.write()
        later = await other.open()
        assert (await other.find(later))["elsewhere"] == [], "an incident that begins later is another outage"

    with_processes(tmp_path, test)


def test_a_killed_process_leaves_the_incident_as_last_reported(tmp_path: Path) -> None:
    async def test(one: Process, other: Process) -> None:
        killed = await one.open()
        one.clock.advance(61)
        found = await other.find(killed)
        assert (found["state"], found["closed_at"], found["lasted_s"]) == ("lost", None, 0.0)
        left = await other.open("openai/terra")
        await other.recorder.finish()
        assert (await one.find(left))["state"] == "lost"
        assert "lost: its process ended without reporting the outcome" in await one.reports.markdown(left)

    with_processes(tmp_path, test)


def test_while_the_store_is_unavailable_a_process_reports_its_own_incidents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(one: Process, other: Process) -> None:
        before = await one.open()

        async def away(*_: object, **more: object) -> None:
            raise StoreUnavailable("the state store cannot be used: a full disk")

        with monkeypatch.context() as patch:
            for name in ("write", "latest", "read", "tell"):
                patch.setattr(one.store.incidents, name, away)
            one.recorder.on_event(CircuitHalfOpened("claude/opus", "its time was over"))
            listed = await one.reports.list()
            assert listed["trouble"] == "the state store cannot be used: a full disk"
            assert [found["state"] for found in listed["incidents"]] == ["recovering"]
            assert (await one.reports.find(before))["trouble"] == listed["trouble"]
        assert (await one.find(before))["state"] == "recovering", "what waited is written"
        with pytest.raises(CallerMistake, match="no incident with that id"):
            await one.reports.find("nothing")

    with_processes(tmp_path, test)


def test_incidents_are_deleted_with_the_history_and_end_with_their_guard(tmp_path: Path) -> None:
    async def test(one: Process, other: Process) -> None:
        first = await one.open()
        one.counts = None
        one.recorder.look()
        await one.recorder.write()
        assert (await other.find(first))["ended"] == "its guard was replaced"
        one.recorder.on_event(CircuitOpened("channel:webhook", "3 failures", 60.0))
        assert len(one.recorder.book.kept) == 1, "a guard of no service has no incidents"
        one.clock.advance(30 * 86_400 + 1)
        await one.store.incidents.prune(one.clock.wall())
        assert (await other.reports.list())["incidents"] == []

    with_processes(tmp_path, test)
