"""Functions that are one transaction each, run again as a whole if that may help.

The complete transaction is repeated in a fresh session, with all its logic, as PostgreSQL's manual requires. There are
two cases in which it is not repeated, because work could happen twice: the connection was lost in COMMIT, so the
transaction may have happened; or the function itself has committed part of its work.

A function called inside another one (same database, same task) joins the outer transaction: its work is committed or
rolled back with it, and only the outermost function runs again. Functions of other databases may be called in between.
A function that requires a stricter transaction than the one it would join is refused. In a separate task, or inside an
open `session_scope`, a function has its own transaction.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from types import CoroutineType
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

from sqlalchemy.ext.asyncio import AsyncSession

from koo.attempt import explain
from koo.clock import Clock
from koo.database.faults import SERVICE
from koo.database.operations import Operation, operation_of
from koo.database.scope import SessionScope
from koo.database.sqlite import MODES, Mode
from koo.deadlines import ends_at
from koo.errors import CommitOutcomeUnknown, DatabaseError, Kind, KooError
from koo.guard import Guard
from koo.monitoring.pool import PoolMetrics
from koo.options import DatabaseOptions, RetryOptions
from koo.policies.backoff import pause_s
from koo.policies.repeat import why_shut
from koo.sqlstates import LOST, STANDBY, UNPREPARED, Meaning

P = ParamSpec("P")
T = TypeVar("T")

CONTENTION = RetryOptions(base_s=0.02, cap_s=1.0)
"""Conflicts pass within milliseconds, so the first pause is at most 20 ms."""

ONCE = (UNPREPARED, STANDBY)
"""These are repeated once, on another connection. An error that returns is permanent: a pooler in transaction mode, a
standby."""
STRICTNESS = {None: 0, "READ COMMITTED": 0, "REPEATABLE READ": 1, "SERIALIZABLE": 2}
"""Ranks of isolation levels. None is the server's default: koo promises no more than PostgreSQL's READ COMMITTED."""


class MakeScope(Protocol):
    """`Database.make_scope`."""

    def __call__(
        self, *, readonly: bool, isolation: str | None, deadline: float, mode: Mode | None
    ) -> SessionScope: ...


@dataclass(frozen=True, slots=True, eq=False)
class Transactions:
    """Runs functions as transactions of one database."""

    make_scope: MakeScope
    guard: Guard
    metrics: PoolMetrics
    options: DatabaseOptions
    clock: Clock
    draw: Callable[[], float]

    async def run(
        self,
        call: Callable[[AsyncSession], Awaitable[T]],
        *,
        max_retries: int | None = None,
        readonly: bool = False,
        isolation: str | None = None,
        operation: Operation | None = None,
    ) -> T:
        """Run `call(session)` in a transaction, repeated if that may help; returns its result after the COMMIT.

        With an `operation` it happens once for that key. The result is then converted to JSON and back, or is the
        stored one.
        """
        outer = self._to_join()
        if operation is not None:
            call = partial(operation.run, call, joined=outer is not None)
        if outer is not None:
            outer.refuse_stricter(readonly, isolation)
            return await call(outer.scope.session)
        transaction = RepeatedTransaction(self, max_retries, readonly, isolation)
        transaction.is_fenced = operation is not None
        return await transaction.run(call)

    def _to_join(self) -> RepeatedTransaction | None:
        """The innermost transaction of this database in this task, or None. Skips those of other databases."""
        outer = _current.get()
        # A task started inside the function inherits the ContextVar, but a session may be used by one task at a time:
        # two tasks would send statements on one connection. So the owner is compared, and the new task gets its own
        # transaction.
        while outer is not None and not (
            outer.transactions is self and outer.scope.owner is asyncio.current_task()
        ):
            outer = outer.outer
        return outer


class RepeatedTransaction:
    """One call: `run` makes as many attempts as are worthwhile. One deadline covers all of them.

    `outer`: the transaction, of any database, inside which it was called. `is_fenced`: its first statement inserts a
    row that shows whether an earlier attempt was committed, so it may be repeated after a lost COMMIT.
    """

    is_fenced = False

    def __init__(
        self, transactions: Transactions, max_retries: int | None, readonly: bool, isolation: str | None
    ) -> None:
        options = transactions.options
        self.transactions = transactions
        self.scope: SessionScope
        self.outer = _current.get()
        self._repeats_max = options.retry.attempts_max - 1 if max_retries is None else max_retries
        self._readonly = readonly
        self._isolation = isolation
        self._deadline = min(ends_at.get(), transactions.guard.now() + options.scope_timeout_s)
        self._must_write = False
        self._met: list[Meaning] = []

    def refuse_stricter(self, readonly: bool, isolation: str | None) -> None:
        """Raise `DatabaseError` if a function that would join this transaction requires more than it provides."""
        asked, has = STRICTNESS[isolation], STRICTNESS[self._isolation]
        if asked > has:
            what, remedy = f"isolation {isolation}", f"isolation={isolation!r}"
        elif readonly and not self._readonly:
            what, remedy = "a read-only transaction", "readonly=True"
        else:
            return
        raise DatabaseError(
            SERVICE,
            f"this function requires {what}, but it would join an outer transaction that does not provide it:"
            f" set {remedy} on the outermost function, or call this one outside it",
            kind=Kind.INVALID_REQUEST,
        )

    async def run(self, call: Callable[[AsyncSession], Awaitable[T]]) -> T:
        attempt = 1
        while True:
            self.scope = self.transactions.make_scope(
                readonly=self._readonly, isolation=self._isolation, deadline=self._deadline, mode=self._mode()
            )
            self.scope.is_part = True
            try:
                return await self._attempt(call)
            except Exception as error:
                pause, why_not = self._plan(error, attempt)
                if pause is None:
                    if isinstance(error, KooError):
                        error.attempts = attempt
                    if why_not:
                        explain(SERVICE, error, attempt, why_not)
                    self.scope.note_last(error, attempt)
                    raise
            # The pause comes after the scope has ended: during it the attempt must not occupy a connection that others
            # wait for, nor keep the locks of the very conflict that it is waiting out.
            await self.transactions.clock.sleep(pause)
            attempt += 1

    async def _attempt(self, call: Callable[[AsyncSession], Awaitable[T]]) -> T:
        async with self.scope as session:
            # This is set inside the scope and reset before its end: the hooks that run after the COMMIT may call
            # functions of this database, and must not join a transaction that is over.
            token = _current.set(self)
            try:
                return await call(session)
            finally:
                _current.reset(token)

    def _mode(self) -> Mode | None:
        """SQLite: a snapshot for the whole function; after a conflict the writers' lock from the start."""
        # A snapshot is older than every write since, so a second attempt with a snapshot could run into the same
        # conflict again, and under steady writes it might never get through. If it holds the writers' lock from BEGIN
        # on, it cannot meet one.
        if self._readonly:
            return None
        mode = Mode.WRITER if self._must_write else Mode.SNAPSHOT
        return mode if self._isolation is None else MODES.get(self._isolation)

    def _plan(self, error: Exception, attempt: int) -> tuple[float | None, str]:
        """The pause before the next attempt; or None and the reason (empty if no repeat was expected)."""
        meaning = self.scope.why_repeat(error)
        # Unknown becomes "lost": if the transaction did happen, its row makes the repeat return the stored result.
        if self.is_fenced and isinstance(error, CommitOutcomeUnknown):
            meaning = LOST
        if meaning is None or attempt > self._repeats_max:
            return None, ""
        # Repeats are counted per meaning and not per attempt: after a conflict, a first encounter with a standby still
        # deserves its one repeat.
        if meaning in ONCE:
            if meaning in self._met:
                return None, ""
            self._met.append(meaning)
        contended = meaning.kind in (Kind.CONTENTION, Kind.CONFLICT)
        transactions, guard = self.transactions, self.transactions.guard
        options = CONTENTION if contended else transactions.options.retry
        pause = pause_s(options, attempt, transactions.draw)
        now = guard.now()
        # This checks for the moment after the pause. Otherwise the caller would wait for the pause only to get a
        # refusal, which would also hide the error that matters.
        if guard.breaker.refuses(now + pause):
            return None, why_shut(guard.breaker)
        if now + pause >= self._deadline:
            return None, "the deadline is too near"
        # The retry budget protects a database in trouble from a flood of repeats. A conflict is not a sign of trouble,
        # and with many writers would use up the budget for real failures: its repeats are limited by their number
        # alone.
        if not contended and not guard.gates.retry_budget.take(now):
            return None, "the retry budget is empty"
        guard.tally.retries += 1
        transactions.metrics.repeats += 1
        self._must_write = self._must_write or contended
        return pause, ""


