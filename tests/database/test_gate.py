"""Pause, resume, drain and rotate: their effect on new scopes, running scopes, and connections."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text

from koo.database.database import Database
from koo.errors import DatabaseError, DatabaseUnavailable, Kind
from koo.policies.verdict import FAILURE
from koo.testing.polling import until
from koo.testing.postgres import Driver, PostgresServer
from tests.database.conftest import Place
from tests.database.support import ONE, opened, proxied, run, through


async def ask(database: Database) -> None:
    async with database.session_scope() as session:
        await session.execute(ONE)


def held(database: Database) -> tuple[asyncio.Task[None], asyncio.Event]:
    """Keep a scope open until the event is set."""
    go = asyncio.Event()

    async def hold() -> None:
        async with database.session_scope() as session:
            await session.execute(ONE)
            await go.wait()
            await session.execute(ONE)

    return asyncio.create_task(hold()), go


def test_while_paused_new_scopes_wait_and_running_ones_continue(url: str) -> None:
    async def main() -> None:
        async with opened(url) as database:
            inside, go = held(database)
            await until(lambda: len(database.pool_queue.holders) == 1)
            assert database.pause()["gate"] == "paused"
            waiting = [asyncio.create_task(ask(database)) for _ in range(3)]
            await until(lambda: database.get_gate()["waiting"] == 3)
            go.set()
            await inside
            assert not any(task.done() for task in waiting)
            assert database.get_health()["conditions"] == ["paused"]
            assert database.get_health()["pool_status"]["waiting"] == 3
            gate = database.resume()
            await asyncio.gather(*waiting)
            assert gate["gate"] == "open" and database.get_health()["conditions"] == []

    run(main)


def test_a_pause_lasts_no_longer_than_a_scopes_own_deadline(url: str) -> None:
    async def main() -> None:
        async with opened(url, scope_timeout_s=0.1) as database:
            database.pause()
            with pytest.raises(
                DatabaseUnavailable, match="an operator paused it and did not resume"
            ) as caught:
                await ask(database)
            assert caught.value.kind is Kind.DRAINING
            assert database.guard.tally.totals().verdicts[FAILURE] == 0
            database.resume()

    run(main)


def test_a_waiting_scope_can_be_cancelled(url: str) -> None:
    async def main() -> None:
        async with opened(url) as database:
            database.pause()
            waiting = asyncio.create_task(ask(database))
            await until(lambda: database.gate.waiting == 1)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert waiting.cancelled() and database.gate.waiting == 0
            database.resume()
            await ask(database)

    run(main)


def test_a_drain_refuses_new_scopes_and_waits_for_running_ones(url: str) -> None:
    async def main() -> None:
        async with opened(url, pool_size=1, max_overflow=0) as database:
            inside, go = held(database)
            await until(lambda: len(database.pool_queue.holders) == 1)
            in_line = asyncio.create_task(ask(database))
            await until(lambda: database.pool_queue.waiting == 1)
            draining = asyncio.create_task(database.drain(30.0))
            with pytest.raises(DatabaseUnavailable, match="an operator is draining it") as caught:
                await in_line
            assert caught.value.kind is Kind.DRAINING
            with pytest.raises(DatabaseUnavailable, match="an operator is draining it"):
                await ask(database)
            assert not draining.done()
            go.set()
            await inside
            assert (await draining)["running"] == 0
            checked = await database.health_check()
            assert checked["conditions"] == ["draining"] and checked["error"] is None
            database.resume()
            await ask(database)

    run(main)


def test_a_drain_that_times_out_names_the_remaining_scopes_and_cuts_none_off(url: str) -> None:
    async def main() -> None:
        async with opened(url) as database:
            inside, go = held(database)
            await until(lambda: [one.statement for one in database.pool_queue.holders] == ["SELECT 1"])
            gate = await database.drain(0.0)
            (left,) = gate["held_by"]
            line = held.__code__.co_firstlineno + 5
            assert gate["running"] == 1 and gate["gate"] == "draining"
            assert left.startswith(f"tests.database.test_gate:{line} for ") and left.endswith(" (SELECT)")
            go.set()
            await inside
            database.resume()

    run(main)


def test_a_pause_outlives_the_close_of_the_database(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    run(lambda: ask(database))
    database.pause()

    async def main() -> None:
        waiting = asyncio.create_task(ask(database))
        await until(lambda: database.gate.waiting == 1)
        database.resume()
        await waiting
        await database.close()

    run(main)


# ── rotate ────────────────────────────────────────────────────────────────────────────────────────────────────────

WHO = text("SELECT current_user || ' ' || pg_backend_pid()")


async def who(session: Any) -> tuple[str, int]:
    user, _, pid = str(await session.scalar(WHO)).partition(" ")
    return user, int(pid)


def sessions(server: PostgresServer, database: str) -> list[str]:
    """The users of the open sessions, without koo's probe."""
    rows = server.sql(
        f"SELECT usename FROM pg_stat_activity WHERE datname = '{database}' ORDER BY 1", "postgres"
    )
    return rows.split()


