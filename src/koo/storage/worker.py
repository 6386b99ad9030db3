"""The store's own thread. Everything that touches the state store happens in it, one transaction after another.

A thread is used instead of an asyncio driver because a transaction is some six statements, and an asynchronous driver
needs at least one turn of the loop for each step of each statement. On a loop that is busy for half a millisecond per
turn, such a transaction took 23 ms, and 1.4 ms in a thread (on an idle loop: 0.9 and 0.3 ms). With a thread, the end of
a job costs the loop one turn. Both databases work the same way.

Only a call that finds its purse empty waits for the thread (`ledger.py`).

Callers do not each try a failing store. `trouble` gives the reason of the last failure. While it is set, all jobs fail
with it immediately, and the thread itself tries the store again after growing pauses. A transaction that hangs is cut
off by the caller that has waited longest for it (`cut_if_stuck`). The thread cannot do that, because it is blocked.
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
"""With this pause koo notices within five seconds that a store is back, including one slow attempt."""
KNOCK_BYTES = 262_144
"""The size of the largest beat. A smaller write could succeed on a nearly full disk, and the next beat would fail."""


class Job(Protocol):
    """One transaction's work. `exclusive` is set if it writes."""

    exclusive: bool

    def wanted(self) -> bool:
        """Called in the thread before the job starts. If no caller waits any more, only `finished` follows."""
        ...

    def write(self, tx: Transaction) -> None:
        """Called in the thread, in a transaction. After a lost connection it may be called a second time."""
        ...

    def finished(self, error: Exception | None) -> None:
        """Called on the loop when the job has ended."""
        ...


class Backend(Protocol):
    """One database, used by one thread."""

    def transact(self, write: Callable[[Transaction], None], exclusive: bool) -> None:
        """Run `write` in a transaction and commit. Raises `StoreUnavailable`, or what `write` raised."""
        ...

    def cut(self) -> None:
        """Make a hung statement fail; called from another thread."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class Worker:
    """The thread of one open store. It calls `changed(trouble)` on the loop when the store is unreachable or back."""

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
        # The thread is a daemon, because the interpreter joins all other threads at exit: one that hangs in a dead
        # connection would keep the process from ending.
        self._thread = threading.Thread(target=self._serve, name="koo state store", daemon=True)

    def start(self) -> None:
        """Start the thread. Raises OSError if the system cannot start one."""
        start(self._thread)

    @property
    def alive(self) -> bool:
        """True while it works for an open loop. In a forked child it is False, because threads are not copied."""
        return self._thread.is_alive() and not self.loop.is_closed()

    def submit(self, job: Job) -> None:
        """Queue `job`. May be called from any thread."""
        self._jobs.put(job)

    def stop(self) -> None:
        """End the thread after the jobs that are queued."""
        self._jobs.put(None)

    async def stopped(self, timeout_s: float) -> None:
        """Wait until the thread has ended. If it hangs, its statement is cut off; if that fails, it is abandoned."""
        for step in (self._backend.cut, lambda: None):
            try:
                async with asyncio.timeout(timeout_s):
                    await self._ended.wait()
                    return
            except TimeoutError:
                step()
        log.error("the state store's thread does not end: %s", self.trouble)

    def cut_if_stuck(self, waited_for: Job, after_s: float, reason: str) -> None:
        """Declare the store unreachable and cut off the hung job. A caller that waited `after_s` calls it on the
        loop."""
        self._lost(reason)
        # It is read only once, because the thread sets it to None when its job ends, possibly between two reads.
        under_way = self._under_way
        if under_way is None:
            return
        # The caller's own job may still be queued behind another one, which the thread may have started only just now.
        # Cutting that one would fail a healthy transaction, and with it a caller that has hardly waited.
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
        # The attempt to reconnect is due by the clock, not when the queue is empty. Callers that keep trying, each
        # failing immediately, would keep the queue filled and postpone that attempt forever.
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
        # The failure is noted before the caller is woken. In the other order a caller that receives the failure could
        # still find `trouble` unset, and would wait for a beat instead of deciding without the store.
        self._note(job, error)
        self._on_loop(job.finished, error)

    def _transact(self, job: Job) -> Exception | None:
        # Jobs that are already queued fail immediately too. Against a store that hangs, each would otherwise occupy the
        # thread for a whole timeout, one after another, and no caller would learn earlier that the store is
        # unreachable.
        if self.trouble is not None and not isinstance(job, Knock):
            return StoreUnavailable(self.trouble)
        self._under_way = job, time.monotonic()
        try:
            self._backend.transact(job.write, job.exclusive)
        except Exception as failed:  # noqa: BLE001 (the job raises it in its caller)
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
            # Only a real write resets the pause, not the attempt that reconnected. A store that accepts connections and
            # fails at the next beat would otherwise be tried every 50 ms, and all waiting callers would be sent to it
            # each time.
            self._pause_s = PAUSE_S_MIN
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
        except RuntimeError:
            pass  # the loop is closed, so no caller is left


class Knock:
    """A probe that checks whether the store accepts writes again."""

    exclusive = True

    def wanted(self) -> bool:
        return True

    def write(self, tx: Transaction) -> None:
        # A read would succeed on a full disk, and so would a small write into the space that is left.
        tx.run("DELETE FROM koo_probe")
        tx.run(
            "INSERT INTO koo_probe (filler) VALUES (:filler)", {"filler": secrets.token_hex(KNOCK_BYTES // 2)}
        )

    def finished(self, error: Exception | None) -> None:
        pass
