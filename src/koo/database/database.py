"""Database: the user's database behind one guard.

    async with database.session_scope() as session: ...      one transaction
    await database.transaction(move_money, "a", "b", 100)    one transaction, run again on a transient failure
    database.get_pool_metrics(); await database.health_check()

    Database(engine.url, session_class=AsyncSession)         next to an existing engine, with SQLModel's session

Nothing is opened before the first use. The first use creates the connections of the running loop and one keeper task.
The keeper probes the database, and closes everything when the loop ends (`asyncio.run` cancels all tasks at its end). A
later `asyncio.run` opens new connections; breaker and counts continue.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Concatenate, Generic, TypeVar, cast

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncSession

from koo.bridge import BRIDGE
from koo.clock import SYSTEM_CLOCK, Clock
from koo.crossing import begin, carry, running_loop
from koo.database.connections import Connections
from koo.database.connects import connect_options
from koo.database.dial import Dial, Password
from koo.database.drivers.loading import read_url
from koo.database.engine_args import read_engine_args
from koo.database.faults import SERVICE, ScopeStage, classify_connect, explain, unavailable
from koo.database.gate import GateState, ScopeGate
from koo.database.nameplate import Nameplate, server_of
from koo.database.news import DatabaseNews
from koo.database.operations import operation_of
from koo.database.pool_queue import NAMED_MAX, PoolQueue
from koo.database.probe import ProbeDatabase
from koo.database.scope import S_co, SessionScope
from koo.database.server_facts import ServerFacts, examine
from koo.database.session import guarded
from koo.database.sqlite import Mode, SqliteFile
from koo.database.transactions import Transactions, check_function
from koo.deadlines import TWO_LOOPS, Deadlines, WrongLoop
from koo.errors import ConfigurationError, DatabaseError, DatabaseUnavailable, Kind
from koo.events import Event
from koo.forks import forget_in_child, leave_behind
from koo.gates import Gates
from koo.guard import Guard
from koo.hidden import hide
from koo.logs.calls import CallLog
from koo.monitoring.pool import PoolMetrics
from koo.monitoring.shapes import DatabaseGate, DatabaseHealth, DatabaseMetrics, DatabaseStatus
from koo.monitoring.vitals import Look, Vitals, database_health, database_metrics, database_status
from koo.openings import Act
from koo.options import NEVER, DatabaseOptions
from koo.own_files import why_not_made
from koo.policies.opening_times import EARLY_S
from koo.policies.reported import DatabaseState, database_state
from koo.refusals import DATABASES

T = TypeVar("T")

HELD_BY_MAX = 20
"""How many scopes `get_gate` and `drain` describe: the oldest are enough to find what is stuck."""
ISOLATIONS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")

DRAW = random.SystemRandom().random
"""This is not `random.random`, because background work must not disturb an application's seeded sequence."""


