"""The state store's real statements on an SQLite database in memory, run at once: a store for virtual time.

The store's own thread has no place in virtual time. Each `InlineStore` is one process; those on one `Memory` share it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool

from koo.clock import Clock
from koo.storage import schema
from koo.storage.base import Store, StoreUnavailable
from koo.storage.executor import Executor
from koo.storage.notices import SqlNotices
from koo.storage.sql import SqlTransaction
from koo.storage.transaction import Transaction

T = TypeVar("T")
_numbers = itertools.count(1)


class Memory:
    """One database in memory."""

    def __init__(self) -> None:
        self.engine = create_engine("sqlite://", poolclass=StaticPool)
        with self.engine.begin() as connection:
            schema.prepare(SqlTransaction(connection, "sqlite"))

    def close(self) -> None:
        self.engine.dispose()


class InlineExecutor:
    """Runs work at once; `trouble` set: it raises instead."""

    def __init__(self, memory: Memory, clock: Clock) -> None:
        self.process = f"process-{next(_numbers)}"
        self.clock = clock
        self.trouble: str | None = None
        self._memory = memory

    async def run(self, work: Callable[[Transaction], T], *, exclusive: bool = True) -> T:
        if self.trouble is not None:
            raise StoreUnavailable(self.trouble)
        with self._memory.engine.begin() as connection:
            return work(SqlTransaction(connection, "sqlite"))


class InlineStore:
    """One process's door to a database in memory."""

    def __init__(self, memory: Memory, clock: Clock) -> None:
        self.executor = InlineExecutor(memory, clock)
        self.notices = SqlNotices(cast("Executor", self.executor))

    @property
    def process(self) -> str:
        return self.executor.process

    @property
    def trouble(self) -> str | None:
        return self.executor.trouble

    def as_store(self) -> Store:
        return cast("Store", cast("Any", self))
