"""The history: taken from counters, kept in memory and in the store, reported in spans with marks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path

import pytest

from koo.clock import iso
from koo.errors import InvalidRequest
from koo.events import CircuitClosed, CircuitOpened, DatabasePaused, OverrideSet
from koo.history import POINTS_MAX, SAMPLE_S, UNWRITTEN_MAX, History
from koo.openings import Act
from koo.options import DAY_S
from koo.policies.samples import Sample
from koo.spans import Mark
from koo.storage.base import StoreUnavailable
from koo.storage.store import SqlStore
from tests.storage.support import NOON_S, SetClock

NOON = int(NOON_S)
Test = Callable[["Past"], Awaitable[None]]


class Past:
    """A history on a file, with a clock that the test moves."""

    def __init__(self, folder: Path) -> None:
        self.clock = SetClock()
        self.store = SqlStore(f"sqlite:///{folder}/koo.db", clock=self.clock)
        self.history = self.another()
        self.total = Sample("healthy")

    def another(self, version: str = "1.0") -> History:
        return History(self.store, self.clock, version=lambda: version)

    def count(self, calls: int, state: str = "healthy") -> None:
        """Record this many successful calls, and take a sample."""
        self.total.follow(Sample(successes=calls, latency={4: calls} if calls else {}))
        self.total.state = state
        self.history.take({"ai:claude": deepcopy(self.total)})

    def pass_time(self, seconds: float, calls: int = 1) -> None:
        """Advance the clock, with this many calls in each sample."""
        for _ in range(int(seconds / SAMPLE_S)):
            self.clock.advance(SAMPLE_S)
            self.count(calls)


def with_past(tmp_path: Path, test: Test) -> None:
    async def main() -> None:
        past = Past(tmp_path)
        await test(past)
        await past.store.close()

    asyncio.run(main())


# ── the last hour ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_last_hour_consists_of_spans_of_five_seconds(tmp_path: Path) -> None:
    async def test(past: Past) -> None:
        past.pass_time(20, calls=2)
        past.clock.advance(SAMPLE_S)
        past.count(0, "circuit_open")
        view = await past.history.report(60, None, None, (), False)
        claude = view["series"]["ai:claude"]
        assert (view["step_s"], view["scope"], view["trouble"]) == (5, "this process", "")
        assert claude["calls"][-6:] == [2, 2, 2, 2, 0, None], (
            "the first one too: its guard was created with it"
        )
        assert claude["state"][-3:] == ["healthy", "circuit_open", None]
        assert claude["calls"][0] is None and claude["p95"][-2] is None
        assert claude["p95"][-3] == pytest.approx(0.0074, abs=0.001)
        assert view["until"] == iso(NOON + 30)

    with_past(tmp_path, test)


def test_a_sample_is_due_each_five_seconds_whatever_the_wall_clock_does(tmp_path: Path) -> None:
    async def test(past: Past) -> None:
        assert past.history.is_due
        past.count(1)
        assert not past.history.is_due
        past.clock.advance(SAMPLE_S)
        assert past.history.is_due

    with_past(tmp_path, test)


def test_a_report_has_a_maximum_number_of_spans(tmp_path: Path) -> None:
    async def test(past: Past) -> None:
        for range_s in (900, 3600, 86_400, 7 * 86_400, 30 * 86_400):
            view = await past.history.report(range_s, None, None, (), False)
            since, until = (datetime.fromisoformat(view[key]) for key in ("since", "until"))
            assert (until - since).total_seconds() / view["step_s"] <= POINTS_MAX + 1

    with_past(tmp_path, test)


# ── the store ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_finished_minute_is_written_with_the_five_minutes_so_far(tmp_path: Path) -> None:
    async def test(past: Past) -> None:
        past.pass_time(60)
        assert not past.history.has_news
        past.pass_time(5)
        assert past.history.has_news
        await past.history.write()
        for step_s, calls in ((60, 12), (300, 12)):
            spans = await past.store.history.read(step_s, NOON, NOON + 300, step_s)
            assert spans[NOON]["ai:claude"].calls == calls

    with_past(tmp_path, test)


def test_a_day_is_read_from_the_store_for_all_processes(tmp_path: Path) -> None:
    async def test(past: Past) -> None:
        past.pass_time(600)
        await past.history.finish()
        past.history, past.total = past.another(), Sample("healthy")
        past.pass_time(600)
        await past.history.finish()
        past.clock.advance(3600)
        view = await past.history.report(86_400, None, None, (), False)
        assert (view["step_s"], view["scope"]) == (120, "all processes")
        assert sum(n or 0 for n in view["series"]["ai:claude"]["calls"]) == 240

    with_past(tmp_path, test)


def test_ranges_older_than_two_days_are_read_in_steps_of_five_minutes(tmp_path: Path) -> None:
    async def test(past: Past) -> None:
        past.pass_time(900)
        await past.history.finish()
        past.clock.advance(3 * DAY_S)
        await past.store.history.prune(past.clock.wall())
        since = datetime.fromtimestamp(NOON, UTC).timestamp()
        view = await past.history.report(None, since, since + 900, (), False)
        assert view["step_s"] == 300 and view["series"]["ai:claude"]["calls"] == [60, 60, 60]

    with_past(tmp_path, test)


def test_a_kill_loses_no_more_than_the_current_minute(tmp_path: Path) -> None:
    async def test(past: Past) -> None:
        past.pass_time(4 * 60 + 30)
        await past.history.write()
        spans = await past.store.history.read(300, NOON, NOON + 300, 300)
        assert spans[NOON]["ai:claude"].calls >= 4 * 12

    with_past(tmp_path, test)


def test_while_the_store_is_unavailable_minutes_wait_and_the_oldest_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(past: Past) -> None:
        async def away(*_: object) -> None:
            raise StoreUnavailable("the state store cannot be used: a full disk")

        with monkeypatch.context() as patch:
            patch.setattr(past.store.history, "write", away)
            patch.setattr(past.store.history, "spent", away)
            past.pass_time(600)
            with pytest.raises(StoreUnavailable):
                await past.history.write()
            view = await past.history.report(900, None, None, (), False)
            assert view["trouble"] == "the state store cannot be used: a full disk"
            assert sum(n or 0 for n in view["series"]["ai:claude"]["calls"]) == 120
            assert set(view["series"]["ai:claude"]["spent"]) == {None}
            past.pass_time(2 * 3600)
        assert len(past.history._unwritten) == UNWRITTEN_MAX
        await past.history.write()
        assert not past.history.has_news

    with_past(tmp_path, test)


# ── arguments ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("range_s", "since", "until", "sentence"),
    [
        (60, NOON_S, None, "set either a range, or `since` and `until`"),
        (None, NOON_S, NOON_S, "`since` must be before `until`"),
        (None, NOON_S - 31 * DAY_S, NOON_S, "the longest range is 30 days"),
    ],
)
def test_invalid_ranges_are_refused_in_one_sentence(
    tmp_path: Path, range_s: int | None, since: float | None, until: float | None, sentence: str
) -> None:
    async def test(past: Past) -> None:
        with pytest.raises(InvalidRequest, match=sentence):
            await past.history.report(range_s, since, until, (), False)

    with_past(tmp_path, test)


def test_an_override_that_a_process_meets_later_is_marked_when_the_operator_set_it(tmp_path: Path) -> None:
    async def test(past: Past) -> None:
        set_at = past.clock.wall()
        old = OverrideSet("claude", "forced_open", Act("ada", "invoice", at=set_at))
        past.history.on_event(old)
        past.clock.advance(3600)
        past.history.on_event(old)
        view = await past.history.report(7200, None, None, (), False)
        assert [mark["at"] for mark in view["marks"] if mark["kind"] == "act"] == [iso(set_at)]

    with_past(tmp_path, test)


def test_only_the_requested_components_are_reported(tmp_path: Path) -> None:
    async def test(past: Past) -> None:
        past.history.take({"ai:claude": Sample("healthy"), "database": Sample("healthy", used=3, places=5)})
        past.history.on_event(DatabasePaused("database", 1, Act("ada", "failover")))
        past.history.on_event(CircuitOpened("claude/sonnet", "5 failures", 60.0))
        await past.store.history.mark([Mark(past.clock.wall(), "alert", "ai:claude/opus", "it fails")])
        marks = (await past.history.report(60, None, None, ("ai:claude",), False))["marks"]
        assert {one["component"] for one in marks} == {"koo", "ai:claude", "ai:claude/opus"}, "its models too"
        view = await past.history.report(60, None, None, ("database",), False)
        assert list(view["series"]) == ["database"] and 3 in view["series"]["database"]["used"]
        assert "spent" not in view["series"]["database"]
        assert [(mark["component"], mark["text"]) for mark in view["marks"]] == [
            ("koo", "1.0"),
            ("database", "paused (ada: failover)"),
        ]

    with_past(tmp_path, test)


# ── marks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_openings_and_operators_acts_are_marked_and_a_deploy_when_the_version_changes(tmp_path: Path) -> None:
    async def test(past: Past) -> None:
        past.history.on_event(CircuitOpened("claude/sonnet", "5 failures in a row", 60.0))
        past.clock.advance(10)
        past.history.on_event(OverrideSet("claude/sonnet", "forced_open", Act("ada", "invoice")))
        past.history.on_event(CircuitOpened("channel:webhook", "it answered with status 500", 60.0))
        past.history.on_event(CircuitClosed("claude/sonnet", by_operator=True))
        past.clock.advance(10)
        await past.another("1.1").write()
        view = await past.history.report(60, None, None, (), False)
        assert [(mark["kind"], mark["component"], mark["text"]) for mark in view["marks"]] == [
            ("circuit", "ai:claude", "opened: 5 failures in a row"),
            ("act", "ai:claude", "forced open (ada: invoice)"),
            ("circuit", "channel:webhook", "opened: it answered with status 500"),
            ("act", "ai:claude", "closed by an operator"),
            ("deploy", "koo", "1.1"),
            ("deploy", "koo", "1.0"),
        ]

    with_past(tmp_path, test)


def test_a_process_that_starts_with_other_settings_marks_which(tmp_path: Path) -> None:
    async def test(past: Past) -> None:
        async def begin(**settings: str) -> None:
            past.clock.advance(1)
            began = History(past.store, past.clock, version=lambda: "1.0", settings=lambda: settings)
            await began.write()

        await begin(a="1", b="2")
        await begin(a="1", b="2")
        await begin(a="3", c="4")
        marks = (await past.history.report(60, None, None, (), False))["marks"]
        assert [(mark["kind"], mark["text"]) for mark in marks] == [
            ("deploy", "1.0"),
            ("settings", "changed: a, b, c"),
        ]
        await begin(**{f"option{number}": "" for number in range(9)})
        marks = (await past.history.report(60, None, None, (), False))["marks"]
        assert marks[-1]["text"].endswith("option5 and 3 more"), marks[-1]

    with_past(tmp_path, test)
