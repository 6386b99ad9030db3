"""A `Database` next to an existing engine: its URL, its arguments, and a session class like SQLModel's."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Executable, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool
from sqlalchemy.util import greenlet_spawn

from koo import ConfigurationError, Database, DatabaseOptions, Platform
from koo.options import PlatformOptions
from tests.database.conftest import Place
from tests.database.support import INSERT, ONE, Base, Note, assert_free, options, run


class SyncModelSession(Session):
    """A session class like SQLModel's, with one additional method, which calls `execute`."""

    def exec(self, statement: Executable) -> Any:
        return super().execute(statement).scalars()


class ModelSession(AsyncSession):
    """A session class like SQLModel's, whose `exec` runs that of the synchronous session."""

    sync_session_class = SyncModelSession
    sync_session: SyncModelSession

    async def exec(self, statement: Executable) -> Any:
        return await greenlet_spawn(self.sync_session.exec, statement)


# ── the URL ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_database_can_be_created_from_an_engines_url(any_pg: Place) -> None:
    async def main() -> None:
        engine = create_async_engine(any_pg.url)
        database = Database(engine.url)
        async with database.session_scope() as session:
            assert (await session.execute(ONE)).scalar_one() == 1
        await database.close()
        await engine.dispose()

    run(main)


def test_a_database_can_be_created_from_a_url_as_text(url: str) -> None:
    async def main() -> None:
        database = Database(url)
        async with database.session_scope() as session:
            assert (await session.execute(ONE)).scalar_one() == 1
        await database.close()

    run(main)


def test_a_url_with_a_hidden_password_is_refused_before_connecting() -> None:
    engine = create_async_engine("postgresql+psycopg://ada:secret@db/shop")
    with pytest.raises(ConfigurationError, match=r"password hidden: use engine\.url itself") as refusal:
        Database(str(engine.url))
    assert "secret" not in str(refusal.value)
    assert str(Database("postgresql://ada:secret@db/shop").url) == "postgresql+psycopg://ada:***@db/shop"
    assert Database(engine.url).options.url == "postgresql+psycopg://ada:secret@db/shop"


# ── the creation arguments ────────────────────────────────────────────────────────────────────────────────────────────


def test_arguments_for_the_pool_become_options(sqlite_url: str) -> None:
    args = {
        "pool_size": 3,
        "max_overflow": 2,
        "pool_timeout": 1.5,
        "pool_recycle": 600,
        "pool_pre_ping": True,
    }
    database = Database(sqlite_url, engine_args=args)
    made = database.options
    assert (made.pool_size, made.max_overflow, made.pool_timeout_s, made.pool_recycle_s) == (3, 2, 1.5, 600)
    assert database.pool_queue.limit == 5


def test_a_pool_without_recycling_keeps_its_connections(sqlite_url: str) -> None:
    assert Database(sqlite_url, engine_args={"pool_recycle": -1}).options.pool_recycle_s > 86_400 * 365


def test_arguments_of_the_driver_and_the_engine_reach_both(any_pg: Place) -> None:
    """Each driver sends `application_name` to the server in its own way, and so does the probe's connection."""
    name = {"application_name": "shop"}
    connect_args = {"server_settings": name} if any_pg.driver == "asyncpg" else name

    async def main() -> None:
        args = {"connect_args": connect_args, "execution_options": {"schema_translate_map": {"x": None}}}
        database = Database(options(any_pg.url), engine_args=args)
        async with database.session_scope() as session:
            assert (await session.execute(text("SHOW application_name"))).scalar_one() == "shop"
            chosen = (await session.connection()).sync_connection
            assert chosen is not None and chosen.get_execution_options()["schema_translate_map"] == {
                "x": None
            }
            assert (await database.health_check())["healthy"]
            count = text("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'shop'")
            assert (await session.execute(count)).scalar_one() == 2
        await database.close()

    run(main)


