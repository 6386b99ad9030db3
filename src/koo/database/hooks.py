"""Where koo sits inside SQLAlchemy: on each connection's life, each statement, each COMMIT and each error.

All of it runs in SQLAlchemy's greenlet, inside the caller's task. A hook must not raise anything but what the caller
should see, and does little: the success path of every statement goes through here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.util import await_

from koo.database import sqlite
from koo.database.drivers.aiosqlite import give_up, stop_running
from koo.database.faults import Phase
from koo.database.records import ConnectionRecord

if TYPE_CHECKING:
    from koo.database.connections import Connections
    from koo.database.scope import SessionScope

IDLE_BEGIN_SHARE = 0.4
"""Of the time to get a connection: how long BEGIN may take on one that lay idle. The rest is for a new one."""


class Stale(Exception):
    """A pooled connection turned out to be dead at BEGIN: take another, nobody has seen anything."""


class Hooks:
    """The hooks of one engine."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._driver = connections.driver
        self._links = connections.links
        self._metrics = connections.metrics
        self._note_statement = connections.metrics.statement.note
        self._note_commit = connections.metrics.commit.note
        self._monotonic = connections.monotonic
        self._is_sqlite = connections.file is not None
        self._idle_begin_s = connections.options.pool_timeout_s * IDLE_BEGIN_SHARE

    def install(self, engine: Engine) -> None:
        """Listen to the engine's pool and dialect, and stand before BEGIN and COMMIT."""
        dialect = engine.dialect
        event.listen(engine.pool, "connect", self.on_connect)
        event.listen(engine.pool, "close", self.on_close)
        if self._is_sqlite:
            event.listen(engine.pool, "checkin", self.on_checkin)
            dialect.do_terminate = self._terminate_sqlite  # type: ignore[method-assign, assignment]
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
        self._connections.make_link(adapted)
        if self._is_sqlite:
            await_(sqlite.prepare(adapted.driver_connection, self._connections.is_temporary))

    def on_close(self, adapted: Any, record: Any) -> None:
        self._metrics.closed += 1
        if self._is_sqlite:
            give_up(adapted.driver_connection)
        link = self._links.pop(adapted, None)
        if link is not None:
            self._connections.forget(link)

    def on_checkin(self, adapted: Any, record: Any) -> None:
        """SQLite: a rollback or a commit inside the block ends the writer's turn, also before the scope does."""
        link = self._links.get(adapted)
        if link is not None:
            self._connections.end_writing(link)

    def _terminate_sqlite(self, adapted: Any) -> None:
        """Close in its thread, without waiting for it: whatever still runs there goes first."""
        adapted.driver_connection.stop()

    # ── transactions ──────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, fairy: Any) -> None:
        """BEGIN now: what a ping would have told, without a ping."""
        link = self._links[fairy.dbapi_connection]
        if not link.fresh:
            self._check(link)
        start = self._driver.begin(link.adapted)
        if start is None:
            return
        now = self._monotonic()
        idle = now - link.idle_since > self._connections.options.validate_after_idle_s
        timer = link.abort_in(self._idle_begin_s) if idle and not link.fresh else None
        try:
            await_(start)
        except asyncio.CancelledError:
            if self._monotonic() - now > self._idle_begin_s:
                self._connections.distrust_all()
            raise
        except Exception as error:
            if link.fresh or not link.is_closed:
                raise
            if link.aborted:
                self._connections.distrust_all()
            raise Stale from error
        finally:
            if timer is not None:
                timer.cancel()

    def _check(self, link: ConnectionRecord) -> None:
        """Before a connection is used again: is it too old, or known to be useless?"""
        if link.generation != self._connections.generation:
            link.abort()  # an orderly goodbye to a black hole takes seconds
            raise Stale
        if self._monotonic() >= link.expires_at:
            raise Stale

    def _commit(self, fairy: Any) -> None:
        link = self._links[fairy.dbapi_connection]
        scope = link.scope
        if scope is None:
            self._do_commit(fairy)
            return
        began = scope.enter(link, Phase.COMMIT)
        try:
            self._do_commit(fairy)
        except BaseException:
            scope.leave(link, began, False)
            raise
        finally:
            if link.writing:
                self._connections.end_writing(link)
        self._note_commit(scope.leave(link, began, True))

    def _rollback(self, fairy: Any) -> None:
        """Nothing to do where nothing is open: the pool rolls back whatever comes home, after a COMMIT too."""
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
        """Run a statement of a scope; False lets SQLAlchemy do it, for its own questions on a new connection."""
        link = self._links.get(context.root_connection.connection.dbapi_connection)
        scope = None if link is None else link.scope
        if link is None or scope is None:
            return False
        began = scope.enter(link, Phase.BODY)
        try:
            if self._is_sqlite:
                await_(self._prepare_sqlite(link, scope, statement, context))
            execute(statement, *parameters)
        except BaseException as error:
            scope.leave(link, began, False)
            if self._is_sqlite and not isinstance(error, Exception):
                stop_running(link.connection)  # else it goes on in its thread, and closing waits for it
            raise
        scope.statements += 1
        self._note_statement(scope.leave(link, began, True))
        return True

    async def _prepare_sqlite(
        self, link: ConnectionRecord, scope: SessionScope, statement: str, context: Any
    ) -> None:
        need = sqlite.need_of(statement, context)
        if need is not sqlite.Need.NOTHING:
            await self._connections.begin_sqlite(link, scope, need)

    # ── errors ────────────────────────────────────────────────────────────────────────────────────────────────

    def on_error(self, context: ExceptionContext) -> BaseException | None:
        """Note what the engine reports; put koo's own word in the place of a deadline's or a lost COMMIT's error."""
        error = context.original_exception
        # The whole pool by SQLAlchemy's wall clock is never dropped: koo's generations do that.
        context.invalidate_pool_on_disconnect = False
        if isinstance(error, Stale):
            self._metrics.stale += 1
            context.is_disconnect = True
            return None
        connection = context.connection
        if connection is None or connection.closed or connection.invalidated:
            return None
        link = self._links.get(connection.connection.dbapi_connection)
        return None if link is None or link.scope is None else link.scope.report(context, link, error)
