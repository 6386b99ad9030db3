"""`koo serve`: the server, in this process."""

from __future__ import annotations

import select
import sys
from contextlib import suppress
from typing import Any, Literal

from koo.cli.terminal import CommandFailed, Exit, say
from koo.log_options import LogFormat, LogLevel
from koo.platform import Platform
from koo.settings import Settings
from koo.web.app import create_app
from koo.web.server import serve as serve_http

LAST_WORD_S = 0.5


def serve(
    host: str | None,
    port: int | None,
    log_format: LogFormat | Literal["console"] | None,
    log_level: LogLevel | None,
    workers: int,
) -> Exit:
    """Serve until SIGINT or SIGTERM. What is given here wins over the settings."""
    if workers > 1:
        raise CommandFailed(
            "koo serves with one process: breakers and the limits of a minute and an hour are each process's own, "
            "so several would let through several times as much; --workers will take more with the version that shares "
            "them, until then use --workers 1",
            Exit.USAGE,
        )
    given: dict[str, Any] = {"koo_host": host, "koo_port": port}
    options = Settings(
        **{name: value for name, value in given.items() if value is not None}
    ).platform_options()
    platform = Platform(options)
    serve_http(platform, create_app(platform), log_format=log_format, log_level=log_level, out=sys.stdout)
    _say_last("koo has ended")
    return Exit.OK


def _say_last(sentence: str) -> None:
    """Say it where somebody reads: a log that is full would hold up the end."""
    with suppress(OSError, ValueError):
        if select.select([], [sys.stderr], [], LAST_WORD_S)[1]:
            say(sentence)
