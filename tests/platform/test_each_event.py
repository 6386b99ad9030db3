"""Each event can happen: a platform with real servers and a real store publishes every class of `koo.events`."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from sqlalchemy import text

from koo import events
from koo.alert_options import AlertOptions
from koo.database.database import Database
from koo.errors import CommitOutcomeUnknown, ExternalServiceError
from koo.events import (
    BillExceededHold,
    CircuitClosed,
    CircuitHalfOpened,
    CircuitOpened,
    CircuitPrimed,
    CommitUnknown,
    CooldownBegan,
    DatabaseDraining,
    DatabasePaused,
    DatabaseReadOnly,
    DatabaseResumed,
    DatabaseRotated,
    DatabaseWritable,
    DeliveryFailed,
    DeliveryGivenUp,
    Event,
    HealthCheckFailed,
    HealthCheckPassed,
    KeyBlocked,
    KeyUnblocked,
    OverrideSet,
    ProcessRenamed,
    StoreForgot,
    StoreFound,
    StoreLost,
)
from koo.notices import Notice
from koo.options import BreakerOptions, RetryOptions
from koo.platform import Platform
from koo.policies.breaker import Override
from koo.policies.money import to_pico
from koo.storage.store import SqlStore
from koo.storage.treasuries import write_off_in
from koo.testing.polling import until
from koo.testing.postgres import PostgresServer
from koo.testing.providers import FakeAnthropic, answer, error
from koo.testing.proxy import FaultProxy
from tests.fleet.others import say_open
from tests.platform.test_platform import QUESTION, options

FAILED = error(500, "api_error")
REFUSED = error(401, "authentication_error")
BREAKER = BreakerOptions(failure_threshold=1, success_threshold=1, recovery_s=0.05)


@dataclass
class World:
    """A platform with one service, its fake provider, and the folder of its state store."""

    platform: Platform
    server: FakeAnthropic
    home: Path
    postgres: Callable[[], PostgresServer]

    def happened(self, kind: type[Event]) -> bool:
        return any(isinstance(event, kind) for event in self.platform.events.recent)

    @property
    def state(self) -> Path:
        return self.home / "state.db"

    async def spending_is_told(self) -> None:
        """Wait until the store has this process's spending."""
        spent_pico = to_pico(self.server.billed_usd)

        def is_told() -> bool:
            with closing(sqlite3.connect(self.state)) as state:
                ((told,),) = state.execute(
                    "SELECT sum(spent) FROM koo_treasuries WHERE budget LIKE 'service/%'"
                )
            return bool(told == spent_pico)

        await until(is_told)

    async def ask(self, *script: object) -> None:
        """Send one query, which the provider answers as scripted."""
        self.server.script(*script)  # type: ignore[arg-type]
        with suppress(ExternalServiceError):
            await self.platform.query(replace(QUESTION, on_limit="refuse"))


async def fail(world: World) -> None:
    await world.ask(FAILED)


async def fail_and_wait(world: World) -> None:
    await world.ask(FAILED)
    await until(lambda: world.happened(CircuitHalfOpened))


async def fail_and_recover(world: World) -> None:
    await fail_and_wait(world)
    await world.ask(answer())


async def be_primed(world: World) -> None:
    await world.platform.open()
    await say_open(world.platform, "claude")


async def override(world: World) -> None:
    world.platform.override_service("claude", Override.DISABLED)


async def throttle(world: World) -> None:
    await world.ask(error(429, "rate_limit_error", headers={"retry-after": "100"}))


async def refuse_the_key(world: World) -> None:
    await world.ask(REFUSED)


async def take_the_key_again(world: World) -> None:
    await world.ask(REFUSED)
    await world.platform.check_services("claude")


async def bill_more_than_was_held(world: World) -> None:
    await world.ask(answer(output_tokens=1_000_000))


async def be_written_off(world: World) -> None:
    """This process is written off as if it had ended, and its money is freed."""
    await world.ask(answer())
    await world.spending_is_told()
    state_url = world.platform.options.state_url
    with closing(sqlite3.connect(world.state)) as state:
        (name,) = state.execute("SELECT name FROM koo_processes").fetchone()
    async with SqlStore(state_url) as store:
        await store.executor.run(lambda tx: write_off_in(tx, name))
    await world.ask(answer())


async def be_forgotten(world: World) -> None:
    """Replace the store with a copy from before the last call."""
    await world.ask(answer())
    await world.spending_is_told()
    older = world.home / "older.db"
    with closing(sqlite3.connect(world.state)) as state:
        state.execute("VACUUM INTO ?", (str(older),))
    await world.ask(answer())
    await world.spending_is_told()
    older.replace(world.state)
    for rest in ("state.db-wal", "state.db-shm"):
        (world.home / rest).unlink()
    await world.ask(answer())


async def lose_the_store(world: World) -> None:
    world.state.mkdir()
    await world.platform.open()


async def lose_and_find_the_store(world: World) -> None:
    await lose_the_store(world)
    world.state.rmdir()


