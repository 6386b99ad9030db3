"""Replacing a platform: names that code under test bound long ago use the given one, and later the old one again."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

import koo
from koo.options import DatabaseOptions, PlatformOptions
from koo.platform import Platform
from koo.testing import World, use
from koo.testing.providers import FakeAnthropic
from tests.platform.test_platform import options

OWN = PlatformOptions()


def platform_at(home: Path, name: str, **more: Any) -> Platform:
    folder = home / name
    folder.mkdir(exist_ok=True)
    database = DatabaseOptions(url=f"sqlite:///{folder / 'app.db'}")
    return Platform(
        PlatformOptions(home=folder, state_url=f"sqlite:///{folder}/state.db", database=database, **more)
    )


def file_of(database: koo.Database) -> str:
    return Path(str(database.url.database)).parent.name


def test_bound_names_use_the_given_platform(tmp_path: Path) -> None:
    async def main() -> None:
        async with FakeAnthropic() as server, Platform(options(tmp_path, server)) as other:
            with use(other):
                assert (await koo.query_ai("claude", "Hi")).text == "Paris."
                assert [chunk.text async for chunk in koo.stream_ai("claude", "Hi")]
                assert (await koo.query_multiple_ai([{"service": "claude", "prompt": "Hi"}]))[0]["success"]
                assert koo.get_ai_service_health("claude")["state"] == "healthy"
                assert "claude" in koo.ai_error_handler.get_all_services_status()
                assert (await koo.get_system_health())["overall_health"]
                assert koo.platform.options is other.options
            assert len(server.queries) == 3

    asyncio.run(main())


def test_an_own_platform_is_replaced_and_then_restored(tmp_path: Path) -> None:
    mine, other = platform_at(tmp_path, "mine"), platform_at(tmp_path, "other")
    with use(other, instead_of=mine):
        assert mine.options.home.name == "other" and mine.services is not None
        with use(platform_at(tmp_path, "inner"), instead_of=mine):
            assert mine.options.home.name == "inner"
        assert mine.options.home.name == "other" and isinstance(mine, Platform)
    assert mine.options.home.name == "mine" and type(mine) is Platform
    assert other.options.home.name == "other"


def test_a_block_that_fails_restores_the_platform(tmp_path: Path) -> None:
    mine = platform_at(tmp_path, "mine")

    def fail() -> None:
        with use(platform_at(tmp_path, "other"), instead_of=mine):
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        fail()
    assert mine.options.home.name == "mine"


def test_a_platform_may_replace_itself(tmp_path: Path) -> None:
    mine = platform_at(tmp_path, "mine")
    with use(mine, instead_of=mine):
        assert mine.options.home.name == "mine"
    assert type(mine) is Platform


# ── the database ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_database_handed_out_before_is_the_given_platforms_inside_the_block(tmp_path: Path) -> None:
    async def main() -> None:
        mine = platform_at(tmp_path, "mine")
        bound = mine.database
        async with platform_at(tmp_path, "other") as other:
            with use(other, instead_of=mine):
                assert file_of(bound) == file_of(mine.database) == "other"
                async with bound.session_scope() as session:
                    await session.execute(text("CREATE TABLE t (n int)"))
                assert other.database.connections is not None
        assert file_of(bound) == "mine" and mine.database is bound
        async with bound.session_scope() as session:
            assert not (await session.execute(text("SELECT name FROM sqlite_master"))).all()
        await mine.close()
        await bound.close()

    asyncio.run(main())


def test_a_database_handed_out_inside_is_the_platforms_own_afterwards(tmp_path: Path) -> None:
    """An example is `from koo import db_manager` in a module that a test imports."""

    async def main() -> None:
        mine = platform_at(tmp_path, "mine")
        async with platform_at(tmp_path, "one") as one:
            with use(one, instead_of=mine):
                bound = mine.database
                assert file_of(bound) == "one" and isinstance(bound, koo.Database)
        async with platform_at(tmp_path, "two") as two:
            with use(two, instead_of=mine):
                assert file_of(bound) == "two" and mine.database is bound
                async with bound.session_scope() as session:
                    assert await session.scalar(text("SELECT 1")) == 1
        assert file_of(bound) == "mine" == file_of(mine.database)
        async with bound.session_scope() as session:
            assert await session.scalar(text("SELECT 1")) == 1
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = bound.nothing  # type: ignore[attr-defined]
        await bound.close()

    asyncio.run(main())


def test_an_open_database_is_not_replaced(tmp_path: Path) -> None:
    async def main() -> None:
        mine, other = platform_at(tmp_path, "mine"), platform_at(tmp_path, "other")
        async with mine.database.session_scope() as session:
            await session.execute(text("SELECT 1"))
        with pytest.raises(RuntimeError, match="close it first"), use(other, instead_of=mine):
            pass
        await mine.database.close()
        with use(other, instead_of=mine):
            assert file_of(mine.database) == "other"

    asyncio.run(main())


# ── own operations ────────────────────────────────────────────────────────────────────────────────────────────────


async def seven() -> int:
    return 7


def test_own_operations_are_registered_with_both_platforms(tmp_path: Path) -> None:
    async def main() -> None:
        mine = platform_at(tmp_path, "mine")
        mine.register_service("parcels", max_retries=2)

        @mine.guarded("letters", timeout_s=9)
        async def letters() -> int:
            return 8

        async with World(OWN, instead_of=mine) as world:
            assert await mine.execute("parcels", seven) == 7 and await letters() == 8
            assert world.platform.services["parcels"].options.retry.attempts_max == 3
            assert world.platform.services["letters"].options.timeout_s == 9

            @mine.guarded("cards")
            async def cards() -> int:
                return 9

            mine.register_service("stamps")
            assert await cards() == 9 and await mine.execute("stamps", seven) == 7
        async with World(OWN, instead_of=mine):
            assert await cards() == 9 and await mine.execute("stamps", seven) == 7 and await letters() == 8
        assert {"parcels", "letters", "cards", "stamps"} <= set(mine.services)
        assert await cards() == 9
        await mine.close()

    asyncio.run(main())


def test_own_operations_are_repeated_without_pauses_in_a_world(tmp_path: Path) -> None:
    async def main() -> None:
        mine = platform_at(tmp_path, "mine")
        mine.register_service(
            "parcels", max_retries=3, retry_base_delay=600, retry_max_delay=600, idempotent=True
        )
        called: list[None] = []

        async def fail() -> None:
            called.append(None)
            raise ConnectionResetError("reset")

        async with World(OWN, instead_of=mine) as world:
            with pytest.raises(ConnectionResetError):
                await mine.execute("parcels", fail)
            assert len(called) == 4 and world.settled()

    asyncio.run(main())


def test_worlds_leave_nothing_behind(tmp_path: Path) -> None:
    async def main() -> None:
        mine = platform_at(tmp_path, "mine")
        async with World(OWN, instead_of=mine) as world, mine.database.session_scope() as session:
            await session.execute(text("SELECT 1"))
        home = world.home
        del world
        gc.collect()
        assert not home.exists()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_use_reads_no_settings_and_loads_no_database(tmp_path: Path) -> None:
    """A project without a database does not load SQLAlchemy's ORM, and does not fail because of a wrong variable."""
    script = (
        "import sys\n"
        "from koo.platform import Platform\n"
        "from koo.options import PlatformOptions\n"
        "from koo.testing import use\n"
        "import koo\n"
        "with use(Platform(PlatformOptions())):\n"
        "    assert koo.platform.options.port == 8000\n"
        "print('koo.database.database' in sys.modules)\n"
    )
    env = {"DATABASE_POOL_SIZE": "-1", "KOO_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("False\n", "")
