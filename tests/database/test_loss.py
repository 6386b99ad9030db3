"""Lost connections: which ones go unnoticed, what is repeated, what is raised, and what is never repeated."""

# ruff: noqa: PT012 - these tests are about what is raised inside a scope and what leaves it

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any, Literal

import pytest
from sqlalchemy import TextClause, insert, select, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from koo.database.database import Database
from koo.errors import CommitOutcomeUnknown, DatabaseTimeout, DatabaseUnavailable, Kind, KooError
from koo.options import BreakerOptions, RetryOptions
from koo.policies.verdict import FAILURE
from koo.testing.clock import StandingClock
from koo.testing.polling import until
from tests.database.conftest import Place
from tests.database.support import (
    INSERT,
    ONE,
    SELECT,
    Base,
    Note,
    assert_free,
    notes,
    opened,
    options,
    proxied,
    run,
    through,
    with_notes,
)
from tests.database.test_faults import kill_all, until_asleep

PATIENT: dict[str, Any] = {
    "retry": RetryOptions(attempts_max=100, base_s=0.05, cap_s=1.0, budget_tokens=1000),
    "breaker": BreakerOptions(failure_threshold=1000, calls_min=1000),
    "pool_timeout_s": 100.0,
    "scope_timeout_s": 110.0,
}
"""Waits for the server however slowly this machine starts it. Another test covers when to stop waiting."""


async def warm(database: Database, count: int, statement: TextClause = ONE) -> None:
    """Open this many connections at the same time, each for one statement. They are then idle in the pool."""
    together = asyncio.Barrier(count)

    async def one(n: int) -> None:
        async with database.session_scope() as session:
            await session.execute(statement, {"n": n} if statement is INSERT else {})
            await together.wait()

    await asyncio.gather(*(one(n) for n in range(count)))


# ── before the first statement: the loss is not noticed ────────────────────────────────────────────────────────────


def test_backends_terminated_between_scopes_are_not_noticed(any_pg: Place) -> None:
    async def main() -> None:
        async with with_notes(any_pg.url) as database:
            await warm(database, 8)
            kill_all(any_pg)
            async with database.session_scope() as session:
                session.add(Note(n=1))  # with pending objects, only BEGIN can have noticed the loss
            await warm(database, 8)
            assert await notes(database) == [1]
            metrics = database.get_pool_metrics()
            assert metrics["connection_metrics"]["stale_replaced"] >= 8
            # A dead connection in the pool is not a failure of the server.
            assert database.guard.tally.totals().verdicts[FAILURE] == 0
            assert metrics["errors"]["total"] == 0

    run(main)


def test_a_restart_between_scopes_is_not_noticed(pg: Place) -> None:
    async def main() -> None:
        async with with_notes(pg.url, **PATIENT) as database:
            await warm(database, 5)
            pg.server.kill()
            pg.server.start()
            async with database.session_scope() as session:
                await session.execute(INSERT, {"n": 1})
            assert await notes(database) == [1]
            assert database.circuit_breaker_state.value == "healthy"

    run(main)


@pytest.mark.parametrize("commit", ["at the end", "inside"])
def test_a_scope_that_has_sent_nothing_ends_as_a_success_although_its_connection_was_lost(
    pg: Place, commit: str
) -> None:
    """A request that waited for another service while the server restarted, for example: it lost nothing."""

    async def main() -> None:
        async with with_notes(pg.url, pool_size=1, max_overflow=0) as database:
            for readonly in (False, True):
                async with database.session_scope(readonly=readonly) as session:
                    kill_all(pg)
                    if commit == "inside":
                        await session.commit()
                        assert await session.scalar(ONE) == 1
            assert await notes(database) == []
            metrics = database.get_pool_metrics()["connection_metrics"]
            assert (metrics["stale_replaced"], metrics["broken"]) == (2, 0)
            # A statement that failed makes a difference: its caller may rely on the error of COMMIT.
            with pytest.raises((DBAPIError, KooError)):
                async with database.session_scope() as session:
                    with suppress(DBAPIError):
                        await session.execute(text("SELECT 1/0"))
                    kill_all(pg)

    run(main)


