"""The state store in SQLite (a file of its own) or PostgreSQL: money, day counts, operators' acts, alerts.

SQLite is in WAL mode with `synchronous=NORMAL`. What was committed survives the death of the process, `kill -9`
included, because the kernel has it. When the machine itself loses power, the file stays intact, but the last commits
(since the last checkpoint, some thousand pages) may be lost: money spent in them is then missing from the books, and
that day's cap can be exceeded by that much. `FULL` would close this gap with a flush to disk for each commit: one to
ten milliseconds of every call's latency. PostgreSQL follows its server's own setting (`synchronous_commit`).

Waits are bounded: no caller waits longer than `timeout_s`. A statement that waits for a lock ends by itself a little
earlier (`busy_timeout`, `statement_timeout`), so that its error says why; anything that hangs silently is cut off.
"""

from __future__ import annotations

import functools
import math
import os
import random
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, TextClause, create_engine, event, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.pool import NullPool, StaticPool

from koo.database_urls import check_place, with_hidden_password
from koo.errors import ConfigurationError
from koo.own_files import make_database
from koo.sqlstates import is_locked
from koo.storage import schema
from koo.storage.base import StoreUnavailable
from koo.storage.faults import lost, sentence, transient
from koo.storage.transaction import (
    WORDS,
    Dialect,
    Row,
    StatementRejected,
    Table,
    Transaction,
    as_rows,
    picked,
)

BUSY_S_MAX = 5.0


@functools.lru_cache(maxsize=1024)
def _statement(sql: str, dialect: Dialect) -> TextClause:
    return text(sql.format_map(WORDS[dialect]))


class SqlTransaction:
    """A `Transaction` on an SQLAlchemy connection."""

    __slots__ = ("_connection", "dialect")

    def __init__(self, connection: Connection, dialect: Dialect) -> None:
        self._connection = connection
        self.dialect: Dialect = dialect

    def rows(self, sql: str, values: Mapping[str, Any] | None = None) -> list[Row]:
        """Run a statement, and return its rows."""
        return [tuple(row) for row in self._connection.execute(_statement(sql, self.dialect), values)]

    def later(self, sql: str, values: Mapping[str, Any] | None = None) -> Callable[[], list[Row]]:
        """Run a statement, whose rows are fetched later."""
        found = self.rows(sql, values)
        return lambda: found

    def run(self, sql: str, values: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None) -> None:
        """Run a statement that returns nothing; once for each of several mappings of values."""
        self._connection.execute(_statement(sql, self.dialect), values)

    def add(self, table: Table, rows: Sequence[Sequence[Any]]) -> None:
        """Write rows; one whose key is there already changes nothing."""
        # Bound by the driver, one row after another: picking each value out of a JSON text takes twice as long.
        self._connection.exec_driver_sql(_insert_of_values(table), [tuple(row) for row in rows])


@functools.cache
def _insert_of_values(table: Table) -> str:
    columns = (*table.texts, *table.numbers)
    return f"""INSERT INTO {table.name} ({", ".join(columns)}) VALUES ({", ".join("?" for _ in columns)})
        ON CONFLICT ({table.key}) DO NOTHING"""


