"""The state store in SQLite (a separate file) or PostgreSQL: money, daily counts, operators' acts, alerts.

SQLite runs in WAL mode with `synchronous=NORMAL`. A committed transaction survives the death of the process, including
`kill -9`, because the kernel has the data. If the machine loses power, the file stays intact, but the last commits
(those since the last checkpoint, about a thousand pages) may be lost. Money spent in them is then missing from the
books, and that day's cap can be exceeded by that amount. `FULL` would prevent this by flushing to disk with each
commit, which takes one to ten milliseconds. PostgreSQL follows its server's own setting (`synchronous_commit`).

No caller waits longer than `timeout_s`. A statement that waits for a lock fails a little earlier (`_patiently`,
`statement_timeout`), so that its error gives the reason. A statement that hangs without an error is cut off.
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
from koo.paths import placed
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
        """Run a statement and return its rows."""
        return [tuple(row) for row in self._connection.execute(_statement(sql, self.dialect), values)]

    def later(self, sql: str, values: Mapping[str, Any] | None = None) -> Callable[[], list[Row]]:
        """Run a statement whose rows are fetched later."""
        found = self.rows(sql, values)
        return lambda: found

    def run(self, sql: str, values: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None) -> None:
        """Run a statement that returns nothing, once for each of several mappings of values."""
        self._connection.execute(_statement(sql, self.dialect), values)

    def add(self, table: Table, rows: Sequence[Sequence[Any]]) -> None:
        """Insert rows. A row whose key already exists is skipped."""
        # The driver binds one row after another. Extracting each value from a JSON text, as the server's variant does
        # to save round trips, takes twice as long here.
        self._connection.exec_driver_sql(_insert_of_values(table), [tuple(row) for row in rows])


@functools.cache
def _insert_of_values(table: Table) -> str:
    columns = (*table.texts, *table.numbers)
    return f"""INSERT INTO {table.name} ({", ".join(columns)}) VALUES ({", ".join("?" for _ in columns)})
        ON CONFLICT ({table.key}) DO NOTHING"""


class PipelinedTransaction:
    """A `Transaction` in psycopg's pipeline: a statement without rows travels with the next one that returns rows, or
    with COMMIT. So a beat of ten statements takes two round trips, and a distant server is not mistaken for a hung one.
    """

    __slots__ = ("_connection", "_driver", "dialect")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._driver: Any = connection.connection.driver_connection
        self.dialect: Dialect = "postgresql"

    def rows(self, sql: str, values: Mapping[str, Any] | None = None) -> list[Row]:
        """Run a statement and return its rows."""
        return self.later(sql, values)()

    def later(self, sql: str, values: Mapping[str, Any] | None = None) -> Callable[[], list[Row]]:
        """Send a statement; calling the result waits for its rows."""
        with self.translated(sql):
            cursor = self._driver.execute(_for_driver(sql), values or {})

        # In a pipeline nothing has been executed yet, so an error of this statement, or of one before it that returns
        # nothing, is raised here and not above.
        def found() -> list[Row]:
            with self.translated(sql):
                rows: list[Row] = cursor.fetchall()
            return rows

        return found

    def run(self, sql: str, values: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None) -> None:
        """Run a statement that returns nothing, once for each of several mappings of values."""
        with self.translated(sql):
            if isinstance(values, Sequence):
                self._driver.cursor().executemany(_for_driver(sql), values)
            else:
                self._driver.execute(_for_driver(sql), values or {})

    def add(self, table: Table, rows: Sequence[Sequence[Any]]) -> None:
        """Insert rows with one statement. A row whose key already exists is skipped."""
        self.run(_insert_of_rows(table), as_rows(rows))

    @contextmanager
    def translated(self, sql: str) -> Iterator[None]:
        """Raise the driver's errors as SQLAlchemy errors, which also tell whether the connection is lost."""
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
    """One database, used by one thread through one connection. The connection is opened when needed and closed after
    any error.

    `place` names the database without a password.
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
                # A reused connection that is lost is usually a stale one: the server was restarted since the last use,
                # or a firewall dropped the idle connection. One attempt on a new connection hides that from callers.
                #
                # The connection may also have been lost during COMMIT, and the first run may be committed. It runs
                # again all the same, because all work is written for that: entries have unique ids, a beat has a
                # token that the store recognises, totals only grow. Not running it again would leave the caller with
                # an unknown outcome, which it could only resolve by sending the same thing.
                #
                # A connection that koo itself has cut is not stale: the server hangs, and a second attempt would hang
                # just as long, and its caller's timeout is already over.
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
            # After any error the connection's state is unknown (a transaction may still be open, a pipeline may have
            # unread results), and a new connection costs a millisecond.
            self.close()
            raise

    def _run(self, connection: Connection, write: Callable[[Transaction], None]) -> None:
        with connection.begin():
            write(SqlTransaction(connection, self.dialect))

    def _connect(self) -> Connection:
        if self._connection is None:
            self._prepare()
            self._connection = self._engine.connect()
            # The check runs in a reading transaction. A writing one takes the lock of the whole SQLite file, and fifty
            # processes that start together would queue for it only to find that there is nothing to do.
            self._exclusive = False
            with self._connection.begin():
                current = schema.is_current(SqlTransaction(self._connection, self.dialect))
            if not current:
                self._exclusive = True
                with self._connection.begin():
                    schema.prepare(SqlTransaction(self._connection, self.dialect))
        return self._connection

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            # `invalidate` comes first, because `close` alone would send ROLLBACK and wait for its reply. On a
            # connection that hangs, that reply never comes.
            try:
                connection.invalidate()
                connection.close()
            except SQLAlchemyError:
                pass  # it is being closed because it failed

    def cut(self) -> None:
        """Make a hung statement fail; called from another thread."""
        raise NotImplementedError

    def _usable(self) -> bool:
        """Whether a connection is open."""
        return self._connection is not None

    def _prepare(self) -> None:
        """Called before a connection is opened."""

    def _made(self, connection: Any, record: object) -> None:
        """Called after a connection was opened; `connection` is the driver's own."""
        raise NotImplementedError

    def _begin(self, connection: Connection) -> None:
        """Called at the beginning of each transaction."""


