"""The meaning of each error: the table, and a matrix of real errors from real servers with both drivers.

Each row is provoked through a real scope, and judged as the scope judges it.
"""

# ruff: noqa: PT012 - these tests are about what is raised inside a scope and what leaves it

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from koo.database.database import Database
from koo.database.faults import ScopeStage, explain
from koo.database.scope import SessionScope
from koo.errors import CommitOutcomeUnknown, DatabaseError, DatabaseTimeout, DatabaseUnavailable, Kind
from koo.options import RetryOptions
from koo.policies.verdict import FAILURE, NEUTRAL
from koo.sqlstates import SQLITE_CODES, SQLSTATES, Meaning
from koo.testing.polling import until
from koo.testing.postgres import PostgresServer
from tests.database.conftest import Place
from tests.database.support import (
    INSERT,
    ONE,
    assert_free,
    notes,
    opened,
    options,
    proxied,
    run,
    through,
    with_notes,
)

# ── the table ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Told(Exception):
    """An error as a driver would raise it."""

    def __init__(self, **facts: object) -> None:
        super().__init__("told")
        self.__dict__.update(facts)


@pytest.mark.parametrize("code", sorted(SQLSTATES))
def test_each_sqlstate_in_the_table_is_recognised(code: str) -> None:
    state = code if len(code) == 5 else f"{code}0ZZ"
    assert explain(Told(sqlstate=state, severity_en="FATAL")) is SQLSTATES[code]


@pytest.mark.parametrize("code", sorted(SQLITE_CODES))
def test_each_sqlite_code_in_the_table_is_recognised_in_its_extended_form_too(code: int) -> None:
    assert explain(Told(sqlite_errorcode=code)) is SQLITE_CODES[code]
    if code < 256:
        assert explain(Told(sqlite_errorcode=code | 90 << 8)) is SQLITE_CODES[code]


def test_an_option_that_asyncpg_refuses_is_the_same_mistake_without_sqlalchemys_error_around_it() -> None:
    """SQLAlchemy 2.0 and `rotate` raise asyncpg's own errors for connects."""
    error = asyncpg.exceptions.ClientConfigurationError("`sslmode` parameter must be one of: disable, allow")
    assert explain(error, ScopeStage.CONNECT).kind is Kind.NOT_CONFIGURED


def test_busy_snapshot_is_contention() -> None:
    assert explain(Told(sqlite_errorcode=517)).kind is Kind.CONTENTION


def test_each_kind_is_counted_and_repeated_as_documented() -> None:
    """Integrity errors: not repeated, not counted. Lost connections: both. Conflicts: repeated, not counted."""
    for meaning in {*SQLSTATES.values(), *SQLITE_CODES.values()}:
        if meaning.kind is Kind.INTEGRITY or meaning.kind is Kind.INVALID_REQUEST:
            assert not meaning.repeatable and meaning.verdict is NEUTRAL
        if meaning.kind is Kind.CONTENTION:
            assert meaning.verdict is NEUTRAL
        if meaning.kind is Kind.OUTCOME_UNKNOWN:
            assert not meaning.repeatable
        if meaning.kind in (Kind.AUTH, Kind.NOT_FOUND, Kind.SERVER_ERROR):
            assert not meaning.repeatable and meaning.verdict is FAILURE


def test_an_unknown_code_blames_the_statement_and_an_unknown_error_is_neutral() -> None:
    assert explain(Told(sqlstate="ZZ123")).kind is Kind.INVALID_REQUEST
    assert explain(ValueError("mine")).verdict is NEUTRAL
    assert explain(KeyboardInterrupt()).kind is Kind.CANCELLED


# ── statements ────────────────────────────────────────────────────────────────────────────────────────────────────

Provoke = Callable[[Database, AsyncSession, Place], Awaitable[None]]


async def serialization(database: Database, session: AsyncSession, place: Place) -> None:
    await session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
    await session.execute(text("SELECT * FROM notes"))
    async with database.session_scope() as other:
        await other.execute(text("UPDATE notes SET words = 'theirs' WHERE n = 1"))
    await session.execute(text("UPDATE notes SET words = 'mine' WHERE n = 1"))


async def deadlock(database: Database, session: AsyncSession, place: Place) -> None:
    update = text("UPDATE notes SET words = 'x' WHERE n = :n")
    async with database.session_scope() as other:
        # Only `session` checks for a deadlock in time, so it is the one that gets the error.
        await other.execute(text("SET LOCAL deadlock_timeout = '60s'"))
        await session.execute(text("SET LOCAL deadlock_timeout = '10ms'"))
        await session.execute(update, {"n": 1})
        await other.execute(update, {"n": 2})
        waiting = asyncio.create_task(other.execute(update, {"n": 1}))
        await asyncio.sleep(0.05)
        try:
            await session.execute(update, {"n": 2})
        finally:
            place.server.sql("SELECT 1", place.database)
            await session.rollback()
            await waiting


