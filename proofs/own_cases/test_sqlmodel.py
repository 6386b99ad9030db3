"""SQLModel's own session in koo's scopes, and alembic's async template with koo's URL."""

from __future__ import annotations

import asyncio
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy.exc import IntegrityError
from sqlmodel import Field, SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

from koo import Database


class Hero(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)


class Heroes:
    """A repository with one session, as in an application."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, name: str) -> Hero:
        hero = Hero(name=name)
        self._session.add(hero)
        await self._session.flush()
        return hero

    async def named(self, name: str) -> Hero | None:
        found: Hero | None = (await self._session.exec(select(Hero).where(Hero.name == name))).first()
        return found


def test_a_scope_returns_sqlmodels_session(url: str) -> None:
    async def main() -> None:
        database = Database(url, session_class=AsyncSession)
        async with database.session_scope() as session:
            assert isinstance(session, AsyncSession)
            await session.run_sync(lambda sync: SQLModel.metadata.create_all(sync.connection()))

        async def hire(session: AsyncSession) -> int | None:
            return (await Heroes(session).add("Ada")).id

        assert await database.transaction(hire) == 1
        async with database.session_scope(readonly=True) as session:
            ada = await Heroes(session).named("Ada")
        assert ada is not None and ada.name == "Ada", "loaded objects outlive the scope"
        for _ in range(6):
            try:
                await database.transaction(hire)
            except IntegrityError:
                continue
            raise AssertionError("a duplicate was accepted")
        assert database.circuit_breaker_state.value == "healthy"
        await database.close()

    asyncio.run(main())


def test_koos_url_works_in_alembics_async_template(tmp_path: Path, url: str) -> None:
    database = Database(url, session_class=AsyncSession)
    config = Config(str(tmp_path / "alembic.ini"))
    command.init(config, str(tmp_path / "migrations"), template="async")
    config.set_main_option("script_location", str(tmp_path / "migrations"))
    with_driver = database.url.render_as_string(hide_password=False)
    config.set_main_option("sqlalchemy.url", with_driver.replace("%", "%%"))
    revision = command.revision(config, "heroes")
    script = Path(revision.path)
    made = script.read_text().replace(
        "pass", 'op.execute("CREATE TABLE hero (id INTEGER PRIMARY KEY, name TEXT)")', 1
    )
    script.write_text(made)
    command.upgrade(config, "head")  # runs its own loop

    async def main() -> None:
        async with database.session_scope() as session:
            session.add(Hero(id=1, name="Ada"))
            assert [hero.name for hero in await session.exec(select(Hero))] == ["Ada"]
        await database.close()

    asyncio.run(main())
