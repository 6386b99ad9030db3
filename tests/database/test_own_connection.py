"""Work on the driver's own connection (COPY, a cursor, `execute`): koo does not see it, and judges it correctly."""

# ruff: noqa: PT012 - these tests are about what is raised inside a scope and what leaves it

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from koo.database.database import Database
from koo.errors import CommitOutcomeUnknown, DatabaseError
from koo.policies.verdict import FAILURE
from tests.database.conftest import Place
from tests.database.support import (
    INSERT,
    ONE,
    SELECT,
    assert_free,
    notes,
    opened,
    options,
    proxied,
    run,
    through,
    with_notes,
)
from tests.database.test_faults import kill_all

CONFLICT = "DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$"
DRIVERS_OWN = (psycopg.Error, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)

Way = Callable[[AsyncSession], Awaitable[Any]]


async def by_connection(session: AsyncSession) -> Any:
    return (await (await session.connection()).get_raw_connection()).driver_connection


async def by_run_sync(session: AsyncSession) -> Any:
    return await session.run_sync(lambda sync: sync.connection().connection.driver_connection)


async def load(raw: Any, *numbers: int) -> None:
    """COPY with the means of each driver."""
    if isinstance(raw, asyncpg.Connection):
        await raw.copy_records_to_table("notes", records=[(n,) for n in numbers], columns=["n"])
        return
    async with raw.cursor() as cursor, cursor.copy("COPY notes (n) FROM STDIN") as copy:
        for n in numbers:
            await copy.write_row((n,))


async def insert(raw: Any, *numbers: int) -> None:
    for n in numbers:
        await raw.execute(f"INSERT INTO notes (n) VALUES ({n})")


# ── at COMMIT ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", [by_connection, by_run_sync])
@pytest.mark.parametrize("work", [load, insert])
def test_the_outcome_of_a_lost_commit_is_unknown_and_it_is_never_repeated(
    pg: Place, way: Way, work: Callable[..., Awaitable[None]]
) -> None:
    runs = 0

    async def main() -> None:
        async with proxied(pg.server) as proxy:
            url = through(proxy, pg.server, pg.driver, pg.database)
            async with with_notes(url) as database:

                async def fill(session: AsyncSession) -> None:
                    nonlocal runs
                    runs += 1
                    await work(await way(session), 1, 2)

                proxy.cut_commit("after")
                with pytest.raises(CommitOutcomeUnknown):
                    await database.transaction(fill)
                assert runs == 1
                assert await notes(database) == [1, 2]

    run(main)


@pytest.mark.parametrize("work", [load, insert])
def test_a_caught_failure_does_not_end_in_a_successful_commit(
    any_pg: Place, work: Callable[..., Awaitable[None]]
) -> None:
    """The server responds to COMMIT with ROLLBACK, and both drivers report success."""

    async def main() -> None:
        async with with_notes(any_pg.url) as database:
            with pytest.raises(DatabaseError, match="begin_nested"):
                async with database.session_scope() as session:
                    await session.execute(INSERT, {"n": 1})
                    with pytest.raises(DRIVERS_OWN):
                        await work(await by_connection(session), 2, 1)
            assert await notes(database) == []
            assert_free(database)

    run(main)


def test_a_caught_failure_does_not_end_in_a_successful_inner_commit(pg: Place) -> None:
    async def main() -> None:
        async with with_notes(pg.url) as database:
            async with database.session_scope() as session:
                raw = await by_connection(session)
                await insert(raw, 1)
                with suppress(*DRIVERS_OWN):
                    await insert(raw, 1)
                with pytest.raises(DatabaseError, match="begin_nested"):
                    await session.commit()
                await session.rollback()
                await session.execute(INSERT, {"n": 2})
            assert await notes(database) == [2]

    run(main)


def test_a_transaction_repaired_on_the_drivers_own_connection_is_committed(pg: Place) -> None:
    """The server's status decides if a transaction has failed, not earlier errors."""

    async def main() -> None:
        async with with_notes(pg.url) as database:
            async with database.session_scope() as session:
                raw = await by_connection(session)
                await raw.execute("SAVEPOINT mine")
                with pytest.raises(DBAPIError):
                    await session.execute(text("SELECT nonsense"))
                await raw.execute("ROLLBACK TO SAVEPOINT mine")
                await load(raw, 1)
            assert await notes(database) == [1]

    run(main)


