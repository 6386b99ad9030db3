"""What differs between the drivers, beneath SQLAlchemy: how to begin at once, to cancel, and to cut off.

*Begin at once.* A driver sends BEGIN with the first statement. koo sends it when the scope is entered: that costs no
round trip more, and it is the cheapest validation there is, since a dead connection is found before any of the user's
code has run, when another may be taken unseen.

*Cancel* asks the server, over a connection of its own, to stop the statement. *Cut off* needs no answer: it is what
remains when the other side is a black hole. It must wake whoever waits on the socket, so it shuts the socket down and
does not close it under the selector.

Some of this uses names that a driver does not document. Each is looked up when needed, and where it is gone koo falls
back: to beginning with the first statement, or from cancelling to cutting off.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from koo.options import DatabaseOptions

if TYPE_CHECKING:
    from koo.database.sqlite_connection import OwnCursors

Keep = Callable[[asyncio.Future[Any] | None], None]

STOP_AFTER_S = 0.002
"""So long a cancelled statement of SQLite may go on before it is known that its thread is not idle."""


class Driver(Protocol):
    """One driver. `connection` is the driver's own; `adapted` SQLAlchemy's around it."""

    name: str
    answers_begin: bool
    """Is BEGIN a round trip, so that its success says that the server is well?"""

    def connect_args(self, options: DatabaseOptions, keep: Keep) -> dict[str, Any]:
        """For SQLAlchemy. `keep` is given what goes on beside, and must have ended before the loop does."""
        ...

    def begin(self, adapted: Any) -> Awaitable[Any] | None: ...

    def is_closed(self, connection: Any) -> bool: ...

    def is_idle(self, connection: Any) -> bool:
        """Is it known without asking that no transaction is open? False leaves that to SQLAlchemy."""

    async def cancel(self, connection: Any, within_s: float) -> None: ...

    def cut_off(self, connection: Any) -> None: ...


class Psycopg:
    """psycopg 3, which `postgresql://` means."""

    name = "psycopg"
    answers_begin = True

    def connect_args(self, options: DatabaseOptions, keep: Keep) -> dict[str, Any]:
        from koo.database.psycopg_connection import PromptConnection

        connect = partial(PromptConnection.connect_within, options.cleanup_timeout_s)
        return {"async_creator_fn": connect}

    def begin(self, adapted: Any) -> Awaitable[Any] | None:
        connection = adapted.driver_connection
        start: Callable[[], Any] | None = getattr(connection, "_start_query", None)
        return None if start is None else _start(connection, start)

    def is_closed(self, connection: Any) -> bool:
        return bool(connection.closed)

    def is_idle(self, connection: Any) -> bool:
        return bool(connection.is_idle)

    async def cancel(self, connection: Any, within_s: float) -> None:
        await connection.cancel_safe(timeout=within_s)

    def cut_off(self, connection: Any) -> None:
        if connection.closed:
            return
        # Of a copy: closing the original would pull it from under the selector and from libpq.
        with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as wire:
            wire.shutdown(socket.SHUT_RDWR)


async def _start(connection: Any, start: Callable[[], Any]) -> None:
    async with connection.lock:
        await connection.wait(start())


class Asyncpg:
    """asyncpg."""

    name = "asyncpg"
    answers_begin = True

    def connect_args(self, options: DatabaseOptions, keep: Keep) -> dict[str, Any]:
        return {"timeout": options.pool_timeout_s}

    def begin(self, adapted: Any) -> Awaitable[Any] | None:
        start: Callable[[], Awaitable[Any]] | None = getattr(adapted, "_start_transaction", None)
        return None if start is None else start()

    def is_closed(self, connection: Any) -> bool:
        return bool(connection.is_closed())

    def is_idle(self, connection: Any) -> bool:
        return False

    async def cancel(self, connection: Any, within_s: float) -> None:
        cancel = getattr(connection, "_cancel", None)
        if cancel is None or connection.is_closed():
            return
        async with asyncio.timeout(within_s):
            await cancel(asyncio.get_running_loop().create_future())

    def cut_off(self, connection: Any) -> None:
        connection.terminate()


class Aiosqlite:
    """aiosqlite: a thread for each connection."""

    name = "aiosqlite"
    answers_begin = False

    def connect_args(self, options: DatabaseOptions, keep: Keep) -> dict[str, Any]:
        from koo.database.sqlite_connection import connect

        # No transaction of pysqlite's own making: koo says BEGIN. Its busy timeout is set by a PRAGMA.
        return {"isolation_level": None, "timeout": 0.0, "async_creator_fn": partial(connect, keep)}

    def begin(self, adapted: Any) -> Awaitable[Any] | None:
        return None

    def is_closed(self, connection: Any) -> bool:
        return connection._connection is None or not connection._running

    def is_idle(self, connection: Any) -> bool:
        return False

    async def cancel(self, connection: Any, within_s: float) -> None:
        interrupt(connection)

    def cut_off(self, connection: Any) -> None:
        # Not `connection.stop()`: SQLAlchemy closes it later, and that would wait for a thread which has ended.
        interrupt(connection)
        give_up(connection)


def interrupt(connection: Any) -> None:
    """End SQLite's running statement at once; it raises SQLITE_INTERRUPT in its thread."""
    inner = connection._connection
    if inner is not None:
        inner.interrupt()


def stop_running(connection: Any) -> None:
    """As `interrupt`, but only if its thread is at work.

    Between `execute` and `fetchall` it is not. An interrupt would then lie in wait for the ROLLBACK that comes next,
    because SQLite forgets it only when no statement is open.
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
    """End SQLite's transaction in its thread, before whatever is put there next.

    A connection that is closed with a statement still open lives on as a zombie until the garbage collector finds the
    statement, and so do its locks.
    """
    inner = connection._connection
    if inner is not None:
        connection._tx.put_nowait((None, partial(_roll_back, inner)))


def _roll_back(inner: OwnCursors) -> None:
    with suppress(sqlite3.Error):
        inner.give_up()


DRIVERS: dict[str, Driver] = {"psycopg": Psycopg(), "asyncpg": Asyncpg(), "aiosqlite": Aiosqlite()}
