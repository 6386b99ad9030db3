"""One worker of `koo serve --workers`: the server of `server.py`, on a socket and with a log that others share."""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from koo.platform import Platform
from koo.web.app import create_app
from koo.web.ending import Server
from koo.web.listener import Listener
from koo.web.logs import chosen_logs
from koo.web.membership import Membership
from koo.web.server import announce, make_server, run
from koo.workplace import be_worker


def serve_as(place: Membership, platform: Platform, out: TextIO) -> None:
    """Serve until a signal ends it. Raises `ConfigurationError` for invalid settings."""
    be_worker(str(place.number))
    listener = Listener(-1, -1, -1, place.listener)
    for one in (place.listener, place.ready):
        os.set_inheritable(one, False)  # the local model's process would keep the port after our end

    def on_ready() -> None:
        if place.announces:
            announce(platform, listener.getsockname()[1], out, place.count)
        beat()

    beat = beating(place.ready)
    # `kill -QUIT` prints where it stands, as its parent does before it kills a stuck one. Stacks name files and lines,
    # and no values.
    faulthandler.register(signal.SIGQUIT, all_threads=True, chain=False)
    server = make_server(platform, create_app(platform), on_ready)
    assert isinstance(server, Server)
    server.parent, server.beat = place.parent, beat
    given = place.given
    run(server, listener, chosen_logs(platform.options.log, given.log_format, given.log_level), place.number)


def beating(descriptor: int) -> Callable[[], None]:
    """Shows the parent that the event loop turns."""
    os.set_blocking(descriptor, False)

    def beat() -> None:
        # A parent that was killed (`Server.parent` ends this worker), or that is stopped and reads nothing: neither
        # may hold up the loop.
        with suppress(BrokenPipeError, BlockingIOError):
            os.write(descriptor, b"+")

    return beat
