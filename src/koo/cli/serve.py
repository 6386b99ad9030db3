"""`koo serve`: the server, in this process or in worker processes."""

from __future__ import annotations

import logging
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


class _Held(logging.Handler):
    """Keeps the lines that are logged before the settings say in which format."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self._log = logging.getLogger("koo")

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @contextmanager
    def holding(self) -> Iterator[None]:
        before, self._log.propagate = self._log.propagate, False
        self._log.addHandler(self)
        try:
            yield
        except BaseException:
            self._log.propagate = before
            self.pass_on()  # there will be no settings, so nothing else would write them
            raise
        finally:
            self._log.removeHandler(self)
            self._log.propagate = before

    def pass_on(self) -> None:
        self._log.removeHandler(self)
        for record in self.records:
            self._log.handle(record)


@contextmanager
def _started(given: Given, worker: int | None = None) -> Iterator[PlatformOptions]:
    """Read the settings, and log in their format, including what reading them logged."""
    from koo.web.logs import chosen_logs, logs_set_up

    held = _Held()
    with held.holding():
        options = _options(given)
    with logs_set_up(chosen_logs(options.log, given.log_format, given.log_level), worker):
        if worker in (None, 1):  # each worker reads the same settings
            held.pass_on()
        yield options


def _serve_here(given: Given) -> Exit:
    from koo.platform import Platform
    from koo.web.app import create_app
    from koo.web.server import serve as serve_http

    with _started(given) as options:
        platform = Platform(options)
        serve_http(platform, create_app(platform), out=sys.stdout)
    return Exit.OK


def _serve_by(count: int, given: Given) -> Exit:
    """The parent process. It imports nothing that only a worker needs."""
    from koo.web.listener import bind
    from koo.web.logs import chosen_logs, logs_set_up
    from koo.web.workers import Workers, interpreter

    held = _Held()  # not passed on: the first worker logs the same
    with held.holding():
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

    with _started(place.given, place.number) as options:
        serve_as(place, Platform(options), sys.stdout)
    return Exit.OK


def _say_last(sentence: str) -> None:
    """Print only if standard error can be written: a full pipe would block the exit."""
    with suppress(OSError, ValueError):
        if select.select([], [sys.stderr], [], LAST_WORD_S)[1]:
            say(sentence)
