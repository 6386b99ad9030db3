"""Fixtures for every place of a store: memory, an SQLite file, and PostgreSQL with both URL schemes."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from koo.storage.exchanges import MemoryExchange
from koo.storage.store import SqlStore
from koo.testing.postgres import Driver, PostgresServer
from tests.storage.support import BEAT_S, PATIENCE_S, Place


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives stores a long timeout, so that a slow machine does not look like an outage, and short beats."""
    defaults = SqlStore.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "timeout_s", PATIENCE_S)
    monkeypatch.setitem(defaults, "beat_s", BEAT_S)
    monkeypatch.setattr(MemoryExchange, "beat_s", BEAT_S)


SQL = ["sqlite", "pg16", "pg18"]


@pytest.fixture(params=["memory", *SQL])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return _place(request, tmp_path)


@pytest.fixture(params=SQL)
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A place that outlives the process: a file or a server."""
    return _place(request, tmp_path)


@pytest.fixture
def sqlite(tmp_path: Path) -> Place:
    return Place("sqlite", f"sqlite:///{tmp_path}/state/koo.db")


def _place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "memory":
        return Place("memory")
    if request.param == "sqlite":
        return Place("sqlite", f"sqlite:///{tmp_path}/state/koo.db")
    server: PostgresServer = request.getfixturevalue(
        {"pg16": "postgres16", "pg18": "postgres18"}[request.param]
    )
    driver: Driver = "psycopg" if request.param == "pg16" else "asyncpg"
    place = Place(request.param, server.url(driver, _database(server)))
    # This takes milliseconds. A separate database for each test would take some tenths of a second.
    place.sql("DROP SCHEMA public CASCADE")
    place.sql("CREATE SCHEMA public")
    return place


@functools.cache
def _database(server: PostgresServer) -> str:
    return server.create_database()