@pytest.mark.parametrize("how", ["execute", "scalar", "scalars", "get", "stream"])
def test_the_first_statement_is_repeated_on_a_new_connection(any_pg: Place, how: str) -> None:
    """The server was restarted between BEGIN and the first statement."""

    async def first(session: AsyncSession) -> object:
        if how == "execute":
            return list((await session.execute(SELECT)).scalars())
        if how == "scalar":
            return [await session.scalar(SELECT)]
        if how == "scalars":
            return list((await session.scalars(SELECT)).all())
        if how == "get":
            note = await session.get(Note, 1)
            return [note.n] if note else []
        return [note.n async for note in await session.stream_scalars(select(Note))]

    async def main() -> None:
        async with with_notes(any_pg.url) as database:
            async with database.session_scope() as session:
                await session.execute(INSERT, {"n": 1})
            async with database.session_scope() as session:
                kill_all(any_pg)
                assert await first(session) == [1]
                await session.execute(INSERT, {"n": 2})
            assert await notes(database) == [1, 2]
            assert database.get_pool_metrics()["retries"]["first_statements"] == 1

    run(main)


@pytest.mark.parametrize("how", ["savepoint", "begin", "insert many", "bulk objects", "bulk rows"])
def test_a_savepoint_or_a_bulk_insert_that_comes_first_is_repeated_too(any_pg: Place, how: str) -> None:
    async def first(session: AsyncSession) -> None:
        if how == "savepoint":
            async with session.begin_nested():
                await session.execute(INSERT, [{"n": 1}, {"n": 2}])
        elif how == "begin":
            await session.run_sync(lambda sync: sync.begin(nested=True))
            await session.execute(INSERT, [{"n": 1}, {"n": 2}])
        elif how == "insert many":
            await session.execute(insert(Note), [{"n": 1}, {"n": 2}])
        elif how == "bulk objects":
            await session.run_sync(lambda sync: sync.bulk_save_objects(Note(n=n) for n in (1, 2)))
        else:
            rows = ({"n": n} for n in (1, 2))
            await session.run_sync(lambda sync: sync.bulk_insert_mappings(Note, rows))

    async def main() -> None:
        async with with_notes(any_pg.url) as database:
            async with database.session_scope() as session:
                kill_all(any_pg)
                await first(session)
            assert await notes(database) == [1, 2]
            assert database.get_pool_metrics()["retries"]["first_statements"] == 1

    run(main)


def test_a_savepoint_after_the_first_success_is_not_repeated(pg: Place) -> None:
    async def main() -> None:
        async with with_notes(pg.url) as database:
            with pytest.raises(DBAPIError):
                async with database.session_scope() as session:
                    await session.execute(INSERT, {"n": 1})
                    kill_all(pg)
                    async with session.begin_nested():
                        await session.execute(INSERT, {"n": 2})
            assert await notes(database) == []

    run(main)


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("fault", ["killed", "aged", "distrusted"])
@pytest.mark.parametrize("isolation", [None, "SERIALIZABLE"])
def test_a_dead_or_aged_connection_after_a_commit_inside_is_replaced_unnoticed(
    pg: Place, end: str, fault: str, isolation: str | None
) -> None:
    async def main() -> None:
        clock = StandingClock()
        database = Database(options(pg.url), clock=clock)
        async with database.session_scope() as session:
            await session.run_sync(lambda sync: Base.metadata.create_all(sync.connection()))
        await warm(database, 3)
        async with database.session_scope(isolation=isolation) as session:
            await session.execute(INSERT, {"n": 1})
            await (session.commit() if end == "commit" else session.rollback())
            if fault == "killed":
                kill_all(pg)
            elif fault == "aged":
                clock.now += database.options.pool_recycle_s
            else:
                assert database.connections is not None
                database.connections.records.distrust_all()
            assert (
                await session.scalar(text("SELECT current_setting('transaction_isolation')"))
                == (isolation or "READ COMMITTED").lower()
            )
            await session.execute(INSERT, {"n": 2})
        assert await notes(database) == ([1, 2] if end == "commit" else [2])
        assert database.get_pool_metrics()["errors"]["total"] == 0
        assert_free(database)
        await database.close()

    run(main)


