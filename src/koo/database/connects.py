"""Connects: opens few connections at a time, and after a loss at other moments than other processes do.

Opening a connection is the most expensive request a client makes of a PostgreSQL server: a process, a login, caches to
fill. After a restart every caller finds its connection dead at the same moment, and if each opened its own at once,
the server would fall over again. So at most `most` are being opened at any moment; other callers wait, first come first
served, within the time that they have for a connection. For a while after a loss or a failed connect, each opening also
starts after a short random pause. Without it the processes of a fleet, which lost their connections together, would
come back together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from koo.database.dial import unshown
from koo.options import DatabaseOptions, GuardOptions

T = TypeVar("T")

UNSETTLED_S = 10.0
"""For this long after a loss, connects are spread out: a restarted server needs some seconds to fill its caches."""
SPREAD_S = 0.1
"""The longest pause: with four at a time, a process opens at most about eighty connections a second."""
QUEUE_MAX = 10_000
ATTEMPT_SHARE = 0.98


class Connects:
    """At most `most` at a time. `opening`: how many are being opened now, `waiting`: how many callers wait for it."""

    def __init__(self, most: int, monotonic: Callable[[], float], draw: Callable[[], float]) -> None:
        self.opening = 0
        self.waiting = 0
        self._places = asyncio.Semaphore(most)
        self._monotonic = monotonic
        self._draw = draw
        self._unsettled_until = float("-inf")

    def unsettle(self) -> None:
        """A connection was lost, or could not be opened."""
        self._unsettled_until = self._monotonic() + UNSETTLED_S

    async def open(self, connect: Callable[..., Awaitable[T]], /, *args: object, **kwargs: object) -> T:
        """`await connect(*args, **kwargs)`, once a place is free."""
        kwargs = unshown(kwargs)
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        self.opening += 1
        try:
            if self._monotonic() < self._unsettled_until:
                await asyncio.sleep(self._draw() * SPREAD_S)
            return await connect(*args, **kwargs)
        except Exception:
            self.unsettle()
            raise
        finally:
            self.opening -= 1
            self._places.release()


def connect_options(options: DatabaseOptions) -> GuardOptions:
    """The guard's options for connecting and BEGIN, which are always safe to repeat."""
    return GuardOptions(
        timeout_s=options.pool_timeout_s,
        # A little less than the whole: an attempt that times out counts as the server's failure, a passed deadline does
        # not count against it.
        attempt_timeout_s=options.pool_timeout_s * ATTEMPT_SHARE,
        slow_s=options.slow_call_s,
        concurrency_max=options.pool_size + options.max_overflow,
        queue_max=QUEUE_MAX,
        idempotent=True,
        breaker=options.breaker,
        retry=options.retry,
    )
