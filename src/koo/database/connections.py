"""Connections: the engine of one event loop, with everything that belongs to that loop.

A connection cannot leave the event loop that opened it. So a `Database` has one `Connections` at a time and makes a new
one for each `asyncio.run`. What koo has found out about the server (breaker, counts) stays with the `Database`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, cast

from sqlalchemy import URL, Pool
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from koo.clock import Clock
from koo.crossing import begin
from koo.database.beside import Beside
from koo.database.dial import OF_SQLALCHEMY, Dial, password_of
from koo.database.drivers.base import MarkingDriver
from koo.database.drivers.loading import load_driver
from koo.database.engine_args import EngineArgs
from koo.database.faults import SERVICE, ScopeStage, explain, unavailable
from koo.database.gate import ScopeGate
from koo.database.greenlets import in_greenlet
from koo.database.hooks import Hooks, revive
from koo.database.marked_hooks import MarkedHooks
from koo.database.markers import Markers
from koo.database.nameplate import Nameplate
from koo.database.news import DatabaseNews
from koo.database.outcomes import Outcomes
from koo.database.pool_queue import PoolQueue
from koo.database.records import ConnectionRecords
from koo.database.sqlite_writes import WriterLine
from koo.deadlines import Deadlines
from koo.errors import DatabaseUnavailable, Kind
from koo.guard import Guard
from koo.monitoring.pool import PoolMetrics
from koo.options import NEVER, DatabaseOptions

log = logging.getLogger("koo")

RETIRE_S = 0.05
"""How often returned connections of a replaced pool are closed."""


class Connections:
    """One engine on one loop. The constructor does no I/O; `close` ends everything.

    `writers`: SQLite's queue of writers, or None. `has_keeper`: the task that will close this has started.
    `is_abandoned`: the database has since been used on another loop. `is_parents`: this process is a forked child.
    `marks`: each COMMIT that may have written carries a marker.
    """

    def __init__(
        self,
        url: URL,
        options: DatabaseOptions,
        *,
        temporary: bool,
        guard: Guard,
        pool_queue: PoolQueue,
        metrics: PoolMetrics,
        deadlines: Deadlines,
        clock: Clock,
        draw: Callable[[], float] = random.random,
        engine_args: EngineArgs,
        session_class: type[AsyncSession],
        gate: ScopeGate,
        news: DatabaseNews,
        dial: Dial,
        nameplate: Nameplate,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.options = options
        self.session_class = session_class
        self.guard = guard
        self.pool_queue = pool_queue
        self.metrics = metrics
        monotonic = self.monotonic = clock.monotonic
        self.gate = gate
        self.news = news
        self.dial = dial
        self.nameplate = nameplate
        self.driver = load_driver(url.get_driver_name())
        self.records = ConnectionRecords(self.driver, options, metrics, monotonic, draw)
        self.records.connects.shrink = self._shrink
        self.writers: WriterLine | None = None
        if url.get_backend_name() == "sqlite":
            self.writers = WriterLine(deadlines, metrics, options.pool_timeout_s, monotonic, draw)
        self.draining = self.is_abandoned = self.is_parents = False
        self.has_keeper = False
        self.wakes_at = NEVER
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Future[Any]] = set()
        self._retired: dict[asyncio.Task[None], Pool] = {}
        self.beside = Beside(
            url, options, self.driver, connect_args=engine_args.connect_args, dial=dial, keep=self.keep,
            metrics=metrics, monotonic=monotonic, temporary=temporary,
        )  # fmt: skip
        self.markers = Markers(self.beside, options, metrics, clock.wall)
        self.outcomes = Outcomes(self.beside, self.markers, options, news, monotonic)
        self.marks = options.exactly_once == "marker" and self.writers is None
        self._own_args = engine_args.connect_args | self.driver.connect_args(options, self.keep)
        self.engine = self._make_engine(url, engine_args)
        self._engines: dict[tuple[bool, str | None], AsyncEngine] = {}
        self._hooks(temporary, clock).install(self.engine.sync_engine)

    def _make_engine(self, url: URL, engine_args: EngineArgs) -> AsyncEngine:
        options = self.options
        return create_async_engine(
            url,
            pool_size=options.pool_size,
            max_overflow=options.max_overflow,
            # This limit is never reached: the queue in front of the pool admits no more callers than the pool can have
            # connections.
            pool_timeout=options.pool_timeout_s,
            # The most recently used connection is the least likely to be dead. The others stay idle, age, and are
            # replaced when they are next taken.
            pool_use_lifo=True,
            connect_args=self._connect_args(url),
            **{"hide_parameters": True, **engine_args.others},
        )

    def _connect_args(self, url: URL) -> dict[str, Any]:
        if self.writers is not None:
            return self._own_args
        call = partial(self.dial.call, self._own_args, self._own_args["async_creator_fn"])
        opened = partial(self.records.connects.open, call)
        return {**password_of(url), **self._own_args, "async_creator_fn": opened}

    def _hooks(self, temporary: bool, clock: Clock) -> Hooks:
        if self.writers is not None:
            from koo.database.sqlite_hooks import SqliteHooks  # loads aiosqlite

            return SqliteHooks(self.records, temporary)
        if self.marks:
            driver = cast("MarkingDriver", self.driver)
            return MarkedHooks(self.records, driver, self.markers, self.outcomes, self.pool_queue, clock.wall)
        return Hooks(self.records)

    def engine_for(self, readonly: bool, isolation: str | None) -> AsyncEngine:
        """The engine for transactions of this kind. On SQLite koo itself implements them, on the one engine."""
        if self.writers is not None or not (readonly or isolation):
            return self.engine
        # The engines are kept, because SQLAlchemy registers event listeners on each engine with options, which is too
        # slow for every scope. They all share one pool.
        key = (readonly, isolation)
        engine = self._engines.get(key)
        if engine is None:
            options: dict[str, Any] = {"postgresql_readonly": True} if readonly else {}
            if isolation:
                options["isolation_level"] = isolation
            engine = self._engines[key] = self.engine.execution_options(**options)
            revive(engine.sync_engine)
        return engine

    def usual_hold_s(self) -> float:
        """The median time for which scopes held their connection in the last five minutes."""
        return self.metrics.hold.recent(self.monotonic()).percentile_s(0.5)

    def _shrink(self) -> bool:
        """The server has no connection left: admit only as many scopes as the pool has connections.

        Returns False if it has none for them.
        """
        # A connection that is in use outside of scopes does not count. The queue does not know when that one becomes
        # free, so it would let a caller in again immediately, and again, until the caller's deadline.
        others = self.pool_queue.used - 1
        has = min(len(self.records), others + self.records.count_idle())
        if has > 0 and self.pool_queue.shrink(has, self.monotonic()):
            log.warning(
                "database: the server has no connection left; the pool works with the %d that it has", has
            )
        return has > 0

    # ── deadlines of scopes ───────────────────────────────────────────────────────────────────────────────────

    def wake_at(self, when: float) -> None:
        """Set the one timer that serves the deadlines of all scopes."""
        # A timer per scope would be created and cancelled for every transaction, although almost every scope ends long
        # before its deadline. This timer is not moved when a scope ends: it may fire for nothing, and is then set for
        # the earliest deadline that is left.
        if self._timer is not None:
            self._timer.cancel()
        self.wakes_at = when
        self._timer = None if when == NEVER else self.loop.call_at(when, self._wake)

    def _wake(self) -> None:
        now = self.loop.time()
        scopes = [scope for scope in self.pool_queue.holders if not scope.expired]
        for scope in scopes:
            if scope.deadline <= now:
                scope.expire()
        self.wake_at(min((scope.deadline for scope in scopes if scope.deadline > now), default=NEVER))

    # ── background work ───────────────────────────────────────────────────────────────────────────────────────

    def tick(self, now: float) -> None:
        """Called about once a second, at the monotonic time `now`."""
        with suppress(RuntimeError):  # called without a running loop: the markers cannot be tended
            if not self.draining and asyncio.get_running_loop() is self.loop:
                self.markers.tend(now, must_be_there=self.marks)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a short piece of work in the background."""
        self.keep(begin(self.loop, work, "koo small work"))

    def keep(self, future: asyncio.Future[Any] | None) -> None:
        """Make `close` wait for this future: it must end before the loop does."""
        if future is not None:
            self._tasks.add(future)
            future.add_done_callback(self._tasks.discard)

    # ── rotating ──────────────────────────────────────────────────────────────────────────────────────────────

    async def rotate(self, url: URL, dial: Dial, within_s: float) -> int:
        """Open new connections as `dial` says and close the old ones; returns how many old ones are still in use.

        Opens one connection first: if that fails, raises `DatabaseUnavailable` and changes nothing. Old connections in
        use are closed when their scopes end. Waits up to `within_s` seconds for that.
        """
        dial.parameters = dict(self.engine.dialect.create_connect_args(url)[1])
        own = {name: value for name, value in self._own_args.items() if name not in OF_SQLALCHEMY}
        try:
            async with asyncio.timeout(self.options.pool_timeout_s):
                first = await dial.call(own, own.pop("async_creator_fn"), **own)
        except Exception as error:
            raise unavailable(error, explain(error, ScopeStage.CONNECT)) from error
        await first.close()
        # The order matters. `dial` changes first, so that connections opened from here on use the new parameters. Then
        # the pool is replaced, so that a returned connection no longer reaches a new scope. The generation rises last:
        # it catches connections that were checked out of the old pool but have not sent BEGIN yet.
        self.dial.take(dial)
        before = set(self.records.by_connection)
        pool = self.engine.sync_engine.pool
        await self.engine.dispose(close=False)
        self.records.distrust_all()
        task = begin(self.loop, self._retire(pool), "koo retires a pool")
        self._retired[task] = pool
        task.add_done_callback(self._retired.pop)
        until = self.monotonic() + within_s
        while True:
            left = len(before & self.records.by_connection.keys())
            if not left or self.monotonic() >= until:
                self.news.note_rotation(left)
                return left
            await asyncio.sleep(RETIRE_S)

    async def _retire(self, pool: Pool) -> None:
        """Close connections as they return to a replaced pool, until no scope can still have one."""
        # SQLAlchemy forgets a disposed pool, but scopes return their connections to it, and there they would stay open.
        # Disposing of it once is not enough, so it is repeated for as long as the longest scope can run.
        options = self.options
        last_s = options.pool_timeout_s + options.scope_timeout_s + options.cleanup_timeout_s
        until = self.monotonic() + last_s
        while self.monotonic() < until:
            await in_greenlet(pool.dispose)
            await asyncio.sleep(RETIRE_S)

    async def _end_retired(self) -> None:
        retired = dict(self._retired)
        for task in retired:
            task.cancel()
        await asyncio.gather(*retired, return_exceptions=True)
        for pool in retired.values():
            await in_greenlet(pool.dispose)

    # ── the end ───────────────────────────────────────────────────────────────────────────────────────────────

    def refuse_if_draining(self) -> None:
        """Raise `DatabaseUnavailable` once closing has begun: a connection opened after that would stay open."""
        if self.draining:
            raise DatabaseUnavailable(
                SERVICE, "it is being closed, so no new scope can begin", kind=Kind.DRAINING
            )

    def leave_to_parent(self) -> None:
        """In a forked child: make sure that nothing done here affects the parent's connections and transactions."""
        self.is_parents = True
        self.records.leave_to_parent()

    async def close(self) -> None:
        """Refuse waiting callers, let running scopes end within the cleanup time, cut off the rest, and close."""
        self.draining = True
        # The queue belongs to the `Database` and outlives this loop. After the database moved to another loop, the
        # callers in it are that loop's: waking their futures from here would be a cross-loop call.
        if not self.is_abandoned:
            self.pool_queue.wake_all()
            await self.pool_queue.drain(self.options.cleanup_timeout_s)
        # Outcomes are closed before the side connections: koo looks up lost COMMITs over those.
        self.records.abort_all(occupied_only=True)
        await self.outcomes.close(self.options.cleanup_timeout_s)
        # An orderly close sends a message to the server and waits. If the server does not respond, `hasten` cuts off
        # what is left, and then each connection whose close begins later.
        timer = self.loop.call_later(self.options.cleanup_timeout_s, self.records.hasten)
        try:
            await self._end_retired()
            await self.markers.close()
            await self.beside.close()
            await self.engine.dispose()
        finally:
            timer.cancel()
            self.wake_at(NEVER)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.options.cleanup_timeout_s)