def test_a_scope_waits_for_a_server_that_recovers_in_time(pg: Place) -> None:
    async def main() -> None:
        async with with_notes(pg.url, **PATIENT) as database:
            async with database.session_scope() as session:
                pg.server.kill()
                starting = asyncio.get_running_loop().run_in_executor(None, pg.server.start)
                await session.execute(INSERT, {"n": 1})
                await starting
            assert await notes(database) == [1]

    run(main)


def test_a_scope_left_while_its_first_statement_is_repeated_leaks_nothing(pg: Place) -> None:
    async def main() -> None:
        async with opened(pg.url) as database:
            for turns in range(0, 60, 3):
                with suppress(SQLAlchemyError, KooError):
                    async with database.session_scope() as session:
                        kill_all(pg)
                        forgotten = asyncio.create_task(session.execute(ONE))
                        for _ in range(turns):
                            await asyncio.sleep(0.0005)
                await asyncio.gather(forgotten, return_exceptions=True)
                await until(lambda: database.pool_queue.used == 0)
                database.reset_circuit_breaker()

    run(main)


# ── after the first statement: the loss is raised ─────────────────────────────────────────────────────────────────


def test_nothing_is_repeated_after_the_first_success(pg: Place) -> None:
    async def main() -> None:
        async with with_notes(pg.url) as database:
            with pytest.raises(DBAPIError) as caught:
                async with database.session_scope() as session:
                    await session.execute(INSERT, {"n": 1})
                    kill_all(pg)
                    await session.execute(INSERT, {"n": 2})
            assert caught.value.connection_invalidated
            assert await notes(database) == []
            assert database.guard.tally.totals().verdicts[FAILURE] == 1
            assert database.get_pool_metrics()["retries"]["first_statements"] == 0

    run(main)


def test_nothing_is_repeated_with_pending_objects(pg: Place) -> None:
    """Flushing them is a first statement too, but the rollback before a repeat would change their state."""

    async def main() -> None:
        async with with_notes(pg.url) as database:
            with pytest.raises(DBAPIError):
                async with database.session_scope() as session:
                    session.add(Note(n=1))
                    kill_all(pg)
                    await session.execute(SELECT)
            assert await notes(database) == []

    run(main)


def test_nothing_is_repeated_while_the_block_has_the_connection(pg: Place) -> None:
    async def main() -> None:
        async with with_notes(pg.url) as database:
            with pytest.raises(DBAPIError):
                async with database.session_scope() as session:
                    _ = await session.connection()
                    kill_all(pg)
                    await session.execute(SELECT)

    run(main)


def test_a_lost_connection_counts_once_even_if_the_error_is_caught(pg: Place) -> None:
    async def main() -> None:
        async with opened(pg.url) as database:
            with pytest.raises(KeyError):
                async with database.session_scope() as session:
                    await session.execute(ONE)
                    kill_all(pg)
                    for _ in range(20):
                        with pytest.raises(SQLAlchemyError):
                            await session.execute(ONE)
                    raise KeyError
            assert database.guard.tally.totals().verdicts[FAILURE] == 1
            assert database.guard.breaker.consecutive == 1

    run(main)


def test_a_connection_lost_in_a_savepoint_ends_the_whole_transaction(pg: Place) -> None:
    """Otherwise the session would continue on a new connection, without the work done on the lost one."""

    async def main() -> None:
        async with with_notes(pg.url) as database:
            with pytest.raises(SQLAlchemyError):
                async with database.session_scope() as session:
                    await session.execute(INSERT, {"n": 1})
                    kill_all(pg)
                    with suppress(SQLAlchemyError):
                        async with session.begin_nested():
                            await session.execute(INSERT, {"n": 2})
                    await session.execute(INSERT, {"n": 3})
            assert await notes(database) == []

    run(main)


# ── streamed rows ─────────────────────────────────────────────────────────────────────────────────────────────────


STREAM = text("SELECT i FROM generate_series(1, 5000) i").execution_options(yield_per=50)


def test_a_function_whose_connection_is_lost_between_streamed_rows_is_repeated(any_pg: Place) -> None:
    runs = 0

    async def main() -> None:
        async with opened(any_pg.url) as database:

            async def count(session: AsyncSession) -> int:
                nonlocal runs
                runs += 1
                seen = 0
                async for _ in await session.stream(STREAM):
                    seen += 1
                    if seen == 500 and runs == 1:
                        kill_all(any_pg)
                return seen

            assert await database.transaction(count) == 5000
            assert runs == 2
            assert database.guard.tally.totals().verdicts[FAILURE] == 1

    run(main)


