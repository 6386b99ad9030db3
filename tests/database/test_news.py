"""Scopes that fail or are refused are logged, unless the error is the program's own."""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from koo.errors import CommitOutcomeUnknown, DatabaseUnavailable, PoolSaturated, ServiceFailed
from tests.database.conftest import Place
from tests.database.support import INSERT, proxied, with_notes

END = text("SELECT pg_terminate_backend(pg_backend_pid())")


@pytest.fixture(autouse=True)
def _all_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "koo")


def test_a_full_pool_is_logged_with_its_holders_and_then_counted(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with with_notes(sqlite_url, pool_size=1, max_overflow=0) as database:
            async with database.session_scope() as held:
                assert held is not None
                for _ in range(3):
                    with pytest.raises(PoolSaturated):
                        async with database.make_scope(deadline=database.clock.monotonic() + 0.01):
                            pass
            (first,) = caplog.messages
            assert first.startswith("database: scope refused (saturated): ")
            assert "in use; held by tests.database.test_news:" in first
        assert "database: scopes refused (saturated): 2 more in the last" in caplog.messages[-1]

    asyncio.run(main())


def test_a_refusal_that_also_leaves_an_outer_scope_is_logged_once(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with with_notes(sqlite_url, pool_size=1, max_overflow=0) as database:
            with pytest.raises(PoolSaturated):
                async with (
                    database.session_scope(),
                    database.make_scope(deadline=database.clock.monotonic() + 0.01),
                ):
                    pass
        assert len(caplog.messages) == 1

    asyncio.run(main())


def test_errors_that_the_program_itself_causes_are_not_logged(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A constraint used to check if a row exists, an invalid statement, its own exception, another service's error."""

    async def main() -> None:
        async with with_notes(url) as database:
            async with database.session_scope() as session:
                await session.execute(INSERT, {"n": 1})
            for wrong in (INSERT, text("SELECT nonsense FROM nowhere")):
                with pytest.raises(Exception, match=r"UNIQUE|unique|no such table|does not exist"):
                    async with database.session_scope() as session:
                        await session.execute(wrong, {"n": 1})
            for error in (ValueError("mine"), ServiceFailed("claude", "it failed")):
                with pytest.raises(type(error)):
                    async with database.session_scope():
                        raise error
            assert caplog.messages == []

    asyncio.run(main())


def test_a_lost_connection_is_logged_once_even_if_its_error_leaves_an_outer_scope(
    pg: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with with_notes(pg.url) as database:
            with pytest.raises(Exception, match=r"terminating|closed"):  # noqa: PT012
                async with database.session_scope(), database.session_scope() as inner:
                    await inner.execute(INSERT, {"n": 1})
                    await inner.execute(END)
            assert len(caplog.messages) == 1
            assert re.match(r"database: scope failed \(connection\): .*; 1 attempt$", caplog.messages[0])

    asyncio.run(main())


def test_only_the_last_failure_of_a_repeated_function_is_logged(
    pg: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        runs = 0

        async def lose(session: AsyncSession, times: int) -> None:
            nonlocal runs
            runs += 1
            await session.execute(INSERT, {"n": runs})
            if runs <= times:
                await session.execute(END)

        async with with_notes(pg.url) as database:
            await database.transaction(lose, 1)
            assert (runs, caplog.messages) == (2, [])
            with pytest.raises(Exception, match=r"terminating|closed"):
                await database.transaction(lose, 100, max_retries=1)
            assert len(caplog.messages) == 1
            assert re.match(
                r"database: transaction failed \(connection\): .*; 2 attempts$", caplog.messages[0]
            )

    asyncio.run(main())


def test_each_unknown_commit_is_logged_with_its_place_in_the_program(
    pg: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def write(database: Any, n: int) -> None:
        async with database.session_scope() as session:
            await session.execute(INSERT, {"n": n})

    async def main() -> None:
        async with proxied(pg.server) as proxy, with_notes(proxy.through(pg.url)) as database:
            proxy.cut_commit("at", times=2)
            for n in range(2):
                with pytest.raises(CommitOutcomeUnknown):
                    await write(database, n)
            assert len(caplog.messages) == 2
            for message in caplog.messages:
                assert message.startswith("database: outcome of a commit unknown: ")
                assert "in tests.database.test_news:" in message and "INSERT INTO notes" in message

    asyncio.run(main())


def test_a_drain_and_the_scopes_it_refuses_are_logged(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with with_notes(sqlite_url) as database:
            await database.drain()
            await database.drain()
            with suppress(DatabaseUnavailable):
                async with database.session_scope():
                    pass
            database.resume()
            database.resume()
            assert [message.split(":")[1] for message in caplog.messages] == [
                " drained by an operator",
                " scope refused (draining)",
                " resumed by an operator",
            ]

    asyncio.run(main())


def test_a_folder_that_cannot_be_created_is_logged(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")

    async def main() -> None:
        from koo.database.database import Database

        database = Database(f"sqlite:///{tmp_path}/file/user.db")
        with pytest.raises(DatabaseUnavailable):
            async with database.session_scope():
                pass
        (line,) = caplog.messages
        assert line.startswith("database: scope refused (not_found): the file's folder cannot be created: ")

    asyncio.run(main())
