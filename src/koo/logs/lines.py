"""The form of koo's log lines: "SOURCE: WORDS: SAID", and the same as facts for programs.

Everything goes to the standard library's logger `koo`. The application chooses the format and the destination of the
lines; `koo serve` has its own (`koo.web.logs`). The facts are attributes of the record (`extra`), under the names in
`FACTS`. `WORDS` are the same for all lines of a kind and are part of the record's template, so tools that group lines
by template keep them together.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime

from koo.errors import describe_s
from koo.failures import safe
from koo.options import NEVER

log = logging.getLogger("koo")

FACTS = ("what", "service", "cause", "kind", "status", "attempts", "count", "since", "until", "request_id")
"""The facts that a line may have in addition to its text."""
SOURCE_MAX = 120
WALL_S_MAX = 253_402_300_799.0
"""The last second that `datetime` can represent."""

request_id: ContextVar[str] = ContextVar("koo_request_id", default="")
"""The id of the current HTTP request, as in its `X-Request-ID` and its problem document; or empty."""


@dataclass(slots=True)
class Line:
    """One line. `said` has its parts. Empty parts, and facts that are None or empty, are left out."""

    level: int
    source: str
    words: str
    said: list[str] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)

    def write(self, asked_by: str | None = None) -> None:
        """Log the line. `asked_by`: the id of the request that it belongs to; None: the current request."""
        # Every part is made safe here, whatever its source: a name or a reason may contain foreign text.
        source, said = safe(self.source, SOURCE_MAX), "; ".join(safe(part) for part in self.said if part)
        request = request_id.get() if asked_by is None else asked_by
        if request:
            said += f" [request {request}]"
        facts = {"service": source, **self.facts, "request_id": request}
        given = {name: _safe(value) for name, value in facts.items() if value is not None and value != ""}
        template = f"%s: {self.words}: %s" if said else f"%s: {self.words}"
        log.log(self.level, template, *((source, said) if said else (source,)), extra=given)


def _safe(value: object) -> object:
    return safe(value) if isinstance(value, str) else value


def at(wall_s: float) -> str:
    """A time in UTC for people and programs, to the second; empty for an infinite time."""
    if not 0.0 <= wall_s <= WALL_S_MAX:
        return ""
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def until(now_wall_s: float, for_s: float | None) -> str:
    """A time and how far away it is: `2026-11-29T02:14:05Z (in 42 s)`; empty if it is unknown."""
    if for_s is None or for_s == NEVER or not at(now_wall_s + for_s):
        return ""
    return f"{at(now_wall_s + for_s)} (in {describe_s(max(for_s, 0.0))})"
