"""The rules find the promised kinds at the promised thresholds, over real guards after real calls."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from koo.alerts.findings import Finding
from koo.alerts.kinds import KINDS
from koo.alerts.rules import find
from koo.budget_options import BudgetOptions
from koo.clock import iso
from koo.database.gate import GateState
from koo.events import Severity
from koo.monitoring.shapes import RequestWindow
from koo.monitoring.snapshot import own_budget_view
from koo.openings import Act
from koo.options import LimitOptions
from koo.policies.breaker import Override
from koo.policies.forecast import RunOut
from koo.policies.verdict import THROTTLED, Fault
from koo.storage.base import OwnBudgetView
from tests.monitoring.rig import (
    CANCELLED,
    FAILED,
    KEY_REFUSED,
    MODEL,
    MODEL_REFUSED,
    TOO_MANY,
    Rig,
    on_rig,
)


def the(rig: Rig, kind: str) -> Finding:
    """The only finding of that kind."""
    (finding,) = [one for one in rig.findings() if one.kind == kind]
    return finding


def test_a_healthy_system_has_no_findings(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        rig.add("openai")
        assert rig.found() == set(), "there were no calls yet"
        await rig.calls(30)
        await rig.use_database(True, True)
        rig.look_at_database()
        assert rig.found() == set()

    on_rig(test, tmp_path)


@pytest.mark.parametrize(
    ("kind", "severity"),
    [
        ("circuit_open", "critical"),
        ("database_unavailable", "critical"),
        ("service_down", "critical"),
        ("degraded_performance", "warning"),
        ("limit_approaching_requests_per_minute", "warning"),
        ("budget_approaching", "warning"),
        ("bill_above_hold", "warning"),
        ("circuit_recovering", "warning"),
    ],
)
def test_the_promised_kinds_have_the_promised_severities(kind: str, severity: Severity) -> None:
    assert KINDS[kind].severity == severity == Finding(kind, "ai:claude", "").severity


def test_a_condition_missing_from_the_table_is_a_warning_and_not_an_error() -> None:
    assert Finding("database_on_fire", "database", "the database is on fire").severity == "warning"


# ── performance: an error rate of 10 %, or a 95th percentile above the slow time, of at least 20 calls ────────────────


@pytest.mark.parametrize(
    ("good", "bad", "found"),
    [
        (18, 2, True),
        (19, 1, False),
        (17, 2, False),
        (10, 9, False),
        (27, 3, True),
        (28, 3, False),
        (63, 7, True),
    ],
)
def test_an_error_rate_of_a_tenth_of_at_least_twenty_calls_is_an_alert(
    good: int, bad: int, found: bool
) -> None:
    """Exactly a tenth counts. Nineteen calls do not count, however many failed."""

    async def test(rig: Rig) -> None:
        rig.add(failure_threshold=1000)
        await rig.calls(good, bad)
        assert ("degraded_performance:ai:claude" in rig.found()) is found
        if found:
            assert "10%" in the(rig, "degraded_performance").message

    on_rig(test)


@pytest.mark.parametrize(
    ("quick", "slow", "found"), [(18, 2, True), (20, 0, False), (99, 1, False), (17, 2, False)]
)
def test_a_95th_percentile_above_the_slow_call_time_is_an_alert(quick: int, slow: int, found: bool) -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        await rig.calls(quick)
        await rig.calls(slow, took_s=9.0)
        assert ("degraded_performance:ai:claude" in rig.found()) is found

    on_rig(test)


def test_cancelled_and_refused_calls_do_not_count() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        await rig.calls(good=17, bad=2)
        for _ in range(10):
            await rig.call(CANCELLED)
        assert rig.found() == set(), "nineteen calls are too few"
        await rig.calls(good=1)
        assert rig.found() == {"degraded_performance:ai:claude"}

    on_rig(test)


def test_throttled_calls_count_as_errors() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        await rig.calls(18)
        for _ in range(2):
            await rig.call(TOO_MANY)
        assert "degraded_performance:ai:claude" in rig.found()

    on_rig(test)


def test_performance_covers_the_last_five_minutes() -> None:
    async def test(rig: Rig) -> None:
        rig.add(failure_threshold=1000)
        await rig.calls(10, 10)
        assert rig.found() == {"degraded_performance:ai:claude"}
        await rig.clock.sleep(301)
        rig.tick()
        assert rig.found() == set()

    on_rig(test)


# ── limits and money: 80 % ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("option", "key"),
    [
        ("per_minute", "requests_per_minute"),
        ("per_hour", "requests_per_hour"),
        ("per_day", "requests_per_day"),
    ],
)
def test_a_limit_is_an_alert_from_four_fifths_on(option: str, key: RequestWindow) -> None:
    async def test(rig: Rig) -> None:
        rig.add(limits=LimitOptions(**{option: 10}))
        await rig.calls(7)
        assert rig.found() == set()
        await rig.calls(1)
        assert rig.found() == {f"limit_approaching_{key}:ai:claude"}
        finding = the(rig, f"limit_approaching_{key}")
        assert "8 of 10" in finding.message
        assert finding.data["resets_at"] == rig.view()["rate_limits"][key]["resets_at"] is not None

    on_rig(test)


def test_an_unset_limit_is_never_approached_and_a_limit_of_zero_is_always_reached() -> None:
    async def test(rig: Rig) -> None:
        rig.add("openai")
        await rig.calls(50, name="openai")
        assert rig.found() == set()
        rig.add(limits=LimitOptions(per_minute=0))
        assert rig.found() == {"limit_reached_requests_per_minute:ai:claude"}

    on_rig(test)


@pytest.mark.parametrize(
    ("spent", "held", "found"),
    [("7.99", "0", False), ("8", "0", True), ("4", "3.99", False), ("4", "4", True), ("8.99", "0", True)],
)
def test_a_budget_is_an_alert_from_four_fifths_spent_and_held_on(spent: str, held: str, found: bool) -> None:
    async def test(rig: Rig) -> None:
        rig.add(budget="10")
        rig.spend(spent, held)
        assert rig.found() == ({"budget_approaching:ai:claude"} if found else set())

    on_rig(test)


@pytest.mark.parametrize(
    ("spent", "held", "kinds"),
    [
        ("8.99", "0", ["budget_approaching"]),
        ("8", "1", ["budget_at_90", "budget_approaching"]),
        ("9.49", "0", ["budget_at_90", "budget_approaching"]),
        ("9", "0.5", ["budget_at_95", "budget_approaching", "budget_at_90"]),
        ("9.99", "5", ["budget_at_95", "budget_approaching", "budget_at_90"]),
        ("10", "0", ["budget_used_up", "budget_approaching", "budget_at_90", "budget_at_95"]),
    ],
)
def test_only_the_highest_share_of_a_budget_is_listed(spent: str, held: str, kinds: list[str]) -> None:
    """Each share begins and notifies when it is reached. Held money is returned, so it does not use a budget up."""

    async def test(rig: Rig) -> None:
        rig.add(budget="10")
        rig.spend(spent, held)
        (finding,) = rig.findings()
        assert [finding.kind, *finding.data.get("also", [])] == kinds

    on_rig(test)


def test_idle_grants_are_not_counted() -> None:
    async def test(rig: Rig) -> None:
        rig.add(budget="10")
        rig.spend("1", "1", idle="8")
        assert rig.found() == set()

    on_rig(test)


def test_an_operators_budget_alert_has_its_name_and_what_happens_when_it_is_used_up() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        now = rig.clock.wall()
        view = replace(
            rig.budget(),
            limit_usd=Decimal(5),
            spent_usd=Decimal("4.20"),
            runs_out=RunOut(now + 60, now + 3600),
        )
        options = BudgetOptions(
            name="team", limit_usd=Decimal(5), period="month", tag="*", on_exhausted="local"
        )
        budget = own_budget_view(OwnBudgetView(options, "night", view))
        (finding,) = find(None, rig.views(), [budget])
        assert finding.fingerprint == "budget_approaching:budget:team/night"
        assert finding.message == (
            "84% of the month's budget 'team/night' of 5 USD is spent or held; at this pace it is used up between "
            f"{iso(now + 60)[:16]} and {iso(now + 3600)[:16]} UTC, then local is called instead"
        )
        assert finding.data["share"] == pytest.approx(0.84)

    on_rig(test)


def test_unsettled_money_is_one_alert_that_names_each_budget() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        rig.add("openai")
        rig.spend("1", unsettled="0.25")
        rig.spend("1", name="openai", unsettled="0.5")
        assert rig.found() == {"money_unsettled:state_store"}
        finding = the(rig, "money_unsettled")
        assert "0.25 USD of claude's day, 0.5 USD of openai's day" in finding.message
        assert finding.data == {"amount": "0.5"}

    on_rig(test)


@pytest.mark.parametrize(("budget", "found"), [(None, set()), ("0", {"budget_used_up:ai:claude"})])
def test_an_unset_budget_is_never_approached_and_a_budget_of_zero_is_used_up(
    budget: str | None, found: set[str]
) -> None:
    async def test(rig: Rig) -> None:
        rig.add(budget=budget)
        rig.spend("100")
        assert rig.found() == found

    on_rig(test)


def test_yesterdays_spending_causes_no_alert_today() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        rig.spend("8.50")
        assert rig.found() == {"budget_approaching:ai:claude"}
        await rig.clock.sleep(86_400)
        assert rig.found() == set()

    on_rig(test)


@pytest.mark.parametrize("budget", [None, "10"])
def test_a_bill_above_its_worst_case_is_an_alert_until_the_day_ends(budget: str | None) -> None:
    """This holds with and without a budget, because the worst cases of both come from the same prices."""

    async def test(rig: Rig) -> None:
        rig.add(budget=budget)
        rig.spend("0.20", above_hold="0.15")
        assert rig.found() == {"bill_above_hold:ai:claude"}
        finding = the(rig, "bill_above_hold")
        assert finding.severity == "warning" and "by 0.15 USD" in finding.message
        await rig.clock.sleep(86_400)
        assert rig.found() == set()

    on_rig(test)


def test_a_lost_state_store_is_one_alert_that_names_the_services() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        rig.add("openai")
        rig.add("search", budget=None)
        for name in rig.services:
            rig.spend("0", name=name, scope="this process")
        assert rig.found() == {"budget_local:state_store"}
        assert the(rig, "budget_local").data == {"services": ["claude", "openai"]}
        for name in rig.services:
            rig.spend("0", name=name)
        assert rig.found() == set()

    on_rig(test)


# ── breakers and services ─────────────────────────────────────────────────────────────────────────────────────────────


def test_an_open_circuit_of_the_only_model_means_service_down() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        await rig.open()
        assert rig.found() == {"service_down:ai:claude"}, "one cause, one alert"
        down = the(rig, "service_down")
        assert "5 failures in a row" in down.message and down.data["also"] == ["circuit_open"]
        assert down.data["refuses"] == "every call to claude"
        assert down.data["next_attempt"] == rig.view()["health"]["next_attempt"] is not None
        assert down.data["since"] == rig.view()["models"][MODEL]["opened_at"] is not None
        await rig.half_open()
        assert rig.found() == {"circuit_recovering:ai:claude"}
        await rig.calls(2)
        assert rig.found() == set()

    on_rig(test)


def test_a_service_is_down_only_if_none_of_its_models_can_be_called() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        await rig.call(model="opus")
        await rig.open()
        assert rig.found() == {"circuit_open:ai:claude"}, "opus can be called"
        await rig.open(model="opus")
        assert rig.found() == {"circuit_open:ai:claude/opus", "service_down:ai:claude"}
        assert "circuit_open" in the(rig, "service_down").data["also"]

    on_rig(test)


def test_an_open_circuit_of_another_model_does_not_mean_service_down() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        await rig.open(model="opus")
        assert rig.found() == {"circuit_open:ai:claude/opus"}

    on_rig(test)


def test_a_model_that_admits_only_probes_does_not_end_service_down() -> None:
    """Otherwise the alert would end and begin again with each probe that fails."""

    async def test(rig: Rig) -> None:
        rig.add(recovery_s=60.0)
        await rig.open(model="opus")
        await rig.clock.sleep(30)
        await rig.open()
        await rig.half_open(model="opus")
        assert rig.found() == {"circuit_recovering:ai:claude/opus", "service_down:ai:claude"}

    on_rig(test)


def test_the_default_models_component_keeps_its_name_when_another_model_appears() -> None:
    """A new name would end the alert of a circuit that is still open and begin another one."""

    async def test(rig: Rig) -> None:
        rig.add()
        await rig.open()
        await rig.call(model="opus")
        assert rig.found() == {"circuit_open:ai:claude"}

    on_rig(test)


def test_a_refused_key_means_service_down_whatever_the_breakers_phases() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        await rig.call(model="opus")
        await rig.open(model="opus")
        await rig.call(KEY_REFUSED)
        assert rig.found() == {"circuit_open:ai:claude/opus", "service_down:ai:claude"}
        assert "refused the key" in the(rig, "service_down").message
        rig.services["claude"].unblock_key()
        assert rig.found() == {"circuit_open:ai:claude/opus"}

    on_rig(test)


def test_a_key_refused_for_single_models_means_service_down_only_when_none_is_left() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        await rig.call(model="opus")
        await rig.call(MODEL_REFUSED)
        assert rig.view()["state"] == "circuit_open"
        assert rig.found() == {"key_refused:ai:claude"}, "opus can be called"
        assert the(rig, "key_refused").data["refuses"] == "every call to claude's model sonnet"
        await rig.open(model="opus")
        assert rig.found() == {"circuit_open:ai:claude/opus", "service_down:ai:claude"}

    on_rig(test)


def test_a_breaker_in_shadow_is_not_an_outage_in_any_phase() -> None:
    """Otherwise the trial of a threshold would wake people for calls that are refused, although every call passes."""

    async def test(rig: Rig) -> None:
        service = rig.add()
        await rig.open()
        service.set_override(Override.METRICS_ONLY)
        assert rig.found() == {"service_unhealthy:ai:claude"}
        await rig.half_open()
        assert rig.found() == {"service_unhealthy:ai:claude"}

    on_rig(test)


def test_a_forced_open_breaker_is_an_alert_and_a_disabled_one_is_not() -> None:
    async def test(rig: Rig) -> None:
        service = rig.add()
        service.set_override(Override.FORCED_OPEN)
        assert rig.found() == {"service_down:ai:claude"}
        assert "operator" in the(rig, "service_down").message
        service.set_override(Override.NONE)
        await rig.open()
        service.set_override(Override.DISABLED)
        assert rig.found() == {"service_unhealthy:ai:claude"}, "every call passes"

    on_rig(test)


def test_services_without_a_key_have_no_findings() -> None:
    async def test(rig: Rig) -> None:
        rig.add("gemini", configured=False)
        await rig.open(name="gemini")
        rig.spend("9.99", name="gemini", scope="this process")
        assert rig.found() == set()

    on_rig(test)


def test_one_services_failures_cause_no_finding_for_another() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        rig.add("openai")
        await rig.open(name="openai")
        assert rig.found() == {"service_down:ai:openai"}

    on_rig(test)


# ── the database ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_open_circuit_of_the_database_means_database_unavailable(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        await rig.use_database(*[False] * 5)
        assert rig.found() == {"database_unavailable:database"}
        away = the(rig, "database_unavailable")
        assert "5 failures in a row" in away.message and away.data["also"] == ["circuit_open"]
        await rig.clock.sleep(60)
        rig.tick()
        assert rig.found() == {"circuit_recovering:database"}
        rig.look_at_database("connection refused")
        assert rig.found() == {"circuit_recovering:database"}, "a failed probe is not a separate finding"
        rig.look_at_database()
        await rig.use_database(True, True)
        assert rig.found() == set()

    on_rig(test, tmp_path)


def test_a_database_whose_probe_fails_is_unavailable(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        rig.look_at_database("no answer within 5 s")
        assert rig.found() == {"database_unavailable:database"}
        assert "no answer within 5 s" in the(rig, "database_unavailable").message
        rig.look_at_database()
        assert rig.found() == set()

    on_rig(test, tmp_path)


def test_a_database_that_fails_calls_but_answers_its_probe_is_only_unhealthy(tmp_path: Path) -> None:
    """Calls still pass, so it is not critical."""

    async def test(rig: Rig) -> None:
        rig.look_at_database()
        await rig.use_database(True, *[False] * 3)
        assert rig.database is not None and rig.database_health()["state"] == "unhealthy"
        assert rig.found() == {"database_unhealthy:database"}
        assert "3 failures in a row" in the(rig, "database_unhealthy").message

    on_rig(test, tmp_path)


def test_each_condition_of_the_database_is_a_separate_warning(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        database = rig.database
        assert database is not None
        database.metrics.is_read_only = True
        assert rig.found() == {"database_read_only:database"}
        assert the(rig, "database_read_only").message == "the database is read only"
        database.pool_queue.refused_at = rig.clock.monotonic()
        for _ in range(20):
            database.metrics.statement.note(2.0)
        database.metrics.is_without_wal = True
        conditions = database.get_health()["conditions"]
        assert set(conditions) == {"saturated", "slow", "read_only", "without_wal"}
        assert rig.found() == {f"database_{one}:database" for one in conditions}
        drain = partial(database.gate.set, GateState.DRAINING)
        for act, condition in ((database.pause, "paused"), (drain, "draining")):
            act()
            assert condition in database.get_health()["conditions"]
            assert f"database_{condition}:database" in rig.found()
        assert {one.kind for one in rig.findings()} <= KINDS.keys()

    on_rig(test, tmp_path)


def test_the_alert_of_a_shut_database_names_the_operator(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        database = rig.database
        assert database is not None
        database.pause(Act("ada", "failover"))
        database.pause(Act("bob", "it was paused already"))
        said = "the database is paused by ada: failover; until it is resumed"
        assert the(rig, "database_paused").message == said
        database.resume()
        assert database.get_health()["operator"] == ""
        await database.drain()
        assert the(rig, "database_draining").message == "the database is drained by an operator"

    on_rig(test, tmp_path)


def test_an_unused_database_has_no_findings() -> None:
    async def test(rig: Rig) -> None:
        assert rig.database is None and rig.findings() == []

    on_rig(test)


SECRET = "the patient's name"


@pytest.mark.parametrize(
    "fault", [FAILED, Fault(verdict=THROTTLED, kind=TOO_MANY.kind)], ids=["failed", "429"]
)
def test_findings_contain_only_states_and_numbers(fault: Any) -> None:
    """The message of an operation's own exception may contain a secret."""

    async def test(rig: Rig) -> None:
        rig.add(failure_threshold=1)
        await rig.call(fault, said=SECRET)
        assert rig.view()["reason"] and SECRET not in str(rig.view())
        assert all(SECRET not in str(one) for one in rig.findings())

    on_rig(test)


def test_a_message_names_the_database_once_and_the_failure_that_opened_its_breaker(tmp_path: Path) -> None:
    """The last probe's error may be older than that failure."""

    async def test(rig: Rig) -> None:
        rig.look_at_database("the server refuses the password")
        (before,) = [one.message for one in rig.findings() if one.kind == "database_unavailable"]
        assert before == "the database does not answer: the server refuses the password"
        await rig.use_database(*[False] * 5)
        (after,) = [one.message for one in rig.findings() if one.kind == "database_unavailable"]
        why = "5 failures in a row, the last: the server refuses connections"
        assert after == f"calls to the database are refused: {why}"

    on_rig(test, tmp_path)