def test_koo_overrides_driver_arguments_that_it_needs_itself(sqlite_url: str) -> None:
    """A `timeout` of sqlite3 would block the connection's thread; in koo a writer waits for its turn before that."""

    async def main() -> None:
        args = {"connect_args": {"timeout": 30, "isolation_level": "IMMEDIATE", "cached_statements": 7}}
        database = Database(sqlite_url, engine_args=args)
        async with database.session_scope(readonly=True) as session:
            assert (await session.execute(text("PRAGMA busy_timeout"))).scalar_one() < 30_000
        await database.close()

    run(main)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"poolclass": NullPool}, "engine_args contains poolclass"),
        ({"async_creator": print}, "engine_args contains async_creator"),
        ({"connect_args": {"async_creator_fn": print}}, "engine_args contains async_creator_fn"),
        ({"isolation_level": "AUTOCOMMIT"}, "engine_args sets AUTOCOMMIT"),
        ({"execution_options": {"isolation_level": "AUTOCOMMIT"}}, "engine_args sets AUTOCOMMIT"),
        ({"pool_siez": 3}, "engine_args cannot be used: .*pool_siez"),
        ({"pool_size": 0}, "pool_size is 0"),
    ],
)
def test_an_argument_that_cannot_be_honoured_is_refused_at_construction(
    args: Mapping[str, Any], sentence: str, sqlite_url: str
) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        Database(sqlite_url, engine_args=args)


# ── the session class ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_scope_returns_the_applications_own_session_class(url: str) -> None:
    async def main() -> None:
        database = Database(options(url), session_class=ModelSession)
        async with database.session_scope() as session:
            assert isinstance(session, ModelSession) and isinstance(session.sync_session, SyncModelSession)
            await session.run_sync(lambda sync: Base.metadata.create_all(sync.connection()))
            session.add(Note(n=7, words="seven"))
        async with database.session_scope() as session:
            assert [note.words for note in await session.exec(select(Note))] == ["seven"]
        with pytest.raises(IntegrityError):
            async with database.session_scope() as session:
                await session.execute(INSERT, {"n": 7})

        async def read(session: ModelSession) -> list[int]:
            return [note.n for note in await session.exec(select(Note))]

        assert await database.transaction(read) == [7]
        assert_free(database)
        await database.close()

    run(main)


def test_methods_of_the_session_class_are_guarded_too(any_pg: Place) -> None:
    """`exec` as the first statement on a connection that died in the pool is repeated unnoticed."""

    async def main() -> None:
        database = Database(options(any_pg.url, pool_size=1, max_overflow=0), session_class=ModelSession)
        async with database.session_scope() as session:
            await session.run_sync(lambda sync: Base.metadata.create_all(sync.connection()))
        async with database.session_scope() as session:
            any_pg.server.restart()
            assert list(await session.exec(select(Note))) == []
        assert database.metrics.replays == 1
        assert_free(database)
        await database.close()

    run(main)


def test_a_session_class_must_be_an_async_session(sqlite_url: str) -> None:
    not_async: Any = SyncModelSession
    with pytest.raises(
        ConfigurationError, match=r"SyncModelSession.*subclass of sqlalchemy\.ext\.asyncio\.AsyncSession"
    ):
        Database(sqlite_url, session_class=not_async)


# ── a platform's database ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_platforms_database_can_be_set_up_only_before_its_first_use(tmp_path: Path) -> None:
    async def main() -> None:
        chosen = DatabaseOptions(url=f"sqlite:///{tmp_path}/app.db")
        platform = Platform(PlatformOptions(state_url=f"sqlite:///{tmp_path}/state.db", database=chosen))
        database = platform.set_up_database(session_class=ModelSession, engine_args={"pool_size": 3})
        assert platform.database is database and database.options.pool_size == 3
        async with platform, database.session_scope() as session:
            assert list(await session.exec(ONE)) == [1]
        with pytest.raises(RuntimeError, match="before its first use"):
            platform.set_up_database(session_class=AsyncSession)

    asyncio.run(main())
