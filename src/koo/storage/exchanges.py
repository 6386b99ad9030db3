"""Where a ledger sends its beats: to treasuries in memory, or to a database through the store's thread."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from koo.clock import Clock
from koo.policies.treasury import Beat, Key, Reply
from koo.storage.executor import Executor
from koo.storage.postings import Posting, book
from koo.storage.transaction import StatementRejected, Transaction
from koo.storage.treasuries import MemoryTreasuries, receive_in

log = logging.getLogger("koo")


class Exchange(Protocol):
    """Where beats are sent. `beat_s` is the time between two of them."""

    beat_s: float

    @property
    def dropped(self) -> int:
        """How many entries the store rejected."""
        ...

    @property
    def trouble(self) -> str | None:
        """Why the store is unreachable; None if no trouble is known."""
        ...

    async def send(self, beat: Beat, postings: Sequence[Posting], *, is_asked: bool) -> Reply:
        """Deliver a beat and its entries in one transaction. Raises `StoreUnavailable`."""
        ...


class MemoryExchange:
    """Treasuries in memory; they end with the process."""

    beat_s = 0.1
    trouble = None
    dropped = 0

    def __init__(self, clock: Clock) -> None:
        self.treasuries = MemoryTreasuries()
        self.postings: dict[str, Posting] = {}
        self._clock = clock

    async def send(self, beat: Beat, postings: Sequence[Posting], *, is_asked: bool) -> Reply:
        """Reply immediately."""
        self.postings |= {posting.id: posting for posting in postings}
        now_ms, beat_ms = int(self._clock.wall() * 1000), int(self.beat_s * 1000)
        return self.treasuries.receive(beat, now_ms, beat_ms, is_asked=is_asked)


class SqlExchange:
    """Treasuries in a database, reached through the store's thread. `dropped` counts the entries it rejected."""

    def __init__(self, executor: Executor, beat_s: float) -> None:
        self.beat_s = beat_s
        self.dropped = 0
        self._executor = executor
        self._opened: set[Key] = set()

    @property
    def trouble(self) -> str | None:
        """Why the store is unreachable."""
        return self._executor.trouble

    async def send(self, beat: Beat, postings: Sequence[Posting], *, is_asked: bool) -> Reply:
        """One transaction. Raises `StoreUnavailable`."""
        try:
            return await self._send(beat, postings, is_asked)
        except StatementRejected:
            # One bad entry aborts the whole transaction. If the same beat were sent again, as after an outage, each
            # repeat would be rejected too, and this process could no longer report any money. So the beat goes first,
            # without entries.
            answer = await self._send(beat, (), is_asked)
        # Then each entry gets a transaction of its own, so that only the bad one is lost. An entry that an earlier,
        # unacknowledged transaction has already written changes nothing, because its id is unique.
        for posting in postings:
            await self._book_alone(posting, beat.process)
        return answer

    async def _send(self, beat: Beat, postings: Sequence[Posting], is_asked: bool) -> Reply:
        wall_ms, beat_ms = int(self._executor.clock.wall() * 1000), int(self.beat_s * 1000)

        def write(tx: Transaction) -> Reply:
            answer = receive_in(tx, beat, wall_ms, beat_ms, is_asked=is_asked, opened=self._opened)
            # This also runs for a repeated beat, whose totals change nothing: only the entries' ids show whether its
            # first transaction was committed. Under a name that belongs to another process nothing is written.
            if answer.is_you:
                book(tx, postings, beat.process)
            return answer

        return await self._executor.run(write)

    async def _book_alone(self, posting: Posting, process: str) -> None:
        try:
            await self._executor.run(lambda tx: book(tx, [posting], process))
        except StatementRejected as error:
            self.dropped += 1
            log.error("%s; the ledger lost an entry of %s, but its money is counted", error, posting.service)