_current: ContextVar[RepeatedTransaction | None] = ContextVar("koo_transaction", default=None)


class HasTransactions(Protocol):
    """A `koo.Database`."""

    @property
    def transactions(self) -> Transactions: ...


def make_transactional(
    get_database: Callable[[], HasTransactions],
) -> Callable[
    ...,
    Callable[[Callable[Concatenate[AsyncSession, P], Awaitable[T]]], Callable[P, CoroutineType[Any, Any, T]]],
]:
    """The decorator `transactional_with_retry(max_retries=..., readonly=..., isolation=...)` of a database.

    `get_database` is called at each call. The decorated `async def f(session, ...)` is called without the session.
    Raises TypeError at decoration unless it is a coroutine function: a generator cannot be run again.
    """

    def transactional_with_retry(
        max_retries: int | None = None, *, readonly: bool = False, isolation: str | None = None
    ) -> Callable[
        [Callable[Concatenate[AsyncSession, P], Awaitable[T]]], Callable[P, CoroutineType[Any, Any, T]]
    ]:
        """Make an `async def f(session, ...)` one transaction that koo may run again from the start.

            @transactional_with_retry(max_retries=5)
            async def move(session, a, b): ...

            await move(a, b)                                       called without the session

        It commits when the function returns, and returns its result. After a connection loss, a deadlock or a
        conflict of serializable transactions it runs again, in a fresh session, after a pause with jitter. So anything
        else that the function does, apart from SQL, must be safe to do twice. `max_retries` counts the repeats after
        the first run; None means `DB_MAX_RETRIES`. `readonly` and `isolation`: as for `session_scope`. One deadline,
        `DATABASE_SCOPE_TIMEOUT`, covers all runs.

        `await move(a, b, idempotency_key="…")` happens once for that key, even if clients and processes repeat it:
        later calls return the stored result, which is JSON.

        Raises the function's last error; `CommitOutcomeUnknown` without a repeat, because it may have happened;
        `IdempotencyKeyReused` for a key that another call has used; `DatabaseUnavailable` or `PoolSaturated` if no run
        could begin. At decoration: TypeError unless it is an `async def`, ValueError for a `max_retries` that is not a
        whole number from 0.
        """
        if callable(max_retries):  # used as @transactional_with_retry, without parentheses
            bare: Any = _decorate(get_database, max_retries, None, False, None)
            return bare
        _check_repeats(max_retries)

        def decorate(
            fn: Callable[Concatenate[AsyncSession, P], Awaitable[T]],
        ) -> Callable[P, CoroutineType[Any, Any, T]]:
            return _decorate(get_database, fn, max_retries, readonly, isolation)

        return decorate

    return transactional_with_retry


