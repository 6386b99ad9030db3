"""The alerts of several processes on one state store: each its own, and those of the dead for whoever can see them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from koo.alerts.engine import RESTORED_KEPT_S
from koo.alerts.keeping import ENDED_KEPT_S, EXPIRES_AFTER_S, RENEW_EVERY_S, AlertKeeper
from koo.alerts.rules import Finding
from koo.options import DatabaseOptions, PlatformOptions, ServiceOptions
from koo.platform import Platform
from koo.policies.breaker import Override
from koo.storage.base import StoreUnavailable
from koo.storage.episodes import LEASE_S
from koo.storage.store import SqlStore
from tests.storage.support import SetClock, until

DOWN = Finding("database_unavailable", "database", "the database does not answer")
SLOW = Finding("degraded_performance", "ai:claude", "10% of the last 20 calls failed")


class Process:
    """A process's alerts on the common store."""

    def __init__(self, folder: Path, clock: SetClock, *sees: str) -> None:
        self.store = SqlStore(f"sqlite:///{folder / 'state.db'}", clock=clock)
        self.clock = clock
        self.keeper = AlertKeeper(self.store, clock, lambda component: component in sees)

    async def __aenter__(self) -> Process:
        await self.store.open()
        await self.keeper.begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.keeper.finish()
        await self.store.close()

    async def die(self) -> None:
        """As after kill -9: nothing is let go."""
        await self.store.close()

    async def look(self, *findings: Finding, after_s: float = 1.0) -> list[str]:
        """A look so much later; the kinds that are listed then."""
        self.clock.now += after_s
        await self.keeper.look(findings)
        return [view["kind"] for view in self.keeper.views()]


def lasting(folder: Path) -> list[str]:
    """What the store says of alerts that have not ended."""
    with closing(sqlite3.connect(folder / "state.db")) as connection:
        rows = connection.execute("SELECT fingerprint FROM koo_episodes WHERE ended_ms IS NULL ORDER BY 1")
        return [row[0] for row in rows]


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await test()

    asyncio.run(main())


def test_each_process_ends_its_own_alerts_only(tmp_path: Path) -> None:
    async def test() -> None:
        clock = SetClock()
        async with Process(tmp_path, clock, "database") as ill:
            await ill.look(DOWN)
            async with Process(tmp_path, clock, "database") as well:
                for _ in range(100):
                    assert await ill.look(DOWN) == ["database_unavailable"]
                    assert await well.look() == [], "its own database answers"
                assert clock.now > 2 * (RESTORED_KEPT_S + LEASE_S)
                assert lasting(tmp_path) == ["database_unavailable:database"]
            assert lasting(tmp_path) == ["database_unavailable:database"]
            assert await ill.look() == ["database_recovered"]
            assert lasting(tmp_path) == []

    run(test)


def test_who_uses_no_database_leaves_its_alerts_to_those_who_do(tmp_path: Path) -> None:
    async def test() -> None:
        clock = SetClock()
        async with Process(tmp_path, clock, "database", "ai:claude") as server:
            await server.look(DOWN, SLOW)
        async with Process(tmp_path, clock, "ai:claude") as script:
            assert await script.look() == ["degraded_performance"], "it goes on where the server stopped"
            assert await script.look(after_s=RESTORED_KEPT_S) == ["performance_recovered"]
            assert lasting(tmp_path) == ["database_unavailable:database"]
        async with Process(tmp_path, clock, "database", "ai:claude") as server:
            assert await server.look(DOWN) == ["database_unavailable", "performance_recovered"]

    run(test)


