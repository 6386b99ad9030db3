"""Options of the log lines that `koo serve` writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from koo.checked import Checked, option

LogFormat = Literal["auto", "plain", "json"]
LogLevel = Literal["debug", "info", "warning", "error", "critical"]
LogRequests = Literal["failed", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions(Checked):
    """How the server logs. An application that has set up its own logging keeps that."""

    format: LogFormat = option(
        "auto",
        "form of the server's log lines: `json` is one object per line, `plain` is for people, `auto` is plain on a "
        "terminal and JSON elsewhere",
        "people read terminals, programs read the rest",
    )
    level: LogLevel = option(
        "info", "least severity that the server logs", "what began, and what is over again"
    )
    requests: LogRequests = option(
        "failed",
        "which HTTP requests have a line: those that were answered with an error, or all but successful probes",
        "people read a log that is quiet while all is well",
    )
