"""SQLite's known traps, and what koo does about each.

* **One writer at a time.** Two that write at once poll a lock (`database is locked`), and who polls last may wait
  longest. Here writers of this process stand in a line, first come first served; only other processes are polled for.
* **A transaction that read cannot always go on to write.** After a foreign write it gets BUSY_SNAPSHOT (517) at once,
  whatever the busy timeout. So a scope keeps no snapshot while it reads: each SELECT sees what is committed, as in
  PostgreSQL's READ COMMITTED, and BEGIN IMMEDIATE is said right before the first write, when there is no old snapshot
  to be in conflict with. `SELECT ... FOR UPDATE` begins to write too: read, think and write is safe with it, here as
  there.
* **readonly** keeps one snapshot for the whole scope (plain BEGIN), and never waits for a writer.
* A **function that is run again** (`transaction`) keeps its snapshot: callers do not see 517, since the repeat takes
  the writers' lock at its start.
* **Foreign keys** are off, and a deleted file's folder is missing: koo sees to both.
* **`:memory:`** is another database for each connection, or one transaction shared by all. Here it is a file in a
  temporary folder that goes when the `Database` does.
* A cancelled statement goes on in its thread, and closing waits for it: it is interrupted.
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
from urllib.parse import unquote

from sqlalchemy import URL

BUSY_MS = 50
"""SQLite's own polling for another process's lock, in its thread; koo asks again, and can be cancelled in between."""


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

_READS = re.compile(
    r"\s*(?:--[^\n]*\n\s*|/\*.*?\*/\s*)*(SELECT|VALUES|EXPLAIN|PRAGMA|ATTACH|DETACH|VACUUM)\b",
    re.IGNORECASE | re.DOTALL,
)
_WITH = re.compile(r"\s*WITH\b", re.IGNORECASE)
_WRITES_WITHIN = re.compile(r"\b(INSERT|UPDATE|DELETE|REPLACE)\b", re.IGNORECASE)
_OUTSIDE = {"PRAGMA", "ATTACH", "DETACH", "VACUUM"}


class Need(Enum):
    """What a statement needs of its transaction."""

    NOTHING = 0
    READ = 1
    WRITE = 2


def need_of(statement: str, context: Any) -> Need:
    """What a statement needs: whatever is not surely a read is a write."""
    head = _READS.match(statement)
    if head is None:
        reads = _WITH.match(statement) is not None and _WRITES_WITHIN.search(statement) is None
        return Need.READ if reads else Need.WRITE
    if head[1].upper() in _OUTSIDE:  # some of them are errors inside a transaction
        return Need.NOTHING
    compiled = getattr(context, "compiled", None)
    asked_to_lock = getattr(getattr(compiled, "statement", None), "_for_update_arg", None) is not None
    return Need.WRITE if asked_to_lock else Need.READ


class SqliteFile:
    """Where the database of a URL lies. `:memory:` becomes a file of its own that is removed with this object."""

    def __init__(self, url: URL) -> None:
        self.url = url.set(drivername="sqlite+aiosqlite")
        self._finalizer: Callable[[], object] | None = None
        self.temporary = _is_memory(url)

    def open(self) -> URL:
        """The URL to connect to; makes the folder. Raises OSError where that is not possible."""
        if self.temporary:
            if self._finalizer is None:
                folder = tempfile.mkdtemp(prefix="koo-memory-")
                self._finalizer = weakref.finalize(self, shutil.rmtree, folder, True)
                self.url = self.url.set(database=f"{folder}/memory.db", query={})
            return self.url
        path = self.path
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        return self.url

    @property
    def path(self) -> Path | None:
        """The file, or None for SQLite's own `file:` URLs, which may be anything."""
        database = self.url.database
        if not database or database.startswith("file:"):
            return None
        return Path(unquote(database))


def _is_memory(url: URL) -> bool:
    database = url.database or ""
    return (
        database in {"", ":memory:"}
        or database.startswith("file::memory:")
        or "mode=memory" in database
        or url.query.get("mode") == "memory"
    )


async def prepare(connection: Any, temporary: bool) -> None:
    """Set a new connection up."""
    synchronous = "OFF" if temporary else "NORMAL"
    await connection.executescript(
        f"PRAGMA busy_timeout={BUSY_MS}; PRAGMA foreign_keys=ON; PRAGMA synchronous={synchronous}"
    )
    try:
        await connection.execute_fetchall("PRAGMA journal_mode=WAL")
    except sqlite3.OperationalError:
        # A database that is read-only, or that another process holds just now: it works in the mode it has.
        return
