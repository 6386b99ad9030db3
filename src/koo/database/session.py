"""The session that a scope returns: SQLAlchemy's own, which repeats its very first statement if need be.

Between BEGIN and the first statement the user's block may take any length of time, and the server may be restarted
meanwhile. Nothing has happened in the transaction yet, so it can be started anew on another connection and the
statement sent once more, without the caller noticing. After the first success, or with objects in the session, that
would be wrong: then the user gets the error.
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
"""What an `AsyncSession` asks of each result that is not streamed."""


class Renewable(Protocol):
    """The scope of a session: it may start its transaction anew."""

    transcript: Transcript

    def take(self, connection: Any) -> None:
        """A connection has begun a transaction for this scope."""
        ...

    def may_replay(self) -> bool:
        """Whether nothing has happened in this transaction, so that it may be started anew."""
        ...

    async def begin_again(self, error: Exception) -> None:
        """Start it on another connection; `error` is how the last one was lost."""
        ...


class SyncSession(Session):
    """The part of a session that SQLAlchemy runs in its greenlet. `scope` is its owner, until the scope ends."""

    scope: Renewable | None = None

    def open_connection(self) -> Any:
        """The scope's own way to its connection, which begins the transaction."""
        return super().connection()

    def connection(self, *args: Any, **kwargs: Any) -> Any:
        """As SQLAlchemy's. The block now holds the connection and may do anything on it: it must not be replaced."""
        if self.scope is not None:
            self.scope.transcript.handed_out = True
        return super().connection(*args, **kwargs)

    def begin(self, nested: bool = False) -> Any:
        """As SQLAlchemy's. If a SAVEPOINT comes first it is sent now, while it can still be repeated."""
        scope = self.scope
        if scope is None or not nested or scope.transcript.statements:
            return super().begin(nested)
        return self._run_first(scope, self._begin_nested_now, (), {})

    def _begin_nested_now(self) -> Any:
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
        """Beneath `bulk_save_objects`, `bulk_insert_mappings` and `bulk_update_mappings`."""
        scope = self.scope
        run: Callable[..., Any] = super()._bulk_save_mappings
        if scope is None or scope.transcript.statements:
            return run(mapper, mappings, **options)
        # A generator would be empty the second time, and its rows silently lost.
        return self._run_first(scope, run, (mapper, list(mappings)), options)

    def _run_first(
        self, scope: Renewable, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        blank = self._is_blank()  # checked before: a flush that fails leaves nothing behind to check
        try:
            return run(*args, **kwargs)
        except DBAPIError as error:
            if not (blank and error.connection_invalidated and scope.may_replay()):
                raise
            lost = error
        await_(scope.begin_again(lost))
        return run(*args, **kwargs)

    def _is_blank(self) -> bool:
        """Whether a rollback would change nothing in it: it has no pending and no loaded objects."""
        # The attributes behind `new`, `deleted` and `in_nested_transaction()`: every scope passes here.
        return not (self._new or self._deleted or self._nested_transaction or len(self.identity_map))

    def expunge_all(self) -> None:
        """As SQLAlchemy's. At the end of a scope that loaded no objects there is nothing to do."""
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
        """As SQLAlchemy's, in a greenlet that is kept."""
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
        """As SQLAlchemy's, in a greenlet that is kept."""
        options = immutabledict(execution_options).union(BUFFERED) if execution_options else BUFFERED
        return await in_greenlet(
            self.sync_session.scalar, statement, params=params, execution_options=options,
            bind_arguments=bind_arguments, **others,
        )  # fmt: skip

    async def connection(self, *args: Any, **kwargs: Any) -> AsyncConnection:
        """The connection of this transaction, which has already begun. Raises for options that come too late."""
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
    """From its BEGIN on a connection belongs to the scope, and so does the next one after a commit in the block."""
    if session.scope is not None:
        session.scope.take(connection)


@cache  # SQLAlchemy keeps data for each class forever, so a class is made per session class, not per scope
def guarded(session_class: type[AsyncSession]) -> type[AsyncSession]:
    """`session_class` as the session of a scope: its own methods come first, and the methods they call are koo's.

    Raises `ConfigurationError` for anything but a subclass of SQLAlchemy's `AsyncSession`.
    """
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
