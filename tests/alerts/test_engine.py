"""When an alert begins and ends: it stays one episode from beginning to end, whatever happens in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from koo.alerts.engine import LISTED_AFTER_END_S, SETTLES_S, UNSEEN_S_MAX, Alerts, Moment
from koo.alerts.findings import Finding
from koo.alerts.kinds import ENDINGS, KINDS, AlertKind, Ending
from koo.alerts.views import alert_views
from koo.episodes import Acknowledgement, Episode, Silence, new_id
from koo.monitoring.shapes import Alert
from tests.monitoring.rig import KEY_REFUSED, Rig, on_rig

T0 = 1_790_000_000.0
SLOW = Finding("degraded_performance", "ai:claude", "10% of the last 20 calls failed", {"error_rate": 0.1})
DOWN = Finding("database_unavailable", "database", "the database does not answer")
FULL = Finding("database_saturated", "database", "the database is saturated")
OPEN = Finding("circuit_open", "ai:claude", "the circuit breaker is open")
TRIED = Finding("circuit_recovering", "ai:claude", "recovery is being tested")
GONE = Finding("service_down", "ai:claude", "claude cannot be called")
AT_ONCE = {kind: replace(row, pending_s=0.0, recovering_s=0.0) for kind, row in KINDS.items()}
"""The real kinds, but without pending and recovering times."""
PATIENT = {
    **AT_ONCE,
    "degraded_performance": AlertKind(
        "warning",
        "Degraded performance",
        pending_s=10.0,
        recovering_s=60.0,
        ending=Ending("performance_recovered", "better"),
        evidence="recent",
    ),
}


class Watch:
    """Alerts on a clock that the test sets, with the evidence and all episodes that were to be stored."""

    def __init__(self, kinds: Mapping[str, AlertKind] = AT_ONCE) -> None:
        self.alerts = Alerts(kinds=kinds)
        self.has_looked = True
        self.kept: list[tuple[str, str]] = []

    def look(self, now: float, *findings: Finding) -> list[tuple[str, str]]:
        """The changes, as kind and phase."""
        changed: list[tuple[str, str]] = [(one.kind, one.phase) for one in self.step(now, *findings)]
        self.kept += changed
        return changed

    def step(self, now: float, *findings: Finding) -> list[Episode]:
        return self.alerts.step(findings, at(now), lambda kind, component: self.has_looked, new_id)

    def views(self, now: float) -> list[Alert]:
        return alert_views(self.alerts, at(now))

    def kinds(self, now: float) -> list[str]:
        """The listed kinds, in order."""
        return [view["kind"] for view in self.views(now)]

    def owed(self, now: float) -> list[str]:
        """The episodes that are due for a notice; they count as notified afterwards."""
        owed = self.alerts.owed(at(now))
        for episode in owed:
            self.alerts.notified(episode.fingerprint, now)
        return [episode.kind for episode in owed]

    def restart(self, now: float) -> Watch:
        """The next process, which has no evidence yet."""
        after = Watch(self.alerts.kinds)
        after.has_looked = False
        after.alerts.restore([*self.alerts.lasting, *self.alerts.ended(at(now))], at(now))
        return after


def at(now: float) -> Moment:
    """A moment whose monotonic clock differs from its wall clock."""
    return Moment(now, now - T0 + 77)


# ── one episode from its beginning to its end ─────────────────────────────────────────────────────────────────────────


def test_an_episode_begins_once_continues_and_ends_once() -> None:
    watch = Watch()
    (began,) = watch.step(T0, SLOW)
    assert (began.kind, began.phase, began.started_at, began.fired_at) == (SLOW.kind, "firing", T0, T0)
    worse = Finding(SLOW.kind, SLOW.component, "30% of the last 40 calls failed", {"error_rate": 0.3})
    assert watch.look(T0 + 60, worse) == [], "it continues, so nothing is stored"
    (view,) = watch.views(T0 + 60)
    assert view["message"] == worse.message and view["data"] == {"error_rate": 0.3}, (
        "it has the latest numbers"
    )
    assert view["timestamp"] == view["since"] == "2026-09-21T14:13:20+00:00", "its start is kept"
    (ended,) = watch.step(T0 + 90)
    assert (ended.id, ended.phase, ended.ended_at) == (began.id, "resolved", T0 + 90)
    assert ended.message == worse.message
    (news,) = watch.views(T0 + 90)
    assert (news["kind"], news["type"], news["active"]) == ("performance_recovered", "info", False)
    assert (news["id"], news["phase"], news["data"]) == (began.id, "resolved", {"lasted_s": 90.0})
    assert watch.look(T0 + 91) == []


def test_a_condition_that_returns_after_its_end_begins_a_new_episode() -> None:
    watch = Watch()
    (first,) = watch.step(T0, SLOW)
    watch.step(T0 + 10)
    (second,) = watch.step(T0 + 20, SLOW)
    assert first.fingerprint == second.fingerprint and first.id != second.id
    assert (first.started_at, second.started_at) == (T0, T0 + 20)


def test_the_same_kind_in_two_components_makes_two_episodes() -> None:
    watch = Watch()
    other = Finding(SLOW.kind, "ai:openai", SLOW.message)
    assert len(watch.step(T0, SLOW, other)) == 2
    assert [view["component"] for view in watch.views(T0)] == ["ai:claude", "ai:openai"]
    assert [one.component for one in watch.step(T0 + 1, other)] == ["ai:claude"]


def test_each_view_has_the_promised_keys() -> None:
    watch = Watch()
    watch.step(T0, DOWN)
    (view,) = watch.views(T0)
    promised = {
        "type": "critical",
        "component": "database",
        "message": "the database does not answer",
        "timestamp": "2026-09-21T14:13:20+00:00",
        "kind": "database_unavailable",
        "active": True,
        "ended_at": None,
        "data": {},
    }
    assert {key: view[key] for key in promised} == promised  # type: ignore[literal-required]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_announces_its_end_as_its_table_row_says(kind: str) -> None:
    watch = Watch()
    watch.step(T0, Finding(kind, "part", "something"))
    assert watch.look(T0 + 1) == [(kind, "resolved")]
    assert watch.kinds(T0 + 1) == ([ENDINGS[kind].kind] if kind in ENDINGS else [])


def test_the_end_of_every_critical_alert_is_announced() -> None:
    assert {kind for kind, row in KINDS.items() if row.severity == "critical"} <= ENDINGS.keys()


def test_an_episode_never_ends_before_it_begins() -> None:
    """The clock was set back, or another machine's clock is ahead."""
    watch = Watch()
    watch.step(T0, SLOW)
    (ended,) = watch.step(T0 - 3600)
    assert ended.ended_at == T0
    assert watch.views(T0 - 3600)[0]["data"] == {"lasted_s": 0.0}


