"""aiosqlite's connection, whose end is one and is waited for.

A thread serves each connection, until it is told to stop. Told twice, aiosqlite waits for a second answer that nobody
gives: whoever is cancelled while SQLAlchemy closes (at the end of `asyncio.run`, say) would leave a task that waits for
ever. And an attempt to connect that is cancelled stops its thread without waiting, so that the thread may answer to a
loop that has ended meanwhile.
"""

from __future__ import annotations

import asyncio
import sqlite3
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import aiosqlite

from koo.database.drivers import Keep

CHUNK_ROWS = 64


class OwnCursors(sqlite3.Connection):
    """Knows its cursors, so that they can be closed by another than their owner.

    While a statement is open SQLite remembers an interrupt, and gives it to the ROLLBACK that comes next: then the
    transaction and its locks would live on. A cancelled caller's traceback can keep a cursor, and so a statement, open.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._cursors: weakref.WeakSet[sqlite3.Cursor] = weakref.WeakSet()

    def cursor(self, *args: Any, **options: Any) -> Any:
        cursor = super().cursor(*args, **options)
        self._cursors.add(cursor)
        return cursor

    def execute(self, *args: Any) -> Any:
        return self.cursor().execute(*args)  # the C code would make a cursor past `cursor`

    def give_up(self) -> None:
        """Close every statement, and end the transaction. In the connection's thread."""
        for cursor in tuple(self._cursors):
            cursor.close()
        self.rollback()


class SingleEnd(aiosqlite.Connection):
    """Stops once, however often it is told to; `keep` gets what is done when its thread has ended."""

    def __init__(self, connector: Callable[[], sqlite3.Connection], keep: Keep) -> None:
        super().__init__(connector, CHUNK_ROWS)
        self._thread.daemon = True  # a statement without end must not keep the process alive
        self._keep: Keep | None = keep
        self._stopped: asyncio.Future[Any] | None = None

    def stop(self) -> asyncio.Future[Any] | None:
        if self._running:
            self._stopped = super().stop()
            keep, self._keep = self._keep, None  # the ending thread must not keep a whole database alive
            if keep is not None:
                keep(self._stopped)
        return self._stopped


async def connect(keep: Keep, database: str, **options: Any) -> SingleEnd:
    """As `aiosqlite.connect`."""
    connection = SingleEnd(partial(sqlite3.connect, database, factory=OwnCursors, **options), keep)
    _ = await connection
    return connection