def test_the_alerts_of_a_process_that_died_go_on_with_another_one_when_the_lease_is_over(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        clock = SetClock()
        dead = Process(tmp_path, clock, "database")
        await dead.store.open()
        await dead.look(DOWN)
        (began,) = dead.keeper.views()
        await dead.die()
        async with Process(tmp_path, clock, "database") as next_one:
            assert await next_one.look(after_s=RENEW_EVERY_S) == [], "it may still live"
            assert await next_one.look(after_s=LEASE_S) == ["database_unavailable"]
            assert next_one.keeper.views() == [began], "under its old time"
            for after_s in (1, RESTORED_KEPT_S - 1):
                assert await next_one.look(after_s=after_s) == ["database_unavailable"], (
                    "it has not looked yet"
                )
            assert await next_one.look() == ["database_recovered"]
        assert lasting(tmp_path) == []

    run(test)


def test_a_fire_that_was_found_anew_meanwhile_is_the_same_fire(tmp_path: Path) -> None:
    """The process that follows one that died finds it within seconds, and the old one when the lease is over."""

    async def test() -> None:
        clock = SetClock()
        dead = Process(tmp_path, clock, "database")
        await dead.store.open()
        await dead.look(DOWN)
        (began,) = dead.keeper.views()
        await dead.die()
        async with Process(tmp_path, clock, "database") as next_one:
            assert await next_one.look(DOWN, after_s=10) == ["database_unavailable"]
            assert next_one.keeper.views()[0]["timestamp"] > began["timestamp"]
            await next_one.look(DOWN, after_s=LEASE_S)
            assert next_one.keeper.views() == [began]
            await next_one.look(DOWN)
            assert lasting(tmp_path) == ["database_unavailable:database"], "one row of it lasts"

    run(test)


def test_what_begins_and_ends_while_the_store_is_away_is_written_when_it_is_back(tmp_path: Path) -> None:
    async def test() -> None:
        clock = SetClock()
        async with Process(tmp_path, clock, "database", "ai:claude") as process:
            await process.look(SLOW)
            save = process.store.episodes.save

            async def fail(*_: Any) -> None:
                raise StoreUnavailable("away")

            process.store.episodes.save = fail  # type: ignore[method-assign]
            assert await process.look(DOWN) == ["database_unavailable", "performance_recovered"]
            assert lasting(tmp_path) == ["degraded_performance:ai:claude"]
            process.store.episodes.save = save  # type: ignore[method-assign]
            await process.look(DOWN)
            assert lasting(tmp_path) == ["database_unavailable:database"]

    run(test)


def test_opened_again_a_process_goes_on_with_its_own(tmp_path: Path) -> None:
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


def test_what_nobody_can_see_any_more_ends_after_a_day_and_is_forgotten_at_last(tmp_path: Path) -> None:
    async def test() -> None:
        clock = SetClock()
        async with Process(tmp_path, clock, "ai:gone") as before:
            await before.look(Finding("service_down", "ai:gone", "gone cannot be asked"))
        async with Process(tmp_path, clock, "database") as now:
            clock.now += EXPIRES_AFTER_S - 1
            await now.keeper.sweep()
            assert lasting(tmp_path) == ["service_down:ai:gone"]
            clock.now += 2
            await now.keeper.sweep()
            assert lasting(tmp_path) == []
            assert await now.look() == [], "in silence"
            clock.now += ENDED_KEPT_S + 1
            await now.keeper.sweep()
            assert await now.store.episodes.load_recent(0) == []

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
def test_a_platform_sees_what_it_uses(tmp_path: Path, component: str, is_seen: bool) -> None:
    """`openai` has no key."""
    platform = make_platform(tmp_path)
    assert platform.parts.observes(component) is is_seen


def test_a_database_that_is_used_is_seen(tmp_path: Path) -> None:
    platform = make_platform(tmp_path)
    assert platform.database.last_look is None and platform.parts.observes("database")


def test_the_next_process_lists_what_the_last_one_left(tmp_path: Path) -> None:
    async def test() -> None:
        async with make_platform(tmp_path) as first:
            first.override_service("claude", Override.FORCED_OPEN)
            await until(
                lambda: {"circuit_open", "service_down"} == {a["kind"] for a in first.active_alerts()}
            )
            first.override_service("claude", Override.NONE)
            await until(lambda: {a["type"] for a in first.active_alerts()} == {"info"})
        async with make_platform(tmp_path) as second:
            assert {a["kind"] for a in second.active_alerts()} == {"circuit_closed", "service_recovered"}

    run(test)