def _decorate(
    get_database: Callable[[], HasTransactions],
    fn: Callable[Concatenate[AsyncSession, P], Awaitable[T]],
    max_retries: int | None,
    readonly: bool,
    isolation: str | None,
) -> Callable[P, CoroutineType[Any, Any, T]]:
    check_function(fn)
    parameters = inspect.signature(fn).parameters
    if next(iter(parameters), "") in ("self", "cls"):
        raise TypeError(
            f"{getattr(fn, '__qualname__', fn)!r} is a method, and would get the session as its `self`:"
            " decorate an `async def f(session, ...)` that is defined inside the method, and await that"
        )
    takes_key = "idempotency_key" in parameters

    @functools.wraps(fn)
    async def run(*args: P.args, **kwargs: P.kwargs) -> T:
        key: Any = kwargs.get("idempotency_key") if takes_key else kwargs.pop("idempotency_key", None)
        return await get_database().transactions.run(
            lambda session: fn(session, *args, **kwargs),
            max_retries=max_retries,
            readonly=readonly,
            isolation=isolation,
            operation=operation_of(key, fn, args, kwargs),
        )

    # mypy infers the base class `Coroutine` for an `async def`.
    return cast("Callable[P, CoroutineType[Any, Any, T]]", run)


def check_function(fn: Callable[..., Any]) -> None:
    """Raise TypeError unless calling `fn` returns a coroutine, each time it is called."""
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
        raise ValueError(f"max_retries is {max_retries!r}; expected a whole number from 0, or None")