def test_a_rollback_clears_a_failed_statement(pg: Place) -> None:
    async def main() -> None:
        async with with_notes(pg.url) as database:
            async with database.session_scope() as session:
                with pytest.raises(DBAPIError):
                    await session.execute(text("SELECT nonsense"))
                await session.rollback()
                await load(await by_connection(session), 1)
            assert await notes(database) == [1]

    run(main)


def test_after_a_rollback_an_earlier_conflict_is_not_a_reason_to_repeat(pg: Place) -> None:
    runs = 0

    async def main() -> None:
        async with with_notes(pg.url) as database:

            async def work(session: AsyncSession) -> None:
                nonlocal runs
                runs += 1
                with suppress(DBAPIError):
                    await session.execute(text(CONFLICT))
                await session.rollback()
                with suppress(*DRIVERS_OWN):
                    await (await by_connection(session)).execute("SELECT nonsense")

            with pytest.raises(DatabaseError, match="begin_nested") as caught:
                await database.transaction(work)
            assert runs == 1 and caught.value.__cause__ is None

    run(main)


def test_losing_the_commit_of_a_failed_transaction_leaves_no_doubt(pg: Place) -> None:
    """The server would have responded with ROLLBACK: nothing was committed, so it may be repeated."""
    runs = 0

    async def main() -> None:
        async with with_notes(pg.url) as database:

            async def work(session: AsyncSession) -> None:
                nonlocal runs
                runs += 1
                await session.execute(INSERT, {"n": runs})
                if runs == 1:
                    with suppress(DBAPIError):
                        await session.execute(text(CONFLICT))
                    kill_all(pg)

            await database.transaction(work)
            assert runs == 2 and await notes(database) == [2]

    run(main)


def test_a_caught_failure_is_raised_even_if_the_connection_is_lost_before_commit(pg: Place) -> None:
    if pg.driver == "asyncpg":
        pytest.skip("asyncpg detects the failure only in the response to COMMIT")

    async def main() -> None:
        async with with_notes(pg.url) as database:
            with pytest.raises(DatabaseError, match="begin_nested"):
                async with database.session_scope() as session:
                    with suppress(*DRIVERS_OWN):
                        await (await by_connection(session)).execute("SELECT nonsense")
                    kill_all(pg)

    run(main)


# ── errors that leave the block ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("grouped", [False, True])
def test_a_conflict_on_the_drivers_own_connection_is_repeated(pg: Place, grouped: bool) -> None:
    runs = 0

    async def main() -> None:
        async with with_notes(pg.url) as database:

            async def work(session: AsyncSession) -> None:
                nonlocal runs
                runs += 1
                raw = await by_connection(session)
                await load(raw, 1)
                if runs > 1:
                    return
                if not grouped:
                    await raw.execute(CONFLICT)
                async with asyncio.TaskGroup() as group:
                    group.create_task(raw.execute(CONFLICT))

            await database.transaction(work)
            assert runs == 2 and await notes(database) == [1]

    run(main)


def test_a_loss_on_the_drivers_own_connection_is_repeated_and_counts_as_a_failure(pg: Place) -> None:
    runs = 0

    async def main() -> None:
        async with with_notes(pg.url) as database:

            async def work(session: AsyncSession) -> None:
                nonlocal runs
                runs += 1
                raw = await by_connection(session)
                await load(raw, 1)
                if runs == 1:
                    kill_all(pg)
                await load(raw, 2)

            await database.transaction(work)
            assert runs == 2 and await notes(database) == [1, 2]
            assert database.guard.tally.totals().verdicts[FAILURE] == 1

    run(main)


def test_a_loss_on_a_connection_that_the_block_opened_itself_does_not_count(pg: Place) -> None:
    lost = {"psycopg": psycopg.errors.AdminShutdown, "asyncpg": asyncpg.AdminShutdownError}[pg.driver]
    runs = 0

    async def main() -> None:
        async with opened(pg.url) as database:

            async def work(session: AsyncSession) -> None:
                nonlocal runs
                runs += 1
                _ = await session.connection()
                raise lost("the server of somewhere else is shutting down")

            with pytest.raises(lost):
                await database.transaction(work)
            assert runs == 1
            assert database.guard.tally.totals().verdicts[FAILURE] == 0

    run(main)


# ── a COMMIT that the block sends as a statement ──────────────────────────────────────────────────────────────────


async def commit_by_session(session: AsyncSession) -> None:
    await session.commit()


async def commit_by_words(session: AsyncSession) -> None:
    await session.execute(text("COMMIT"))


async def commit_by_raw_words(session: AsyncSession) -> None:
    await (await by_connection(session)).execute("COMMIT")


async def commit_by_run_sync(session: AsyncSession) -> None:
    await session.run_sync(lambda sync: sync.commit())


