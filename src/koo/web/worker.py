"""One worker of `koo serve --workers`: the server of `server.py`, on a socket and with a log that others share."""

from __future__ import annotations

import os
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
    """Serve until told to end. Raises `ConfigurationError` for settings that cannot be right."""
    be_worker(str(place.number))
    listener = Listener(-1, -1, -1, place.listener)
    for one in (place.listener, place.ready):
        os.set_inheritable(one, False)  # the local model's process would keep the port after our end

    def on_ready() -> None:
        if place.announces:
            announce(platform, listener.getsockname()[1], out, place.count)
        with suppress(BrokenPipeError):  # the parent was killed meanwhile: see `Server.parent`
            os.write(place.ready, b"+")
        os.close(place.ready)

    server = make_server(platform, create_app(platform), on_ready)
    assert isinstance(server, Server)
    server.parent = place.parent
    given = place.given
    run(server, listener, chosen_logs(platform.options.log, given.log_format, given.log_level), place.number)
