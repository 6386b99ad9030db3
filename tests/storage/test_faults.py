"""The store classifies a driver's errors about its connection."""

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
def test_a_servers_report_that_it_ends_a_connection_counts_as_a_lost_connection(
    error: Exception, ended: bool
) -> None:
    """The report may arrive before the connection is closed. If the report counted as a fault of the store, closing
    an idle connection would be an outage.
    """
    assert lost(error) is ended


@pytest.fixture
def met() -> Iterator[list[str]]:
    """Make the first two reads of SQLite's table list fail with SQLite's own error about a lock, and count them."""
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


def test_a_read_is_retried_while_another_process_switches_the_file_to_wal(
    tmp_path: Path, met: list[str]
) -> None:
    """Two processes may create the file at the same moment. A deferred transaction takes its lock at the first read."""
    backend = SqliteBackend(tmp_path / "koo.db", timeout_s=5.0)
    found: list[Any] = []
    backend.transact(lambda tx: found.extend(tx.rows("SELECT count(*) FROM koo_processes")), exclusive=False)
    backend.close()
    assert found == [(0,)]
    assert len(met) == 2
