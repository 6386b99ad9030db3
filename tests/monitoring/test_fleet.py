"""The view of a fleet, from handwritten rows."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from koo.clock import iso
from koo.monitoring.fleet import differences, fleet_view
from koo.monitoring.fleet_shapes import FleetStatus
from koo.monitoring.own_shapes import StoreHealth
from koo.policies.fleet import GuardKey, Leader, LeasedUnits, Member, MemberGuard, Roll
from koo.storage.base import BudgetView
from tests.web.exact import check_exactly

NOW = 1_800_000_000.0
WELL: StoreHealth = {"reachable": True, "reason": "", "lost_at": None, "refuses": []}
CLAUDE = GuardKey("claude/m", "here")
Digests = dict[str, dict[str, str]]


def member(name: str, configuration: Digests | None = None, *, silent_for_s: float = 0.4) -> Member:
    return Member(
        process=name,
        ledger=f"{name}'s purse",
        host="pod",
        worker="",
        pid=7,
        version="1.0",
        label="blue",
        started_at=NOW - 100,
        seen_at=NOW - silent_for_s,
        silent_for_s=silent_for_s,
        in_flight=2,
        configuration=configuration or {},
        lives=silent_for_s < 5,
    )


def guard(process: str, phase: str = "closed", calls: int = 4, key: GuardKey = CLAUDE) -> MemberGuard:
    return MemberGuard(
        process=process, key=key, phase=phase, is_down=phase == "open", since=NOW - 9, calls=calls
    )


def seen(*members: Member, guards: tuple[MemberGuard, ...] = (), leader: Leader | None = None) -> FleetStatus:
    budget = BudgetView(
        limit_usd=Decimal(10),
        spent_usd=Decimal("4.5"),
        held_usd=Decimal("0.2"),
        idle_usd=Decimal("0.3"),
        unsettled_usd=Decimal(1),
        resets_at=NOW + 60,
        as_of=NOW,
    )
    roll = Roll(members=list(members), guards=list(guards), leader=leader)
    status = fleet_view(roll, "a", [("ai:claude", budget)], WELL, NOW)
    check_exactly(status, FleetStatus)
    return status


def test_each_process_is_shown_with_its_beat_and_its_role() -> None:
    status = seen(member("a"), member("b"), member("c", silent_for_s=60.0), leader=Leader("b", 3))
    assert [(one["id"], one["state"], one["leads"], one["answers"]) for one in status["processes"]] == [
        ("a", "live", False, True),
        ("b", "live", True, False),
        ("c", "silent", False, False),
    ]
    assert status["leader"] == {"process": "b", "epoch": 3}
    assert seen(member("a"))["leader"] is None


def test_the_times_of_the_fleet_are_by_this_machines_clock() -> None:
    """They are the store's, whose clock may be hours away; readers subtract them from the response's time."""
    behind_s = 7200
    away = [
        replace(one, started_at=one.started_at - behind_s, seen_at=one.seen_at - behind_s)
        for one in (member("a"), member("b", silent_for_s=60.0))
    ]
    guards = (replace(guard("a", "open"), since=NOW - 9 - behind_s),)
    status = seen(*away, guards=guards)
    assert [(one["started_at"], one["seen_at"]) for one in status["processes"]] == [
        (iso(NOW - 100), iso(NOW - silent_for_s)) for silent_for_s in (away[0].silent_for_s, 60.0)
    ]
    assert status["guards"][0]["open_since"] == iso(NOW - 9)


def test_a_guards_open_count_is_shown_with_the_number_of_processes_that_use_it() -> None:
    other = CLAUDE._replace(place="elsewhere")
    rows = (
        *(guard(name, "open") for name in "abc"),
        guard("d", "half_open", calls=0),
        guard("e"),
        guard("f", calls=0),
        guard("f", key=other),
    )
    one, two = seen(guards=rows)["guards"]
    assert (one["open"], one["half_open"], one["processes"], one["calls"]) == (3, 1, 5, 16)
    assert one["open_in"] == ["a", "b", "c"] and one["primed"] == "3 of 5 processes have it open"
    assert (two["place"], two["open"], two["open_since"], two["primed"]) == ("elsewhere", 0, None, "")


def test_a_budget_is_shown_with_the_money_in_purses() -> None:
    (purse,) = seen()["purses"]
    assert {key: purse[key] for key in ("limit", "spent", "held", "idle", "unsettled", "granted")} == {
        "limit": "10",
        "spent": "4.5",
        "held": "0.2",
        "idle": "0.3",
        "unsettled": "1",
        "granted": "1.5",
    }


def test_leased_units_are_shown_with_their_limit() -> None:
    roll = Roll(members=[], guards=[], leader=None, units=[LeasedUnits("claude/requests/60", 60, 12, 3)])
    status = fleet_view(roll, "a", [], WELL, NOW)
    check_exactly(status, FleetStatus)
    assert status["leases"] == [{"limit": "claude/requests/60", "units": 60, "leased": 12, "processes": 3}]


def test_a_differing_option_is_named_and_processes_that_agree_are_grouped() -> None:
    one: Digests = {"koo": {"x": "1"}, "ai_services.claude": {"timeout_s": "aa", "api_key": "1234"}}
    two: Digests = {"koo": {"x": "1"}, "ai_services.claude": {"timeout_s": "bb", "api_key": "1234"}}
    status = seen(member("a", two), member("b", one), member("c", one), member("d", two, silent_for_s=99.0))
    assert status["differences"] == [
        {"section": "ai_services.claude", "option": "timeout_s", "groups": [["b", "c"], ["a"]]}
    ]


def test_a_missing_section_is_a_difference_but_an_option_of_one_version_is_not() -> None:
    one: Digests = {"koo": {"x": "1", "new": "2"}, "ai_services.more": {"y": "1"}}
    assert list(differences({"a": one, "b": {"koo": {"x": "1"}}})) == [
        {"section": "ai_services.more", "option": "", "groups": [["a"], ["b"]]}
    ]
