"""SQLite's known traps, and what koo does about each of them.

* **One writer at a time.** Concurrent writers poll for a lock (`database is locked`), and nothing makes that fair. So
  the writers of this process wait in a queue, first come first served. koo polls only for other processes' locks.
* **A transaction that has read cannot always write.** After a write by another connection its own write fails with
  BUSY_SNAPSHOT (517) immediately, whatever the busy timeout. So a scope keeps no snapshot while it reads: each SELECT
  sees what is committed, as in PostgreSQL's READ COMMITTED. koo sends BEGIN IMMEDIATE right before the first write,
  when no old snapshot can conflict. `SELECT ... FOR UPDATE` counts as a write, so reading, deciding and then writing is
  safe with it, as in PostgreSQL.
* **readonly** keeps one snapshot for the whole scope (plain BEGIN), and never waits for a writer.
* A **function that can run again** (`transaction`) keeps its snapshot. Its callers do not see 517, because the repeat
  takes the writers' lock at its start.
* **Foreign keys** are off by default, and the folder of a new file may be missing: koo handles both.
* **`:memory:`** is a separate database for each connection, or one transaction shared by all of them. In koo it is a
  file in a temporary folder that is removed with the `Database`.
* **Whether a statement writes** is determined by SQLite if its first word does not show it: `WITH ... DELETE` writes,
  and a CTE that contains the word only in a literal reads.
* **COMMIT** can fail on another process's read lock if WAL is off. The transaction then stays open, and koo commits it
  when the reader is gone. Each new connection tries to switch WAL on; while it is off, the condition `without_wal`
  holds.
* **A cancelled statement** would continue in its thread, and closing would wait for it, so koo interrupts it.
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
"""How long SQLite polls for another process's lock in its own thread, where a cancellation cannot stop it. After that
koo polls."""


class Mode(Enum):
    """How a scope is isolated from other transactions."""

    COMMITTED = "each read sees what is committed; BEGIN IMMEDIATE before the first write"
    SNAPSHOT = "one snapshot from the first read; writing after another connection's write is a conflict"
    READER = "one snapshot from the first read, and no writes"
    WRITER = "BEGIN IMMEDIATE at the start"


MODES = {
    None: Mode.COMMITTED,
    "READ COMMITTED": Mode.COMMITTED,
    "REPEATABLE READ": Mode.SNAPSHOT,
    "SERIALIZABLE": Mode.WRITER,
}

_HEAD = re.compile(r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)*+([A-Za-z]+)", re.DOTALL)


class Need(Enum):
    """What a statement needs of its transaction. SAVEPOINT is separate because it may open a snapshot itself."""

    NOTHING = 0
    READ = 1
    WRITE = 2
    SAVEPOINT = 3


class Opening:
    """The BEGIN of a transaction, sent right before its first statement. `is_done`: SQLite has accepted it."""

    __slots__ = ("is_done", "words")

    def __init__(self, words: str, is_done: bool = False) -> None:
        self.words = words
        self.is_done = is_done

    def say(self, inner: sqlite3.Connection) -> None:
        """Send the BEGIN, in the connection's thread. Raises SQLite's errors, including another process's lock."""
        if not self.is_done:
            inner.execute(self.words)
            self.is_done = True


_NEEDS = {
    **dict.fromkeys(("SELECT", "VALUES", "EXPLAIN"), Need.READ),
    **dict.fromkeys(("INSERT", "UPDATE", "DELETE", "REPLACE", "CREATE", "DROP", "ALTER"), Need.WRITE),
    # SQLite refuses some of these inside a transaction, so koo must not begin one for them.
    **dict.fromkeys(("PRAGMA", "ATTACH", "DETACH", "VACUUM"), Need.NOTHING),
    **dict.fromkeys(("RELEASE", "ROLLBACK"), Need.NOTHING),
    "SAVEPOINT": Need.SAVEPOINT,
}
ASKED_MAX = 1000
"""How many statements' needs are remembered: those in a program's source, with room for generated ones."""


def need_of(statement: str, context: Any) -> Need | None:
    """What a statement needs according to its first word, or None if only SQLite can tell."""
    head = _HEAD.match(statement)
    need = None if head is None else _NEEDS.get(head[1].upper())
    if need is not Need.READ:
        return need
    # SQLAlchemy leaves FOR UPDATE out of SQLite's SQL, so it can only be found in the compiled statement.
    compiled = getattr(context, "compiled", None)
    asked_to_lock = getattr(getattr(compiled, "statement", None), "_for_update_arg", None) is not None
    return Need.WRITE if asked_to_lock else Need.READ


async def ask_need(connection: Any, statement: str, parameters: Any) -> Need:
    """What a statement needs according to SQLite's program for it; READ for a statement that SQLite refuses."""
    # EXPLAIN compiles the statement to SQLite's bytecode and returns it without running it.
    try:
        program = await connection.execute_fetchall(f"EXPLAIN {statement}", parameters)
    except sqlite3.Error:
        return Need.READ  # running the statement will raise the same error
    # In the opcode Transaction, P1 is the database (1 is the one for temporary tables) and P2 is 1 if it is written to.
    # Temporary tables belong to this connection alone, so writing to them needs no lock.
    begins = [step[2:4] for step in program if step[1] == "Transaction"]
    return Need.WRITE if any(place != 1 and writes for place, writes in begins) else Need.READ


class SqliteFile:
    """The file of a URL's database. `:memory:` becomes a temporary file that is removed with this object."""

    def __init__(self, url: URL) -> None:
        self.url = url.set(drivername="sqlite+aiosqlite")
        self._finalizer: Callable[[], object] | None = None
        self.temporary = _is_memory(url)

    def open(self) -> URL:
        """Create the file and its folder; returns the URL to connect to. Raises OSError if that is not possible."""
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
        """The path of the file, or None for SQLite's own `file:` URLs, which may name something else."""
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
    # In WAL mode, NORMAL keeps the database consistent through a power failure but may lose the last transactions; a
    # crash of the process loses nothing. A temporary database does not survive the process anyway.
    synchronous = "OFF" if temporary else "NORMAL"
    await connection.executescript(
        f"PRAGMA busy_timeout={BUSY_MS}; PRAGMA foreign_keys=ON; PRAGMA synchronous={synchronous}"
    )
    metrics.is_without_wal = await _is_kept_from_wal(connection)


async def _is_kept_from_wal(connection: Any) -> bool:
    """Switch WAL on; returns whether a writable database has to work without it."""
    # SQLite reports the mode that is in force and does not say why it kept another one. Only BEGIN IMMEDIATE shows
    # whether the database can be written to at all: a read-only one is not missing anything.
    try:
        ((mode,),) = await connection.execute_fetchall("PRAGMA journal_mode=WAL")
        if mode == "wal":
            return False
        await connection.execute_fetchall("BEGIN IMMEDIATE")
        await connection.execute_fetchall("ROLLBACK")
    except sqlite3.OperationalError as error:
        return is_locked(error)  # by another process, so it is writable; otherwise it is read-only
    return True
