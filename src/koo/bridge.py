"""The bridge for code without an event loop: `koo.run(query_ai("claude", "Hello"))`, from any thread.

Flask, Celery, Django and plain threads have no loop, or a new one for each call, which ends with the call. koo's
connections, breakers and budgets belong to one lasting loop. So the first call starts a background thread with a loop;
`run` passes it a coroutine, or anything that is read with `async for`, and waits.

* If koo is already open on a running loop, that loop does the work: a process has only one koo. If it is open nowhere
  yet, and this thread works for a server's loop, koo opens on that loop.
* The caller's context (a deadline, a tracing span) is passed along. Variables that the coroutine sets stay in its own
  context, as in a task.
* The wait can be interrupted. On KeyboardInterrupt, or any other exception from a signal handler, the coroutine is
  cancelled and the caller waits until it has settled, because what it spent must be booked. Then the exception
  propagates.
* The loop ends with the process. When the main thread has ended, and with it all calls from threads that Python still
  waits for, all tasks are cancelled, so that koo closes as at the end of `asyncio.run`. An `atexit` callback would be
  too late: it runs after Python has waited for every thread, and a driver's threads end only when its connections are
  closed.
* A forked child starts without a loop, because the parent's thread does not exist there.
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
from koo.deadlines import CallersAlarm, Deadline, Nearer
from koo.forks import forget_in_child
from koo.shortages import start

T = TypeVar("T")

CLOSING_S_MAX = 10.0
"""A server that does not respond must not keep the process from ending."""


class Until:
    """A deadline `timeout_s` after it is first read, and no later than the context's deadline.

    For an iterator the time starts with the first item, not when the iterator is created.
    """

    __slots__ = ("_deadline", "_timeout_s")

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._deadline: Nearer | None = None

    def alarm(self) -> CallersAlarm:
        """An alarm at the deadline, in the running loop's time."""
        if self._deadline is None:
            self._deadline = Nearer.of(self._timeout_s)
        return CallersAlarm(self._deadline)


class Call(Visit[T]):
    """One coroutine on the bridge's loop. `done` is always set at the end."""

    __slots__ = ("_until", "done")

    def __init__(self, work: Awaitable[T], until: Until) -> None:
        self.done = threading.Event()
        self._until = until
        super().__init__(work, self.done.set)

    async def work(self) -> T:
        """Run the coroutine within its deadline."""
        with self._until.alarm():
            return await super().work()

    def result(self) -> T:
        """The call's result. Raises its exception, and RuntimeError if its loop ended first."""
        try:
            return super().result()
        except asyncio.CancelledError as error:
            raise RuntimeError(OVER) from error


