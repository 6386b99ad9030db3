"""`session_scope`: one transaction, on every kind of database."""

# ruff: noqa: PT012 - these tests are about what is raised inside a scope and what leaves it

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError, InvalidRequestError, ProgrammingError
from sqlalchemy.ext.asyncio import create_async_engine

from koo.database.database import Database
from koo.errors import ConfigurationError, DatabaseError, Kind
from koo.options import DatabaseOptions
from koo.sqlstates import original_of
from tests.database.conftest import Place
from tests.database.support import INSERT, ONE, SELECT, Note, assert_free, notes, opened, run, with_notes


def test_the_end_of_the_block_commits(url: str) -> None:
    async def main() -> None:
        async with with_notes(url) as database:
            async with database.session_scope() as session:
                session.add(Note(n=1, words="hello"))
                await session.execute(INSERT, {"n": 2})
            assert await notes(database) == [1, 2]

    run(main)


def test_an_exception_rolls_back_and_is_raised_unchanged(url: str) -> None:
    class Mine(Exception):
        pass

    async def main() -> None:
        mine = Mine("the very same")
        async with with_notes(url) as database:
            with pytest.raises(Mine) as caught:
                async with database.session_scope() as session:
                    await session.execute(INSERT, {"n": 1})
                    raise mine
            assert caught.value is mine
            assert mine.__cause__ is None and mine.__context__ is None
            assert await notes(database) == []

    run(main)


def test_errors_of_statements_remain_sqlalchemys_errors(url: str) -> None:
    async def main() -> None:
        async with with_notes(url) as database:
            with pytest.raises(IntegrityError):
                async with database.session_scope() as session:
                    await session.execute(INSERT, {"n": 1})
                    await session.execute(INSERT, {"n": 1})
            assert await notes(database) == []
            # The server responded, which counts as healthy.
            assert database.guard.breaker.consecutive == 0
            assert database.get_pool_metrics()["errors"]["by_kind"] == {"integrity": 1}

    run(main)


def test_objects_can_be_read_after_the_scope(url: str) -> None:
    async def main() -> None:
        async with with_notes(url) as database:
            async with database.session_scope() as session:
                note = Note(n=1, words="still here")
                session.add(note)
            assert note.words == "still here"

    run(main)


def test_a_session_cannot_be_used_after_its_scope(url: str) -> None:
    """Such a session would check out a connection, bypassing the pool's queue."""

    async def main() -> None:
        async with with_notes(url) as database:
            async with database.session_scope() as session:
                await session.execute(ONE)
            with pytest.raises(InvalidRequestError, match="closed"):
                await session.execute(ONE)

    run(main)


def test_a_scope_can_be_used_only_once(url: str) -> None:
    async def main() -> None:
        async with opened(url) as database:
            scope = database.session_scope()
            async with scope:
                pass
            with pytest.raises(RuntimeError, match="once"):
                async with scope:
                    pass

    run(main)


def test_a_scope_without_statements_succeeds(url: str) -> None:
    async def main() -> None:
        async with opened(url) as database:
            async with database.session_scope():
                pass
            assert_free(database)

    run(main)


def test_nested_scopes_are_two_transactions(url: str) -> None:
    async def main() -> None:
        async with with_notes(url) as database, database.session_scope() as outer:
            await outer.execute(SELECT)
            async with database.session_scope() as inner:
                await inner.execute(INSERT, {"n": 1})
            # READ COMMITTED: the commit of the inner scope is visible.
            assert list((await outer.scalars(SELECT)).all()) == [1]

    run(main)


def test_two_tasks_using_one_session_get_a_clear_error(url: str) -> None:
    async def main() -> None:
        async with with_notes(url) as database, database.session_scope() as session:
            results = await asyncio.gather(*(session.execute(ONE) for _ in range(3)), return_exceptions=True)
            failed = [one for one in results if isinstance(one, BaseException)]
            assert len(failed) == 2
            for error in map(
                original_of, failed
            ):  # SQLAlchemy wraps it if two errors are handled at the same time
                assert isinstance(error, DatabaseError)
                assert error.kind is Kind.INVALID_REQUEST and "two tasks" in str(error)
            # The work of the first task is not affected.
            await session.execute(INSERT, {"n": 1})

    run(main)


def test_a_failed_savepoint_leaves_the_transaction_usable(url: str) -> None:
    async def main() -> None:
        async with with_notes(url) as database:
            async with database.session_scope() as session:
                await session.execute(INSERT, {"n": 1})
                with pytest.raises(IntegrityError):
                    async with session.begin_nested():
                        await session.execute(INSERT, {"n": 1})
                async with session.begin_nested():
                    await session.execute(INSERT, {"n": 2})
            assert await notes(database) == [1, 2]

    run(main)


def test_a_commit_inside_the_block_starts_the_next_transaction(url: str) -> None:
    async def main() -> None:
        async with with_notes(url) as database:
            with pytest.raises(KeyError):
                async with database.session_scope() as session:
                    await session.execute(INSERT, {"n": 1})
                    await session.commit()
                    await session.execute(INSERT, {"n": 2})
                    raise KeyError
            assert await notes(database) == [1]

    run(main)


