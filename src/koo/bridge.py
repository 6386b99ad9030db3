"""The bridge for code without an event loop: `koo.run(query_ai("claude", "Hello"))`, from any thread.

Flask, Celery, Django and plain threads have no loop, or one for each call that ends at once. koo's connections,
breakers and budgets belong to one loop that lasts. So the process has one in a thread in the background, started by the
first call; `run` hands it a coroutine, or anything that is read with `async for`, and waits.

* Where koo is open on a running loop already, that loop does the work: there is one koo in a process. Where it is open
  nowhere yet, and this thread works for a server's loop, it opens there.
* The caller's context goes along: a deadline, a tracing span. What the coroutine sets stays with it, as in a task.
* Waiting can be interrupted. On KeyboardInterrupt, or what else a signal's handler raises, the coroutine is cancelled
  and waited for until it has settled, because what it spent must be booked; then the exception goes on up.
* The loop ends with the process: when the main thread has ended, and the calls of threads that Python still waits for,
  all tasks are cancelled, so that koo closes as at the end of `asyncio.run`. An `atexit` callback would be too late: it
  runs after Python has waited for every thread, and a driver's threads end only when its connections are closed.
* A fork begins without a loop. The parent's thread does not exist there.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar, overload
from weakref import WeakKeyDictionary

from koo.crossing import LOOK_S, NO_LOOP, OVER, SETTLE_S_MAX, Loop, Visit, running_loop, start_on
from koo.deadlines import Alarm, Deadline, OwnTimer, ends_at
from koo.forks import forget_in_child
from koo.options import NEVER
from koo.shortages import start

T = TypeVar("T")

CLOSING_S_MAX = 10.0
"""The end of a process must not hang on a server that does not answer."""


class Until:
    """A point in time that is `timeout_s` after the first look at it, and no later than the context's deadline."""

    __slots__ = ("_timeout_s", "_when")

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._when: float | None = None

    def when(self) -> float:
        """In the running loop's time."""
        if self._when is None:
            own = NEVER if self._timeout_s is None else asyncio.get_running_loop().time() + self._timeout_s
            self._when = min(own, ends_at.get())
        return self._when


class Call(Visit[T]):
    """One coroutine on the bridge's loop. `done` is set in the end, whatever happens."""

    __slots__ = ("_until", "done")

    def __init__(self, work: Awaitable[T], until: Until) -> None:
        self.done = threading.Event()
        self._until = until
        super().__init__(work, self.done.set)

    async def work(self) -> T:
        """In its time."""
        with Alarm(OwnTimer(), self._until.when()):
            return await super().work()

    def result(self) -> T:
        """What it returned. Raises what it raised, and RuntimeError where its loop ended first."""
        try:
            return super().result()
        except asyncio.CancelledError as error:
            raise RuntimeError(OVER) from error


