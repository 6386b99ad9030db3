"""How the server shuts down, for each signal.

On SIGTERM and SIGHUP, `/readyz` turns to 503 first and new connections are refused a moment later (`readiness.py`); on
Ctrl-C they are refused immediately. Then running requests have `GRACE_S` to finish. After that they are cancelled
(each settles its holds), and the platform closes. A second signal cancels the requests immediately. `kill -9` needs
none of this: holds are in the ledger and are settled when their lease expires.
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

# Docker sends SIGKILL 10 s after SIGTERM; Kubernetes waits for 30 s.
GRACE_S = 10
TICKS_A_LOOK = 10
"""uvicorn ticks ten times a second."""
NEWCOMER_S = 1.0
"""How long a new connection may take to send its first request. An older one without a request is merely held open."""
HURRY_S = 2
"""After a second signal: for the requests to settle their holds, and the same again for the platform to close."""


class Server(uvicorn.Server):
    """uvicorn's server, with koo's shutdown and a limit on connections. `on_ready` is called when it listens."""

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
        """Shows a worker's parent that the event loop runs; called once a second from the first response on."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._listeners = [one for one in sockets or () if isinstance(one, Listener)]
        for listener in self._listeners:
            listener.make_room = self._crowd.make_room
            listener.refill()
        loop = asyncio.get_running_loop()
        # An application that has set its own handler keeps it; it sees asyncio's complaint about descriptors once a
        # second.
        if loop.get_exception_handler() is None:
            loop.set_exception_handler(quiet_about_accepts)
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.parent is not None and self._readiness.closing and sig != signal.SIGINT:
            # systemd sends SIGTERM to every process of a service, and the parent passes its own on: a worker receives
            # it twice. That is one request to stop, not two. A deliberate second signal reaches workers as SIGINT.
            return
        if self.should_exit or self._readiness.closing:
            self.should_exit = self.force_exit = True
        elif sig == signal.SIGINT or not self.started:
            self._readiness.closing = self.should_exit = True
        else:
            self._readiness.begin_to_end(self._delay_s)

    async def on_tick(self, counter: int) -> bool:
        self._crowd.sweep()
        if self.parent is not None and os.getppid() != self.parent:
            # The parent was killed. A worker that went on would keep the port, and the next `koo serve` could not bind
            # it. There is no signal for this on all systems, so compare the parent's id: an orphan is adopted by
            # another process.
            self.parent = None
            self.handle_exit(signal.SIGTERM, None)
        if counter % TICKS_A_LOOK == 0:
            self.beat()
            self._look_for_descriptors()
        if self._readiness.closing:
            # The streams are ended first, before requests are awaited: an open dashboard is a running request that
            # never ends. It would use up the whole grace period and then be cancelled.
            self._live.end()
        if (
            self._readiness.closing
            and not self.should_exit
            and not self._readiness.is_door_open(self.running)
        ):
            self.should_exit = True
            # The wait before this counts against the same period: the sender of the signal kills what has not ended in
            # time (Docker after 10 s). But at least half of it remains, or requests would have no time to finish.
            self.config.timeout_graceful_shutdown = round(
                max(GRACE_S - self._readiness.ending_s, GRACE_S / 2)
            )
        return await super().on_tick(counter)

    def _look_for_descriptors(self) -> None:
        if shortage_now() is not None:  # uvloop silently closes connections for which it has no descriptor
            self._crowd.make_room()
        for listener in self._listeners:
            listener.refill()

    @property
    def running(self) -> int:
        """The number of requests being answered."""
        return len(self.server_state.tasks)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn's own shutdown closes the listening sockets and, right after, every connection without a request.
        # Between the two, give connections that were accepted a moment ago time to send their first request.
        for server in self.servers:
            server.close()
        self._live.end()
        await self._let_newcomers_ask()
        await super().shutdown(sockets)
        if self.force_exit:
            await _hurry(self)

    async def _let_newcomers_ask(self) -> None:
        """Wait for first requests that are on their way. Otherwise each rolling restart would lose a few."""
        until = self._crowd.monotonic() + NEWCOMER_S
        while not self.force_exit and self._crowd.monotonic() < until:
            await asyncio.sleep(0.05)
            now = self._crowd.monotonic()
            if not any(one.is_newcomer(now - NEWCOMER_S) for one in self.server_state.connections):  # type: ignore[union-attr]
                return


async def _hurry(server: uvicorn.Server) -> None:
    """After a second signal, do what uvicorn leaves out: let the requests settle, then close the platform.

    Otherwise the end of the event loop would cancel everything at the same time, and log it as a failure.
    """
    tasks = set(server.server_state.tasks)
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=HURRY_S)
    with suppress(TimeoutError):
        async with asyncio.timeout(HURRY_S):
            await server.lifespan.shutdown()
