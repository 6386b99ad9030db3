"""Functions that are one transaction each, run again as a whole when that may help.

What is repeated is what PostgreSQL's own manual says to repeat: the complete transaction, with all its logic, in a
fresh session. A loss in COMMIT is not: the transaction may have happened, and a repeat would make it happen twice.

A function that is called inside another one (of the same database, in the same task) joins the outer transaction: its
work is committed or rolled back with it, and only the outermost is run again. In a task of its own, or inside an open
`session_scope`, it is a transaction of its own.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy.exc import InvalidRequestError, ResourceClosedError, StatementError
from sqlalchemy.ext.asyncio import AsyncSession

from koo.database.faults import LOST, Meaning
from koo.database.sqlite import MODES, Mode
from koo.deadlines import ends_at
from koo.errors import CommitOutcomeUnknown, DatabaseTimeout, Kind, KooError
from koo.options import NEVER, RetryOptions
from koo.policies.backoff import pause_s

if TYPE_CHECKING:
    from koo.database.database import Database
    from koo.database.scope import SessionScope

P = ParamSpec("P")
T = TypeVar("T")

CONTENTION = RetryOptions(base_s=0.02, cap_s=1.0)
"""Conflicts pass in milliseconds: the first pause is a fiftieth of a second at most."""

_current: ContextVar[tuple[Database, SessionScope, AsyncSession] | None] = ContextVar(
    "koo_transaction", default=None
)


class Transaction:
    """One call: `run` makes as many attempts as are worth it."""

    def __init__(
        self, database: Database, *, max_retries: int | None, readonly: bool, isolation: str | None
    ) -> None:
        retry = database.options.retry
        self._database = database
        self._repeats_max = retry.attempts_max - 1 if max_retries is None else max_retries
        self._readonly = readonly
        self._isolation = isolation
        self._deadline = NEVER
        self._must_write = False

    async def run(self, call: Callable[[AsyncSession], Awaitable[T]]) -> T:
        """`call(session)` in a transaction; its result, once that is committed."""
        outer = self._outer()
        if outer is not None:
            return await call(outer)
        database = self._database
        now = database.guard.now()
        self._deadline = min(ends_at.get(), now + database.options.scope_timeout_s)
        attempt = 1
        while True:
            scope = database.make_scope(
                readonly=self._readonly, isolation=self._isolation, deadline=self._deadline, mode=self._mode()
            )
            try:
                return await self._attempt(scope, call)
            except Exception as error:
                pause = self._plan(scope, error, attempt)
                if pause is None:
                    if isinstance(error, KooError):
                        error.attempts = attempt
                    raise
            # Outside the scope: nobody sleeps on a permit or a connection.
            await database.sleep(pause)
            attempt += 1

    async def _attempt(self, scope: SessionScope, call: Callable[[AsyncSession], Awaitable[T]]) -> T:
        async with scope as session:
            token = _current.set((self._database, scope, session))
            try:
                return await call(session)
            finally:
                _current.reset(token)

    def _outer(self) -> AsyncSession | None:
        current = _current.get()
        if current is None:
            return None
        database, scope, session = current
        # A task that was started inside inherits the ContextVar, but a session is for one task at a time.
        return session if database is self._database and scope.owner is asyncio.current_task() else None

    def _mode(self) -> Mode | None:
        """SQLite: a snapshot for the whole function; after a conflict the writers' lock from the start."""
        if self._readonly:
            return None
        mode = Mode.WRITER if self._must_write else Mode.SNAPSHOT
        return mode if self._isolation is None else MODES.get(self._isolation)

    # ── again? ────────────────────────────────────────────────────────────────────────────────────────────────

    def _plan(self, scope: SessionScope, error: Exception, attempt: int) -> float | None:
        """The pause before the next attempt; None: raise the error."""
        meaning = _transient(scope, error)
        if meaning is None or attempt > self._repeats_max:
            return None
        contended = meaning.kind in (Kind.CONTENTION, Kind.CONFLICT)
        guard = self._database.guard
        options = CONTENTION if contended else self._database.options.retry
        pause = pause_s(options, attempt, self._database.draw)
        now = guard.now()
        if guard.breaker.refuses(now + pause) or now + pause >= self._deadline:
            return None
        # A conflict is no sign of ill health: repeats of it are bounded by their number, not by the shared budget.
        if not contended and not guard.retry_budget.take(guard.tally.first_successes, now):
            return None
        guard.tally.retries += 1
        self._database.metrics.repeats += 1
        self._must_write = self._must_write or contended
        return pause