class Bridge:
    """The loop in the background, where there is one, and the way to it."""

    def __init__(self) -> None:
        self._begin()
        forget_in_child(self)

    def forget_parent(self) -> None:
        """In a forked child: its loop, its thread and its lock are the parent's."""
        self._begin()
        self._forked_in = threading.get_ident()  # what is local to this thread is the parent's too

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._none_runs = threading.Condition(threading.Lock())
        self._awaited = 0  # calls of threads that Python waits for at its end
        self._was_idle = False  # since the main thread ended
        self._loop: Loop | None = None
        self._homes: WeakKeyDictionary[object, Loop] = WeakKeyDictionary()
        self._over = False
        self._forked_in = 0

    # ── which loop ────────────────────────────────────────────────────────────────────────────────────────────

    def settle(self, owner: object, loop: Loop, *, lasts: bool = False) -> None:
        """`owner`, a platform or a database, is open on this loop. `lasts`: it was opened there on purpose."""
        if lasts or self._lasts(loop):
            self._homes[owner] = loop

    def leave(self, owner: object) -> None:
        """It is closed."""
        self._homes.pop(owner, None)

    def elsewhere(self, own: Loop | None) -> Loop | None:
        """The loop that a call has to cross to from the running one; None: to none. `own`: where its owner is open.

        In a thread beside the main one a loop mostly lives for one call (`asyncio.run` in a worker of Flask or Celery),
        and several at once. So koo does not open itself there, but where koo is open already, else in the background.
        """
        loop = running_loop()
        if loop is own:
            return None
        if own is not None and own.is_running():
            return own
        if self._lasts(loop):
            return None
        home = self.loop()
        return None if home is loop else home

    def _lasts(self, loop: Loop) -> bool:
        return threading.current_thread() is threading.main_thread() or loop is self._loop

    def is_own(self, loop: Loop | None) -> bool:
        """Is it the one in the background?"""
        return loop is not None and loop is self._loop

    def loop(self) -> Loop:
        """The loop that does the work: where koo is open, else the server's whose thread this is, else the one in the
        background, started if need be.

        Raises RuntimeError at the end of the process.
        """
        foreign = self._foreign()
        if foreign is not None:
            return foreign
        with self._lock:
            if self._over:
                raise RuntimeError(OVER)
            if self._loop is None:
                self._loop = self._start()
            return self._loop

    def _foreign(self) -> Loop | None:
        """A loop that is running already and does the work, other than the one in the background."""
        for home in reversed(list(self._homes.values())):
            if home.is_running():
                return home
        return None if threading.get_ident() == self._forked_in else _servers_loop()

    def time(self) -> float:
        """The time of the loop that would do the work; none is started for it.

        Loops count the same seconds, but for one of asyncio's that a clock of `koo.testing` moves, while it does.
        """
        loop = self._foreign() or self._loop
        # uvloop's time stands still while the loop waits.
        return loop.time() if isinstance(loop, asyncio.BaseEventLoop) else time.monotonic()

    def _start(self) -> Loop:
        ready: Future[tuple[Loop, asyncio.Event]] = Future()
        thread = threading.Thread(target=self._run, args=(ready,), name="koo loop", daemon=True)
        start(thread)
        loop, end = ready.result()
        # Not a daemon: Python waits for it before it ends, and so for what it does.
        ending = threading.Thread(
            target=self._end_with_process, args=(thread, loop, end), name="koo end", daemon=False
        )
        try:
            start(ending)
        except BaseException:
            # A loop that nothing would end in order: the next call begins another one.
            loop.call_soon_threadsafe(end.set)
            thread.join(CLOSING_S_MAX)
            raise
        return loop

    def _run(self, ready: Future[tuple[Loop, asyncio.Event]]) -> None:
        # Not `asyncio.run`: it starts a thread to end its executor, and Python 3.12 starts none once it ends itself.
        try:
            loop = asyncio.new_event_loop()
        except BaseException as error:  # noqa: BLE001 - no descriptor: the callers that wait for the loop must get the error
            ready.set_exception(error)
            return
        try:
            loop.run_until_complete(self._stay(ready))
        finally:
            loop.close()

    async def _stay(self, ready: Future[tuple[Loop, asyncio.Event]]) -> None:
        """Keep the loop until the process ends; then cancel all tasks and wait for them."""
        loop, end = asyncio.get_running_loop(), asyncio.Event()
        ready.set_result((loop, end))
        await end.wait()
        await _end_all_tasks()
        await loop.shutdown_asyncgens()
        await _end_all_tasks()

    def _end_with_process(self, thread: threading.Thread, loop: Loop, end: asyncio.Event) -> None:
        threading.main_thread().join()
        with self._none_runs:
            self._was_idle = not self._awaited
            # One moment without a call is enough: a thread that makes one after another may never be met between two.
            self._none_runs.wait_for(lambda: self._was_idle)
        with self._lock:
            self._over = True
        loop.call_soon_threadsafe(end.set)
        thread.join(CLOSING_S_MAX)

    # ── the call ──────────────────────────────────────────────────────────────────────────────────────────────

    def call(self, work: Awaitable[T], until: Until) -> T:
        """Run it on the loop and wait. Raises what it raises, and RuntimeError inside a running event loop."""
        call = Call(work, until)
        try:
            _refuse_inside_a_loop()
            loop = self.loop()
            self._count(1)
        except BaseException:
            call.drop()
            raise
        try:
            start_on(loop, call)
            _wait(loop, call)
            return call.result()
        finally:
            self._count(-1)
            del call

    def _count(self, change: int) -> None:
        if not threading.current_thread().daemon:
            with self._none_runs:
                self._awaited += change
                self._was_idle = self._was_idle or not self._awaited
                self._none_runs.notify_all()

    def iterate(self, items: AsyncIterable[T], until: Until) -> Iterator[T]:
        """Each item as it comes; leaving early closes what they come from."""
        iterator = aiter(items)
        try:
            while True:
                try:
                    item = self.call(_next(iterator), until)
                except StopAsyncIteration:
                    return
                yield item
        finally:
            if hasattr(iterator, "aclose"):
                self.call(iterator.aclose(), Until(None))


