"""The connections of one pool: the age of each, its generation, and the scope that occupies it.

SQLAlchemy measures the age of connections in wall time and drops a whole pool by it: after one lost connection and a
clock step, every checkout reconnects. A record counts in monotonic time and belongs to a *generation*: when all
connections are known to be useless (a silent server, a failover), the number rises, and each older connection is
replaced when it is next taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from sqlalchemy.pool import ConnectionPoolEntry

from koo.database.connects import Connects
from koo.database.drivers.base import Driver
from koo.database.faults import ScopeStage
from koo.database.sqlite_writes import SqliteTransaction
from koo.errors import CommitOutcomeUnknown
from koo.monitoring.pool import PoolMetrics
from koo.options import DatabaseOptions
from koo.sqlstates import Meaning

AGE_JITTER = 0.1
"""A connection's life is shortened by up to this share: those opened together must not all be replaced together."""


class Stale(Exception):
    """A pooled connection is dead, and the block has not begun: take another one silently."""


class Occupant(Protocol):
    """A scope as the hooks inside SQLAlchemy see it."""

    statements: int
    """How many statements have succeeded."""
    leaving: bool
    """The block has ended: what follows is sent by the scope itself."""
    committed: bool
    """The block has committed part of its work."""
    left_at: float
    """When the last statement ended, in monotonic seconds."""
    statement: str | None
    """The last statement that was sent; only its first words are ever shown."""

    @property
    def is_unused(self) -> bool:
        """Whether the scope has sent nothing, so that its COMMIT or the loss of its connection changes nothing."""
        ...

    def enter(self, record: ConnectionRecord, stage: ScopeStage) -> float:
        """Called before a statement or COMMIT is sent; returns the time. Raises `DatabaseError` to prevent it."""
        ...

    def leave(self, record: ConnectionRecord, began: float, succeeded: bool) -> float:
        """Called after the statement or COMMIT; returns how many seconds it took."""
        ...

    def report(self, error: BaseException, record: ConnectionRecord, lost: bool) -> bool:
        """Record an error of the engine. Returns whether its connection must be closed; `lost` if it is known to be."""
        ...

    def has_reported(self, error: BaseException) -> bool:
        """Whether `error` is the last one reported."""
        ...

    def take_instead(self) -> Exception | None:
        """The error to raise instead of the last one reported, or None."""
        ...

    def rolled_back(self) -> Exception:
        """The error for a COMMIT that the server turned into a rollback."""
        ...

    def mended(self) -> None:
        """After a ROLLBACK: an earlier failed statement no longer prevents a COMMIT."""
        ...

    def may_have_written(self) -> bool:
        """Whether the next COMMIT could change anything."""
        ...

    def lost_in_commit(self, record: ConnectionRecord, error: Exception, lost: bool) -> Meaning | None:
        """Count an error of COMMIT; returns its meaning if the transaction may have happened, otherwise None."""
        ...

    def not_committed(self, meaning: Meaning) -> Exception:
        """The error for a COMMIT that was lost and did not happen."""
        ...

    def count_unknown(self) -> None: ...

    def unknown_outcome(self, key: str | None = None) -> CommitOutcomeUnknown:
        """The error for a COMMIT whose outcome is unknown."""
        ...


class ConnectionRecord:
    """One connection. `busy`: a statement is running; `occupant`: the scope that uses it; `is_open`: a transaction has
    begun, and the hooks have seen no COMMIT or ROLLBACK; `wrote`: the transaction has certainly written.
    """

    __slots__ = (
        "_loop", "_place", "aborted", "adapted", "busy", "driver", "expires_at", "fresh", "generation", "idle_since",
        "is_open", "occupant", "transaction", "wrote",
    )  # fmt: skip

    def __init__(
        self,
        adapted: Any,
        driver: Driver,
        *,
        now: float,
        expires_at: float,
        generation: int = 0,
        place: ConnectionPoolEntry | None = None,
    ) -> None:
        self._place = place
        self._loop = asyncio.get_running_loop()
        self.adapted = adapted
        self.driver = driver
        self.expires_at = expires_at
        self.generation = generation
        self.idle_since = now
        self.fresh = True
        self.aborted = False
        self.busy = False
        self.is_open = self.wrote = False
        self.occupant: Occupant | None = None
        self.transaction: SqliteTransaction | None = None  # always None on PostgreSQL

    @property
    def connection(self) -> Any:
        """The driver's own connection."""
        return self.adapted.driver_connection

    @property
    def is_idle(self) -> bool:
        """Whether it is in its pool, and no one uses it."""
        return self._place is not None and not self._place.in_use

    @property
    def is_closed(self) -> bool:
        return self.aborted or self.driver.is_closed(self.connection)

    @property
    def is_hung_up(self) -> bool:
        """Whether nothing can be sent any more; also if the driver has not noticed."""
        return self.is_closed or self.driver.is_hung_up(self.connection)

    def has_ended(self) -> bool:
        """Whether the transaction has ended without the hooks seeing it."""
        if not self.is_open:
            return False
        transaction = self.transaction
        return transaction.has_ended if transaction is not None else self.driver.has_ended(self.connection)

    def end_transaction(self) -> None:
        """The transaction or its connection has ended: on SQLite, let the next writer in."""
        if self.transaction is not None:
            self.transaction.end()
            self.transaction = None

    def abort(self) -> None:
        """Cut the connection off, without a message to the server: a task that is waiting for it gets an error now."""
        if self.aborted:
            return
        self.aborted = True
        with suppress(RuntimeError):  # its event loop is closed, and its socket too
            self.driver.cut_off(self.connection)

    def leave_to_parent(self) -> None:
        """In a forked child: treat the connection as lost, and leave it to the parent."""
        self.aborted = True
        with suppress(Exception):  # the driver does not reveal its socket: leave it untouched
            self.driver.sever(self.connection)

    def abort_in(self, seconds: float) -> asyncio.TimerHandle:
        """Cut the connection off after `seconds`, unless the timer is cancelled before."""
        return self._loop.call_later(seconds, self.abort)

    async def cancel(self, within_s: float) -> None:
        """Request that the server stop the running statement. Best effort: to be sure, call `abort_in` as well."""
        try:
            await self.driver.cancel(self.connection, within_s)
        except Exception:  # noqa: BLE001 - any driver's error; the timer of `abort_in` remains
            return