def test_rows_can_be_streamed_in_a_scope(url: str) -> None:
    async def main() -> None:
        async with with_notes(url) as database:
            async with database.session_scope() as session:
                session.add_all(Note(n=n) for n in range(200))
            async with database.session_scope() as session:
                seen = [note.n async for note in await session.stream_scalars(select(Note).order_by(Note.n))]
            assert seen == list(range(200))

    run(main)


def test_a_read_only_scope_refuses_writes(url: str) -> None:
    async def main() -> None:
        async with with_notes(url) as database:
            with pytest.raises(Exception, match="read-only") as caught:
                async with database.session_scope(readonly=True) as session:
                    await session.execute(INSERT, {"n": 1})
            assert isinstance(caught.value, Exception)
            assert await notes(database) == []
            # It neither makes the next scope read-only nor makes the database look like a standby.
            async with database.session_scope() as session:
                await session.execute(INSERT, {"n": 1})
            assert "read_only" not in (await database.health_check())["conditions"]

    run(main)


def test_a_caught_statement_error_does_not_end_in_a_successful_commit(any_pg: Place) -> None:
    """PostgreSQL responds to the COMMIT of a failed transaction with ROLLBACK, and drivers report success."""

    async def main() -> None:
        async with with_notes(any_pg.url) as database:
            with pytest.raises(DatabaseError, match="begin_nested") as caught:
                async with database.session_scope() as session:
                    await session.execute(INSERT, {"n": 1})
                    with pytest.raises(ProgrammingError):
                        await session.execute(text("SELECT nonsense"))
            assert caught.value.__cause__ is not None
            assert await notes(database) == []

    run(main)


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_isolation_applies_to_one_scope_only(any_pg: Place, level: str) -> None:
    asked = text("SELECT current_setting('transaction_isolation')")

    async def main() -> None:
        async with opened(any_pg.url) as database:
            async with database.session_scope(isolation=level) as session:
                assert await session.scalar(asked) == level.lower()
            async with database.session_scope() as session:
                assert await session.scalar(asked) == "read committed"
            async with database.session_scope(isolation=level, readonly=True) as session:
                assert await session.scalar(asked) == level.lower()
                assert await session.scalar(text("SELECT current_setting('transaction_read_only')")) == "on"

    run(main)


def test_an_isolation_level_that_is_unknown_or_set_too_late_is_refused(pg: Place) -> None:
    async def main() -> None:
        async with opened(pg.url) as database:
            async with database.session_scope() as session:
                with pytest.raises(DatabaseError, match="session_scope"):
                    _ = await session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
            with pytest.raises(ConfigurationError, match="SERIALIZABLE"):
                database.session_scope(isolation="CHAOS")

    run(main)


def test_execution_options_of_the_connection_apply_although_it_has_begun(pg: Place) -> None:
    """A tenant's `schema_translate_map` holds until the transaction ends, also one that began after a commit inside."""

    async def main() -> None:
        tenant = {"schema_translate_map": {None: "tenant"}}
        async with with_notes(pg.url, pool_size=1, max_overflow=0) as database:
            pg.server.sql("CREATE SCHEMA tenant; CREATE TABLE tenant.notes (LIKE public.notes)", pg.database)
            async with database.session_scope() as session:
                _ = await session.connection(execution_options=tenant)
                session.add(Note(n=1))
                await session.commit()
                _ = await session.connection(execution_options=tenant)
                session.add(Note(n=2))
            assert await notes(database) == []
            assert pg.server.sql("SELECT string_agg(n::text, ',') FROM tenant.notes", pg.database) == "1,2"

    run(main)


def test_a_statement_bound_to_another_engine_is_refused(url: str) -> None:
    """Its connection would have no deadline, and the two commits would not be one transaction."""

    async def main() -> None:
        async with opened(url) as database:
            other = create_async_engine("sqlite+aiosqlite://")
            with pytest.raises(DatabaseError, match="bound to another engine") as refusal:
                async with database.session_scope() as session:
                    await session.execute(ONE, bind_arguments={"bind": other.sync_engine})
            assert refusal.value.kind is Kind.INVALID_REQUEST
            await other.dispose()

    run(main)


def test_begin_is_sent_on_entry_and_costs_no_round_trip(pg: Place) -> None:
    """The server receives BEGIN before the first statement; drivers would send it only with that."""

    async def main() -> None:
        async with opened(pg.url) as database, database.session_scope() as session:
            state = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = "
            assert pg.server.sql(f"{state}'{pg.database}'") == "1"
            await session.execute(ONE)

    run(main)


@pytest.mark.parametrize(
    ("bad", "tells"),
    [
        ("mysql://u:hunter2@h/d", "mysql"),
        ("postgresql+pg8000://u:hunter2@h/d", "pg8000"),
        ("not a url hunter2", "DATABASE_URL"),
    ],
)
def test_an_invalid_url_is_refused_without_its_password(bad: str, tells: str) -> None:
    with pytest.raises(ConfigurationError, match=tells) as caught:
        Database(DatabaseOptions(url=bad))
    assert "hunter2" not in str(caught.value)
