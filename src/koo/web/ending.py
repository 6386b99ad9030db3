"""How the server ends, whatever signal says so.

SIGTERM and SIGHUP: `/readyz` says no, and the door is shut a moment later (`readiness.py`); Ctrl-C shuts it at once.
Then running requests may finish for `GRACE_S`, then they are cancelled (each settles what it held), then the platform
closes. A second signal cancels the requests at once. `kill -9` needs none of it: what was held is in the ledger, and is
booked when its lease ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn

from koo.platform import Platform
from koo.shortages import shortage_now
from koo.web.crowd import Crowd
from koo.web.listener import Listener, quiet_about_accepts
from koo.web.live import live_of
from koo.web.readiness import readiness_of

GRACE_S = 10
TICKS_A_LOOK = 10
"""Of uvicorn's ticks, ten a second."""
NEWCOMER_S = 1.0
"""How long a new connection may take to send its first request; an older one without any is only held open."""
HURRY_S = 2
"""After a second signal, for the requests to settle what they held, and again for the platform to close."""


class Server(uvicorn.Server):
    """uvicorn's, with koo's end and a bound on connections; `on_ready` is called when it listens."""

    def __init__(
        self, config: uvicorn.Config, platform: Platform, crowd: Crowd, on_ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._crowd = crowd
        self._delay_s = platform.options.shutdown_delay_s
        self._readiness = readiness_of(platform)
        self._live = live_of(platform)
        self._on_ready = on_ready
        self._listeners: list[Listener] = []
        self.parent: int | None = None
        """The process id of a worker's parent."""
        self.beat: Callable[[], None] = lambda: None
        """Shows a worker's parent that the event loop turns; called once a second from the first answer on."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._listeners = [one for one in sockets or () if isinstance(one, Listener)]
        for listener in self._listeners:
            listener.make_room = self._crowd.make_room
            listener.refill()
        loop = asyncio.get_running_loop()
        if loop.get_exception_handler() is None:
            loop.set_exception_handler(quiet_about_accepts)
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.parent is not None and self._readiness.closing and sig != signal.SIGINT:
            return  # systemd sends it to parent and workers alike: the one from the parent is not a second signal
        if self.should_exit or self._readiness.closing:
            self.should_exit = self.force_exit = True
        elif sig == signal.SIGINT or not self.started:
            self._readiness.closing = self.should_exit = True
        else:
            self._readiness.begin_to_end(self._delay_s)

    async def on_tick(self, counter: int) -> bool:
        self._crowd.sweep()
        if self.parent is not None and os.getppid() != self.parent:
            self.parent = None  # it was killed: a worker that went on would keep the port from the next one
            self.handle_exit(signal.SIGTERM, None)
        if counter % TICKS_A_LOOK == 0:
            self.beat()
            self._look_for_descriptors()
        if self._readiness.closing:
            # First of all: an open page counts as a request that runs, and would cost the whole grace period.
            self._live.end()
        if (
            self._readiness.closing
            and not self.should_exit
            and not self._readiness.is_door_open(self.running)
        ):
            self.should_exit = True
            # From the same grace period: the sender of the signal kills what has not ended in time (Docker: 10 s).
            self.config.timeout_graceful_shutdown = round(
                max(GRACE_S - self._readiness.ending_s, GRACE_S / 2)
            )
        return await super().on_tick(counter)

    def _look_for_descriptors(self) -> None:
        if shortage_now() is not None:  # uvloop closes what it has no descriptor for, and says so nowhere
            self._crowd.make_room()
        for listener in self._listeners:
            listener.refill()

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return len(self.server_state.tasks)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        self._live.end()
        await self._let_newcomers_ask()
        await super().shutdown(sockets)
        if self.force_exit:
            await _hurry(self)

    async def _let_newcomers_ask(self) -> None:
        """One that was accepted a moment ago has its first request on the way: closed now, that would be lost."""
        until = self._crowd.monotonic() + NEWCOMER_S
        while not self.force_exit and self._crowd.monotonic() < until:
            await asyncio.sleep(0.05)
            now = self._crowd.monotonic()
            if not any(one.is_newcomer(now - NEWCOMER_S) for one in self.server_state.connections):  # type: ignore[union-attr]
                return


async def _hurry(server: uvicorn.Server) -> None:
    """What uvicorn leaves undone after a second signal: first the requests settle, then the platform closes.

    Left to the end of the loop, all would be cancelled at once, and logged as a failure.
    """
    tasks = set(server.server_state.tasks)
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=HURRY_S)
    with suppress(TimeoutError):
        async with asyncio.timeout(HURRY_S):
            await server.lifespan.shutdown()
