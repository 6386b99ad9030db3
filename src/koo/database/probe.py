"""ProbeDatabase: checks the database over a connection of its own.

The connection is outside the pool and its queue, because a full pool must not look like a dead database. The probe must
find out what the next caller would find out. A connection opened yesterday still works after the password was changed,
after the server ran out of connections, or after its address moved. So the probe opens a new connection whenever that
matters: while the breaker is not closed, after the pool was distrusted, and when its own connection is older than half
an interval. It closes the old one only afterwards: otherwise a full server would appear to have room, because the probe
itself had just made room.

The probe runs once per interval, and about once a second while something is wrong. Two successful probes in a row while
the breaker is open start the recovery test immediately, so a restart of four seconds is an outage of six. Each recovery
test that fails in the same outage doubles the number of successes needed. Only refused credentials are not retried
every second, because directories lock accounts for that.

Three failed probes make a database unhealthy. In HALF_OPEN a probe takes a lease as a scope does, so a database that no
caller uses recovers too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sqlalchemy import URL, NullPool, event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from koo.clock import Clock
from koo.database import sqlite
from koo.database.dial import Dial
from koo.database.drivers.base import Driver
from koo.database.drivers.loading import load_driver
from koo.database.faults import ScopeStage, explain, too_late, unavailable
from koo.database.records import ConnectionRecord
from koo.database.uncancellable import to_end
from koo.deadlines import Alarm, Deadlines
from koo.errors import DatabaseError, Kind
from koo.guard import Guard
from koo.monitoring.pool import PoolMetrics
from koo.monitoring.vitals import Look
from koo.options import NEVER, DatabaseOptions
from koo.policies.breaker import CLOSED, HALF_OPEN, OPEN, Phase
from koo.policies.permit import Permit
from koo.policies.verdict import FAILURE, NEUTRAL, SUCCESS, Verdict

TICK_S = 1.0
TICK_JITTER = 0.1
"""A tick may be longer by this share: processes hit by the same outage must not all connect at the same moment."""
AGE_SHARE = 0.5
"""A connection is used for half an interval, so each regular probe opens a new one."""
ANSWERS = 2
"""Successes in a row before the recovery test starts early: a single one may come from a server that is going down."""
DOUBLINGS_MAX = 5
"""At most 64 successes, about a minute: as long as a breaker stays open by default."""

log = logging.getLogger("koo")


@dataclass(slots=True)
class Own:
    """The probe's own connection, when it was opened, and the pool's generation at that time."""

    connection: AsyncConnection
    record: ConnectionRecord
    opened_at: float
    generation: int


class ProbeDatabase:
    """Probes at an interval and on request; `on_look` receives each result.

    `generation` returns the generation of the pool's connections, which rises when they are distrusted.
    """

    def __init__(
        self,
        url: URL,
        options: DatabaseOptions,
        *,
        guard: Guard,
        deadlines: Deadlines,
        clock: Clock,
        draw: Callable[[], float],
        generation: Callable[[], int],
        on_look: Callable[[Look], None],
        tick: Callable[[], None],
        metrics: PoolMetrics,
        temporary: bool = False,
        connect_args: Mapping[str, Any],
        dial: Dial,
    ) -> None:
        self._url = url
        self._options = options
        self._guard = guard
        self._deadlines = deadlines
        self._clock = clock
        self._draw = draw
        self._generation = generation
        self._on_look = on_look
        self._tick = tick
        self._metrics = metrics
        self._temporary = temporary
        self._connect_args = connect_args
        self._dial = dial
        self._driver: Driver = load_driver(url.get_driver_name())
        self._engine: AsyncEngine | None = None
        self._own: Own | None = None
        self._record: ConnectionRecord | None = None  # of the connection opened last
        self._running: asyncio.Task[Look] | None = None
        self._last_error: DatabaseError | None = None
        self._answers = self._early = 0
        self._answered_since: float | None = None  # in wall seconds
        self._closed_at = guard.breaker.closed_at
        self._ending: set[asyncio.Future[Any]] = set()

    async def run(self) -> None:
        """Probe forever: once per interval, and about once a second while something is wrong."""
        due_at = self._clock.monotonic() + self._options.probe_interval_s
        while True:
            tick_s = TICK_S * (1.0 + TICK_JITTER * self._draw())
            await self._clock.sleep(min(tick_s, self._options.probe_interval_s))
            self._tick()
            if self._clock.monotonic() >= due_at or self._is_urgent():
                await self.look()
                due_at = self._clock.monotonic() + self._options.probe_interval_s

    def _is_urgent(self) -> bool:
        # In HALF_OPEN the database has to be tested, and without traffic only the probe can do that. In the other
        # phases refused credentials are not urgent: one login a second with a wrong password would get the account
        # locked.
        phase, error = self._guard.breaker.phase, self._last_error
        if phase is HALF_OPEN:
            return True
        return (phase is OPEN or error is not None) and (error is None or error.kind is not Kind.AUTH)

    async def look(self) -> Look:
        """One probe, shared by all callers that request one while it runs.

        Never raises. It takes at most the probe's timeout and the cleanup time.
        """
        # The task belongs to the probe and is shielded: a health check whose client disconnects must not cancel the
        # result that other callers wait for. A task of a loop that has ended never completes, so it is not joined.
        running = self._running
        if running is None or running.done() or running.get_loop() is not asyncio.get_running_loop():
            running = self._running = asyncio.get_running_loop().create_task(self._look(), name="koo probe")
        return await asyncio.shield(running)

    async def _look(self) -> Look:
        clock, breaker = self._clock, self._guard.breaker
        began, phase = clock.monotonic(), breaker.phase
        permit = breaker.admit(began, self._draw) if phase is HALF_OPEN else None
        error: DatabaseError | None = None
        read_only: bool | None = None
        try:
            read_only = await self._ask_anew(began + self._options.probe_timeout_s)
        except Exception as failure:  # noqa: BLE001 - the result contains the error
            error = self._name_it(failure)
            await self._drop()
        except BaseException:
            self._feed(permit, NEUTRAL, clock.monotonic() - began)
            raise
        took_s = clock.monotonic() - began
        if error is not None and error.kind is Kind.OUT_OF_RESOURCES:
            # This process ran out of file descriptors or memory. That says nothing about the database, so the previous
            # result stays valid: a busy process must not declare a healthy database unhealthy.
            self._feed(permit, NEUTRAL, took_s)
            return Look(clock.wall(), took_s, error, read_only, self._answered_since)
        self._last_error = error
        self._guard.note_check(error)
        self._count_answer(phase, error is None, took_s)
        self._feed(permit, SUCCESS if error is None else FAILURE, took_s)
        if error is not None:
            self._answered_since = None
        elif self._answered_since is None:
            self._answered_since = clock.wall()
        look = Look(clock.wall(), took_s, error, read_only, self._answered_since)
        self._on_look(look)
        return look

    def _count_answer(self, phase: Phase, answered: bool, took_s: float) -> None:
        """Start the recovery test early, once enough probes in a row have succeeded."""
        breaker, now = self._guard.breaker, self._clock.monotonic()
        # `_early` counts the early tests of one outage. A breaker that has closed since then ended that outage.
        if breaker.closed_at != self._closed_at:
            self._closed_at, self._early = breaker.closed_at, 0
        self._answers = self._answers + 1 if answered and phase is OPEN else 0
        needed = ANSWERS * 2 ** min(self._early, DOUBLINGS_MAX)
        if self._answers >= needed and breaker.end_early(now):
            self._answers, self._early = 0, self._early + 1
        elif breaker.phase is OPEN:
            # Refusals state when to try again. While probes succeed, that is when the early test would begin if the
            # next ones succeed too; otherwise it is the end of the breaker's own open time.
            looks_s = max(needed - self._answers, 1) * (TICK_S * (1.0 + TICK_JITTER) + took_s)
            early_at = max(breaker.opened_at + breaker.early_s, now) + looks_s
            breaker.early_at = early_at if self._answers else NEVER

    def _feed(self, permit: Permit | None, verdict: Verdict, took_s: float) -> None:
        # Only in HALF_OPEN does a probe have a permit. In other phases its result reaches the guard by `note_check`
        # alone.
        if permit is not None:
            slow = took_s >= self._options.slow_call_s
            self._guard.breaker.settle(permit, verdict, slow, self._clock.monotonic(), self._draw)
        self._guard.tick()  # publishes what happened

    def _name_it(self, failure: Exception) -> DatabaseError:
        if isinstance(failure, DatabaseError):
            return failure
        if isinstance(failure, TimeoutError) or (self._record is not None and self._record.aborted):
            return unavailable(failure, too_late(self._options.probe_timeout_s))
        return unavailable(failure, explain(failure, ScopeStage.CONNECT))

    async def _ask_anew(self, until: float) -> bool | None:
        """Whether the server refuses writes; None if unknown. Uses a new connection if the kept one proves nothing."""
        own = self._own
        if own is not None and self._is_telling(own):
            try:
                return await self._ask(own, until)
            except Exception:
                # Aborted means that the server did not respond within the probe's timeout: that is the result, and no
                # time is left. Any other error may only mean that the kept connection is dead, so a new one is tried.
                if own.record.aborted:
                    raise
                await self._drop()
        return await self._ask(await self._renew(until), until)

    def _is_telling(self, own: Own) -> bool:
        """Whether a result over this connection says what the next caller would find."""
        age_s = self._clock.monotonic() - own.opened_at
        return (
            self._guard.breaker.phase is CLOSED
            and own.generation == self._generation()
            and age_s < AGE_SHARE * self._options.probe_interval_s
        )

    async def _ask(self, own: Own, until: float) -> bool | None:
        timer = own.record.abort_in(max(until - self._clock.monotonic(), 0.0))
        try:
            result = await own.connection.execute(text(self._driver.health_query))
            refuses: bool | None = result.scalar()
            await own.connection.rollback()
            return refuses
        finally:
            timer.cancel()

    async def _renew(self, until: float) -> Own:
        # The generation is read before connecting. If the pool is distrusted while this connection is being opened, it
        # may still lead to the old server, and the next probe must not reuse it.
        old, generation = self._own, self._generation()
        with Alarm(self._deadlines, until):
            connection = await self._connect()
        assert self._record is not None
        self._own = own = Own(connection, self._record, self._clock.monotonic(), generation)
        if old is not None:
            self._keep(asyncio.get_running_loop().create_task(self._close_in_order(old)))
        return own

    async def _connect(self) -> AsyncConnection:
        if self._engine is None:
            self._engine = create_async_engine(
                self._url,
                poolclass=NullPool,
                hide_parameters=True,
                connect_args=self._all_connect_args(),
            )
            event.listen(self._engine.sync_engine.pool, "connect", self._on_connect)
        return await self._engine.connect()

    def _all_connect_args(self) -> dict[str, Any]:
        # Behind a pooler each transaction may run on a different server connection, where a statement prepared on the
        # previous one does not exist: the probe would report that as a failure of the database.
        plain = replace(self._options, prepared_statements=False)
        args = {**self._connect_args, **self._driver.connect_args(plain, self._keep)}
        if self._url.get_backend_name() != "sqlite":
            args["async_creator_fn"] = partial(self._dial.call, dict(args), args["async_creator_fn"])
        return args

    def _on_connect(self, adapted: Any, record: Any) -> None:
        now = self._clock.monotonic()
        self._record = ConnectionRecord(adapted, self._driver, now=now, expires_at=now)
        if self._url.get_backend_name() == "sqlite":
            adapted.run_async(lambda connection: sqlite.prepare(connection, self._temporary, self._metrics))

    def _keep(self, future: asyncio.Future[Any] | None) -> None:
        if future is not None:
            self._ending.add(future)
            future.add_done_callback(self._ending.discard)

    async def _drop(self) -> None:
        """Drop the connection: the next probe opens another."""
        own, self._own, self._record = self._own, None, None
        if own is not None:
            own.record.abort()
            await to_end(self._invalidate(own.connection))

    async def _invalidate(self, connection: AsyncConnection) -> None:
        try:
            await connection.invalidate()
            await connection.close()
        except Exception:
            log.debug("closing the probe's connection failed", exc_info=True)

    async def _close_in_order(self, own: Own) -> None:
        timer = own.record.abort_in(self._options.cleanup_timeout_s)
        try:
            await own.connection.close()
        except Exception:
            log.debug("closing the probe's connection failed", exc_info=True)
        finally:
            timer.cancel()

    def leave_to_parent(self) -> None:
        """In a forked child: leave the probe's connection to the parent."""
        if self._record is not None:
            self._record.leave_to_parent()

    async def close(self) -> None:
        """Cancel a running probe, and close the connection cleanly."""
        running, self._running = self._running, None
        if running is not None and not running.done():
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        own, self._own = self._own, None
        if own is not None:
            await self._close_in_order(own)
        if self._engine is not None:
            engine, self._engine = self._engine, None
            await engine.dispose()
        if self._ending:
            await asyncio.wait(self._ending, timeout=self._options.cleanup_timeout_s)