async def commit_by_words_and_begin(session: AsyncSession) -> None:
    await session.execute(text("-- a part is done\n commit"))
    await session.execute(text("BEGIN"))


async def commit_by_chain(session: AsyncSession) -> None:
    await session.execute(text("COMMIT AND CHAIN"))


COMMITS = [
    commit_by_session,
    commit_by_words,
    commit_by_raw_words,
    commit_by_run_sync,
    commit_by_words_and_begin,
    commit_by_chain,
]


@pytest.mark.parametrize("commit", COMMITS, ids=lambda one: one.__name__)
@pytest.mark.parametrize("then", ["conflict", "loss", "conflict at once"])
def test_after_a_commit_inside_the_block_nothing_is_repeated(pg: Place, commit: Way, then: str) -> None:
    """The committed part would happen twice."""
    runs = 0

    async def main() -> None:
        async with with_notes(pg.url) as database:

            async def work(session: AsyncSession) -> None:
                nonlocal runs
                runs += 1
                await session.execute(INSERT, {"n": runs})
                await commit(session)
                if then != "conflict at once":
                    await session.execute(ONE)
                if then == "loss":
                    kill_all(pg)
                await session.execute(ONE if then == "loss" else text(CONFLICT))

            with pytest.raises(DBAPIError):
                await database.transaction(work)
            assert runs == 1 and await notes(database) == [1]

    run(main)


@pytest.mark.parametrize(
    "read",
    ["/* a */ SELECT CASE WHEN true THEN 1 /* b */ END", "/**/" * 1000 + "SELECT 1"],
    ids=["end", "many"],
)
def test_a_statement_between_comments_is_not_a_commit(pg: Place, read: str) -> None:
    runs = 0

    async def main() -> None:
        async with with_notes(pg.url) as database:

            async def work(session: AsyncSession) -> None:
                nonlocal runs
                runs += 1
                await session.execute(text(read))
                if runs == 1:
                    await session.execute(text(CONFLICT))

            await database.transaction(work)
            assert runs == 2

    run(main)


@pytest.mark.parametrize("commit", [commit_by_session, commit_by_words], ids=lambda one: one.__name__)
def test_after_a_lost_commit_inside_the_block_nothing_is_repeated(pg: Place, commit: Way) -> None:
    runs = 0

    async def main() -> None:
        async with proxied(pg.server) as proxy:
            url = through(proxy, pg.server, pg.driver, pg.database)
            async with with_notes(url) as database:

                async def work(session: AsyncSession) -> None:
                    nonlocal runs
                    runs += 1
                    await session.execute(INSERT, {"n": runs})
                    proxy.cut_commit("after")
                    with pytest.raises(CommitOutcomeUnknown):
                        await commit(session)
                    await session.rollback()
                    await session.execute(text(CONFLICT))

                with pytest.raises(DBAPIError):
                    await database.transaction(work)
                # asyncpg prepares a text before it runs it, and the proxy cuts the connection at that.
                assert runs == 1 and (commit is commit_by_words or await notes(database) == [1])

    run(main)


@pytest.mark.parametrize("then", ["goes on", "raises"])
def test_after_a_rollback_inside_the_block_a_conflict_is_repeated(pg: Place, then: str) -> None:
    """A repeat is safe, because nothing has been committed."""
    runs = 0

    async def main() -> None:
        async with with_notes(pg.url) as database:

            async def work(session: AsyncSession) -> None:
                nonlocal runs
                runs += 1
                try:
                    await session.execute(INSERT, {"n": 7})
                    await session.execute(text(CONFLICT) if runs == 1 else ONE)
                except DBAPIError:
                    await session.rollback()
                    if then == "raises":
                        raise
                    await session.execute(text(CONFLICT))

            await database.transaction(work)
            assert runs == 2 and await notes(database) == [7]

    run(main)


DEFERRED = """
CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.n = 1) EXECUTE FUNCTION conflict();
"""


@pytest.mark.parametrize("inside", [False, True])
def test_a_commit_that_the_server_refuses_for_a_conflict_is_repeated(pg: Place, inside: bool) -> None:
    """A repeat is safe, because nothing was committed."""
    runs = 0

    async def main() -> None:
        async with with_notes(pg.url) as database:
            pg.server.sql(DEFERRED, pg.database)

            async def work(session: AsyncSession) -> None:
                nonlocal runs
                runs += 1
                await session.execute(INSERT, {"n": runs})
                if inside:
                    await session.commit()

            await database.transaction(work)
            assert runs == 2 and await notes(database) == [2]

    run(main)