# ── hysteresis ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_alert_does_not_fire_before_its_pending_time() -> None:
    watch = Watch(PATIENT)
    assert watch.look(T0, SLOW) == [(SLOW.kind, "pending")]
    (view,) = watch.views(T0)
    assert (view["phase"], view["notified"]["state"]) == ("pending", "pending"), "it is not listed as firing"
    assert watch.look(T0 + 9, SLOW) == [] and watch.owed(T0 + 9) == []
    assert watch.look(T0 + 10, SLOW) == [(SLOW.kind, "firing")]
    (view,) = watch.views(T0 + 10)
    assert view["timestamp"] < view["since"] == "2026-09-21T14:13:30+00:00", (
        "its start is that of the condition"
    )
    assert watch.owed(T0 + 10) == [SLOW.kind]


def test_an_alert_that_is_over_before_it_fires_leaves_no_trace() -> None:
    watch = Watch(PATIENT)
    watch.look(T0, SLOW)
    (gone,) = watch.step(T0 + 9)
    assert gone.phase == "resolved" and gone.fired_at is None
    assert watch.views(T0 + 9) == []
    assert watch.look(T0 + 12, SLOW) == [(SLOW.kind, "pending")], "its pending time starts again"
    assert watch.look(T0 + 19, SLOW) == []


