"""Two ways to finish work although its caller is cancelled. The cancellation is raised afterwards.

Without them a cancelled caller would leave before its connection was returned, and the pool would lose that slot.

`to_end` runs the work in a separate task. It is always safe, and is used for all work that is rare.

`Unbroken` stays in the caller's task, which saves two turns of the event loop, a tenth of a short transaction. It wraps
the future that the work waits for. `task.cancel()` calls the wrapper's `cancel()`, which returns False. The task then
remembers the cancellation and delivers it when the future completes, and `Unbroken` defers it until the work ends. Work
that ends its own waits by cancelling its task (`asyncio.timeout`, `Alarm`) must not run in it: they would never end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from functools import partial
from typing import Any


async def to_end(work: Coroutine[Any, Any, Any]) -> None:
    """Run `work` in a separate task, and wait for its end even if the caller is cancelled."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        # `await task` would cancel the work along with the caller. `asyncio.shield` would not, but adds a future and
        # two callbacks. A fresh waiter for each round, because a cancelled future stays cancelled: reusing it would
        # turn a second cancellation into a busy loop.
        waiter = loop.create_future()
        wake = partial(_wake, waiter)
        task.add_done_callback(wake)
        try:
            await waiter
        except asyncio.CancelledError as error:
            task.remove_done_callback(wake)
            cancelled = error
    # The caller's cancellation wins over the work's own error: a task that swallowed it would break `asyncio.timeout`
    # and `TaskGroup` around it. The error is kept as its cause.
    if cancelled is not None and not task.cancelled():
        raise cancelled from task.exception()
    task.result()


def _wake(waiter: asyncio.Future[None], task: asyncio.Task[Any]) -> None:
    if not waiter.done():  # cancelled in the same turn of the loop in which the work ended
        waiter.set_result(None)


class Unbroken:
    """`await Unbroken(work)` runs the work to its end; none of its steps sees a cancellation of the task."""

    __slots__ = ("_work",)

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = work

    def __await__(self) -> Generator[Any, None, None]:
        # What `await work` does, written out: send the result of each wait into the coroutine and yield the next future
        # it waits for. Only here can a CancelledError be caught between two steps, before the coroutine sees it.
        work = self._work
        cancelled: asyncio.CancelledError | None = None
        step: Callable[[], Any] = partial(work.send, None)
        while True:
            try:
                future = step()
            except StopIteration:
                break
            except BaseException as error:
                if cancelled is not None:
                    raise cancelled from error
                raise
            step = partial(work.send, None)
            try:
                yield None if future is None else _Deaf(future)
            except asyncio.CancelledError as error:
                # Two different things arrive as CancelledError. If the awaited future itself was cancelled, by its
                # owner, the work must see that, or it would take a missing result for success. Otherwise this task was
                # cancelled, and that is kept for later.
                if future is not None and future.cancelled():
                    step = partial(work.throw, error)
                else:
                    cancelled = error
            except BaseException as error:  # noqa: BLE001 - the error of the awaited future, which the work handles
                step = partial(work.throw, error)
        if cancelled is not None:
            raise cancelled


class _Deaf:
    """A wrapper that the task sees in place of a future, and that refuses to be cancelled."""

    __slots__ = ("_asyncio_future_blocking", "_future")

    def __init__(self, future: asyncio.Future[Any]) -> None:
        # asyncio's protocol between a future and a task: awaiting a future sets this flag. The task checks and clears
        # the flag of the object that it receives, and raises an error if it is not set. The task receives this wrapper,
        # so the wrapper's flag is set, and the real future's is cleared here in the task's place.
        self._future = future
        self._asyncio_future_blocking = True
        future._asyncio_future_blocking = False

    def cancel(self, msg: object = None) -> bool:
        return False

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Context | None = None) -> None:
        self._future.add_done_callback(callback, context=context)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._future.get_loop()
