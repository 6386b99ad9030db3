"""SessionScope: one session, one transaction, one permit.

    enter    breaker → gate → connection → BEGIN            the guard runs and repeats this
    body     the user's                                     nothing of koo's runs around it: no timer, no ContextVar
    leave    COMMIT or ROLLBACK → connection back → settle  in a task of its own, waited for through cancellations

**Deadline.** A timeout around the block would cancel the user's own awaits. Here it is the *connection* that has a
deadline: at its end the running statement is cancelled on the server, and what does not answer is cut off
`cleanup_timeout_s` later. An idle transaction is cut off at once, because others wait for its locks. COMMIT is never
cancelled, only cut off.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from koo.database.faults import Phase
from koo.database.finishing import Unbroken, to_end
from koo.database.hooks import Stale
from koo.database.records import ConnectionRecord
from koo.database.session import GuardedSession, SyncSession
from koo.database.sqlite import MODES, Mode
from koo.database.transcript import Transcript
from koo.deadlines import ends_at
from koo.errors import DatabaseError, DatabaseTimeout, Kind, KooError, PoolSaturated, describe_s
from koo.options import NEVER
from koo.policies.verdict import UNJUDGED, Fault

if TYPE_CHECKING:
    from koo.database.connections import Connections

log = logging.getLogger("koo")


class SessionScope(Transcript):
    """`async with` it: an `AsyncSession` in one transaction, committed at the end, rolled back on any exception.

    Raises `DatabaseUnavailable` and `PoolSaturated` on entry, `DatabaseTimeout` when its time is over,
    `CommitOutcomeUnknown` when the connection was lost in COMMIT. What the block raises leaves unchanged.
    """

    _sync: SyncSession
    session: GuardedSession

    link: ConnectionRecord | None = None
    left = False
    handed_out = False
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
        self.readonly = readonly
        self.isolation = isolation
        self.mode = mode or (Mode.READER if readonly else MODES.get(isolation, Mode.COMMITTED))
        self.deadline = deadline

    # ── entering ──────────────────────────────────────────────────────────────────────────────────────────────

    async def __aenter__(self) -> GuardedSession:
        if self.owner is not None:
            raise RuntimeError("a session scope is used once: call session_scope() again")
        connections = self.connections = self._open()
        self._monotonic, self._options = connections.monotonic, connections.options
        self.owner = asyncio.current_task()
        now = self._monotonic()
        self.deadline = min(self.deadline, ends_at.get(), now + self._options.scope_timeout_s)
        self.session = session = connections.make_session(self)
        self._sync = session.sync_session
        await self._begin(now)
        return session

    async def _begin(self, now: float) -> None:
        """Through the breaker and the gate to a connection with an open transaction."""
        connections = self.connections
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
                late.reason = f"no connection came about within {describe_s(self._monotonic() - now)}"
            raise
        self._held = held
        connections.gate.holders[self] = now
        if self.deadline < connections.wakes_at:
            connections.wake_at(self.deadline)
        self.phase = Phase.BODY
        if held.permit.lease_ends_at is not NEVER:  # a probe, bounded by the scope's own deadline
            held.permit.lease_ends_at = self.deadline + 2 * self._options.cleanup_timeout_s

    async def _connect(self) -> None:
        """One attempt of the guard: a connection that answered BEGIN."""
        connections = self.connections
        if not connections.kept:  # a keeper that is cancelled before its first step closes nothing
            await asyncio.sleep(0)
        connections.refuse_if_draining()
        began = self._monotonic()
        connections.metrics.gate_wait.note(began - self._asked_at)
        try:
            try:
                await greenlet_spawn(self._sync.connection)
            except Stale:
                await self._connect_past_the_dead()
            if self.mode is Mode.WRITER and connections.file is not None and self.link is not None:
                await connections.begin_writing(self.link, self)
            connections.refuse_if_draining()
        except BaseException:
            # A pool that is closed already would keep what is given back to it, open, for ever.
            end = self._sync.invalidate if connections.draining else self._sync.rollback
            await to_end(greenlet_spawn(end))
            raise
        self._answered = connections.driver.answers_begin
        self._spent_s = self._monotonic() - began
        link = self.link
        if link is not None and link.fresh:
            link.fresh = False
            self._slowest_s = self._spent_s
            connections.metrics.connect.note(self._spent_s)

    async def _connect_past_the_dead(self) -> None:
        """Dead connections that lay in the pool are replaced unseen."""
        for _ in range(self.connections.gate.limit + 1):
            try:
                await greenlet_spawn(self._sync.connection)
            except Stale:
                continue
            return
        raise DatabaseError(self.connections.name, "no connection stays open", kind=Kind.CONNECTION)

    def take(self, connection: Any) -> None:
        """A connection of this scope has begun its transaction."""
        self.link = link = self.connections.link_of(connection)
        link.scope = self

    # ── the deadline ──────────────────────────────────────────────────────────────────────────────────────────

    def expire(self) -> None:
        """The deadline came, somewhere in the event loop."""
        self.expired = True
        link = self.link
        if link is None or link.scope is not self:
            return
        if not link.busy and self.phase is not Phase.COMMIT:
            link.abort()
            self.connections.end_writing(link)
            return
        within_s = self._options.cleanup_timeout_s
        self._stopped = True
        self._timer = link.abort_in(within_s)
        if self.phase is Phase.BODY:
            self.connections.spawn(link.cancel(within_s))

    # ── the first statement once more ─────────────────────────────────────────────────────────────────────────

    def may_replay(self) -> bool:
        """Has nothing happened in this transaction, so that it may be begun anew?"""
        return (
            self.statements == 0
            and self.phase is Phase.BODY
            and not (self.expired or self.left or self.handed_out or self.connections.draining)
        )

    async def begin_again(self, error: Exception) -> None:
        """On another connection, with another permit: the lost one was a failure of its own."""
        now = self._monotonic()
        await greenlet_spawn(self._sync.rollback)
        self._settle(self._failure.fault() if self._failure is not None else UNJUDGED, now)
        self._failure = None
        self.connections.metrics.replays += 1
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
        if error is not None or self.expired or self.connections.file is not None:
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
                raise self.too_late()
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
        if self._timer is not None:
            self._timer.cancel()
        now = self._monotonic()
        link = self.link
        if link is not None and link.scope is self:
            link.scope = None
            link.idle_since = now
            self.connections.end_writing(link)
        # A ring of references would leave each scope to the garbage collector, which costs more than all else here.
        self._sync.scope = self.link = None
        self._settle(self.verdict(error, late), now)

    def _settle(self, fault: Fault | None, now: float) -> None:
        held, self._held = self._held, None
        if held is None:
            return
        connections = self.connections
        connections.metrics.hold.note(now - connections.gate.leave_hold(self))
        # The database's time, not the scope's: the rest was the user's.
        held.settle(fault, slow=self._slowest_s >= self._options.slow_call_s, took_s=self._spent_s)


def _commit_and_close(session: Session) -> None:
    session.commit()
    session.close()


def _roll_back_and_close(session: Session) -> None:
    session.rollback()
    session.close()
