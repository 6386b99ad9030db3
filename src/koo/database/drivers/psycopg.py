"""psycopg 3, the driver of `postgresql://`.

When a task is cancelled, psycopg asks the server to stop the statement and waits until it has: up to ten seconds with a
black hole, and nothing from outside can shorten that. SQLAlchemy drops a connection whose statement was cancelled, so
there is nothing to wait for: `PromptConnection` asks once, within the cleanup time, and closes.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

import psycopg
from psycopg.errors import error_from_result
from psycopg.generators import execute
from psycopg.pq import Conninfo, ExecStatus, TransactionStatus
from psycopg.waiting import wait_async
from sqlalchemy.util import await_only as await_

from koo.database.drivers.base import POSTGRESQL_HEALTH, Keep, read_numbers
from koo.database.drivers.names import as_libpq, find_servers
from koo.database.drivers.wire import ROLE_TIMEOUTS, ServerTimeouts, libpq_parameters, sever
from koo.options import DatabaseOptions

# Used by every scope, where a class attribute of an enum costs a dictionary lookup.
IDLE, INERROR, UNKNOWN = TransactionStatus.IDLE, TransactionStatus.INERROR, TransactionStatus.UNKNOWN

NUMBERS = {"prepare_threshold": lambda text: None if text.lower() == "none" else int(text)}
"""Options that a URL can only hold as text."""


class Psycopg:
    """The driver `psycopg`."""

    answers_begin = True
    health_query = POSTGRESQL_HEALTH

    def connect_args(self, options: DatabaseOptions, keep: Keep) -> dict[str, Any]:
        unprepared = {} if options.prepared_statements else {"prepare_threshold": None}
        return {"async_creator_fn": partial(self._connect, options, ServerTimeouts(options)), **unprepared}

    async def _connect(
        self, options: DatabaseOptions, timeouts: ServerTimeouts, /, *args: Any, **kwargs: Any
    ) -> PromptConnection:
        connect = partial(PromptConnection.connect_within, options.cleanup_timeout_s, *args)
        kwargs = {**libpq_parameters(options), **kwargs, **await _addresses(kwargs)}
        user, given = kwargs.get("user"), kwargs.get("options") or ""
        # The last value of a setting wins: the URL's come after koo's.
        ours = timeouts.of(user)
        words = [*(f"-c {name}={value}" for name, value in ours.items()), given]
        try:
            connection = await connect(**{**kwargs, "options": " ".join(words).strip()})
        except psycopg.OperationalError as error:
            if not timeouts.are_refused(ours, error):
                raise
            connection = await connect(**kwargs)
        if timeouts.must_ask(user):
            await _keep_shorter(connection, timeouts, user, given)
        return connection

    def begin(self, adapted: Any) -> Awaitable[Any] | None:
        connection = adapted.driver_connection
        connection.begun = 0
        start: Callable[[], Any] | None = getattr(connection, "_start_query", None)
        return None if start is None else _start(connection, start)

    def commit(self, send: Callable[[Any], None], fairy: Any) -> bool:
        if fairy.dbapi_connection.driver_connection.pgconn.transaction_status == INERROR:
            return False
        send(fairy)
        return True

    def commit_marked(self, send: Callable[[Any], None], fairy: Any, marker: str) -> bool:
        connection = fairy.dbapi_connection.driver_connection
        status = connection.pgconn.transaction_status
        if status == IDLE:  # the block ended the transaction in its own words: there is nothing to mark
            send(fairy)
            return True
        if status == INERROR:
            return False
        await_(connection.commit_after(marker))
        return True

    def is_in_transaction(self, connection: Any) -> bool:
        status = connection.pgconn.transaction_status
        return status not in (IDLE, UNKNOWN)

    def has_ended(self, connection: Any) -> bool:
        return bool(connection.begun > 1 or connection.is_idle)

    def error_of(self, adapted: Any, error: BaseException) -> Exception | None:
        return error if isinstance(error, psycopg.Error | OSError) else None

    def is_closed(self, connection: Any) -> bool:
        return bool(connection.closed)

    def is_idle(self, connection: Any) -> bool:
        return bool(connection.is_idle)

    async def cancel(self, connection: Any, within_s: float) -> None:
        await connection.cancel_safe(timeout=within_s)

    def sever(self, connection: Any) -> None:
        if not connection.closed:
            connection.is_parents = True
            sever(connection.fileno())

    def cut_off(self, connection: Any) -> None:
        _shut(connection)


def _shut(connection: Any) -> None:
    """End the connection on the wire; whatever runs on it gets an error."""
    if connection.closed:
        return
    # On a copy: closing the original would pull it from under the selector and from libpq.
    with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)


async def _addresses(parameters: Mapping[str, Any]) -> dict[str, str]:
    if parameters.get("service"):
        return {}
    # Variables that libpq reads itself: PGHOST and the like.
    of_libpq = {one.keyword.decode(): one.val.decode() for one in Conninfo.get_defaults() if one.val}
    asked = of_libpq | {name: value for name, value in parameters.items() if value}
    try:
        return as_libpq(await find_servers(asked), asked)
    except OSError as error:
        raise psycopg.OperationalError(f"failed to resolve host: {error}") from error


async def _keep_shorter(
    connection: PromptConnection, timeouts: ServerTimeouts, user: object, given: str
) -> None:
    """Ask for the role's own timeouts, on its first connection. A server that cannot answer has none."""
    try:
        # Without a transaction: its COMMIT would be the first that passes, where a test cuts the application's.
        await connection.set_autocommit(True)
        try:
            rows = await (await connection.execute(ROLE_TIMEOUTS)).fetchall()
            for name, value in timeouts.learn(user, rows).items():
                if name not in given:
                    await connection.execute("SELECT set_config(%s, %s, false)", (name, value))
        except psycopg.Error:
            timeouts.learn(user, ())
        await connection.set_autocommit(False)
    except BaseException:
        connection.pgconn.finish()
        raise


