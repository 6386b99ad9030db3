"""Errors of the application's callbacks (event listeners, log handlers), which must not stop koo.

koo logs from some forty places while it holds permits, money and connections. So its loggers themselves make sure that
nothing raised by a handler or filter reaches the line that logs.
"""

from __future__ import annotations

import asyncio
import logging
from typing import NoReturn

EXITS = (SystemExit, KeyboardInterrupt)
LOGGERS = ("koo", "koo.web", "koo.audit", "koo.settings", "koo.workers")
_OF_HANDLER = "koo_of_handler"


class CarefulLogger(logging.Logger):
    """A logger whose failing handlers do not reach the code that logs."""

    def handle(self, record: logging.LogRecord) -> None:
        try:
            super().handle(record)
        except BaseException as error:  # noqa: BLE001 - the code that logs has a permit or money to return
            if not hasattr(record, _OF_HANDLER):
                outlive(error, "a log handler failed", of_handler=True)
            elif isinstance(error, EXITS):
                _raise_next(error)


def _take_care() -> None:
    """The application may have created a logger of koo's first, so the class of the existing object is changed."""
    for name in LOGGERS:
        logging.getLogger(name).__class__ = CarefulLogger


def outlive(error: BaseException, sentence: str, *, of_handler: bool = False) -> None:
    """Log what a callback of the application raised, so that its caller continues and returns what it holds.

    `SystemExit` and `KeyboardInterrupt` end the program all the same: the running event loop raises them next, as for a
    callback of its own. Raises them here where no loop runs. `of_handler`: a failure to log this one too is ignored.
    """
    if isinstance(error, EXITS):
        _raise_next(error)
    else:
        log.error(sentence, exc_info=error, extra={_OF_HANDLER: True} if of_handler else None)


def _raise_next(error: BaseException) -> None:
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise error from None
    loop.call_soon(_raise, error)


def _raise(error: BaseException) -> NoReturn:
    raise error


log = logging.getLogger("koo")
_take_care()