class ConnectionRecords:
    """The records of all open connections of one pool, with the metrics that its hooks and transcripts count.

    `by_connection` is keyed by SQLAlchemy's adapted connections. `connects` limits how new ones are opened.
    """

    def __init__(
        self,
        driver: Driver,
        options: DatabaseOptions,
        metrics: PoolMetrics,
        monotonic: Callable[[], float],
        draw: Callable[[], float],
    ) -> None:
        self.driver = driver
        self.options = options
        self.metrics = metrics
        self.monotonic = monotonic
        self.by_connection: dict[Any, ConnectionRecord] = {}
        self.connects = Connects(options.connect_concurrency, options.pool_timeout_s, monotonic, draw)
        self.generation = 0
        self.in_haste = False
        self._draw = draw

    def __len__(self) -> int:
        return len(self.by_connection)

    def count_idle(self) -> int:
        """How many connections a caller could take from the pool now."""
        return sum(record.is_idle for record in self.by_connection.values())

    def add(self, adapted: Any, place: ConnectionPoolEntry) -> None:
        """Add a connection that was just opened, for this place in the pool."""
        now = self.monotonic()
        age_s = self.options.pool_recycle_s * (1.0 - AGE_JITTER * self._draw())
        self.by_connection[adapted] = ConnectionRecord(
            adapted, self.driver, now=now, expires_at=now + age_s, generation=self.generation, place=place
        )

    def of(self, connection: Any) -> ConnectionRecord:
        """The record of an SQLAlchemy `Connection`."""
        return self.by_connection[connection.connection.dbapi_connection]

    def check(self, record: ConnectionRecord, now: float) -> None:
        """Raise `Stale` for a connection that is too old or known to be useless."""
        # Something left a transaction open, such as a block that sent BEGIN on the driver's connection. The driver
        # would now begin nothing, or only a savepoint: the scope's work would join that transaction and end with it.
        if self.driver.is_in_transaction(record.connection):
            record.abort()
            raise Stale
        # The connection is cut off, because an orderly close waits for a server that is known not to respond. An
        # expired connection (below) is healthy, and SQLAlchemy closes it cleanly.
        if record.generation != self.generation:
            record.abort()
            raise Stale
        if now >= record.expires_at:
            raise Stale

    def distrust_all(self) -> None:
        """Mark every open connection to be replaced when it is next taken."""
        # They are not closed here, inside a hook: those in use belong to scopes that may still succeed. All callers
        # will reconnect soon, and so will other processes, so the connects are spread out.
        self.generation += 1
        self.connects.unsettle()

    def drop(self, adapted: Any) -> ConnectionRecord | None:
        """Remove a connection that is about to be closed; returns its record."""
        # `abort_all` in `hasten` does not reach a connection that returns to the pool only afterwards: its orderly
        # close would wait for the same server that did not respond before.
        record = self.by_connection.pop(adapted, None)
        if record is not None and self.in_haste:
            record.abort()
        return record

    def hasten(self) -> None:
        """Cut off every connection, and from now on also each one whose orderly close begins."""
        self.in_haste = True
        self.abort_all()

    def leave_to_parent(self) -> None:
        """In a forked child: do `ConnectionRecord.leave_to_parent` for every connection."""
        for record in self.by_connection.values():
            record.leave_to_parent()

    def abort_all(self, *, occupied_only: bool = False) -> None:
        """Cut off every connection, or only those that a scope occupies."""
        for record in tuple(self.by_connection.values()):
            if record.occupant is not None or not occupied_only:
                record.abort()