async def have_something_to_say(world: World) -> None:
    """There is something to send, but no receiver."""
    await world.platform.open()
    await world.platform.parts.store.notices.put(
        Notice(
            key="a1:firing",
            what="firing",
            fingerprint="circuit_open:ai:claude",
            kind="circuit_open",
            severity="critical",
            component="ai:claude",
            message="the circuit breaker is open",
            started_at=0.0,
        )
    )


async def fail_a_check(world: World) -> None:
    world.server.key = "another key"
    await world.platform.check_services("claude")


async def fail_a_check_and_pass_the_next(world: World) -> None:
    await fail_a_check(world)
    world.server.key = None
    await world.platform.check_services("claude")


async def pause(world: World) -> None:
    world.platform.pause_database()


async def drain(world: World) -> None:
    await world.platform.drain_database()


async def resume(world: World) -> None:
    world.platform.pause_database()
    world.platform.resume_database()


@asynccontextmanager
async def on_postgres(world: World) -> AsyncIterator[tuple[Database, FaultProxy]]:
    """A database on PostgreSQL behind a proxy, which publishes its events on the platform."""
    server = world.postgres()
    name = server.create_database()
    async with FaultProxy(server.host, server.port) as proxy:
        url = proxy.through(server.url("psycopg", name))
        database = Database(url, publish=world.platform.events.publish)
        try:
            async with database.session_scope() as session:
                await session.execute(text("CREATE TABLE notes (n int)"))
            yield database, proxy
        finally:
            await database.close()
            server.drop_database(name)


async def lose_a_commit(world: World) -> None:
    async with on_postgres(world) as (database, proxy):
        proxy.cut_commit("at")
        with suppress(CommitOutcomeUnknown):
            async with database.session_scope() as session:
                await session.execute(text("INSERT INTO notes VALUES (1)"))


async def rotate(world: World) -> None:
    async with on_postgres(world) as (database, _):
        await database.rotate()


async def take_no_writes(world: World) -> None:
    async with on_postgres(world) as (database, _):
        await _switch_read_only(database, "on")


async def take_writes_again(world: World) -> None:
    async with on_postgres(world) as (database, _):
        await _switch_read_only(database, "on")
        await _switch_read_only(database, "off")


async def _switch_read_only(database: Database, on: str) -> None:
    async with database.session_scope() as session:
        await session.execute(text("SET TRANSACTION READ WRITE"))
        name = (await session.execute(text("SELECT current_database()"))).scalar_one()
        await session.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = {on}"))
    await database.rotate()
    await database.health_check()
    database.tick()


CAUSES: dict[type[Event], Callable[[World], Awaitable[None]]] = {
    CircuitOpened: fail,
    CircuitPrimed: be_primed,
    CircuitHalfOpened: fail_and_wait,
    CircuitClosed: fail_and_recover,
    OverrideSet: override,
    CooldownBegan: throttle,
    KeyBlocked: refuse_the_key,
    KeyUnblocked: take_the_key_again,
    BillExceededHold: bill_more_than_was_held,
    ProcessRenamed: be_written_off,
    StoreForgot: be_forgotten,
    StoreLost: lose_the_store,
    StoreFound: lose_and_find_the_store,
    DeliveryFailed: have_something_to_say,
    DeliveryGivenUp: have_something_to_say,
    HealthCheckFailed: fail_a_check,
    HealthCheckPassed: fail_a_check_and_pass_the_next,
    CommitUnknown: lose_a_commit,
    DatabaseReadOnly: take_no_writes,
    DatabaseWritable: take_writes_again,
    DatabasePaused: pause,
    DatabaseDraining: drain,
    DatabaseResumed: resume,
    DatabaseRotated: rotate,
}
"""How each event is caused."""


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in vars(events).values()
        if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
    ],
)
def test_each_event_can_happen(
    kind: type[Event], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """An event that nothing publishes would be documented, coloured and alerted on, but never occur."""
    monkeypatch.setattr("koo.upkeep.TICK_S", 0.02)
    monkeypatch.setattr("koo.upkeep.SWEEP_EVERY_TICKS", 1)
    monkeypatch.setattr("koo.alerts.courier.GIVEN_UP_AFTER_S", -1.0)
    monkeypatch.setattr("koo.policies.treasury.FREEZE_MS", 50)
    monkeypatch.setattr("koo.policies.units.FREEZE_MS", 50)

    async def main() -> None:
        async with FakeAnthropic(strict=False) as server:
            once = options(tmp_path, server, breaker=BREAKER, retry=RetryOptions(attempts_max=1))
            platform = Platform(replace(once, alerts=AlertOptions(webhook="http://127.0.0.1:9/")))
            world = World(platform, server, tmp_path, lambda: request.getfixturevalue("postgres18"))
            assert not world.happened(kind)
            try:
                await CAUSES[kind](world)
                await until(lambda: world.happened(kind))
            finally:
                await platform.close()

    asyncio.run(main())