async def statement_timeout(database: Database, session: AsyncSession, place: Place) -> None:
    await session.execute(text("SET LOCAL statement_timeout = '20ms'"))
    await session.execute(text("SELECT pg_sleep(10)"))


async def lock_timeout(database: Database, session: AsyncSession, place: Place) -> None:
    async with database.session_scope() as other:
        await other.execute(text("LOCK TABLE notes"))
        await session.execute(text("SET LOCAL lock_timeout = '20ms'"))
        await session.execute(INSERT, {"n": 9})


async def read_only(database: Database, session: AsyncSession, place: Place) -> None:
    await session.execute(text("SET TRANSACTION READ ONLY"))
    await session.execute(INSERT, {"n": 9})


async def duplicate(database: Database, session: AsyncSession, place: Place) -> None:
    await session.execute(INSERT, {"n": 1})


async def missing_table(database: Database, session: AsyncSession, place: Place) -> None:
    await session.execute(text("SELECT * FROM nowhere"))


async def wrong_parameter(database: Database, session: AsyncSession, place: Place) -> None:
    await session.execute(text("SELECT CAST(:n AS integer)"), {"n": "no number"})


async def failed_transaction(database: Database, session: AsyncSession, place: Place) -> None:
    with suppress(DBAPIError):
        await session.execute(text("SELECT * FROM nowhere"))
    await session.execute(ONE)


async def terminated_idle(database: Database, session: AsyncSession, place: Place) -> None:
    await session.execute(ONE)
    kill_all(place)
    await session.execute(ONE)


async def terminated_busy(database: Database, session: AsyncSession, place: Place) -> None:
    await session.execute(ONE)  # a lost first statement would be repeated unnoticed
    asleep = asyncio.create_task(session.execute(text("SELECT pg_sleep(30)")))
    await until_asleep(place)
    kill_all(place)
    await asleep


async def idle_in_transaction(database: Database, session: AsyncSession, place: Place) -> None:
    await session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '20ms'"))
    await until(lambda: backends(place) == 0)
    await session.execute(ONE)


def kill_all(place: Place) -> None:
    place.server.sql(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{place.database}'"
    )


