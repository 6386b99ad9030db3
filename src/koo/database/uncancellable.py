"""Two ways to let work come to its end although its caller is cancelled. The cancellation goes up afterwards.

Without them a cancelled caller would leave before its connection is back, and take the pool's place with it.

`to_end` runs the work in a task of its own: always right, and the way for everything that is rare. `Unbroken` stays in
the caller's task, and saves two turns of the event loop (a tenth of a short transaction): it stands between the task
and the future that the work waits for, and answers "no" when the task, being cancelled, asks that future to cancel.
The task then keeps the cancellation in mind and delivers it when the future is done; it is put aside until the end.
Work that cancels itself to end its own waits (`asyncio.timeout`, `Alarm`) must not run in it: it would wait for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from functools import partial
from typing import Any


async def to_end(work: Coroutine[Any, Any, Any]) -> None:
    """Wait for `work`, in a task of its own, whatever happens."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        # Not asyncio.shield: it makes two more callbacks and a future that nobody needs.
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
    """`await Unbroken(work)`: the work's steps, none of which sees a cancellation."""

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
                    step = partial(work.throw, error)  # somebody cancelled what it waits for, not us
                else:
                    cancelled = error
            except BaseException as error:  # noqa: BLE001 - the future's own error: the work's to see
                step = partial(work.throw, error)
        if cancelled is not None:
            raise cancelled


class _Deaf:
    """A future, for the task that waits for it; but it does not let itself be cancelled."""

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
