"""asyncpg, the driver for `postgresql+asyncpg://`.

asyncpg's `close` waits until the server closes the connection, without a limit. SQLAlchemy limits that wait when it
drops a connection, but not when a pool closes a surplus connection, or all of them at its end. koo's connection class
never waits longer than the cleanup time.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable, Collection
from functools import cache, partial
from typing import Any

import asyncpg
from sqlalchemy.util import await_only as await_

from koo.database.drivers.base import POSTGRESQL_HEALTH, Keep, read_numbers
from koo.database.drivers.lookup_loop import LookupLoop
from koo.database.drivers.names import SHARE_OF_CONNECTS, listed
from koo.database.drivers.wire import ROLE_TIMEOUTS, ServerTimeouts, is_hung_up, set_up_socket, sever
from koo.database_urls import NAMES_NO_USER, UNREADABLE, UnusableArguments
from koo.hidden import Secret
from koo.options import DatabaseOptions

UNPREPARED = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
"""asyncpg's own setting and SQLAlchemy's. With both off, statements are unnamed and last until the next statement."""
NUMBERS = {
    "statement_cache_size": int,
    "max_cached_statement_lifetime": int,
    "max_cacheable_statement_size": int,
    "command_timeout": float,
}
"""Numeric options, which a URL can only contain as text."""
NOWHERE = os.devnull
"""Where a forked child's cancel requests go: at the real server they would stop the parent's statements."""
OWN_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class Asyncpg:
    """The driver `asyncpg`."""

    answers_begin = True
    health_query = POSTGRESQL_HEALTH

    def connect_args(self, options: DatabaseOptions, keep: Keep) -> dict[str, Any]:
        unprepared = {} if options.prepared_statements else UNPREPARED
        connect = partial(self._connect, options, ServerTimeouts(options))
        return {"timeout": options.pool_timeout_s, "async_creator_fn": connect, **unprepared}

    async def _connect(
        self, options: DatabaseOptions, timeouts: ServerTimeouts, /, *args: Any, **kwargs: Any
    ) -> asyncpg.Connection:
        """Like `asyncpg.connect`. Raises TypeError if the text of a numeric option is not a number."""
        read_numbers(kwargs, NUMBERS)
        hosts = len(listed(kwargs.get("host"))) or 1
        loop = LookupLoop(asyncio.get_running_loop(), hosts, options.pool_timeout_s * SHARE_OF_CONNECTS)
        kwargs.setdefault("loop", loop)
        if isinstance(kwargs.get("password"), Secret):
            # asyncpg's C code does not accept a subclass of str, so it gets a function that returns a plain string.
            kwargs["password"] = partial(str, kwargs["password"])
        given: dict[str, str] = kwargs.pop("server_settings", None) or {}
        base = kwargs.pop("connection_class", asyncpg.Connection)
        ours_class = TaggedConnection if options.exactly_once == "off" else MarkedConnection
        connect = partial(asyncpg.connect, *args, connection_class=tagged(base, ours_class), **kwargs)
        user = kwargs.get("user")
        ours = timeouts.of(user)
        try:
            connection = await connect(server_settings=ours | given)
        except asyncpg.PostgresError as error:
            if not timeouts.are_refused(ours, error):
                raise
            connection = await connect(server_settings=given)
        except (asyncpg.InterfaceError, ssl.SSLError):
            raise  # both may also be ValueErrors, which the next clause would report as wrong arguments
        except (LookupError, ValueError) as error:
            # These errors are raised before anything is sent: by `getpass` for a user id that has no name, and by `int`
            # for a PGPORT that is not a number.
            says = NAMES_NO_USER if isinstance(error, LookupError) else UNREADABLE
            raise UnusableArguments(says) from error
        if timeouts.must_ask(user):
            await _keep_shorter(connection, timeouts, user, given)
        connection.cleanup_s = options.cleanup_timeout_s
        connection.idle_limit_s = timeouts.idle_limit_s(user, given)
        transport = getattr(connection, "_transport", None)
        if transport is not None:
            set_up_socket(transport.get_extra_info("socket").fileno(), options)
        return connection

    def begin(self, adapted: Any) -> Awaitable[Any] | None:
        start: Callable[[], Awaitable[Any]] | None = getattr(adapted, "_start_transaction", None)
        return None if start is None else start()

    def commit(self, send: Callable[[Any], None], fairy: Any) -> bool:
        # SQLAlchemy commits through asyncpg's transaction object, which ignores the server's response.
        # `TaggedConnection` keeps it: "ROLLBACK" means that the server did not commit.
        connection = fairy.dbapi_connection.driver_connection
        connection.tag = ""
        send(fairy)
        return bool(connection.tag != "ROLLBACK")

    def commit_marked(self, send: Callable[[Any], None], fairy: Any, marker: str) -> bool:
        connection = fairy.dbapi_connection.driver_connection
        # The block ended the transaction with a statement of its own, so there is nothing to mark. A marker sent now
        # would be a transaction of its own, and would claim that something was committed.
        if connection.is_closed() or not connection.is_in_transaction():
            return self.commit(send, fairy)
        connection.tag, connection.marker = "", f"{marker}; "
        try:
            send(fairy)
        except Exception:
            # asyncpg assumes that a failed COMMIT has ended the transaction, and marks its transaction object as
            # failed. If it was the marker that failed, the server's transaction is still open, and nothing else would
            # end it before the connection returns to the pool.
            if not connection.is_closed() and connection.is_in_transaction():
                await_(connection.execute("ROLLBACK"))
            raise
        finally:
            connection.marker = ""
        return bool(connection.tag != "ROLLBACK")

    def is_in_transaction(self, connection: Any) -> bool:
        return connection._protocol is not None and bool(connection.is_in_transaction())

    def has_ended(self, connection: Any) -> bool:
        return connection._protocol is not None and not connection.is_in_transaction()

    def error_of(self, adapted: Any, error: BaseException) -> Exception | None:
        if isinstance(error, OWN_ERRORS):
            try:
                adapted._handle_exception(error)
            except Exception as translated:  # noqa: BLE001 - it returns the translated error by raising it
                return translated
        return error if isinstance(error, OSError | adapted.dbapi.Error) else None

    def idle_limit_s(self, connection: Any) -> float:
        return float(connection.idle_limit_s)

    def is_closed(self, connection: Any) -> bool:
        return bool(connection.is_closed())

    def is_hung_up(self, connection: Any) -> bool:
        transport = getattr(connection, "_transport", None)
        return transport is not None and is_hung_up(transport.get_extra_info("socket").fileno())

    def is_idle(self, connection: Any) -> bool:
        return False

    async def cancel(self, connection: Any, within_s: float) -> None:
        cancel = getattr(connection, "_cancel", None)
        if cancel is None or connection.is_closed():
            return
        async with asyncio.timeout(within_s):
            await cancel(asyncio.get_running_loop().create_future())

    def sever(self, connection: Any) -> None:
        transport = getattr(connection, "_transport", None)
        if transport is not None and not connection.is_closed():
            sever(transport.get_extra_info("socket").fileno())
            connection._addr = NOWHERE

    def cut_off(self, connection: Any) -> None:
        connection.terminate()


async def _keep_shorter(
    connection: asyncpg.Connection, timeouts: ServerTimeouts, user: object, given: Collection[str]
) -> None:
    """Query the role's own timeouts, on its first connection. If the query fails, koo's own timeouts stay."""
    try:
        rows = await connection.fetch(ROLE_TIMEOUTS)
        for name, value in timeouts.learn(user, [(row[0], row[1]) for row in rows]).items():
            if name not in given:
                await connection.execute("SELECT set_config($1, $2, false)", name, value)
    except asyncpg.PostgresError:
        timeouts.learn(user, ())
    except BaseException:
        connection.terminate()
        raise


class TaggedConnection(asyncpg.Connection):  # type: ignore[misc]
    """Keeps the command tag of the last plain command, which asyncpg's own COMMIT discards.

    Closes within `cleanup_s` seconds.
    """

    __slots__ = ("cleanup_s", "idle_limit_s", "tag")

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:  # noqa: ASYNC109 - asyncpg's own
        """Like asyncpg's."""
        tag: str
        if args or self._query_loggers:
            tag = await super().execute(query, *args, timeout=timeout)
        else:
            # Does what asyncpg's method does, but saves a coroutine: every scope's BEGIN and COMMIT come here.
            self._check_open()
            tag = await self._protocol.query(query, timeout)
        self.tag = tag
        return tag

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncpg's own
        """Like asyncpg's. Without a `timeout` the connection is cut off after the cleanup time."""
        transport = getattr(self, "_transport", None)
        if timeout is not None or transport is None or self.is_closed():
            await super().close(timeout=timeout)
            return
        # `asyncio.timeout` cannot be used, because it works by cancelling the task: inside `Unbroken`, where a scope
        # commits, a task cannot be cancelled, and the close would wait forever. Aborting the transport ends the wait
        # itself.
        timer = asyncio.get_running_loop().call_later(self.cleanup_s, transport.abort)
        try:
            await super().close()
        finally:
            timer.cancel()


class MarkedConnection(TaggedConnection):
    """Sends `marker` in front of the next plain command, in the same message.

    That command is asyncpg's own COMMIT, so asyncpg's transaction object stays consistent.
    """

    __slots__ = ("marker",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.marker = ""

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:  # noqa: ASYNC109 - asyncpg's own
        """Like asyncpg's, with the marker in front of the command."""
        # The marker is taken before anything is awaited: a command that fails must not leave it for the next one.
        marker, self.marker = self.marker, ""
        return await super().execute(marker + query, *args, timeout=timeout)


@cache
def tagged(connection_class: Any, ours: Any = TaggedConnection) -> Any:
    """The application's connection class combined with `ours`, koo's. Cached, so that each class is made only once."""
    if connection_class is asyncpg.Connection:
        return ours
    name = f"{ours.__name__.removesuffix('Connection')}{connection_class.__name__}"
    return type(connection_class)(name, (ours, connection_class), {"__slots__": ()})
