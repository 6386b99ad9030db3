"""Connects: opens only a few connections at a time, and spreads them out after a loss.

Opening a connection is the most expensive request that a client can make of a PostgreSQL server: a process, a login,
caches to fill. After a restart every caller finds its connection dead at the same moment, and if all of them
reconnected immediately, the server could fail again. So at most `most` connections are being opened at any moment.
Other callers wait, first come first served, within the time that they have for a connection. For a while after a loss
or a failed connect, each opening also waits for a short random pause: the processes of a fleet lost their connections
at the same moment, and would otherwise reconnect at the same moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from koo.database.dial import unshown
from koo.database.faults import SERVICE, NoneLeft, ScopeStage, explain, unavailable
from koo.errors import DatabaseTimeout, Kind, describe_s
from koo.options import DatabaseOptions, GuardOptions

T = TypeVar("T")

UNSETTLED_S = 10.0
"""For this long after a loss, connects are spread out: a restarted server needs a few seconds to fill its caches."""
SPREAD_S = 0.1
"""The longest pause. With four connections at a time, a process then opens about eighty a second."""
QUEUE_MAX = 10_000
"""How many callers may wait for a connection: more than any pool can serve in time, so it only bounds memory."""
ATTEMPT_SHARE, CONNECT_SHARE = 0.98, 0.99
"""When an attempt of the guard ends, and when one outside the guard does, as shares of the time for a connection. The
guard comes first, because only it counts a server that never responds; a driver's own timeout comes last, because its
error says less.
"""


class Connects:
    """`opening`: how many connections are being opened; `waiting`: how many callers wait until they may open one.

    `within_s`: the longest that a caller waits for both. `shrink` is called when the server has no connection left, and
    returns whether the pool has some, for which its callers can wait.
    """

    def __init__(
        self, most: int, within_s: float, monotonic: Callable[[], float], draw: Callable[[], float]
    ) -> None:
        self.shrink: Callable[[], bool] = lambda: False
        self.opening = 0
        self.waiting = 0
        self._within_s = within_s
        self._slots = asyncio.Semaphore(most)
        self._monotonic = monotonic
        self._draw = draw
        self._unsettled_until = float("-inf")

    def unsettle(self) -> None:
        """Spread out the next connects: a connection was lost or could not be opened."""
        self._unsettled_until = self._monotonic() + UNSETTLED_S

    async def open(self, connect: Callable[..., Awaitable[T]], /, *args: object, **kwargs: object) -> T:
        """Run `await connect(*args, **kwargs)` once a slot is free. Raises `DatabaseTimeout` if both take too long."""
        kwargs = unshown(kwargs)
        try:
            async with asyncio.timeout(self._within_s * CONNECT_SHARE) as limit:
                return await self._open(connect, args, kwargs)
        except TimeoutError:
            if not limit.expired():  # the driver's own, or the operating system's
                raise
            reason = f"no connection could be opened within {describe_s(self._within_s)}"
            raise DatabaseTimeout(SERVICE, reason, kind=Kind.TIMEOUT) from None

    async def _open(
        self, connect: Callable[..., Awaitable[T]], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> T:
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        self.opening += 1
        try:
            # The pause is taken while holding the slot. If it were taken before, the callers of one process would
            # spread out but then still connect at the full rate.
            if self._monotonic() < self._unsettled_until:
                await asyncio.sleep(self._draw() * SPREAD_S)
            return await connect(*args, **kwargs)
        except Exception as error:
            self.unsettle()
            meaning = explain(error, ScopeStage.CONNECT)
            if meaning.kind is Kind.OVERLOADED and self.shrink():
                raise unavailable(error, meaning, NoneLeft) from error
            raise
        finally:
            self.opening -= 1
            self._slots.release()


def connect_options(options: DatabaseOptions) -> GuardOptions:
    """The guard's options for connecting and BEGIN, which are always safe to repeat."""
    return GuardOptions(
        timeout_s=options.pool_timeout_s,
        # It is slightly shorter than the caller's time: an attempt that times out counts as a failure of the server,
        # while a caller's deadline does not. With equal times the deadline could come first, and a server that never
        # responds would not open the breaker.
        attempt_timeout_s=options.pool_timeout_s * ATTEMPT_SHARE,
        slow_s=options.slow_call_s,
        concurrency_max=options.pool_size + options.max_overflow,
        queue_max=QUEUE_MAX,
        idempotent=True,
        breaker=options.breaker,
        retry=options.retry,
    )
