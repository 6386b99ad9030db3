"""The connections of one pool: how old each is, its generation, and which scope occupies it.

SQLAlchemy measures the age of connections in wall time and drops a whole pool by it: after one lost connection and a
clock step, each checkout reconnects. A record counts in monotonic time, and belongs to a *generation*: when all
connections are known to be useless (a black hole, a failover), the number rises, and each older connection is replaced
when it is next taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from sqlalchemy.engine import ExceptionContext

from koo.database.connects import Connects
from koo.database.drivers.base import Driver
from koo.database.faults import ScopeStage
from koo.database.sqlite_writes import SqliteTransaction
from koo.errors import CommitOutcomeUnknown
from koo.monitoring.pool import PoolMetrics
from koo.options import DatabaseOptions
from koo.sqlstates import Meaning

AGE_JITTER = 0.1
"""A connection's life is shorter by up to this share: those opened together must not be replaced together."""


class Stale(Exception):
    """A pooled connection turned out to be dead before the block began: silently take another."""


class Occupant(Protocol):
    """A scope, as far as the hooks inside SQLAlchemy know it."""

    statements: int
    """How many have succeeded."""
    leaving: bool
    """The block has ended: what follows is the scope's own."""
    committed: bool
    """The block has committed part of its work."""
    statement: str | None
    """The last one that was sent; only its first words are ever shown."""

    def enter(self, record: ConnectionRecord, stage: ScopeStage) -> float:
        """Before a statement or COMMIT is sent; returns the time. Raises `DatabaseError` if it must not be sent."""
        ...

    def leave(self, record: ConnectionRecord, began: float, succeeded: bool) -> float:
        """After it; returns how many seconds it took."""
        ...

    def report(
        self, context: ExceptionContext, record: ConnectionRecord, error: BaseException
    ) -> Exception | None:
        """An error of the engine; returns what to raise instead, or None."""
        ...

    def rolled_back(self) -> Exception:
        """The error for a COMMIT that the server answers with a rollback."""
        ...

    def mended(self) -> None:
        """ROLLBACK: a failed statement no longer spoils the transaction."""
        ...

    def may_have_written(self) -> bool:
        """Whether the next COMMIT may change something."""
        ...

    def lost_in_commit(self, record: ConnectionRecord, error: Exception, lost: bool) -> Meaning | None:
        """An error of COMMIT: its meaning if the transaction may have happened, else None."""
        ...

    def not_committed(self, meaning: Meaning) -> Exception:
        """The error for a COMMIT that was lost and did not happen."""
        ...

    def count_unknown(self) -> None: ...

    def unknown_outcome(self, key: str | None = None) -> CommitOutcomeUnknown:
        """The error for a COMMIT whose outcome stays unknown."""
        ...


class ConnectionRecord:
    """One connection. `busy`: a statement was sent and not yet answered; `occupant`: the scope that has it; `is_open`:
    its transaction has begun, and no COMMIT or ROLLBACK has been seen. `wrote`: it certainly wrote.
    """

    __slots__ = (
        "_loop", "aborted", "adapted", "busy", "driver", "expires_at", "fresh", "generation", "idle_since",
        "is_open", "occupant", "transaction", "wrote",
    )  # fmt: skip

    def __init__(
        self, adapted: Any, driver: Driver, *, now: float, expires_at: float, generation: int = 0
    ) -> None:
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
        self.transaction: SqliteTransaction | None = None  # servers keep track of theirs themselves

    @property
    def connection(self) -> Any:
        """The driver's own connection."""
        return self.adapted.driver_connection

    @property
    def is_closed(self) -> bool:
        return self.aborted or self.driver.is_closed(self.connection)

    def has_ended(self) -> bool:
        """Whether the transaction has ended by a way that the hooks do not see."""
        if not self.is_open:
            return False
        transaction = self.transaction
        return transaction.has_ended if transaction is not None else self.driver.has_ended(self.connection)

    def end_transaction(self) -> None:
        """The transaction or its connection has ended: on SQLite the next writer may go."""
        if self.transaction is not None:
            self.transaction.end()
            self.transaction = None

    def abort(self) -> None:
        """Cut it off: a task waiting for it gets an error now. The other side is not asked."""
        if self.aborted:
            return
        self.aborted = True
        with suppress(RuntimeError):  # its event loop has ended, and the socket with it
            self.driver.cut_off(self.connection)

    def leave_to_parent(self) -> None:
        """In a forked child: the connection is the parent's, and lost here."""
        self.aborted = True
        with suppress(Exception):  # a driver that cannot name its socket: leave it untouched
            self.driver.sever(self.connection)

    def abort_in(self, seconds: float) -> asyncio.TimerHandle:
        """Cut it off after `seconds`, unless the timer is cancelled before."""
        return self._loop.call_later(seconds, self.abort)

    async def cancel(self, within_s: float) -> None:
        """Ask the other side to stop the running statement. Best effort: to be sure, call `abort_in` as well."""
        try:
            await self.driver.cancel(self.connection, within_s)
        except Exception:  # noqa: BLE001 - any driver's error; the cutting off follows
            return


class ConnectionRecords:
    """The records of all open connections of one pool, and what its hooks and transcripts count.

    `by_connection`: keyed by SQLAlchemy's adapted connections. `connects`: how new ones are opened.
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
        self.connects = Connects(options.connect_concurrency, monotonic, draw)
        self.generation = 0
        self.in_haste = False
        self._draw = draw

    def __len__(self) -> int:
        return len(self.by_connection)

    def add(self, adapted: Any) -> None:
        """A connection was opened."""
        now = self.monotonic()
        age_s = self.options.pool_recycle_s * (1.0 - AGE_JITTER * self._draw())
        self.by_connection[adapted] = ConnectionRecord(
            adapted, self.driver, now=now, expires_at=now + age_s, generation=self.generation
        )

    def of(self, connection: Any) -> ConnectionRecord:
        """The record of an SQLAlchemy `Connection`."""
        return self.by_connection[connection.connection.dbapi_connection]

    def check(self, record: ConnectionRecord, now: float) -> None:
        """Raises `Stale` for a connection that is too old, or known to be useless."""
        if self.driver.is_in_transaction(record.connection):
            # Drivers then begin nothing, or only a savepoint: the scope would become part of that transaction.
            record.abort()
            raise Stale
        if record.generation != self.generation:
            record.abort()  # closing in order takes seconds on a black hole
            raise Stale
        if now >= record.expires_at:
            raise Stale

    def distrust_all(self) -> None:
        """Replace each connection opened before now when it is next taken."""
        self.generation += 1
        self.connects.unsettle()

    def drop(self, adapted: Any) -> ConnectionRecord | None:
        """A connection is about to be closed; returns its record."""
        record = self.by_connection.pop(adapted, None)
        if record is not None and self.in_haste:
            record.abort()
        return record

    def hasten(self) -> None:
        """Cut off every connection, including those that are only now being closed in order."""
        self.in_haste = True
        self.abort_all()

    def leave_to_parent(self) -> None:
        """In a forked child: see `ConnectionRecord.leave_to_parent`."""
        for record in self.by_connection.values():
            record.leave_to_parent()

    def abort_all(self, *, occupied_only: bool = False) -> None:
        """Cut off every connection, or only those that a scope occupies."""
        for record in tuple(self.by_connection.values()):
            if record.occupant is not None or not occupied_only:
                record.abort()
