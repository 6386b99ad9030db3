"""SQLite's known traps, and what koo does about each one.

* **One writer at a time.** Concurrent writers poll a lock (`database is locked`), and the last to poll may wait
  longest. So this process's writers stand in a queue, first come first served; only other processes are polled for.
* **A transaction that has read cannot always write.** After another connection's write it gets BUSY_SNAPSHOT (517) at
  once, whatever the busy timeout. So a scope keeps no snapshot while it reads: each SELECT sees what is committed, as
  in PostgreSQL's READ COMMITTED, and BEGIN IMMEDIATE is sent right before the first write, when no old snapshot can
  conflict. `SELECT ... FOR UPDATE` starts to write too: read, think and write is safe with it, as in PostgreSQL.
* **readonly** keeps one snapshot for the whole scope (plain BEGIN), and never waits for a writer.
* A **function that is run again** (`transaction`) keeps its snapshot: callers do not see 517, because the repeat takes
  the writers' lock at its start.
* **Foreign keys** are off by default, and the folder of a new file may be missing: koo handles both.
* **`:memory:`** is a different database for each connection, or one transaction shared by all. Here it is a file in a
  temporary folder that is removed with the `Database`.
* **Whether a statement writes** is asked of SQLite if its first word does not say so: `WITH ... DELETE` writes, and a
  CTE that only has the word in a literal reads.
* **COMMIT** meets another process's read lock if WAL is off. The transaction then stays open, and commits when the
  reader is gone. Each new connection tries to switch WAL on; while it is off, that is a condition (`without_wal`).
* A cancelled statement would go on in its thread, and closing would wait for it: so it is interrupted.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import tempfile
import weakref
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

from sqlalchemy import URL

from koo.monitoring.pool import PoolMetrics
from koo.own_files import make_database
from koo.sqlstates import is_locked

BUSY_MS = 50
"""SQLite's own polling for another process's lock, in its thread; koo polls on after it, and can then be cancelled."""


class Mode(Enum):
    """How a scope isolates itself."""

    COMMITTED = "each read sees what is committed; BEGIN IMMEDIATE before the first write"
    SNAPSHOT = "one snapshot from the first read; a write after a foreign one is a conflict"
    READER = "one snapshot from the first read, and no writes"
    WRITER = "BEGIN IMMEDIATE at once"


MODES = {
    None: Mode.COMMITTED,
    "READ COMMITTED": Mode.COMMITTED,
    "REPEATABLE READ": Mode.SNAPSHOT,
    "SERIALIZABLE": Mode.WRITER,
}

_HEAD = re.compile(r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)*([A-Za-z]+)", re.DOTALL)


class Need(Enum):
    """What a statement needs of its transaction. A SAVEPOINT keeps a snapshot, so it is a need of its own."""

    NOTHING = 0
    READ = 1
    WRITE = 2
    SAVEPOINT = 3


class Opening:
    """What starts a transaction, sent right before its first statement. `is_done`: SQLite has accepted it."""

    __slots__ = ("is_done", "words")

    def __init__(self, words: str) -> None:
        self.words = words
        self.is_done = False

    def say(self, inner: sqlite3.Connection) -> None:
        """In the thread. Raises what SQLite raises, for another process's lock too."""
        if not self.is_done:
            inner.execute(self.words)
            self.is_done = True


_NEEDS = {
    **dict.fromkeys(("SELECT", "VALUES", "EXPLAIN"), Need.READ),
    **dict.fromkeys(("INSERT", "UPDATE", "DELETE", "REPLACE", "CREATE", "DROP", "ALTER"), Need.WRITE),
    # Some of these are errors inside a transaction.
    **dict.fromkeys(("PRAGMA", "ATTACH", "DETACH", "VACUUM"), Need.NOTHING),
    **dict.fromkeys(("RELEASE", "ROLLBACK"), Need.NOTHING),
    "SAVEPOINT": Need.SAVEPOINT,
}
ASKED_MAX = 1000
"""Statements whose need is remembered: those in a program's source, with room for generated ones."""


def need_of(statement: str, context: Any) -> Need | None:
    """What a statement needs by its first word; None: ask SQLite."""
    head = _HEAD.match(statement)
    need = None if head is None else _NEEDS.get(head[1].upper())
    if need is not Need.READ:
        return need
    compiled = getattr(context, "compiled", None)
    asked_to_lock = getattr(getattr(compiled, "statement", None), "_for_update_arg", None) is not None
    return Need.WRITE if asked_to_lock else Need.READ


async def ask_need(connection: Any, statement: str, parameters: Any) -> Need:
    """What SQLite's own program for the statement shows; a statement that it refuses needs nothing."""
    try:
        program = await connection.execute_fetchall(f"EXPLAIN {statement}", parameters)
    except sqlite3.Error:
        return Need.READ  # running it will raise the same error, in its own words
    # Of the opcode Transaction, P1 is the database (1 is for temporary tables), and P2 says whether it writes.
    begins = [step[2:4] for step in program if step[1] == "Transaction"]
    return Need.WRITE if any(place != 1 and writes for place, writes in begins) else Need.READ


class SqliteFile:
    """The file of a URL's database. `:memory:` becomes a file of its own that is removed with this object."""

    def __init__(self, url: URL) -> None:
        self.url = url.set(drivername="sqlite+aiosqlite")
        self._finalizer: Callable[[], object] | None = None
        self.temporary = _is_memory(url)

    def open(self) -> URL:
        """The URL to connect to; makes the file and its folder. Raises OSError if that is not possible."""
        if self.temporary:
            if self._finalizer is None:
                folder = tempfile.mkdtemp(prefix="koo-memory-")
                self._finalizer = weakref.finalize(self, shutil.rmtree, folder, True)
                self.url = self.url.set(database=f"{folder}/memory.db", query={})
            return self.url
        path = self.path
        if path is not None:
            make_database(path)
        return self.url

    @property
    def path(self) -> Path | None:
        """The file, or None for SQLite's own `file:` URLs, which may be anything."""
        database = self.url.database
        if not database or database.startswith("file:"):
            return None
        return Path(database)


def _is_memory(url: URL) -> bool:
    database = url.database or ""
    return (
        database in {"", ":memory:"}
        or database.startswith("file::memory:")
        or "mode=memory" in database
        or url.query.get("mode") == "memory"
    )


async def prepare(connection: Any, temporary: bool, metrics: PoolMetrics) -> None:
    """Set up a new connection, and record whether the database has a write-ahead log."""
    synchronous = "OFF" if temporary else "NORMAL"
    await connection.executescript(
        f"PRAGMA busy_timeout={BUSY_MS}; PRAGMA foreign_keys=ON; PRAGMA synchronous={synchronous}"
    )
    metrics.is_without_wal = await _is_kept_from_wal(connection)


async def _is_kept_from_wal(connection: Any) -> bool:
    """Switch WAL on; returns whether a writable database has to work without it."""
    try:
        ((mode,),) = await connection.execute_fetchall("PRAGMA journal_mode=WAL")
        if mode == "wal":
            return False
        await connection.execute_fetchall("BEGIN IMMEDIATE")
        await connection.execute_fetchall("ROLLBACK")
    except sqlite3.OperationalError as error:
        return is_locked(error)  # by another process; a read-only database does not need WAL
    return True
