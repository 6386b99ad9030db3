"""Alerts of several processes on one state store: a shared alert notifies once, and a dead process's alert goes on."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from koo.alerts.findings import Finding
from koo.alerts.keeping import (
    ALONE_AFTER_S,
    ENDED_KEPT_S,
    EXPIRES_AFTER_S,
    RENEW_EVERY_S,
    AlertKeeper,
)
from koo.alerts.kinds import AlertKind
from koo.episodes import Acknowledgement, Episode, Silence
from koo.notices import Notice
from koo.options import DatabaseOptions, PlatformOptions, ServiceOptions
from koo.platform import Platform
from koo.policies.breaker import Override
from koo.storage.base import StoreUnavailable
from koo.storage.episodes import LEASE_S
from koo.storage.store import SqlStore
from koo.testing.polling import until
from tests.storage.support import SetClock

DOWN = Finding("database_unavailable", "database", "the database does not answer")
OPEN = Finding("circuit_open", "ai:claude", "the circuit breaker is open")
REMIND_S = 600.0


class Process:
    """A process's alerts on the shared store. With `has_looked`, an alert that the process does not find has ended."""

    def __init__(self, folder: Path, clock: SetClock, *sees: str, has_looked: bool = True) -> None:
        self.store = SqlStore(f"sqlite:///{folder / 'state.db'}", clock=clock)
        self.clock = clock
        self.has_looked = has_looked
        self.alone: list[Notice] = []
        self.keeper = AlertKeeper(
            self.store,
            clock,
            lambda component: component in sees,
            alone=self.alone.extend,
            remind_every_s=REMIND_S,
        )

    async def __aenter__(self) -> Process:
        await self.store.open()
        await self.keeper.begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.keeper.finish()
        await self.store.close()

    async def die(self) -> None:
        """Like kill -9: nothing is released."""
        await self.store.close()

    async def look(self, *findings: Finding, after_s: float = 1.0) -> list[str]:
        """Look again after this time; returns the listed kinds."""
        self.clock.now += after_s
        await self.keeper.look(findings, lambda kind, component: self.has_looked)
        return [view["kind"] for view in self.keeper.views()]

    async def history(self) -> list[Episode]:
        return await self.store.episodes.history(0, 2 * self.clock.now, limit=100)


def said(folder: Path) -> list[str]:
    """The notices that were written, in order."""
    with closing(sqlite3.connect(folder / "state.db")) as connection:
        rows = connection.execute("SELECT what, kind FROM koo_notices ORDER BY rowid")
        return [f"{what} {kind}" for what, kind in rows]


def lasting(folder: Path) -> list[str]:
    """The fingerprints of the open episodes in the store."""
    with closing(sqlite3.connect(folder / "state.db")) as connection:
        rows = connection.execute("SELECT fingerprint FROM koo_episodes WHERE ended_ms IS NULL ORDER BY 1")
        return [row[0] for row in rows]


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await test()

    asyncio.run(main())


def test_two_processes_share_an_alert_until_neither_sees_it(tmp_path: Path) -> None:
    async def test() -> None:
        clock = SetClock()
        async with (
            Process(tmp_path, clock, "database") as one,
            Process(tmp_path, clock, "database") as two,
        ):
            await one.look(DOWN)
            await two.look(DOWN)
            assert one.keeper.views()[0]["id"] == two.keeper.views()[0]["id"]
            assert one.keeper.views()[0]["timestamp"] == two.keeper.views()[0]["timestamp"]
            assert await one.look() == ["database_recovered"], "this process's own database answers"
            for _ in range(100):
                assert await two.look(DOWN) == ["database_unavailable"]
                await one.look()
            assert clock.now > 2 * LEASE_S and said(tmp_path) == ["firing database_unavailable"]
            await one.look(DOWN)
            await two.look()
            assert said(tmp_path) == ["firing database_unavailable"]
            await one.look()
            assert said(tmp_path) == ["firing database_unavailable", "resolved database_unavailable"]
            assert lasting(tmp_path) == []

    run(test)


