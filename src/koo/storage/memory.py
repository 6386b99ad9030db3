"""A store in memory that ends with the process, for tests, benchmarks and proofs."""

from __future__ import annotations

from collections.abc import Callable

from koo.clock import SYSTEM_CLOCK, Clock
from koo.storage.base import StoreUnavailable
from koo.storage.exchanges import MemoryExchange
from koo.storage.ledger import Ledger
from koo.storage.transaction import T, Transaction
from koo.storage.worker import Backend


class MemoryLedger(Ledger):
    """A ledger with its own treasuries in memory, so each beat is answered immediately."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self.exchange = MemoryExchange(clock)
        super().__init__(self.exchange, clock)


def make_tables() -> Backend:
    """Create a store's tables in memory. Several `MemoryTransactions` on them simulate several processes."""
    from koo.storage import sql  # importing SQLAlchemy takes longer than all of koo

    return sql.MemoryBackend()


class MemoryTransactions:
    """One process's transactions on tables in memory. There is no thread, so each runs immediately.

    While `trouble` is set, the store is unreachable for this process.
    """

    def __init__(self, tables: Backend, process: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self.process = process
        self.clock = clock
        self.trouble: str | None = None
        self._tables = tables

    async def run(self, work: Callable[[Transaction], T], *, exclusive: bool = True) -> T:
        """Run `work` in a transaction. Raises `StoreUnavailable` while there is trouble."""
        if self.trouble is not None:
            raise StoreUnavailable(self.trouble)
        results: list[T] = []
        self._tables.transact(lambda tx: results.append(work(tx)), exclusive)
        return results[-1]