def test_a_condition_that_returns_while_recovering_continues_the_same_episode() -> None:
    watch = Watch(PATIENT)
    watch.look(T0, SLOW)
    (fired,) = watch.step(T0 + 10, SLOW)
    assert watch.owed(T0 + 10) == [SLOW.kind]
    assert watch.look(T0 + 20) == [(SLOW.kind, "recovering")]
    (view,) = watch.views(T0 + 70)
    assert (view["phase"], view["active"], view["id"]) == ("recovering", True, fired.id)
    assert watch.look(T0 + 79, SLOW) == [(SLOW.kind, "firing")]
    assert watch.owed(T0 + 79) == [], "people have been notified"
    watch.look(T0 + 100)
    assert watch.look(T0 + 159) == []
    assert watch.look(T0 + 160) == [(SLOW.kind, "resolved")]


def test_a_weak_finding_continues_an_alert_but_does_not_begin_one() -> None:
    watch = Watch()
    fewer = replace(SLOW, begins=False)
    assert watch.look(T0, fewer) == []
    watch.look(T0 + 1, SLOW)
    assert watch.look(T0 + 2, fewer) == []
    assert watch.look(T0 + 3) == [(SLOW.kind, "resolved")]
    assert watch.look(T0 + 4, fewer) == []


def test_a_steady_tenth_of_failures_is_one_episode() -> None:
    """The error rate moves around a tenth with each call. Without hysteresis this would be 21 episodes."""

    async def test(rig: Rig) -> None:
        rig.add()
        watch = Watch(KINDS)
        for number in range(600):
            await rig.calls(1 if number % 10 else 0, 0 if number % 10 else 1)
            await rig.clock.sleep(0.9)
            watch.look(rig.clock.wall(), *rig.findings())
        assert watch.kept == [(SLOW.kind, "firing")]
        await rig.calls(300)
        watch.look(rig.clock.wall(), *rig.findings())
        await rig.clock.sleep(60)
        watch.look(rig.clock.wall(), *rig.findings())
        assert watch.kept[1:] == [(SLOW.kind, "recovering"), (SLOW.kind, "resolved")]

    on_rig(test)


# ── what is listed ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_alerts_are_listed_by_severity_and_then_newest_first() -> None:
    watch = Watch()
    limit = Finding("budget_approaching", "ai:claude", "84% of today's budget")
    watch.step(T0, SLOW)
    watch.step(T0 + 1, FULL)  # the first one ends, which is announced
    watch.step(T0 + 2, FULL, DOWN)
    watch.step(T0 + 3, FULL, DOWN, limit)
    assert watch.kinds(T0 + 3) == [
        "database_unavailable",
        "budget_approaching",
        "database_saturated",
        "performance_recovered",
    ]


def test_an_ended_alert_is_listed_as_info_for_fifteen_minutes() -> None:
    watch = Watch()
    watch.step(T0, DOWN)
    watch.step(T0 + 10)
    (view,) = watch.views(T0 + 10)
    assert (view["type"], view["active"], view["message"]) == (
        "info",
        False,
        "the database is available again",
    )
    assert LISTED_AFTER_END_S == 15 * 60
    assert watch.kinds(T0 + 10 + 899) == ["database_recovered"]
    assert watch.kinds(T0 + 10 + 900) == []
    watch.step(T0 + 10 + 900)
    assert watch.kinds(T0 + 10) == [], "then it is forgotten, whatever the clock says later"


def test_reading_the_views_changes_nothing() -> None:
    watch = Watch()
    watch.step(T0, DOWN)
    watch.step(T0 + 1, SLOW)
    first = watch.views(T0 + 1)
    watch.views(T0 + 5000)
    assert watch.views(T0 + 1) == first
    first[0]["data"]["error_rate"] = 1.0
    assert watch.views(T0 + 1)[0]["data"] == {"error_rate": 0.1}


