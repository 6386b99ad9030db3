"""EventLog: writes one log line for each event, at the event's severity."""

from __future__ import annotations

import logging
import re

from koo.clock import Clock
from koo.events import Event
from koo.logs.event_lines import LINES, Since, Told
from koo.logs.lines import Line, at

LEVELS: dict[str, int] = {
    "critical": logging.CRITICAL,
    "warning": logging.WARNING,
    "info": logging.INFO,
}
_CAPITAL = re.compile(r"(?<!^)(?=[A-Z])")


class EventLog:
    """The event log of one process. A `Platform` registers it: `platform.events.listen(EventLog(clock).on_event)`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since = Since()

    def on_event(self, event: Event) -> None:
        """Log the event."""
        since, name = self._since, _CAPITAL.sub("_", type(event).__name__).lower()
        since.now = self._clock.wall()
        line_of = LINES.get(type(event))
        told = Told(name.replace("_", " "), []) if line_of is None else line_of(event, since)
        failure = told.last_error
        kind = told.kind or (failure.kind if failure is not None else None)
        facts: dict[str, object] = {
            "what": name,
            "cause": told.cause,
            "kind": None if kind is None else kind.value,
            "status": None if failure is None else failure.status,
            "since": None if told.since is None else at(told.since),
            "until": None if told.until is None else at(told.until),
        }
        Line(LEVELS[event.severity], event.source, told.words, told.said, facts).write()
