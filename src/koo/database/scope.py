"""SessionScope: one session, one transaction, one permit.

    enter    breaker → queue → connection → BEGIN            run and retried by the guard
    body     the user's code                                koo adds no timer and no ContextVar around it
    leave    COMMIT or ROLLBACK → connection back → settle  finishes even if the caller is cancelled

**Deadline.** A timeout around the block would cancel the user's own awaits. So the deadline applies to the
*connection*: when it passes, the running statement is cancelled on the server, and a connection that still does not
respond is cut off `cleanup_timeout_s` later. An idle transaction is cut off immediately, because its locks block other
transactions. COMMIT is never cancelled, only cut off.

**Judgement.** A `Transcript` records everything that happens on the connection, and that record decides how the permit
is settled. The outcome of a lost COMMIT is decided last (`_decide`), after the connection and the permit have been
returned: a scope that still had them could wait for a second connection that only it could free.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from koo.attempt import before_that
from koo.database.connections import Connections
from koo.database.faults import SERVICE, ScopeStage
from koo.database.greenlets import in_greenlet
from koo.database.marker_keys import Place
from koo.database.on_commit import CommitHooks
from koo.database.records import ConnectionRecord
from koo.database.session import SyncSession
from koo.database.sqlite import MODES, Mode
from koo.database.sqlite_writes import SqliteTransaction
from koo.database.transcript import Transcript
from koo.database.uncancellable import Unbroken, to_end
from koo.deadlines import ends_at
from koo.errors import (
    CommitOutcomeUnknown,
    DatabaseError,
    DatabaseTimeout,
    DatabaseUnavailable,
    Kind,
    KooError,
    PoolSaturated,
    describe_s,
)
from koo.guard import Scope
from koo.options import NEVER
from koo.policies.breaker import HALF_OPEN
from koo.policies.verdict import UNJUDGED, Fault
from koo.sqlstates import Meaning, original_of

if TYPE_CHECKING:
    # Only type checkers need the default, and `typing.TypeVar` accepts one from Python 3.13 on.
    from typing_extensions import TypeVar as TypeVarWithDefault

    S_co = TypeVarWithDefault("S_co", bound=AsyncSession, default=AsyncSession, covariant=True)
else:
    S_co = TypeVar("S_co", covariant=True)

log = logging.getLogger("koo")

OTHER_ENGINE = (
    "a statement of this scope is bound to another engine (by bind_arguments, binds or get_bind), which koo does not"
    " guard: make a koo.Database of that database too, and open a scope of it"
)


class SessionScope(Generic[S_co]):
    """Use with `async with`: an `AsyncSession` in one transaction, committed at the end, rolled back on any exception.

    Raises `DatabaseUnavailable` and `PoolSaturated` on entry, `DatabaseTimeout` when its deadline passes, and
    `CommitOutcomeUnknown` if the connection was lost during COMMIT. The block's own exceptions pass through unchanged.
    """

    session: S_co
    transcript: Transcript
    _sync: SyncSession
    _connections: Connections
    _monotonic: Callable[[], float]

    owner: asyncio.Task[Any] | None = None
    hooks: CommitHooks | None = None
    is_part = False  # one attempt of a function that may run again: the function's failure is logged, not the scope's
    _record: ConnectionRecord | None = None
    _held: Scope[None] | None = None
    _timer: asyncio.TimerHandle | None = None
    _asked_at = 0.0

    def __init__(
        self,
        open_connections: Callable[[], Connections],
        *,
        readonly: bool = False,
        isolation: str | None = None,
        deadline: float = NEVER,
        mode: Mode | None = None,
    ) -> None:
        self._open = open_connections
        self._readonly = readonly
        self._isolation = isolation
        self._mode = mode or (Mode.READER if readonly else MODES.get(isolation, Mode.COMMITTED))
        self.deadline = deadline

    # ── entering ──────────────────────────────────────────────────────────────────────────────────────────────

    async def __aenter__(self) -> S_co:
        if self.owner is not None:
            raise RuntimeError("a session scope can be used only once: call session_scope() again")
        connections = self._connections = self._open()
        options = connections.options
        monotonic = self._monotonic = connections.monotonic
        self.owner = asyncio.current_task(connections.loop)
        now = monotonic()
        self.deadline = min(self.deadline, ends_at.get(), now + options.scope_timeout_s)
        try:
            if connections.gate.is_shut:
                await connections.gate.enter(self.deadline - now)
                connections, now = self._open(), monotonic()
                self._connections = connections
            self.transcript = Transcript(connections.records, self._readonly)
            # expire_on_commit=False: otherwise reading an attribute after the scope would reload it, over a connection
            # that was already returned. close_resets_only=False: otherwise a session used after its scope would
            # silently check out a new connection, bypassing the pool's queue.
            session: Any = connections.session_class(
                connections.engine_for(self._readonly, self._isolation),
                expire_on_commit=False,
                close_resets_only=False,
            )
            self.session = session
            self._sync = session.sync_session
            self._sync.scope = self
            await self._begin(now)
        except DatabaseError as refusal:
            if not self.is_part:
                connections.news.failed(refusal, self, "scope", refusal.attempts)
            raise
        return self.session

    async def _begin(self, now: float) -> None:
        """Pass the breaker and the pool's queue, and take a connection with an open transaction."""
        connections, transcript = self._connections, self.transcript
        self._asked_at = now
        transcript.stage = ScopeStage.CONNECT
        within_s = min(connections.options.pool_timeout_s, self.deadline - now)
        try:
            held = await connections.guard.begin(self._connect, timeout_s=max(within_s, 1e-6))
        except PoolSaturated as refusal:
            connections.pool_queue.explain(refusal, self._monotonic(), connections.usual_hold_s())
            connections.nameplate.sign(refusal)
            raise
        except DatabaseUnavailable as error:
            if isinstance(error, DatabaseTimeout) and error.kind is Kind.TIMEOUT:
                took = describe_s(self._monotonic() - now)
                error.reason = f"no connection could be opened within {took}{before_that(error)}"
            connections.nameplate.sign(error)
            raise
        self._held = held
        transcript.has_permit = True
        connections.pool_queue.holders[self] = now
        if self.deadline < connections.wakes_at:
            connections.wake_at(self.deadline)
        transcript.stage = ScopeStage.BODY
        # In HALF_OPEN this scope is a probe, and BEGIN was its proof. Without this the breaker would have to wait for
        # the end of the block, and a probe whose user code takes longer than the lease would count as failed.
        if connections.guard.breaker.phase is HALF_OPEN:
            held.answered()

    async def _connect(self) -> None:
        """One attempt of the guard: check out a connection and run BEGIN on it."""
        connections = self._connections
        # The keeper task closes the pool in its `finally`. A task that is cancelled before its first step never reaches
        # that `finally`: if `asyncio.run` ended now, the connection opened below would leak. One turn of the loop lets
        # the keeper start.
        if not connections.has_keeper:
            await asyncio.sleep(0)
        connections.refuse_if_draining()
        if connections.gate.is_shut:  # drained while this scope was queued
            connections.gate.refuse_if_draining()
        began = self._monotonic()
        connections.metrics.gate_wait.note(began - self._asked_at)
        try:
            await in_greenlet(self._sync.open_connection)
            record = self._record
            if self._mode is Mode.WRITER and record is not None and record.transaction is not None:
                await record.transaction.begin_writing()
            if connections.writers is not None and connections.guard.breaker.phase is HALF_OPEN:
                await self._ask()
            if connections.marks and not self._readonly:
                await connections.markers.ready()
            # This is checked again: `close` may have run while this task waited for its connection. `close` disposes of
            # the pool and does not know about a connection that was still being opened.
            connections.refuse_if_draining()
        except BaseException:
            # A connection returned to a disposed pool would stay open forever, so it is invalidated instead. The usual
            # error here is a cancellation, by the guard's attempt timeout. Without `to_end` a second cancellation in
            # the middle of the rollback would lose the connection's slot in the pool.
            end = self._sync.invalidate if connections.draining else self._sync.rollback
            try:
                await to_end(in_greenlet(end))
            finally:
                if (left := self._occupied()) is not None:  # an attempt that failed has no `_end` to free it
                    left.occupant = None
                    left.end_transaction()
            raise
        self.transcript.begin(
            self._monotonic() - began,
            answered=connections.driver.answers_begin,
            connected=record is not None and record.fresh,
        )
        if record is not None:
            record.fresh = False

    async def _ask(self) -> None:
        """Run the probe's own query: on SQLite, BEGIN is deferred and proves nothing in HALF_OPEN."""
        assert self._record is not None
        await self._record.connection.execute_fetchall(self._connections.driver.health_query)

    def take(self, connection: Any) -> None:
        """Record that this scope has begun a transaction on `connection`.

        Raises `DatabaseError` if it belongs to an engine of the application's own.
        """
        connections = self._connections
        try:
            record = self._record = connections.records.of(connection)
        except KeyError:
            raise DatabaseError(SERVICE, OTHER_ENGINE, kind=Kind.INVALID_REQUEST) from None
        record.occupant = self.transcript
        record.is_open = True
        if connections.writers is not None and record.transaction is None:  # a savepoint comes here too
            record.transaction = SqliteTransaction(record.connection, connections.writers, self._mode, self)

    def _occupied(self) -> ConnectionRecord | None:
        """The record of this scope's connection, unless the connection has been returned."""
        # The pool may already have lent the connection to another scope. Aborting it by a stale reference would kill
        # that scope's transaction.
        record = self._record
        return record if record is not None and record.occupant is self.transcript else None

    # ── the deadline ──────────────────────────────────────────────────────────────────────────────────────────

    @property
    def expired(self) -> bool:
        return self.transcript.expired

    @property
    def statement(self) -> str | None:
        """The last statement that was sent."""
        return self.transcript.statement

    def expire(self) -> None:
        """Enforce the deadline: cancel the running statement, or cut the connection off."""
        transcript, record = self.transcript, self._occupied()
        transcript.expired = True
        if record is None:
            return
        # Nothing is running, so there is nothing to cancel, but the open transaction still holds its locks while the
        # user's code does something else. After a COMMIT that failed (a deferred
        # constraint, say) the stage is still COMMIT with nothing running: its rollback gets the cleanup time instead.
        if not record.busy and transcript.stage is not ScopeStage.COMMIT:
            record.abort()
            record.end_transaction()
            return
        within_s = self._connections.options.cleanup_timeout_s
        transcript.stopped = True
        # The timer starts before the cancel request is sent: the request needs a connection of its own, which a server
        # that has become unreachable never accepts. A COMMIT gets no request, only the timer: cancelling it would
        # replace a COMMIT that is probably about to succeed by one with an unknown outcome.
        self._timer = record.abort_in(within_s)
        if transcript.stage is ScopeStage.BODY:
            self._connections.spawn(record.cancel(within_s))

    # ── repeating the first statement ─────────────────────────────────────────────────────────────────────────

    def may_replay(self) -> bool:
        """Whether nothing has happened in this transaction, so that it can be restarted unnoticed."""
        transcript = self.transcript
        return (
            transcript.statements == 0
            and transcript.stage is ScopeStage.BODY
            and not (
                transcript.expired
                or transcript.leaving
                or transcript.handed_out
                or self._connections.draining
            )
        )

    async def begin_again(self, error: Exception) -> None:
        """Restart on another connection with a new permit; the loss is settled as a failure of the first permit."""
        now = self._monotonic()
        # The rollback below is koo's own. The user's hooks were registered for the transaction that is about to be
        # restarted, so they must survive it; `CommitHooks` would otherwise drop them as after any rollback.
        if self.hooks is not None:
            self.hooks.is_deaf = True
        await in_greenlet(self._sync.rollback)
        if self.hooks is not None:
            self.hooks.is_deaf = False
        failure, self.transcript.failure = self.transcript.failure, None
        self._settle(failure.fault() if failure is not None else UNJUDGED, now)
        self._connections.metrics.replays += 1
        try:
            await self._begin(now)
        except KooError as refusal:
            raise refusal from error
        # Another task may have left the scope while this one waited for its new connection. `__aexit__` then found no
        # permit to settle and no connection to return, and it does not run again: both are returned here.
        if self.transcript.leaving:
            await to_end(self._leave_failed(error, late=False))
            raise error

    @property
    def is_leaving(self) -> bool:
        """Whether the block has ended."""
        return self.transcript.leaving

    async def find_markers(self) -> Place:
        """The location of the markers table. Raises `DatabaseError` if it cannot be used."""
        return await self._connections.markers.ready()

    def why_repeat(self, error: Exception) -> Meaning | None:
        """Why the whole transaction may run again after it raised `error`; None if it may not."""
        return self.transcript.why_repeat(error) if self.owner is not None else None

    # ── leaving ───────────────────────────────────────────────────────────────────────────────────────────────

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A scope without failures that ends after its *caller's* deadline gets a neutral verdict. Read first, because
        # the time spent on leaving must not turn a scope that ended in time into a late one.
        late = ends_at.get() <= self._monotonic()
        self.transcript.leaving = True
        # Errors take the slow path because a rollback must be bounded. So does a COMMIT that may have to wait for
        # something first: on SQLite a flush waits in the writers' queue, and after a `session.commit()` in the block it
        # opens a new connection. Such a wait ends by cancelling its own task (`Alarm`, a driver's timeout), and within
        # `Unbroken` a task cannot be cancelled: a server that is silent would keep the scope forever.
        if (
            error is not None
            or self.transcript.expired
            or self._connections.writers is not None
            or self._sync.lacks_connection()
        ):
            # In a forked child every scope of the parent counts as expired (`leave_to_parent`), so it arrives here.
            if self._connections.is_parents:
                if error is None:
                    raise RuntimeError(
                        "this scope was opened before the fork: its transaction belongs to the parent process"
                    )
                return
            try:
                await to_end(self._leave(error, late))
            except BaseException as failure:
                self._run_hooks_behind()
                if self.transcript.in_doubt:
                    self._decide(failure)
                else:
                    self._note_end(failure)
                raise
            if error is not None:
                self._note_end(error)
                self._run_hooks_behind()
            elif self.hooks is not None:
                await self._run_hooks(self.hooks)
            return
        try:
            await Unbroken(in_greenlet(_commit_and_close, self._sync))
        except BaseException as failure:
            # A cancellation deferred during a COMMIT that succeeded arrives here too. The rollback then finds nothing
            # to do, and only the connection and the permit are returned.
            await to_end(self._leave_failed(failure, late))
            self._run_hooks_behind()
            if self.transcript.in_doubt:
                self._decide(failure)
            else:
                self._note_end(failure)
            raise
        self._end(None, late)
        if self.hooks is not None:
            await self._run_hooks(self.hooks)

    async def _run_hooks(self, hooks: CommitHooks) -> None:
        try:
            await hooks.run()
        except BaseException:
            self._run_hooks_behind()
            raise

    def _run_hooks_behind(self) -> None:
        """Run the hooks in the background: the caller leaves with an error, but what was committed did happen."""
        if self.hooks is not None and self.hooks.is_due:
            self._connections.spawn(self.hooks.run())

    async def _leave(self, error: BaseException | None, late: bool) -> None:
        """The slow path: errors, expired scopes, SQLite, and scopes whose last flush opens a connection."""
        record = self._occupied()
        if isinstance(error, Exception) and record is not None:
            self.transcript.report_raw(error, record)
        try:
            if error is not None:
                await self._roll_back()
            elif self.transcript.expired:
                raise self.transcript.too_late()
            else:
                await in_greenlet(_commit_and_close, self._sync)
        except BaseException as failure:
            await self._leave_failed(failure, late)
            raise
        self._end(error, late)

    async def _leave_failed(self, failure: BaseException, late: bool) -> None:
        try:
            await self._roll_back()
        finally:
            self._end(failure, late)

    def _note_end(self, error: BaseException) -> None:
        unknown = error.__cause__ if isinstance(error, asyncio.CancelledError) else error
        if isinstance(unknown, CommitOutcomeUnknown) and not unknown.logged:
            self._note_unknown(unknown)
        elif not self.is_part:
            self._connections.news.failed(error, self, "scope", 1)

    def note_last(self, error: Exception, attempts: int) -> None:
        """Log the failure of a function; this scope was its last attempt."""
        if self.owner is not None:  # None if the database was being closed, so the scope never began
            self._connections.news.failed(error, self, "transaction", attempts)

    def _decide(self, failure: BaseException) -> None:
        """The last COMMIT was lost and may have happened: raise `CommitOutcomeUnknown` instead of `failure`.

        The connection and the permit have been returned. Not reached with markers: `MarkedHooks` finds the outcome.
        """
        unknown = self.transcript.unknown_outcome()
        self._note_unknown(unknown)
        if isinstance(failure, Exception):
            raise unknown from original_of(failure)
        # `failure` is a cancellation that was deferred during COMMIT. It must stay the exception that is raised: an
        # `asyncio.timeout` or `TaskGroup` around the block recognises its own cancellation only as a CancelledError. So
        # the unknown outcome becomes its cause, and the loss becomes the cause of the unknown outcome.
        unknown.__cause__ = failure.__cause__
        failure.__cause__ = unknown

    def _note_unknown(self, unknown: CommitOutcomeUnknown) -> None:
        """Publish that the outcome of this scope's COMMIT is unknown."""
        self._connections.nameplate.sign(unknown)
        self._connections.news.failed(unknown, self, "scope", 1)

    def give_back(self, error: Exception) -> None:
        """Settle the permit of a scope whose last COMMIT was lost, before koo queries for the outcome."""
        # Finding the outcome may take `resolve_timeout_s`. `_end` runs afterwards and finds no permit left to settle.
        late = ends_at.get() <= self._monotonic()
        self._settle(self.transcript.verdict(error, late), self._monotonic())

    async def _roll_back(self) -> None:
        """Return the connection clean, or discard it, within the cleanup time. Raises no error from the rollback
        itself."""
        record = self._occupied()
        if record is None:
            await in_greenlet(self._sync.close)
            return
        # A rollback has no timeout in SQLAlchemy or in the drivers: if the server does not respond it would wait
        # forever, and so would the caller that wants to leave.
        timer = record.abort_in(self._connections.options.cleanup_timeout_s)
        # Another task is running a statement on this session. ROLLBACK would have to wait for that statement; cutting
        # the connection off ends it with an error.
        if record.busy:
            record.abort()
        try:
            # ROLLBACK on a dead connection could only fail, and would be reported and counted as one more error.
            if record.is_closed:
                await in_greenlet(self._sync.invalidate)
            await in_greenlet(_roll_back_and_close, self._sync)
        except Exception:
            log.debug("rolling back failed", exc_info=True)
            await in_greenlet(self._sync.invalidate)
        finally:
            timer.cancel()

    def _end(self, error: BaseException | None, late: bool) -> None:
        """Free the connection's record, settle the permit, and so admit the next caller."""
        # The connection is back in the pool: a deadline timer left running would cut off its next user.
        if self._timer is not None:
            self._timer.cancel()
        now = self._monotonic()
        record = self._record
        if record is not None and record.occupant is self.transcript:
            record.occupant = None
            record.idle_since = now
            record.end_transaction()
        # Session, scope and record refer to each other. If the cycle stayed, every scope would live until the garbage
        # collector runs, and its passes over thousands of dead scopes would cost more than everything else here.
        self._sync.scope = self._record = None
        self._settle(self.transcript.verdict(error, late), now)

    def leave_to_parent(self) -> object:
        """In a forked child: leave the permit for the parent to settle. Returns what must not be freed here."""
        held, self._held = self._held, None
        self.transcript.has_permit = False
        self.transcript.expired = True
        return held

    def _settle(self, fault: Fault | None, now: float) -> None:
        held, self._held = self._held, None
        transcript = self.transcript
        transcript.has_permit = False
        if held is None:
            return
        connections = self._connections
        connections.metrics.hold.note(now - connections.pool_queue.leave_hold(self))
        # Only the database's time counts. A block that spends a minute on the user's own code is not a slow database.
        slow = transcript.slowest_s >= connections.options.slow_call_s
        held.settle(fault, slow=slow, took_s=transcript.spent_s)


def _commit_and_close(session: Session) -> None:
    session.commit()
    session.close()


def _roll_back_and_close(session: Session) -> None:
    session.rollback()
    session.close()
