"""A database of each kind, on the servers of the suite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from koo.testing.postgres import PostgresServer
from tests.conftest import postgres18

__all__ = ["postgres18", "url"]


@pytest.fixture(params=["sqlite", "psycopg", "asyncpg"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh database's URL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/shop.db"
        return
    server: PostgresServer = request.getfixturevalue("postgres18")
    name = server.create_database()
    yield server.url(request.param, name)
    server.drop_database(name)
