"""koo's hooks in SQLAlchemy: on opening and closing a connection, on each statement, each COMMIT and each error.

Hooks run in SQLAlchemy's greenlet, inside the caller's task. A hook must raise only what the caller should see, and
must do little: every statement passes through here, including those that succeed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext, RootTransaction
from sqlalchemy.util import await_only as await_

from koo.database.faults import ScopeStage
from koo.database.fetching import FetchingCursor
from koo.database.records import ConnectionRecord, ConnectionRecords, Occupant, Stale

IDLE_BEGIN_SHARE = 0.4
"""BEGIN on an idle connection may use this share of the time allowed for getting a connection. The rest is left for
opening a new one: if BEGIN used all of it, a pool of dead connections could never be replaced in time."""

PAUSE_S = 0.05
"""After a longer pause of the block, the connection is checked before COMMIT is sent. In a shorter one a loss is rare,
and checking each COMMIT would cost every scope a system call."""

# These are module constants, because every statement reads them and an attribute of an enum class costs a dictionary
# lookup.
BODY, COMMIT = ScopeStage.BODY, ScopeStage.COMMIT

COMMITS = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/)*+(?:COMMIT|END|PREPARE\s+TRANSACTION)\b", re.IGNORECASE | re.DOTALL
)
"""A statement that ends its transaction without a rollback.