def test_asyncpgs_error_in_a_stream_is_translated_to_sqlalchemys(
    pg: Place,
) -> None:
    if pg.driver != "asyncpg":
        pytest.skip("SQLAlchemy translates psycopg's errors everywhere")

    async def main() -> None:
        async with opened(pg.url) as database:
            with pytest.raises(DBAPIError) as caught:
                async with database.session_scope() as session:
                    async for _ in await session.stream(STREAM):
                        kill_all(pg)
                        assert database.connections is not None
                        (record,) = database.connections.records.by_connection.values()
                        await until(lambda: record.is_closed)  # noqa: B023 - used immediately
            assert caught.value.connection_invalidated
            assert database.guard.tally.totals().verdicts[FAILURE] == 1

    run(main)


def test_a_fetch_ends_at_the_deadline_also_on_the_server(pg: Place) -> None:
    async def main() -> None:
        async with opened(pg.url) as database:
            deadline = asyncio.get_running_loop().time() + 0.3
            with pytest.raises(DatabaseTimeout):
                async with database.make_scope(deadline=deadline) as session:
                    async for _ in await session.stream(text("SELECT pg_sleep(60)")):
                        pass
            # The server stopped the statement as requested, so its connection is still usable.
            assert database.guard.tally.totals().verdicts[FAILURE] == 0
            assert database.get_pool_metrics()["connection_metrics"]["closed"] == 0

    run(main)


def test_a_deadline_between_two_fetches_is_raised_by_the_next_one(pg: Place) -> None:
    async def main() -> None:
        async with opened(pg.url) as database:
            expired = asyncio.Event()
            asyncio.get_running_loop().call_later(0.3, expired.set)
            deadline = asyncio.get_running_loop().time() + 0.2
            with pytest.raises(DatabaseTimeout):
                async with database.make_scope(deadline=deadline) as session:
                    async for _ in await session.stream(STREAM):
                        await expired.wait()

    run(main)


def test_the_time_of_a_fetch_is_charged_to_the_database(pg: Place) -> None:
    async def main() -> None:
        clock = StandingClock()
        database = Database(options(pg.url), clock=clock)

        async def pass_while_asleep() -> None:
            await until_asleep(pg)
            clock.now += database.options.slow_call_s

        async with database.session_scope() as session:
            watching = asyncio.create_task(pass_while_asleep())
            async for _ in await session.stream(text("SELECT pg_sleep(1)")):
                await watching
        assert database.guard.tally.totals().slow == 1
        await database.close()

    run(main)


def test_two_tasks_that_fetch_from_one_session_get_a_clear_error(pg: Place) -> None:
    async def main() -> None:
        async with opened(pg.url) as database, database.session_scope() as session:
            rows = await session.stream(STREAM)
            results = await asyncio.gather(rows.fetchmany(200), session.execute(ONE), return_exceptions=True)
            assert [isinstance(one, KooError) for one in results] == [False, True]

    run(main)


# ── at COMMIT ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("when", "rows"), [("before", []), ("after", [1])])
def test_a_lost_commit_is_raised_once_and_never_repeated(
    any_pg: Place, when: Literal["before", "after"], rows: list[int]
) -> None:
    runs = 0

    async def insert(session: AsyncSession) -> None:
        nonlocal runs
        runs += 1
        await session.execute(INSERT, {"n": 1})

    async def main() -> None:
        async with proxied(any_pg.server) as proxy:
            url = through(proxy, any_pg.server, any_pg.driver, any_pg.database)
            async with with_notes(url) as database:
                proxy.cut_commit(when)
                with pytest.raises(CommitOutcomeUnknown) as caught:
                    await database.transaction(insert, max_retries=5)
                assert runs == 1 and proxy.cuts == 1
                assert isinstance(caught.value.__cause__, Exception)
                assert await notes(database) == rows
                metrics = database.get_pool_metrics()
                assert metrics["errors"]["unknown_commits"] == 1
                assert database.guard.tally.totals().verdicts[FAILURE] == 1

    run(main)