def test_an_alert_firing_in_another_process_must_recover_here_too(tmp_path: Path) -> None:
    """A short problem in one process must not end, after a second, an alert that another one has announced."""

    async def test() -> None:
        clock = SetClock()
        async with Process(tmp_path, clock, "ai:claude") as one, Process(tmp_path, clock, "ai:claude") as two:
            for process in (one, two):
                process.keeper.alerts.kinds = {
                    OPEN.kind: AlertKind("critical", "Open", pending_s=30.0, recovering_s=60.0)
                }
            for _ in range(2):
                await one.look(OPEN, after_s=30)
            await two.look(OPEN)
            assert [view["phase"] for view in two.keeper.views()] == ["firing"]
            for _ in range(13):
                await one.look(after_s=0)
                await two.look(OPEN, after_s=5)
            assert one.keeper.alerts.lasting == []
            await two.look()
            assert said(tmp_path) == ["firing circuit_open"]
            await two.look(after_s=60)
            assert said(tmp_path) == ["firing circuit_open", "resolved circuit_open"]

    run(test)


def test_a_process_without_a_database_leaves_its_alerts_to_the_others(tmp_path: Path) -> None:
    async def test() -> None:
        clock = SetClock()
        async with Process(tmp_path, clock, "database", "ai:claude") as server:
            await server.look(DOWN, OPEN)
        async with Process(tmp_path, clock, "ai:claude") as script:
            assert await script.look() == ["circuit_closed"], "it has evidence about the server's alerts"
            assert lasting(tmp_path) == ["database_unavailable:database"]
        async with Process(tmp_path, clock, "database", "ai:claude") as server:
            assert await server.look(DOWN) == ["database_unavailable", "circuit_closed"]

    run(test)


def test_a_restart_during_an_outage_sends_no_second_notice(tmp_path: Path) -> None:
    async def test() -> None:
        clock = SetClock()
        dead = Process(tmp_path, clock, "database")
        await dead.store.open()
        await dead.look(DOWN)
        (began,) = dead.keeper.views()
        await dead.die()
        async with Process(tmp_path, clock, "database", has_looked=False) as again:
            assert await again.look(DOWN, after_s=3) == ["database_unavailable"]
            for key in ("id", "timestamp", "notified"):
                assert again.keeper.views()[0][key] == began[key]
            await again.look(DOWN, after_s=LEASE_S)
            assert said(tmp_path) == ["firing database_unavailable"]
            await again.look()
            assert said(tmp_path)[1:] == ["resolved database_unavailable"]

    run(test)


def test_a_dead_processs_alert_ends_when_another_process_has_evidence(tmp_path: Path) -> None:
    async def test() -> None:
        clock = SetClock()
        dead = Process(tmp_path, clock, "database")
        await dead.store.open()
        await dead.look(DOWN)
        (began,) = dead.keeper.views()
        await dead.die()
        async with Process(tmp_path, clock, "database", has_looked=False) as next_one:
            assert await next_one.look(after_s=RENEW_EVERY_S) == [], "the other process may still be alive"
            assert await next_one.look(after_s=LEASE_S) == ["database_unavailable"]
            assert next_one.keeper.views()[0]["id"] == began["id"]
            assert next_one.keeper.doubted() == {"database"}
            assert await next_one.look(after_s=3600) == ["database_unavailable"], "it has no evidence yet"
            next_one.has_looked = True
            assert await next_one.look() == ["database_recovered"]
            assert next_one.keeper.doubted() == set()
        assert lasting(tmp_path) == []
        assert said(tmp_path) == [
            "firing database_unavailable",
            "resolved database_unavailable",
        ], "a process that has not seen it sends no reminders"

    run(test)


def test_a_reopened_process_continues_its_own_alerts(tmp_path: Path) -> None:
    async def test() -> None:
        clock = SetClock()
        process = Process(tmp_path, clock, "database")
        async with process:
            await process.look(DOWN)
            (began,) = process.keeper.views()
        async with process:
            await process.look(DOWN, after_s=RENEW_EVERY_S)
            assert process.keeper.views() == [began]
            assert lasting(tmp_path) == ["database_unavailable:database"]
            await process.look()
            assert lasting(tmp_path) == []

    run(test)


