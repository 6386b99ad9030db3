"""Runs transactions in the store's thread, and bounds the time that a caller waits for them.

The ledger, signals and episodes each express their work as a plain function of a `Transaction`, and only the executor
brings it to the database. The executor belongs to the event loop on which it was first used, until `stop()`. After
that, or when that loop has ended, it starts a new thread for the next loop.
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

IN_USE = "koo's state store is in use on another event loop: call `await platform.close()` there when its work is done"
_left_behind: list[Worker] = []
"""Workers of a parent process, kept alive in its forked child. A garbage-collected connection sends a goodbye over the
socket that it shares with the parent, and the server would close the parent's session."""


class Executor:
    """One thread at a time, working on the database that `connect` returns.

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
        """Why the store is unreachable, as a sentence; None if no trouble is known."""
        return self.worker.trouble if self.worker is not None else None

    def watch(self, changed: Callable[[str | None], None]) -> None:
        """Call `changed` on the loop when the store becomes unreachable (with the reason) or is back (with None)."""
        self._watchers.append(changed)

    async def run(self, work: Callable[[Transaction], T], *, exclusive: bool = True) -> T:
        """Run `work` in a transaction in the store's thread. Set `exclusive` if it writes.

        Raises `StoreUnavailable`, after `timeout_s` at the latest. `work` may or may not be committed then.
        """
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        call = Call(work, exclusive, result)
        self.submit(call)
        try:
            async with asyncio.timeout(self.timeout_s):
                return await result
        except TimeoutError:
            # A loop that was blocked for longer than the timeout finds the timer and the result in the same turn. The
            # store was not slow then: declaring it unreachable would send every caller into its fallback, and a
            # transaction that was committed would be reported as failed.
            if result.done() and not result.cancelled():
                return result.result()
            reason = f"the state store (KOO_STATE_URL) did not answer within {self.timeout_s:g} s"
            if self.worker is not None:
                self.worker.cut_if_stuck(call, self.timeout_s, reason)
            raise StoreUnavailable(reason) from None

    def submit(self, job: Job) -> None:
        """Queue `job`; starts the thread at first use. Call it on the store's loop."""
        self.start().submit(job)

    def start(self) -> Worker:
        """Return the thread that works for the running loop, starting one if necessary. Does not connect yet.

        Raises RuntimeError while the store is in use on another loop, `StoreUnavailable` if no thread can be started.
        """
        loop = asyncio.get_running_loop()
        worker = self.worker
        if worker is not None and worker.alive:
            if worker.loop is loop:
                return worker
            raise RuntimeError(IN_USE)
        # Either the worker's loop has ended, and its thread stops here, or this is a forked child, which has a copy of
        # the object but no thread.
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
            # `self.worker` stays None, so the next call tries again. A worker without a thread would queue jobs that
            # never run, and every caller would wait for its full timeout.
            raise StoreUnavailable(f"the state store cannot be used: {shortage_in(error) or error}") from None
        self.worker = worker
        return worker

    async def stop(self) -> None:
        """End the thread, waiting at most `timeout_s` for jobs that are queued, and as long again for a hung one."""
        worker, self.worker = self.worker, None
        if worker is not None and worker.alive:
            worker.stop()
            await worker.stopped(self.timeout_s)

    def _changed(self, trouble: str | None) -> None:
        for changed in self._watchers:
            changed(trouble)


class Call(Generic[T]):
    """A function to run in a transaction, and the future that its caller waits for."""

    def __init__(self, work: Callable[[Transaction], T], exclusive: bool, result: asyncio.Future[T]) -> None:
        self.exclusive = exclusive
        self.result = result
        self._work = work
        self._value: T

    def wanted(self) -> bool:
        # If the caller times out or is cancelled, the future is cancelled. Its job may still be in the queue of a slow
        # store, and must not run seconds later: the caller was told that it failed, and may have done the same thing
        # again.
        return not self.result.cancelled()

    def write(self, tx: Transaction) -> None:
        self._value = self._work(tx)

    def finished(self, error: Exception | None) -> None:
        # The caller may have given up while the job ran; setting a cancelled future raises InvalidStateError.
        if self.result.done():
            return
        if error is None:
            self.result.set_result(self._value)
        else:
            self.result.set_exception(error)
