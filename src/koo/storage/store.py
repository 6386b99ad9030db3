"""The state store of one process: its ledger, quotas, signals and alert episodes over one thread and one connection.

It belongs to the event loop on which it was first used, until `close()`; after that, or when that loop has ended, it
may be used on another one. A store that cannot be reached is open nevertheless: it goes on trying, `trouble` says
why, and each use raises `StoreUnavailable` until it is there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from koo.clock import SYSTEM_CLOCK, Clock
from koo.storage.base import StoreUnavailable
from koo.storage.entries import Entries
from koo.storage.episodes import Episodes
from koo.storage.signals import Signals
from koo.storage.sql_ledger import SqlLedger, SqlQuotas
from koo.storage.transaction import Transaction
from koo.storage.worker import Backend, Job, Worker

log = logging.getLogger("koo")

T = TypeVar("T")

_left_behind: list[Worker] = []
"""Workers of a parent process: closing their connections here would close the parent's."""


class SqlStore:
    """The state store at `url`: `sqlite:///file` (relative to `home`) or `postgresql://…`.

    `timeout_s` is the longest time that anybody waits for it; `linger_s` the time that what is not urgent (settlements,
    counts) waits for company. Nothing is opened before the first use. Raises `ConfigurationError` for another URL.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock = SYSTEM_CLOCK,
        home: Path = Path(),
        timeout_s: float = 2.0,
        linger_s: float = 0.02,
    ) -> None:
        from koo.storage.sql import read_url  # SQLAlchemy is loaded by those who use it.

        self._target = read_url(url, home)
        self.clock = clock
        self.timeout_s = timeout_s
        self._worker: Worker | None = None
        self._watchers: list[Callable[[str | None], None]] = []
        self.process = ""
        self.ledger = SqlLedger(self, linger_s)
        self.quotas = SqlQuotas(self, self.ledger)
        self.entries = Entries(self)
        self.signals = Signals(self)
        self.episodes = Episodes(self)

    def __repr__(self) -> str:
        state = "closed" if not self.is_open else self.trouble or "open"
        return f"<SqlStore {state}>"

    @property
    def is_open(self) -> bool:
        """Is its thread at work?"""
        return self._worker is not None and self._worker.alive

    @property
    def trouble(self) -> str | None:
        """Why the store cannot be used now, as a sentence; None: nothing is known against it."""
        return self._worker.trouble if self._worker is not None else None

    def watch(self, told: Callable[[str | None], None]) -> None:
        """Call `told` on the loop when the store is lost (with the reason) and when it is back (with None)."""
        self._watchers.append(told)

    async def open(self) -> None:
        """Connect, make or upgrade the tables, read today's numbers. Raises `StoreUnavailable`, and goes on trying.

        Raises RuntimeError while it is open on another event loop that still runs.
        """
        await self.ledger.refresh()

    async def close(self) -> None:
        """Write what waits, as far as the store lets us, and end the thread. It may be opened again."""
        worker = self._worker
        if worker is None:
            return
        if not worker.alive:
            self._worker = None
            return
        try:
            await self.ledger.flush()
        except StoreUnavailable as error:
            log.error("%s bookings were not written (%s); their bounds will be", self.ledger.waiting, error)
        finally:
            self._worker = None
            worker.stop()
            await worker.stopped(self.timeout_s)

    async def __aenter__(self) -> SqlStore:
        await self.open()
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await self.close()

    async def run(self, work: Callable[[Transaction], T], *, exclusive: bool = True) -> T:
        """Run `work` in a transaction, in the store's thread. `exclusive`: it writes.

        Raises `StoreUnavailable`, after `timeout_s` at the latest: then `work` may still be done, or not.
        """
        call = Call(work, exclusive, asyncio.get_running_loop().create_future())
        self.submit(call)
        return await self.wait(call.result)

    async def wait(self, future: asyncio.Future[T]) -> T:
        """`future`, or `StoreUnavailable` when it takes too long."""
        try:
            async with asyncio.timeout(self.timeout_s):
                return await future
        except TimeoutError:
            if future.done() and not future.cancelled():
                return future.result()  # It was the loop that was held up, not the store.
            reason = f"the state store did not answer within {self.timeout_s:g} s"
            if self._worker is not None:
                self._worker.cut_if_stuck(self.timeout_s, reason)
            raise StoreUnavailable(reason) from None

    def submit(self, job: Job) -> None:
        """Do `job` in its turn; starts the thread at first use. On the store's loop."""
        self.start().submit(job)

    def start(self) -> Worker:
        """The thread that works for the running loop; a new one where there is none. Opens nothing yet.

        Raises RuntimeError while the store is in use on another loop.
        """
        loop = asyncio.get_running_loop()
        worker = self._worker
        if worker is not None and worker.alive:
            if worker.loop is loop:
                return worker
            raise RuntimeError(
                "the state store is in use on another event loop: close it there first, or make a second SqlStore"
            )
        if worker is not None:
            self._leave(worker)
        return self._start(loop)

    def _start(self, loop: asyncio.AbstractEventLoop) -> Worker:
        from koo.storage.sql import make_backend

        self.process = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        backend: Backend = make_backend(self._target, self.timeout_s)
        worker = self._worker = Worker(backend, loop, self._tell)
        worker.start()
        self.ledger.begin()
        return worker

    def _leave(self, worker: Worker) -> None:
        worker.stop()
        _left_behind.append(worker)

    def _tell(self, trouble: str | None) -> None:
        if trouble is not None:
            log.warning("%s", trouble)
        else:
            self.ledger.submit()  # What could not be written waits.
        for told in self._watchers:
            told(trouble)


class Call(Generic[T]):
    """A function's turn, and its result for the one who waits."""

    def __init__(self, work: Callable[[Transaction], T], exclusive: bool, result: asyncio.Future[T]) -> None:
        self.exclusive = exclusive
        self.result = result
        self._work = work
        self._value: T

    def wanted(self) -> bool:
        return not self.result.cancelled()

    def write(self, tx: Transaction) -> None:
        self._value = self._work(tx)

    def after(self, error: Exception | None) -> None:
        pass

    def tell(self, error: Exception | None) -> None:
        if self.result.done():
            return
        if error is None:
            self.result.set_result(self._value)
        else:
            self.result.set_exception(error)