def test_an_alert_that_no_process_observes_ends_after_a_day_and_is_deleted_later(tmp_path: Path) -> None:
    async def test() -> None:
        clock = SetClock()
        async with Process(tmp_path, clock, "ai:gone") as before:
            await before.look(Finding("service_down", "ai:gone", "gone cannot be called"))
        async with Process(tmp_path, clock, "database") as now:
            clock.now += EXPIRES_AFTER_S - 1
            await now.keeper.sweep(now.store)
            assert lasting(tmp_path) == ["service_down:ai:gone"]
            clock.now += 2
            await now.keeper.sweep(now.store)
            assert lasting(tmp_path) == []
            assert await now.look() == [], "its end is not announced"
            clock.now += ENDED_KEPT_S + 1
            await now.keeper.sweep(now.store)
            assert await now.history() == []

    run(test)


# ── acts of operators ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_silence_set_in_another_process_applies_immediately(tmp_path: Path) -> None:
    async def test() -> None:
        clock = SetClock()
        async with Process(tmp_path, clock, "database") as one, Process(tmp_path, clock) as two:
            night = Silence(
                id="1", made_at=clock.now, ends_at=clock.now + 60, by="ada", reason="migration", kind="*"
            )
            await two.keeper.silence(night)
            assert await one.look(DOWN) == ["database_unavailable"] and said(tmp_path) == []
            assert one.keeper.views()[0]["notified"]["state"] == "silenced"
            assert await two.keeper.end_silence("1") == replace(night, ends_at=clock.now)
            await one.look(DOWN, after_s=RENEW_EVERY_S)
            assert said(tmp_path) == ["firing database_unavailable"]

    run(test)


def test_an_acknowledgement_in_any_process_ends_the_reminders(tmp_path: Path) -> None:
    async def test() -> None:
        clock = SetClock()
        async with Process(tmp_path, clock, "database") as one, Process(tmp_path, clock) as two:
            await one.look(DOWN)
            await one.look(DOWN, after_s=REMIND_S)
            await one.look(DOWN)
            assert said(tmp_path) == ["firing database_unavailable", "reminder database_unavailable"]
            (view,) = one.keeper.views()
            assert await two.keeper.acknowledge(view["id"], Acknowledgement("ada", clock.now)) is not None
            await one.look(DOWN, after_s=RENEW_EVERY_S)
            await one.look(DOWN, after_s=10 * REMIND_S)
            assert len(said(tmp_path)) == 2
            acknowledged = one.keeper.views()[0]["acknowledged"]
            assert acknowledged is not None and acknowledged["by"] == "ada"

    run(test)


def test_two_processes_send_one_reminder_and_a_restart_sends_none_again(tmp_path: Path) -> None:
    async def test() -> None:
        clock = SetClock()
        async with Process(tmp_path, clock, "database") as one, Process(tmp_path, clock, "database") as two:
            for after_s in (1.0, REMIND_S, REMIND_S):
                await one.look(DOWN, after_s=after_s)
                await two.look(DOWN)
        async with Process(tmp_path, clock, "database") as again:
            await again.look(DOWN)
        assert said(tmp_path) == ["firing database_unavailable", *["reminder database_unavailable"] * 2]

    run(test)


# ── an unreachable store ──────────────────────────────────────────────────────────────────────────────────────────────


