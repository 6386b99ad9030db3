"""Prepared statements: kept by default, and switched off entirely behind a pooler in transaction mode."""

from __future__ import annotations

import asyncio
import enum

import pytest
from sqlalchemy import Enum, Integer, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from koo.database.database import Database
from koo.errors import DatabaseUnavailable, Kind
from koo.policies.verdict import FAILURE
from tests.database.conftest import Place
from tests.database.support import opened, run

PREPARED = text("SELECT count(*) FROM pg_prepared_statements")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Base(DeclarativeBase):
    pass


class Painted(Base):
    """Uses a type that asyncpg must look up on the server, in the middle of a statement."""

    __tablename__ = "painted"

    n: Mapped[int] = mapped_column(Integer, primary_key=True)
    colour: Mapped[Colour] = mapped_column(Enum(Colour, name="colour"))


async def work(database: Database) -> int:
    """Various statements in one transaction; returns how many prepared ones the server still has."""
    async with database.session_scope() as session:
        await session.run_sync(lambda sync: Base.metadata.create_all(sync.connection()))
        session.add_all(Painted(n=n, colour=Colour.RED if n % 2 else Colour.BLUE) for n in range(200))
        await session.flush()
        for n in range(8):
            assert await session.scalar(select(Painted.n).where(Painted.n == n)) == n
        seen = [one.n async for one in await session.stream_scalars(select(Painted).order_by(Painted.n))]
        assert seen == list(range(200))
        return int(await session.scalar(PREPARED) or 0)


def test_prepared_statements_are_kept_by_default(pg: Place) -> None:
    async def main() -> None:
        async with opened(pg.url) as database:
            assert await work(database) > 0

    run(main)


def test_with_prepared_statements_off_the_server_keeps_none(any_pg: Place) -> None:
    async def main() -> None:
        async with opened(any_pg.url, prepared_statements=False) as database:
            assert await work(database) == 0
            assert (await database.health_check())["healthy"]

    run(main)


def test_with_prepared_statements_off_no_statement_has_a_name(pg: Place) -> None:
    """A statement has no name even while it runs: behind a pooler two processes may share one server connection."""

    async def main() -> None:
        async with opened(pg.url, prepared_statements=False) as database, database.session_scope() as session:
            rows = await session.stream(text("SELECT generate_series(1, 1000)"))
            await rows.fetchone()
            assert await session.scalar(PREPARED) == 0
            assert len(await rows.all()) == 999

    run(main)


OPTIONS = {
    "psycopg": "prepare_threshold=none",
    "asyncpg": "statement_cache_size=0&prepared_statement_cache_size=0",
}


def with_options(place: Place, said: str) -> str:
    return f"{place.url}{'&' if '?' in place.url else '?'}{said}"


def test_the_drivers_own_options_may_be_in_the_url(pg: Place) -> None:
    async def main() -> None:
        async with opened(with_options(pg, OPTIONS[pg.driver])) as database:
            async with database.session_scope() as session:
                for _ in range(8):
                    await session.execute(text("SELECT 1"))
                left = int(await session.scalar(PREPARED) or 0)
                # asyncpg has just prepared this query itself.
                assert left <= (pg.driver == "asyncpg")
            assert (await database.health_check())["healthy"]

    run(main)


def test_statements_are_prepared_on_first_use_if_the_url_says_so(pg: Place) -> None:
    if pg.driver == "asyncpg":
        pytest.skip("asyncpg always prepares on first use")

    async def main() -> None:
        url = with_options(pg, "prepare_threshold=0")
        async with opened(url) as database, database.session_scope() as session:
            await session.execute(text("SELECT 1"))
            assert await session.scalar(PREPARED)

    run(main)


@pytest.mark.parametrize("said", ["prepare_threshold=often", "statement_cache_size=large"])
def test_an_invalid_number_in_the_url_is_reported_as_such(pg: Place, said: str) -> None:
    if ("threshold" in said) != (pg.driver == "psycopg"):
        pytest.skip("this is an option of the other driver")

    async def main() -> None:
        async with opened(with_options(pg, said)) as database:
            with pytest.raises(DatabaseUnavailable, match="option in its URL") as caught:
                async with database.session_scope():
                    pass
            assert caught.value.kind is Kind.NOT_CONFIGURED

    run(main)


def test_a_composite_type_may_grow_while_its_statements_are_prepared(pg: Place) -> None:
    """asyncpg would keep failing on each connection that has the old type: all of them are replaced."""

    async def main() -> None:
        async with opened(pg.url) as database:
            read = text("SELECT (spot).a FROM spots"), text("SELECT spot FROM spots")

            async def work(session: AsyncSession) -> None:
                for statement in read:
                    await session.execute(statement)

            pg.server.sql("CREATE TYPE spot AS (a int)", pg.database)
            pg.server.sql("CREATE TABLE spots AS SELECT ROW(1)::spot AS spot", pg.database)
            await asyncio.gather(*(database.transaction(work) for _ in range(4)))
            pg.server.sql("ALTER TYPE spot ADD ATTRIBUTE b int", pg.database)
            for _ in range(8):
                await database.transaction(work)
            assert database.guard.tally.totals().verdicts[FAILURE] == 0

    run(main)
