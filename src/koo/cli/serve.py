"""`koo serve`: the server, in this process or in worker processes."""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress
from typing import Any, Literal

from koo.cli.terminal import CommandFailed, Exit, say
from koo.log_options import LogFormat, LogLevel
from koo.options import PlatformOptions
from koo.settings import Settings
from koo.web.membership import Given, Membership

LAST_WORD_S = 0.5


def serve(
    host: str | None,
    port: int | None,
    log_format: LogFormat | Literal["console"] | None,
    log_level: LogLevel | None,
    workers: int,
) -> Exit:
    """Serve until SIGINT or SIGTERM. Arguments override the settings."""
    if workers > 1 and not hasattr(os, "fork"):
        raise CommandFailed(
            "several workers need a socket that processes can share, which this system does not offer; use --workers 1",
            Exit.USAGE,
        )
    given = Given(host=host, port=port, log_format=log_format, log_level=log_level)
    code = _serve_by(workers, given) if workers > 1 else _serve_here(given)
    _say_last("koo has stopped")
    return code


def _options(given: Given) -> PlatformOptions:
    values: dict[str, Any] = {"koo_host": given.host, "koo_port": given.port}
    return Settings(**{name: value for name, value in values.items() if value is not None}).platform_options()


def _serve_here(given: Given) -> Exit:
    from koo.platform import Platform
    from koo.web.app import create_app
    from koo.web.server import serve as serve_http

    platform = Platform(_options(given))
    serve_http(
        platform,
        create_app(platform),
        log_format=given.log_format,
        log_level=given.log_level,
        out=sys.stdout,
    )
    return Exit.OK


def _serve_by(count: int, given: Given) -> Exit:
    """The parent process. It imports nothing that only a worker needs."""
    from koo.web.listener import bind
    from koo.web.logs import chosen_logs, logs_set_up
    from koo.web.workers import Workers, interpreter

    options = _options(given)
    listener = bind(options.host, options.port)

    def command(number: int, ready: int, announces: bool) -> list[str]:
        place = Membership(number, count, os.getpid(), listener.fileno(), ready, announces, given)
        return [*interpreter(), "-m", "koo.cli", "worker", place.text()]

    with listener, logs_set_up(chosen_logs(options.log, given.log_format, given.log_level)):
        code = Workers(count, command, listener, options.shutdown_delay_s).run()
    return Exit(code) if code in list(Exit) else Exit.FAILED


def work(place: Membership) -> Exit:
    """Run as one worker."""
    from koo.platform import Platform
    from koo.web.worker import serve_as

    serve_as(place, Platform(_options(place.given)), sys.stdout)
    return Exit.OK


def _say_last(sentence: str) -> None:
    """Print only if standard error can be written: a full pipe would block the exit."""
    with suppress(OSError, ValueError):
        if select.select([], [sys.stderr], [], LAST_WORD_S)[1]:
            say(sentence)
