"""psycopg 3, the driver for `postgresql://`.

When a task is cancelled, psycopg requests that the server stop the statement, and waits until it has. With a server
that does not respond this takes up to ten seconds, and nothing outside psycopg can shorten that. SQLAlchemy drops a
connection whose statement was cancelled, so there is no reason to wait: `PromptConnection` sends one request, within
the cleanup time, and closes.
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
from koo.database.drivers.names import as_libpq, find_servers, time_of_each
from koo.database.drivers.wire import ROLE_TIMEOUTS, ServerTimeouts, is_hung_up, libpq_parameters, sever
from koo.options import NEVER, DatabaseOptions

# These are module constants, because every scope reads them and an attribute of an enum class costs a dictionary
# lookup.
IDLE, INERROR, UNKNOWN = TransactionStatus.IDLE, TransactionStatus.INERROR, TransactionStatus.UNKNOWN

NUMBERS = {"prepare_threshold": lambda text: None if text.lower() == "none" else int(text)}
"""Numeric options, which a URL can only contain as text."""


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
        kwargs = {**libpq_parameters(options), **kwargs, **await _addresses(kwargs, options.pool_timeout_s)}
        user, given = kwargs.get("user"), kwargs.get("options") or ""
        # The last value of a setting wins, so the URL's settings come after koo's.
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
        # libpq keeps the transaction's state, so a failed transaction is known before COMMIT is sent.
        if fairy.dbapi_connection.driver_connection.pgconn.transaction_status == INERROR:
            return False
        send(fairy)
        return True

    def commit_marked(self, send: Callable[[Any], None], fairy: Any, marker: str) -> bool:
        connection = fairy.dbapi_connection.driver_connection
        status = connection.pgconn.transaction_status
        # The block ended the transaction with a statement of its own. A marker sent now would be a transaction of its
        # own, and would claim that something was committed.
        if status == IDLE:
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

    def idle_limit_s(self, connection: Any) -> float:
        return NEVER

    def is_closed(self, connection: Any) -> bool:
        return bool(connection.closed)

    def is_hung_up(self, connection: Any) -> bool:
        return is_hung_up(connection.fileno())

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
    """Shut the connection's socket down: a statement that is running on it gets an error."""
    if connection.closed:
        return
    # `socket.socket(fileno=…)` closes its descriptor at the end of the block, so it gets a copy. Closing the original
    # would pull it out from under the selector and libpq, and the number could be reused for another file in between.
    with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)


async def _addresses(parameters: Mapping[str, Any], within_s: float) -> dict[str, Any]:
    if parameters.get("service"):
        return {}
    # The defaults that libpq takes from environment variables: PGHOST and so on.
    of_libpq = {one.keyword.decode(): one.val.decode() for one in Conninfo.get_defaults() if one.val}
    asked = of_libpq | {name: value for name, value in parameters.items() if value}
    try:
        return as_libpq(await find_servers(asked), asked) | time_of_each(asked, within_s)
    except OSError as error:
        raise psycopg.OperationalError(f"failed to resolve host: {error}") from error


async def _keep_shorter(
    connection: PromptConnection, timeouts: ServerTimeouts, user: object, given: str
) -> None:
    """Query the role's own timeouts, on its first connection. If the query fails, koo's own timeouts stay."""
    try:
        # The query runs without a transaction: its COMMIT would be the first one on the wire, and a proxy in a test
        # that cuts the application's first COMMIT would cut this one.
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
    """A streamed result. It can be dropped without psycopg's warning if its connection was lost."""

    def __del__(self, *warn: Any) -> None:
        if not self.connection.closed:
            super().__del__(*warn)


attempts: ContextVar[list[Generator[Any, Any, Any]]] = ContextVar("attempts")
"""The generators of this task's attempts to connect."""


class PromptConnection(psycopg.AsyncConnection[Any]):
    """Gives up a cancelled statement within `cleanup_s` seconds. `begun`: transactions since koo's last BEGIN."""

    cleanup_s = 2.0
    begun = 0
    is_parents = False
    """Whether this process is a forked child, and the connection belongs to its parent."""
    _steps = 0
    """Protocol steps in progress: at most one, unless a caller uses the connection from two tasks."""
    _must_close = False

    @classmethod
    async def connect_within(cls, cleanup_s: float, *args: Any, **kwargs: Any) -> PromptConnection:
        """Like `connect`. Raises TypeError if the text of a numeric option is not a number."""
        read_numbers(kwargs, NUMBERS)
        begun: list[Generator[Any, Any, Any]] = []
        attempts.set(begun)
        try:
            connection = await cls.connect(*args, **kwargs)
        finally:
            # psycopg tries several addresses in turn, each in a generator that owns a socket. The traceback of a failed
            # attempt keeps its generator alive, and so the socket open, until the next garbage collection.
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
        """Whether no transaction is open, according to the server's last response."""
        return self.pgconn.transaction_status == TransactionStatus.IDLE

    def _get_tx_start_command(self) -> bytes:
        # psycopg calls this for each BEGIN it sends, and so also after a COMMIT that the block sent as a statement,
        # which koo's hooks do not see. A second BEGIN means that koo's transaction has ended.
        self.begun += 1
        return super()._get_tx_start_command()

    async def commit_after(self, statement: str) -> None:
        """Send `statement` and COMMIT in one message, without a cursor, which would cost as much as the statement."""
        async with self.lock:
            await self.wait(self._commit_after(f"{statement}; COMMIT".encode(self.pgconn._encoding)))

    def _commit_after(self, query: bytes) -> Generator[Any, Any, None]:
        self._check_connection_ok()
        # The simple query protocol takes several statements in one message. The server stops at the first that fails:
        # if the marker is refused, COMMIT is not executed.
        self.pgconn.send_query(query)
        for result in (yield from execute(self.pgconn)):
            if result.status == ExecStatus.FATAL_ERROR:
                raise error_from_result(result, encoding=self.pgconn._encoding)

    async def wait(self, gen: Any, interval: float = 0.1, **more: Any) -> Any:  # type: ignore[override]
        """Run a protocol step to its end. A cancellation in the middle of a statement closes the connection."""
        # After a cancellation the statement's response may still arrive, and the next statement would take it for its
        # own. psycopg avoids that by waiting for it; here the connection is closed instead.
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
        """Like `wait`, for BEGIN: there is no statement to stop, so a cancelled caller need not wait for a request."""
        self._steps += 1
        try:
            return await wait_async(gen, self.pgconn.socket, interval=0.1)
        except asyncio.CancelledError:
            self._must_close = True
            raise
        finally:
            self._end_step()

    def _end_step(self) -> None:
        # Only the last step closes: see `close` about freeing libpq's memory under a step that is still running.
        self._steps -= 1
        if self._must_close and not self._steps:
            self.pgconn.finish()

    async def close(self) -> None:
        """Like psycopg's. A statement that another task is running ends immediately, with an error."""
        # psycopg would free libpq's memory now. Its compiled part still reads that memory when the other task wakes up,
        # and the process would crash. So the socket is shut down, and the other task's step closes the connection.
        if self._steps:
            self._must_close = True
            _shut(self)
        else:
            await super().close()

    async def _stop_statement(self) -> None:
        # A cancel request uses a separate connection and names the server process. In a forked child that is the
        # parent's, and the request would stop the parent's statement.
        if self.pgconn.transaction_status != TransactionStatus.ACTIVE or self.is_parents:
            return
        try:
            await self.cancel_safe(timeout=self.cleanup_s)
        except (psycopg.Error, OSError):
            return  # the server cannot be reached: it will notice the closed connection, or is gone itself
