"""Two ways to finish work although its caller is cancelled. The cancellation is raised afterwards.

Without them a cancelled caller would leave before its connection is back, and the pool would lose that place.

`to_end` runs the work in a task of its own: always right, and used for everything rare. `Unbroken` stays in the
caller's task, and saves two turns of the event loop (a tenth of a short transaction): it stands between the task and
the future that the work waits for, and when the cancelled task asks that future to cancel, it answers False. The task
then remembers the cancellation and delivers it when the future is done; it is deferred until the end. Work that ends
its own waits by cancelling itself (`asyncio.timeout`, `Alarm`) must not run in it: it would wait forever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from functools import partial
from typing import Any


async def to_end(work: Coroutine[Any, Any, Any]) -> None:
    """Wait for `work`, in a task of its own, even if the caller is cancelled."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        # Not asyncio.shield: it would make two more callbacks and a future for nothing.
        waiter = loop.create_future()
        wake = partial(_wake, waiter)
        task.add_done_callback(wake)
        try:
            await waiter
        except asyncio.CancelledError as error:
            task.remove_done_callback(wake)
            cancelled = error
    if cancelled is not None and not task.cancelled():
        raise cancelled from task.exception()
    task.result()


def _wake(waiter: asyncio.Future[None], task: asyncio.Task[Any]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Unbroken:
    """`await Unbroken(work)`: run the work's steps, none of which sees a cancellation."""

    __slots__ = ("_work",)

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = work

    def __await__(self) -> Generator[Any, None, None]:
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
                if future is not None and future.cancelled():
                    step = partial(work.throw, error)  # what it waits for was cancelled, not this task
                else:
                    cancelled = error
            except BaseException as error:  # noqa: BLE001 - the future's own error: the work's to see
                step = partial(work.throw, error)
        if cancelled is not None:
            raise cancelled


class _Deaf:
    """A future as the task sees it, which refuses to be cancelled."""

    __slots__ = ("_asyncio_future_blocking", "_future")

    def __init__(self, future: asyncio.Future[Any]) -> None:
        self._future = future
        self._asyncio_future_blocking = True
        future._asyncio_future_blocking = False

    def cancel(self, msg: object = None) -> bool:
        return False

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Context | None = None) -> None:
        self._future.add_done_callback(callback, context=context)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._future.get_loop()
