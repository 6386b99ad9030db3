"""asyncpg, beneath `postgresql+asyncpg://`.

asyncpg's close waits until the server has hung up, forever if nothing bounds it. SQLAlchemy bounds it where it drops a
connection, but not where a pool closes a surplus one, or all of them at its end. koo's own class of connections waits
no longer than the cleanup time, whatever closes it.
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
from koo.database.drivers.wire import ROLE_TIMEOUTS, ServerTimeouts, set_up_socket, sever
from koo.database_urls import NAMES_NO_USER, UNREADABLE, UnusableArguments
from koo.hidden import Secret
from koo.options import DatabaseOptions

UNPREPARED = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
"""asyncpg's own setting and SQLAlchemy's. With both off statements have no name, and each lasts until the next one."""
NUMBERS = {
    "statement_cache_size": int,
    "max_cached_statement_lifetime": int,
    "max_cacheable_statement_size": int,
    "command_timeout": float,
}
"""Options that a URL can only hold as text."""
NOWHERE = os.devnull
"""Where a forked child's cancel request goes: sent to the real server, it would stop the parent's statement."""
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
        """As `asyncpg.connect`. Raises TypeError for a number that cannot be read."""
        read_numbers(kwargs, NUMBERS)
        kwargs.setdefault("loop", LookupLoop(asyncio.get_running_loop()))
        if isinstance(kwargs.get("password"), Secret):
            kwargs["password"] = partial(
                str, kwargs["password"]
            )  # its C code does not accept a subclass of str
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
            raise  # also where it is a ValueError
        except (LookupError, ValueError) as error:
            # Raised bare before anything is sent: by `getpass` for a user id without a name, by `int` for PGPORT.
            says = NAMES_NO_USER if isinstance(error, LookupError) else UNREADABLE
            raise UnusableArguments(says) from error
        if timeouts.must_ask(user):
            await _keep_shorter(connection, timeouts, user, given)
        connection.cleanup_s = options.cleanup_timeout_s
        transport = getattr(connection, "_transport", None)
        if transport is not None:
            set_up_socket(transport.get_extra_info("socket").fileno(), options)
        return connection

    def begin(self, adapted: Any) -> Awaitable[Any] | None:
        start: Callable[[], Awaitable[Any]] | None = getattr(adapted, "_start_transaction", None)
        return None if start is None else start()

    def commit(self, send: Callable[[Any], None], fairy: Any) -> bool:
        connection = fairy.dbapi_connection.driver_connection
        connection.tag = ""
        send(fairy)
        return bool(connection.tag != "ROLLBACK")

    def commit_marked(self, send: Callable[[Any], None], fairy: Any, marker: str) -> bool:
        connection = fairy.dbapi_connection.driver_connection
        if connection.is_closed() or not connection.is_in_transaction():
            return self.commit(send, fairy)
        connection.tag, connection.marker = "", f"{marker}; "
        try:
            send(fairy)
        except Exception:
            # A failed COMMIT ends the transaction, and asyncpg assumes that; a failed marker does not end it.
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
            except Exception as translated:  # noqa: BLE001 - what it raises is its answer
                return translated
        return error if isinstance(error, OSError | adapted.dbapi.Error) else None

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
    """Ask for the role's own timeouts, on its first connection. A server that cannot answer has none."""
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
    """Keeps the server's last answer to a plain command, which asyncpg's own COMMIT throws away.

    Closes within `cleanup_s` seconds.
    """

    __slots__ = ("cleanup_s", "tag")

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:  # noqa: ASYNC109 - asyncpg's own
        """As asyncpg's."""
        tag: str
        if args or self._query_loggers:
            tag = await super().execute(query, *args, timeout=timeout)
        else:
            # As asyncpg's own, without its coroutine: every scope's BEGIN and COMMIT pass here.
            self._check_open()
            tag = await self._protocol.query(query, timeout)
        self.tag = tag
        return tag

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncpg's own
        """As asyncpg's; without a `timeout` it is cut off after the cleanup time."""
        transport = getattr(self, "_transport", None)
        if timeout is not None or transport is None or self.is_closed():
            await super().close(timeout=timeout)
            return
        # Not by a timeout: that works by cancelling, and a scope that commits cannot be cancelled.
        timer = asyncio.get_running_loop().call_later(self.cleanup_s, transport.abort)
        try:
            await super().close()
        finally:
            timer.cancel()


class MarkedConnection(TaggedConnection):
    """Sends `marker` before the next plain command, in one message: asyncpg's own COMMIT, with all its bookkeeping."""

    __slots__ = ("marker",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.marker = ""

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:  # noqa: ASYNC109 - asyncpg's own
        """As asyncpg's."""
        marker, self.marker = self.marker, ""
        return await super().execute(marker + query, *args, timeout=timeout)


@cache
def tagged(connection_class: Any, ours: Any = TaggedConnection) -> Any:
    """The application's own connection class, made to keep its commands' tags; `ours` is koo's."""
    if connection_class is asyncpg.Connection:
        return ours
    name = f"{ours.__name__.removesuffix('Connection')}{connection_class.__name__}"
    return type(connection_class)(name, (ours, connection_class), {"__slots__": ()})
