"""The connections of one pool: how old each is, of which generation, and which scope occupies it.

SQLAlchemy measures the age of connections in wall time and throws a whole pool away by it: after one lost connection
and a step of the clock each checkout reconnects. A record counts in monotonic time, and belongs to a *generation*: when
all connections are known to be useless (a black hole, a failover) the number goes up, and each older connection is
replaced when it is next taken.
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
"""A connection lives up to this share shorter: those that were opened together must not be replaced together."""


class Stale(Exception):
    """A pooled connection turned out to be dead before the block began: take another, unseen."""


class Occupant(Protocol):
    """A scope, as far as the hooks inside SQLAlchemy know it."""

    statements: int
    """How many have succeeded."""
    leaving: bool
    """The block has ended: what comes now is the scope's own."""
    committed: bool
    """The block has committed a part of its work."""
    statement: str | None
    """The last one that was sent; only its first words are ever shown."""

    def enter(self, record: ConnectionRecord, stage: ScopeStage) -> float:
        """Before a statement or COMMIT is sent; returns the time. Raises `DatabaseError` where it must not be."""
        ...

    def leave(self, record: ConnectionRecord, began: float, succeeded: bool) -> float:
        """After it; returns the seconds that it took."""
        ...

    def report(
        self, context: ExceptionContext, record: ConnectionRecord, error: BaseException
    ) -> Exception | None:
        """An error of the engine; returns what is raised in its place, or None."""
        ...

    def rolled_back(self) -> Exception:
        """The error for a COMMIT that is a rollback."""
        ...

    def mended(self) -> None:
        """ROLLBACK: what a failed statement has spoiled is gone."""
        ...

    def may_have_written(self) -> bool:
        """Whether the COMMIT to come may change something."""
        ...

    def lost_in_commit(self, record: ConnectionRecord, error: Exception, lost: bool) -> Meaning | None:
        """An error of COMMIT: its meaning where the transaction may have happened, else None."""
        ...

    def not_committed(self, meaning: Meaning) -> Exception:
        """The error for a COMMIT that was lost and did not happen."""
        ...

    def count_unknown(self) -> None: ...

    def unknown_outcome(self, key: str | None = None) -> CommitOutcomeUnknown:
        """The error for a COMMIT whose outcome stays unknown."""
        ...


class ConnectionRecord:
    """One connection. `busy`: a statement was sent and is not answered; `occupant`: the scope that has it;
    `is_open`: its transaction has begun, and neither COMMIT nor ROLLBACK came by here. `wrote`: it certainly wrote.
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
        self.transaction: SqliteTransaction | None = None  # the servers keep track of theirs themselves

    @property
    def connection(self) -> Any:
        """The driver's own connection."""
        return self.adapted.driver_connection

    @property
    def is_closed(self) -> bool:
        return self.aborted or self.driver.is_closed(self.connection)

    def has_ended(self) -> bool:
        """Whether the transaction has ended although nothing that came by here has ended it."""
        if not self.is_open:
            return False
        transaction = self.transaction
        return transaction.has_ended if transaction is not None else self.driver.has_ended(self.connection)

    def end_transaction(self) -> None:
        """The transaction has ended, or its connection: on SQLite that is the next writer's turn."""
        if self.transaction is not None:
            self.transaction.end()
            self.transaction = None

    def abort(self) -> None:
        """Cut it off: a task that waits for it gets an error now. The other side is not asked."""
        if self.aborted:
            return
        self.aborted = True
        with suppress(RuntimeError):  # its event loop has ended, and the socket with it
            self.driver.cut_off(self.connection)

    def leave_to_parent(self) -> None:
        """In a forked child: the connection is the parent's, and lost here."""
        self.aborted = True
        with suppress(Exception):  # a driver that cannot say which socket it has: it is left untouched
            self.driver.sever(self.connection)

    def abort_in(self, seconds: float) -> asyncio.TimerHandle:
        """Cut it off then, unless the timer is cancelled before."""
        return self._loop.call_later(seconds, self.abort)

    async def cancel(self, within_s: float) -> None:
        """Ask the other side to stop the running statement. Best effort: to be sure, call `abort_in` as well."""
        try:
            await self.driver.cancel(self.connection, within_s)
        except Exception:  # noqa: BLE001 - any driver's error; the cutting off follows
            return


class ConnectionRecords:
    """The records of all open connections of one pool, and what its hooks and transcripts count by.

    `by_connection`: SQLAlchemy's adapted connections are the keys. `connects`: how new ones are opened.
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
            # Drivers begin nothing then, or a savepoint: the scope would be a part of that transaction.
            record.abort()
            raise Stale
        if record.generation != self.generation:
            record.abort()  # an orderly goodbye to a black hole takes seconds
            raise Stale
        if now >= record.expires_at:
            raise Stale

    def distrust_all(self) -> None:
        """Each connection opened before now is replaced when it is next taken."""
        self.generation += 1
        self.connects.unsettle()

    def drop(self, adapted: Any) -> ConnectionRecord | None:
        """A connection is about to be closed; returns its record."""
        record = self.by_connection.pop(adapted, None)
        if record is not None and self.in_haste:
            record.abort()
        return record

    def hasten(self) -> None:
        """Cut off every connection, and those too that are only now about to be closed in order."""
        self.in_haste = True
        self.abort_all()

    def leave_to_parent(self) -> None:
        """In a forked child: see `ConnectionRecord.leave_to_parent`."""
        for record in self.by_connection.values():
            record.leave_to_parent()

    def abort_all(self, *, occupied_only: bool = False) -> None:
        """Cut off every connection, or those that a scope has."""
        for record in tuple(self.by_connection.values()):
            if record.occupant is not None or not occupied_only:
                record.abort()
