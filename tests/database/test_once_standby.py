"""A transaction reported as committed is as safe as any: without its synchronous standby it stays unknown."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from koo.database.database import Database
from koo.errors import CommitOutcomeUnknown
from koo.testing.polling import wait_until
from tests.database.conftest import Place
from tests.database.support import INSERT, notes, opened, run, with_notes


@pytest.fixture
def lonely(pg: Place) -> Iterator[Place]:
    """A server whose COMMITs wait for a standby that does not exist, once `wait_for_standby` was called."""
    yield pg
    pg.server.sql("ALTER SYSTEM RESET synchronous_standby_names")
    pg.server.sql("SELECT pg_reload_conf()")
    wait_until(lambda: pg.server.sql("SHOW synchronous_standby_names") == "")


def wait_for_standby(pg: Place) -> None:
    pg.server.sql("ALTER SYSTEM SET synchronous_standby_names = 'gone'")
    pg.server.sql("SELECT pg_reload_conf()")
    wait_until(lambda: pg.server.sql("SHOW synchronous_standby_names") == "gone")


async def write(database: Database, deadline_s: float) -> None:
    async with database.make_scope(deadline=asyncio.get_running_loop().time() + deadline_s) as session:
        await insert(session)


async def insert(session: AsyncSession) -> None:
    await session.execute(INSERT, {"n": 1})


def test_a_commit_that_waits_for_a_standby_is_unknown_until_the_standby_has_it(
    lonely: Place,
) -> None:
    """Terminating its session makes it visible on this server, but the next failover would lose it."""

    async def main() -> None:
        async with with_notes(lonely.url) as plain:
            await plain.init_exactly_once()
        async with opened(
            lonely.url, exactly_once="marker", cleanup_timeout_s=0.2, resolve_timeout_s=4.0
        ) as database:
            assert await notes(database) == []
            await database.check_exactly_once()
            wait_for_standby(lonely)
            with pytest.raises(CommitOutcomeUnknown) as caught:
                await write(database, 2.0)
            assert lonely.server.sql("SELECT n FROM notes", lonely.database) == "1", "visible, but not safe"
            key = caught.value.key
            assert (
                lonely.server.sql(f"SELECT burned FROM koo_markers WHERE key = '{key}'", lonely.database)
                == "f"
            )

    run(main)
