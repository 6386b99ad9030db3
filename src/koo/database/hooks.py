"""Where koo sits inside SQLAlchemy: on each connection's life, each statement, each COMMIT and each error.

All of it runs in SQLAlchemy's greenlet, inside the caller's task. A hook must raise only what the caller should see,
and does little: the success path of every statement goes through here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext, RootTransaction
from sqlalchemy.util import await_only as await_

from koo.database.faults import ScopeStage
from koo.database.fetching import FetchingCursor
from koo.database.records import ConnectionRecords, Stale

IDLE_BEGIN_SHARE = 0.4
"""The share of the time to get a connection that BEGIN may take on an idle one. The rest is left for a new connection:
with all of it spent here, a pool of dead connections could never be replaced in time."""

# Used by every statement, where a class attribute of an enum costs a dictionary lookup.
BODY, COMMIT = ScopeStage.BODY, ScopeStage.COMMIT


class LivingConnection(Connection):
    """Silently replaces a pooled connection that turns out to be dead at BEGIN, even in the middle of a block."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)
        except BaseException as error:
            # Cancelled between checkout and first use, while the driver is switched to read-only: without this its
            # place in the pool would stay taken until the garbage collector runs.
            taken = vars(self).get("_dbapi_connection")
            if taken is not None:
                taken.invalidate(error)
            raise

    def begin(self) -> RootTransaction:
        """As SQLAlchemy's."""
        while True:  # each turn removes a dead connection from the pool, and a new one is never stale
            try:
                return super().begin()
            except Stale:
                self.close()
                # A whole new Connection, not only another pool connection: making it also sets its isolation level.
                vars(self).update(vars(LivingConnection(self.engine)))


def revive(engine: Engine) -> None:
    """Make the sessions of this engine use living connections."""
    engine._connection_cls = LivingConnection


