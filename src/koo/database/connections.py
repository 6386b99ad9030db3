"""Connections: the engine of one event loop, with everything that belongs to that loop.

Connections cannot leave the loop of their birth. So a `Database` has one `Connections` at a time, made anew for each
`asyncio.run`; what is known about the server (breaker, counts) stays with the `Database`.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from koo.database.drivers.base import Driver
from koo.database.drivers.loading import load_driver
from koo.database.gate import Gate
from koo.database.hooks import Hooks
from koo.database.records import ConnectionRecord
from koo.database.session import GuardedSession
from koo.database.sqlite import Mode, Need, SqliteFile, WriterLine
from koo.deadlines import Deadlines
from koo.errors import DatabaseError, DatabaseUnavailable, Kind
from koo.guard import Guard
from koo.monitoring.pool import PoolMetrics
from koo.options import NEVER, DatabaseOptions

if TYPE_CHECKING:
    from koo.database.scope import SessionScope

AGE_JITTER = 0.1
"""A connection lives up to this share shorter: those that were born together must not die together."""
BUSY_PAUSE_S = (0.002, 0.03)
"""Between two tries to begin a write that another process keeps away."""


class Connections:
    """One engine on one loop. Made without I/O; `close` ends what it began. `kept`: has who will close it begun?"""

    def __init__(
        self,
        url: URL,
        options: DatabaseOptions,
        *,
        name: str,
        file: SqliteFile | None,
        guard: Guard,
        gate: Gate,
        metrics: PoolMetrics,
        deadlines: Deadlines,
        monotonic: Callable[[], float],
        draw: Callable[[], float] = random.random,
        on_read_only: Callable[[bool], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.options = options
        self.name = name
        self.file = file
        self.guard = guard
        self.gate = gate
        self.metrics = metrics
        self.deadlines = deadlines
        self.monotonic = monotonic
        self.driver: Driver = load_driver(url.get_driver_name())
        self.generation = 0
        self.links: dict[Any, ConnectionRecord] = {}  # by SQLAlchemy's adapted connection
        self.writers = WriterLine(deadlines, monotonic)
        self.draining = False
        self.kept = False
        self._draw = draw
        self._tasks: set[asyncio.Future[Any]] = set()
        self._engines: dict[tuple[bool, str | None], AsyncEngine] = {}
        self.wakes_at = NEVER
        self._timer: asyncio.TimerHandle | None = None
        self.note_read_only = on_read_only
        self.engine = self._make_engine(url)

    def _make_engine(self, url: URL) -> AsyncEngine:
        engine = create_async_engine(
            url,
            pool_size=self.options.pool_size,
            max_overflow=self.options.max_overflow,
            # Nobody waits in the pool: the gate in front of it lets in no more than it has.
            pool_timeout=self.options.pool_timeout_s,
            # The connection that was used last is the least likely to be dead, and the rest may age and go.
            pool_use_lifo=True,
            hide_parameters=True,
            connect_args=self.driver.connect_args(self.options, self.keep),
        )
        Hooks(self).install(engine.sync_engine)
        return engine

    @property
    def is_temporary(self) -> bool:
        """SQLite in memory: nothing needs to survive the process."""
        return self.file is not None and self.file.temporary

    # ── sessions ──────────────────────────────────────────────────────────────────────────────────────────────

    def make_session(self, scope: SessionScope) -> GuardedSession:
        # Without expire_on_commit: an attribute read after the scope would need a connection that is gone.
        # Closed for good at its end: used later it would take a connection past the gate.
        session = GuardedSession(
            self._engine_for(scope.readonly, scope.isolation), expire_on_commit=False, close_resets_only=False
        )
        session.sync_session.scope = scope
        return session

    def _engine_for(self, readonly: bool, isolation: str | None) -> AsyncEngine:
        if self.file is not None or not (readonly or isolation):
            return self.engine
        key = (readonly, isolation)
        engine = self._engines.get(key)
        if engine is None:
            options: dict[str, Any] = {"postgresql_readonly": True} if readonly else {}
            if isolation:
                options["isolation_level"] = isolation
            engine = self._engines[key] = self.engine.execution_options(**options)
        return engine

    def usual_hold_s(self) -> float:
        """How long scopes keep their connection, by the median of late."""
        return self.metrics.hold.recent(self.monotonic()).percentile_s(0.5)

    # ── deadlines of scopes ───────────────────────────────────────────────────────────────────────────────────

    def wake_at(self, when: float) -> None:
        """One timer serves all scopes: nearly none lives until its deadline."""
        if self._timer is not None:
            self._timer.cancel()
        self.wakes_at = when
        self._timer = None if when == NEVER else self.loop.call_at(when, self._wake)

    def _wake(self) -> None:
        now = self.loop.time()
        scopes = [scope for scope in self.gate.holders if not scope.expired]
        for scope in scopes:
            if scope.deadline <= now:
                scope.expire()
        self.wake_at(min((scope.deadline for scope in scopes if scope.deadline > now), default=NEVER))

    # ── links ─────────────────────────────────────────────────────────────────────────────────────────────────

    def link_of(self, connection: Any) -> ConnectionRecord:
        """The link of one of SQLAlchemy's connections."""
        return self.links[connection.connection.dbapi_connection]

    def make_link(self, adapted: Any) -> None:
        now = self.monotonic()
        age_s = self.options.pool_recycle_s * (1.0 - AGE_JITTER * self._draw())
        self.links[adapted] = ConnectionRecord(
            adapted, self.driver, now=now, expires_at=now + age_s, generation=self.generation
        )

    def forget(self, link: ConnectionRecord) -> None:
        """A connection is closed."""
        self.metrics.aborted += link.aborted
        self.end_writing(link)

    def distrust_all(self) -> None:
        """Every connection made before now is replaced when it is next taken."""
        self.generation += 1

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something small beside; it is kept until it ends."""
        self.keep(self.loop.create_task(work))

    def keep(self, future: asyncio.Future[Any] | None) -> None:
        """Something that goes on beside, and must have ended before the loop does."""
        if future is not None:
            self._tasks.add(future)
            future.add_done_callback(self._tasks.discard)

    # ── SQLite's transactions ─────────────────────────────────────────────────────────────────────────────────

    async def begin_sqlite(self, link: ConnectionRecord, scope: SessionScope, need: Need) -> None:
        """Before a statement: open the transaction that it needs, as late as possible and no later."""
        mode = scope.mode
        if need is Need.WRITE and mode is not Mode.READER:
            if not link.writing:
                await self.begin_writing(link, scope)
        elif need is Need.WRITE:
            raise DatabaseError(
                self.name, "the scope is read-only: open it without readonly=True", kind=Kind.READ_ONLY
            )
        elif mode is not Mode.COMMITTED and not link.in_transaction:
            await link.connection.execute_fetchall("BEGIN")
            link.in_transaction = True

    async def begin_writing(self, link: ConnectionRecord, scope: SessionScope) -> None:
        """Stand in the line of writers, then take SQLite's own lock. A snapshot that is open goes on as it is."""
        until = min(scope.deadline, self.monotonic() + self.options.pool_timeout_s)
        await self.writers.enter(self.name, until, scope.owner)
        link.writing = True
        if link.in_transaction:
            return
        try:
            await self._begin_immediate(link, until)
        except BaseException:
            self.end_writing(link)
            raise
        link.in_transaction = True

    async def _begin_immediate(self, link: ConnectionRecord, until: float) -> None:
        while True:
            try:
                await link.connection.execute_fetchall("BEGIN IMMEDIATE")
                self.note_read_only(False)
                return
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or self.monotonic() >= until:
                    raise
            low, high = BUSY_PAUSE_S
            await asyncio.sleep(low + (high - low) * self._draw())

    def end_writing(self, link: ConnectionRecord) -> None:
        """The transaction has ended, or its connection: the next writer's turn."""
        link.in_transaction = False
        if link.writing:
            link.writing = False
            self.writers.leave()

    # ── the end ───────────────────────────────────────────────────────────────────────────────────────────────

    def refuse_if_draining(self) -> None:
        """Raises `DatabaseUnavailable` since closing has begun: nobody would close what is opened after that."""
        if self.draining:
            raise DatabaseUnavailable(self.name, "it is being closed", kind=Kind.DRAINING)

    async def close(self) -> None:
        """Refuse who waits, let running scopes end within the cleanup time, then cut off what is left, and close."""
        self.draining = True
        self.gate.let_all_go()
        await self.gate.drain(self.options.cleanup_timeout_s)
        for link in tuple(self.links.values()):
            if link.scope is not None:
                link.abort()
        timer = self.loop.call_later(self.options.cleanup_timeout_s, self.abandon)
        try:
            await self.engine.dispose()
        finally:
            timer.cancel()
            self.wake_at(NEVER)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.options.cleanup_timeout_s)

    def abandon(self) -> None:
        """Cut off every connection: nobody answers, or the loop has ended."""
        for link in tuple(self.links.values()):
            link.abort()
