"""Shared by all tests: real servers, started for the first test that needs one, one set for each xdist worker."""

from __future__ import annotations

import gc
import signal
from collections.abc import Generator, Iterator

import pytest
from hypothesis import HealthCheck, settings

from koo.testing.postgres import PostgresServer

# A background job of a script ignores both signals, and so would every process that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# A slow example, or a slow search for one, is not a failure: machines differ and may be busy.
settings.register_profile(
    "koo", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("koo")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Exclude eleven thousand tests and their imports from garbage collection, which would otherwise take a second
    each."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


# Every server that the fixtures below have started in this process.
SHARED: dict[str, PostgresServer] = {}


@pytest.fixture(scope="session")
def postgres16() -> Iterator[PostgresServer]:
    """A running PostgreSQL 16, shared by all tests of this worker: give a test its own `create_database()`."""
    yield from _shared("pg16", PostgresServer(16))


@pytest.fixture(scope="session")
def postgres18() -> Iterator[PostgresServer]:
    """A running PostgreSQL 18, shared by all tests of this worker: give a test its own `create_database()`."""
    yield from _shared("pg18", PostgresServer(18))


@pytest.fixture(scope="session", params=["pg16", "pg18"])
def postgres(request: pytest.FixtureRequest) -> PostgresServer:
    """A running PostgreSQL, once as 16 and once as 18: the test runs on both."""
    server: PostgresServer = request.getfixturevalue(request.param.replace("pg", "postgres"))
    return server


def _shared(name: str, server: PostgresServer) -> Iterator[PostgresServer]:
    with server:
        SHARED[name] = server
        yield server
        del SHARED[name]


@pytest.fixture(autouse=True)
def _revived() -> Iterator[None]:
    """Restart shared servers that a test killed, stopped or paused, for the next test."""
    yield
    for server in SHARED.values():
        server.resume()
        server.start()
