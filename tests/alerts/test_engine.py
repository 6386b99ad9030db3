"""When an alert begins and ends: one episode from its beginning to its end, whatever happens in between."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koo.alerts.engine import LISTED_AFTER_END_S, RESTORED_KEPT_S, Alerts
from koo.alerts.kinds import ENDINGS, KINDS
from koo.alerts.rules import Finding
from koo.storage.base import Episode
from tests.monitoring.houses import KEY_REFUSED, House, in_house

T0 = 1_790_000_000.0
SLOW = Finding("degraded_performance", "ai:claude", "10% of the last 20 calls failed", {"error_rate": 0.1})
DOWN = Finding("database_unavailable", "database", "the database does not answer")
FULL = Finding("database_saturated", "database", "the database is saturated")


def kinds(alerts: Alerts, now: float) -> list[str]:
    """What is listed, in its order."""
    return [view["kind"] for view in alerts.views(now)]


def told(changed: Iterable[Episode]) -> list[tuple[str, bool]]:
    """What a step gives for keeping: kind, and whether it has ended."""
    return [(episode.kind, episode.ended_at is not None) for episode in changed]


# ── one episode from its beginning to its end ─────────────────────────────────────────────────────────────────────────


def test_an_episode_begins_once_goes_on_and_ends_once() -> None:
    alerts = Alerts()
    assert told(alerts.step([SLOW], T0)) == [("degraded_performance", False)]
    worse = Finding(SLOW.kind, SLOW.component, "30% of the last 40 calls failed", {"error_rate": 0.3})
    assert alerts.step([worse], T0 + 60) == [], "it goes on: nothing to keep"
    (view,) = alerts.views(T0 + 60)
    assert view["message"] == worse.message and view["data"] == {"error_rate": 0.3}, "with the latest numbers"
    assert view["timestamp"] == "2026-09-21T14:13:20+00:00", "since it began"
    ended, news = alerts.step([], T0 + 90)
    assert (ended.started_at, ended.ended_at, ended.message) == (T0, T0 + 90, worse.message)
    assert (news.kind, news.type, news.started_at, news.ended_at) == (
        "performance_recovered",
        "info",
        T0 + 90,
        T0 + 90,
    )
    assert news.data == {"lasted_s": 90.0}
    assert alerts.step([], T0 + 91) == []


def test_what_comes_back_is_a_new_episode() -> None:
    alerts = Alerts()
    (first,) = alerts.step([SLOW], T0)
    alerts.step([], T0 + 10)
    (second,) = alerts.step([SLOW], T0 + 20)
    assert first.fingerprint == second.fingerprint and (first.started_at, second.started_at) == (T0, T0 + 20)


def test_the_same_kind_of_two_parts_are_two_episodes() -> None:
    alerts = Alerts()
    other = Finding(SLOW.kind, "ai:openai", SLOW.message)
    assert len(alerts.step([SLOW, other], T0)) == 2
    assert [view["component"] for view in alerts.views(T0)] == ["ai:claude", "ai:openai"]
    assert [one.component for one in alerts.step([other], T0 + 1)] == ["ai:claude", "ai:claude"]


def test_each_view_has_the_promised_keys() -> None:
    alerts = Alerts()
    alerts.step([DOWN], T0)
    assert alerts.views(T0) == [
        {
            "type": "critical",
            "component": "database",
            "message": "the database does not answer",
            "timestamp": "2026-09-21T14:13:20+00:00",
            "kind": "database_unavailable",
            "active": True,
            "ended_at": None,
            "data": {},
        }
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_ends_with_its_news_or_in_silence(kind: str) -> None:
    alerts = Alerts()
    alerts.step([Finding(kind, "part", "something")], T0)
    ended = told(alerts.step([], T0 + 1))
    assert ended == [(kind, True), *([(ENDINGS[kind].kind, True)] if kind in ENDINGS else [])]


def test_what_began_as_critical_is_told_when_it_ends() -> None:
    assert {kind for kind, row in KINDS.items() if row.severity == "critical"} <= ENDINGS.keys()


def test_a_clock_that_was_set_back_gives_no_negative_time() -> None:
    alerts = Alerts()
    alerts.step([SLOW], T0)
    assert alerts.step([], T0 - 3600)[1].data == {"lasted_s": 0.0}


# ── what is listed ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_worst_comes_first_and_of_equals_the_newest() -> None:
    alerts = Alerts()
    alerts.step([SLOW], T0)
    alerts.step([FULL], T0 + 1)  # the first one ends: news
    alerts.step([FULL, DOWN], T0 + 2)
    limit = Finding("budget_approaching", "ai:claude", "84% of today's budget")
    alerts.step([FULL, DOWN, limit], T0 + 3)
    assert kinds(alerts, T0 + 3) == [
        "database_unavailable",
        "budget_approaching",
        "database_saturated",
        "performance_recovered",
    ]


def test_what_ended_is_listed_for_fifteen_minutes_as_information() -> None:
    alerts = Alerts()
    alerts.step([DOWN], T0)
    alerts.step([], T0 + 10)
    (view,) = alerts.views(T0 + 10)
    assert (view["type"], view["active"], view["message"]) == (
        "info",
        False,
        "the database is available again",
    )
    assert LISTED_AFTER_END_S == 15 * 60
    assert kinds(alerts, T0 + 10 + 899) == ["database_recovered"]
    assert kinds(alerts, T0 + 10 + 900) == []
    alerts.step([], T0 + 10 + 900)
    assert kinds(alerts, T0 + 10) == [], "and then forgotten, whatever the clock says later"


def test_looking_changes_nothing() -> None:
    alerts = Alerts()
    alerts.step([DOWN], T0)
    alerts.step([SLOW], T0 + 1)
    first = alerts.views(T0 + 1)
    alerts.views(T0 + 5000)
    assert alerts.views(T0 + 1) == first
    first[0]["data"]["error_rate"] = 1.0
    assert alerts.views(T0 + 1)[0]["data"] == {"error_rate": 0.1}


# ── recovery: a real breaker from open to closed ──────────────────────────────────────────────────────────────────────


class Watch:
    """The alerts of a house, and everything that was given for keeping."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.alerts = Alerts()
        self.kept: list[tuple[str, bool]] = []

    def look(self) -> list[str]:
        now = self.house.clock.wall()
        self.kept += told(self.alerts.step(self.house.findings(), now))
        return kinds(self.alerts, now)


