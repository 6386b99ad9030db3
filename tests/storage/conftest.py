"""Each place a store can live in: memory, an SQLite file, PostgreSQL by both URLs."""

from __future__ import annotations

from pathlib import Path

import pytest

from koo.storage.store import SqlStore
from koo.testing.postgres import PostgresServer
from tests.storage.support import PATIENCE_S, Place


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine is no outage: only tests that are about waiting too long say how long that is."""
    defaults = SqlStore.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "timeout_s", PATIENCE_S)


SQL = ["sqlite", "pg16", "pg18"]


@pytest.fixture(params=["memory", *SQL])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return _place(request, tmp_path)


@pytest.fixture(params=SQL)
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A place that outlives the process."""
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
    driver = {"pg16": "psycopg", "pg18": "asyncpg"}[request.param]
    return Place(request.param, server.url(driver, server.create_database()))  # type: ignore[arg-type]
