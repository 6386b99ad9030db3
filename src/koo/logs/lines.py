"""A log line of koo's own: "SOURCE: WORDS: SAID", and the same as facts for programs.

Everything goes to the standard library's logger `koo`. How the lines look, and where they go, is the application's
choice; `koo serve` brings one (`koo.web.logs`). The facts are attributes of the record (`extra`), under the names of
`FACTS`. `WORDS` are the same for all lines of one sort and stand in the record's template, so what groups lines by
their template keeps them together.
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
"""What a line may carry beside its words: which event, of whom, why, of what kind, from when until when."""
SOURCE_MAX = 120
WALL_S_MAX = 253_402_300_799.0
"""The last second that a date can say."""

request_id: ContextVar[str] = ContextVar("koo_request_id", default="")
"""The id of the HTTP request that is being answered, as its `X-Request-ID` and its problem say; or empty."""


@dataclass(slots=True)
class Line:
    """One line: `said` are its parts, of which empty ones are left out; of `facts` those are that are None or empty."""

    level: int
    source: str
    words: str
    said: list[str] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)

    def write(self, asked_by: str | None = None) -> None:
        """Log it. `asked_by`: the request that it belongs to; None is the one that is being answered now."""
        # Every part goes through one gate, whatever it was made of: a name or a reason may be a stranger's word.
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
    """A point in time for people and programs, in UTC and to the second; empty where it is never."""
    if not 0.0 <= wall_s <= WALL_S_MAX:
        return ""
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def until(now_wall_s: float, for_s: float | None) -> str:
    """A point in time with how far away it is, as in `2026-11-29T02:14:05Z (in 42 s)`; empty where it is not known."""
    if for_s is None or for_s == NEVER or not at(now_wall_s + for_s):
        return ""
    return f"{at(now_wall_s + for_s)} (in {describe_s(max(for_s, 0.0))})"