def test_open_half_open_and_open_again_is_one_episode() -> None:
    async def test(house: House) -> None:
        house.add()
        watch = Watch(house)
        await house.open()
        assert watch.look() == ["circuit_open", "service_down"]
        await house.half_open()
        assert watch.look() == ["circuit_recovering"], "while recovery is tested only that is shown"
        await house.open()
        assert watch.look() == ["circuit_open", "service_down"], "no news of a recovery that was none"
        await house.half_open()
        assert watch.look() == ["circuit_recovering"]
        await house.calls(2)
        assert watch.look() == ["circuit_closed", "service_recovered"]
        assert [one for one in watch.kept if one[0] in ("circuit_open", "service_down")] == [
            ("circuit_open", False),
            ("service_down", False),
            ("circuit_open", True),
            ("service_down", True),
        ]

    in_house(test)


def test_the_alarm_that_is_kept_says_when_it_began() -> None:
    async def test(house: House) -> None:
        house.add()
        watch = Watch(house)
        await house.open()
        watch.look()
        began = watch.alerts.views(house.clock.wall())[0]["timestamp"]
        await house.half_open()
        watch.look()
        await house.open()
        watch.look()
        assert watch.alerts.views(house.clock.wall())[0]["timestamp"] == began

    in_house(test)


def test_the_database_too(tmp_path: Path) -> None:
    async def test(house: House) -> None:
        watch = Watch(house)
        await house.use_database(*[False] * 5)
        house.look_at_database("connection refused")
        assert watch.look() == ["circuit_open", "database_unavailable"]
        await house.clock.sleep(60)
        house.tick()
        assert watch.look() == ["circuit_recovering"]
        house.look_at_database()
        await house.use_database(True, True)
        assert watch.look() == ["circuit_closed", "database_recovered"]

    in_house(test, tmp_path)


def test_the_recovery_of_one_model_hides_nothing_of_another() -> None:
    async def test(house: House) -> None:
        house.add()
        watch = Watch(house)
        await house.open()
        await house.clock.sleep(30)
        await house.open(model="opus")
        watch.look()
        await house.half_open()
        assert watch.look() == ["circuit_open", "circuit_recovering"]
        assert watch.alerts.views(house.clock.wall())[0]["component"] == "ai:claude/opus"

    in_house(test)


def test_a_key_that_works_again_is_a_service_that_recovered_at_once() -> None:
    async def test(house: House) -> None:
        house.add()
        watch = Watch(house)
        await house.call(KEY_REFUSED)
        assert watch.look() == ["service_down"]
        house.services["claude"].unblock_key()
        assert watch.look() == ["service_recovered"]

    in_house(test)


# ── after a restart ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_restart_neither_forgets_nor_repeats() -> None:
    before = Alerts()
    kept = before.step([DOWN], T0)
    after = Alerts()
    after.restore(kept)
    assert after.views(T0 + 10) == before.views(T0 + 10)
    assert after.step([DOWN], T0 + 10) == [], "it is the same fire"
    assert after.views(T0 + 11)[0]["timestamp"] == "2026-09-21T14:13:20+00:00"
    assert told(after.step([], T0 + 20)) == [("database_unavailable", True), ("database_recovered", True)]


def test_a_restart_is_no_recovery() -> None:
    """A young process has not looked yet: its breakers are closed and its probes never asked."""
    assert RESTORED_KEPT_S == 60
    after = Alerts()
    after.restore(Alerts().step([DOWN], T0))
    assert after.step([], T0 + 100) == []
    assert after.step([], T0 + 100 + RESTORED_KEPT_S - 1) == []
    assert kinds(after, T0 + 159) == ["database_unavailable"]
    ended = after.step([], T0 + 100 + RESTORED_KEPT_S)
    assert told(ended) == [("database_unavailable", True), ("database_recovered", True)]
    assert ended[0].started_at == T0


