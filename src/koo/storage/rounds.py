"""Rounds: one exchange with the store after another, on the event loop that uses the store.

`run` is the background task. A script that has not opened the platform has no such task, so `serve` starts a temporary
one for as long as callers wait. All of this belongs to one event loop: an asyncio event or lock that has been waited
for raises on any other loop, and a loop that has ended cannot wake anything. When another loop takes over, `come`
replaces them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from koo.storage.executor import IN_USE


class Rounds:
    """`exchange()` makes one round and must not raise. `pause_s()` returns the seconds until the next one is due."""

    def __init__(self, exchange: Callable[[], Awaitable[None]], pause_s: Callable[[], float]) -> None:
        self._exchange = exchange
        self._pause_s = pause_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begin_again()

    def _begin_again(self) -> None:
        self._wake = asyncio.Event()
        self.one_at_a_time = asyncio.Lock()
        self._running = 0
        self._helper: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        """Whether a task is making rounds."""
        return self._running > 0

    def come(self, *, may_move: bool) -> bool:
        """Move to the running loop. Returns True if the loop changed: callers that waited on the old one are lost.

        Raises RuntimeError while the other loop is running, unless `may_move`.
        """
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return False
        if self._loop is not None and self._loop.is_running() and not may_move:
            raise RuntimeError(IN_USE)
        self._loop = loop
        self._begin_again()
        self._wake.set()
        return True

    def forget_parent(self) -> None:
        """In a forked child, leave the loop, because its tasks are the parent's."""
        self._loop = None
        self._begin_again()

    async def run(self, goes_on: Callable[[], bool] = lambda: True) -> None:
        """Make rounds while `goes_on()` is true; by default until cancelled."""
        loop = self._loop
        self._running += 1
        try:
            while goes_on():
                await self._until_due()
                await self._exchange()
        finally:
            # The task of a loop that has ended may be finalised after `come` moved to a new loop, where the count
            # started again at zero. Subtracting there would make the new loop's count negative.
            if self._loop is loop:
                self._running -= 1

    def serve(self, goes_on: Callable[[], bool]) -> None:
        """Start a task that makes rounds while `goes_on()` is true, unless one is already running."""
        if not self._running and (self._helper is None or self._helper.done()):
            self._helper = asyncio.create_task(self.run(goes_on))

    async def _until_due(self) -> None:
        timer = asyncio.get_running_loop().call_later(self._pause_s(), self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()
        # The event is cleared before the exchange, not after it: a caller that starts to wait while the exchange is in
        # flight must trigger the next one immediately, not after the usual pause.
        self._wake.clear()

    def ring(self) -> None:
        """Start the next round now."""
        # Setting the event wakes the task that waits for it, and a closed loop raises RuntimeError for that. A call may
        # settle that late, for example when its stream is garbage-collected after the loop has ended.
        if self._loop is None or not self._loop.is_closed():
            self._wake.set()
