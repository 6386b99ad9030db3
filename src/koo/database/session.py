"""The session that a scope hands out: SQLAlchemy's own, which runs its very first statement again if need be.

Between BEGIN and the first statement the user's block may do anything for any length of time, and meanwhile the server
may have been restarted. Nothing has happened in the transaction yet, so it can be begun anew on another connection, and
the statement be sent once more, unseen. After the first success, or with objects in the session, that would be wrong:
then the error is the user's to see.
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
    """The scope of a session: it may begin its transaction anew."""

    transcript: Transcript

    def take(self, connection: Any) -> None:
        """A connection has begun a transaction for this scope."""
        ...

    def may_replay(self) -> bool:
        """Whether nothing has happened in this transaction, so that it may be begun anew."""
        ...

    async def begin_again(self, error: Exception) -> None:
        """Begin it on another connection: `error` is how the last one was lost."""
        ...


class SyncSession(Session):
    """The part of a session that SQLAlchemy runs in its greenlet. `scope` is whose it is, until it ends."""

    scope: Renewable | None = None

    def open_connection(self) -> Any:
        """The scope's own way to its connection, which begins the transaction."""
        return super().connection()

    def connection(self, *args: Any, **kwargs: Any) -> Any:
        """As SQLAlchemy's. The block has it in its hands then: it may do anything, and must not see it exchanged."""
        if self.scope is not None:
            self.scope.transcript.handed_out = True
        return super().connection(*args, **kwargs)

    def begin(self, nested: bool = False) -> Any:
        """As SQLAlchemy's. A SAVEPOINT that comes first is sent now, while it can be sent once more."""
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
        # A generator would be empty the second time, and its rows lost without a word.
        return self._run_first(scope, run, (mapper, list(mappings)), options)

    def _run_first(
        self, scope: Renewable, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        blank = self._is_blank()  # asked before: a flush that fails leaves nothing behind to be seen
        try:
            return run(*args, **kwargs)
        except DBAPIError as error:
            if not (blank and error.connection_invalidated and scope.may_replay()):
                raise
            lost = error
        await_(scope.begin_again(lost))
        return run(*args, **kwargs)

    def _is_blank(self) -> bool:
        """Whether a rollback would change nothing in it: neither pending objects nor loaded ones."""
        # The attributes behind `new`, `deleted` and `in_nested_transaction()`: this is on the way of every scope.
        return not (self._new or self._deleted or self._nested_transaction or len(self.identity_map))

    def expunge_all(self) -> None:
        """As SQLAlchemy's. At the end of a scope that has loaded no objects there is nothing to do."""
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
        """The connection of this transaction, which has begun already. Raises for options that come too late."""
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
    """A connection belongs to the scope from its BEGIN on, also the next one after a commit inside the block."""
    if session.scope is not None:
        session.scope.take(connection)


@cache  # SQLAlchemy keeps what it knows of a class for ever, so one is made for each class and not for each scope
def guarded(session_class: type[AsyncSession]) -> type[AsyncSession]:
    """`session_class` as the session of a scope: its own methods come first, and what they call is koo's.

    Raises `ConfigurationError` for what is not a subclass of SQLAlchemy's `AsyncSession`.
    """
    if session_class is AsyncSession:
        return GuardedSession
    if not (isinstance(session_class, type) and issubclass(session_class, AsyncSession)):
        raise ConfigurationError(
            "",
            f"session_class is {session_class!r}; allowed is a subclass of sqlalchemy.ext.asyncio.AsyncSession",
        )
    own: type[Session] = session_class.sync_session_class
    name = f"Guarded{session_class.__name__}"
    sync = SyncSession if own is Session else type(name, (own, SyncSession), {})
    return type(name, (session_class, GuardedSession), {"sync_session_class": sync})
