"""Greenlets that are kept for the next call.

SQLAlchemy runs its synchronous code in a greenlet, a stack that can be left in the middle and resumed when what it
waits for is ready. It makes one for each call, and maps and unmaps that stack's memory each time: some 8 µs, three or
four times in each transaction. Here a greenlet that has finished its work waits for the next call.

Nothing of a call may stay in an idle greenlet: not its arguments, its result, or its context, in which an
application keeps its request. So a greenlet works on attributes, which are cleared, and not on locals.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from greenlet import GreenletExit, getcurrent, greenlet

T = TypeVar("T")

IDLE_MAX = 64
"""How many are kept in each thread; each holds some 16 KiB of stack."""


class Kept(greenlet):  # type: ignore[misc]
    """A greenlet that waits for its next call. SQLAlchemy's `await_only` works in it as in SQLAlchemy's own."""

    __sqlalchemy_greenlet_provider__ = True

    call: Callable[[], Any] | None = None
    result: Any = None
    error: BaseException | None = None

    def __init__(self) -> None:
        super().__init__(_serve)

    def work(self) -> None:
        """Run the one call that was set."""
        assert self.call is not None
        try:
            self.result = self.call()
        except GreenletExit:
            raise  # this greenlet was dropped
        except BaseException as error:  # noqa: BLE001 - it is raised again, where the call was made
            self.error = error
        self.call = None


def _serve() -> None:
    """One call after another, forever: the greenlet library ends an idle greenlet that is dropped."""
    while True:
        # Never in a variable: it would refer to itself, and not be freed with the last other reference.
        getcurrent().work()
        getcurrent().parent.switch()


class Idle(threading.local):
    """The idle greenlets of this thread: a greenlet cannot be resumed in another one."""

    def __init__(self) -> None:
        self.greenlets: list[Kept] = []


_idle = Idle()


async def in_greenlet(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """As SQLAlchemy's `greenlet_spawn`: `function(*args, **kwargs)`, which may wait by `await_only`."""
    idle, here = _idle.greenlets, getcurrent()
    kept = idle.pop() if idle else Kept()
    if kept.parent is not here:
        kept.parent = here
    kept.gr_context = here.gr_context
    kept.call = partial(function, *args, **kwargs) if args or kwargs else function
    # Each switch returns what it waits for; it is done when it no longer has a call.
    waits_for = kept.switch()
    while kept.call is not None:
        try:
            value = await waits_for
        except BaseException:  # noqa: BLE001 - the function's to see, a cancellation too
            waits_for = kept.throw(*sys.exc_info())
        else:
            waits_for = kept.switch(value)
    result, error = kept.result, kept.error
    kept.result = kept.error = kept.gr_context = None
    if len(idle) < IDLE_MAX:
        idle.append(kept)
    if error is None:
        return result
    try:
        raise error
    finally:
        del error  # its traceback keeps this frame, and the frame would keep the error: a cycle
