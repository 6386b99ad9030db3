"""Greenlets that are reused for the next call.

SQLAlchemy runs its synchronous code in a greenlet: a stack that can be suspended in the middle of a function and
resumed later. It creates one for each call, which maps and unmaps that stack's memory: about 8 µs, three or four times
in each transaction. Here a greenlet that has finished its work waits for the next call instead.

An idle greenlet must not keep anything of its last call alive: arguments, result, or context, where applications store
their current request. So a greenlet works on attributes, which are cleared, and not on local variables.
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
"""Idle greenlets kept per thread; each has a stack of about 16 KiB."""


class Kept(greenlet):  # type: ignore[misc]
    """A greenlet that waits for its next call. SQLAlchemy's `await_only` works in it as in its own greenlets."""

    __sqlalchemy_greenlet_provider__ = True

    call: Callable[[], Any] | None = None
    result: Any = None
    error: BaseException | None = None

    def __init__(self) -> None:
        super().__init__(_serve)

    def work(self) -> None:
        """Run the call in `call`."""
        assert self.call is not None
        try:
            self.result = self.call()
        except GreenletExit:
            raise  # the last reference to this greenlet is gone
        except BaseException as error:  # noqa: BLE001 - `in_greenlet` raises it again
            self.error = error
        self.call = None


def _serve() -> None:
    """Serve one call after another. The greenlet library ends an idle greenlet when its last reference is gone."""
    while True:
        # It is not kept in a local variable: the greenlet's own stack would then refer to the greenlet, so there would
        # always be one reference left, and its stack would never be freed.
        getcurrent().work()
        getcurrent().parent.switch()


class Idle(threading.local):
    """The idle greenlets of this thread: a greenlet cannot be resumed in another thread."""

    def __init__(self) -> None:
        self.greenlets: list[Kept] = []


_idle = Idle()


async def in_greenlet(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Like SQLAlchemy's `greenlet_spawn`: run `function(*args, **kwargs)`, which may wait with `await_only`."""
    idle, here = _idle.greenlets, getcurrent()
    kept = idle.pop() if idle else Kept()
    # The parent is where a switch returns to, and the context is where the function finds its ContextVars. Both are set
    # for each call: an idle greenlet still has those of its last caller, which may be another task.
    if kept.parent is not here:
        kept.parent = here
    kept.gr_context = here.gr_context
    kept.call = partial(function, *args, **kwargs) if args or kwargs else function
    # Each switch returns the awaitable that the function waits for. The function has ended once `call` is cleared.
    waits_for = kept.switch()
    while kept.call is not None:
        try:
            value = await waits_for
        except BaseException:  # noqa: BLE001 - raised inside the function, a cancellation too
            waits_for = kept.throw(*sys.exc_info())
        else:
            waits_for = kept.switch(value)
    # A greenlet becomes idle only here, after its function has ended. One with a suspended function on its stack would
    # resume that function for the next caller.
    result, error = kept.result, kept.error
    kept.result = kept.error = kept.gr_context = None
    if len(idle) < IDLE_MAX:
        idle.append(kept)
    if error is None:
        return result
    try:
        raise error
    finally:
        del error  # its traceback refers to this frame, and the frame would refer to the error: a cycle
