"""SQLite has one writer. This process's writers stand in a queue; only other processes are polled for.

A `SqliteTransaction` begins as late as its statements allow (`koo.database.sqlite` explains why): a read opens a
snapshot if the scope keeps one, a write first waits for its turn in the queue, then for SQLite's own lock.
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
"""Between two attempts to begin a write while another process holds the lock."""


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
        """Become the writer, or raise `PoolSaturated` at `until`."""
        if not self.take():
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
            self.leave(waiter, granted=waiter.done() and not waiter.cancelled())
            if not isinstance(error, TimeoutError):
                raise
            held = f", held for {describe_s(self.monotonic() - self._since)}"
            raise PoolSaturated(
                SERVICE, f"SQLite has one writer at a time, and another scope is writing{held}", 1.0
            ) from None


class SqliteTransaction:
    """One transaction on aiosqlite's `connection`, of a scope in `mode`.

    It begins in the same turn of the connection's thread that runs its first statement: `prepare`, then `run`.
    """

    __slots__ = (
        "_begin_by",
        "_connection",
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
        self._is_writing = False
        self.rolled_back = False

    @property
    def is_untouched(self) -> bool:
        """Whether nothing has begun, and nothing is about to."""
        return self._opening is None

    @property
    def has_ended(self) -> bool:
        """Whether SQLite's transaction has ended although nothing here ended it."""
        is_open = self._opening is not None and self._opening.is_done
        return is_open and not self._connection.in_transaction

    def note_failure(self) -> None:
        """A statement has failed: for some errors SQLite ends the whole transaction (a full disk, INSERT OR ROLLBACK).

        Later statements would then be committed one by one, and COMMIT would have nothing left to do.
        """
        self.rolled_back = self.rolled_back or self.has_ended

    async def prepare(self, need: Need) -> None:
        """Before a statement: prepare what it needs; a write first waits for its turn in the queue.

        Raises `DatabaseError` for a write in a read-only scope, and after SQLite has ended the transaction.
        """
        if self.rolled_back:
            raise DatabaseError(
                SERVICE,
                "SQLite has rolled this transaction back after an error that the block caught: call session.rollback(),"
                " or leave the scope",
                kind=Kind.INVALID_REQUEST,
            )
        if need is Need.SAVEPOINT:
            # Outside a transaction it would open one, with a snapshot that may be too old for the next write.
            need = Need.WRITE if self._mode is Mode.COMMITTED else Need.READ
        if need is Need.WRITE:
            if self._mode is Mode.READER:
                raise DatabaseError(
                    SERVICE, "the scope is read-only: open it without readonly=True", kind=Kind.READ_ONLY
                )
            if not self._is_writing:
                await self._become_writer()
        elif need is Need.READ and self._mode is not Mode.COMMITTED and self._opening is None:
            self._opening = Opening("BEGIN")

    async def begin_writing(self) -> None:
        """Wait for the turn, then take SQLite's own lock at once. A snapshot that is open stays as it is."""
        await self._become_writer()
        await in_greenlet(self.begin)

    async def _become_writer(self) -> None:
        until = self._begin_by = self._until()
        await self._line.enter(self._writer, until)
        self._is_writing = True
        if self._opening is None:
            self._opening = Opening("BEGIN IMMEDIATE")

    def _until(self) -> float:
        return min(self._writer.deadline, self._line.monotonic() + self._line.wait_s)

    def begin(self) -> None:
        """Begin what was prepared, in a turn of its own; call it in SQLAlchemy's greenlet."""
        if self._opening is not None and not self._opening.is_done:
            self.run(lambda: await_(self._connection.take_turn()))

    def run(self, statement: Callable[[], object]) -> None:
        """Run `statement` in SQLAlchemy's greenlet, and in the same turn begin what was prepared for it.

        While another process holds SQLite's lock nothing has begun, and both are tried again.
        """
        opening = self._opening
        if opening is None or opening.is_done:
            statement()
            return
        self._connection.opening = opening
        try:
            self._insist(statement, self._begin_by, opening)
        except Exception:
            if not opening.is_done:
                self.end()
            raise
        finally:
            self._connection.opening = None
            if opening.is_done and self._is_writing:
                self._line.metrics.is_read_only = False

    def _insist(self, step: Callable[[], object], until: float, opening: Opening | None = None) -> None:
        """Run `step`, repeated while another process's lock prevents it; a statement repeats from its opening."""
        while True:
            try:
                step()
                return
            except sqlite3.OperationalError as error:
                if opening is not None and opening.is_done:
                    raise
                await_(self._wait_for(error, until))

    async def _wait_for(self, error: sqlite3.OperationalError, until: float) -> None:
        """Pause for another process's lock; raises `error` if it is not a lock, or the time is over."""
        line = self._line
        if not is_locked(error) or line.monotonic() >= until:
            raise error
        low, high = BUSY_PAUSE_S
        await asyncio.sleep(low + (high - low) * line.draw())

    def commit(self, commit: Callable[[], None]) -> None:
        """Run `commit` in SQLAlchemy's greenlet; repeated while another process's reader prevents the write."""
        self._insist(commit, self._until())

    def end(self) -> None:
        """Committed, rolled back, or its connection is gone: the next writer's turn."""
        self._opening = None
        if self._is_writing:
            self._is_writing = False
            self._line.give_back()
