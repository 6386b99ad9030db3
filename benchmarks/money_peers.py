"""The usual form of a budget: a database row, with a conditional UPDATE that holds before each call and another that
settles.

This is the cheapest implementation: one connection, prepared statements, and nothing around them. Gateways that count
in memory and synchronise in batches are faster, but exceed their caps.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from benchmarks.peers import load
from koo.testing.postgres import PostgresServer

TABLES = (
    "CREATE TABLE budgets (name TEXT PRIMARY KEY, amount BIGINT, held BIGINT, spent BIGINT)",
    "CREATE TABLE entries (budget TEXT, amount BIGINT, model TEXT)",
)
BUDGETS_MAX = 4
HOLD = "UPDATE budgets SET held = held + {0} WHERE name = {0} AND spent + held + {0} <= amount"
SETTLE = "UPDATE budgets SET held = held - {0}, spent = spent + {0} WHERE name = {0}"
ENTER = "INSERT INTO entries VALUES ({0}, {0}, 'bench')"


class Rows(Protocol):
    """Budgets as rows."""

    def hold(self, budgets: int, amount: int) -> None:
        """Hold in the first budgets, in one transaction."""
        ...

    def settle(self, budgets: int, amount: int, cost: int) -> None:
        """Book the cost, in one transaction."""
        ...


class SqliteRows:
    """In a file in WAL mode that is flushed to disk only at checkpoints, like koo's own store."""

    def __init__(self, path: Path, limit: int) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = NORMAL", *TABLES):
            self._connection.execute(statement)
        rows = [(str(number), limit, 0, 0) for number in range(BUDGETS_MAX)]
        self._connection.executemany("INSERT INTO budgets VALUES (?, ?, ?, ?)", rows)
        self._hold, self._settle, self._enter = (sql.format("?") for sql in (HOLD, SETTLE, ENTER))

    def hold(self, budgets: int, amount: int) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        for number in range(budgets):
            assert execute(self._hold, (amount, str(number), amount)).rowcount == 1
        execute("COMMIT")

    def settle(self, budgets: int, amount: int, cost: int) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        for number in range(budgets):
            execute(self._settle, (amount, cost, str(number)))
        execute(self._enter, ("0", cost))
        execute("COMMIT")

    def close(self) -> None:
        self._connection.close()


class PostgresRows:
    """On a server, through psycopg; a single statement commits by itself."""

    def __init__(self, url: str, limit: int) -> None:
        self._connection = load("psycopg", "psycopg").connect(url, autocommit=True, prepare_threshold=0)
        for statement in TABLES:
            self._connection.execute(statement)
        for number in range(BUDGETS_MAX):
            self._connection.execute("INSERT INTO budgets VALUES (%s, %s, 0, 0)", (str(number), limit))
        self._hold, self._settle, self._enter = (sql.format("%s") for sql in (HOLD, SETTLE, ENTER))

    def hold(self, budgets: int, amount: int) -> None:
        if budgets == 1:
            assert self._connection.execute(self._hold, (amount, "0", amount)).rowcount == 1
            return
        with self._connection.transaction():
            for number in range(budgets):
                assert self._connection.execute(self._hold, (amount, str(number), amount)).rowcount == 1

    def settle(self, budgets: int, amount: int, cost: int) -> None:
        with self._connection.pipeline(), self._connection.transaction():
            for number in range(budgets):
                self._connection.execute(self._settle, (amount, cost, str(number)))
            self._connection.execute(self._enter, ("0", cost))

    def close(self) -> None:
        self._connection.close()


@contextmanager
def postgres_rows(
    server: PostgresServer, limit: int, through: tuple[str, int] | None = None
) -> Iterator[PostgresRows]:
    """Rows in a separate database; `through` is the host and port of a proxy."""
    name = server.create_database()
    host, port = through or (server.host, server.port)
    plain = server.url(driver=None, database=name).replace(f"@{server.host}:{server.port}", f"@{host}:{port}")
    rows = PostgresRows(plain, limit)
    try:
        yield rows
    finally:
        rows.close()
        server.drop_database(name)
