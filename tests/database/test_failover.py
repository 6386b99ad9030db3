"""Writes on pooled connections that lead to a standby after a failover."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from koo.database.database import Database
from koo.errors import DatabaseError, Kind
from koo.testing.postgres import PASSWORD
from tests.database.conftest import Place
from tests.database.support import INSERT, ONE, notes, opened, run


@asynccontextmanager
async def after_a_failover(pg: Place, *, only_the_old: bool) -> AsyncIterator[Database]:
    """A pool whose connection refuses writes. `only_the_old`: connections opened from now on accept them."""
    role, server = f"role_{os.urandom(4).hex()}", pg.server
    server.sql(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
    server.sql(
        f"CREATE TABLE notes (n integer PRIMARY KEY, words text); GRANT ALL ON notes TO {role}", pg.database
    )
    server.sql(f"ALTER ROLE {role} SET default_transaction_read_only = on")
    async with opened(pg.url.replace("//postgres:", f"//{role}:")) as database:
        async with database.session_scope() as session:
            await session.execute(ONE)
        if only_the_old:
            server.sql(f"ALTER ROLE {role} RESET default_transaction_read_only")
        yield database


async def write(session: AsyncSession, n: int) -> int:
    await session.execute(INSERT, {"n": n})
    return n


def test_a_scope_that_meets_the_standby_later_does_not_replace_connections_to_the_new_server(
    pg: Place,
) -> None:
    """Otherwise each scope that was running during the failover would make all callers connect once more."""

    async def meet_the_standby(stack: AsyncExitStack, session: AsyncSession) -> None:
        with pytest.raises(DatabaseError):
            async with stack:
                await write(session, 1)

    async def main() -> None:
        async with after_a_failover(pg, only_the_old=False) as database:
            stacks = AsyncExitStack(), AsyncExitStack()
            old = [await stack.enter_async_context(database.session_scope()) for stack in stacks]
            await meet_the_standby(stacks[0], old[0])
            async with database.session_scope() as session:
                await session.execute(ONE)
            created = database.metrics.created
            await meet_the_standby(stacks[1], old[1])
            async with database.session_scope(), database.session_scope():
                assert database.metrics.created == created + 1

    run(main)


def test_the_first_write_is_repeated_on_a_connection_to_the_new_server(pg: Place) -> None:
    async def main() -> None:
        async with after_a_failover(pg, only_the_old=True) as database:
            assert await database.transaction(write, 1) == 1
            assert database.metrics.repeats == 1
            assert await notes(database) == [1]

    run(main)


def test_if_the_new_connection_refuses_writes_too_koo_raises_its_own_error(pg: Place) -> None:
    async def main() -> None:
        async with after_a_failover(pg, only_the_old=False) as database:
            with pytest.raises(
                DatabaseError, match="the server accepts no writes: it is a standby"
            ) as caught:
                await database.transaction(write, 1)
            error = caught.value
            assert (error.kind, error.attempts) == (Kind.READ_ONLY, 2)
            assert getattr(error.__cause__, "sqlstate", None) == "25006"

    run(main)


def test_a_scope_that_cannot_be_repeated_raises_koos_error_and_the_next_one_writes(pg: Place) -> None:
    async def main() -> None:
        async with after_a_failover(pg, only_the_old=True) as database:
            with pytest.raises(DatabaseError) as caught:
                async with database.session_scope() as session:
                    await write(session, 1)
            assert (caught.value.kind, caught.value.retry_after_s) == (Kind.READ_ONLY, 1.0)
            async with database.session_scope() as session:
                await write(session, 2)
            assert await notes(database) == [2]

    run(main)


def test_a_write_in_a_read_only_scope_is_the_callers_error(pg: Place) -> None:
    async def main() -> None:
        async with after_a_failover(pg, only_the_old=True) as database:
            with pytest.raises(DBAPIError) as caught:
                await database.transaction(write, 1, readonly=True)
            assert getattr(caught.value.orig, "sqlstate", None) == "25006"
            assert database.metrics.repeats == 0

    run(main)