def backends(place: Place) -> int:
    return int(place.server.sql(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{place.database}'"))


async def until_asleep(place: Place) -> None:
    asleep = (
        f"SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = '{place.database}'"
    )
    await until(lambda: place.server.sql(asleep) == "1")


C, N = FAILURE, NEUTRAL
MATRIX: list[tuple[Provoke, Kind, object, bool]] = [
    (serialization, Kind.CONTENTION, N, True),
    (deadlock, Kind.CONTENTION, N, True),
    (statement_timeout, Kind.TIMEOUT, N, False),
    (lock_timeout, Kind.CONTENTION, N, False),
    (read_only, Kind.READ_ONLY, N, False),
    (duplicate, Kind.INTEGRITY, N, False),
    (missing_table, Kind.INVALID_REQUEST, N, False),
    (wrong_parameter, Kind.INVALID_REQUEST, N, False),
    (failed_transaction, Kind.INVALID_REQUEST, N, False),
    (terminated_idle, Kind.CONNECTION, C, True),
    (terminated_busy, Kind.CONNECTION, C, True),
]


@pytest.mark.parametrize(
    ("provoke", "kind", "verdict", "repeatable"), MATRIX, ids=lambda one: getattr(one, "__name__", "")
)
def test_each_error_is_judged_as_the_matrix_says(
    any_pg: Place, provoke: Provoke, kind: Kind, verdict: object, repeatable: bool
) -> None:
    async def main() -> None:
        async with with_notes(any_pg.url) as database:
            async with database.session_scope() as session:
                await session.execute(INSERT, [{"n": 1}, {"n": 2}])
            before = database.guard.tally.totals().verdicts[FAILURE]
            error, meaning = await judged(database, provoke, any_pg)
            if provoke is read_only:
                # koo's own error, which says when to come back. Its cause is the driver's error.
                assert isinstance(error, DatabaseError)
                assert getattr(error.__cause__, "sqlstate", None) == "25006"
                assert (error.kind, error.retry_after_s) == (Kind.READ_ONLY, 1.0)
            else:
                assert isinstance(error, DBAPIError)
            assert (meaning.kind, meaning.verdict, meaning.repeatable) == (kind, verdict, repeatable)
            after = database.guard.tally.totals().verdicts[FAILURE]
            assert after - before == (verdict is FAILURE)
            await works(database)

    run(main)


async def judged(database: Database, provoke: Provoke, place: Place) -> tuple[BaseException, Meaning]:
    scope: SessionScope = database.session_scope()
    with pytest.raises(Exception) as caught:
        async with scope as session:
            await provoke(database, session, place)
    meaning = scope.transcript.meaning_of(caught.value)
    assert meaning is not None
    return caught.value, meaning


async def works(database: Database) -> None:
    """Assert that every slot of the pool is immediately usable again."""

    async def one() -> None:
        async with database.session_scope() as session:
            assert await session.scalar(ONE) == 1

    await asyncio.gather(*(one() for _ in range(database.pool_queue.limit)))
    assert_free(database)


def test_an_idle_transaction_that_the_server_ended_is_not_repeated(any_pg: Place) -> None:
    """asyncpg cannot always distinguish it from a lost connection; psycopg can. With neither driver is it a success."""

    async def main() -> None:
        async with with_notes(any_pg.url) as database:
            _, meaning = await judged(database, idle_in_transaction, any_pg)
            if any_pg.driver == "psycopg":
                assert (meaning.kind, meaning.repeatable) == (Kind.TIMEOUT, False)
            else:
                seen = (meaning.kind, meaning.repeatable)
                assert seen in {(Kind.CONNECTION, True), (Kind.TIMEOUT, False)}
            await works(database)

    run(main)


def test_a_reset_in_the_middle_of_a_statement_is_a_lost_connection(any_pg: Place) -> None:
    async def main() -> None:
        async with proxied(any_pg.server) as proxy:
            url = through(proxy, any_pg.server, any_pg.driver, any_pg.database)
            async with opened(url) as database:
                scope = database.session_scope()
                with pytest.raises(DBAPIError) as caught:
                    async with scope as session:
                        await session.execute(ONE)
                        asleep = asyncio.create_task(session.execute(text("SELECT pg_sleep(30)")))
                        await until_asleep(any_pg)
                        proxy.reset_all()
                        await asleep
                meaning = scope.transcript.meaning_of(caught.value)
                assert meaning is not None and meaning.kind is Kind.CONNECTION and meaning.repeatable
                await works(database)

    run(main)


def test_a_reset_at_commit_leaves_the_outcome_unknown(any_pg: Place) -> None:
    async def main() -> None:
        async with proxied(any_pg.server) as proxy:
            url = through(proxy, any_pg.server, any_pg.driver, any_pg.database)
            async with with_notes(url) as database:
                proxy.cut_commit("before")
                with pytest.raises(CommitOutcomeUnknown) as caught:
                    async with database.session_scope() as session:
                        await session.execute(INSERT, {"n": 1})
                assert isinstance(caught.value.__cause__, Exception)
                assert await notes(database) == []

    run(main)


# ── connects that fail ────────────────────────────────────────────────────────────────────────────────────────────


async def refused_entry(url: str, **changes: object) -> DatabaseUnavailable:
    """The error with which a scope is refused, and its original cause."""
    async with opened(url, **changes) as database:
        with pytest.raises(DatabaseUnavailable) as caught:
            async with database.session_scope():
                pytest.fail("the block must not begin")
        assert caught.value.__cause__ is not None
        assert "koo-test" not in str(caught.value) and "127.0.0.1" not in str(caught.value)
        assert database.guard.tally.totals().verdicts[FAILURE] == caught.value.attempts
    return caught.value


def free_port() -> int:
    with socket.socket() as wire:
        wire.bind(("127.0.0.1", 0))
        port: int = wire.getsockname()[1]
        return port


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_refused_connection_is_retried_and_then_raised(driver: str) -> None:
    async def main() -> None:
        error = await refused_entry(f"postgresql+{driver}://u:koo-test@127.0.0.1:{free_port()}/d")
        assert error.kind is Kind.CONNECTION and error.attempts == 4
        assert "refuses connections" in error.reason and error.retry_after_s

    run(main)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_host_that_does_not_exist_is_reported(driver: str) -> None:
    async def main() -> None:
        error = await refused_entry(f"postgresql+{driver}://u:koo-test@no-such-host.invalid/d")
        assert error.kind is Kind.CONNECTION and "host name" in error.reason

    run(main)


def test_a_connect_to_a_silent_server_ends_within_the_pool_timeout(pg: Place) -> None:
    async def main() -> None:
        async with proxied(pg.server) as proxy:
            proxy.black_hole()
            loop = asyncio.get_running_loop()
            began = loop.time()
            url = through(proxy, pg.server, pg.driver, pg.database)
            error = await refused_entry(url, pool_timeout_s=0.4, cleanup_timeout_s=0.2)
            assert loop.time() - began < 5.0
            assert isinstance(error, DatabaseTimeout) and error.kind is Kind.TIMEOUT
            assert "0.4 s" in error.reason

    run(main)


def test_a_database_that_does_not_exist_is_reported(any_pg: Place) -> None:
    async def main() -> None:
        error = await refused_entry(any_pg.server.url(any_pg.driver, "nowhere"))
        assert error.kind is Kind.NOT_FOUND and error.attempts == 1 and error.retry_after_s is None

    run(main)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_wrong_passwords_unknown_users_and_a_full_server_are_told_apart(driver: str) -> None:
    settings = {"max_connections": 5, "superuser_reserved_connections": 1}
    with PostgresServer(18, auth="scram-sha-256", settings=settings) as server:

        async def main() -> None:
            right = server.url("psycopg" if driver == "psycopg" else "asyncpg")
            for wrong in (
                right.replace("koo-test@", "koo-wrong@"),
                right.replace("postgres:koo", "nobody:koo"),
                right.replace(":koo-test@", "@"),
            ):
                error = await refused_entry(wrong)
                assert error.kind is Kind.AUTH and error.attempts == 1
                assert "koo-wrong" not in str(error)
            server.sql("CREATE ROLE plain LOGIN PASSWORD 'koo-test'")
            error = await refused_by_a_full_server(right.replace("postgres:koo", "plain:koo"))
            assert error.kind is Kind.OVERLOADED

        run(main)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@pytest.mark.parametrize(
    ("options_psycopg", "options_asyncpg", "kind", "said"),
    [
        ("no_such=hunter2", "no_such=hunter2", Kind.NOT_CONFIGURED, "does not know the option no_such"),
        ("sslmode=hunter2", "ssl=hunter2", Kind.NOT_CONFIGURED, "an option in its URL"),
        ("ssl=require", "sslmode=require", Kind.NOT_CONFIGURED, "does not know the option ssl"),
        ("sslmode=require", "ssl=require", Kind.CONNECTION, "does not support TLS"),
    ],
)
def test_an_invalid_option_in_the_url_raises(
    pg: Place, driver: str, options_psycopg: str, options_asyncpg: str, kind: Kind, said: str
) -> None:
    """The option for TLS is `ssl` in asyncpg and `sslmode` in libpq: using the wrong one must raise."""

    async def main() -> None:
        url = pg.server.url("psycopg" if driver == "psycopg" else "asyncpg", pg.database)
        error = await refused_entry(f"{url}?{options_psycopg if driver == 'psycopg' else options_asyncpg}")
        assert error.kind is kind and said in error.reason and "hunter2" not in str(error)

    run(main)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_foreign_server_on_the_port_is_not_a_refused_password(driver: str) -> None:
    async def speak_http(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def main() -> None:
        async with await asyncio.start_server(speak_http, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            error = await refused_entry(f"postgresql+{driver}://u:koo-test@127.0.0.1:{port}/d")
            assert error.kind is Kind.CONNECTION

    run(main)


async def refused_by_a_full_server(url: str) -> DatabaseUnavailable:
    """The error of a pool without a connection, while another holds all that the server allows."""
    async with AsyncExitStack() as scopes:
        holder = await scopes.enter_async_context(opened(url))
        for _ in range(4):
            session = await scopes.enter_async_context(holder.session_scope())
            await session.execute(ONE)
        return await refused_entry(url, retry=RetryOptions(attempts_max=1))


def test_a_file_that_is_not_a_database_and_a_folder_that_cannot_be_created_are_reported(
    tmp_path: object,
) -> None:
    async def main() -> None:
        nonsense = f"{tmp_path}/nonsense.db"
        with open(nonsense, "w") as file:  # noqa: ASYNC230, PTH123
            file.write("this is no database, and long enough to be read as one" * 100)
        async with opened(f"sqlite:///{nonsense}") as database:
            with pytest.raises((DatabaseUnavailable, DBAPIError)) as caught:
                async with database.session_scope() as session:
                    await session.execute(text("SELECT * FROM sqlite_master"))
            assert explain(caught.value.__cause__ or caught.value, ScopeStage.BODY).verdict is FAILURE
        await refused_folder(f"sqlite:///{nonsense}/below/test.db")

    run(main)


async def refused_folder(url: str) -> None:
    database = Database(options(url))
    with pytest.raises(DatabaseUnavailable, match="folder"):
        async with database.session_scope():
            pass
    assert (await database.health_check())["healthy"] is False