def _transient(scope: SessionScope, error: Exception) -> Meaning | None:
    """Why the whole may be run again, or None."""
    if isinstance(error, CommitOutcomeUnknown | DatabaseTimeout) or scope.phase.value == "connect":
        return None  # on entry the guard has repeated what was worth it
    meaning = scope.meaning_of(error)
    if meaning is None and isinstance(error, StatementError | InvalidRequestError | ResourceClosedError):
        # What SQLAlchemy says about a session whose connection was lost before, and the loss was caught.
        meaning = next((one for _, one in scope.reports if one is LOST), None)
    return meaning if meaning is not None and meaning.repeatable else None


def make_transactional(
    get_database: Callable[[], Database],
) -> Callable[
    ..., Callable[[Callable[Concatenate[AsyncSession, P], Awaitable[T]]], Callable[P, Awaitable[T]]]
]:
    """The decorator `transactional_with_retry(max_retries=..., readonly=..., isolation=...)` of a database.

    `get_database` is asked at each call. The decorated `async def f(session, ...)` is called without the session.
    Raises TypeError at decoration for anything but a coroutine function: a generator cannot be run again.
    """

    def transactional_with_retry(
        max_retries: int | None = None, *, readonly: bool = False, isolation: str | None = None
    ) -> Callable[[Callable[Concatenate[AsyncSession, P], Awaitable[T]]], Callable[P, Awaitable[T]]]:
        """Make an `async def f(session, ...)` one transaction that may run again from its start.

            @transactional_with_retry(max_retries=5)
            async def move(session, a, b): ...

            await move(a, b)                                       called without the session

        It commits when the function returns, and gives what that gives. After a connection loss, a deadlock or a
        conflict of serializable transactions it runs again, in a fresh session, after a pause with jitter: so the
        function must do nothing but SQL that it would not do twice. `max_retries` counts the repeats after the first
        run; None is `DB_MAX_RETRIES`. `readonly` and `isolation`: as for `session_scope`. One deadline,
        `DATABASE_SCOPE_TIMEOUT`, covers all runs.

        Raises what the function raised last; `CommitOutcomeUnknown` without a repeat, because it may have happened;
        `DatabaseUnavailable` or `PoolSaturated` where no run could begin. At decoration: TypeError for anything but an
        `async def`, ValueError for a `max_retries` that is no whole number from 0.
        """
        if callable(max_retries):  # @transactional_with_retry without its parentheses
            bare: Any = _decorate(get_database, max_retries, None, False, None)
            return bare
        _check_repeats(max_retries)

        def decorate(fn: Callable[Concatenate[AsyncSession, P], Awaitable[T]]) -> Callable[P, Awaitable[T]]:
            decorated: Callable[P, Awaitable[T]] = _decorate(
                get_database, fn, max_retries, readonly, isolation
            )
            return decorated

        return decorate

    return transactional_with_retry


def _decorate(
    get_database: Callable[[], Database],
    fn: Callable[..., Awaitable[Any]],
    max_retries: int | None,
    readonly: bool,
    isolation: str | None,
) -> Any:
    check_function(fn)

    @functools.wraps(fn)
    async def run(*args: Any, **kwargs: Any) -> Any:
        transaction = Transaction(
            get_database(), max_retries=max_retries, readonly=readonly, isolation=isolation
        )
        return await transaction.run(lambda session: fn(session, *args, **kwargs))

    return run


def check_function(fn: Callable[..., Any]) -> None:
    """Raises TypeError unless `fn` can be called, and called again, for a coroutine."""
    if not inspect.iscoroutinefunction(inspect.unwrap(fn)) and not inspect.iscoroutinefunction(
        getattr(fn, "func", None)
    ):
        raise TypeError(
            f"{getattr(fn, '__qualname__', fn)!r} must be an `async def f(session, ...)`:"
            " only such a function can be run again from its start"
        )


def _check_repeats(max_retries: object) -> None:
    if max_retries is not None and (
        not isinstance(max_retries, int) or isinstance(max_retries, bool) or max_retries < 0
    ):
        raise ValueError(f"max_retries is {max_retries!r}; allowed is a whole number from 0, or None")
