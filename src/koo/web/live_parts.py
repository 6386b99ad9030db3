"""What the live stream says, as bytes: parts by key, of which each is encoded once, and only when it has changed.

Pure: without a loop, a clock or a socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from koo.web.as_json import as_json

NEVER_NEWS = frozenset({"timestamp", "last_updated", "seen_at", "beat_age"})
"""Keys that say only when the look was taken: they change each second, and a change of one is not news."""
ERRORS_AT = "last_error.at"
"""When the last error was: while a side is down it is met again and again."""
SELDOM_NEWS = frozenset(
    {ERRORS_AT, "last_health_check", "response_time_ms", "as_of", "runs_out", "free_bytes"}
)
"""Keys that change with each look although nothing has happened."""
SELDOM_S = 15.0
JITTER_S = 0.01
"""Two looks at one moment differ by this at most: its wall time is worked out of monotonic time, in milliseconds."""
TIME_LENGTHS = (25, 32)
"""Of ISO 8601 in UTC with offset, without and with microseconds."""


@dataclass(slots=True)
class Part:
    """One part as it was sent last: its value, that as JSON, and when (monotonic seconds)."""

    value: Any
    text: bytes
    at: float


class Parts:
    """The parts of the stream as they are now."""

    def __init__(self) -> None:
        self._parts: dict[str, Part] = {}

    def take(self, found: Mapping[str, Any], at: str, now: float) -> dict[str, bytes]:
        """Take all parts as they were found; returns events for those that changed. `at`: the time for people."""
        events = {}
        for key, value in found.items():
            known = self._parts.get(key)
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
        """The event with everything; `head` stands beside `parts`."""
        parts = b",".join(as_json(key) + b":" + part.text for key, part in self._parts.items())
        return event_of("whole", as_json(head)[:-1] + b',"parts":{' + parts + b"}}")


def _is_news(known: Part, value: Any, now: float) -> bool:
    aside = NEVER_NEWS if now - known.at >= SELDOM_S else NEVER_NEWS | SELDOM_NEWS
    return not is_alike(known.value, value, aside)


def is_alike(one: Any, other: Any, aside: frozenset[str]) -> bool:
    """Are two values the same, what stands under the keys `aside` left out?"""
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
    """One server-sent event."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)


def part_event(key: str, text: bytes, at: str) -> bytes:
    """The event of one part whose value is this JSON."""
    return event_of("part", as_json({"key": key, "at": at})[:-1] + b',"value":' + text + b"}")