class Bridge:
    """The background loop, if it has been started, and the choice of the loop that runs a call."""

    def __init__(self) -> None:
        self._begin()
        forget_in_child(self)

    def forget_parent(self) -> None:
        """In a forked child: forget the loop, the thread and the lock, which are the parent's."""
        self._begin()
        self._forked_in = threading.get_ident()  # this thread's thread-locals are still the parent's

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._none_runs = threading.Condition(threading.Lock())
        self._awaited = 0  # running calls from threads that Python waits for at exit
        self._was_idle = False  # whether no call ran at some moment since the main thread ended
        self._loop: Loop | None = None
        self._homes: WeakKeyDictionary[object, Loop] = WeakKeyDictionary()
        self._over = False
        self._forked_in = 0

    # ── which loop ────────────────────────────────────────────────────────────────────────────────────────────

    def settle(self, owner: object, loop: Loop, *, lasts: bool = False) -> None:
        """Record that `owner`, a platform or a database, is open on this loop. `lasts`: it was opened there explicitly,
        so the loop counts even if it is not known to last."""
        if lasts or self._lasts(loop):
            self._homes[owner] = loop

    def leave(self, owner: object) -> None:
        """Record that `owner` is closed."""
        self._homes.pop(owner, None)

    def elsewhere(self, own: Loop | None) -> Loop | None:
        """The loop that a call must cross to from the running one; None if it stays. `own`: where its owner is open.

        In threads other than the main one a loop usually lives for one call (`asyncio.run` in a worker of Flask or
        Celery), and several run at the same time. koo is not opened on such a loop: it uses the loop where it is
        already open, else the background loop.
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
        """Whether `loop` is the background loop."""
        return loop is not None and loop is self._loop

    def loop(self) -> Loop:
        """The loop that does the work: where koo is open, else the server's loop that this thread works for, else the
        background loop, which is started if necessary.

        Raises RuntimeError once the process is ending.
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
        """A running loop that does the work and is not the background loop."""
        # In the forked thread itself the thread-locals of AnyIO and asgiref are copies that name the parent's loop,
        # which never runs here: a call handed to it would never return.
        for home in reversed(list(self._homes.values())):
            if home.is_running():
                return home
        return None if threading.get_ident() == self._forked_in else _servers_loop()

    def time(self) -> float:
        """The time of the loop that would do the work; no loop is started to read it.

        All loops count the same seconds, except an asyncio loop whose clock `koo.testing` is moving.
        """
        loop = self._foreign() or self._loop
        # uvloop caches its time, which does not advance while the loop waits, so read from this thread it may be
        # seconds old. A deadline computed from it may already be over. uvloop counts the monotonic clock's seconds, so
        # that clock is read instead.
        return loop.time() if isinstance(loop, asyncio.BaseEventLoop) else time.monotonic()

    def _start(self) -> Loop:
        ready: Future[tuple[Loop, asyncio.Event]] = Future()
        thread = threading.Thread(target=self._run, args=(ready,), name="koo loop", daemon=True)
        start(thread)
        loop, end = ready.result()
        # The loop's thread is a daemon, or Python would wait for it forever at exit, with nothing left to end it. This
        # second thread is not: Python waits for it, and so for the orderly end that it brings about.
        ending = threading.Thread(
            target=self._end_with_process, args=(thread, loop, end), name="koo end", daemon=False
        )
        try:
            start(ending)
        except BaseException:
            # Without the second thread nothing would close this loop cleanly. End it; the next call starts another.
            loop.call_soon_threadsafe(end.set)
            thread.join(CLOSING_S_MAX)
            raise
        return loop

    def _run(self, ready: Future[tuple[Loop, asyncio.Event]]) -> None:
        # This does not use `asyncio.run`: it starts a thread to shut down the executor, and Python 3.12 refuses to
        # start threads while the interpreter is exiting, which is exactly when this loop ends.
        try:
            loop = asyncio.new_event_loop()
        except BaseException as error:  # noqa: BLE001 - out of file descriptors: the waiting callers must get the error
            ready.set_exception(error)
            return
        try:
            loop.run_until_complete(self._stay(ready))
        finally:
            loop.close()

    async def _stay(self, ready: Future[tuple[Loop, asyncio.Event]]) -> None:
        """Keep the loop running until the process ends; then cancel all tasks and wait for them."""
        loop, end = asyncio.get_running_loop(), asyncio.Event()
        ready.set_result((loop, end))
        await end.wait()
        # This is done twice, because closing an async generator runs its `finally`, which may start tasks.
        await _end_all_tasks()
        await loop.shutdown_asyncgens()
        await _end_all_tasks()

    def _end_with_process(self, thread: threading.Thread, loop: Loop, end: asyncio.Event) -> None:
        threading.main_thread().join()
        with self._none_runs:
            self._was_idle = not self._awaited
            # `_was_idle` remembers that there was a moment without a running call, which is enough. Waiting for
            # `_awaited == 0` itself could last forever: a worker thread that makes one call after another is never idle
            # when this thread wakes.
            self._none_runs.wait_for(lambda: self._was_idle)
        with self._lock:
            self._over = True
        loop.call_soon_threadsafe(end.set)
        thread.join(CLOSING_S_MAX)

    # ── the call ──────────────────────────────────────────────────────────────────────────────────────────────

    def call(self, work: Awaitable[T], until: Until) -> T:
        """Run `work` on the loop and wait. Raises its exception, and RuntimeError inside a running event loop."""
        call = Call(work, until)
        # Until the loop has the call, a failure here must close the coroutine, or Python warns that it was never
        # awaited.
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
            del (
                call
            )  # an error's traceback holds this frame, and the frame would hold the call with its result

    def _count(self, change: int) -> None:
        # Python does not wait for daemon threads at exit, so neither does the loop: one that makes calls forever would
        # otherwise keep the process alive.
        if not threading.current_thread().daemon:
            with self._none_runs:
                self._awaited += change
                self._was_idle = self._was_idle or not self._awaited
                self._none_runs.notify_all()

    def iterate(self, items: AsyncIterable[T], until: Until) -> Iterator[T]:
        """Yield each item as it arrives. Leaving the loop early closes the source."""
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
    """Cancel all tasks, including those that start in the meantime: a daemon thread's late call may open koo again."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in others:
            if not task.cancelling():  # a second cancellation would interrupt its cleanup
                task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def _next(iterator: AsyncIterator[T]) -> T:
    return await anext(iterator)


def _servers_loop() -> Loop | None:
    """The loop that waits for this thread: AnyIO's (a `def` endpoint of FastAPI) or asgiref's (a Django view).

    If the first call came from such a thread and opened koo on the background loop, sessions would belong to that loop,
    and `async def` endpoints could never use one.
    """
    asgiref, anyio = sys.modules.get("asgiref.sync"), sys.modules.get("anyio.from_thread")
    loop: Loop | None = None
    if asgiref is not None:
        loop = getattr(asgiref.SyncToAsync.threadlocal, "main_event_loop", None)
    if loop is None and anyio is not None:
        with suppress(RuntimeError):  # not a worker thread of AnyIO
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
            # The loop may be the application's, which can stop for good without waking this thread.
            if not loop.is_running() and not call.done.is_set():
                call.drop_unbegun()
                raise RuntimeError(OVER)
    # Ctrl-C, most often. The program may end right after this exception, so it is raised only after the cancelled call
    # has settled: what the call spent must be booked, and its connection returned in a known state.
    except BaseException:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(call.cancel)
            call.done.wait(SETTLE_S_MAX)
        raise


BRIDGE = Bridge()
"""This process's bridge: a second background loop would mean a second koo."""
Deadline.loops_time = BRIDGE.time


@overload
def run(work: AsyncIterable[T], *, timeout_s: float | None = None) -> Iterator[T]: ...
@overload
def run(work: Awaitable[T], *, timeout_s: float | None = None) -> T: ...
def run(work: Awaitable[T] | AsyncIterable[T], *, timeout_s: float | None = None) -> T | Iterator[T]:
    """Run a coroutine of koo from code without an event loop, in any thread, and return what it returns.

    `koo.run(query_ai("claude", "Hello"))`. Anything that is read with `async for` becomes a plain iterator: `for chunk
    in koo.run(stream_ai(...))`. The coroutine runs on the loop that koo is open on, else on koo's own background loop,
    with the caller's context. `timeout_s`: a deadline in seconds from now; if there is also a surrounding `with
    koo.deadline(...)`, the nearer one applies. Raises the coroutine's exception, TimeoutError at the deadline, and
    RuntimeError inside a running event loop (await the coroutine there) or if the process ends first.
    """
    if isinstance(work, AsyncIterable):
        return BRIDGE.iterate(work, Until(timeout_s))
    return BRIDGE.call(work, Until(timeout_s))