class Database(Generic[S_co]):
    """One guarded database. Constructing it opens nothing.

    `options`: koo's options, or just the URL, which may be that of an engine (`engine.url`); `engine_args`: what an
    application passes to `create_async_engine` with it; `session_class`: the class of the sessions in scopes, a
    subclass of SQLAlchemy's `AsyncSession`. `deadlines`: the loop's registry, shared with other guards; `draw` returns
    random numbers in [0, 1); `publish` receives events; `on_reset` is called after an operator's reset. Raises
    `ConfigurationError` for a URL with an unknown driver, and for arguments that koo cannot honour.
    """

    def __init__(
        self,
        options: DatabaseOptions | URL | str,
        *,
        engine_args: Mapping[str, Any] | None = None,
        session_class: type[S_co] | None = None,
        deadlines: Deadlines | None = None,
        clock: Clock = SYSTEM_CLOCK,
        draw: Callable[[], float] = DRAW,
        publish: Callable[[Event], None] | None = None,
        calls: CallLog | None = None,
        on_reset: Callable[[Act | None], None] | None = None,
    ) -> None:
        options = hide(options)
        self._url = read_url(options.url if isinstance(options, DatabaseOptions) else options)
        if not isinstance(options, DatabaseOptions):
            options = DatabaseOptions(url=self._url.render_as_string(hide_password=False))
        options, self._engine_args = read_engine_args(self._url, options, engine_args or {})
        self.options = options
        self._session_class = guarded(AsyncSession if session_class is None else session_class)
        self._on_reset = on_reset
        self.clock = clock
        self._draw = draw
        self._file = SqliteFile(self._url) if self._url.get_backend_name() == "sqlite" else None
        self._deadlines = deadlines or Deadlines()
        self._is_alone = deadlines is None
        self.pool_queue = PoolQueue(options.pool_size + options.max_overflow)
        self.gate = ScopeGate()
        self._dial = Dial()
        self.metrics = PoolMetrics(clock.monotonic())
        self.news = DatabaseNews(self.metrics, clock, publish, calls)
        gates = Gates(
            SERVICE,
            connect_options(options),
            deadlines=self._deadlines,
            family=DATABASES,
            bulkhead=self.pool_queue,
            clock=clock,
            draw=draw,
            publish=self.news.publish,
        )
        self.guard = Guard(gates, classify=classify_connect)
        self.guard.breaker.early_s = EARLY_S
        self._nameplate = Nameplate(self._url, self.guard.breaker)
        self.transactions = Transactions(self.make_scope, self.guard, self.metrics, options, clock, draw)
        self.connections: Connections | None = None
        self.last_look: Look | None = None
        self._role: bool | None = None  # whether the server refused writes at the last probe that could tell
        self._looked_at = -NEVER
        self._probe: ProbeDatabase | None = None
        self._keeper: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = self.circuit_breaker_state.value
        return f"<Database {self.driver_name} {state} | {self.pool_queue.used} of {self.pool_queue.limit} in use>"

    @property
    def url(self) -> URL:
        """The URL with its asynchronous driver named, for another engine, such as the one in alembic's `env.py`."""
        return self._url

    @property
    def driver_name(self) -> str:
        """psycopg, asyncpg or aiosqlite."""
        return self._url.get_driver_name()

    # ── transactions ──────────────────────────────────────────────────────────────────────────────────────────

    def session_scope(self, *, readonly: bool = False, isolation: str | None = None) -> SessionScope[S_co]:
        """Use with `async with`: an `AsyncSession` in one transaction; see `SessionScope`.

        `readonly`: refuses writes (SQLite: never waits for a writer). `isolation`: "READ COMMITTED", "REPEATABLE READ"
        or "SERIALIZABLE"; None is the server's default. SQLite treats None as READ COMMITTED, and a SERIALIZABLE scope
        takes the writers' lock at its start. A scope inside another one is a separate transaction, on its own
        connection.
        """
        return self.make_scope(readonly=readonly, isolation=isolation)

    def make_scope(
        self,
        *,
        readonly: bool = False,
        isolation: str | None = None,
        deadline: float = NEVER,
        mode: Mode | None = None,
    ) -> SessionScope[S_co]:
        """Like `session_scope`; `deadline` is in monotonic seconds, `mode` is SQLite's."""
        if isolation is not None and isolation not in ISOLATIONS:
            raise ConfigurationError(
                SERVICE, f"isolation is {isolation!r}; expected one of {', '.join(ISOLATIONS)}"
            )
        return SessionScope(self._open, readonly=readonly, isolation=isolation, deadline=deadline, mode=mode)

    async def transaction(
        self,
        fn: Callable[Concatenate[S_co, ...], Awaitable[T]],
        *args: Any,
        max_retries: int | None = None,
        readonly: bool = False,
        isolation: str | None = None,
        idempotency_key: str | None = None,
        **kwargs: Any,
    ) -> T:
        """Run `await fn(session, *args, **kwargs)` as one transaction, repeated in a fresh session if that may help.

        `max_retries` counts the repeats; None uses the number in the options. One deadline covers all attempts. With an
        `idempotency_key` it happens once for that key, and later calls return the stored result, which is JSON.

        Raises `fn`'s last error, `CommitOutcomeUnknown` without a repeat, `IdempotencyKeyReused` for a key that another
        call has used, and TypeError unless `fn` is an `async def`.
        """
        check_function(fn)
        return await self.transactions.run(
            lambda session: fn(cast(S_co, session), *args, **kwargs),
            max_retries=max_retries,
            readonly=readonly,
            isolation=isolation,
            operation=operation_of(idempotency_key, fn, args, kwargs),
        )

    async def init_exactly_once(self) -> None:
        """Like `koo db init`: create the markers table, or add what an older one lacks. Raises `DatabaseError`."""
        await self._open().markers.make()

    async def check_exactly_once(self) -> None:
        """Check the markers table now. Raises `DatabaseError` with what is wrong with it and how to fix that."""
        await self._open().markers.look()

    # ── life ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _open(self, is_check: bool = False) -> Connections:
        """The connections of the running loop. Raises `WrongLoop` on a second loop while the first still runs."""
        loop = running_loop()
        here = self.connections
        if here is not None and here.loop is loop:
            if here.draining:
                here.refuse_if_draining()
            return here
        # Two loops cannot share a pool, and replacing the connections would cut off the scopes of a loop that is still
        # running. The second loop checked is the platform's, because the platform may be open on another loop before
        # this database is.
        for other in (here.loop if here is not None else None, self._deadlines.loop):
            if other is not None and other is not loop and other.is_running():
                raise WrongLoop(TWO_LOOPS)
        return self._open_on(loop, is_check)

    def forget_parent(self) -> None:
        """In a forked child: leave the connections, which are the parent's; closing them would end them there too."""
        # Dropping the last reference to a connection would close it as well, so everything that owns a socket is put
        # into `leave_behind`, which keeps it alive for the rest of the child's life.
        if self.connections is not None:
            self.connections.leave_to_parent()
        if self._probe is not None:
            self._probe.leave_to_parent()
        for scope in tuple(self.pool_queue.holders):
            leave_behind(scope.leave_to_parent())
        leave_behind(self.connections, self._probe, self._keeper)
        self.connections = self._probe = self._keeper = None
        self.pool_queue.forget()
        self.gate.forget()
        self.guard.breaker.forget_running()

    def _open_on(self, loop: asyncio.AbstractEventLoop, is_check: bool) -> Connections:
        try:
            url = self._url if self._file is None else self._file.open()
        except OSError as error:
            refusal = DatabaseUnavailable(SERVICE, why_not_made(error), kind=Kind.NOT_FOUND)
            if is_check:  # before the database is open there is no probe that could record it
                self.guard.note_check(refusal)
                self._note_look(Look(self.clock.wall(), 0.0, refusal, None, None))
            else:
                self.news.note_refused(refusal)
            raise refusal from error
        self._abandon()
        temporary = self._file is not None and self._file.temporary
        connections = Connections(
            url,
            self.options,
            temporary=temporary,
            guard=self.guard,
            pool_queue=self.pool_queue,
            metrics=self.metrics,
            deadlines=self._deadlines,
            clock=self.clock,
            draw=self._draw,
            engine_args=self._engine_args,
            session_class=self._session_class,
            gate=self.gate,
            news=self.news,
            dial=self._dial,
            nameplate=self._nameplate,
        )
        probe = ProbeDatabase(
            url,
            self.options,
            metrics=self.metrics,
            temporary=temporary,
            connect_args=self._engine_args.connect_args,
            dial=self._dial,
            guard=self.guard,
            deadlines=self._deadlines,
            clock=self.clock,
            draw=self._draw,
            generation=lambda: self.connections.records.generation if self.connections is not None else 0,
            on_look=self._note_look,
            tick=self.tick,
        )
        self._keeper = begin(loop, self._keep(connections, probe), "koo ProbeDatabase")
        # These are set only now: if `begin` had failed, nothing would ever close connections opened through these
        # attributes.
        self.connections, self._probe = connections, probe
        forget_in_child(self)
        BRIDGE.settle(self, loop)
        return connections

    def _abandon(self) -> None:
        """Give up the connections of the previous loop, which is closed or not running, and their scopes with them."""
        # Nothing can be awaited on a loop that does not run, so the sockets are shut down: otherwise the server would
        # keep the locks of the old scopes until its own timeouts. The queue forgets their slots, which they cannot
        # return.
        before, keeper = self.connections, self._keeper
        if before is not None:
            before.records.abort_all()
            before.is_abandoned = True
            if keeper is not None and not before.loop.is_closed():
                before.loop.call_soon_threadsafe(keeper.cancel)  # in case that loop runs again
        self.pool_queue.forget()
        self.gate.forget()

    async def _keep(self, connections: Connections, probe: ProbeDatabase) -> None:
        """Probe until the loop ends or `close` is called, then close everything of this loop."""
        connections.has_keeper = True
        try:
            await probe.run()
        finally:
            # A script may close its loop without cancelling its tasks. Python then ends this one with `GeneratorExit`,
            # and nothing can be awaited any more.
            if not connections.is_parents:
                if connections.loop.is_closed():
                    connections.records.abort_all()
                else:
                    await self._close(connections, probe)

    async def _close(self, connections: Connections, probe: ProbeDatabase) -> None:
        await probe.close()
        await connections.close()
        self.news.close()
        # While this loop was closing, the database may have been opened on another one. Its connections must stay.
        if self.connections is connections:
            self.connections = self._probe = None
            BRIDGE.leave(self)
            if self._is_alone:
                self._deadlines.unbind(connections.loop)

    async def close(self) -> None:
        """Let running scopes end (within the cleanup time), then close all connections. The database may be used again.

        Also works from another loop. If the database's own loop is not running, it closes when that loop runs again.
        """
        keeper = self._keeper
        if keeper is None or keeper.done():
            return
        home = keeper.get_loop()
        if home is not asyncio.get_running_loop():
            if home.is_running():
                await carry(home, self.close())
            elif not home.is_closed():
                home.call_soon_threadsafe(keeper.cancel)
            return
        self._keeper = None
        # `asyncio.run` may already have cancelled it, at its end. The keeper is then closing connections in its
        # `finally`, and a second cancellation would interrupt that.
        if not keeper.cancelling():
            # Lets the keeper start: a task cancelled before its first step never reaches its `finally`.
            await asyncio.sleep(0)
            keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)

    def tick(self) -> None:
        """Do what depends on time alone; the keeper also calls it."""
        now = self.clock.monotonic()
        self.guard.tick()
        self.news.tick()
        self.metrics.fold(now)
        if self.connections is not None:
            self.connections.tick(now)
        self.news.note_overdue(self.pool_queue.take_overdue(now, self.options.held_warning_s), now)

    # ── health and metrics ────────────────────────────────────────────────────────────────────────────────────

    @property
    def circuit_breaker_state(self) -> DatabaseState:
        """healthy, unhealthy, circuit_open or degraded."""
        return database_state(self.guard.evidence())[0]

    def vitals(self) -> Vitals:
        """The data behind every report on this database (`koo.monitoring.vitals`). No I/O."""
        connections, now = self.connections, self.clock.monotonic()
        is_saturated = self.pool_queue.is_saturated(now)
        overdue = self.pool_queue.count_overdue(now, self.options.held_warning_s)
        return Vitals(
            options=self.options,
            driver=self.driver_name,
            server=self._nameplate.server,
            clock=self.clock,
            guard=self.guard,
            metrics=self.metrics,
            open=len(connections.records) if connections is not None else 0,
            active=self.pool_queue.used,
            waiting=self.pool_queue.waiting + self.gate.waiting,
            pool_timeouts=self.pool_queue.refused,
            is_saturated=is_saturated,
            turned_away=self.pool_queue.turned_away(now),
            overdue=overdue,
            held_by=self.pool_queue.describe_oldest(now, NAMED_MAX) if is_saturated or overdue else (),
            gate=self.gate.state.value,
            gate_act=self.gate.act,
            look=self.last_look,
        )

    def get_pool_metrics(self) -> DatabaseMetrics:
        """`pool_status`, `connection_metrics`, `response_times` (seconds), `errors`, `circuit_breaker`. No I/O."""
        return database_metrics(self.vitals())

    def get_health(self) -> DatabaseHealth:
        """Like `health_check`, from the last probe: no I/O."""
        return database_health(self.vitals())

    async def health_check(self, *, max_age_s: float = 0.0) -> DatabaseHealth:
        """Probe now, within the probe's timeout. An unhealthy database is a result, not an exception.

        Calls made while a probe runs share its result; a result younger than `max_age_s` is returned without a probe.
        """
        home = BRIDGE.elsewhere(self._deadlines.loop if self.connections is None else self.connections.loop)
        if home is not None:
            return await carry(home, self.health_check(max_age_s=max_age_s))
        try:
            self._open(is_check=True)
        except DatabaseUnavailable as error:
            return {**self.get_health(), "healthy": False, "error": error.reason}
        assert self._probe is not None
        if self.clock.monotonic() - self._looked_at >= max_age_s:
            await self._probe.look()
        return self.get_health()

    async def get_detailed_status(self, *, max_age_s: float = 0.0) -> DatabaseStatus:
        """`health_check` and `get_pool_metrics` in one, with the configuration."""
        checked = await self.health_check(max_age_s=max_age_s)
        return database_status(self.vitals(), checked)

    async def examine_server(self) -> ServerFacts | None:
        """How many connections the server allows this user, and whether there is a pooler; None for SQLite.

        Uses two separate connections, within the probe's timeout. Raises `DatabaseUnavailable`.
        """
        if self._file is not None:
            return None
        try:
            return await examine(self._url, self.options, dict(self._engine_args.connect_args))
        except Exception as error:
            raise unavailable(error, explain(error, ScopeStage.CONNECT)) from error

    def _note_look(self, look: Look) -> None:
        self.last_look, self._nameplate.answered_since = look, look.answered_since
        self.news.note_check(look.error, self._nameplate.server)
        self._looked_at = self.clock.monotonic()
        if look.read_only is None:
            return
        if look.read_only is not self._role and self._role is not None and self.connections is not None:
            # The address now leads to a server with another role, after a failover. Pooled connections may still lead
            # to the old one, and their statements would fail one by one.
            self.connections.records.distrust_all()
        self._role = look.read_only
        self.metrics.note_role(look.read_only, self._looked_at)

    # ── operators' acts ───────────────────────────────────────────────────────────────────────────────────────

    def get_gate(self) -> DatabaseGate:
        """Whether new scopes may begin, and where the oldest running ones are open. No I/O."""
        now = self.clock.monotonic()
        return {
            "gate": self.gate.state.value,
            "running": len(self.pool_queue.holders),
            "waiting": self.pool_queue.waiting + self.gate.waiting,
            "open_connections": len(self.connections.records) if self.connections is not None else 0,
            "held_by": self.pool_queue.describe_oldest(now, HELD_BY_MAX),
        }

    def _set_gate(self, state: GateState, act: Act | None) -> None:
        if state is not self.gate.state:
            self.news.note_gate(state, len(self.pool_queue.holders), act)
        self.gate.set(state, act)

    def pause(self, act: Act | None = None) -> DatabaseGate:
        """Make new scopes wait for `resume`, each until its own deadline. Running and queued scopes continue."""
        self._set_gate(GateState.PAUSED, act)
        return self.get_gate()

    def resume(self, act: Act | None = None) -> DatabaseGate:
        """Let new scopes begin again, after `pause` or `drain`."""
        self._set_gate(GateState.OPEN, act)
        return self.get_gate()

    async def drain(self, within_s: float | None = None, act: Act | None = None) -> DatabaseGate:
        """Refuse new scopes until `resume`, and wait for the running ones; `held_by` lists those that still run.

        Waits up to `within_s` seconds, by default as long as the longest scope may take. No scope is cut off before its
        own deadline.
        """
        # Queued scopes have already passed the gate, so they must be woken: each checks the gate again once it has a
        # slot (`SessionScope._connect`) and is refused there.
        self._set_gate(GateState.DRAINING, act)
        self.pool_queue.wake_all()
        last_s = self.options.scope_timeout_s + self.options.cleanup_timeout_s
        await self.pool_queue.drain(last_s if within_s is None else within_s)
        return self.get_gate()

    async def rotate(
        self, url: URL | str | None = None, *, password: Password | None = None, within_s: float = 0.0
    ) -> DatabaseGate:
        """Replace every connection by one to `url` (another server, other credentials), or to the same URL.

        Opens one first; if that fails, raises `DatabaseUnavailable` and changes nothing. After that new scopes get new
        connections, and connections in use are closed when their scopes end: waits up to `within_s` seconds for that.
        `password` is called for each connection that is opened from now on, and may return an awaitable. Raises
        `DatabaseError` for SQLite and for a URL with another driver, and `ConfigurationError` for an invalid URL.
        """
        new = self._url if (url := hide(url)) is None else read_url(url)
        if self._file is not None or new.drivername != self._url.drivername:
            reason, kind = f"rotate cannot change the driver ({self._url.drivername})", Kind.INVALID_REQUEST
            if self._file is not None:
                reason, kind = "SQLite has no connections to replace: rotate is for servers", Kind.NOT_FOUND
            raise DatabaseError(SERVICE, reason, kind=kind)
        # The probe and the side connections share `_dial`, so they follow. `_url` changes only after success: it is
        # what the next event loop connects to.
        await self._open().rotate(new, Dial(password=password or self._dial.password), within_s)
        self._url, self._nameplate.server = new, server_of(new)
        return self.get_gate()

    def reset_circuit_breaker(self, act: Act | None = None) -> bool:
        """Close the breaker and forget its failures; in every process, if the database belongs to a platform."""
        self.guard.reset(act)
        if self._on_reset is not None:
            self._on_reset(act)
        return True
