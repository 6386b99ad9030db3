"""Threads for operations that block: `register_service("reports", in_thread=True)`.

Python cannot stop a thread. At its deadline the caller is released and the call is settled, as a failure and with its
money booked, but the function goes on running to its own end. Until then it keeps its slot among the service's
`concurrency_max`. So a host that hangs occupies that many threads and no more, and later callers are refused.

koo uses its own threads. Those of `asyncio.to_thread` are few and shared by the whole process, so one host that hangs
would also stop file reads and DNS lookups, and Python waits for them at exit. koo's threads are daemons. They are
started when none is idle, and end after some seconds without work.

Two threads touch one `Call`, but never at the same time. The worker writes the result and then hands the call over with
`call_soon_threadsafe`; from then on only the loop uses it. `running` and the bulkhead's slots change on the loop only.
The list of idle threads is the one thing that both change, so the lock protects that list and nothing else.
"""

from __future__ import annotations

import asyncio
import io
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from inspect import isawaitable, isgenerator
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar, cast

from koo.deadlines import Deadlines
from koo.hidden import UNSHOWN
from koo.policies.bulkhead import Bulkhead
from koo.policies.treatment import out_of_resources
from koo.shortages import NoThread, shortage_in, start

T = TypeVar("T")
log = logging.getLogger("koo")

CONCURRENCY = 40
"""The default `concurrency_max` for threads: the size of AnyIO's thread pool, which runs FastAPI's `def` handlers."""
IDLE_S = 10.0
"""How long an idle thread is kept, and its thread-local resources with it, such as a Django database connection."""
CLOSING_S_MAX = 5.0
"""How long the end of the process waits for threads: it must not hang because one of them does."""


class Call(Generic[T]):
    """One run of a function in a thread, and its result."""

    def __init__(self, work: Callable[[], T]) -> None:
        self.loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self.loop.create_future()
        self._context: Context = copy_context()
        self._work = work
        self._value: T | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Run the function, in the thread."""
        try:
            self._value = self._context.run(self._work)
        except BaseException as error:  # noqa: BLE001 - it is raised in the caller; here even SystemExit ends only a thread
            self._error = error

    def result(self) -> T:
        """The function's result. Raises its exception."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            # The error's traceback refers to this frame. With a reference back, the cycle would keep the caller's
            # arguments alive until the garbage collector runs.
            del error
        return cast("T", self._value)