class SqliteBackend(SqlBackend):
    """A separate file, created with its folder, readable only by its owner."""

    dialect = "sqlite"

    def __init__(self, path: Path, timeout_s: float) -> None:
        self._path = path
        self._busy_s = min(BUSY_S_MAX, timeout_s * 0.9)
        self._file: tuple[int, int] | None = None
        self._driver: sqlite3.Connection | None = None
        # A timeout of zero disables SQLite's own wait for a lock, which sleeps up to 0.1 s between two attempts.
        # Several processes that write every 0.1 s would spend most of their time asleep; `_patiently` waits instead.
        arguments = {"check_same_thread": False, "timeout": 0.0}
        url = URL.create("sqlite", database=str(path))
        super().__init__(create_engine(url, poolclass=NullPool, connect_args=arguments), str(path))

    def cut(self) -> None:
        """Interrupt the statement. A write that waits for the disk cannot be interrupted."""
        driver = self._driver
        try:
            if driver is not None:
                driver.interrupt()
        except sqlite3.ProgrammingError:
            pass  # the thread has closed it in the meantime

    def _usable(self) -> bool:
        # An open descriptor keeps a removed or replaced file alive. Writes through it would succeed and be invisible
        # to every other process, and each would spend the whole budget from its own file.
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
        # With any other value the module begins transactions itself, and deferred ones (see `_begin_to_write`).
        driver.isolation_level = None
        self._driver = driver
        self._file = self._identity()
        # Switching a new file to WAL needs an exclusive lock, which another starting process may hold.
        self._patiently(lambda: driver.execute("PRAGMA journal_mode = WAL").fetchall())
        driver.execute("PRAGMA synchronous = NORMAL")

    def _begin(self, connection: Connection) -> None:
        begin = self._begin_to_write if self._exclusive else self._begin_to_read
        self._patiently(lambda: begin(connection))

    def _begin_to_write(self, connection: Connection) -> None:
        # IMMEDIATE takes the write lock now. A deferred transaction takes it at its first write, after it has read: if
        # another process committed between the two, that write fails immediately with SQLITE_BUSY, however long the
        # timeout, because the rows it read are outdated.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def _begin_to_read(self, connection: Connection) -> None:
        # BEGIN alone locks nothing; the first read does, and fails while another process switches the file to WAL. A
        # trivial read here moves that failure into `_patiently`, which tries again. If it happened in the caller's
        # work, the whole transaction would fail. SQLAlchemy rolls back if the second statement fails.
        connection.exec_driver_sql("BEGIN")
        connection.exec_driver_sql("SELECT count(*) FROM sqlite_master")

    def _patiently(self, act: Callable[[], object]) -> None:
        """Run `act` as soon as the lock is free, trying again every 0.5 to 2.5 ms."""
        # The pause is random, so two processes that found the lock taken at the same moment do not meet again and
        # again.
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
    """Tables in memory that end with this object."""

    dialect = "sqlite"

    def __init__(self) -> None:
        super().__init__(create_engine("sqlite://", poolclass=StaticPool), "memory")

    def close(self) -> None:
        """Do nothing: the tables exist only as long as the connection."""

    def _made(self, connection: Any, record: object) -> None:
        connection.isolation_level = None  # otherwise the module begins transactions itself

    def _begin(self, connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")


class PostgresBackend(SqlBackend):
    """A PostgreSQL database, through psycopg; koo's tables are in the first schema of the search path."""

    dialect = "postgresql"

    def __init__(self, url: URL, timeout_s: float) -> None:
        # The server's timeout is nine tenths of the caller's, so its error, which gives a reason, arrives first.
        timeout_ms = int(timeout_s * 900)
        self._settings = (
            f"SET statement_timeout = {timeout_ms}; SET lock_timeout = {timeout_ms}; "
            # A process that is stopped (SIGSTOP, a suspended machine) in the middle of a transaction keeps its row
            # locks, and without this no other process could book anything until it continues.
            f"SET idle_in_transaction_session_timeout = {timeout_ms * 2}"
        )
        self._plug: socket.socket | None = None
        self._plug_lock = threading.Lock()
        arguments = {
            "connect_timeout": max(2, math.ceil(timeout_s)),
            "application_name": "koo",
            "tcp_user_timeout": timeout_ms,
            "prepare_threshold": None,  # preparing takes a round trip and does not work with every pooler
        }
        engine = create_engine(
            url, poolclass=NullPool, connect_args=arguments, isolation_level="READ COMMITTED"
        )
        super().__init__(engine, f"PostgreSQL at {url.host or 'localhost'}:{url.port or 5432}/{url.database}")

    def cut(self) -> None:
        """Shut the socket down, so that the statement fails."""
        self._was_cut = True  # set first: the store's thread reads it as soon as its statement fails
        # Only `shutdown` wakes a thread that is blocked in recv(); closing the descriptor would leave it blocked. The
        # lock keeps the store's thread from closing the descriptor during the call, when its number could already
        # belong to another socket of this process.
        with self._plug_lock:
            if self._plug is not None:
                try:
                    self._plug.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # the server has closed it already

    def _run(self, connection: Connection, write: Callable[[Transaction], None]) -> None:
        driver: Any = connection.connection.driver_connection
        # BEGIN and COMMIT are sent as ordinary statements. The driver's own would each be an extra round trip.
        driver.autocommit = True
        tx, pipeline = PipelinedTransaction(connection), driver.pipeline()
        # This is not a `with` block, because after an error the connection is closed, and leaving the pipeline would
        # only log a warning about that.
        pipeline.__enter__()
        tx.run("BEGIN")
        write(tx)
        tx.run("COMMIT")
        # COMMIT is only queued above. Leaving the pipeline sends it and waits for all replies, so errors of the last
        # statements and of COMMIT itself are raised here; until then nothing is committed.
        with tx.translated("COMMIT"):
            pipeline.__exit__(None, None, None)

    def close(self) -> None:
        """Close the connection."""
        with self._plug_lock:
            if self._plug is not None:
                self._plug.close()
                self._plug = None
        super().close()

    def _made(self, connection: Any, record: object) -> None:
        # This is a duplicate descriptor of the same connection. The driver may close its own at any time, and `cut`
        # would then shut down whatever socket has been given that number since.
        self._plug = socket.socket(fileno=os.dup(connection.fileno()))
        # The settings are made in autocommit, because rolling back a transaction also undoes a SET inside it.
        connection.autocommit = True
        connection.execute(self._settings)
        connection.autocommit = False


def read_url(url: str, home: Path) -> Path | URL:
    """The file of an SQLite URL (relative to `home`), or PostgreSQL's URL. Raises `ConfigurationError`."""
    try:
        if not url.startswith("sqlite"):
            check_place(url.partition("://")[2])
    except ValueError as error:
        raise ConfigurationError("KOO_STATE_URL", f"not a usable URL: {error}") from None
    parsed = None
    with suppress(ArgumentError, ValueError):  # their messages contain the URL with its password
        parsed = with_hidden_password(make_url(url))
    if parsed is None:
        raise ConfigurationError("KOO_STATE_URL", "not a URL; an example is sqlite:///data/koo-state.db")
    backend = parsed.drivername.partition("+")[0]
    if backend == "sqlite":
        if not parsed.database or ":memory:" in parsed.database or parsed.query:
            raise ConfigurationError(
                "KOO_STATE_URL", "it must name a file and nothing else: sqlite:///path/to/file.db"
            )
        try:
            return placed(parsed.database, home)
        except ValueError as error:
            raise ConfigurationError("KOO_STATE_URL", str(error)) from None
    if backend in ("postgresql", "postgres"):
        return _for_psycopg(parsed)
    raise ConfigurationError(
        "KOO_STATE_URL", f"{parsed.drivername} cannot be a state store; expected sqlite or postgresql"
    )


def _for_psycopg(url: URL) -> URL:
    """Translate a URL that was written for asyncpg: psycopg calls `ssl` `sslmode`, and has no statement cache to
    configure."""
    query = {name: value for name, value in url.query.items() if "statement" not in name}
    if "ssl" in query:
        query["sslmode"] = query.pop("ssl")
    return url.set(drivername="postgresql+psycopg", query=query)


def make_backend(target: Path | URL, timeout_s: float) -> SqlBackend:
    """Create the backend for a result of `read_url`; opens no connection."""
    if isinstance(target, Path):
        return SqliteBackend(target, timeout_s)
    return PostgresBackend(target, timeout_s)