@pytest.mark.parametrize("exactly_once", ["off", "marker"])
def test_a_loss_that_is_known_before_commit_is_sent_leaves_nothing_in_doubt(
    pg: Place, exactly_once: str
) -> None:
    """The server ended the connection while the block did something else, so the function may run again."""
    clock, runs = StandingClock(), 0

    async def main() -> None:
        async with opened(pg.url, clock=clock, exactly_once=exactly_once) as database:
            if exactly_once == "marker":
                await database.init_exactly_once()

            async def insert(session: AsyncSession) -> None:
                nonlocal runs
                runs += 1
                await session.execute(text(f"CREATE TABLE run_{runs} (n int)"))
                if runs == 1:
                    kill_all(pg)
                    assert database.connections is not None
                    records = database.connections.records.by_connection.values()
                    await until(lambda: all(record.is_hung_up for record in records))
                    clock.advance(1.0)

            await database.transaction(insert)
            metrics = database.get_pool_metrics()
            assert (runs, metrics["errors"]["unknown_commits"]) == (2, 0)
            assert database.metrics.resolved_commits == 0, "nothing had to be looked up"
            assert database.guard.tally.totals().verdicts[FAILURE] == 1
        found = pg.server.sql("SELECT relname FROM pg_class WHERE relname ~ '^run_'", database=pg.database)
        assert found == "run_2"

    run(main)


def test_a_transaction_that_idles_longer_than_its_role_may_is_not_repeated_and_not_the_servers_failure(
    pg: Place,
) -> None:
    """asyncpg discards the server's reason, so the time that the block has idled is compared with the role's limit."""
    clock, runs = StandingClock(), 0
    pg.server.sql("DROP ROLE IF EXISTS hasty")
    pg.server.sql("CREATE ROLE hasty LOGIN PASSWORD 'koo-test'")
    pg.server.sql("ALTER ROLE hasty SET idle_in_transaction_session_timeout = '100ms'")

    async def main() -> None:
        async with opened(pg.url.replace("postgres:koo-test@", "hasty:koo-test@"), clock=clock) as database:

            async def idle(session: AsyncSession) -> None:
                nonlocal runs
                runs += 1
                await session.execute(ONE)
                assert database.connections is not None
                (record,) = database.connections.records.by_connection.values()
                await until(lambda: record.is_hung_up)
                clock.advance(0.2)
                await session.execute(ONE)

            with pytest.raises(DBAPIError):
                await database.transaction(idle)
            assert runs == 1
            assert database.guard.tally.totals().verdicts[FAILURE] == 0
            assert database.get_pool_metrics()["connection_metrics"]["broken"] == 0

    run(main)


def test_a_lost_commit_is_of_unknown_outcome_although_the_block_has_idled_longer_than_its_role_may(
    pg: Place,
) -> None:
    """The block may have lifted the limit itself, or a pooler may have ignored it."""
    clock = StandingClock()
    pg.server.sql("DROP ROLE IF EXISTS patient")
    pg.server.sql("CREATE ROLE patient SUPERUSER LOGIN PASSWORD 'koo-test'")
    pg.server.sql("ALTER ROLE patient SET idle_in_transaction_session_timeout = '10s'")

    async def main() -> None:
        async with proxied(pg.server) as proxy:
            url = through(proxy, pg.server, pg.driver, pg.database)
            async with with_notes(url.replace("postgres:", "patient:"), clock=clock) as database:
                with pytest.raises(CommitOutcomeUnknown):
                    async with database.session_scope() as session:
                        await session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
                        await session.execute(INSERT, {"n": 1})
                        clock.advance(11.0)
                        proxy.cut_commit("after")
                assert await notes(database) == [1]

    run(main)


def test_a_commit_without_a_response_ends_after_the_deadline_and_the_cleanup_time(pg: Place) -> None:
    async def main() -> None:
        async with proxied(pg.server) as proxy:
            url = through(proxy, pg.server, pg.driver, pg.database)
            async with with_notes(url, cleanup_timeout_s=0.2) as database:
                proxy.cut_commit("hold")
                loop = asyncio.get_running_loop()
                with pytest.raises(CommitOutcomeUnknown):
                    async with database.make_scope(deadline=loop.time() + 0.3) as session:
                        await session.execute(INSERT, {"n": 1})
                assert_free(database)

    run(main)


