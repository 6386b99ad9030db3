"""koo's page and API for an application without an event loop (Flask, Django without async), on a separate server.

The server runs on koo's event loop in a background thread and shows that platform: the breakers, pool and counts of
this process. Because it is separate from the application's server, it still responds when all threads of that server
are blocked, which is when it is needed. Its access rules are those of `koo serve`.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import nullcontext
from socket import socket
from typing import Self

import koo
from koo.bridge import BRIDGE
from koo.configuration.urls import url_of
from koo.events import log
from koo.forks import forget_in_child
from koo.platform import Platform
from koo.web.app import create_app
from koo.web.listener import bind
from koo.web.server import make_server

INSIDE_A_LOOP = (
    "an event loop is running in this thread, so the application has one: "
    "koo.web.mount(app) puts the page into it"
)
STARTS_S_MAX = 60.0


class Beside:
    """The server started by `serve_beside`. It ends with the process, or with `close`."""

    def __init__(self, platform: Platform, listener: socket) -> None:
        self.url = url_of(platform.options.host, listener.getsockname()[1])
        self._listener = listener
        self._ready = threading.Event()
        self._app = create_app(platform)
        self._server = make_server(platform, self._app, self._ready.set)
        # uvicorn's lifespan runs in a separate task, which would outlive a cancelled server. Run it here, around the
        # server: when koo's loop is cancelled at the end of the process, the server stops first and the platform
        # closes after it.
        self._server.config.lifespan = "off"
        # Signals belong to the main thread and its server; Python cannot even install a handler in this one.
        self._server.capture_signals = nullcontext  # type: ignore[method-assign, assignment]
        self._running: Future[None] | None = None
        forget_in_child(self)

    def __repr__(self) -> str:
        return f"<Beside {self.url}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def forget_parent(self) -> None:
        """In a forked child, close the copy of the socket. The parent serves; after the parent's end, this copy would
        keep clients waiting.
        """
        self._running = None
        self._listener.close()

    def begin(self) -> None:
        """Start serving and wait until it responds. Raises the error that prevented it."""
        running = self._running = asyncio.run_coroutine_threadsafe(self._run(), BRIDGE.loop())
        # A failed start must end the wait as well, so `_ready` is set when the task ends for any reason.
        running.add_done_callback(lambda _: self._ready.set())
        self._ready.wait(STARTS_S_MAX)
        if running.done():
            running.result()

    async def _run(self) -> None:
        with self._listener:
            async with self._app.router.lifespan_context(self._app):
                await self._server.serve(sockets=[self._listener])

    def close(self) -> None:
        """Stop the server, from any thread except its loop's. The platform closes too and reopens when it is next
        used."""
        running, self._running = self._running, None
        if running is not None:
            self._server.should_exit = True
            running.result()


def serve_beside(platform: Platform | None = None, *, port: int | None = None) -> Beside:
    """Serve koo's page and API in the background, for an application without an event loop. Returns when it responds.

    `platform` defaults to the process's own, `koo.platform`; `port` to `KOO_PORT`. Port 0 chooses a free one, which
    `url` and a log line report. The address is `KOO_HOST`; one that is not loopback needs `KOO_TOKEN`. Each process
    has its own server, because each has its own breakers and pool. A forked child has none.

    Raises `ConfigurationError` if a setting is invalid or the port is in use, and RuntimeError inside a running event
    loop.
    """
    if asyncio._get_running_loop() is not None:
        raise RuntimeError(INSIDE_A_LOOP)
    chosen = koo.platform if platform is None else platform
    options = chosen.options
    listener = bind(options.host, options.port if port is None else port)
    try:
        made = Beside(chosen, listener)
        made.begin()
    except BaseException:
        listener.close()
        raise
    log.info("koo's page is on %s/dashboard/", made.url)
    return made