class PipelinedTransaction:
    """A `Transaction` in psycopg's pipeline: a statement that returns nothing travels with the next one that does, or
    with COMMIT. So a beat of ten statements is two round trips, and a distant server does not look like a hung one."""

    __slots__ = ("_connection", "_driver", "dialect")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._driver: Any = connection.connection.driver_connection
        self.dialect: Dialect = "postgresql"

    def rows(self, sql: str, values: Mapping[str, Any] | None = None) -> list[Row]:
        """Run a statement, and return its rows."""
        return self.later(sql, values)()

    def later(self, sql: str, values: Mapping[str, Any] | None = None) -> Callable[[], list[Row]]:
        """Send a statement; its rows are awaited when they are asked for."""
        with self.translated(sql):
            cursor = self._driver.execute(_for_driver(sql), values or {})

        def found() -> list[Row]:
            with self.translated(sql):
                rows: list[Row] = cursor.fetchall()
            return rows

        return found

    def run(self, sql: str, values: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None) -> None:
        """Run a statement that returns nothing; once for each of several mappings of values."""
        with self.translated(sql):
            if isinstance(values, Sequence):
                self._driver.cursor().executemany(_for_driver(sql), values)
            else:
                self._driver.execute(_for_driver(sql), values or {})

    def add(self, table: Table, rows: Sequence[Sequence[Any]]) -> None:
        """Write rows, in one statement; one whose key is there already changes nothing."""
        self.run(_insert_of_rows(table), as_rows(rows))

    @contextmanager
    def translated(self, sql: str) -> Iterator[None]:
        """Raise the driver's errors as SQLAlchemy's, which also say whether the connection is lost."""
        dialect = self._connection.dialect
        try:
            yield
        except dialect.loaded_dbapi.Error as error:
            lost = dialect.is_disconnect(error, self._driver, None)
            raise DBAPIError.instance(
                sql, None, error, dialect.loaded_dbapi.Error, connection_invalidated=lost, dialect=dialect
            ) from error


@functools.cache
def _insert_of_rows(table: Table) -> str:
    columns = picked(table.texts, table.numbers)
    return f"""INSERT INTO {table.name} ({", ".join(columns)})
        SELECT {", ".join(columns.values())} FROM ({{rows}}) r WHERE true
        ON CONFLICT ({table.key}) DO NOTHING"""


@functools.lru_cache(maxsize=1024)
def _for_driver(sql: str) -> str:
    """A statement with the driver's own placeholders."""
    dialect = make_url("postgresql+psycopg://").get_dialect()()
    return str(_statement(sql, "postgresql").compile(dialect=dialect))


class SqlBackend:
    """One database, used by one thread through one connection, which is made when needed and dropped when in doubt.

    `place` says where it is, without a password.
    """

    dialect: Dialect

    def __init__(self, engine: Engine, place: str) -> None:
        self.place = place
        self._engine = engine
        self._connection: Connection | None = None
        event.listen(engine, "connect", self._made)
        event.listen(engine, "begin", self._begin)
        self._exclusive = True
        self._was_cut = False

    def transact(self, write: Callable[[Transaction], None], exclusive: bool) -> None:
        """Run `write` in a transaction and commit. Raises `StoreUnavailable`, or what `write` raised."""
        self._was_cut = False
        try:
            reused = self._usable()
            try:
                self._attempt(write, exclusive)
            except DBAPIError as error:
                # The server was restarted since the last use, or its idle connection was cut.
                is_lost = error.connection_invalidated or lost(error)
                stale = reused and is_lost and not self._was_cut
                if not stale and not transient(error):
                    raise
                self._attempt(write, exclusive)
        except (DataError, IntegrityError) as error:
            raise StatementRejected(f"the state store rejects this: {type(error).__name__}") from error
        except (SQLAlchemyError, OSError) as error:
            raise StoreUnavailable(sentence(error, self.place)) from error

    def _attempt(self, write: Callable[[Transaction], None], exclusive: bool) -> None:
        try:
            connection = self._connect()
            self._exclusive = exclusive
            self._run(connection, write)
        except BaseException:
            self.close()  # its state is unknown, and a new one costs a millisecond
            raise

    def _run(self, connection: Connection, write: Callable[[Transaction], None]) -> None:
        with connection.begin():
            write(SqlTransaction(connection, self.dialect))

    def _connect(self) -> Connection:
        if self._connection is None:
            self._prepare()
            self._connection = self._engine.connect()
            self._exclusive = False
            with self._connection.begin():
                current = schema.is_current(SqlTransaction(self._connection, self.dialect))
            if not current:
                self._exclusive = True
                with self._connection.begin():
                    schema.prepare(SqlTransaction(self._connection, self.dialect))
        return self._connection

    def close(self) -> None:
        """Give the connection back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.invalidate()
                connection.close()
            except SQLAlchemyError:
                pass  # it is being dropped because it failed

    def cut(self) -> None:
        """From another thread: make the statement that hangs fail."""
        raise NotImplementedError

    def _usable(self) -> bool:
        """Whether there is a connection already."""
        return self._connection is not None

    def _prepare(self) -> None:
        """Before a connection is made."""

    def _made(self, connection: Any, record: object) -> None:
        """After a connection was made; `connection` is the driver's own."""
        raise NotImplementedError

    def _begin(self, connection: Connection) -> None:
        """At the beginning of each transaction."""