class Hooks:
    """The hooks of one engine."""

    def __init__(self, records: ConnectionRecords) -> None:
        self._records = records
        self._by_connection = records.by_connection
        self._driver = records.driver
        self._send_commit = records.driver.commit
        self._metrics = records.metrics
        self._note_statement = records.metrics.statement.note
        self._note_commit = records.metrics.commit.note
        self._monotonic = records.monotonic
        self._validate_after_idle_s = records.options.validate_after_idle_s
        self._idle_begin_s = records.options.pool_timeout_s * IDLE_BEGIN_SHARE

    def install(self, engine: Engine) -> None:
        """Listen to the engine's pool and dialect, and wrap BEGIN and COMMIT."""
        dialect = engine.dialect
        revive(engine)
        event.listen(engine.pool, "connect", self.on_connect)
        event.listen(engine.pool, "close", self.on_close)
        event.listen(engine, "handle_error", self.on_error)
        event.listen(engine, "do_execute", self.on_execute)
        event.listen(engine, "do_executemany", self.on_executemany)
        event.listen(engine, "do_execute_no_params", self.on_execute_no_params)
        dialect.do_begin = self._begin  # type: ignore[method-assign, assignment]
        self._do_commit: Callable[[Any], None] = dialect.do_commit
        dialect.do_commit = self._commit  # type: ignore[method-assign, assignment]
        self._do_rollback: Callable[[Any], None] = dialect.do_rollback
        dialect.do_rollback = self._rollback  # type: ignore[method-assign, assignment]

    # ── a connection's life ───────────────────────────────────────────────────────────────────────────────────

    def on_connect(self, adapted: Any, record: Any) -> None:
        self._metrics.created += 1
        self._records.add(adapted)

    def on_close(self, adapted: Any, record: Any) -> None:
        self._metrics.closed += 1
        closed = self._records.drop(adapted)
        if closed is not None:
            self._metrics.aborted += closed.aborted
            closed.end_transaction()

    # ── transactions ──────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, fairy: Any) -> None:
        """Send BEGIN now: it proves what a ping would prove, without the extra round trip."""
        record = self._by_connection[fairy.dbapi_connection]
        now = self._monotonic()
        if not record.fresh:
            self._records.check(record, now)
        start = self._driver.begin(record.adapted)
        if start is None:
            return
        # Only an idle connection gets this timer: on one that a firewall has silently dropped, BEGIN would otherwise
        # wait for the whole deadline, and the caller would fail although the server is well. A fresh connection has
        # just been answered.
        idle = now - record.idle_since > self._validate_after_idle_s
        timer = record.abort_in(self._idle_begin_s) if idle and not record.fresh else None
        try:
            await_(start)
        except asyncio.CancelledError:
            # The caller gave up first. The pool's other connections are as old: without `distrust_all` each of them
            # would cost one more caller the same wait. And closing this one in order, with a server that does not
            # answer, would use up the rest of this caller's time.
            if self._monotonic() - now > self._idle_begin_s:
                record.abort()
                self._records.distrust_all()
            raise
        except Exception as error:
            # A fresh connection that fails is the server's answer, and so is an error on a connection that stays open:
            # replacing it would hide an outage in an endless loop of new connections.
            if record.fresh or not record.is_closed:
                raise
            if record.aborted:
                self._records.distrust_all()
            raise Stale from error
        finally:
            if timer is not None:
                timer.cancel()

    def _commit(self, fairy: Any) -> None:
        record = self._by_connection[fairy.dbapi_connection]
        occupant = record.occupant
        if occupant is None:
            self._do_commit(fairy)
            return
        began = occupant.enter(record, COMMIT)
        try:
            done = self._send_commit(self._do_commit, fairy)
        except BaseException:
            occupant.leave(record, began, False)
            raise
        if not done:
            occupant.leave(record, began, False)
            raise occupant.rolled_back()
        record.is_open = False
        if not occupant.leaving:
            occupant.committed = True
        self._note_commit(occupant.leave(record, began, True))

    def _rollback(self, fairy: Any) -> None:
        """Nothing to do if nothing is open: the pool rolls back every returned connection, after a COMMIT too."""
        record = self._by_connection.get(fairy.dbapi_connection)
        if record is not None and record.is_open:
            record.is_open = False
            if record.occupant is not None:
                record.occupant.mended()
        if not self._driver.is_idle(fairy.dbapi_connection.driver_connection):
            self._do_rollback(fairy)

    # ── statements ────────────────────────────────────────────────────────────────────────────────────────────

    def on_execute(self, cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        return self._run(cursor.execute, context, statement, parameters)

    def on_executemany(self, cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        return self._run(cursor.executemany, context, statement, parameters)

    def on_execute_no_params(self, cursor: Any, statement: str, context: Any) -> bool:
        return self._run(cursor.execute, context, statement)

    def _run(self, execute: Callable[..., Any], context: Any, statement: str, *parameters: Any) -> bool:
        """Run a scope's statement; False lets SQLAlchemy run it: its own questions on a new connection."""
        record = self._by_connection.get(context.root_connection.connection.dbapi_connection)
        occupant = None if record is None else record.occupant
        if record is None or occupant is None:
            return False
        began = occupant.enter(record, BODY)
        occupant.statement = statement
        try:
            execute(statement, *parameters)
        except BaseException:
            occupant.leave(record, began, False)
            raise
        occupant.statements += 1
        if context._is_server_side:
            context.cursor = FetchingCursor(context.cursor, record, occupant)
        self._note_statement(occupant.leave(record, began, True))
        return True

    # ── errors ────────────────────────────────────────────────────────────────────────────────────────────────

    def on_error(self, context: ExceptionContext) -> BaseException | None:
        """Record what the engine reports; replace the error of a deadline or a lost COMMIT with koo's own."""
        error = context.original_exception
        # SQLAlchemy would drop the whole pool by wall time; koo's generations do that, by monotonic time.
        context.invalidate_pool_on_disconnect = False
        if isinstance(error, Stale):
            self._metrics.stale += 1
            context.is_disconnect = True
            return None
        connection = context.connection
        if connection is None or connection.closed or connection.invalidated:
            return None
        record = self._by_connection.get(connection.connection.dbapi_connection)
        if record is None or record.occupant is None:
            return None
        return record.occupant.report(context, record, error)
