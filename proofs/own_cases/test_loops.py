"""Projects whose tests use pytest-asyncio's loops in three ways, AnyIO's plugin, and trio, each in its own pytest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

INI = """
[pytest]
filterwarnings = error
asyncio_mode = strict
asyncio_default_fixture_loop_scope = function
"""
SHOP = '''
"""Shared by the projects: a platform, and work that uses an operation, a session and a query."""
from sqlalchemy import text
import koo
from koo import Platform, Query
from koo.options import DatabaseOptions, PlatformOptions

QUESTION = Query(service="local", prompt="Hello?")

async def operation():
    return 1

def make(folder):
    database = DatabaseOptions(url=f"sqlite:///{folder}/shop.db")
    platform = Platform(PlatformOptions(home=folder, state_url=f"sqlite:///{folder}/state.db", database=database))
    platform.register_service("search")
    return platform

async def use(platform):
    assert await platform.execute("search", operation) == 1
    assert [one async for one in platform.execute_stream("search", pieces)] == [1, 2]
    async with platform.database.session_scope() as session:
        assert await session.scalar(text("SELECT 1")) == 1

async def pieces():
    yield 1
    yield 2
'''
PROJECTS = {
    "a loop for each test and one platform": """
import pytest
from shop import *

@pytest.fixture(scope="session")
def platform(tmp_path_factory):
    return make(tmp_path_factory.mktemp("home"))

@pytest.mark.asyncio
async def test_one(platform):
    await use(platform)

@pytest.mark.asyncio
async def test_another(platform):
    await use(platform)

def test_without_a_loop(platform):
    koo.run(use(platform))
    koo.run(platform.close())

@pytest.mark.asyncio
async def test_a_third(platform):
    await use(platform)
""",
    "a fixture on its module's loop and tests on their own loops, which are refused": """
import pytest, pytest_asyncio
from shop import *

@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(tmp_path_factory):
    async with make(tmp_path_factory.mktemp("home")) as platform:
        await use(platform)
        yield platform

@pytest.mark.asyncio
async def test_it_is_refused(platform):
    with pytest.raises(RuntimeError, match="call `await platform.close\\\\(\\\\)`.*before the `yield`.*loop_scope"):
        await use(platform)

@pytest.mark.asyncio(loop_scope="module")
async def test_on_the_same_loop(platform):
    await use(platform)
""",
    "the same with the line that the error gives": """
import pytest, pytest_asyncio
from shop import *

@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(tmp_path_factory):
    platform = make(tmp_path_factory.mktemp("home"))
    await use(platform)
    await platform.close()
    yield platform

@pytest.mark.asyncio
async def test_one(platform):
    await use(platform)

@pytest.mark.asyncio
async def test_another(platform):
    await use(platform)
""",
    "one loop for the session": """
import pytest, pytest_asyncio
from shop import *

pytestmark = pytest.mark.asyncio(loop_scope="session")

@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def platform(tmp_path_factory):
    async with make(tmp_path_factory.mktemp("home")) as platform:
        yield platform

async def test_one(platform):
    await use(platform)

async def test_another(platform):
    await use(platform)
""",
    "AnyIO's plugin": """
import pytest
from shop import *

pytestmark = pytest.mark.anyio

@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"

@pytest.fixture(scope="module")
async def platform(tmp_path_factory):
    async with make(tmp_path_factory.mktemp("home")) as platform:
        yield platform

async def test_one(platform):
    await use(platform)

async def test_another(platform):
    await use(platform)
""",
    "trio": """
import pytest, trio
from shop import *

pytestmark = pytest.mark.anyio
TOLD = r"koo runs on asyncio.*trio\\.to_thread\\.run_sync\\(koo\\.run, coroutine\\)"

@pytest.fixture
def anyio_backend():
    return "trio"

async def scope(platform):
    async with platform.database.session_scope():
        pass

async def test_every_entry_point_says_what_to_write(tmp_path):
    platform = make(tmp_path)
    doors = [
        platform.open, platform.system_health, platform.database.health_check, koo.check_database_health,
        lambda: platform.query(QUESTION), lambda: koo.query_ai("local", "Hello?"),
        lambda: anext(platform.stream(QUESTION)), lambda: anext(platform.execute_stream("search", pieces)),
        lambda: platform.execute("search", operation), lambda: scope(platform),
    ]
    for door in doors:
        with pytest.raises(RuntimeError, match=TOLD):
            await door()
    with pytest.raises(RuntimeError, match=TOLD):
        koo.run(operation())

async def test_the_line_from_the_error_works(tmp_path):
    platform = make(tmp_path)
    await trio.to_thread.run_sync(koo.run, use(platform))
    await trio.to_thread.run_sync(koo.run, platform.close())
""",
}


@pytest.mark.parametrize("name", PROJECTS)
def test_a_project(name: str, tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text(INI)
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "test_shop.py").write_text(PROJECTS[name])
    command = [
        sys.executable,
        "-X",
        "dev",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:schemathesis",
        "-p",
        "no:xdist",
        str(tmp_path),
    ]
    environment = {"KOO_HOME": str(tmp_path)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout and done.stderr == ""