def test_a_lost_commit_inside_the_block_is_raised_where_it_was_sent(pg: Place) -> None:
    async def main() -> None:
        async with proxied(pg.server) as proxy:
            url = through(proxy, pg.server, pg.driver, pg.database)
            async with with_notes(url) as database:
                proxy.cut_commit("after")
                async with database.session_scope() as session:
                    await session.execute(INSERT, {"n": 1})
                    with pytest.raises(CommitOutcomeUnknown):
                        await session.commit()
                    await session.rollback()
                assert database.get_pool_metrics()["errors"]["unknown_commits"] == 1
                assert "commit_unknown" in database.get_health()["conditions"], (
                    "until an operator has checked it"
                )
                assert await notes(database) == [1]

    run(main)


def test_a_cancellation_during_a_lost_commit_is_raised_with_the_unknown_outcome_as_cause(pg: Place) -> None:
    async def main() -> None:
        async with proxied(pg.server) as proxy:
            url = through(proxy, pg.server, pg.driver, pg.database)
            async with with_notes(url, cleanup_timeout_s=0.2) as database:
                proxy.cut_commit("hold")
                deadline = asyncio.get_running_loop().time() + 0.5

                async def insert() -> None:
                    async with database.make_scope(deadline=deadline) as session:
                        await session.execute(INSERT, {"n": 1})

                inserting = asyncio.create_task(insert())
                await until(lambda: proxy.cuts == 1)
                inserting.cancel()
                with pytest.raises(asyncio.CancelledError) as caught:
                    await inserting
                assert isinstance(caught.value.__cause__, CommitOutcomeUnknown)
                assert database.get_pool_metrics()["errors"]["unknown_commits"] == 1
                assert_free(database)

    run(main)


def test_a_lost_commit_of_a_read_only_scope_is_not_in_doubt(pg: Place) -> None:
    async def main() -> None:
        async with proxied(pg.server) as proxy:
            url = through(proxy, pg.server, pg.driver, pg.database)
            async with opened(url) as database:
                async with database.session_scope() as session:
                    await session.execute(ONE)
                proxy.cut_commit("before")
                with pytest.raises(DBAPIError):
                    async with database.session_scope(readonly=True) as session:
                        await session.execute(ONE)

    run(main)


# ── silent servers ────────────────────────────────────────────────────────────────────────────────────────────────


async def seconds_of_a_black_hole(pg: Place, at: str) -> float:
    """The seconds that a scope takes beyond its deadline if the server stops responding at `at`."""
    async with proxied(pg.server) as proxy:
        url = through(proxy, pg.server, pg.driver, pg.database)
        async with with_notes(url, cleanup_timeout_s=0.3) as database:
            loop = asyncio.get_running_loop()
            deadline = loop.time() + 0.5
            with pytest.raises((DatabaseTimeout, CommitOutcomeUnknown)):
                async with database.make_scope(deadline=deadline) as session:
                    await session.execute(INSERT, {"n": 1})
                    if at == "statement":
                        proxy.black_hole()
                        await session.execute(INSERT, {"n": 2})
                    elif at == "stream":
                        rows = await session.stream(text("SELECT generate_series(1, 1000000)"))
                        proxy.black_hole()
                        async for _ in rows:
                            pass
                    elif at == "commit":
                        proxy.black_hole()
                    else:
                        proxy.black_hole()
                        await asyncio.sleep(1.0)
            took_s = loop.time() - deadline
            assert_free(database)
            proxy.reset_all()
            proxy.heal()
            return took_s


@pytest.mark.parametrize("at", ["statement", "stream", "commit", "idle"])
def test_a_scope_on_a_silent_server_ends_within_its_deadline_and_the_cleanup_time(pg: Place, at: str) -> None:
    async def main() -> None:
        # 0.3 s to clean up (twice: to stop the statement, to roll back); the bound leaves room for a slow machine,
        # and is far below what the drivers take without koo (2 s, 10 s, never).
        assert await seconds_of_a_black_hole(pg, at) < 1.5

    run(main)