# ── recovery: a real breaker from open to closed ──────────────────────────────────────────────────────────────────────


class RigWatch(Watch):
    """The alerts of a simulated platform (a `Rig`)."""

    def __init__(self, rig: Rig) -> None:
        super().__init__()
        self.rig = rig

    def see(self) -> list[str]:
        now = self.rig.clock.wall()
        self.look(now, *self.rig.findings())
        return self.kinds(now)


def phases(watch: Watch, kind: str) -> list[str]:
    return [phase for name, phase in watch.kept if name == kind]


def test_a_breaker_that_opens_again_after_half_open_is_one_episode() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        watch = RigWatch(rig)
        await rig.open()
        assert "service_down" in watch.see()
        await rig.half_open()
        assert watch.see() == ["circuit_recovering"], "while recovery is tested, only that is listed"
        await rig.open()
        assert "service_down" in watch.see(), "a failed recovery is not announced"
        await rig.half_open()
        assert watch.see() == ["circuit_recovering"]
        await rig.calls(2)
        assert "service_recovered" in watch.see()
        expected = ["firing", "recovering", "firing", "recovering", "resolved"]
        assert phases(watch, "service_down") == expected

    on_rig(test)


def test_an_alert_kept_through_recovery_keeps_its_start() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        watch = RigWatch(rig)
        await rig.open()
        watch.see()
        began = watch.views(rig.clock.wall())[0]["timestamp"]
        await rig.half_open()
        watch.see()
        await rig.open()
        watch.see()
        assert watch.views(rig.clock.wall())[0]["timestamp"] == began

    on_rig(test)