def test_what_was_found_again_after_a_restart_ends_as_usual() -> None:
    after = Alerts()
    after.restore(Alerts().step([DOWN, SLOW], T0))
    assert after.step([DOWN], T0 + 10) == []
    assert told(after.step([], T0 + 11)) == [("database_unavailable", True), ("database_recovered", True)]


def test_news_are_listed_after_a_restart_too() -> None:
    before = Alerts()
    before.step([DOWN], T0)
    changed = before.step([], T0 + 10)
    after = Alerts()
    after.restore(changed)
    assert after.views(T0 + 20) == before.views(T0 + 20) != []
    assert after.step([], T0 + 20) == []


def test_recovery_stays_recovery_after_a_restart() -> None:
    """Both were kept: the open circuit and its recovery."""

    async def test(house: House) -> None:
        house.add()
        watch, store = Watch(house), []
        await house.open()
        store += watch.alerts.step(house.findings(), house.clock.wall())
        await house.half_open()
        store += watch.alerts.step(house.findings(), house.clock.wall())
        after = Alerts()
        after.restore(store)
        assert kinds(after, house.clock.wall()) == ["circuit_recovering"]

    in_house(test)


def test_of_two_episodes_of_the_same_thing_the_first_goes_on_and_the_other_is_ended() -> None:
    """Two processes on one store; unended, the second one would come back at each start."""
    (first,), (second,) = Alerts().step([DOWN], T0), Alerts().step([DOWN], T0 + 5)
    after = Alerts()
    after.restore([first, second])
    (ended,) = after.step([DOWN], T0 + 10)
    assert (ended.started_at, ended.ended_at) == (T0 + 5, T0 + 10)
    assert [view["timestamp"][-11:-6] for view in after.views(T0 + 10)] == ["13:20"]
    assert after.step([DOWN], T0 + 11) == []


def test_of_two_the_older_one_goes_on_also_when_it_is_found_later() -> None:
    """Its process has died, and its lease was not over yet when this one found the same thing."""
    (older,) = Alerts().step([DOWN], T0)
    alerts = Alerts()
    worse = Finding(DOWN.kind, DOWN.component, "the database refuses the password")
    alerts.step([worse], T0 + 5)
    alerts.restore([older, older])
    (ended,) = alerts.step([worse], T0 + 10)
    assert (ended.started_at, ended.ended_at) == (T0 + 5, T0 + 10)
    (lasting,) = alerts.lasting
    assert (lasting.started_at, lasting.message) == (T0, worse.message), "with the latest words"
    assert told(alerts.step([], T0 + 11))[0] == ("database_unavailable", True), (
        "what was found may end at once"
    )


def test_what_was_taken_over_later_has_its_own_time_to_be_looked_at() -> None:
    alerts = Alerts()
    alerts.restore(Alerts().step([DOWN], T0))
    alerts.step([], T0 + 100)
    alerts.restore(Alerts().step([SLOW], T0))
    alerts.step([], T0 + 130)
    assert told(alerts.step([], T0 + 160))[0] == ("database_unavailable", True)
    assert alerts.step([], T0 + 189) == []
    assert told(alerts.step([], T0 + 190))[0] == ("degraded_performance", True)


# ── whatever happens ──────────────────────────────────────────────────────────────────────────────────────────────────

PARTS = [
    ("circuit_open", "ai:a"),
    ("service_down", "ai:a"),
    ("circuit_recovering", "ai:a"),
    ("budget_approaching", "ai:a"),
    ("circuit_open", "database"),
    ("database_unavailable", "database"),
    ("circuit_recovering", "database"),
]
STEPS = st.lists(
    st.tuples(st.sets(st.sampled_from(PARTS)), st.integers(1, 400), st.booleans()), min_size=1, max_size=30
)


@given(STEPS)
def test_a_step_never_loses_an_episode(steps: list[tuple[set[Any], int, bool]]) -> None:
    """What was kept tells at any time what lasts, also over restarts; and what is found is always among it."""
    alerts, now = Alerts(), T0
    store: dict[tuple[str, float], Episode] = {}
    for found, pause_s, restarts in steps:
        if restarts:
            alerts = Alerts()
            alerts.restore(one for one in store.values() if one.ended_at is None)
        now += pause_s
        for episode in alerts.step([Finding(kind, part, "x") for kind, part in found], now):
            old = store.get((episode.fingerprint, episode.started_at))
            assert old is None or old.ended_at is None, "an end is an end"
            assert old is not None or episode.ended_at is None or episode.type == "info"
            store[episode.fingerprint, episode.started_at] = episode
        lasting = sorted(one.fingerprint for one in store.values() if one.ended_at is None)
        assert lasting == sorted(one.fingerprint for one in alerts.lasting)
        assert {f"{kind}:{part}" for kind, part in found} <= set(lasting)
