"""Threads for operations that block: `register_service("reports", in_thread=True)`.

A thread cannot be stopped. At its deadline the caller is released and the call is settled, as a failure and with its
money booked; the function in the thread continues to its own end. Until then it keeps its place among the service's
`concurrency_max`. So a host that hangs occupies that many threads and no more, and later callers are refused.

The threads are koo's own. Those of `asyncio.to_thread` are few and shared by the whole process, so one host that hangs
would stop file reads and name look-ups too; and Python waits for them at exit. These are daemons, started when none is
idle, and they end after some seconds without work.

A call changes `running` and its place on the loop only. The lock is just for the list of idle threads.
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
"""How many run at once unless `concurrency_max` says so: as many as AnyIO's threads, which serve FastAPI's `def`s."""
IDLE_S = 10.0
"""A thread that is kept for the next call also keeps what belongs to it: a Django database connection, say."""
CLOSING_S_MAX = 5.0
"""The exit of a process must not hang on a thread that does."""


class Call(Generic[T]):
    """One run of a function in a thread, and what became of it."""

    def __init__(self, work: Callable[[], T]) -> None:
        self.loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self.loop.create_future()
        self._context: Context = copy_context()
        self._work = work
        self._value: T | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """In the thread."""
        try:
            self._value = self._context.run(self._work)
        except BaseException as error:  # noqa: BLE001 - it is the caller's, whatever it is: here it would end the thread
            self._error = error

    def result(self) -> T:
        """What it returned. Raises what it raised."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # its traceback keeps this frame: a cycle that would keep everything in it alive
        return cast("T", self._value)


class Threads:
    """The threads of one service; `places` bounds them."""

    def __init__(self, name: str, places: Bulkhead, deadlines: Deadlines) -> None:
        self._name = name
        self._places = places
        self._deadlines = deadlines
        self.running = 0
        self._emptied: asyncio.Future[None] | None = None
        self.forget_parent()

    def forget_parent(self) -> None:
        """In a forked child, which does not have the parent's threads."""
        self._lock = threading.Lock()
        self._idle: list[SimpleQueue[Call[Any] | None]] = []
        self._places.used = max(self._places.used - self.running, 0)
        self.running = 0

    def over(self, function: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
        """`function` as an awaitable one: called with the same arguments it runs in a thread."""
        return lambda *args, **kwargs: self.run(partial(function, *args, **kwargs))

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work()` in a thread, in this context. Raises what it raises, and TypeError for a stream."""
        call, work = Call(work), UNSHOWN
        self._hand_over(call)
        self.running += 1
        try:
            await call.ended
        except BaseException:
            if call.ended.cancelled():
                # The caller leaves but the thread does not: the place that is given back now stays taken.
                self._places.keep()
            raise
        result = call.result()
        _refuse_stream(result)
        return cast("T", await result) if isawaitable(result) else result

    def _hand_over(self, call: Call[Any]) -> None:
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
        """One call after another, until none comes for a while."""
        lock, idle = self._lock, self._idle  # in a forked child these are others
        while (call := self._next(calls)) is not None:
            call.run()
            # Idle first: the next call may come from what the end of this one wakes.
            with lock:
                idle.append(calls)
            self._tell(call)
            del call

    def _next(self, calls: SimpleQueue[Call[Any] | None]) -> Call[Any] | None:
        try:
            return calls.get(timeout=IDLE_S)
        except Empty:
            with self._lock:
                if calls in self._idle:
                    self._idle.remove(calls)
                    return None
        return calls.get()  # it was taken from the list a moment ago: a call is on its way

    def _tell(self, call: Call[Any]) -> None:
        """The call has ended: report it on the loop that waits for it, else on the one that koo lives on now."""
        for loop in (call.loop, self._deadlines.loop):
            if loop is not None and loop.is_running():
                with suppress(RuntimeError):  # closed a moment ago
                    loop.call_soon_threadsafe(self._end, call)
                    return
        self._end(call)

    # ── on the loop ───────────────────────────────────────────────────────────────────────────────────────────

    def _end(self, call: Call[Any]) -> None:
        self.running -= 1
        if call.ended.cancelled():
            self._places.give_back()
        elif not call.loop.is_closed():
            call.ended.set_result(None)
        if not self.running and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    async def close(self) -> None:
        """Wait for what still runs, at most five seconds. How many threads are left then is logged."""
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
                "%s: %d threads still run an operation that did not end, and cannot be stopped",
                self._name,
                self.running,
            )


async def aside(service: str, work: Callable[[], T]) -> T:
    """Run something short that blocks, off the loop. Raises what it raises, and `ServiceRefused` without a thread."""
    try:
        return await asyncio.to_thread(work)
    except RuntimeError as error:
        if shortage_in(error) is None:
            raise
        raise out_of_resources(service, error) from None


def _refuse_stream(result: object) -> None:
    """Raises TypeError for a result that is read later, on the loop: it would block there, outside the guard."""
    is_stream = isgenerator(result) or (
        # An SDK's stream holds its connection; a cursor or a file does not come from a server piece by piece.
        isinstance(result, Iterator)
        and hasattr(result, "__exit__")
        and callable(getattr(result, "close", None))
        and not isinstance(result, io.IOBase)
    )
    if is_stream:
        cast("Any", result).close()
        raise TypeError(
            "the operation returned a stream, which a thread cannot guard to its end: read it inside the "
            "function, or use the asynchronous client with stream_with_error_handling"
        )