class SqliteBackend(SqlBackend):
    """A file of its own, made with its folder, readable for its owner only."""

    dialect = "sqlite"

    def __init__(self, path: Path, timeout_s: float) -> None:
        self._path = path
        self._busy_s = min(BUSY_S_MAX, timeout_s * 0.9)
        self._file: tuple[int, int] | None = None
        self._driver: sqlite3.Connection | None = None
        # The timeout is zero because SQLite's own wait sleeps up to 0.1 s between two attempts: see `_begin`.
        arguments = {"check_same_thread": False, "timeout": 0.0}
        url = URL.create("sqlite", database=str(path))
        super().__init__(create_engine(url, poolclass=NullPool, connect_args=arguments), str(path))

    def cut(self) -> None:
        """Interrupt the statement; a write that waits for the disk cannot be interrupted at all."""
        driver = self._driver
        try:
            if driver is not None:
                driver.interrupt()
        except sqlite3.ProgrammingError:
            pass  # it was closed meanwhile

    def _usable(self) -> bool:
        # If the file was removed or replaced, writes to the old one would be invisible to every other process.
        if self._connection is not None and self._identity() != self._file:
            self.close()
        return super()._usable()

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _prepare(self) -> None:
        make_database(self._path)

    def _made(self, connection: Any, record: object) -> None:
        driver: sqlite3.Connection = connection
        driver.isolation_level = (
            None  # otherwise the module would begin transactions itself, and not IMMEDIATE ones
        )
        self._driver = driver
        self._file = self._identity()
        self._patiently(lambda: driver.execute("PRAGMA journal_mode = WAL").fetchall())
        driver.execute("PRAGMA synchronous = NORMAL")

    def _begin(self, connection: Connection) -> None:
        begin = self._begin_to_write if self._exclusive else self._begin_to_read
        self._patiently(lambda: begin(connection))

    def _begin_to_write(self, connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def _begin_to_read(self, connection: Connection) -> None:
        """A deferred transaction locks at its first read, which fails while another process turns the file to WAL."""
        # SQLAlchemy rolls back if the second statement fails.
        connection.exec_driver_sql("BEGIN")
        connection.exec_driver_sql("SELECT count(*) FROM sqlite_master")

    def _patiently(self, act: Callable[[], object]) -> None:
        """Do `act` as soon as the lock is free: tries again after a millisecond or two, at random."""
        until = time.monotonic() + self._busy_s
        while True:
            try:
                act()
                return
            except (DBAPIError, sqlite3.OperationalError) as error:
                if not is_locked(error) or time.monotonic() >= until:
                    raise
            time.sleep(0.0005 + 0.002 * random.random())


class MemoryBackend(SqlBackend):
    """Tables that end with this object."""

    dialect = "sqlite"

    def __init__(self) -> None:
        super().__init__(create_engine("sqlite://", poolclass=StaticPool), "memory")

    def close(self) -> None:
        """Keep the connection: the tables exist only in it."""

    def _made(self, connection: Any, record: object) -> None:
        connection.isolation_level = None  # otherwise the module would begin transactions itself

    def _begin(self, connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")


class PostgresBackend(SqlBackend):
    """A PostgreSQL database, through psycopg; koo's tables are in the first schema of the search path."""

    dialect = "postgresql"

    def __init__(self, url: URL, timeout_s: float) -> None:
        timeout_ms = int(timeout_s * 900)
        self._settings = (
            f"SET statement_timeout = {timeout_ms}; SET lock_timeout = {timeout_ms}; "
            # A process that is stopped in the middle of a transaction would keep every other one from the day's row.
            f"SET idle_in_transaction_session_timeout = {timeout_ms * 2}"
        )
        self._plug: socket.socket | None = None
        self._plug_lock = threading.Lock()
        arguments = {
            "connect_timeout": max(2, math.ceil(timeout_s)),
            "application_name": "koo",
            "tcp_user_timeout": timeout_ms,
            "prepare_threshold": None,  # preparing takes a round trip, and does not work behind every pooler
        }
        engine = create_engine(
            url, poolclass=NullPool, connect_args=arguments, isolation_level="READ COMMITTED"
        )
        super().__init__(engine, f"PostgreSQL at {url.host or 'localhost'}:{url.port or 5432}/{url.database}")

    def cut(self) -> None:
        """End the connection under the statement."""
        self._was_cut = True  # a server that hangs would keep the next attempt waiting too
        with self._plug_lock:
            if self._plug is not None:
                try:
                    self._plug.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # the other side was faster

    def _run(self, connection: Connection, write: Callable[[Transaction], None]) -> None:
        driver: Any = connection.connection.driver_connection
        # BEGIN and COMMIT are sent as statements: the driver's own would each be an extra round trip.
        driver.autocommit = True
        tx, pipeline = PipelinedTransaction(connection), driver.pipeline()
        # Not as a block: after an error the connection is closed, and leaving the pipeline would only warn about that.
        pipeline.__enter__()
        tx.run("BEGIN")
        write(tx)
        tx.run("COMMIT")
        with tx.translated("COMMIT"):
            pipeline.__exit__(None, None, None)

    def close(self) -> None:
        """Give the connection back."""
        with self._plug_lock:
            if self._plug is not None:
                self._plug.close()
                self._plug = None
        super().close()

    def _made(self, connection: Any, record: object) -> None:
        # A duplicate: the driver closes its descriptor at any time, and the number may then belong to another socket.
        self._plug = socket.socket(fileno=os.dup(connection.fileno()))
        connection.autocommit = True
        connection.execute(self._settings)
        connection.autocommit = False


def read_url(url: str, home: Path) -> Path | URL:
    """The file of an SQLite URL (relative to `home`), or PostgreSQL's URL. Raises `ConfigurationError`."""
    try:
        if not url.startswith("sqlite"):
            check_place(url.partition("://")[2])
    except ValueError as error:
        raise ConfigurationError("KOO_STATE_URL", f"it cannot be right: {error}") from None
    parsed = None
    with suppress(ArgumentError, ValueError):  # their messages repeat the URL, with the password
        parsed = with_hidden_password(make_url(url))
    if parsed is None:
        raise ConfigurationError("KOO_STATE_URL", "not a URL; an example is sqlite:///data/koo-state.db")
    backend = parsed.drivername.partition("+")[0]
    if backend == "sqlite":
        if not parsed.database or ":memory:" in parsed.database or parsed.query:
            raise ConfigurationError(
                "KOO_STATE_URL", "it must name a file and nothing else: sqlite:///path/to/file.db"
            )
        return home / Path(parsed.database).expanduser()
    if backend in ("postgresql", "postgres"):
        return _for_psycopg(parsed)
    raise ConfigurationError(
        "KOO_STATE_URL", f"{parsed.drivername} cannot be a state store; allowed are sqlite and postgresql"
    )


def _for_psycopg(url: URL) -> URL:
    """asyncpg's own options are not libpq's: `ssl` is `sslmode` there, and the caches mean nothing to one thread."""
    query = {name: value for name, value in url.query.items() if "statement" not in name}
    if "ssl" in query:
        query["sslmode"] = query.pop("ssl")
    return url.set(drivername="postgresql+psycopg", query=query)


def make_backend(target: Path | URL, timeout_s: float) -> SqlBackend:
    """The backend for the result of `read_url`; opens nothing."""
    if isinstance(target, Path):
        return SqliteBackend(target, timeout_s)
    return PostgresBackend(target, timeout_s)
