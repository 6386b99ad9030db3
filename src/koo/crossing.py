"""Crossing: running a coroutine of one event loop on another loop, in another thread.

koo lives on one loop, its home. Calls from a second loop, or from a thread without one, cross to it. An operation of
the user's own crosses back: its client belongs to the caller's loop, so only its guard runs at home.

* The context (a deadline, a tracing span) is passed along in both directions. Variables set on the other loop stay
  there, as in a task.
* A cancellation crosses too, and the caller waits for it to take effect: what was spent must be booked, and two tasks
  must not use one client at the same time. A second cancellation does not wait.
* An exception crosses as a value. A SystemExit that left a task would end the loop, and all other work on it.
* A loop that stops for good wakes no caller in another thread, so a waiting caller checks once a second that the loop
  still runs.
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
"""How often a waiting caller checks that the loop still runs. A call that ends wakes its caller immediately."""
SETTLE_S_MAX = 5.0
"""How long an interrupted call may take to settle. A second interrupt ends the wait immediately."""
OVER = "koo's event loop ended before the call did, because the process or the loop that koo was open on is ending"
NO_LOOP = (
    "koo runs on asyncio, and no asyncio event loop is running here: under trio, call it in a thread with "
    "`await trio.to_thread.run_sync(koo.run, coroutine)`"
)


def running_loop() -> Loop:
    """The running loop. Raises RuntimeError, with the code to write instead, under trio and other kinds of loops."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(NO_LOOP) from None


def begin(loop: Loop, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """Start background work on that loop, outside the caller's context.

    In that context the caller's deadline would cut off the work, and the caller's tracing span would never end. Closes
    the coroutine and raises the loop's error if the loop is closed or its owner's task factory fails.
    """
    try:
        # `create_task(context=…)` is not used: a task factory written for Python 3.10 does not accept that argument.
        return Context().run(loop.create_task, work, name=name)
    except BaseException:
        work.close()
        raise


class Visit(Generic[T]):
    """One coroutine on a loop that is not its caller's, and its outcome. `ended` is called on that loop at the end."""

    __slots__ = ("_ended", "_error", "_task", "_value", "_work", "was_cut")

    def __init__(self, work: Awaitable[T], ended: Callable[[], object]) -> None:
        self._work = work
        self._ended = ended
        self._task: asyncio.Task[None] | None = None
        self._value: T | None = None
        self._error: BaseException | None = None
        self.was_cut = False
        """Whether its task was cancelled from outside; False if the coroutine itself raised CancelledError."""

    def start(self) -> None:
        """Start the task; called on that loop, in a copy of the caller's context."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="koo call")
        self._task.add_done_callback(self._end)

    async def _run(self) -> None:
        try:
            self._value = await self.work()
        except BaseException as error:  # noqa: BLE001 - even SystemExit is passed to the caller: here it would end the loop
            self._error = error

    async def work(self) -> T:
        """The work itself; subclasses wrap it."""
        return await self._work

    def _end(self, task: asyncio.Task[None]) -> None:
        # `was_cut` distinguishes two CancelledErrors that look alike: one that the loop or the caller caused, and one
        # that the operation itself raised, for example from a client's own timeout. The latter is passed to the caller
        # unchanged.
        if task.cancelled():  # before its first step: `_run` catches every later cancellation
            self.drop()
            self._error = asyncio.CancelledError()
        self.was_cut = isinstance(self._error, asyncio.CancelledError) and (
            task.cancelled() or task.cancelling() > 0
        )
        self._ended()

    def cancel(self) -> None:
        """Cancel the task; called on the loop that runs it."""
        if self._task is not None:
            self._task.cancel()

    def drop(self) -> None:
        """Close the coroutine unstarted, so that Python does not warn that it was never awaited."""
        if isinstance(self._work, Coroutine):
            self._work.close()

    def drop_unbegun(self) -> None:
        """Close the coroutine if its loop ended before starting it."""
        if self._task is None:
            self.drop()

    def result(self) -> T:
        """The coroutine's result. Raises its exception."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del (
                error
            )  # its traceback holds this frame: a cycle that would keep every caller's variables alive
        return cast("T", self._value)


def start_on(loop: Loop, visit: Visit[Any]) -> None:
    """Start the work on that loop, in a copy of this context. Raises RuntimeError if the loop has ended."""
    try:
        loop.call_soon_threadsafe(visit.start)
    except RuntimeError:  # closed a moment ago
        visit.drop()
        raise RuntimeError(OVER) from None


async def carry(home: Loop, work: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine on another running loop, from a coroutine on this one. Cancelling it cancels it there.

    Raises the coroutine's exception, and RuntimeError if that loop ends first.
    """
    return await _cross(home, work, lambda: RuntimeError(OVER))


def come_back(operation: Callable[P, Awaitable[T]], own: Loop) -> Callable[P, Awaitable[T]]:
    """Wrap `operation` so that koo's loop can call it: each call runs on `own`, the loop of the waiting caller.

    See `bring_back`.
    """

    async def on_own(*args: P.args, **kwargs: P.kwargs) -> T:
        return await operation(*args, **kwargs)

    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return await bring_back(own, on_own(*args, **kwargs))

    return call


async def bring_back(own: Loop, work: Coroutine[Any, Any, T]) -> T:
    """From koo's loop, await a coroutine on the caller's loop. Cancelling it cancels it there.

    If the caller's loop ends first, that counts as a cancellation: it says nothing about the dependency.
    """
    return await _cross(own, work, asyncio.CancelledError)


async def _cross(loop: Loop, work: Coroutine[Any, Any, T], over: Callable[[], BaseException]) -> T:
    own = asyncio.get_running_loop()
    arrived = own.create_future()

    # This is called on the other loop's thread, and `Future.set_result` is not thread-safe: it would append to this
    # loop's queue without waking its selector, and the caller would sleep until something else wakes the loop.
    def ended() -> None:
        with suppress(RuntimeError):  # the caller's loop is closed, so no caller is waiting
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
    # A cancellation waits here for the work on the other loop to settle. If it were raised immediately, the caller
    # could close its client, or start a second call with it, while the first one is still using it in the other thread.
    except BaseException as error:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(visit.cancel)
            if isinstance(error, asyncio.CancelledError):
                await asyncio.wait([arrived], timeout=SETTLE_S_MAX)
        raise
    # The other loop cancelled the work because it is ending. Raised as a CancelledError in a task that was not
    # cancelled, it would end the caller silently; `carry` therefore raises a RuntimeError that gives the reason.
    if visit.was_cut:
        raise over()
    return visit.result()


def _arrive(arrived: asyncio.Future[None]) -> None:
    if not arrived.done():
        arrived.set_result(None)