# ── a connection kept beyond its scope ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("spoiled", [False, True])
def test_a_transaction_begun_on_a_returned_connection_does_not_contain_a_later_scope(
    pg: Place, spoiled: bool
) -> None:
    """The driver would begin nothing, or only a savepoint, and the scope's COMMIT would commit nothing."""

    async def main() -> None:
        async with with_notes(pg.url, pool_size=1, max_overflow=0) as database:
            async with database.session_scope() as session:
                raw = await by_connection(session)
            await raw.execute("BEGIN" if isinstance(raw, asyncpg.Connection) else "SELECT 1")
            if spoiled:
                with suppress(*DRIVERS_OWN):
                    await raw.execute("SELECT nonsense")
            async with database.session_scope() as session:
                await session.execute(INSERT, {"n": 1})
                assert await by_connection(session) is not raw
            assert await notes(database) == [1]
            assert database.get_pool_metrics()["connection_metrics"]["stale_replaced"] == 1

    run(main)


# ── the application's own class of connections ────────────────────────────────────────────────────────────────────


class Mine(asyncpg.Connection):  # type: ignore[misc]
    """A connection class of an application."""

    __slots__ = ()

    def greet(self) -> str:
        return "hello"


def test_an_applications_own_connection_class_is_kept(pg: Place) -> None:
    if pg.driver != "asyncpg":
        pytest.skip("psycopg has no such argument")

    async def main() -> None:
        database = Database(options(pg.url), engine_args={"connect_args": {"connection_class": Mine}})
        with pytest.raises(DatabaseError, match="begin_nested"):
            async with database.session_scope() as session:
                raw = await by_connection(session)
                assert raw.greet() == "hello"
                with suppress(asyncpg.PostgresError):
                    await raw.execute("SELECT nonsense")
        await database.close()

    run(main)


# ── SQLite, where koo begins a transaction as late as its own statements allow ────────────────────────────────────


async def insert_by_cursor(session: AsyncSession, n: int) -> None:
    def insert(sync: Session) -> None:
        sync.connection().connection.cursor().execute(f"INSERT INTO notes (n) VALUES ({n})")

    await session.run_sync(insert)


async def insert_by_driver(session: AsyncSession, n: int) -> None:
    await (await by_connection(session)).executemany("INSERT INTO notes (n) VALUES (?)", [(n,)])


@pytest.mark.parametrize("own", [insert_by_cursor, insert_by_driver], ids=lambda one: one.__name__)
@pytest.mark.parametrize("before", ["nothing", "a read", "a write"])
def test_a_write_there_is_part_of_the_transaction_on_sqlite_too(
    sqlite_url: str, own: Callable[[AsyncSession, int], Awaitable[None]], before: str
) -> None:
    async def main() -> None:
        async with with_notes(sqlite_url) as database:

            async def work(session: AsyncSession, n: int) -> None:
                if before != "nothing":
                    await session.execute(SELECT if before == "a read" else INSERT, {"n": n + 10})
                await own(session, n)

            with pytest.raises(LookupError):
                async with database.session_scope() as session:
                    await work(session, 1)
                    raise LookupError
            assert await notes(database) == []
            async with database.session_scope() as session:
                await work(session, 2)
            assert await notes(database) == ([2, 12] if before == "a write" else [2])

    run(main)


def test_a_scope_that_wrote_there_does_not_wait_for_a_writer_that_waits_for_it(sqlite_url: str) -> None:
    async def main() -> None:
        async with with_notes(sqlite_url) as database:
            wrote, waits = asyncio.Event(), asyncio.Event()

            async def other() -> None:
                async with database.session_scope() as session:
                    await wrote.wait()
                    waits.set()
                    await session.execute(INSERT, {"n": 3})

            task = asyncio.create_task(other())
            async with database.session_scope() as session:
                await insert_by_driver(session, 1)
                wrote.set()
                await waits.wait()
                await asyncio.sleep(0)  # the other one enters the queue
                await session.execute(INSERT, {"n": 2})
            await task
            assert await notes(database) == [1, 2, 3]

    run(main)


def test_a_connection_that_the_block_has_closed_is_a_lost_one_on_sqlite_too(sqlite_url: str) -> None:
    async def main() -> None:
        async with with_notes(sqlite_url) as database:
            with pytest.raises(DBAPIError, match="no active connection"):
                async with database.session_scope() as session:
                    await (await by_connection(session)).close()
                    await session.execute(ONE)
            assert await notes(database) == []

    run(main)