What comes before its first word is matched possessively (`*+`). Otherwise a comment could extend to the end of a later
one: `/* a */ SELECT CASE ... /* b */ END` would count as a COMMIT, and many comments would take exponential time.
"""


class LivingConnection(Connection):
    """Silently replaces a pooled connection that turns out to be dead at BEGIN, even in the middle of a block."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)
        except BaseException as error:
            # The task was cancelled between checkout and first use, while SQLAlchemy was switching the driver
            # connection to read-only or to another isolation level. The caller never receives this object and so cannot
            # close it: without this its slot in the pool would stay taken until the garbage collector runs.
            taken = vars(self).get("_dbapi_connection")
            if taken is not None:
                taken.invalidate(error)
            raise

    def begin(self) -> RootTransaction:
        """Like SQLAlchemy's."""
        while True:  # each turn removes a dead connection from the pool, and a new one is never stale
            try:
                return super().begin()
            except Stale:
                self.close()
                # This makes a new Connection, not just another pool connection: the constructor also applies the
                # isolation level and read-only mode, without which the block would run with weaker guarantees than it
                # asked for. The session keeps this object, so the new one's state is moved into it.
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
        self._is_dialects_disconnect: Callable[[Any, Any, Any], bool] = dialect.is_disconnect
        dialect.is_disconnect = self._is_disconnect  # type: ignore[method-assign, assignment]
        dialect.do_begin = self._begin  # type: ignore[method-assign, assignment]
        self._do_commit: Callable[[Any], None] = dialect.do_commit
        dialect.do_commit = self._commit  # type: ignore[method-assign, assignment]
        self._do_rollback: Callable[[Any], None] = dialect.do_rollback
        dialect.do_rollback = self._rollback  # type: ignore[method-assign, assignment]

    # ── a connection's life ───────────────────────────────────────────────────────────────────────────────────

    def on_connect(self, adapted: Any, record: Any) -> None:
        self._metrics.created += 1
        self._records.add(adapted, record)

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
        # A fresh connection is never stale, whatever its age or generation: `LivingConnection.begin` loops on `Stale`,
        # and this is what ends that loop.
        if not record.fresh:
            self._records.check(record, now)
        start = self._driver.begin(record.adapted)
        if start is None:
            return
        # This timer is for idle connections that a firewall has silently dropped. The server never sees BEGIN and sends
        # no error, so BEGIN would wait until the caller's deadline and the caller would fail although the server is
        # healthy. A fresh connection needs no timer: the server has just completed its login.
        idle = now - record.idle_since > self._validate_after_idle_s
        timer = record.abort_in(self._idle_begin_s) if idle and not record.fresh else None
        try:
            await_(start)
        except asyncio.CancelledError:
            # The caller gave up before the timer fired. The pool's other idle connections are probably dead as well,
            # and without `distrust_all` each of them would cost another caller the same wait. This one is aborted,
            # because an orderly close would wait for the server and use up the rest of the caller's time.
            if self._monotonic() - now > self._idle_begin_s:
                record.abort()
                self._records.distrust_all()
            raise
        except Exception as error:
            # An error on a fresh connection, or on one that stays open, is the server's own response and must reach the
            # caller. Replacing the connection would turn an outage into an endless loop of new connections.
            if record.fresh or not record.is_closed:
                raise
            # Only a connection that the timer cut off says something about the others. If the server closed one itself
            # (by its own idle timeout, say), only that one is replaced.
            if record.aborted:
                self._records.distrust_all()
            raise Stale from error
        finally:
            if timer is not None:
                timer.cancel()

    def _commit(self, fairy: Any) -> None:
        record = self._by_connection[fairy.dbapi_connection]
        occupant = record.occupant
        if occupant is None:  # no scope is using this connection
            self._do_commit(fairy)
            return
        if self._monotonic() - occupant.left_at > PAUSE_S:
            self._refuse_unsent(record, occupant, fairy)
        began = occupant.enter(record, COMMIT)
        try:
            done = self._send_commit(self._do_commit, fairy)
        except Exception as error:
            occupant.leave(record, began, False)
            if not occupant.is_unused:
                raise
            # The block sent nothing (it waited for something else while the server restarted, for example), so nothing
            # is lost with the connection. Cut off, because an orderly close might wait for a silent server.
            self._metrics.stale += 1
            record.abort()
            record.is_open = False
            fairy.invalidate(error)
            return
        except BaseException:
            occupant.leave(record, began, False)
            raise
        # The server responds to COMMIT with ROLLBACK if a statement failed and the block caught the error. No driver
        # raises for that: without this check the scope would end as a success and nothing would have been written.
        if not done:
            occupant.leave(record, began, False)
            raise occupant.rolled_back()
        record.is_open = False
        # The block's own `session.commit()`: part of its work is now permanent, and repeating the whole function would
        # do that part twice. The scope's final COMMIT does not count, because nothing is repeated after it.
        if not occupant.leaving:
            occupant.committed = True
        self._note_commit(occupant.leave(record, began, True))

    def _refuse_unsent(self, record: ConnectionRecord, occupant: Occupant, fairy: Any) -> None:
        """Raise the loss of the connection, if it is known before COMMIT is sent: the transaction did not happen."""
        # Otherwise a server that restarted while the block did something else would leave the outcome unknown. ROLLBACK
        # is sent instead, because its error contains the server's reason, and because it would be harmless.
        if occupant.is_unused or not record.is_hung_up:
            return
        began = occupant.enter(record, BODY)
        try:
            self._do_rollback(fairy)
            raise ConnectionResetError
        finally:
            occupant.leave(record, began, False)

    def _rollback(self, fairy: Any) -> None:
        """Skip the ROLLBACK if no transaction is open: the pool rolls back on every return, even after a COMMIT."""
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
        """Run a scope's statement. False leaves it to SQLAlchemy, because it is one of SQLAlchemy's own queries on a
        new connection."""
        record = self._by_connection.get(context.root_connection.connection.dbapi_connection)
        occupant = None if record is None else record.occupant
        if record is None or occupant is None:
            return False
        # A COMMIT that the block sends as text counts like any other: if it is lost, the transaction may have happened,
        # and after it a repeat of the function would do its work twice. The state of the connection does not show it if
        # the block goes on with its own BEGIN, or with COMMIT AND CHAIN.
        commits = context.is_text and COMMITS.match(statement) is not None
        # `enter` raises if the scope's deadline has passed. The deadline fires only once, so a statement sent after it
        # would run with nothing left to stop it.
        began = occupant.enter(record, COMMIT if commits else BODY)
        occupant.statement = statement
        try:
            execute(statement, *parameters)
        except BaseException:
            occupant.leave(record, began, False)
            raise
        occupant.statements += 1
        if commits:
            occupant.committed = True
        # The rows of a streamed result are fetched after this hook has returned, so the cursor itself is wrapped:
        # otherwise the fetches would have no deadline and their time would not be measured.
        if context._is_server_side:
            context.cursor = FetchingCursor(context.cursor, record, occupant)
        self._note_statement(occupant.leave(record, began, True))
        return True

    # ── errors ────────────────────────────────────────────────────────────────────────────────────────────────

    def _is_disconnect(self, error: Exception, connection: Any, cursor: Any) -> bool:
        """Record a driver's error before any listener to `handle_error`.

        A listener that raises stops those after it, and the listeners of all engines come before those of one. Without
        this, koo would not see the errors that an application translates in a listener to `Engine`: it would repeat no
        deadlock, and a lost COMMIT would look like one that failed.
        """
        lost = self._is_dialects_disconnect(error, connection, cursor)
        record = self._by_connection.get(getattr(connection, "dbapi_connection", None))
        if record is None or record.occupant is None:
            return lost
        return record.occupant.report(error, record, lost)

    def on_error(self, context: ExceptionContext) -> BaseException | None:
        """Replace an error caused by a deadline or a lost COMMIT with koo's own; record those not from the driver."""
        error = context.original_exception
        # SQLAlchemy would invalidate the whole pool by comparing wall-clock times, and after a clock step it would
        # reconnect on every checkout. `ConnectionRecords.generation` does the same in monotonic time.
        context.invalidate_pool_on_disconnect = False
        if isinstance(error, Stale):
            self._metrics.stale += 1
            context.is_disconnect = True
            return None
        # Without a connection the error comes from connecting, which the guard judges itself.
        connection = context.connection
        if connection is None or connection.closed or connection.invalidated:
            return None
        record = self._by_connection.get(connection.connection.dbapi_connection)
        if record is None or record.occupant is None:
            return None
        if not record.occupant.has_reported(error):
            context.is_disconnect = record.occupant.report(error, record, context.is_disconnect)
        return record.occupant.take_instead()
