"""The store's own thread: everything that touches the state store happens in it, one transaction after another.

Why a thread, and not a driver for asyncio: a transaction is some six statements, and an asynchronous driver needs at
least one turn of the loop for each step of each. With a loop that is busy for half a millisecond a turn, such a
transaction was measured at 23 ms, and in a thread of its own at 1.4 ms (idle: 0.9 and 0.3). The loop hands a job over,
and its end costs the loop one turn. Both databases work the same way.

No call waits for it, except one that finds its purse empty (`ledger.py`).

Callers do not each try a failing store: `trouble` says why it failed last. While it is not None, all jobs fail with
that at once, and the thread itself tries the store again, with growing pauses. A call that does not return is cut off
by the caller that has waited longest for it (`cut_if_stuck`): the thread cannot do that, because it is what hangs.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable
from typing import Protocol

from koo.shortages import start
from koo.storage.base import StoreUnavailable
from koo.storage.transaction import StatementRejected, Transaction

log = logging.getLogger("koo")

PAUSE_S_MIN = 0.05
PAUSE_S_MAX = 2.0
"""So that a store is found again within five seconds of being back, a slow attempt included."""
KNOCK_BYTES = 262_144
"""As large as the largest beat: a smaller write could succeed on a disk that is nearly full, and prove nothing."""


class Job(Protocol):
    """One transaction's work. `exclusive`: it writes."""

    exclusive: bool

    def wanted(self) -> bool:
        """In the thread, before it starts: False when no caller waits any more. Then only `finished` follows."""
        ...

    def write(self, tx: Transaction) -> None:
        """In the thread, in a transaction. May be run a second time, after a lost connection."""
        ...

    def finished(self, error: Exception | None) -> None:
        """On the loop, a moment later."""
        ...


class Backend(Protocol):
    """One database, used by one thread."""

    def transact(self, write: Callable[[Transaction], None], exclusive: bool) -> None:
        """Run `write` in a transaction and commit. Raises `StoreUnavailable`, or what `write` raised."""
        ...

    def cut(self) -> None:
        """From another thread: make the statement that hangs fail."""
        ...

    def close(self) -> None:
        """Give the connection back."""
        ...


class Worker:
    """The thread of one open store. `changed(trouble)` is called on the loop when the store is lost or found again."""

    def __init__(
        self, backend: Backend, loop: asyncio.AbstractEventLoop, changed: Callable[[str | None], None]
    ) -> None:
        self.trouble: str | None = None
        self.loop = loop
        self._backend = backend
        self._changed = changed
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._under_way: tuple[Job, float] | None = None
        self._pause_s = PAUSE_S_MIN
        self._knock_at = 0.0
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._serve, name="koo state store", daemon=True)

    def start(self) -> None:
        """Start. Raises OSError if the system cannot start a thread."""
        start(self._thread)

    @property
    def alive(self) -> bool:
        """True while it works for an open loop. After a fork it is False in the child, which has no threads."""
        return self._thread.is_alive() and not self.loop.is_closed()

    def submit(self, job: Job) -> None:
        """Do `job` after those before it. From any thread."""
        self._jobs.put(job)

    def stop(self) -> None:
        """End after the jobs before this."""
        self._jobs.put(None)

    async def stopped(self, timeout_s: float) -> None:
        """Wait until it has ended; a thread that hangs for longer is cut off, and left to itself."""
        for step in (self._backend.cut, lambda: None):
            try:
                async with asyncio.timeout(timeout_s):
                    await self._ended.wait()
                    return
            except TimeoutError:
                step()
        log.error("the state store's thread does not end: %s", self.trouble)

    def cut_if_stuck(self, waited_for: Job, after_s: float, reason: str) -> None:
        """On the loop, after waiting `after_s` in vain: declare the store lost, and end what hangs.

        Another caller's job is left alone until it has had as long; the thread may have started it just now.
        """
        self._lost(reason)
        under_way = self._under_way
        if under_way is None:
            return
        job, since = under_way
        if job is waited_for or time.monotonic() - since >= after_s:
            self._backend.cut()

    # ── in the thread ─────────────────────────────────────────────────────────────────────────────────────────

    def _serve(self) -> None:
        try:
            while True:
                job = self._next()
                if job is None:
                    break
                self._do(job)
        finally:
            self._backend.close()
            self._on_loop(self._ended.set)

    def _next(self) -> Job | None:
        if self.trouble is None:
            return self._jobs.get()
        # By the clock, not when the queue is empty: a steady queue would postpone the knock forever.
        wait_s = self._knock_at - time.monotonic()
        try:
            if wait_s > 0:
                return self._jobs.get(timeout=wait_s)
        except queue.Empty:
            pass
        self._pause_s = min(PAUSE_S_MAX, self._pause_s * 2)
        return Knock()

    def _do(self, job: Job) -> None:
        if not job.wanted():
            self._on_loop(job.finished, None)
            return
        error = self._transact(job)
        self._note(job, error)  # first, so that a caller that receives the failure finds the store in trouble
        self._on_loop(job.finished, error)

    def _transact(self, job: Job) -> Exception | None:
        if self.trouble is not None and not isinstance(job, Knock):
            return StoreUnavailable(
                self.trouble
            )  # otherwise each would wait for its own timeout, one after another
        self._under_way = job, time.monotonic()
        try:
            self._backend.transact(job.write, job.exclusive)
        except Exception as failed:  # noqa: BLE001 (it is the job that raises it, where it is waited for)
            return failed
        finally:
            self._under_way = None
        return None

    def _note(self, job: Job, error: Exception | None) -> None:
        if isinstance(error, StoreUnavailable) and not isinstance(error, StatementRejected):
            self._lost(str(error))
        elif isinstance(job, Knock):
            self._found()
        elif error is None and job.exclusive:
            self._pause_s = (
                PAUSE_S_MIN  # not when it was found: a flapping store is tried less and less often
            )
        if isinstance(job, Knock):
            self._knock_at = time.monotonic() + self._pause_s

    def _lost(self, reason: str) -> None:
        lost, self.trouble = self.trouble is None, reason
        if lost:
            self._knock_at = time.monotonic() + self._pause_s
            self._on_loop(self._changed, reason)

    def _found(self) -> None:
        if self.trouble is None:
            return
        self.trouble = None
        self._on_loop(self._changed, None)

    def _on_loop(self, call: Callable[..., None], *values: object) -> None:
        try:
            self.loop.call_soon_threadsafe(call, *values)
        except RuntimeError:  # the loop is closed, and its callers with it
            pass


class Knock:
    """Checks whether the store can be written again."""

    exclusive = True

    def wanted(self) -> bool:
        return True

    def write(self, tx: Transaction) -> None:
        # A read alone would pass on a full disk, and so would a small write into what is left of it.
        tx.run("DELETE FROM koo_probe")
        tx.run(
            "INSERT INTO koo_probe (filler) VALUES (:filler)", {"filler": secrets.token_hex(KNOCK_BYTES // 2)}
        )

    def finished(self, error: Exception | None) -> None:
        pass
