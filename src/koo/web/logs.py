"""Logs of the server: one line each, as JSON or for a person's eyes, on standard error.

The library itself only ever calls `logging.getLogger("koo")`; how its lines look is the application's choice, and this
is the choice of the one that koo brings. Two formatters of the standard library's kind: a package for it would cost
the start a sixth of a second and 4 MiB.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["auto", "console", "json"]
FIELDS = ("method", "path", "status", "took_ms", "request_id")
"""What a line may carry beside its message: `extra` of the edge's line for each request."""
QUIET = {"uvicorn": logging.WARNING, "uvicorn.error": logging.WARNING, "asyncio": logging.WARNING}
"""Others' chatter: who starts and stops is said by ourselves."""
UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""A path that somebody asked for must not move the cursor, nor look like a line of ours."""


def set_up_logs(log_format: LogFormat = "auto", level: str = "info") -> None:
    """All log lines go to standard error. "auto": for a person where that is a terminal, else JSON."""
    for_people = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(ConsoleLines() if for_people else JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, least in QUIET.items():
        logging.getLogger(name).setLevel(max(least, root.level))


class JsonLines(logging.Formatter):
    """One JSON object a line: `timestamp`, `level`, `logger`, `event`, and what the line carries."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= {name: vars(record)[name] for name in FIELDS if name in vars(record)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class ConsoleLines(logging.Formatter):
    """Time of day, level, message; a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        line = f"{at} {record.levelname.lower():<7} {UNSEEN.sub('�', record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
