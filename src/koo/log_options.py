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
    """How the server logs. An application that has set up logging keeps its own."""

    format: LogFormat = option(
        "auto",
        "format of the server's log lines: `json` is one object per line, `plain` is for people, `auto` is plain on a "
        "terminal and JSON elsewhere",
        "people read terminals, programs read the rest",
    )
    level: LogLevel = option(
        "info", "lowest severity that the server logs", "problems that began, and problems that ended"
    )
    requests: LogRequests = option(
        "failed",
        "which HTTP requests are logged: those with an error response, or all except successful probes",
        "people read a log that is silent while everything works",
    )
