"""One fresh database per test, on the driver that the test requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from koo.testing.postgres import Driver, PostgresServer


class Place(NamedTuple):
    """A database on a PostgreSQL server, and the driver to use."""

    server: PostgresServer
    driver: Driver
    database: str

    @property
    def url(self) -> str:
        return self.server.url(self.driver, self.database)


@pytest.fixture(params=["psycopg", "asyncpg"])
def pg(request: pytest.FixtureRequest, postgres18: PostgresServer) -> Iterator[Place]:
    """A fresh database on PostgreSQL 18, once with each driver."""
    yield from _place(request.param, postgres18)


@pytest.fixture(params=["psycopg", "asyncpg"])
def any_pg(request: pytest.FixtureRequest, postgres: PostgresServer) -> Iterator[Place]:
    """A fresh database on PostgreSQL 16 and 18, with each driver."""
    yield from _place(request.param, postgres)


def _place(driver: Driver, server: PostgresServer) -> Iterator[Place]:
    place = Place(server, driver, server.create_database())
    yield place
    server.resume()
    server.start()
    server.drop_database(place.database)


@pytest.fixture(params=["sqlite", "memory", "psycopg", "asyncpg"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/made/when/needed/test.db"
    elif request.param == "memory":
        yield "sqlite://"
    else:
        server: PostgresServer = request.getfixturevalue("postgres18")
        for place in _place(request.param, server):
            yield place.url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/test.db"
