"""The state store of one process: its ledger, signals and alert episodes over one thread and one connection.

It belongs to the event loop on which it was first used, until `close()`. After that it may be opened again on any loop.
If its loop has ended without a `close()`, it may be used on another loop directly. A store that cannot be reached still
counts as open: it keeps trying, `trouble` gives the reason, and each use raises `StoreUnavailable` until it succeeds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from koo.clock import SYSTEM_CLOCK, Clock
from koo.storage.base import StoreUnavailable
from koo.storage.entries import Entries
from koo.storage.episodes import SqlEpisodes
from koo.storage.exchanges import SqlExchange
from koo.storage.executor import Executor
from koo.storage.history import SqlHistory
from koo.storage.incidents import SqlIncidents
from koo.storage.leasing import Leasing, SqlLimitExchange
from koo.storage.ledger import Ledger
from koo.storage.notices import SqlNotices
from koo.storage.past import Past
from koo.storage.roll_call import Fenced, SqlRollCall
from koo.storage.signals import SqlSignals
from koo.storage.silences import SqlSilences
from koo.storage.unsettled import SqlUnsettled

log = logging.getLogger("koo")

FILE_BEAT_S = 0.1
"""A commit to a file takes a millisecond. Frequent beats keep purses small, so a dead process leaves little behind."""
SERVER_BEAT_S = 1.0
"""At this interval a hundred processes make a hundred transactions a second."""


class SqlStore:
    """The state store at `url`: `sqlite:///file` (relative to `home`) or `postgresql://…`; a `koo.storage.base.Store`.

    `timeout_s` is the longest time that a caller waits for it. `beat_s` is the time between two beats of its ledger, by
    default a tenth of a second for a file and a second for a server. Nothing is opened before the first use. Raises
    `ConfigurationError` for any other URL.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock = SYSTEM_CLOCK,
        home: Path = Path(),
        timeout_s: float = 2.0,
        beat_s: float | None = None,
    ) -> None:
        from koo.storage import sql  # importing SQLAlchemy takes longer than all of koo

        target = sql.read_url(url, home)
        self.file = target if isinstance(target, Path) else None
        self.clock = clock
        # `make_backend` is looked up when the thread starts, so that a test can replace it.
        self.executor = Executor(lambda timeout_s: sql.make_backend(target, timeout_s), clock, timeout_s)
        is_file = isinstance(target, Path)
        exchange = SqlExchange(self.executor, beat_s or (FILE_BEAT_S if is_file else SERVER_BEAT_S))
        self.ledger = Ledger(exchange, clock)
        self.executor.watch(self.ledger.store_changed)
        self.leasing = Leasing(SqlLimitExchange(self.executor), self.ledger, clock)
        self.executor.watch(self.leasing.store_changed)
        self.entries = Entries(self.executor)
        self.unsettled = SqlUnsettled(self.executor)
        self.past = Past(self.executor)
        self.history = SqlHistory(self.executor)
        self.incidents = SqlIncidents(self.executor)
        self.signals = SqlSignals(self.executor)
        self.episodes = SqlEpisodes(self.executor)
        self.silences = SqlSilences(self.executor)
        self.notices = SqlNotices(self.executor)
        self.roll_call = SqlRollCall(self.executor)

    def __repr__(self) -> str:
        state = "closed" if not self.is_open else self.trouble or "open"
        return f"<SqlStore {state}>"

    @property
    def is_open(self) -> bool:
        """True while its thread is running."""
        return self.executor.is_open

    @property
    def process(self) -> str:
        """This process's name in the store; a new one each time the store is opened."""
        return self.executor.process

    @property
    def trouble(self) -> str | None:
        """Why the store is unreachable, as a sentence; None if no trouble is known."""
        return self.executor.trouble

    def as_leader(self, epoch: int) -> LedStore:
        """The store with the leader's rights, for the epoch in which this process leads."""
        return LedStore(Fenced(self.executor, epoch))

    def watch(self, changed: Callable[[str | None], None]) -> None:
        """Call `changed` on the loop when the store becomes unreachable (with the reason) or is back (with None)."""
        self.executor.watch(changed)

    async def open(self) -> None:
        """Connect, create or upgrade the tables, read today's numbers. Raises `StoreUnavailable`, and keeps trying.

        Raises RuntimeError while it is open on another event loop that still runs.
        """
        self.leasing.reopen()
        await self.ledger.refresh()

    async def close(self) -> None:
        """Write what is pending, as far as the store allows, and end the thread. It may be opened again."""
        try:
            # The leases end first, because finishing them books the day's units that calls have taken, and those are in
            # the ledger's purses, whose rest the last beat returns.
            await self.leasing.finish()
            await self.ledger.finish()
        except StoreUnavailable as error:
            log.error(
                "the state store did not receive the last spending (%s): it stays booked at its bound", error
            )
        finally:
            await self.executor.stop()
            self.ledger.leave()

    async def __aenter__(self) -> SqlStore:
        await self.open()
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await self.close()


class LedStore:
    """The store with the leader's rights: each transaction first checks that this process still leads."""

    def __init__(self, transactions: Fenced) -> None:
        self.past = Past(transactions)
        self.history = SqlHistory(transactions)
        self.incidents = SqlIncidents(transactions)
        self.episodes = SqlEpisodes(transactions)
        self.silences = SqlSilences(transactions)
        self.notices = SqlNotices(transactions)
        self.roll_call = SqlRollCall(transactions)