def test_a_rollback_on_a_silent_server_is_bounded_too(pg: Place) -> None:
    async def main() -> None:
        async with proxied(pg.server) as proxy:
            url = through(proxy, pg.server, pg.driver, pg.database)
            async with with_notes(url, cleanup_timeout_s=0.3) as database:
                mine = KeyError("mine")
                loop = asyncio.get_running_loop()
                began = 0.0
                with pytest.raises(KeyError) as caught:
                    async with database.session_scope() as session:
                        await session.execute(INSERT, {"n": 1})
                        proxy.black_hole()
                        began = loop.time()
                        raise mine
                assert caught.value is mine
                assert loop.time() - began < 1.5
                assert_free(database)
                proxy.reset_all()
                proxy.heal()

    run(main)


def test_a_statement_cancelled_on_a_silent_server_ends_within_the_cleanup_time(pg: Place) -> None:
    async def main() -> None:
        async with proxied(pg.server) as proxy:
            url = through(proxy, pg.server, pg.driver, pg.database)
            async with with_notes(url, cleanup_timeout_s=0.3) as database:
                task = asyncio.create_task(asleep(database, first=ONE))
                await until_asleep(pg)
                proxy.black_hole()
                loop = asyncio.get_running_loop()
                began = loop.time()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert (
                    loop.time() - began < 3.5
                )  # without koo: 2 s with asyncpg (SQLAlchemy's limit), 10 s with psycopg
                assert_free(database)
                proxy.reset_all()
                proxy.heal()

    run(main)


async def asleep(database: Database, first: object = ONE) -> None:
    async with database.session_scope() as session:
        await session.execute(ONE)
        await session.execute(text("SELECT pg_sleep(60)"))


def test_idle_connections_dropped_by_a_firewall_are_replaced_in_time(pg: Place) -> None:
    """The firewall drops their packets: nothing is refused, and nothing responds."""

    async def main() -> None:
        async with proxied(pg.server) as proxy:
            url = through(proxy, pg.server, pg.driver, pg.database)
            changes = {"pool_timeout_s": 1.5, "validate_after_idle_s": 0.0, "cleanup_timeout_s": 0.2}
            async with with_notes(url, **changes) as database:
                await warm(database, 4)
                proxy.forget()
                async with database.session_scope() as session:
                    await session.execute(INSERT, {"n": 1})
                # The first one cost time. All others of that age are discarded without being tried.
                assert database.connections is not None and database.connections.records.generation == 1
                await warm(database, 4)
                # One BEGIN. (asyncpg also sends its Terminate message when it is cut off.)
                assert proxy.swallowed == (1 if pg.driver == "psycopg" else 4)
                assert await notes(database) == [1]
                assert database.guard.tally.totals().verdicts[FAILURE] == 0

    run(main)


def test_a_deadline_stops_the_statement_also_on_the_server(any_pg: Place) -> None:
    async def main() -> None:
        async with opened(any_pg.url) as database:
            loop = asyncio.get_running_loop()
            with pytest.raises(DatabaseTimeout):
                async with database.make_scope(deadline=loop.time() + 0.2) as session:
                    await session.execute(ONE)
                    await session.execute(text("SELECT pg_sleep(60)"))
            sleeping = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
                f" AND datname = '{any_pg.database}'"
            )
            await until(lambda: any_pg.server.sql(sleeping) == "0")
            # A server that stops the statement as requested is healthy, and its connection is still usable.
            assert database.guard.tally.totals().verdicts[FAILURE] == 0
            assert database.get_pool_metrics()["connection_metrics"]["closed"] == 0

    run(main)


def test_an_idle_transaction_loses_its_locks_at_the_deadline(pg: Place) -> None:
    """The user's own await continues. The transaction ends, so others no longer wait for its locks."""

    async def main() -> None:
        async with with_notes(pg.url) as database:
            loop = asyncio.get_running_loop()
            locked, remembered = asyncio.Event(), asyncio.Event()

            async def forgetful() -> str:
                async with database.make_scope(deadline=loop.time() + 0.5) as session:
                    await session.execute(text("LOCK TABLE notes"))
                    locked.set()
                    await remembered.wait()  # this is not cancelled
                    return "it went on"

            forgetting = asyncio.create_task(forgetful())
            await locked.wait()
            async with database.session_scope() as session:
                await session.execute(INSERT, {"n": 1})
            assert not forgetting.done()
            remembered.set()
            with pytest.raises(DatabaseTimeout):
                await forgetting
            assert await notes(database) == [1]

    run(main)


