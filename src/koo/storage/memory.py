"""A store that ends with the process: for tests, and for scripts that want no file."""

from __future__ import annotations

from koo.clock import SYSTEM_CLOCK, Clock
from koo.storage.exchanges import MemoryExchange
from koo.storage.ledger import Ledger


class MemoryLedger(Ledger):
    """A ledger whose treasuries are its own, so that it answers itself at once."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self.exchange = MemoryExchange(clock)
        super().__init__(self.exchange, clock)
