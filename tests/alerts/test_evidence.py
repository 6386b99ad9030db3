"""The evidence that is needed before an earlier process's alert ends because it is not found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from koo.alerts.evidence import CHECKED_FOR_S, REMEMBERED_S, SETTLED_S, Looks
from koo.alerts.kinds import KINDS
from koo.monitoring.shapes import DatabaseHealth
from tests.monitoring.rig import FAILED, Rig, on_rig


def looks(rig: Rig, database: DatabaseHealth | None = None, **words: Any) -> Looks:
    """The knowledge of a process that is one second old and has its store."""
    known: dict[str, Any] = {"checked": frozenset(), "up_s": 1.0, "store_up_s": 1.0, **words}
    return Looks(database, {name: rig.view(name) for name in rig.services}, **known)


def test_a_condition_of_the_process_itself_needs_no_evidence(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        assert looks(rig)("database_paused", "database")

    on_rig(test)


def test_the_database_must_answer_its_probe(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        assert not looks(rig)("database_unavailable", "database"), "the database is not in use yet"
        assert not looks(rig, rig.database_health())("database_unavailable", "database")
        rig.look_at_database("connection refused")
        assert not looks(rig, rig.database_health())("database_unavailable", "database")
        rig.look_at_database()
        known = looks(rig, rig.database_health())
        assert known("database_unavailable", "database") and known("database_read_only", "database")
        assert not known("database_slow", "database"), "one probe says nothing about latency"

    on_rig(test, tmp_path)


def test_a_service_must_answer_calls(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        for good, bad, has_answered in (
            (0, 0, False),
            (1, 0, False),
            (1, 0, True),
            (0, 1, False),
            (1, 0, True),
        ):
            await rig.calls(good, bad)
            known = looks(rig)
            assert known("service_down", "ai:claude") is has_answered
            assert known("circuit_open", "ai:claude/opus") is has_answered

    on_rig(test)


def test_a_passed_unbilled_check_counts_only_after_a_minute() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        for checked, up_s, is_enough in (
            ((), 10 * CHECKED_FOR_S, False),
            (("claude",), CHECKED_FOR_S - 1, False),
            (("openai",), CHECKED_FOR_S, False),
            (("claude",), CHECKED_FOR_S, True),
        ):
            known = looks(rig, checked=frozenset(checked), up_s=up_s)
            assert known("service_down", "ai:claude") is is_enough

    on_rig(test)


def test_rates_need_enough_calls_or_their_whole_look_back_time() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        await rig.calls(19)
        assert not looks(rig)("degraded_performance", "ai:claude")
        assert looks(rig, up_s=REMEMBERED_S)("degraded_performance", "ai:claude")
        assert looks(rig, up_s=REMEMBERED_S)("database_slow", "database")
        await rig.call(FAILED)
        assert looks(rig)("degraded_performance", "ai:claude")

    on_rig(test)


def test_alerts_about_money_need_the_store() -> None:
    async def test(rig: Rig) -> None:
        for store_up_s, is_enough in ((None, False), (SETTLED_S - 0.1, False), (SETTLED_S, True)):
            assert looks(rig, store_up_s=store_up_s)("budget_approaching", "budget:month") is is_enough

    on_rig(test)


def test_an_unknown_service_needs_no_evidence() -> None:
    async def test(rig: Rig) -> None:
        assert looks(rig)("service_down", "ai:gone")

    on_rig(test)


@pytest.mark.parametrize("kind", KINDS)
def test_time_alone_is_evidence_only_for_rules_that_look_back(kind: str) -> None:
    """A day without a check says nothing about the dependency."""

    async def test(rig: Rig) -> None:
        rig.add()
        component = "database" if kind.startswith("database") else "ai:claude"
        has_looked = looks(rig, up_s=80_000.0, store_up_s=None)(kind, component)
        assert has_looked is (KINDS[kind].evidence in ("own", "recent"))

    on_rig(test)
