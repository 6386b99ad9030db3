"""The server's log lines: one line per record, as JSON or for people to read, on standard error.

The library itself only calls `logging.getLogger("koo")`; the application decides how its lines look. This is what
koo's own application chooses. Two standard formatters are enough: importing a package for it would add a sixth of a
second and 4 MiB to startup.

A line never contains a character that controls a terminal, changes the direction of text, or looks like the end of a
line: each is written as an escape. A path requested by a client must neither move the cursor nor look like another
line.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

from koo.failures import masked
from koo.log_options import LogFormat, LogLevel, LogOptions
from koo.logs.lines import FACTS
from koo.web.log_writer import ThreadHandler, writer_to

__all__ = ["ConsoleLines", "JsonLines", "LogFormat", "logs_set_up"]

OF_REQUESTS = ("method", "path", "took_ms")
"""Fields of the edge's request line, in addition to those of every line."""
OF_ACTS = ("who", "route", "peer", "reason")
"""Fields of an audit line, in addition to those of every line."""
QUIET = {"uvicorn": logging.WARNING, "uvicorn.error": logging.WARNING, "asyncio": logging.WARNING}
"""Messages of other libraries that are hidden: koo logs its own start and stop."""
MESSAGE_MAX = 8000
TRACEBACK_MAX = 32_000


def chosen_logs(
    options: LogOptions, log_format: LogFormat | Literal["console"] | None, log_level: LogLevel | None
) -> LogOptions:
    """Return the options with the command line's values applied. "console" means the same as "plain"."""
    return replace(
        options,
        format="plain" if log_format == "console" else log_format or options.format,
        level=log_level or options.level,
    )


@contextmanager
def logs_set_up(options: LogOptions, worker: int | None = None) -> Iterator[None]:
    """Send all log lines to standard error, from a separate thread, unless the root logger has a handler.

    `worker`: the number of this process if several share the log; it is part of each line.
    """
    root = logging.getLogger()
    if root.handlers:
        yield
        return
    for_people = options.format == "plain" or (options.format == "auto" and sys.stderr.isatty())
    lines = ConsoleLines(worker) if for_people else JsonLines(worker)
    handler = ThreadHandler(writer_to(sys.stderr), lines, is_shared=worker is not None)
    before = {name: logging.getLogger(name).level for name in ("", *QUIET)}
    root.addHandler(handler)
    root.setLevel(options.level.upper())
    for name, least in QUIET.items():
        logging.getLogger(name).setLevel(max(least, root.level))
    logging.captureWarnings(True)  # otherwise warnings are written directly, bypassing the thread
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
        root.removeHandler(handler)
        handler.close()


class JsonLines(logging.Formatter):
    """One JSON object per line: `timestamp`, `level`, `logger`, `event`, and the record's fields. `worker` is added if
    several processes share the log.
    """

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._worker = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _cut(record.getMessage(), MESSAGE_MAX),
            **self._worker,
        }
        line |= {
            name: vars(record)[name] for name in (*OF_REQUESTS, *OF_ACTS, *FACTS) if name in vars(record)
        }
        if record.exc_info:
            line["exception"] = _cut(self.formatException(record.exc_info), TRACEBACK_MAX)
        text = json.dumps(line, ensure_ascii=False, default=str)
        return text if text.isprintable() else "".join(map(_as_json, text))


class ConsoleLines(logging.Formatter):
    """Time of day, level, the worker if there are several, and the message; a traceback follows on further lines."""

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._worker = "" if worker is None else f"worker {worker}: "

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        lines = [f"{at} {record.levelname.lower():<8} {self._worker}{_cut(record.getMessage(), MESSAGE_MAX)}"]
        if record.exc_info:
            lines += _cut(self.formatException(record.exc_info), TRACEBACK_MAX).split("\n")
        return "\n".join(map(_escaped, lines))


def _cut(text: str, most: int) -> str:
    """Cut the text and mask secrets: an application's own traceback may quote a URL with a password."""
    text = masked(
        text[: 2 * most]
    )  # cut last: of a key that is cut in two, the first half would look like a word
    return text if len(text) <= most else text[:most] + "…"


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _as_json(one: str) -> str:
    return one if one.isprintable() else json.dumps(one)[1:-1]
