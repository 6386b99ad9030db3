"""aiosqlite, beneath `sqlite://`: a thread for each connection.

The thread serves its connection until it is stopped. Stopped twice, aiosqlite waits for a second answer that never
comes: a task cancelled while SQLAlchemy closes (at the end of `asyncio.run`, say) would wait forever. And a cancelled
connect stops its thread without waiting, so the thread may report to a loop that has ended meanwhile. `SingleEnd` stops
once, and waits for its end.
"""

from __future__ import annotations

import asyncio
import sqlite3
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import aiosqlite

from koo.database.drivers.aiosqlite_cursor import Answer, Turn
from koo.database.drivers.base import Keep
from koo.database.sqlite import Opening
from koo.options import DatabaseOptions

CHUNK_ROWS = 64
STOP_AFTER_S = 0.002
"""How long a cancelled statement may go on before its thread counts as busy."""


class Aiosqlite:
    """The driver `aiosqlite`."""

    answers_begin = False
    health_query = "SELECT NULL FROM sqlite_master"  # reads the file

    def connect_args(self, options: DatabaseOptions, keep: Keep) -> dict[str, Any]:
        # pysqlite must not open transactions itself: koo sends BEGIN. The busy timeout is set by a PRAGMA.
        return {"isolation_level": None, "timeout": 0.0, "async_creator_fn": partial(connect, keep)}

    def begin(self, adapted: Any) -> Awaitable[Any] | None:
        return None

    def commit(self, send: Callable[[Any], None], fairy: Any) -> bool:
        send(fairy)
        return True

    def is_in_transaction(self, connection: Any) -> bool:
        return False  # the pool's rollback on return ends whatever is open

    def has_ended(self, connection: Any) -> bool:
        return False  # transactions here are koo's own: `SqliteTransaction` knows

    def error_of(self, adapted: Any, error: BaseException) -> Exception | None:
        return error if isinstance(error, sqlite3.Error) else None

    def is_closed(self, connection: Any) -> bool:
        return connection._connection is None or not connection._running

    def is_idle(self, connection: Any) -> bool:
        return False

    async def cancel(self, connection: Any, within_s: float) -> None:
        interrupt(connection)

    def sever(self, connection: Any) -> None:
        connection._running = False  # its thread is the parent's: closing it here would wait forever

    def cut_off(self, connection: Any) -> None:
        # Not `connection.stop()`: SQLAlchemy closes it later, and that would wait for a thread that has ended.
        interrupt(connection)
        give_up(connection)


def interrupt(connection: Any) -> None:
    """End SQLite's running statement at once; it raises SQLITE_INTERRUPT in its thread."""
    inner = connection._connection
    if inner is not None:
        inner.interrupt()


def stop_running(connection: Any) -> None:
    """As `interrupt`, but only if its thread is working.

    Between two pieces of streamed rows it is not. The interrupt would then hit the ROLLBACK that comes next, because
    SQLite forgets it only when no statement is open.
    """
    if connection._connection is None:
        return
    idle: list[bool] = []

    def look() -> None:
        if not idle:
            interrupt(connection)

    connection._tx.put_nowait((None, partial(idle.append, True)))
    asyncio.get_running_loop().call_later(STOP_AFTER_S, look)


def give_up(connection: Any) -> None:
    """End SQLite's transaction in its thread, before anything that is queued there later.

    A connection closed with a statement still open lives on as a zombie, and keeps its locks, until the garbage
    collector finds the statement.
    """
    inner = connection._connection
    if inner is not None:
        connection._tx.put_nowait((None, partial(_roll_back, inner)))


def _roll_back(inner: OwnCursors) -> None:
    with suppress(sqlite3.Error):
        inner.give_up()


class OwnCursors(sqlite3.Connection):
    """Knows its cursors, so that they can be closed without their owner.

    While a statement is open SQLite remembers an interrupt, and applies it to the ROLLBACK that comes next: then the
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
        return self.cursor().execute(*args)  # the C code would make a cursor that bypasses `cursor`

    def give_up(self) -> None:
        """Close every statement, and end the transaction. In the connection's thread."""
        for cursor in tuple(self._cursors):
            cursor.close()
        self.rollback()


class SingleEnd(aiosqlite.Connection):
    """Stops once, however often it is asked to; `keep` receives the future of its thread's end.

    `opening` is sent before the next statement, in the same turn of the thread.
    """

    def __init__(self, connector: Callable[[], OwnCursors], keep: Keep) -> None:
        opened: list[OwnCursors] = []
        super().__init__(partial(_open, connector, opened), CHUNK_ROWS)
        self._opened = opened
        self._thread.daemon = True  # an endless statement must not keep the process alive
        self._keep: Keep | None = keep
        self._stopped: asyncio.Future[Any] | None = None
        self.opening: Opening | None = None

    def take_turn(self, method: Callable[..., Any] | None = None, *arguments: Any) -> asyncio.Future[Answer]:
        """Run a method of `sqlite3.Cursor` to its end in the thread; without one, only send `opening`.

        Raises `sqlite3.OperationalError` at once if the connection is closed.
        """
        inner = self._connection
        if inner is None or not self._running:
            raise sqlite3.OperationalError("no active connection")  # SQLAlchemy treats these words as a loss
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._tx.put_nowait((future, Turn(future, inner, self.opening, method, *arguments)))
        return future

    def stop(self) -> asyncio.Future[Any] | None:
        if self._running:
            # aiosqlite closes only what it received. It never receives the handle of a cancelled connect, and forgets
            # it in a cancelled close: SQLite's handle would stay open until the garbage collector finds it.
            self._tx.put_nowait((None, partial(_close, self._opened)))
            self._stopped = super().stop()
            keep, self._keep = self._keep, None  # the ending thread must not keep a whole database alive
            if keep is not None:
                keep(self._stopped)
        return self._stopped


def _open(connector: Callable[[], OwnCursors], opened: list[OwnCursors]) -> OwnCursors:
    """In the thread."""
    inner = connector()
    opened.append(inner)
    return inner


def _close(opened: list[OwnCursors]) -> None:
    """In the thread, after everything that was queued before."""
    for inner in opened:
        _roll_back(inner)
        inner.close()


async def connect(keep: Keep, database: str, **options: Any) -> SingleEnd:
    """As `aiosqlite.connect`."""
    connection = SingleEnd(partial(OwnCursors, database, **options), keep)
    _ = await connection
    return connection
