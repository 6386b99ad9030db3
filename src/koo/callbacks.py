"""Errors of the application's callbacks (event listeners, log handlers, record factories), which must not stop koo.

koo logs in about forty places while it holds permits, money and connections. Its loggers therefore make sure that
an exception from a handler or filter never reaches the line that logs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, NoReturn

EXITS = (SystemExit, KeyboardInterrupt)
LOGGERS = ("koo", "koo.web", "koo.audit", "koo.settings", "koo.workers")
_OF_HANDLER = "koo_of_handler"


class CarefulLogger(logging.Logger):
    """A logger whose failing handlers and record factories do not raise in the code that logs."""

    def makeRecord(  # noqa: N802 - the standard library's name
        self,
        name: str,
        level: int,
        fn: str,
        lno: int,
        msg: object,
        args: Any,
        exc_info: Any,
        func: str | None = None,
        extra: Mapping[str, object] | None = None,
        sinfo: str | None = None,
    ) -> logging.LogRecord:
        # `extra` is not passed on: the standard library raises KeyError if the record factory has set an attribute of
        # the same name. Many factories set `request_id` or `service`.
        try:
            record = super().makeRecord(name, level, fn, lno, msg, args, exc_info, func, None, sinfo)
        except Exception as error:  # noqa: BLE001 - whatever a factory raises
            if _OF_HANDLER not in (extra or {}):
                outlive(error, "a log record factory failed", of_handler=True)
            record = logging.LogRecord(name, level, fn, lno, msg, args, exc_info, func, sinfo)
        vars(record).update(extra or {})
        return record

    def handle(self, record: logging.LogRecord) -> None:
        # The standard library's handlers catch errors of their own `emit`. An error from a filter, or from a handler
        # that catches nothing, arrives here. In the middle of a settlement it would skip the rest: the slot is
        # returned, but the money stays held.
        try:
            super().handle(record)
        except BaseException as error:  # noqa: BLE001 - the code that logs has a permit or money to return
            # The failure is logged through the same handlers, so the handler that failed will usually fail again. That
            # second record carries a mark, and its failure is dropped: otherwise this would recurse until the stack
            # ends. An exit is passed on even then.
            if not hasattr(record, _OF_HANDLER):
                outlive(error, "a log handler failed", of_handler=True)
            elif isinstance(error, EXITS):
                _raise_next(error)


def _take_care() -> None:
    """Make koo's loggers careful. The application may have created one before this import, so the existing object's
    class is changed."""
    for name in LOGGERS:
        logging.getLogger(name).__class__ = CarefulLogger


def outlive(error: BaseException, sentence: str, *, of_handler: bool = False) -> None:
    """Log an exception from the application's callback, so that the calling code continues and returns what it holds.

    `SystemExit` and `KeyboardInterrupt` still end the program: the running event loop raises them next, as for a
    callback of its own. They are raised here if no loop runs. `of_handler`: the error came from logging itself; if
    logging it fails too, that second failure is ignored.
    """
    # An exit must not be swallowed (Ctrl-C would do nothing), and must not be raised here either: the caller has a
    # permit or money to return first. A callback scheduled on the loop runs after that, and its exit leaves
    # `run_forever`.
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
