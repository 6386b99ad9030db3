"""What a driver's error says about the store's connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg.errors
import pytest
from sqlalchemy import Engine, event

from koo.storage.faults import lost
from koo.storage.sql import SqliteBackend


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (psycopg.errors.AdminShutdown(), True),
        (psycopg.errors.CrashShutdown(), True),
        (psycopg.errors.ReadOnlySqlTransaction(), False),
        (psycopg.errors.UniqueViolation(), False),
        (psycopg.errors.QueryCanceled(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_servers_word_that_it_ends_a_connection_is_heard(error: Exception, ended: bool) -> None:
    """It may arrive before the connection ends. Taken for a fault of the store, an idle one would be an outage."""
    assert lost(error) is ended


@pytest.fixture
def met() -> Iterator[list[str]]:
    """Each read that meets a lock: the first two of SQLite's own list of tables do, as SQLite would say it."""
    met: list[str] = []

    def read(cursor: object, statement: str, parameters: object, context: object) -> None:
        if "sqlite_master" in statement and len(met) < 2:
            met.append(statement)
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY_RECOVERY
            raise error

    event.listen(Engine, "do_execute", read)
    yield met
    event.remove(Engine, "do_execute", read)


def test_a_read_that_meets_another_process_making_the_file_a_wal_is_done_again(
    tmp_path: Path, met: list[str]
) -> None:
    """Two processes that make the file at the same moment: a deferred transaction locks with its first read."""
    backend = SqliteBackend(tmp_path / "koo.db", timeout_s=5.0)
    found: list[Any] = []
    backend.transact(lambda tx: found.extend(tx.rows("SELECT count(*) FROM koo_processes")), exclusive=False)
    backend.close()
    assert found == [(0,)]
    assert len(met) == 2
