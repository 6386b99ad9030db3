"""Fixtures that pytest finds by itself, in any project that has koo: a throw-away PostgreSQL.

`koo_postgres` is a running `koo.testing.postgres.PostgresServer`, one for each pytest process, started when the first
test asks for it. `koo_postgres_url` is the URL of a fresh database on it, which is dropped after the test; a server
that the test killed, stopped or paused runs again for the next one. `koo_postgres_major = 16` in pytest's settings
chooses another version.

Nothing but this file is loaded before a test asks: it costs a test run of somebody who uses neither a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from koo.testing.postgres import PostgresServer

MAJOR = "koo_postgres_major"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The setting of the version."""
    parser.addini(MAJOR, "major version of the PostgreSQL of the fixture koo_postgres", default="18")


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
