"""Fixtures that pytest finds in any project that has koo installed.

* `koo` is a `koo.testing.World` for a test with an event loop, whatever plugin runs it (pytest-asyncio in either mode,
  AnyIO, or `asyncio.run` in the test itself). It is not asynchronous itself, so it needs none of them: its platform
  opens itself at its first use, and is closed on the loop that it was opened on.
* `koo_sync` is one for a test without an event loop: its platform is open on koo's own loop in the background.
* `koo_postgres` is a running `koo.testing.postgres.PostgresServer`, one for each pytest process. `koo_postgres_url` is
  the URL of a fresh database on it, dropped after the test; a server that the test killed, stopped or paused runs
  again for the next one. `koo_postgres_major = 16` in pytest's settings chooses another version. A world of a test that
  asks for `koo_postgres_url` has that database, behind its `proxy`.

`@pytest.mark.koo(...)` sets the world's arguments: `strict=False`, `options=…`, `instead_of=shop.platform`.

Steps that were not used and requests that a fake refused fail the test itself, not its teardown. Nothing but this file
is loaded before a test asks for a fixture, so a project that uses none of them pays a few milliseconds for a whole run.
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
MARKER = "koo(options=None, *, settings=None, instead_of=None, strict=True): how the world of `koo` is made"
WORLDS = pytest.StashKey["list[World]"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The setting of the version."""
    parser.addini(MAJOR, "major version of the PostgreSQL of the fixture koo_postgres", default="18")


def pytest_configure(config: pytest.Config) -> None:
    """The marker is known, also where markers are strict."""
    config.addinivalue_line("markers", MARKER)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, T, T]:
    """After the test itself: what its worlds say of it."""
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
    """koo's platform with fakes all around it, for a test with an event loop."""
    world = _make_world(request)
    world.begin()
    yield world
    world.end()


@pytest.fixture
def koo_sync(request: pytest.FixtureRequest) -> Iterator[World]:
    """As `koo`, for a test without an event loop: `koo.run(query_ai(...))` and plain functions."""
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
    request.node.stash.setdefault(WORLDS, []).append(world)
    return world


@pytest.fixture(scope="session")
def koo_postgres(pytestconfig: pytest.Config) -> Iterator[PostgresServer]:
    """A running PostgreSQL of this pytest process, ended with it."""
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
