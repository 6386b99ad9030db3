"""SQLite allows one writer. The writers of this process wait in a queue; koo polls only for those of other processes.

A `SqliteTransaction` begins as late as its statements allow (`koo.database.sqlite` explains why). A read opens a
snapshot if the scope keeps one. A write first waits for its turn in the queue, then for SQLite's own lock.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any

from sqlalchemy.util import await_only as await_

from koo.database.faults import SERVICE
from koo.database.greenlets import in_greenlet
from koo.database.pool_queue import Holder
from koo.database.sqlite import Mode, Need, Opening
from koo.deadlines import Alarm, Deadlines
from koo.errors import DatabaseError, Kind, PoolSaturated, describe_s
from koo.monitoring.pool import PoolMetrics
from koo.policies.bulkhead import Bulkhead
from koo.sqlstates import is_locked

BUSY_PAUSE_S = (0.002, 0.03)
"""The shortest and longest pause between two attempts to begin a write while another process holds the lock. Random, so
that two processes do not keep trying at the same moments."""


class WriterLine(Bulkhead):
    """The writers of this process: one at a time, first come first served."""

    __slots__ = ("_deadlines", "_owner", "_since", "draw", "metrics", "monotonic", "wait_s")

    def __init__(
        self,
        deadlines: Deadlines,
        metrics: PoolMetrics,
        wait_s: float,
        monotonic: Callable[[], float],
        draw: Callable[[], float],
    ) -> None:
        super().__init__(1)
        self.metrics = metrics
        self.wait_s = wait_s
        self.monotonic = monotonic
        self.draw = draw
        self._deadlines = deadlines
        self._owner: asyncio.Task[Any] | None = None
        self._since = 0.0

    async def enter(self, writer: Holder, until: float) -> None:
        """Become the writer. Raises `PoolSaturated` at `until`."""
        if not self.take():
            # A scope opened inside another one, both writing, in one task: the inner one would wait for the outer one
            # to end, which waits for the inner one. The timeout would break that deadlock, but not say what is wrong.
            if self._owner is not None and self._owner is writer.owner:
                raise DatabaseError(
                    SERVICE,
                    "this task already writes in an outer scope, and SQLite has one writer at a time:"
                    " pass the outer session on, or end the outer scope first",
                    kind=Kind.CONTENTION,
                )
            await self._wait(until)
        self._owner, self._since = writer.owner, self.monotonic()

    async def _wait(self, until: float) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.line.append(waiter)
        try:
            with Alarm(self._deadlines, until):
                await waiter
        except BaseException as error:
            # The previous writer may have handed its turn to this waiter in the same turn of the loop in which the
            # alarm or a cancellation arrived. If it were not passed on, this process could never write again.
            self.leave(waiter, granted=waiter.done() and not waiter.cancelled())
            if not isinstance(error, TimeoutError):
                raise
            held = f", held for {describe_s(self.monotonic() - self._since)}"
            raise PoolSaturated(
                SERVICE, f"SQLite has one writer at a time, and another scope is writing{held}", 1.0
            ) from None


class SqliteTransaction:
    """One transaction on aiosqlite's `connection`, for a scope in `mode`.

    BEGIN and the first statement run in the same turn of the connection's thread: call `prepare`, then `run`.
    """

    __slots__ = (
        "_begin_by",
        "_connection",
        "_has_lock",
        "_is_writing",
        "_line",
        "_mode",
        "_opening",
        "_writer",
        "rolled_back",
    )

    def __init__(self, connection: Any, line: WriterLine, mode: Mode, writer: Holder) -> None:
        self._connection = connection
        self._line = line
        self._mode = mode
        self._writer = writer
        self._opening: Opening | None = None
        self._begin_by = 0.0
        self._is_writing = self._has_lock = False
        self.rolled_back = False

    @property
    def is_untouched(self) -> bool:
        """Whether no transaction has begun or is prepared."""
        return self._opening is None

    @property
    def has_ended(self) -> bool:
        """Whether SQLite has ended the transaction, without koo's doing."""
        is_open = self._opening is not None and self._opening.is_done
        return is_open and not self._connection.in_transaction

    def note_failure(self) -> None:
        """A statement has failed: after some errors SQLite ends the transaction (a full disk, INSERT OR ROLLBACK)."""
        # SQLite is then in autocommit mode. If the block catches the error and goes on, each later statement would be
        # committed separately, and COMMIT would find nothing to do and succeed: half a transaction, without an error.
        self.rolled_back = self.rolled_back or self.has_ended

    async def prepare(self, need: Need) -> None:
        """Called before a statement: prepare the BEGIN that it needs. A write first waits for its turn in the queue.

        Raises `DatabaseError` for a write in a read-only scope, and after SQLite has ended the transaction.
        """
        if self.rolled_back:
            raise DatabaseError(
                SERVICE,
                "SQLite has rolled this transaction back after an error that the block caught: call session.rollback(),"
                " or leave the scope",
                kind=Kind.INVALID_REQUEST,
            )
        if self._opening is None and self._connection.in_transaction:
            # A write on the driver's own connection has begun the transaction, and with it has SQLite's lock. In the
            # queue this scope could wait for a writer that waits for that lock.
            self._opening = Opening("", is_done=True)
            self._has_lock = True
        if need is Need.SAVEPOINT:
            # Outside a transaction SAVEPOINT would open a deferred one. Its first read would take a snapshot, and after
            # another connection's write the scope's own write would fail with BUSY_SNAPSHOT. In COMMITTED mode the
            # scope must never see that, so it becomes the writer now.
            need = Need.WRITE if self._mode is Mode.COMMITTED else Need.READ
        if need is Need.WRITE:
            if self._mode is Mode.READER:
                raise DatabaseError(
                    SERVICE, "the scope is read-only: open it without readonly=True", kind=Kind.READ_ONLY
                )
            if not (self._is_writing or self._has_lock):
                await self._become_writer()
        elif need is Need.READ and self._mode is not Mode.COMMITTED and self._opening is None:
            self._opening = Opening("BEGIN")

    async def begin_writing(self) -> None:
        """Wait for the turn, then take SQLite's own lock immediately. A snapshot that is already open is kept."""
        await self._become_writer()
        await in_greenlet(self.begin)

    async def _become_writer(self) -> None:
        until = self._begin_by = self._until()
        await self._line.enter(self._writer, until)
        self._is_writing = True
        # In SNAPSHOT mode BEGIN has already run for an earlier read. SQLite then upgrades that transaction at the write
        # itself, or refuses it with BUSY_SNAPSHOT if its snapshot is too old; a second BEGIN would be an error.
        if self._opening is None:
            self._opening = Opening("BEGIN IMMEDIATE")

    def _until(self) -> float:
        return min(self._writer.deadline, self._line.monotonic() + self._line.wait_s)

    def begin(self) -> None:
        """Run the prepared BEGIN in a separate turn of the thread. Call it in SQLAlchemy's greenlet."""
        if self._opening is not None and not self._opening.is_done:
            self.run(lambda: await_(self._connection.take_turn()))

    def run(self, statement: Callable[[], object]) -> None:
        """Run `statement` in SQLAlchemy's greenlet, with the prepared BEGIN in the same turn of the thread before it.

        While another process holds SQLite's lock, nothing has begun, and both are repeated.
        """
        # One turn instead of two saves waking the thread and the event loop, which costs more than a small statement.
        # Between two turns SQLite's lock would also be held while nothing is running.
        opening = self._opening
        if opening is None or opening.is_done:
            statement()
            return
        self._connection.opening = opening
        try:
            self._insist(statement, self._begin_by, opening)
        except Exception:
            # BEGIN never succeeded, so no COMMIT or ROLLBACK will follow for it: the turn in the queue is given up
            # here.
            if not opening.is_done:
                self.end()
            raise
        finally:
            self._connection.opening = None
            # SQLite has accepted BEGIN IMMEDIATE, so the file is writable again. If the statement finds the disk full,
            # its error is reported after this and sets the flag again.
            if opening.is_done and self._is_writing:
                self._line.metrics.is_read_only = False

    def _insist(self, step: Callable[[], object], until: float, opening: Opening | None = None) -> None:
        """Run `step`, and repeat it while another process's lock prevents it."""
        while True:
            try:
                step()
                return
            except sqlite3.OperationalError as error:
                # BEGIN has succeeded, so the statement itself met a lock. A transaction whose snapshot is too old would
                # fail again however long it waits: only starting again helps, and that is not for this method to do.
                if opening is not None and opening.is_done:
                    raise
                await_(self._wait_for(error, until))

    async def _wait_for(self, error: sqlite3.OperationalError, until: float) -> None:
        """Pause, if another process's lock caused `error` and `until` has not passed; otherwise raise `error`."""
        line = self._line
        if not is_locked(error) or line.monotonic() >= until:
            raise error
        low, high = BUSY_PAUSE_S
        await asyncio.sleep(low + (high - low) * line.draw())

    def commit(self, commit: Callable[[], None]) -> None:
        """Run `commit` in SQLAlchemy's greenlet, and repeat it while another process's reader prevents the write."""
        # Without WAL, a reader's shared lock makes COMMIT fail with BUSY. The transaction stays open then and its
        # changes stay in memory, so the same COMMIT can be sent again.
        self._insist(commit, self._until())

    def end(self) -> None:
        """The transaction was committed or rolled back, or its connection is gone: let the next writer in."""
        self._opening = None
        self._has_lock = False
        if self._is_writing:
            self._is_writing = False
            self._line.give_back()
