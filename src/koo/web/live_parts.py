"""The events of the live stream as bytes. Each part has a key and is encoded once, and only when it has changed.

Pure: no loop, no clock, no socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from koo.web.as_json import as_json

NEVER_NEWS = frozenset({"timestamp", "last_updated", "seen_at", "beat_age"})
"""Keys that only say when the state was read. They change each second, so a change in them is not sent."""
ERRORS_AT = "last_error.at"
"""When the last error happened. While a dependency is down, the same error happens again and again."""
SELDOM_NEWS = frozenset(
    {ERRORS_AT, "last_health_check", "response_time_ms", "as_of", "runs_out", "free_bytes"}
)
"""Keys that change with each read although nothing has happened; such a change is sent every `SELDOM_S` at most."""
SELDOM_S = 15.0
JITTER_S = 0.01
"""Two reads of one moment differ by this at most: wall time is computed from monotonic time and rounded to
milliseconds.
"""
TIME_LENGTHS = (25, 32)
"""The lengths of ISO 8601 in UTC with offset, without and with microseconds."""


@dataclass(slots=True)
class Part:
    """One part as it was last sent: its value, the value as JSON, and the time (monotonic seconds)."""

    value: Any
    text: bytes
    at: float


class Parts:
    """The current parts of the stream."""

    def __init__(self) -> None:
        self._parts: dict[str, Part] = {}

    def take(self, found: Mapping[str, Any], at: str, now: float) -> dict[str, bytes]:
        """Replace all parts by those in `found` and return events for those that changed. `at`: the wall time shown to
        people.
        """
        events = {}
        for key, value in found.items():
            # The text of an unchanged part is not replaced, although its timestamps differ: a listener that joins now
            # gets the text that all others have.
            known = self._parts.get(key)
            # Values are compared, not their texts: timestamps differ each second, and encoding all parts each second
            # is the cost that this avoids.
            if known is not None and not _is_news(known, value, now):
                continue
            text = as_json(value)
            self._parts[key] = Part(value, text, now)
            events[key] = part_event(key, text, at)
        for key in self._parts.keys() - found.keys():
            del self._parts[key]
            events[key] = part_event(key, b"null", at)
        return events

    def whole(self, head: Mapping[str, Any]) -> bytes:
        """Return the event with the whole state; `head` is merged into it, next to `parts`."""
        parts = b",".join(as_json(key) + b":" + part.text for key, part in self._parts.items())
        return event_of("whole", as_json(head)[:-1] + b',"parts":{' + parts + b"}}")


def _is_news(known: Part, value: Any, now: float) -> bool:
    # Keys of `SELDOM_NEWS` change all the time. A change in them alone is sent after 15 s: often enough for a page
    # that shows them, and a fifteenth of the traffic.
    aside = NEVER_NEWS if now - known.at >= SELDOM_S else NEVER_NEWS | SELDOM_NEWS
    return not is_alike(known.value, value, aside)


def is_alike(one: Any, other: Any, aside: frozenset[str]) -> bool:
    """Return whether two values are equal, ignoring what is stored under the keys in `aside`."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return False
        return all(
            key in aside or is_alike(value, other[key], _under(key, aside)) for key, value in one.items()
        )
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_alike, one, other, [aside] * len(one)))
    return bool(one == other) or _is_same_moment(one, other)


def _under(key: str, aside: frozenset[str]) -> frozenset[str]:
    # The key `at` is ignored only below `last_error`. In an alert or a mark, a new `at` is a change to report.
    return aside | {"at"} if key == "last_error" and ERRORS_AT in aside else aside


def _is_same_moment(one: Any, other: Any) -> bool:
    for value in (one, other):
        if not isinstance(value, str) or len(value) not in TIME_LENGTHS or value[10] != "T":
            return False
    try:
        apart = datetime.fromisoformat(one) - datetime.fromisoformat(other)
    except ValueError:
        return False
    return abs(apart.total_seconds()) <= JITTER_S


def event_of(name: str, data: bytes) -> bytes:
    """Return one server-sent event."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)


def part_event(key: str, text: bytes, at: str) -> bytes:
    """Return the event of one part whose value is this JSON."""
    return event_of("part", as_json({"key": key, "at": at})[:-1] + b',"value":' + text + b"}")