async def _start(connection: Any, start: Callable[[], Any]) -> None:
    async with connection.lock:
        await connection.wait_for_begin(start())


class ServerCursor(psycopg.AsyncServerCursor[Any]):
    """A streamed result. When its connection is lost it cannot be closed, and psycopg's warning would not help."""

    def __del__(self, *warn: Any) -> None:
        if not self.connection.closed:
            super().__del__(*warn)


attempts: ContextVar[list[Generator[Any, Any, Any]]] = ContextVar("attempts")
"""This task's attempts to connect."""


class PromptConnection(psycopg.AsyncConnection[Any]):
    """Abandons a cancelled statement within `cleanup_s` seconds. `begun`: transactions since koo's last BEGIN."""

    cleanup_s = 2.0
    begun = 0
    is_parents = False
    """This process is a forked child."""
    _steps = 0
    """Protocol steps under way: one, unless a caller uses the connection from two tasks."""
    _must_close = False

    @classmethod
    async def connect_within(cls, cleanup_s: float, *args: Any, **kwargs: Any) -> PromptConnection:
        """As `connect`. Raises TypeError for a number that cannot be read."""
        read_numbers(kwargs, NUMBERS)
        begun: list[Generator[Any, Any, Any]] = []
        attempts.set(begun)
        try:
            connection = await cls.connect(*args, **kwargs)
        finally:
            # An abandoned attempt keeps its socket as long as a traceback keeps its frame: until the next collection.
            for one in begun:
                one.close()
        connection.cleanup_s = cleanup_s
        connection.server_cursor_factory = ServerCursor
        return connection

    @classmethod
    def _connect_gen(cls, *args: Any, **kwargs: Any) -> Any:
        steps: Any = super()._connect_gen(*args, **kwargs)
        if (begun := attempts.get(None)) is not None:
            begun.append(steps)
        return steps

    @property
    def is_idle(self) -> bool:
        """Whether no transaction is open, by the server's last answer."""
        return self.pgconn.transaction_status == TransactionStatus.IDLE

    def _get_tx_start_command(self) -> bytes:
        # psycopg sends BEGIN itself: also after a COMMIT sent as a statement, which only psycopg sees.
        self.begun += 1
        return super()._get_tx_start_command()

    async def commit_after(self, statement: str) -> None:
        """`statement` and COMMIT in one message, and without a cursor, which would cost as much as the statement."""
        async with self.lock:
            await self.wait(self._commit_after(f"{statement}; COMMIT".encode(self.pgconn._encoding)))

    def _commit_after(self, query: bytes) -> Generator[Any, Any, None]:
        self._check_connection_ok()
        self.pgconn.send_query(query)  # a simple query: several statements in one message
        for result in (yield from execute(self.pgconn)):
            if result.status == ExecStatus.FATAL_ERROR:
                raise error_from_result(result, encoding=self.pgconn._encoding)

    async def wait(self, gen: Any, interval: float = 0.1, **more: Any) -> Any:  # type: ignore[override]
        """Run a protocol step to its end; a cancellation in the middle of a statement closes the connection."""
        self._steps += 1
        try:
            return await wait_async(gen, self.pgconn.socket, interval=interval, **more)
        except asyncio.CancelledError:
            self._must_close = True
            await self._stop_statement()
            raise
        finally:
            self._end_step()

    async def wait_for_begin(self, gen: Any) -> Any:
        """As `wait`, for BEGIN: the server has no statement to stop, and the caller may be short of time."""
        self._steps += 1
        try:
            return await wait_async(gen, self.pgconn.socket, interval=0.1)
        except asyncio.CancelledError:
            self._must_close = True
            raise
        finally:
            self._end_step()

    def _end_step(self) -> None:
        self._steps -= 1
        if self._must_close and not self._steps:
            self.pgconn.finish()

    async def close(self) -> None:
        """As psycopg's. A statement that another task is running ends at once, with an error."""
        # psycopg would free libpq's memory now, which its compiled half still reads when that task wakes: a crash.
        if self._steps:
            self._must_close = True
            _shut(self)
        else:
            await super().close()

    async def _stop_statement(self) -> None:
        # A cancel request uses a connection of its own, so a forked child would stop the parent's statement.
        if self.pgconn.transaction_status != TransactionStatus.ACTIVE or self.is_parents:
            return
        try:
            await self.cancel_safe(timeout=self.cleanup_s)
        except (psycopg.Error, OSError):
            return  # unreachable: the server will notice the closed connection, or is gone itself