def cut_off(process: Process) -> Callable[[], None]:
    """Make the store unreachable for this process; returns a function that brings it back."""
    run = process.store.executor.run

    async def fail(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("unreachable")

    process.store.executor.run = fail  # type: ignore[method-assign, assignment]

    def back() -> None:
        process.store.executor.run = run  # type: ignore[method-assign]

    return back


def test_an_alert_that_began_and_ended_without_the_store_is_written_when_it_is_back(tmp_path: Path) -> None:
    async def test() -> None:
        clock = SetClock()
        async with Process(tmp_path, clock, "database", "ai:claude") as process:
            await process.look(OPEN)
            back = cut_off(process)
            assert await process.look(DOWN) == ["database_unavailable", "circuit_closed"]
            assert lasting(tmp_path) == ["circuit_open:ai:claude"]
            back()
            await process.look(DOWN)
            assert lasting(tmp_path) == ["database_unavailable:database"]
            assert [past.ended_at for past in await process.history()] == [None, clock.now - 1]
            assert process.alone == []
            assert said(tmp_path) == [
                "firing circuit_open",
                "resolved circuit_open",
                "firing database_unavailable",
            ]

    run(test)


def test_while_the_store_is_away_each_process_notifies_on_its_own(tmp_path: Path) -> None:
    """Notifying twice is better than never. When the store is back, no notice is sent again."""

    async def test() -> None:
        clock = SetClock()
        async with (
            Process(tmp_path, clock, "database") as one,
            Process(tmp_path, clock, "database") as two,
        ):
            backs = [cut_off(one), cut_off(two)]
            alone: list[list[str]] = []
            for after_s in (0.0, ALONE_AFTER_S, 1.0, REMIND_S):
                clock.now += after_s
                for process in (one, two):
                    await process.look(DOWN, after_s=0)
                    alone.append([notice.what for notice in process.alone])
            assert alone[:2] == [[], []], "a short outage of the store needs no notice"
            assert alone[2:] == [["firing"]] * 4 + [["firing", "reminder"]] * 2
            for process, back in zip((one, two), backs, strict=True):
                back()
                await process.look(DOWN)
            assert one.keeper.views()[0]["id"] == two.keeper.views()[0]["id"]
            assert said(tmp_path) == [] and lasting(tmp_path) == ["database_unavailable:database"]
            await one.look()
            await two.look()
            assert said(tmp_path) == ["resolved database_unavailable"]

    run(test)


def test_without_the_store_an_end_is_announced_only_if_its_beginning_was(tmp_path: Path) -> None:
    async def test() -> None:
        clock = SetClock()
        async with Process(tmp_path, clock, "database", "ai:claude") as process:
            await process.look(DOWN)
            back = cut_off(process)
            await process.look(DOWN, OPEN)
            await process.look()
            await process.look(after_s=ALONE_AFTER_S)
            await process.look()
            assert [(notice.what, notice.kind) for notice in process.alone] == [
                ("resolved", "database_unavailable")
            ]
            back()
            await process.look()
            assert said(tmp_path) == ["firing database_unavailable"]
            assert lasting(tmp_path) == [] and len(await process.history()) == 2

    run(test)


# ── two platforms ─────────────────────────────────────────────────────────────────────────────────────────────────────


def make_platform(home: Path, url: str = "sqlite:///user.db") -> Platform:
    """A platform in this folder."""
    claude = ServiceOptions(name="claude", kind="anthropic", model="claude-sonnet-5-5", api_key="test-key")
    unasked = ServiceOptions(name="openai", kind="openai", model="gpt-6.1-terra")
    return Platform(
        PlatformOptions(
            home=home,
            state_url=f"sqlite:///{home / 'state.db'}",
            database=DatabaseOptions(url=url),
            services=(claude, unasked),
        )
    )


@pytest.mark.parametrize(
    ("component", "is_seen"),
    [
        ("database", False),
        ("state_store", True),
        ("ai:claude", True),
        ("ai:claude/some/model", True),
        ("ai:openai", False),
        ("ai:nobody", False),
    ],
)
def test_a_platform_observes_the_services_it_has_keys_for(
    tmp_path: Path, component: str, is_seen: bool
) -> None:
    """`openai` has no key, so the platform does not observe it."""
    platform = make_platform(tmp_path)
    assert platform.parts.observes(component) is is_seen


def test_a_platform_observes_a_database_that_it_uses(tmp_path: Path) -> None:
    platform = make_platform(tmp_path)
    assert platform.database.last_look is None and platform.parts.observes("database")


def test_the_next_process_lists_the_last_ones_alerts(tmp_path: Path) -> None:
    async def test() -> None:
        async with make_platform(tmp_path) as first:
            first.override_service("claude", Override.FORCED_OPEN)
            await until(lambda: {"service_down"} == {a["kind"] for a in first.active_alerts()})
            first.override_service("claude", Override.NONE)
            await until(lambda: {a["type"] for a in first.active_alerts()} == {"info"})
        async with make_platform(tmp_path) as second:
            assert {a["kind"] for a in second.active_alerts()} == {"service_recovered"}

    run(test)
