"""aiosqlite, the driver for `sqlite://`: one thread per connection.

The thread serves its connection until it is stopped. If it is stopped twice, aiosqlite waits for a second reply that
never comes: a task that is cancelled while SQLAlchemy closes (at the end of `asyncio.run`, for example) would wait
forever. A cancelled connect stops its thread without waiting, so the thread may report to a loop that has since been
closed. `SingleEnd` stops only once, and makes `Connections.close` wait for the thread's end.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast

import aiosqlite

from koo.database.drivers.aiosqlite_cursor import Answer, Turn
from koo.database.drivers.base import Keep
from koo.database.drivers.sqlite_handle import OwnCursors
from koo.database.sqlite import Opening
from koo.options import NEVER, DatabaseOptions

CHUNK_ROWS = 64
STOP_AFTER_S = 0.002
"""A thread that does not respond for this long after a cancellation is running a statement, which is interrupted."""


class Aiosqlite:
    """The driver `aiosqlite`."""

    answers_begin = False
    health_query = "SELECT NULL FROM sqlite_master"  # reads the file

    def connect_args(self, options: DatabaseOptions, keep: Keep) -> dict[str, Any]:
        # koo sends BEGIN itself. The sqlite3 module does so only for a write on the driver's own connection, which koo
        # does not see: it would be committed at once, and would stay after a rollback. A PRAGMA sets the busy timeout.
        return {"isolation_level": "IMMEDIATE", "timeout": 0.0, "async_creator_fn": partial(connect, keep)}

    def begin(self, adapted: Any) -> Awaitable[Any] | None:
        return None

    def commit(self, send: Callable[[Any], None], fairy: Any) -> bool:
        send(fairy)
        return True

    def is_in_transaction(self, connection: Any) -> bool:
        return False  # the pool's rollback on return ends whatever is open

    def has_ended(self, connection: Any) -> bool:
        return False  # `SqliteTransaction` keeps track of this instead

    def error_of(self, adapted: Any, error: BaseException) -> Exception | None:
        return error if isinstance(error, sqlite3.Error) else None

    def idle_limit_s(self, connection: Any) -> float:
        return NEVER

    def is_closed(self, connection: Any) -> bool:
        return connection._connection is None or not connection._running

    def is_hung_up(self, connection: Any) -> bool:
        return False

    def is_idle(self, connection: Any) -> bool:
        return False

    async def cancel(self, connection: Any, within_s: float) -> None:
        interrupt(connection)

    def sever(self, connection: Any) -> None:
        connection._running = False  # its thread is the parent's: closing it here would wait forever

    def cut_off(self, connection: Any) -> None:
        # `connection.stop()` is not called: SQLAlchemy closes the connection later, and would wait for a thread that
        # has ended.
        interrupt(connection)
        give_up(connection)


def interrupt(connection: Any) -> None:
    """End the running statement immediately: it raises SQLITE_INTERRUPT in the connection's thread."""
    inner = connection._connection
    if inner is not None:
        inner.interrupt()


def stop_running(connection: Any) -> None:
    """Like `interrupt`, but only if the connection's thread is running a statement."""
    # Between two batches of streamed rows the thread is idle but the statement is open. SQLite remembers an interrupt
    # as long as a statement is open, so it would hit the ROLLBACK that comes next, and the transaction would keep its
    # locks. An idle thread takes the no-op below from its queue immediately; a busy one does not.
    if connection._connection is None:
        return
    idle: list[bool] = []

    def look() -> None:
        if not idle:
            interrupt(connection)

    connection._tx.put_nowait((None, partial(idle.append, True)))
    asyncio.get_running_loop().call_later(STOP_AFTER_S, look)


def give_up(connection: Any) -> None:
    """End the transaction in the connection's thread, before anything that is queued there later."""
    # A connection that is closed with a statement still open stays alive in SQLite as a "zombie", and keeps its locks
    # until the garbage collector finalizes the statement.
    inner = connection._connection
    if inner is not None:
        connection._tx.put_nowait((None, partial(_roll_back, inner)))


def _roll_back(inner: OwnCursors) -> None:
    with suppress(sqlite3.Error):
        inner.give_up()


class SingleEnd(aiosqlite.Connection):
    """A connection that stops only once, however often `stop` is called. `keep` receives a future that completes when
    the connection's thread ends.

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

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open. aiosqlite raises ValueError for a closed connection, which has none."""
        return self._connection is not None and self._connection.in_transaction

    def take_turn(self, method: Callable[..., Any] | None = None, *arguments: Any) -> asyncio.Future[Answer]:
        """Run a method of `sqlite3.Cursor` to its end in the thread; without a method, only send `opening`.

        Raises `sqlite3.OperationalError` immediately if the connection is closed.
        """
        inner = self._connection
        if inner is None or not self._running:
            # SQLAlchemy recognises a disconnect by this text.
            raise sqlite3.OperationalError("no active connection")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._tx.put_nowait(
            (future, Turn(future, cast("OwnCursors", inner), self.opening, method, *arguments))
        )
        return future

    def stop(self) -> asyncio.Future[Any] | None:
        if self._running:
            # aiosqlite closes only a handle that it has received. After a cancelled connect it has no handle, and a
            # cancelled close drops the handle. It would then stay open until the garbage collector finds it.
            self._tx.put_nowait((None, partial(_close, self._opened)))
            self._stopped = super().stop()
            # The thread keeps this object until it ends, and `keep` would keep a whole database alive with it.
            keep, self._keep = self._keep, None
            if keep is not None:
                keep(self._stopped)
        return self._stopped


def _open(connector: Callable[[], OwnCursors], opened: list[OwnCursors]) -> OwnCursors:
    """Open the handle. Runs in the thread."""
    inner = connector()
    opened.append(inner)
    return inner


def _close(opened: list[OwnCursors]) -> None:
    """Close every handle. Runs in the thread, after everything that was queued before."""
    for inner in opened:
        _roll_back(inner)
        inner.close()


async def connect(keep: Keep, database: str, **options: Any) -> SingleEnd:
    """Like `aiosqlite.connect`."""
    connection = SingleEnd(partial(OwnCursors, database, **options), keep)
    _ = await connection
    return connection
