"""Shared by the database tests: databases on three drivers, and a `Database` that must leave nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Integer, String, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from koo.clock import SYSTEM_CLOCK, Clock
from koo.database.database import Database
from koo.options import DatabaseOptions, RetryOptions
from koo.testing.postgres import Driver, PostgresServer
from koo.testing.proxy import FaultProxy
from koo.testing.taken import taken_of_database

SELECT = text("SELECT n FROM notes ORDER BY n")
INSERT = text("INSERT INTO notes (n) VALUES (:n)")
QUICK = RetryOptions(attempts_max=4, base_s=0.02, cap_s=0.2)
ONE = text("SELECT 1")


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"

    n: Mapped[int] = mapped_column(Integer, primary_key=True)
    words: Mapped[str | None] = mapped_column(String(200), default=None)


def options(url: str, **changes: Any) -> DatabaseOptions:
    changes.setdefault("retry", QUICK)
    return DatabaseOptions(url=url, **changes)


@asynccontextmanager
async def opened(url: str, **changes: Any) -> AsyncIterator[Database]:
    """A `Database` that is closed at the end, and must then have no connection in use and an empty queue."""
    clock: Clock = changes.pop("clock", SYSTEM_CLOCK)
    database = Database(options(url, **changes), clock=clock)
    try:
        yield database
    finally:
        assert_free(database)
        await database.close()


@asynccontextmanager
async def with_notes(url: str, **changes: Any) -> AsyncIterator[Database]:
    """Like `opened`, with an empty table `notes`."""
    async with opened(url, **changes) as database:
        async with database.session_scope() as session:
            await session.run_sync(lambda sync: Base.metadata.create_all(sync.connection()))
            await session.execute(text("DELETE FROM notes"))
        yield database


def assert_free(database: Database) -> None:
    """Assert that no slot in the pool, permit, writer's turn or transaction is left behind."""
    assert taken_of_database(database) == []


def checked_out(database: Database) -> int:
    assert database.connections is not None
    pool: Any = database.connections.engine.pool
    return int(pool.checkedout())


async def leave_markers_alone(database: Database) -> None:
    """Stop the deletion of old rows: it commits too, and a proxy would cut that COMMIT instead of the test's."""
    assert database.connections is not None
    markers = database.connections.markers
    await markers.ready()
    markers.tend_at = float("inf")
    if markers.tending is not None:
        await markers.tending


async def notes(database: Database) -> list[int]:
    async with database.session_scope(readonly=True) as session:
        return list((await session.scalars(SELECT)).all())


@asynccontextmanager
async def proxied(server: PostgresServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(server.host, server.port) as proxy:
        yield proxy


def through(proxy: FaultProxy, server: PostgresServer, driver: Driver, database: str) -> str:
    """The URL of `database` through the proxy."""
    return server.url(driver, database).replace(f":{server.port}/", f":{proxy.port}/")


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())
