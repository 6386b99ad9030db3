"""What all tests share: real servers, started when the first test asks for one, one set for each xdist worker."""

from __future__ import annotations

import gc
import signal
from collections.abc import Generator, Iterator

import pytest
from hypothesis import HealthCheck, settings

from koo.testing.postgres import PostgresServer

# A script's background job ignores both, and so would every process that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# Neither an example that takes long nor a slow search for one is a fault: machines differ, and are busy.
settings.register_profile(
    "koo", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("koo")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Eleven thousand tests and what they import stay: each look for garbage that saw them would take a second."""
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
    """A test may kill, stop or pause a shared server: the next one finds it running."""
    yield
    for server in SHARED.values():
        server.resume()
        server.start()
