"""What is behind a database's URL: how many connections are allowed, and whether there is a pooler in between.

At connect a client receives a process id for cancelling. A pooler makes that id up, while a query returns the server's
own: if the two differ, there is a pooler. If two open connections report the same server id, or one connection reports
two, the pooler assigns server connections per transaction, not per client. Session state (SET, prepared statements,
LISTEN, advisory locks, temporary tables) then passes to another client after each transaction.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any, Literal

from sqlalchemy import URL, NullPool, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from koo.database.drivers.loading import load_driver
from koo.options import DatabaseOptions

LIMITS = text(
    "SELECT current_setting('max_connections')::int,"
    " current_setting('superuser_reserved_connections')::int"
    " + coalesce(current_setting('reserved_connections', true), '0')::int,"
    " r.rolsuper, r.rolconnlimit, d.datconnlimit"
    " FROM pg_roles r, pg_database d WHERE r.rolname = current_user AND d.datname = current_database()"
)
PID = text("SELECT pg_backend_pid()")

Pooling = Literal["", "session", "transaction"]


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """`room`: how many connections all clients of this user may have together; `limit`: the setting that limits them.

    `pooling`: how a pooler assigns the server's connections; "" without a pooler.
    """

    room: int
    limit: str
    pooling: Pooling


async def examine(url: URL, options: DatabaseOptions, connect_args: dict[str, Any]) -> ServerFacts:
    """Examine the server over two new connections. Raises the driver's errors, and `TimeoutError`."""
    driver = load_driver(url.get_driver_name())
    ending: set[asyncio.Future[Any]] = set()
    # The checks use no prepared statements: behind a pooler in transaction mode a statement prepared in one transaction
    # may not exist in the next, and then this very check would fail in the case that it exists to detect.
    plain = replace(options, prepared_statements=False)
    args = {**connect_args, **driver.connect_args(plain, lambda one: ending.add(one) if one else None)}
    engine = create_async_engine(url, poolclass=NullPool, hide_parameters=True, connect_args=args)
    try:
        async with (
            asyncio.timeout(options.probe_timeout_s),
            engine.connect() as first,
            engine.connect() as second,
        ):
            room, limit = await _room(first)
            await first.rollback()
            return ServerFacts(room, limit, await _pooling(first, second))
    finally:
        await engine.dispose()
        if ending:
            await asyncio.wait(ending, timeout=options.cleanup_timeout_s)


async def _room(connection: AsyncConnection) -> tuple[int, str]:
    most, reserved, is_superuser, of_role, of_database = (await connection.execute(LIMITS)).one()
    limits = {"max_connections": most if is_superuser else most - reserved}
    if of_role >= 0 and not is_superuser:
        limits["the user's CONNECTION LIMIT"] = of_role
    if of_database >= 0 and not is_superuser:
        limits["the database's CONNECTION LIMIT"] = of_database
    limit = min(limits, key=lambda name: limits[name])
    return limits[limit], limit


async def _pooling(first: AsyncConnection, second: AsyncConnection) -> Pooling:
    # Both connections stay open and are queried in turn: a pooler with a free server connection may give a client the
    # same one again, so a single query of each would not show the mode.
    told = [await _told_pid(first), await _told_pid(second)]
    asked = [await _pid(first), await _pid(second), await _pid(first), await _pid(second)]
    if asked[0] == asked[1] or asked[0] != asked[2] or asked[1] != asked[3]:
        return "transaction"
    return "" if told == asked[:2] else "session"


async def _pid(connection: AsyncConnection) -> int:
    """The server's own process id, queried in a transaction that ends immediately."""
    pid: int = (await connection.execute(PID)).scalar_one()
    await connection.rollback()
    return pid


async def _told_pid(connection: AsyncConnection) -> int:
    """The process id that was reported at connect."""
    raw: Any = (await connection.get_raw_connection()).driver_connection
    pid: int = raw.get_server_pid() if hasattr(raw, "get_server_pid") else raw.info.backend_pid
    return pid
