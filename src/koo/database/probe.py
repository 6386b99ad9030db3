"""ProbeDatabase: asks the database how it is, over a connection of its own.

Outside the pool and its queue, because a full pool must not look like a dead database. It costs one connection of the
server's. A probe that fails three times makes a database unhealthy; in HALF_OPEN a probe takes a lease like a scope,
so that an unused database recovers too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import URL, NullPool, event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from koo.clock import Clock
from koo.database import sqlite
from koo.database.drivers.base import Driver
from koo.database.drivers.loading import load_driver
from koo.database.faults import ScopeStage, explain, too_late, unavailable
from koo.database.records import ConnectionRecord
from koo.database.uncancellable import to_end
from koo.deadlines import Alarm, Deadlines
from koo.errors import DatabaseError
from koo.guard import Guard
from koo.monitoring.vitals import Look
from koo.options import DatabaseOptions
from koo.policies.breaker import HALF_OPEN, Permit
from koo.policies.verdict import FAILURE, NEUTRAL, SUCCESS, Verdict

TICK_S = 1.0

log = logging.getLogger("koo")


class ProbeDatabase:
    """Probes at an interval, and when asked; `on_look` receives what it saw."""

    def __init__(
        self,
        url: URL,
        options: DatabaseOptions,
        *,
        guard: Guard,
        deadlines: Deadlines,
        clock: Clock,
        draw: Callable[[], float],
        on_look: Callable[[Look], None],
        tick: Callable[[], None],
        temporary: bool = False,
        connect_args: Mapping[str, Any],
    ) -> None:
        self._url = url
        self._options = options
        self._guard = guard
        self._deadlines = deadlines
        self._clock = clock
        self._draw = draw
        self._on_look = on_look
        self._tick = tick
        self._temporary = temporary
        self._connect_args = connect_args
        self._driver: Driver = load_driver(url.get_driver_name())
        self._engine: AsyncEngine | None = None
        self._connection: AsyncConnection | None = None
        self._record: ConnectionRecord | None = None
        self._running: asyncio.Task[Look] | None = None
        self._ending: set[asyncio.Future[Any]] = set()

    async def run(self) -> None:
        """For ever: once in an interval, and each second while recovery is being tested."""
        due_at = self._clock.monotonic() + self._options.probe_interval_s
        while True:
            await self._clock.sleep(min(TICK_S, self._options.probe_interval_s))
            self._tick()
            now = self._clock.monotonic()
            if now >= due_at or self._guard.breaker.phase is HALF_OPEN:
                due_at = now + self._options.probe_interval_s
                await self.look()

    async def look(self) -> Look:
        """One probe, shared by all who ask while it runs. Never raises; bounded by the probe's timeout and cleanup."""
        running = self._running
        if running is None or running.done() or running.get_loop() is not asyncio.get_running_loop():
            running = self._running = asyncio.get_running_loop().create_task(self._look(), name="koo probe")
        return await asyncio.shield(running)

    async def _look(self) -> Look:
        clock, guard = self._clock, self._guard
        began = clock.monotonic()
        permit = guard.breaker.admit(began, self._draw) if guard.breaker.phase is HALF_OPEN else None
        error: DatabaseError | None = None
        read_only: bool | None = None
        try:
            read_only = await self._ask_anew(began + self._options.probe_timeout_s)
        except Exception as failure:  # noqa: BLE001 - whatever it is, the look tells it
            error = self._name_it(failure)
            await self._drop()
        except BaseException:
            self._feed(permit, NEUTRAL, clock.monotonic() - began)
            raise
        took_s = clock.monotonic() - began
        self._guard.note_check(error is None)
        self._feed(permit, SUCCESS if error is None else FAILURE, took_s)
        look = Look(clock.wall(), took_s, error, read_only)
        self._on_look(look)
        return look

    def _feed(self, permit: Permit | None, verdict: Verdict, took_s: float) -> None:
        if permit is not None:
            slow = took_s >= self._options.slow_call_s
            self._guard.breaker.settle(permit, verdict, slow, self._clock.monotonic(), self._draw)
        self._guard.tick()  # tells what happened

    def _name_it(self, failure: Exception) -> DatabaseError:
        if isinstance(failure, DatabaseError):
            return failure
        if isinstance(failure, TimeoutError) or (self._record is not None and self._record.aborted):
            return unavailable(failure, too_late(self._options.probe_timeout_s))
        return unavailable(failure, explain(failure, ScopeStage.CONNECT))

    async def _ask_anew(self, until: float) -> bool | None:
        """As `_ask`. A connection that was kept and is dead says nothing about the server: then on a new one."""
        kept = self._connection is not None
        try:
            return await self._ask(until)
        except Exception:
            if not kept or self._record is None or self._record.aborted:
                raise
            await self._drop()
        return await self._ask(until)

    async def _ask(self, until: float) -> bool | None:
        """Does it answer, and does it refuse writes?"""
        if self._connection is None:
            with Alarm(self._deadlines, until):
                await self._connect()
        connection, record = self._connection, self._record
        assert connection is not None and record is not None
        timer = record.abort_in(max(until - self._clock.monotonic(), 0.0))
        try:
            result = await connection.execute(text(self._driver.health_query))
            refuses: bool | None = result.scalar()
            return refuses
        finally:
            timer.cancel()

    async def _connect(self) -> None:
        if self._engine is None:
            self._engine = create_async_engine(
                self._url,
                poolclass=NullPool,
                isolation_level="AUTOCOMMIT",
                hide_parameters=True,
                connect_args={**self._connect_args, **self._driver.connect_args(self._options, self._keep)},
            )
            event.listen(self._engine.sync_engine.pool, "connect", self._on_connect)
        self._connection = await self._engine.connect()

    def _on_connect(self, adapted: Any, record: Any) -> None:
        now = self._clock.monotonic()
        self._record = ConnectionRecord(adapted, self._driver, now=now, expires_at=now)
        if self._url.get_backend_name() == "sqlite":
            adapted.run_async(lambda connection: sqlite.prepare(connection, self._temporary))

    def _keep(self, future: asyncio.Future[Any] | None) -> None:
        if future is not None:
            self._ending.add(future)
            future.add_done_callback(self._ending.discard)

    async def _drop(self) -> None:
        """The connection is of no use any more: the next probe makes another."""
        connection, self._connection = self._connection, None
        record, self._record = self._record, None
        if record is not None:
            record.abort()
        if connection is not None:
            await to_end(self._close_connection(connection))

    async def _close_connection(self, connection: AsyncConnection) -> None:
        try:
            await connection.invalidate()
            await connection.close()
        except Exception:
            log.debug("closing the probe's connection failed", exc_info=True)

    async def close(self) -> None:
        """Stop what runs, and close the connection in order."""
        running, self._running = self._running, None
        if running is not None and not running.done():
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        connection, self._connection = self._connection, None
        if connection is not None:
            timer = (
                self._record.abort_in(self._options.cleanup_timeout_s) if self._record is not None else None
            )
            try:
                await connection.close()
            except Exception:
                log.debug("closing the probe's connection failed", exc_info=True)
            finally:
                if timer is not None:
                    timer.cancel()
        self._record = None
        if self._engine is not None:
            engine, self._engine = self._engine, None
            await engine.dispose()
        if self._ending:
            await asyncio.wait(self._ending, timeout=self._options.cleanup_timeout_s)
