"""on_commit: hooks run once, after a COMMIT that is known to have happened."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from koo.database.database import Database
from koo.database.on_commit import on_commit
from koo.errors import CommitOutcomeUnknown, DatabaseError
from koo.testing.polling import until
from koo.testing.proxy import FaultProxy
from tests.database.conftest import Place
from tests.database.support import INSERT, assert_free, notes, proxied, run, through, with_notes


class Refused(Exception):
    pass


@asynccontextmanager
async def cut_off(pg: Place) -> AsyncIterator[tuple[Database, FaultProxy]]:
    """A database behind a proxy that cuts it off."""
    async with (
        proxied(pg.server) as proxy,
        with_notes(through(proxy, pg.server, pg.driver, pg.database)) as database,
    ):
        yield database, proxy


async def insert(session: AsyncSession, n: int) -> None:
    await session.execute(INSERT, {"n": n})


def test_hooks_run_in_order_after_connection_and_permit_were_returned(url: str) -> None:
    async def main() -> None:
        async with with_notes(url) as database:
            seen: list[object] = []

            async def look() -> None:
                assert_free(database)
                seen.append(await notes(database))

            async with database.session_scope() as session:
                on_commit(session, lambda: seen.append("first"))
                await insert(session, 1)
                on_commit(session, look)
                assert seen == []
            assert seen == ["first", [1]]

    run(main)


async def fail_within(session: AsyncSession, seen: list[str]) -> None:
    async with session.begin_nested():
        async with session.begin_nested():
            on_commit(session, lambda: seen.append("savepoint"))
        raise Refused


async def insert_and_tell(database: Database, seen: list[str]) -> None:
    async with database.session_scope() as session:
        on_commit(session, lambda: seen.append("committed"))
        await insert(session, 1)


def test_hooks_of_rolled_back_work_are_dropped(url: str) -> None:
    async def main() -> None:
        async with with_notes(url) as database:
            seen: list[str] = []

            async def fail(session: AsyncSession) -> None:
                on_commit(session, lambda: seen.append("never"))
                await insert(session, 1)
                raise Refused

            with pytest.raises(Refused):
                await database.transaction(fail)
            async with database.session_scope() as session:
                await insert(session, 1)
                on_commit(session, lambda: seen.append("outer"))
                with pytest.raises(Refused):
                    await fail_within(session, seen)
                async with session.begin_nested():
                    on_commit(session, lambda: seen.append("released"))
                    await insert(session, 2)
                assert seen == []
            assert seen == ["outer", "released"] and await notes(database) == [1, 2]

    run(main)


def test_hooks_of_a_commit_inside_the_block_run_even_if_the_rest_fails(url: str) -> None:
    async def parts(database: Database, seen: list[str]) -> None:
        async with database.session_scope() as session:
            await insert(session, 1)
            on_commit(session, lambda: seen.append("committed"))
            await session.commit()
            on_commit(session, lambda: seen.append("not committed"))
            await insert(session, 2)
            raise Refused

    async def main() -> None:
        async with with_notes(url) as database:
            seen: list[str] = []
            with pytest.raises(Refused):
                await parts(database, seen)
            await until(lambda: bool(seen))
            assert seen == ["committed"] and await notes(database) == [1]

    run(main)


def test_a_hook_runs_once_even_if_the_block_commits_twice(url: str) -> None:
    async def main() -> None:
        async with with_notes(url) as database:
            seen: list[str] = []
            async with database.session_scope() as session:
                on_commit(session, lambda: seen.append("first"))
                await insert(session, 1)
                await session.commit()
                on_commit(session, lambda: seen.append("second"))
                await insert(session, 2)
            assert seen == ["first", "second"]

    run(main)


def test_a_failing_hook_is_logged_and_the_others_still_run(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with with_notes(url) as database:
            handled: list[object] = []
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: handled.append(context["exception"]))
            seen: list[str] = []

            def spoil() -> None:
                raise Refused

            async with database.session_scope() as session:
                await insert(session, 1)
                on_commit(session, spoil)
                on_commit(session, lambda: seen.append("next"))
            assert seen == ["next"] and await notes(database) == [1]
            assert isinstance(handled[0], Refused)

    with caplog.at_level(logging.ERROR, "koo"):
        run(main)
    assert "a hook after a COMMIT failed" in caplog.text and "spoil raised Refused" in caplog.text


def test_hooks_of_joined_functions_run_with_the_outermost_and_only_for_the_last_attempt(
    pg: Place,
) -> None:
    async def main() -> None:
        async with cut_off(pg) as (database, proxy):
            seen: list[str] = []
            runs = 0

            async def inner(session: AsyncSession) -> None:
                on_commit(session, lambda: seen.append(f"inner {runs}"))

            async def outer(session: AsyncSession) -> None:
                nonlocal runs
                runs += 1
                await insert(session, 1)
                await database.transaction(inner)
                assert seen == []
                if runs == 1:
                    proxy.reset_all()
                await insert(session, 2)

            await database.transaction(outer)
            assert (runs, seen) == (2, ["inner 2"])

    run(main)


def test_hooks_do_not_run_if_the_outcome_is_unknown(pg: Place) -> None:
    async def main() -> None:
        async with cut_off(pg) as (database, proxy):
            seen: list[str] = []
            proxy.cut_commit("after")
            with pytest.raises(CommitOutcomeUnknown):
                await insert_and_tell(database, seen)
            assert seen == []

    run(main)


def test_repeating_the_first_statement_keeps_the_hooks(pg: Place) -> None:
    async def main() -> None:
        async with cut_off(pg) as (database, proxy):
            seen: list[str] = []
            async with database.session_scope() as session:
                on_commit(session, lambda: seen.append("kept"))
                proxy.reset_all()
                await insert(session, 1)
            assert seen == ["kept"]

    run(main)


def test_the_remaining_hooks_of_a_cancelled_caller_run_without_it(url: str) -> None:
    async def main() -> None:
        async with with_notes(url) as database:
            seen: list[str] = []
            waits = asyncio.Event()

            async def wait() -> None:
                waits.set()
                await asyncio.Event().wait()

            async def write() -> None:
                async with database.session_scope() as session:
                    await insert(session, 1)
                    on_commit(session, wait)
                    on_commit(session, lambda: seen.append("rest"))

            writing = asyncio.create_task(write())
            await waits.wait()
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
            await until(lambda: seen == ["rest"])

    run(main)


def test_other_sessions_and_hooks_that_cannot_be_called_are_refused(sqlite_url: str) -> None:
    async def main() -> None:
        async with with_notes(sqlite_url) as database:
            async with database.session_scope() as session:
                with pytest.raises(TypeError, match="a function to call later"):
                    on_commit(session, wrong())
            with pytest.raises(DatabaseError, match="session of an open scope"):
                on_commit(session, lambda: None)
            async with AsyncSession() as other:
                with pytest.raises(DatabaseError, match="session of an open scope"):
                    on_commit(other, lambda: None)

    run(main)


def wrong() -> Any:
    return "a mail"
