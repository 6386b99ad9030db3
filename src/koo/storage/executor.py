"""Runs transactions in the store's thread, and lets callers wait for them with a bound.

The ledger, signals and episodes each describe their work as a plain function of a `Transaction`; this is the only way
by which it reaches the database. It belongs to the event loop on which it was first used, until `stop()`; after that,
or when that loop has ended, a new thread is started for the next loop.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable
from typing import Generic, TypeVar

from koo.clock import Clock
from koo.shortages import shortage_in
from koo.storage.base import StoreUnavailable
from koo.storage.transaction import Transaction
from koo.storage.worker import Backend, Job, Worker

T = TypeVar("T")

IN_USE = "koo's state store is in use on another event loop: write `await platform.close()` where its work there ends"
_left_behind: list[Worker] = []
"""Workers of a parent process: closing their connections here would close the parent's."""


class Executor:
    """One thread at a time over the database that `connect` makes.

    `timeout_s` is the longest time that a caller waits.
    """

    def __init__(self, connect: Callable[[float], Backend], clock: Clock, timeout_s: float) -> None:
        self._connect = connect
        self.clock = clock
        self.timeout_s = timeout_s
        self.process = ""
        self.worker: Worker | None = None
        self._watchers: list[Callable[[str | None], None]] = []

    @property
    def is_open(self) -> bool:
        """True while its thread is running."""
        return self.worker is not None and self.worker.alive

    @property
    def trouble(self) -> str | None:
        """Why the store cannot be used now, as a sentence; None: no trouble is known."""
        return self.worker.trouble if self.worker is not None else None

    def watch(self, changed: Callable[[str | None], None]) -> None:
        """Call `changed` on the loop when the store is lost (with the reason) and when it is back (with None)."""
        self._watchers.append(changed)

    async def run(self, work: Callable[[Transaction], T], *, exclusive: bool = True) -> T:
        """Run `work` in a transaction, in the store's thread. `exclusive`: it writes.

        Raises `StoreUnavailable`, after `timeout_s` at the latest: `work` may still be done then, or not.
        """
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        call = Call(work, exclusive, result)
        self.submit(call)
        try:
            async with asyncio.timeout(self.timeout_s):
                return await result
        except TimeoutError:
            if result.done() and not result.cancelled():
                return result.result()  # the loop was held up, not the store
            reason = f"the state store (KOO_STATE_URL) did not answer within {self.timeout_s:g} s"
            if self.worker is not None:
                self.worker.cut_if_stuck(call, self.timeout_s, reason)
            raise StoreUnavailable(reason) from None

    def submit(self, job: Job) -> None:
        """Do `job` in its turn; starts the thread at first use. Call it on the store's loop."""
        self.start().submit(job)

    def start(self) -> Worker:
        """The thread that works for the running loop; a new one if there is none. Does not connect yet.

        Raises RuntimeError while the store is in use on another loop, `StoreUnavailable` if no thread can be started.
        """
        loop = asyncio.get_running_loop()
        worker = self.worker
        if worker is not None and worker.alive:
            if worker.loop is loop:
                return worker
            raise RuntimeError(IN_USE)
        if worker is not None:
            self.worker = None
            worker.stop()
            _left_behind.append(worker)
        return self._start(loop)

    def _start(self, loop: asyncio.AbstractEventLoop) -> Worker:
        self.process = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        worker = Worker(self._connect(self.timeout_s), loop, self._changed)
        try:
            worker.start()
        except OSError as error:
            # Not kept: its thread never started, and the next call tries again.
            raise StoreUnavailable(f"the state store cannot be used: {shortage_in(error) or error}") from None
        self.worker = worker
        return worker

    async def stop(self) -> None:
        """End the thread, and wait for that at most `timeout_s`."""
        worker, self.worker = self.worker, None
        if worker is not None and worker.alive:
            worker.stop()
            await worker.stopped(self.timeout_s)

    def _changed(self, trouble: str | None) -> None:
        for changed in self._watchers:
            changed(trouble)


class Call(Generic[T]):
    """A function's turn, and its result for the caller that waits."""

    def __init__(self, work: Callable[[Transaction], T], exclusive: bool, result: asyncio.Future[T]) -> None:
        self.exclusive = exclusive
        self.result = result
        self._work = work
        self._value: T

    def wanted(self) -> bool:
        return not self.result.cancelled()

    def write(self, tx: Transaction) -> None:
        self._value = self._work(tx)

    def finished(self, error: Exception | None) -> None:
        if self.result.done():
            return
        if error is None:
            self.result.set_result(self._value)
        else:
            self.result.set_exception(error)
