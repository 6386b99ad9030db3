"""The session that a scope returns: SQLAlchemy's own, which can repeat its first statement.

The user's block may take any amount of time between BEGIN and its first statement, and the server may restart during
that time. Nothing has happened in the transaction yet, so koo can restart it on another connection and send the
statement again without the caller noticing. Once a statement has succeeded, or with objects in the session, a repeat
would lose work, and the user gets the error.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.ext.asyncio.result import _ensure_sync_result
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only as await_
from sqlalchemy.util import immutabledict

from koo.database.faults import SERVICE
from koo.database.greenlets import in_greenlet
from koo.database.transcript import Transcript
from koo.errors import ConfigurationError, DatabaseError, Kind

BUFFERED = immutabledict({"prebuffer_rows": True})
"""The execution options that an `AsyncSession` adds for each result that is not streamed."""


class Renewable(Protocol):
    """The scope of a session, which may be able to restart its transaction."""

    transcript: Transcript

    def take(self, connection: Any) -> None:
        """Record that this scope has begun a transaction on `connection`."""
        ...

    def may_replay(self) -> bool:
        """Whether nothing has happened in this transaction, so that it can be restarted unnoticed."""
        ...

    async def begin_again(self, error: Exception) -> None:
        """Restart the transaction on another connection; `error` is how the last one was lost."""
        ...


class SyncSession(Session):
    """The synchronous part of the session, run in SQLAlchemy's greenlet. `scope` is None after the scope's end."""

    scope: Renewable | None = None

    def open_connection(self) -> Any:
        """Check out a connection and begin the transaction. Only for the scope itself: it does not set `handed_out`."""
        return super().connection()

    def connection(self, bind_arguments: Any = None, execution_options: Any = None) -> Any:
        """Like SQLAlchemy's. The block can now do anything on the connection, so it is never replaced from here on."""
        if self.scope is None:
            return super().connection(bind_arguments, execution_options)
        self.scope.transcript.handed_out = True
        connection = super().connection(bind_arguments)
        # SQLAlchemy applies the options only to a session's new connection and ignores them for a later call, with a
        # warning. A scope has its connection from the start, so a `schema_translate_map` would be ignored, and a
        # tenant's rows would go to another schema.
        return connection.execution_options(**execution_options) if execution_options else connection

    def begin(self, nested: bool = False) -> Any:
        """Like SQLAlchemy's. A SAVEPOINT that comes first is sent now, while it can still be repeated."""
        scope = self.scope
        if scope is None or not nested or scope.transcript.statements:
            return super().begin(nested)
        return self._run_first(scope, self._begin_nested_now, (), {})

    def _begin_nested_now(self) -> Any:
        # SQLAlchemy sends SAVEPOINT only with the next statement. By then the session is in a nested transaction and no
        # longer blank, so a lost connection could not be replaced. Asking for the connection sends it now.
        nested = super().begin(nested=True)
        super().connection()
        return nested

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        scope = self.scope
        if scope is None or scope.transcript.statements:
            return super().execute(*args, **kwargs)
        return self._run_first(scope, super().execute, args, kwargs)

    def scalar(self, *args: Any, **kwargs: Any) -> Any:
        scope = self.scope
        if scope is None or scope.transcript.statements:
            return super().scalar(*args, **kwargs)
        return self._run_first(scope, super().scalar, args, kwargs)

    def scalars(self, *args: Any, **kwargs: Any) -> Any:
        scope = self.scope
        if scope is None or scope.transcript.statements:
            return super().scalars(*args, **kwargs)
        return self._run_first(scope, super().scalars, args, kwargs)

    def _bulk_save_mappings(self, mapper: Any, mappings: Any, **options: Any) -> Any:
        """Called by `bulk_save_objects`, `bulk_insert_mappings` and `bulk_update_mappings`."""
        scope = self.scope
        run: Callable[..., Any] = super()._bulk_save_mappings
        if scope is None or scope.transcript.statements:
            return run(mapper, mappings, **options)
        # The first run exhausts a generator. A repeat would then insert nothing and report success.
        return self._run_first(scope, run, (mapper, list(mappings)), options)

    def _run_first(
        self, scope: Renewable, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        # This is checked before the statement runs: it may flush pending objects, and a flush that fails rolls the
        # session back and expunges them. If it were checked afterwards, a session that has just lost its objects would
        # look blank, and the repeat would succeed without them.
        blank = self._is_blank()
        try:
            return run(*args, **kwargs)
        except DBAPIError as error:
            if not (blank and error.connection_invalidated and scope.may_replay()):
                raise
            lost = error
        await_(scope.begin_again(lost))
        return run(*args, **kwargs)

    def _is_blank(self) -> bool:
        """Whether a rollback would change nothing in the session: it has no pending and no loaded objects."""
        # The attributes behind `new`, `deleted` and `in_nested_transaction()`, which are faster: every scope passes
        # here.
        return not (self._new or self._deleted or self._nested_transaction or len(self.identity_map))

    def lacks_connection(self) -> bool:
        """Whether the last flush would open a new connection: the block has ended its transaction itself."""
        transaction = self._transaction
        return transaction is None or not transaction._connections

    def expunge_all(self) -> None:
        """Like SQLAlchemy's, but skipped at the end of a scope that loaded no objects."""
        if self._new or self._deleted or len(self.identity_map):
            super().expunge_all()


class GuardedSession(AsyncSession):
    """An `AsyncSession` in one guarded transaction."""

    sync_session_class = SyncSession
    sync_session: SyncSession

    async def execute(
        self,
        statement: Any,
        params: Any = None,
        *,
        execution_options: Any = None,
        bind_arguments: Any = None,
        **others: Any,
    ) -> Any:
        """Like SQLAlchemy's, in a reused greenlet."""
        options = immutabledict(execution_options).union(BUFFERED) if execution_options else BUFFERED
        result = await in_greenlet(
            self.sync_session.execute, statement, params=params, execution_options=options,
            bind_arguments=bind_arguments, **others,
        )  # fmt: skip
        return await _ensure_sync_result(result, self.execute)

    async def scalar(
        self,
        statement: Any,
        params: Any = None,
        *,
        execution_options: Any = None,
        bind_arguments: Any = None,
        **others: Any,
    ) -> Any:
        """Like SQLAlchemy's, in a reused greenlet."""
        options = immutabledict(execution_options).union(BUFFERED) if execution_options else BUFFERED
        return await in_greenlet(
            self.sync_session.scalar, statement, params=params, execution_options=options,
            bind_arguments=bind_arguments, **others,
        )  # fmt: skip

    async def connection(self, *args: Any, **kwargs: Any) -> AsyncConnection:
        """The connection of this transaction.

        Raises `DatabaseError` for an isolation level: the transaction has already begun.
        """
        options = kwargs.get("execution_options") or {}
        if "isolation_level" in options:
            raise DatabaseError(
                SERVICE,
                "the transaction has begun, so its isolation level cannot be set here:"
                " use session_scope(isolation=...)",
                kind=Kind.INVALID_REQUEST,
            )
        return await super().connection(*args, **kwargs)


@event.listens_for(SyncSession, "after_begin")
def _take_connection(session: SyncSession, transaction: object, connection: Any) -> None:
    """Pass the connection to the scope at each BEGIN: on entry, and after each commit inside the block."""
    # After `session.commit()` the block's next statement checks out a connection, and it need not be the same one. An
    # event is the only place that sees every BEGIN; without it that connection would have no deadline.
    if session.scope is not None:
        session.scope.take(connection)


@cache  # SQLAlchemy keeps registries per class forever, so there must be one class per session class, not per scope
def guarded(session_class: type[AsyncSession]) -> type[AsyncSession]:
    """`session_class` as the session of a scope: its own methods come first, and the methods they call are koo's.

    Raises `ConfigurationError` unless it is a subclass of SQLAlchemy's `AsyncSession`.
    """
    # SQLModel's `exec` calls `super().execute`. With the user's class first and koo's behind it in the MRO, that call
    # reaches koo's `execute`, and `exec` itself keeps working. The synchronous half is combined in the same order.
    if session_class is AsyncSession:
        return GuardedSession
    if not (isinstance(session_class, type) and issubclass(session_class, AsyncSession)):
        raise ConfigurationError(
            "",
            f"session_class is {session_class!r}; expected a subclass of sqlalchemy.ext.asyncio.AsyncSession",
        )
    own: type[Session] = session_class.sync_session_class
    name = f"Guarded{session_class.__name__}"
    sync = SyncSession if own is Session else type(name, (own, SyncSession), {})
    return type(name, (session_class, GuardedSession), {"sync_session_class": sync})