# ── kill -9 under load ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_server_killed_and_restarted_under_load_loses_no_acknowledged_insert(any_pg: Place) -> None:
    """Every acknowledged insert is present exactly once, and traffic resumes automatically."""

    async def main() -> None:
        breaker = BreakerOptions(failure_threshold=5, recovery_s=1.0, success_threshold=2)
        async with with_notes(any_pg.url, breaker=breaker, retry=PATIENT["retry"]) as database:
            acknowledged: list[int] = []
            unknown: list[int] = []
            counter = iter(range(1_000_000))
            stop = asyncio.Event()

            async def insert(session: AsyncSession, n: int) -> None:
                await session.execute(ONE)
                await session.execute(INSERT, {"n": n})

            async def work() -> None:
                while not stop.is_set():
                    n = next(counter)
                    try:
                        await database.transaction(insert, n)
                        acknowledged.append(n)
                    except CommitOutcomeUnknown:
                        unknown.append(n)
                    except (DBAPIError, KooError):
                        await asyncio.sleep(0.01)

            workers = [asyncio.create_task(work()) for _ in range(10)]
            loop = asyncio.get_running_loop()
            for _ in range(2):
                await more(acknowledged)
                await loop.run_in_executor(None, any_pg.server.kill)
                await until(lambda: database.circuit_breaker_state.value != "healthy")
                await loop.run_in_executor(None, any_pg.server.start)
                await more(acknowledged)
            stop.set()
            await asyncio.gather(*workers)
            stored = await notes(database)
            assert len(stored) == len(set(stored))
            assert set(acknowledged) <= set(stored)
            assert set(stored) <= set(acknowledged) | set(unknown)
            assert database.circuit_breaker_state.value == "healthy"

    run(main)


async def more(acknowledged: list[int]) -> None:
    enough = len(acknowledged) + 50
    await until(lambda: len(acknowledged) > enough, within_s=20)


def test_calls_to_a_server_that_is_gone_are_refused_immediately_after_a_few_failures(pg: Place) -> None:
    async def main() -> None:
        once = RetryOptions(attempts_max=1)
        async with opened(pg.url, retry=once) as database:
            async with database.session_scope() as session:
                await session.execute(ONE)
            pg.server.kill()
            for _ in range(5):
                with pytest.raises(DatabaseUnavailable):
                    async with database.session_scope():
                        pass
            assert database.circuit_breaker_state.value == "circuit_open"
            with pytest.raises(DatabaseUnavailable, match="circuit is open") as caught:
                async with database.session_scope():
                    pass
            # A scope may be admitted much earlier, but that is known only once the server responds.
            assert caught.value.retry_after_s is not None and 50 < caught.value.retry_after_s <= 72
            assert database.reset_circuit_breaker() is True
            pg.server.start()
            async with database.session_scope() as session:
                await session.execute(ONE)
            assert database.circuit_breaker_state.value == "healthy"

    run(main)


def test_an_abandoned_begin_sends_nothing_more_to_a_silent_server(pg: Place) -> None:
    """An orderly close, or a cancel request, would use up the rest of the caller's time."""

    async def main() -> None:
        async with proxied(pg.server) as proxy:
            url = through(proxy, pg.server, pg.driver, pg.database)
            changes = {
                "pool_timeout_s": 0.4,
                "cleanup_timeout_s": 60.0,
                "retry": RetryOptions(attempts_max=1),
            }
            async with opened(url, **changes) as database:
                await warm(database, 1)
                proxy.black_hole()
                began = time.monotonic()
                with pytest.raises(DatabaseTimeout) as caught:
                    async with database.session_scope():
                        pass
                assert caught.value.kind is Kind.TIMEOUT
                assert database.metrics.aborted == 1
                assert time.monotonic() - began < 30.0, (
                    "psycopg waits for its cancellation for as long as it is allowed to"
                )
                proxy.reset_all()
                proxy.heal()

    run(main)
