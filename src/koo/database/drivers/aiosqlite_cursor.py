"""SQLAlchemy's cursor on aiosqlite, with one turn of the connection's thread for each statement.

SQLAlchemy's own cursor takes one turn of the thread to be created, one to run the statement, one to fetch and one to
close, and BEGIN takes another. Each turn wakes the thread and then the event loop, which costs more than a small
statement. Between two turns the statement is also open: it holds locks, and keeps an interrupt for the next statement.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy.dialects.sqlite.aiosqlite import AsyncAdapt_aiosqlite_connection
from sqlalchemy.util import await_only as await_

from koo.database.drivers.sqlite_handle import OwnCursors
from koo.database.sqlite import Opening


class Answer(NamedTuple):
    """The result of a statement: the cursor's attributes of these names, and all rows."""

    description: Any = None
    rowcount: int = -1
    lastrowid: int | None = None
    rows: Sequence[Any] = ()


class Turn:
    """One turn of the thread: the opening, if there is one, then one complete statement.

    Skipped if its caller was cancelled: an interrupt ends only a statement that is already running, so nothing would
    end one that starts later.
    """

    __slots__ = ("_arguments", "_future", "_inner", "_method", "_opening")

    def __init__(
        self,
        future: asyncio.Future[Answer],
        inner: OwnCursors,
        opening: Opening | None,
        method: Callable[..., Any] | None,
        *arguments: Any,
    ) -> None:
        self._future = future
        self._inner = inner
        self._opening = opening
        self._method = method
        self._arguments = arguments

    def __call__(self) -> Answer:
        # This runs here in the thread, because a file system that does not respond would block the event loop. Within a
        # transaction it is too late for another file.
        if not self._inner.in_transaction:
            self._inner.refuse_if_moved()
        # The cancellation is checked again after the opening, which may wait up to `BUSY_MS` for another process's
        # lock: the caller may be cancelled during that time. An opening without its statement is harmless, because the
        # scope's rollback follows.
        if self._opening is not None and not self._future.cancelled():
            self._opening.say(self._inner)
        if self._method is None or self._future.cancelled():
            return Answer()
        cursor = self._inner.cursor()
        try:
            self._method(cursor, *self._arguments)
            rows = () if cursor.description is None else cursor.fetchall()
            return Answer(cursor.description, cursor.rowcount, cursor.lastrowid, rows)
        finally:
            cursor.close()  # otherwise an error's traceback would keep the statement open, with its locks


class OneTurnCursor:
    """Like SQLAlchemy's cursor, but it has all rows when `execute` returns, and keeps no statement open."""

    __slots__ = ("_adapted", "_rows", "arraysize", "description", "lastrowid", "rowcount")

    server_side = False

    def __init__(self, adapted: AsyncAdapt_aiosqlite_connection) -> None:
        self._adapted = adapted
        self._rows: deque[Any] = deque()
        self.arraysize = 1
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None

    def execute(self, operation: str, parameters: Any = ()) -> OneTurnCursor:
        return self._run(sqlite3.Cursor.execute, operation, () if parameters is None else parameters)

    def executemany(self, operation: str, seq_of_parameters: Any) -> OneTurnCursor:
        return self._run(sqlite3.Cursor.executemany, operation, seq_of_parameters)

    def _run(self, method: Callable[..., Any], *arguments: Any) -> OneTurnCursor:
        # All rows are fetched in the same turn. They take memory, but an AsyncSession buffers a result that is not
        # streamed anyway, and no statement stays open that would hold a lock or remember an interrupt.
        answer = await_(self._adapted.driver_connection.take_turn(method, *arguments))
        self.description, self.rowcount, self.lastrowid, rows = answer
        self._rows = deque(rows)
        return self

    def fetchone(self) -> Any:
        return self._rows.popleft() if self._rows else None

    def fetchmany(self, size: int | None = None) -> list[Any]:
        many = self.arraysize if size is None else size
        return [self._rows.popleft() for _ in range(min(many, len(self._rows)))]

    def fetchall(self) -> list[Any]:
        rows = list(self._rows)
        self._rows.clear()
        return rows

    def __iter__(self) -> Iterator[Any]:
        while self._rows:
            yield self._rows.popleft()

    def setinputsizes(self, *sizes: Any) -> None:
        """Does nothing, as in SQLAlchemy's cursor."""

    def close(self) -> None:
        self._rows.clear()

    async def _async_soft_close(self) -> None:
        """Does nothing: SQLAlchemy calls it to close the statement behind a buffered result."""


class AdaptedConnection(AsyncAdapt_aiosqlite_connection):
    """Like SQLAlchemy's, with one-turn cursors except for streamed rows."""

    __slots__ = ()

    def cursor(self, server_side: bool = False) -> Any:
        return super().cursor(server_side=True) if server_side else OneTurnCursor(self)
