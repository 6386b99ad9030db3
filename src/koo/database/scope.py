"""SessionScope: one session, one transaction, one permit.

    enter    breaker → gate → connection → BEGIN            the guard runs and repeats this
    body     the user's                                     nothing of koo's runs around it: no timer, no ContextVar
    leave    COMMIT or ROLLBACK → connection back → settle  in a task of its own, waited for through cancellations

**Deadline.** A timeout around the block would cancel the user's own awaits. Here it is the *connection* that has a
deadline: at its end the running statement is cancelled on the server, and what does not answer is cut off
`cleanup_timeout_s` later. An idle transaction is cut off at once, because others wait for its locks. COMMIT is never
cancelled, only cut off.

**One sample.** The breaker gets one verdict for a scope, by what the engine reported in it and not by what leaves the
block: a lost connection counts even if it was caught, and a user's own exception does not. Fifty statements on a dead
connection are one failure. Time in the block is the user's: the permit is charged with the database's time alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import ExceptionContext
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from koo.database.faults import LOST, READ_ONLY, Drop, Meaning, Phase, explain, sqlstate_of
from koo.database.finishing import Unbroken, to_end
from koo.database.hooks import Stale
from koo.database.links import Link
from koo.database.session import GuardedSession, SyncSession
from koo.database.sqlite import MODES, Mode
from koo.deadlines import NEVER, Alarm, Deadlines, ends_at
from koo.errors import (
    CommitOutcomeUnknown,
    DatabaseError,
    DatabaseTimeout,
    Kind,
    KooError,
    PoolSaturated,
    describe_s,
)
from koo.guard import Scope
from koo.options import DatabaseOptions
from koo.policies.breaker import Permit
from koo.policies.tally import Tally
from koo.policies.verdict import CANCELLED, FAILURE, NEUTRAL, UNJUDGED, Fault

if TYPE_CHECKING:
    from koo.database.connections import Connections

REPORTS_MAX = 8

log = logging.getLogger("koo")


class Watch(Alarm):
    """The deadline of a scope: it ends a statement, never a task."""

    __slots__ = ("_scope",)

    def __init__(self, registry: Deadlines, when: float, scope: SessionScope) -> None:
        super().__init__(registry, when)
        self._scope = scope
        registry.add(self)

    def expire(self) -> None:
        self._scope.expire()

    def stop(self) -> None:
        self.members.discard(self)
        if self.timer is not None:
            self.timer.cancel()


class SessionScope:
    """`async with` it: an `AsyncSession` in one transaction, committed at the end, rolled back on any exception.

    Raises `DatabaseUnavailable` and `PoolSaturated` on entry, `DatabaseTimeout` when its time is over,
    `CommitOutcomeUnknown` when the connection was lost in COMMIT. What the block raises leaves unchanged.
    """

    _connections: Connections
    _monotonic: Callable[[], float]
    _options: DatabaseOptions
    _sync: SyncSession
    session: GuardedSession

    owner: asyncio.Task[Any] | None = None
    link: Link | None = None
    phase = Phase.CONNECT
    expired = False
    left = False
    statements = 0
    handed_out = False
    reports: Sequence[tuple[BaseException, Meaning]] = ()
    _held: Scope[None] | None = None
    _permit: Permit | None = None
    _watch: Watch | None = None
    _timer: asyncio.TimerHandle | None = None
    _failure: Meaning | None = None
    _spoiler: BaseException | None = None
    _answered = _stopped = _unanswered = False
    _asked_at = _spent_s = _slowest_s = 0.0

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
        self.readonly = readonly
        self.isolation = isolation
        self.mode = mode or (Mode.READER if readonly else MODES.get(isolation, Mode.COMMITTED))
        self.deadline = deadline

    # ── entering ──────────────────────────────────────────────────────────────────────────────────────────────

    async def __aenter__(self) -> GuardedSession:
        if self.owner is not None:
            raise RuntimeError("a session scope is used once: call session_scope() again")
        connections = self._connections = self._open()
        self._monotonic, self._options = connections.monotonic, connections.options
        self.owner = asyncio.current_task()
        now = self._monotonic()
        self.deadline = min(self.deadline, ends_at.get(), now + self._options.scope_timeout_s)
        self.session = session = connections.make_session(self)
        self._sync = session.sync_session
        await self._begin(now)
        self._watch = Watch(connections.deadlines, self.deadline, self)
        return session

    async def _begin(self, now: float) -> None:
        """Through the breaker and the gate to a connection with an open transaction."""
        connections = self._connections
        self._asked_at = now
        self.phase = Phase.CONNECT
        within_s = min(self._options.pool_timeout_s, self.deadline - now)
        try:
            held = await connections.guard.begin(self._connect, timeout_s=max(within_s, 1e-6))
        except PoolSaturated as refusal:
            connections.gate.explain(refusal, self._monotonic(), connections.usual_hold_s())
            raise
        except DatabaseTimeout as late:
            if late.kind is Kind.TIMEOUT:
                late.reason = f"no connection came about within {within_s:g} s"
            raise
        self._held, self._permit = held, held.permit
        connections.gate.holders[self] = now
        self.phase = Phase.BODY
        if held.permit.lease_ends_at is not NEVER:  # a probe, bounded by the scope's own deadline
            held.permit.lease_ends_at = self.deadline + 2 * self._options.cleanup_timeout_s
        # The breaker counts permits that have run for long as hung calls. The user's own time is no such sign.
        held.permit.given_at = NEVER

    async def _connect(self) -> None:
        """One attempt of the guard: a connection that answered BEGIN."""
        connections = self._connections
        began = self._monotonic()
        connections.metrics.gate_wait.record_success(began - self._asked_at, False, True, began)
        try:
            try:
                await greenlet_spawn(self._sync.connection)
            except Stale:
                await self._connect_past_the_dead()
            if self.mode is Mode.WRITER and connections.file is not None and self.link is not None:
                await connections.begin_writing(self.link, self)
        except BaseException:
            await to_end(greenlet_spawn(self._sync.rollback))
            raise
        self._answered = connections.driver.answers_begin
        now = self._monotonic()
        self._spent_s = now - began
        link = self.link
        if link is not None and link.fresh:
            link.fresh = False
            self._slowest_s = self._spent_s
            connections.metrics.connect.record_success(self._spent_s, False, True, now)

    async def _connect_past_the_dead(self) -> None:
        """Dead connections that lay in the pool are replaced unseen."""
        for _ in range(self._connections.gate.limit + 1):
            try:
                await greenlet_spawn(self._sync.connection)
            except Stale:
                continue
            return
        raise DatabaseError(self._connections.name, "no connection stays open", kind=Kind.CONNECTION)

    def take(self, connection: Any) -> None:
        """A connection of this scope has begun its transaction."""
        self.link = link = self._connections.link_of(connection)
        link.scope = self

    # ── a statement of the body ───────────────────────────────────────────────────────────────────────────────

    def enter(self, link: Link, phase: Phase) -> float:
        """Before anything is sent. Gives the time. Raises when it is too late, or when another task is at it."""
        permit = self._permit
        if link.busy:
            raise DatabaseError(
                self._connections.name,
                "two tasks use one session at once: open a scope in each of them",
                kind=Kind.INVALID_REQUEST,
            )
        if self.expired:
            raise self._too_late()
        if permit is None:
            raise DatabaseError(
                self._connections.name, "this scope has lost its connection: leave it", kind=Kind.CONNECTION
            )
        if phase is Phase.COMMIT and self._spoiler is not None:
            raise self._spoiled() from self._spoiler
        link.busy = True
        self.phase = phase
        permit.given_at = now = self._monotonic()
        return now

    def succeed(self, link: Link, began: float, tally: Tally) -> None:
        """It was answered."""
        now = self._leave_statement(link, began)
        tally.record_success(now - began, False, True, now)
        self.phase = Phase.BODY
        self._answered = True
        self._spoiler = None  # after a failed statement only ROLLBACK TO SAVEPOINT succeeds, and mends it

    def fail(self, link: Link, began: float) -> None:
        """It was not, or with an error; `report` hears which."""
        self._leave_statement(link, began)

    def _leave_statement(self, link: Link, began: float) -> float:
        link.busy = False
        now = self._monotonic()
        took_s = now - began
        self._spent_s += took_s
        self._slowest_s = max(self._slowest_s, took_s)
        if self._permit is not None:
            self._permit.given_at = NEVER
        return now

    # ── what the engine reports ───────────────────────────────────────────────────────────────────────────────

    def report(self, context: ExceptionContext, link: Link, error: BaseException) -> BaseException | None:
        """An error of the engine in this scope; gives what is to be raised in its place, if anything."""
        if isinstance(error, KooError):
            return None
        meaning = explain(error, self.phase, lost=context.is_disconnect and isinstance(error, Exception))
        if len(self.reports) < REPORTS_MAX:
            self.reports = (*self.reports, (error, meaning))
        if self.phase is Phase.BODY and sqlstate_of(error) is not None:
            self._spoiler = error
        if meaning.drop is not Drop.KEEP:
            context.is_disconnect = True
        if meaning.drop is Drop.ALL and not self.readonly:
            self._connections.distrust_all()
        if meaning is READ_ONLY and not self.readonly:
            self._connections.note_read_only(True)
        ours = self.expired and meaning.kind in (Kind.CONNECTION, Kind.TIMEOUT)
        self._count(error, meaning, ours)
        if ours:
            self._unanswered = self._stopped and link.aborted
        if self.phase is Phase.COMMIT and meaning.unsure and not self.readonly:
            return self._unknown()
        return self._too_late() if ours else None

    def _count(self, error: BaseException, meaning: Meaning, ours: bool) -> None:
        metrics = self._connections.metrics
        metrics.count_error(Kind.DEADLINE if ours else meaning.kind, type(error).__name__)
        metrics.contention += meaning.kind is Kind.CONTENTION
        metrics.broken += meaning is LOST and not ours
        if meaning.verdict is FAILURE and not ours and self._failure is None:
            self._failure = meaning

    def _too_late(self) -> DatabaseTimeout:
        total_s = self._options.scope_timeout_s
        return DatabaseTimeout(
            self._connections.name, f"the scope's deadline passed (at most {describe_s(total_s)})"
        )

    def _spoiled(self) -> DatabaseError:
        return DatabaseError(
            self._connections.name,
            "a statement of this transaction failed and the error was caught, so the server would answer COMMIT with"
            " a rollback: put what may fail into session.begin_nested()",
            kind=Kind.INVALID_REQUEST,
        )

    def _unknown(self) -> CommitOutcomeUnknown:
        self._connections.metrics.unknown_commits += 1
        return CommitOutcomeUnknown(
            self._connections.name,
            "the connection was lost during COMMIT: the transaction may have happened or not,"
            " look before you repeat it",
        )

    def meaning_of(self, error: BaseException) -> Meaning | None:
        """What the engine reported about an error that left the scope, or about one that it came from."""
        reported = {id(original): meaning for original, meaning in self.reports}
        one: BaseException | None = error
        for _ in range(16):
            if one is None:
                return None
            meaning = reported.get(id(one)) or reported.get(id(getattr(one, "orig", None)))
            if meaning is not None:
                return meaning
            one = one.__cause__ or one.__context__
        return None

    # ── the deadline ──────────────────────────────────────────────────────────────────────────────────────────

    def expire(self) -> None:
        """The deadline came, somewhere in the event loop."""
        self.expired = True
        link = self.link
        if link is None or link.scope is not self:
            return
        if not link.busy and self.phase is not Phase.COMMIT:
            link.abort()
            self._connections.end_writing(link)
            return
        within_s = self._options.cleanup_timeout_s
        self._stopped = True
        self._timer = link.abort_in(within_s)
        if self.phase is Phase.BODY:
            self._connections.spawn(link.cancel(within_s))

    # ── the first statement once more ─────────────────────────────────────────────────────────────────────────

    def may_replay(self) -> bool:
        """Has nothing happened in this transaction, so that it may be begun anew?"""
        return (
            self.statements == 0
            and self.phase is Phase.BODY
            and not (self.expired or self.left or self.handed_out)
        )

    async def begin_again(self, error: Exception) -> None:
        """On another connection, with another permit: the lost one was a failure of its own."""
        now = self._monotonic()
        await greenlet_spawn(self._sync.rollback)
        self._settle(self._failure.fault() if self._failure is not None else UNJUDGED, now)
        self._failure = None
        self._connections.metrics.replays += 1
        try:
            await self._begin(now)
        except KooError as refusal:
            raise refusal from error
        if self.left:  # by another task, meanwhile: nobody else would give this permit back
            await to_end(self._leave_failed(error, late=False))
            raise error

    # ── leaving ───────────────────────────────────────────────────────────────────────────────────────────────

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        late = ends_at.get() <= self._monotonic()
        self.left = True
        if error is not None or self.expired or self._connections.file is not None:
            await to_end(self._leave(error, late))
            return
        try:
            await Unbroken(greenlet_spawn(_commit_and_close, self._sync))
        except BaseException as failure:
            # A cancellation that was put aside comes here too, after the COMMIT: then nothing is left to roll back.
            await to_end(self._leave_failed(failure, late))
            raise
        self._end(None, late)

    async def _leave(self, error: BaseException | None, late: bool) -> None:
        """As the short way, for everything that is not short."""
        try:
            if error is not None:
                await self._roll_back()
            elif self.expired:
                raise self._too_late()
            else:
                await greenlet_spawn(_commit_and_close, self._sync)
        except BaseException as failure:
            await self._leave_failed(failure, late)
            raise
        self._end(error, late)

    async def _leave_failed(self, failure: BaseException, late: bool) -> None:
        try:
            await self._roll_back()
        finally:
            self._end(failure, late)

    async def _roll_back(self) -> None:
        """Give the connection back, clean or not at all, within the cleanup time. The first error is the one to see."""
        link = self.link
        if link is None or link.scope is not self:
            await greenlet_spawn(self._sync.close)
            return
        timer = link.abort_in(self._options.cleanup_timeout_s)
        if link.busy:
            link.abort()  # another task is still at it: its statement ends here, with an error
        try:
            if link.is_closed:
                await greenlet_spawn(self._sync.invalidate)
            await greenlet_spawn(_roll_back_and_close, self._sync)
        except Exception:
            log.debug("rolling back failed", exc_info=True)
            await greenlet_spawn(self._sync.invalidate)
        finally:
            timer.cancel()

    def _end(self, error: BaseException | None, late: bool) -> None:
        """The connection is back: settle, and let the next one in."""
        if self._watch is not None:
            self._watch.stop()
        if self._timer is not None:
            self._timer.cancel()
        now = self._monotonic()
        link = self.link
        if link is not None and link.scope is self:
            link.scope = None
            link.idle_since = now
            self._connections.end_writing(link)
        # A ring of references would leave each scope to the garbage collector, which costs more than all else here.
        self._sync.scope = self.link = self._watch = None
        self._settle(self._verdict(error, late), now)

    def _settle(self, fault: Fault | None, now: float) -> None:
        held, permit = self._held, self._permit
        if held is None or permit is None:
            return
        self._held = self._permit = None
        connections = self._connections
        connections.metrics.hold.record_success(now - connections.gate.leave_hold(self), False, True, now)
        permit.given_at = now - self._spent_s
        held.settle(fault, slow=self._slowest_s >= self._options.slow_call_s)

    def _verdict(self, error: BaseException | None, late: bool) -> Fault | None:
        """The worst of what the engine reported; None is a success."""
        if self._failure is not None:
            return self._failure.fault()
        if self.expired and self._unanswered:
            return Fault(verdict=FAILURE, kind=Kind.TIMEOUT)
        if self.expired or late:
            return Fault(verdict=NEUTRAL, kind=Kind.DEADLINE)
        if error is not None and not isinstance(error, Exception):
            return CANCELLED
        return None if self._answered else UNJUDGED


def _commit_and_close(session: Session) -> None:
    session.commit()
    session.close()


def _roll_back_and_close(session: Session) -> None:
    session.rollback()
    session.close()
