"""The hooks of a SQLite engine, which implement the rules in `koo.database.sqlite`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.util import await_only as await_

from koo.database import sqlite
from koo.database.drivers.aiosqlite import give_up, stop_running
from koo.database.drivers.aiosqlite_cursor import AdaptedConnection
from koo.database.hooks import Hooks
from koo.database.records import ConnectionRecord, ConnectionRecords


class SqliteHooks(Hooks):
    """Like `Hooks`, for SQLite. `temporary`: nothing in the database needs to survive the process."""

    def __init__(self, records: ConnectionRecords, temporary: bool) -> None:
        super().__init__(records)
        self._temporary = temporary
        self._asked: dict[str, sqlite.Need] = {}

    def install(self, engine: Engine) -> None:
        super().install(engine)
        event.listen(engine, "do_connect", self.on_do_connect)
        event.listen(engine.pool, "checkin", self.on_checkin)
        engine.dialect.do_terminate = self._terminate  # type: ignore[method-assign, assignment]
        self._do_commit = partial(self._commit_and_end, self._do_commit)
        self._do_rollback = partial(self._roll_back_what_is_open, self._do_rollback)
        self._send_commit = self._commit_what_is_left

    def on_do_connect(
        self, dialect: Any, record: Any, args: Any, options: dict[str, Any]
    ) -> AdaptedConnection:
        """Connect as the dialect does, with koo's own cursors."""
        create = options.pop("async_creator_fn")
        return AdaptedConnection(dialect.dbapi, await_(create(*args, **options)))

    def on_connect(self, adapted: Any, record: Any) -> None:
        super().on_connect(adapted, record)
        await_(sqlite.prepare(adapted.driver_connection, self._temporary, self._metrics))

    def on_close(self, adapted: Any, record: Any) -> None:
        # This is queued before the close itself: a connection that is closed with a statement open keeps its locks.
        give_up(adapted.driver_connection)
        super().on_close(adapted, record)

    def on_checkin(self, adapted: Any, record: Any) -> None:
        """Let the next writer in: the block's own commit or rollback returns the connection before the scope ends."""
        returned = self._by_connection.get(adapted)
        if returned is not None:
            returned.end_transaction()

    def _terminate(self, adapted: Any) -> None:
        """Close the connection in its own thread, after what is still running there, without waiting for it."""
        adapted.driver_connection.stop()

    def _commit_what_is_left(self, send: Callable[[Any], None], fairy: Any) -> bool:
        """Like `Driver.commit`: False if SQLite has already rolled the transaction back."""
        transaction = self._by_connection[fairy.dbapi_connection].transaction
        if transaction is not None and transaction.rolled_back:
            return False
        send(fairy)
        return True

    def _commit_and_end(self, commit: Callable[[Any], None], fairy: Any) -> None:
        record = self._by_connection[fairy.dbapi_connection]
        transaction = record.transaction
        try:
            if transaction is None or record.is_closed:
                commit(fairy)
            # A scope without statements has nothing to commit, and sending COMMIT would wake the thread for nothing.
            # The second condition covers a BEGIN that the block sent on the driver's own connection.
            elif not transaction.is_untouched or record.connection.in_transaction:
                transaction.commit(partial(commit, fairy))
        finally:
            record.end_transaction()

    def _roll_back_what_is_open(self, roll_back: Callable[[Any], None], fairy: Any) -> None:
        """Skip the rollback of a scope that has committed: each command to SQLite wakes a thread.

        While koo has a transaction on the connection, the thread may still be working and about to open one, so
        `in_transaction` is only trusted without it.
        """
        record = self._by_connection.get(fairy.dbapi_connection)
        settled = record is not None and record.transaction is None and not record.is_closed
        if record is None or not settled or record.connection.in_transaction:
            roll_back(fairy)

    def _run(self, execute: Callable[..., Any], context: Any, statement: str, *parameters: Any) -> bool:
        record = self._by_connection.get(context.root_connection.connection.dbapi_connection)
        if record is not None:
            execute = partial(self._execute, execute, record, context)
        return super()._run(execute, context, statement, *parameters)

    def _ask(
        self, record: ConnectionRecord, context: Any, statement: str, parameters: tuple[Any, ...]
    ) -> sqlite.Need:
        """What a statement needs if its first word does not say. SQLite examines each statement once."""
        need = self._asked.get(statement)
        if need is None:
            values = parameters[0] if parameters else ()
            if context.executemany and values:
                values = values[0]
            need = await_(sqlite.ask_need(record.connection, statement, values))
            if len(self._asked) < sqlite.ASKED_MAX:
                self._asked[statement] = need
        return need

    def _execute(
        self,
        execute: Callable[..., Any],
        record: ConnectionRecord,
        context: Any,
        statement: str,
        *parameters: Any,
    ) -> None:
        """Begin what the statement needs, then run it."""
        try:
            need = sqlite.need_of(statement, context) or self._ask(record, context, statement, parameters)
            run = partial(execute, statement, *parameters)
            transaction = record.transaction
            if transaction is None or need is sqlite.Need.NOTHING:
                run()
                return
            await_(transaction.prepare(need))
            # SQLAlchemy's own cursor streams rows and takes a turn of the thread for each step, so it cannot send BEGIN
            # in the same turn: it is sent separately beforehand.
            if context._is_server_side:
                transaction.begin()
            transaction.run(run)
        except BaseException as error:
            # A cancelled statement goes on in its thread: without the interrupt, closing the connection waits for it.
            if not isinstance(error, Exception):
                stop_running(record.connection)
            elif record.transaction is not None:
                record.transaction.note_failure()
            raise