def test_the_databases_breaker_is_shown_as_recovering_and_then_as_recovered(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        watch = RigWatch(rig)
        await rig.use_database(*[False] * 5)
        rig.look_at_database("connection refused")
        assert "database_unavailable" in watch.see()
        await rig.clock.sleep(60)
        rig.tick()
        assert watch.see() == ["circuit_recovering"]
        rig.look_at_database()
        await rig.use_database(True, True)
        assert "database_recovered" in watch.see()

    on_rig(test, tmp_path)


def test_the_recovery_of_one_model_does_not_hide_another_models_alert() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        watch = RigWatch(rig)
        await rig.open()
        await rig.clock.sleep(30)
        await rig.open(model="opus")
        watch.see()
        await rig.half_open()
        assert watch.see() == ["circuit_open", "circuit_recovering"]
        assert watch.views(rig.clock.wall())[0]["component"] == "ai:claude/opus"

    on_rig(test)


def test_a_service_recovers_immediately_when_its_key_works_again() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        watch = RigWatch(rig)
        await rig.call(KEY_REFUSED)
        assert watch.see() == ["service_down"]
        rig.services["claude"].unblock_key()
        assert watch.see() == ["service_recovered"]

    on_rig(test)


def test_a_finding_is_listed_even_while_recovery_is_tested() -> None:
    """A key that is refused while the breaker is half open refuses calls now."""
    watch = Watch()
    watch.look(T0, GONE)
    watch.look(T0 + 1, TRIED)
    assert watch.kinds(T0 + 1) == ["circuit_recovering"]
    watch.look(T0 + 2, TRIED, GONE)
    assert watch.kinds(T0 + 2) == ["service_down", "circuit_recovering"]


def test_a_part_of_a_greater_alert_continues_unlisted_and_its_end_is_not_announced() -> None:
    watch = Watch()
    watch.look(T0, OPEN)
    whole = replace(GONE, data={"also": ["circuit_open"]})
    assert watch.look(T0 + 1, whole) == [("service_down", "firing")]
    assert watch.kinds(T0 + 1) == ["service_down"]
    assert watch.look(T0 + 2, OPEN) == [("service_down", "resolved")], "the same circuit is still open"
    assert watch.kinds(T0 + 2) == ["circuit_open", "service_recovered"]
    watch.look(T0 + 3, whole)
    assert watch.look(T0 + 4) == [("circuit_open", "resolved"), ("service_down", "resolved")]


# ── after a restart ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_restart_neither_loses_nor_repeats_an_alert() -> None:
    before = Watch()
    before.look(T0, DOWN)
    assert before.owed(T0) == ["database_unavailable"]
    after = before.restart(T0 + 10)
    assert [view["id"] for view in after.views(T0 + 10)] == [view["id"] for view in before.views(T0 + 10)]
    assert after.look(T0 + 10, DOWN) == [], "it is the same episode"
    assert after.owed(T0 + 10) == [], "people have been notified of it"
    assert after.views(T0 + 11)[0]["timestamp"] == "2026-09-21T14:13:20+00:00"
    assert after.look(T0 + 20) == [("database_unavailable", "resolved")]


def test_a_restart_does_not_end_an_alert() -> None:
    """A new process has no evidence: its breakers are closed, and its probes have never run."""
    before = Watch()
    before.look(T0, DOWN)
    after = before.restart(T0 + 100)
    for later in (0, 60, 3600, UNSEEN_S_MAX - 1):
        assert after.look(T0 + 100 + later) == [], "time alone is not evidence"
        assert after.kinds(T0 + 100 + later) == ["database_unavailable"]
    after.has_looked = True
    (ended,) = after.step(T0 + 100 + UNSEEN_S_MAX - 1)
    assert (ended.phase, ended.started_at) == ("resolved", T0)


def test_evidence_ends_a_restored_alert_immediately() -> None:
    before = Watch()
    before.look(T0, DOWN)
    after = before.restart(T0 + 1)
    after.has_looked = True
    assert after.look(T0 + 2) == [("database_unavailable", "resolved")]
    assert after.kinds(T0 + 2) == ["database_recovered"]


def test_an_operators_reset_replaces_the_evidence() -> None:
    before = Watch()
    before.look(T0, DOWN, replace(OPEN, component="ai:claude/opus"))
    after = before.restart(T0 + 1)
    after.alerts.trust("ai:claude")
    assert after.look(T0 + 2) == [("circuit_open", "resolved")]
    after.alerts.trust("database")
    assert after.look(T0 + 3, DOWN) == [], "an alert that is found continues"


def test_a_restored_alert_without_evidence_ends_after_a_day() -> None:
    before = Watch()
    before.look(T0, DOWN)
    after = before.restart(T0)
    assert after.look(T0 + UNSEEN_S_MAX) == [("database_unavailable", "resolved")]


def test_an_alert_found_again_after_a_restart_ends_as_usual() -> None:
    before = Watch()
    before.look(T0, DOWN, SLOW)
    after = before.restart(T0 + 10)
    assert after.look(T0 + 10, DOWN) == []
    assert after.look(T0 + 11) == [("database_unavailable", "resolved")]


def test_a_restored_pending_alert_keeps_its_pending_time() -> None:
    """A process that is restarted every few seconds must not hide it forever."""
    before = Watch(PATIENT)
    before.look(T0, SLOW)
    after = before.restart(T0 + 6)
    assert after.look(T0 + 6, SLOW) == []
    again = after.restart(T0 + 10)
    assert again.look(T0 + 10, SLOW) == [(SLOW.kind, "firing")]


def test_ended_alerts_are_listed_after_a_restart_too() -> None:
    before = Watch()
    before.look(T0, DOWN)
    before.look(T0 + 10)
    after = before.restart(T0 + 20)
    assert after.views(T0 + 20) == before.views(T0 + 20) != []
    assert after.look(T0 + 20) == []


def test_a_restored_recovery_alert_still_represents_the_open_circuit() -> None:
    """Both alerts were stored: the open circuit and its recovery."""
    before = Watch()
    before.look(T0, OPEN)
    before.look(T0 + 1, TRIED)
    after = before.restart(T0 + 2)
    assert after.kinds(T0 + 2) == ["circuit_recovering"]
    assert after.look(T0 + 3) == [] and after.kinds(T0 + 3) == ["circuit_recovering"]


def test_an_alert_taken_over_later_needs_evidence_too() -> None:
    watch = Watch()
    watch.has_looked = False
    for number, finding in enumerate((DOWN, SLOW)):
        other = Watch()
        other.look(T0, finding)
        watch.alerts.restore(other.alerts.lasting, at(T0 + number))
    assert watch.look(T0 + 2) == []
    watch.look(T0 + 3, SLOW)
    assert watch.look(T0 + 4) == [(SLOW.kind, "resolved")]


# ── notifications ─────────────────────────────────────────────────────────────────────────────────────────────────────


def silence(until: float, kind: str = "*", component: str = "*") -> Silence:
    return Silence(
        id="1", kind=kind, component=component, made_at=T0, ends_at=until, by="ada", reason="migration"
    )


def state(watch: Watch, now: float) -> tuple[str, str]:
    """The notification state of the first listed alert: notified, or the reason why not."""
    notified = watch.views(now)[0]["notified"]
    return notified["state"], notified["reason"]


def test_people_are_notified_once_of_a_firing_alert() -> None:
    watch = Watch()
    watch.look(T0, DOWN)
    assert state(watch, T0)[0] == "due"
    assert watch.owed(T0) == ["database_unavailable"]
    watch.look(T0 + 1, DOWN)
    assert watch.owed(T0 + 1) == []
    assert watch.views(T0 + 1)[0]["notified"] == {
        "state": "notified",
        "at": "2026-09-21T14:13:20+00:00",
        "reason": "",
    }


def test_an_alert_still_firing_at_the_end_of_a_silence_notifies_then() -> None:
    watch = Watch()
    watch.alerts.silences = (silence(T0 + 60, "database_*"),)
    watch.look(T0, DOWN, GONE)
    assert watch.owed(T0) == ["service_down"], "a silence covers only matching alerts"
    (view,) = [view for view in watch.views(T0) if view["kind"] == DOWN.kind]
    assert view["silenced"] is not None and view["silenced"]["by"] == "ada"
    assert view["notified"]["state"] == "silenced"
    assert view["notified"]["reason"] == "silenced by ada until 2026-09-21T14:14:20+00:00: migration"
    watch.look(T0 + 59, DOWN, GONE)
    assert watch.owed(T0 + 59) == []
    watch.look(T0 + 60, DOWN, GONE)
    assert watch.owed(T0 + 60) == ["database_unavailable"]


def test_an_alert_that_ended_during_a_silence_sends_no_notice() -> None:
    watch = Watch()
    watch.alerts.silences = (silence(T0 + 60),)
    watch.look(T0, DOWN)
    assert watch.look(T0 + 30) == [("database_unavailable", "resolved")], "the history has it"
    assert watch.owed(T0 + 60) == []


def test_an_acknowledged_alert_sends_no_reminders() -> None:
    watch = Watch()
    watch.look(T0, DOWN)
    watch.owed(T0)
    hour = 3600.0
    (episode,) = watch.alerts.lasting
    reminders = watch.alerts.reminders
    assert reminders(at(T0 + hour - 1), hour) == []
    assert [number for _, number in reminders(at(T0 + hour), hour)] == [1]
    watch.alerts.reminded(episode.fingerprint, 1)
    assert reminders(at(T0 + 2 * hour - 1), hour) == []
    watch.alerts.acknowledge(episode.id, Acknowledgement("ada", T0, T0 + 3 * hour, "on it"))
    assert reminders(at(T0 + 2 * hour), hour) == []
    acknowledged = watch.views(T0 + 2 * hour)[0]["acknowledged"]
    assert acknowledged is not None and (acknowledged["by"], acknowledged["note"]) == ("ada", "on it")
    assert [number for _, number in reminders(at(T0 + 3 * hour), hour)] == [3], (
        "the acknowledgement has expired"
    )
    assert watch.views(T0 + 3 * hour)[0]["acknowledged"] is None
    assert reminders(at(T0 + 3 * hour), 0.0) == [], "0 means never"


def test_warnings_send_no_reminders() -> None:
    watch = Watch()
    watch.look(T0, SLOW)
    watch.owed(T0)
    assert watch.alerts.reminders(at(T0 + 1e6), 60.0) == []


def test_an_alert_acknowledged_before_its_notice_sends_none() -> None:
    watch = Watch()
    watch.alerts.silences = (silence(T0 + 60),)
    watch.look(T0, DOWN)
    watch.alerts.acknowledge(watch.alerts.lasting[0].id, Acknowledgement("ada", T0))
    watch.look(T0 + 60, DOWN)
    assert watch.owed(T0 + 60) == []
    assert state(watch, T0 + 60) == ("acknowledged", "ada has acknowledged it")


def test_a_cause_suppresses_the_notices_of_its_consequences() -> None:
    watch = Watch()
    watch.look(T0, FULL, DOWN)
    assert watch.owed(T0) == ["database_unavailable"]
    (view,) = [view for view in watch.views(T0) if view["kind"] == FULL.kind]
    assert view["inhibited_by"] == "database_unavailable:database" and view["active"]
    reason = "it follows from database_unavailable:database, which is still open"
    assert view["notified"] == {"state": "inhibited", "at": None, "reason": reason}


def test_a_services_alert_suppresses_notices_of_its_own_models_only() -> None:
    watch = Watch()
    models = [replace(OPEN, component=part) for part in ("ai:claude/opus", "ai:claudette", "ai:openai/x")]
    watch.look(T0, *models, GONE)
    assert watch.owed(T0) == ["circuit_open", "circuit_open", "service_down"]
    assert watch.alerts.seen[0].inhibited_by == "service_down:ai:claude"


def test_the_caller_says_which_components_depend_on_another() -> None:
    watch = Watch()
    watch.alerts.outer = lambda component: ("database",) if component == "state_store" else ()
    local = Finding("budget_local", "state_store", "the state store cannot be reached")
    watch.look(T0, local, DOWN)
    assert watch.owed(T0) == ["database_unavailable"]


def test_a_pending_cause_suppresses_notices_already() -> None:
    """Otherwise people would be notified of the consequence first, and then of the cause."""
    kinds = {**AT_ONCE, DOWN.kind: replace(AT_ONCE[DOWN.kind], pending_s=10.0)}
    watch = Watch(kinds)
    watch.look(T0, FULL, DOWN)
    assert watch.owed(T0) == []
    watch.look(T0 + 10, FULL, DOWN)
    assert watch.owed(T0 + 10) == ["database_unavailable"]


def test_a_consequence_that_outlasts_its_cause_notifies_after_a_minute() -> None:
    watch = Watch()
    watch.look(T0, FULL, DOWN)
    watch.owed(T0)
    watch.look(T0 + 1, FULL)
    assert watch.owed(T0 + 1) == []
    assert [v["notified"]["reason"] for v in watch.views(T0 + 1) if v["kind"] == FULL.kind] == [
        "its cause ended a moment ago"
    ]
    watch.look(T0 + SETTLES_S - 1, FULL)
    assert watch.owed(T0 + SETTLES_S - 1) == []
    watch.look(T0 + SETTLES_S, FULL)
    assert watch.owed(T0 + SETTLES_S) == ["database_saturated"]


def test_no_kind_directly_or_indirectly_inhibits_itself() -> None:
    """If kinds inhibited each other in a circle, none of them would ever notify."""

    def causes(kind: str) -> set[str]:
        direct = set(KINDS[kind].inhibited_by) & KINDS.keys()
        return direct.union(*(causes(one) for one in direct))

    assert [kind for kind in KINDS if kind in causes(kind)] == []
