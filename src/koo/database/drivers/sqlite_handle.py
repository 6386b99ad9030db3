"""SQLite's own connection: it closes its cursors on request, and notices that its file was replaced."""

from __future__ import annotations

import sqlite3
import weakref
from pathlib import Path
from typing import Any


class OwnCursors(sqlite3.Connection):
    """A connection that keeps track of its cursors, so that koo can close them in place of their owners.

    While a statement is open, SQLite remembers an interrupt and applies it to the ROLLBACK that comes next: the
    transaction and its locks would stay. The traceback of a cancelled caller can keep a cursor, and so a statement,
    open.
    """

    def __init__(self, database: str, *args: Any, **options: Any) -> None:
        super().__init__(database, *args, **options)
        self._cursors: weakref.WeakSet[sqlite3.Cursor] = weakref.WeakSet()
        # Absolute, because the process may change its directory. SQLite's own `file:` URLs are not read here.
        self._path = None if database.startswith(("file:", ":")) else Path(database).absolute()
        self._file = None if self._path is None else _identity(self._path)

    def refuse_if_moved(self) -> None:
        """Raise `sqlite3.OperationalError` if the path leads to another file by now, or to none."""
        # An open descriptor keeps a removed or replaced file alive (a restored backup, for example). With a write-ahead
        # log SQLite does not look, so writes would succeed and be lost with the last connection.
        if self._path is None or _identity(self._path) == self._file:
            return
        error = sqlite3.OperationalError("the database file was moved, removed or replaced while it was open")
        error.sqlite_errorcode = sqlite3.SQLITE_READONLY_DBMOVED
        error.sqlite_errorname = "SQLITE_READONLY_DBMOVED"
        raise error

    def cursor(self, *args: Any, **options: Any) -> Any:
        cursor = super().cursor(*args, **options)
        self._cursors.add(cursor)
        return cursor

    def execute(self, *args: Any) -> Any:
        return self.cursor().execute(*args)  # the C code would create a cursor without calling `cursor`

    def give_up(self) -> None:
        """Close every statement, and end the transaction. Runs in the connection's thread."""
        for cursor in tuple(self._cursors):
            cursor.close()
        self.rollback()


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file `path` leads to; None if it cannot be found."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