async def _end_all_tasks() -> None:
    """Cancel also those that begin in the meantime: a daemon thread's late call may open koo once more."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in others:
            if not task.cancelling():  # a second cancellation would cut into its closing
                task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def _next(iterator: AsyncIterator[T]) -> T:
    return await anext(iterator)


def _servers_loop() -> Loop | None:
    """The loop that waits for this thread: of AnyIO (a `def` endpoint of FastAPI), of asgiref (a view of Django).

    If koo opened itself in the background there, `async def` endpoints could not use a session for ever after.
    """
    asgiref, anyio = sys.modules.get("asgiref.sync"), sys.modules.get("anyio.from_thread")
    loop: Loop | None = None
    if asgiref is not None:
        loop = getattr(asgiref.SyncToAsync.threadlocal, "main_event_loop", None)
    if loop is None and anyio is not None:
        with suppress(RuntimeError):  # it is another thread
            loop = anyio.run_sync(asyncio.get_running_loop)
    return loop if loop is not None and loop.is_running() else None


def _refuse_inside_a_loop() -> None:
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        raise RuntimeError(NO_LOOP)
    if asyncio._get_running_loop() is not None:
        raise RuntimeError(
            "koo.run would block the event loop that is running in this thread: await the coroutine instead"
        )


def _wait(loop: Loop, call: Call[Any]) -> None:
    try:
        while not call.done.wait(LOOK_S):
            # An application's own loop may stop for good without waking this thread.
            if not loop.is_running() and not call.done.is_set():
                call.drop_unbegun()
                raise RuntimeError(OVER)
    except BaseException:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(call.cancel)
            call.done.wait(SETTLE_S_MAX)
        raise


BRIDGE = Bridge()
"""The one of this process: a second loop in the background would be a second koo."""
Deadline.loops_time = BRIDGE.time


@overload
def run(work: AsyncIterable[T], *, timeout_s: float | None = None) -> Iterator[T]: ...
@overload
def run(work: Awaitable[T], *, timeout_s: float | None = None) -> T: ...
def run(work: Awaitable[T] | AsyncIterable[T], *, timeout_s: float | None = None) -> T | Iterator[T]:
    """Run a coroutine of koo from code without an event loop, in any thread, and return what it returns.

    `koo.run(query_ai("claude", "Hello"))`; what is read with `async for` becomes a plain iterator:
    `for chunk in koo.run(stream_ai(...))`. It runs on the loop that koo is open on, else on koo's own in the
    background, with the caller's context. `timeout_s`: a deadline, in seconds from now; the nearer one of it and a
    surrounding `with koo.deadline(...)` holds. Raises what the coroutine raises, TimeoutError at the deadline, and
    RuntimeError inside a running event loop (await it there) or when the process ends first.
    """
    if isinstance(work, AsyncIterable):
        return BRIDGE.iterate(work, Until(timeout_s))
    return BRIDGE.call(work, Until(timeout_s))
