"""Connections outside the pool, for koo's own queries: one per query, closed after use.

The pool may be full, or all of its connections lost, at the very moment when such a query is needed. Only a few
are open at a time, because after a server restart every scope that was in COMMIT has a query at the same moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from sqlalchemy import URL, NullPool, event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from koo.database import sqlite
from koo.database.dial import Dial, password_of
from koo.database.drivers.base import Driver, Keep
from koo.database.records import ConnectionRecord
from koo.database.uncancellable import to_end
from koo.monitoring.pool import PoolMetrics
from koo.options import DatabaseOptions

AT_A_TIME = 4
"""Side connections open at the same time; further queries wait."""


class Beside:
    """Side connections of one event loop. Opens nothing before the first query; `connect_args`: the application's."""

    def __init__(
        self,
        url: URL,
        options: DatabaseOptions,
        driver: Driver,
        *,
        connect_args: dict[str, Any],
        dial: Dial,
        keep: Keep,
        metrics: PoolMetrics,
        monotonic: Callable[[], float],
        temporary: bool,
    ) -> None:
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self._url = url
        self._options = options
        self._driver = driver
        self._connect_args = connect_args
        self._dial = dial
        self._keep = keep
        self._metrics = metrics
        self._monotonic = monotonic
        self._temporary = temporary
        self._engine: AsyncEngine | None = None
        self._slots = asyncio.Semaphore(AT_A_TIME)

    @asynccontextmanager
    async def begin(self, within_s: float) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction that can write, committed at the end. `within_s` limits the whole block.

        Raises the driver's errors, and `TimeoutError`. Run it in a separate task, not inside `Unbroken`: its timeouts
        work by cancelling the task.
        """
        until = self._monotonic() + within_s
        async with asyncio.timeout(within_s):
            await self._slots.acquire()
        try:
            async with asyncio.timeout(max(until - self._monotonic(), 0.0)):
                connection = await self._open_engine().connect()
            adapted = (await connection.get_raw_connection()).dbapi_connection
            now = self._monotonic()
            record = ConnectionRecord(adapted, self._driver, now=now, expires_at=until)
            timer = record.abort_in(max(until - now, 0.0))
            try:
                async with connection.begin():
                    # This connection does not wait in the writers' queue, so SQLite itself must wait for the lock.
                    if self.is_sqlite:
                        await connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(within_s * 1000)}")
                    yield connection
            except BaseException:
                record.abort()  # an orderly close takes seconds if the server does not respond
                raise
            finally:
                timer.cancel()
                await to_end(connection.close())
        finally:
            self._slots.release()

    def _open_engine(self) -> AsyncEngine:
        if self._engine is None:
            # Behind a pooler each transaction may run on a different server connection, where the statements that were
            # prepared on the previous one do not exist.
            plain = replace(self._options, prepared_statements=False)
            args = {**self._connect_args, **self._driver.connect_args(plain, self._keep)}
            others: dict[str, Any] = {}
            if not self.is_sqlite:
                call = partial(self._dial.call, dict(args), args["async_creator_fn"])
                args = {**password_of(self._url), **args, "async_creator_fn": call}
                # Overrides the role's default. In REPEATABLE READ the query would fail with a conflict if the lost
                # transaction commits after the query's snapshot was taken.
                others = {"isolation_level": "READ COMMITTED"}
            self._engine = create_async_engine(
                self._url, poolclass=NullPool, hide_parameters=True, connect_args=args, **others
            )
            if self.is_sqlite:
                event.listen(self._engine.sync_engine.pool, "connect", self._on_connect)
        return self._engine

    def _on_connect(self, adapted: Any, record: Any) -> None:
        adapted.run_async(lambda connection: sqlite.prepare(connection, self._temporary, self._metrics))

    async def close(self) -> None:
        """Dispose of the engine; each connection was closed after its use."""
        if self._engine is not None:
            engine, self._engine = self._engine, None
            await engine.dispose()