@pytest.fixture
def other_user(pg: Place) -> str:
    """The URL with another user's credentials."""
    user = f"u{pg.database}"
    pg.server.sql(f"CREATE ROLE {user} LOGIN SUPERUSER PASSWORD 'other'", pg.database)
    return pg.url.replace("postgres:koo-test@", f"{user}:other@")


def test_after_a_rotation_new_scopes_get_new_connections_and_old_ones_finish(
    pg: Place, other_user: str
) -> None:
    async def main() -> None:
        async with opened(pg.url, probe_interval_s=1000.0) as database:
            async with database.session_scope() as old:
                before = await who(old)
                await ask(database)
                assert sessions(pg.server, pg.database) == ["postgres"] * 2
                gate = await database.rotate(other_user)
                assert gate["running"] == 1 and database.url.username == f"u{pg.database}"
                async with database.session_scope() as new:
                    assert (await who(new))[0] == f"u{pg.database}"
                assert await who(old) == before, "an open scope keeps its connection"
            await until(lambda: sessions(pg.server, pg.database) == [f"u{pg.database}"])
            look = await database.health_check()
            assert look["healthy"] is True
            assert database.guard.tally.totals().verdicts[FAILURE] == 0

    run(main)


def test_rotate_waits_for_scopes_on_old_connections(pg: Place) -> None:
    async def main() -> None:
        async with opened(pg.url) as database:
            inside, go = held(database)
            await until(lambda: len(database.pool_queue.holders) == 1)
            rotating = asyncio.create_task(database.rotate(within_s=60.0))
            await until(lambda: database.connections is not None and database.connections.records.generation)
            assert not rotating.done()
            go.set()
            await inside
            gate = await rotating
            assert (gate["running"], gate["open_connections"]) == (0, 0)

    run(main)


def test_a_rotation_to_an_unreachable_server_changes_nothing(pg: Place) -> None:
    async def main() -> None:
        async with opened(pg.url) as database:
            async with database.session_scope() as session:
                before = await who(session)
            bad = pg.url.replace(f":{pg.server.port}/", ":1/")
            with pytest.raises(DatabaseUnavailable) as caught:
                await database.rotate(bad)
            assert "koo-test" not in str(caught.value) and "the server refuses connections" in str(
                caught.value
            )
            async with database.session_scope() as session:
                assert await who(session) == before
            assert database.url.port == pg.server.port

    run(main)


def test_a_password_function_is_called_for_each_connection(pg: Place) -> None:
    async def main() -> None:
        calls = 0

        async def token() -> str:
            nonlocal calls
            calls += 1
            return "koo-test"

        async with opened(pg.url) as database:
            await database.rotate(password=token)
            assert calls == 1, "one is opened first"
            async with database.session_scope() as one, database.session_scope() as two:
                await one.execute(ONE)
                await two.execute(ONE)
            assert calls == 3
            await database.rotate()
            assert calls == 4, "it is used until another one replaces it"

    run(main)


def test_a_rotation_away_from_a_silent_server_completes(pg: Place) -> None:
    async def main() -> None:
        async with proxied(pg.server) as proxy:
            url = through(proxy, pg.server, pg.driver, pg.database)
            async with opened(url, cleanup_timeout_s=0.2) as database:
                await ask(database)
                proxy.black_hole()
                database.pause()
                waiting = asyncio.create_task(ask(database))
                await database.rotate(pg.url)
                database.resume()
                await waiting
                assert database.guard.tally.totals().verdicts[FAILURE] == 0

    run(main)


def test_sqlite_and_another_driver_cannot_be_rotated(pg: Place, sqlite_url: str) -> None:
    async def main() -> None:
        other: Driver = "asyncpg" if pg.driver == "psycopg" else "psycopg"
        with pytest.raises(DatabaseError, match="rotate cannot change the driver"):
            await Database(pg.url).rotate(pg.server.url(other, "x"))
        with pytest.raises(DatabaseError, match="rotate is for servers"):
            await Database(sqlite_url).rotate()

    run(main)
