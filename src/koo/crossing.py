"""Crossing: work of one event loop, done on another one that runs in another thread.

koo lives on one loop, its home. What is asked on a second loop, or in a thread without one, crosses to it. An operation
of the user's own crosses back: its client belongs to the loop that asks, so only its guard is at home.

* The context goes along, each way: a deadline, a tracing span. What is set on the other side stays there, as in a task.
* A cancellation crosses too, and its end is awaited: what was spent must be booked, and a client must not be used by
  two tasks at once. A second cancellation waits for nothing.
* What is raised crosses as a value. A SystemExit that left a task would end the loop, and all other work on it.
* A loop that stops for good wakes no caller in another thread, so a waiting caller checks on it now and then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from typing import Any, Generic, ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")
Loop = asyncio.AbstractEventLoop

LOOK_S = 1.0
"""How often a waiting caller looks whether the loop still runs; a call that ends wakes its caller at once."""
SETTLE_S_MAX = 5.0
"""An interrupted call needs no longer than this; a second interrupt ends the wait at once."""
OVER = "koo's event loop ended before the call did, because the process or the loop that koo was open on is ending"
NO_LOOP = (
    "koo runs on asyncio, and no asyncio event loop runs here: under trio call it in a thread, "
    "`await trio.to_thread.run_sync(koo.run, coroutine)`"
)


def running_loop() -> Loop:
    """The running loop. Raises RuntimeError, with the line to write, under trio and other kinds of loops."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(NO_LOOP) from None


def begin(loop: Loop, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """Background work on that loop, outside of the caller's context: its deadline would hold for the work, and its
    tracing span never end.

    Raises what the loop refuses it with (it is closed; its owner's task factory fails), and leaves no coroutine behind.
    """
    try:
        # Not `create_task(context=…)`: a task factory written for Python 3.10 does not take it.
        return Context().run(loop.create_task, work, name=name)
    except BaseException:
        work.close()
        raise


class Visit(Generic[T]):
    """One coroutine on a loop that is not its caller's, and what became of it. `ended` is called there, in the end."""

    __slots__ = ("_ended", "_error", "_task", "_value", "_work", "was_cut")

    def __init__(self, work: Awaitable[T], ended: Callable[[], object]) -> None:
        self._work = work
        self._ended = ended
        self._task: asyncio.Task[None] | None = None
        self._value: T | None = None
        self._error: BaseException | None = None
        self.was_cut = False
        """Whether it was cancelled, and did not cancel itself."""

    def start(self) -> None:
        """Begin, on that loop, in the caller's context."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="koo call")
        self._task.add_done_callback(self._end)

    async def _run(self) -> None:
        try:
            self._value = await self.work()
        except BaseException as error:  # noqa: BLE001 - SystemExit too is the caller's: here it would end the loop
            self._error = error

    async def work(self) -> T:
        """What is done there."""
        return await self._work

    def _end(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # before it began
            self.drop()
            self._error = asyncio.CancelledError()
        self.was_cut = isinstance(self._error, asyncio.CancelledError) and (
            task.cancelled() or task.cancelling() > 0
        )
        self._ended()

    def cancel(self) -> None:
        """End it early, on that loop."""
        if self._task is not None:
            self._task.cancel()

    def drop(self) -> None:
        """Say that it is never begun, so that Python does not warn of it."""
        if isinstance(self._work, Coroutine):
            self._work.close()

    def drop_unbegun(self) -> None:
        """Its loop ended before it came to it."""
        if self._task is None:
            self.drop()

    def result(self) -> T:
        """What it returned. Raises what it raised."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # Its traceback holds this frame: a cycle that would keep everything in it alive.
        return cast("T", self._value)


def start_on(loop: Loop, visit: Visit[Any]) -> None:
    """Begin it on that loop, in a copy of this context. Raises RuntimeError where the loop has ended."""
    try:
        loop.call_soon_threadsafe(visit.start)
    except RuntimeError:  # closed a moment ago
        visit.drop()
        raise RuntimeError(OVER) from None


async def carry(home: Loop, work: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine on another running loop, from a coroutine on this one. Cancelling it cancels it there.

    Raises what it raises, and RuntimeError where that loop ends first.
    """
    return await _cross(home, work, lambda: RuntimeError(OVER))


def come_back(operation: Callable[P, Awaitable[T]], own: Loop) -> Callable[P, Awaitable[T]]:
    """`operation`, to be called on koo's loop: each call of it runs on `own`, the loop of the caller that waits there.

    See `bring_back`.
    """

    async def on_own(*args: P.args, **kwargs: P.kwargs) -> T:
        return await operation(*args, **kwargs)

    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return await bring_back(own, on_own(*args, **kwargs))

    return call


async def bring_back(own: Loop, work: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine on the loop of the caller that waits for koo's. Cancelling it cancels it there.

    A loop of the caller's that ends first is a cancellation: it says nothing of the other side.
    """
    return await _cross(own, work, asyncio.CancelledError)


async def _cross(loop: Loop, work: Coroutine[Any, Any, T], over: Callable[[], BaseException]) -> T:
    own = asyncio.get_running_loop()
    arrived = own.create_future()

    def ended() -> None:
        with suppress(RuntimeError):  # The caller's loop is closed, and the caller with it.
            own.call_soon_threadsafe(_arrive, arrived)

    visit = Visit(work, ended)
    try:
        start_on(loop, visit)
    except RuntimeError:
        raise over() from None
    try:
        while not arrived.done():
            await asyncio.wait([arrived], timeout=LOOK_S)
            if not arrived.done() and not loop.is_running():
                visit.drop_unbegun()
                raise over()
    except BaseException as error:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(visit.cancel)
            if isinstance(error, asyncio.CancelledError):
                await asyncio.wait([arrived], timeout=SETTLE_S_MAX)
        raise
    if visit.was_cut:
        raise over()
    return visit.result()


def _arrive(arrived: asyncio.Future[None]) -> None:
    if not arrived.done():
        arrived.set_result(None)