class Threads:
    """The threads of one service. `slots` limits their number."""

    def __init__(self, name: str, slots: Bulkhead, deadlines: Deadlines) -> None:
        self._name = name
        self._slots = slots
        self._deadlines = deadlines
        self.running = 0
        self._emptied: asyncio.Future[None] | None = None
        self.forget_parent()

    def forget_parent(self) -> None:
        """Start without threads, in a forked child: fork copies the lists but not the threads."""
        # The child gets a new lock, because another thread of the parent may have held the old one at the moment of the
        # fork. No thread of the child would ever release it.
        self._lock = threading.Lock()
        self._idle: list[SimpleQueue[Call[Any] | None]] = []
        # The parent's running calls never end here, so their slots would stay taken.
        self._slots.used = max(self._slots.used - self.running, 0)
        self.running = 0

    def over(self, function: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
        """Make `function` awaitable: a call with the same arguments runs it in a thread."""
        return lambda *args, **kwargs: self.run(partial(function, *args, **kwargs))

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work()` in a thread, in this context. Raises its exceptions, and TypeError if it returns a stream."""
        # The call has the function and its arguments; this frame must not, as error reporters record frames.
        call, work = Call(work), UNSHOWN
        self._hand_over(call)
        self.running += 1
        try:
            await call.ended
        except BaseException:
            # The call was cancelled, or its deadline has passed. The guard is about to give the slot back, but the
            # thread is still busy: the next caller would start another one, and a host that hangs would collect threads
            # without limit. `keep` counts the slot once more, and `_end` gives it back when the function returns.
            # If the future was not cancelled, the function had already ended, and there is nothing to keep.
            if call.ended.cancelled():
                self._slots.keep()
            raise
        result = call.result()
        _refuse_stream(result)
        return cast("T", await result) if isawaitable(result) else result

    def _hand_over(self, call: Call[Any]) -> None:
        # The last one in the list became idle last. Using it lets the others stay idle until they end, as after a
        # burst.
        with self._lock:
            calls = self._idle.pop() if self._idle else None
        if calls is None:
            calls = SimpleQueue()
            try:
                start(
                    threading.Thread(target=self._work, args=(calls,), name=f"koo {self._name}", daemon=True)
                )
            except NoThread as error:
                raise out_of_resources(self._name, error) from None
        calls.put(call)

    # ── in the thread ─────────────────────────────────────────────────────────────────────────────────────────

    def _work(self, calls: SimpleQueue[Call[Any] | None]) -> None:
        """Run one call after another, until none arrives for ten seconds."""
        # These are read once: if the function itself forks, this thread goes on in the child too. There `forget_parent`
        # has replaced both, and a thread that is about to end its process must not join the child's new list.
        lock, idle = self._lock, self._idle
        while (call := self._next(calls)) is not None:
            call.run()
            # The thread is listed as idle before it reports. The report wakes the caller, which often calls again
            # immediately; it would find no idle thread and start a new one, on every call.
            with lock:
                idle.append(calls)
            self._tell(call)
            del call  # or an idle thread would keep the result of its last call for ten seconds

    def _next(self, calls: SimpleQueue[Call[Any] | None]) -> Call[Any] | None:
        try:
            return calls.get(timeout=IDLE_S)
        except Empty:
            with self._lock:
                if calls in self._idle:
                    self._idle.remove(calls)
                    return None
        # The wait timed out, but in that moment `_hand_over` took this queue from the list, and is about to put a call
        # into it. Ending now would lose that call, and its caller would wait until its deadline.
        return calls.get()

    def _tell(self, call: Call[Any]) -> None:
        """Report the end of a call on its caller's loop, or on koo's current loop if that one has ended."""
        # `_end` changes `running` and the bulkhead, which only the loop may touch. The caller's `asyncio.run` may have
        # ended during a long call, and koo may be in use on a later loop with the same counts.
        for loop in (call.loop, self._deadlines.loop):
            if loop is not None and loop.is_running():
                with suppress(RuntimeError):  # the loop was closed a moment ago
                    loop.call_soon_threadsafe(self._end, call)
                    return
        self._end(call)  # no loop is running, so nothing else can be changing the counts

    # ── on the loop ───────────────────────────────────────────────────────────────────────────────────────────

    def _end(self, call: Call[Any]) -> None:
        self.running -= 1
        # The caller has left, and `run` kept the slot for this thread. Otherwise the caller's guard gives it back.
        if call.ended.cancelled():
            self._slots.give_back()
        elif not call.loop.is_closed():
            call.ended.set_result(None)
        if not self.running and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    async def close(self) -> None:
        """Wait at most five seconds for running calls, and log how many threads have not ended by then."""
        with self._lock:
            while self._idle:
                self._idle.pop().put(None)
        if self.running:
            self._emptied = asyncio.get_running_loop().create_future()
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSING_S_MAX):
                    await self._emptied
            self._emptied = None
        if self.running:
            log.warning(
                "%s: operations still running in threads, which cannot be stopped: %d",
                self._name,
                self.running,
            )


async def aside(service: str, work: Callable[[], T]) -> T:
    """Run a short blocking function off the loop. Raises its exceptions, and `ServiceRefused` if no thread is free."""
    try:
        return await asyncio.to_thread(work)
    except RuntimeError as error:
        if shortage_in(error) is None:
            raise
        raise out_of_resources(service, error) from None


def _refuse_stream(result: object) -> None:
    """Raise TypeError for a result that is read later: reading it would block the loop, outside the guard."""
    is_stream = isgenerator(result) or (
        # An SDK's stream is an iterator with a connection to close. So is a file, but reading that does not wait for
        # another host, and a file is an ordinary result of a blocking function.
        isinstance(result, Iterator)
        and hasattr(result, "__exit__")
        and callable(getattr(result, "close", None))
        and not isinstance(result, io.IOBase)
        # A cursor of psycopg 3 is an iterator too, but its rows have been fetched, or its reader chose to fetch them.
        and not hasattr(result, "fetchone")
    )
    if is_stream:
        cast("Any", result).close()
        raise TypeError(
            "the operation returned a stream, and a thread cannot guard the reading of it: read it inside the "
            "function, or use the asynchronous client with stream_with_error_handling"
        )
