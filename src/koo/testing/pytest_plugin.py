"""Fixtures that pytest finds in any project that has koo installed.

* `koo` is a `koo.testing.World` for a test with an event loop, with any plugin (pytest-asyncio in either mode, AnyIO,
  or `asyncio.run` in the test itself). The fixture is not asynchronous, so it depends on none of them: its platform
  opens at its first use, and is closed on the loop that it was opened on.
* `koo_sync` is the same for a test without an event loop: its platform is open on koo's own background loop.
* `koo_postgres` is a running `koo.testing.postgres.PostgresServer`, one for each pytest process. `koo_postgres_url` is
  the URL of a fresh database on it, which is dropped after the test. A server that the test killed, stopped or paused
  is started again for the next test. `koo_postgres_major = 16` in pytest's settings selects another version. If a test
  uses `koo_postgres_url`, its world has that database, behind its `proxy`.

`@pytest.mark.koo(...)` sets the world's arguments: `strict=False`, `options=…`, `instead_of=shop.platform`.

Unused steps and requests that a fake refused fail the test itself, not its teardown. Only this file is loaded until a
test uses a fixture, so a project that uses none of them loses only a few milliseconds per run.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from koo.testing.postgres import PostgresServer
    from koo.testing.world import World

T = TypeVar("T")
MAJOR = "koo_postgres_major"
MARKER = "koo(options=None, *, settings=None, instead_of=None, strict=True): the arguments of the fixture's `World`"
WORLDS = pytest.StashKey["list[World]"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the setting for the version of PostgreSQL."""
    parser.addini(MAJOR, "major version of PostgreSQL for the fixture koo_postgres", default="18")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, for projects that use `--strict-markers`."""
    config.addinivalue_line("markers", MARKER)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, T, T]:
    """After the test function, check its worlds for unused steps and unexpected requests."""
    __tracebackhide__ = True
    worlds: list[World] = item.stash.get(WORLDS, [])
    try:
        result = yield
    except BaseException as error:
        for world in worlds:
            world.check(error)
        raise
    for world in item.stash.get(WORLDS, []):
        world.check()
    return result


@pytest.fixture
def koo(request: pytest.FixtureRequest) -> Iterator[World]:
    """koo's platform, surrounded by fakes, for a test with an event loop."""
    world = _make_world(request)
    world.begin()
    yield world
    world.end()


@pytest.fixture
def koo_sync(request: pytest.FixtureRequest) -> Iterator[World]:
    """Like `koo`, for a test without an event loop: `koo.run(query_ai(...))` and plain functions."""
    world = _make_world(request)
    world.begin()
    try:
        world.run(world.open())
        yield world
    finally:
        world.end()


def _make_world(request: pytest.FixtureRequest) -> World:
    from inspect import signature

    from koo.testing.misspelt import did_you_mean
    from koo.testing.world import World

    marker = request.node.get_closest_marker("koo")
    arguments = dict(marker.kwargs) if marker is not None else {}
    known = [name for name in signature(World).parameters if name != "self"]
    for name in arguments:
        if name not in known:
            pytest.fail(
                f"@pytest.mark.koo has no argument {name!r}{did_you_mean(name, known)}", pytrace=False
            )
    if "koo_postgres_url" in request.fixturenames:
        arguments.setdefault("database_url", request.getfixturevalue("koo_postgres_url"))
    world = World(*(marker.args if marker is not None else ()), **arguments)
    worlds = request.node.stash.setdefault(WORLDS, [])
    worlds.append(world)
    # A test that is run again (pytest-rerunfailures) is the same item: its earlier worlds are over.
    request.addfinalizer(lambda: worlds.remove(world))
    return world


@pytest.fixture(scope="session")
def koo_postgres(pytestconfig: pytest.Config) -> Iterator[PostgresServer]:
    """A running PostgreSQL server, which ends with this pytest process."""
    from koo.testing.postgres import PostgresServer

    with PostgresServer(int(pytestconfig.getini(MAJOR))) as server:
        yield server


@pytest.fixture
def koo_postgres_url(koo_postgres: PostgresServer) -> Iterator[str]:
    """The URL of a fresh database: `postgresql://…`."""
    name = koo_postgres.create_database()
    yield koo_postgres.url(None, name)
    koo_postgres.resume()
    koo_postgres.start()
    koo_postgres.drop_database(name)
