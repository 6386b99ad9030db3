"""One worker of `koo serve --workers`: the server of `server.py`, with a socket and a log shared with other workers."""

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
        # the local model's process would inherit them and keep the port in use after this worker ends
        os.set_inheritable(one, False)

    def on_ready() -> None:
        if place.announces:
            announce(platform, listener.getsockname()[1], out, place.count)
        beat()

    beat = beating(place.ready)
    # `kill -QUIT` makes a worker print the stacks of its threads. The parent sends it before it kills a stuck worker.
    # Stacks contain files and line numbers, but no values.
    faulthandler.register(signal.SIGQUIT, all_threads=True, chain=False)
    server = make_server(platform, create_app(platform), on_ready)
    assert isinstance(server, Server)
    server.parent, server.beat = place.parent, beat
    given = place.given
    run(server, listener, chosen_logs(platform.options.log, given.log_format, given.log_level), place.number)


def beating(descriptor: int) -> Callable[[], None]:
    """Return a function that shows the parent that the event loop runs."""
    os.set_blocking(descriptor, False)

    def beat() -> None:
        # Neither a parent that was killed (`Server.parent` then ends this worker) nor one that is stopped and reads
        # nothing may block the loop. A full pipe loses a beat, which does no harm: the parent only needs to read
        # something.
        with suppress(BrokenPipeError, BlockingIOError):
            os.write(descriptor, b"+")

    return beat
