"""How long to wait: what services say about it in headers, in bodies and in sentences.

    retry-after: 3 | 0.5 | 7s | 1m2s | 2 minutes | 00:01:30     a duration
    retry-after: Wed, 21 Oct 2026 07:28:00 GMT                  an HTTP date
    retry-after: 2026-08-21T12:40:59Z                           an ISO date
    retry-after: 1786000000 | 1786000000000                     a timestamp, in s or ms since 1970
    retry-after: 5, 60 | "60" | 60; comment                     the longest of several, without quotes and comments
    retry-after-ms, x-ms-retry-after-ms, x-retry-after-ms       the same, with plain numbers in milliseconds
    x-ratelimit-reset-requests: 6m0s | 120ms | 17               the reset of a limit, under any vendor's name
    "Please try again in 6m59.9s", {"retry_after_seconds": 5}   the body

A point in time is compared with the server's own `Date`, so that a wrong clock on either side does not matter. A number
close to the current time, in any usual unit, is a timestamp; any other number above 30 days is ignored. Impossible
values (zero, negative, NaN, a time in the past, words) are ignored too, and the next source is tried. A wait is at most
31 days.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import NamedTuple

Headers = Mapping[str, str]

LONGEST_S = 31 * 86_400.0
"""The longest wait. No provider bills or limits by a period longer than a month."""
SPAN_S_MAX = 30 * 86_400.0
"""The longest duration; a larger number would have to be a timestamp."""
EPOCHS = (1.0, 1e3, 1e6, 1e9)
"""Timestamps count seconds, milliseconds, microseconds or nanoseconds since 1970."""
IN_MS = ("retry-after-ms", "x-ms-retry-after-ms", "x-retry-after-ms")
IN_S = ("retry-after", "x-retry-after", "x-ratelimit-retry-after")
DATES_KEPT = 256
"""Parsed dates and durations to cache. Every response contains a few, and they change at most once a second."""

_UNITS_S = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0,
    "millisecond": 1e-3, "sec": 1.0, "second": 1.0, "min": 60.0, "minute": 60.0, "hr": 3600.0, "hour": 3600.0,
    "day": 86_400.0,
}  # fmt: skip
_UNIT = r"(?:ms|us|µs|ns|milliseconds?|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h|days?|d)(?![a-zµ])"
_PART = re.compile(rf"(\d+(?:\.\d+)?)[ \t]?({_UNIT})")
_BETWEEN_PARTS = re.compile(r"[ ,]|and")
_CLOCK = r"\d{1,3}:[0-5]\d:[0-5]\d(?:\.\d+)?"
_ISO_SPAN = re.compile(r"p(?:(\d+)d)?(?:t(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?)?")
_IN_WORDS = re.compile(
    rf"\b(?:again|retry|retrying|wait|waiting|available|replenish(?:ed)?|reset|resets|back|cool-?down)\b"
    rf"[^.\d]{{0,40}}?({_CLOCK}|(?:\d+(?:\.\d+)?[ \t]?{_UNIT}(?:,? ?(?:and )?)?)+)",
    re.IGNORECASE,
)
_ON_DATE = re.compile(
    r"\b(20\d\d-\d\d-\d\d)(?:(?:t|[ ]+(?:at )?)(\d\d:\d\d(?::\d\d)?)(?:\.\d+)?)?", re.IGNORECASE
)
_LISTED = re.compile(r"[,;(]")
# RateLimit: limit=100, remaining=0, reset=50; in newer drafts "default";r=0;t=50
_NONE_LEFT = re.compile(r"\b(?:remaining|r)=0\b")
_STRUCTURED = re.compile(r"(?:^|[;,\s])(?:reset|t)=\"?(\d+(?:\.\d+)?)")


class Stated(NamedTuple):
    """A wait from a field of an error's body; `unit_s` is the unit of a plain number."""

    text: str
    unit_s: float = 1.0


# ── sources of a wait ─────────────────────────────────────────────────────────────────────────────────────────────────


def retry_after_s(headers: Headers, wall_s: float) -> float | None:
    """Seconds to wait by `Retry-After` and similar headers; None if there are none.

    `wall_s` is this machine's clock (seconds since 1970), used for points in time if the server sends no `Date`.
    """
    for names, unit_s in ((IN_MS, 1e-3), (IN_S, 1.0)):
        for name in names:
            value = headers.get(name)
            wait_s = None if value is None else wait_of(value, headers, wall_s, unit_s)
            if wait_s is not None:
                return wait_s
    return None


def resets_in_s(headers: Headers, wall_s: float, *, exhausted_only: bool = False) -> float | None:
    """Seconds until the limit that was hit resets: the one with nothing remaining, or the latest of several.

    Call it only for a response that reports a rate limit, because these headers are sent with every response.
    """
    # All used-up limits have to reset before a request passes, so the latest decides. If none is marked as used up,
    # it is unknown which one was hit, and the earliest is the best guess: waiting for a day because a daily limit is
    # listed too would be worse than one more refusal.
    exhausted: list[float] = []
    others: list[float] = []
    for is_exhausted, wait_s in _resets(headers, wall_s):
        (exhausted if is_exhausted else others).append(wait_s)
    if exhausted:
        return max(exhausted)
    return None if exhausted_only else min(others, default=None)


def _resets(headers: Headers, wall_s: float) -> Iterator[tuple[bool, float]]:
    """For each header with the reset of a limit: whether the limit is used up, and the seconds until the reset."""
    known = {name.lower(): value for name, value in headers.items()}
    for name, value in known.items():
        if "ratelimit" not in name.replace("rate-limit", "ratelimit"):
            continue
        if "reset" in name:
            # With every vendor, the header for what remains of the same limit has the same name, except for this word.
            left = known.get(name.replace("reset-after", "remaining").replace("reset", "remaining"), "")
            wait_s, exhausted = wait_of(value, headers, wall_s), number_of(left) == 0
        else:
            found = _STRUCTURED.search(value)
            wait_s = wait_of(found[1], headers, wall_s) if found else None
            exhausted = _NONE_LEFT.search(value) is not None
        if wait_s is not None:
            yield exhausted, wait_s


def said_s(message: str, wall_s: float) -> float | None:
    """The wait that a sentence states: "Please try again in 94ms", "resets at 2026-12-01 00:00 UTC"."""
    # A duration after "again", "retry" and the like comes before any date: a message with both usually states the date
    # of the limit's period, and the duration until the next attempt.
    found = _IN_WORDS.search(message)
    wait_s = sensible(span_s(found[1])) if found else None
    return until_said_s(message, wall_s) if wait_s is None else wait_s


def until_said_s(message: str, wall_s: float) -> float | None:
    """Seconds until the time that a message states: "You will regain access on 2026-12-01 at 00:00 UTC"."""
    found = _ON_DATE.search(message)
    point_s = None if found is None else iso_date(f"{found[1]}T{found[2] or '00:00'}")
    return None if point_s is None else sensible(point_s - wall_s)


# ── one value ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def wait_of(text: str, headers: Headers, wall_s: float, unit_s: float = 1.0) -> float | None:
    """Seconds from now, from any of the supported forms; None for an impossible value."""
    text = text.strip().strip('"')
    now = server_s(headers, wall_s)
    number = number_of(text)
    # A header that was sent twice arrives as a list ("5, 60"), and some values have a comment ("60; window").
    if number is None and text[:1].isdigit() and (listed := _LISTED.split(text))[1:]:
        numbers = [one for one in map(number_of, listed) if one is not None]
        number = max(numbers) if numbers and number_of(listed[0]) is not None else None
    if number is not None:
        return sensible(_span_or_point(number, unit_s, now))
    seconds = span_s(text)
    if seconds is None:
        point_s = http_date(text)
        point_s = iso_date(text) if point_s is None else point_s
        seconds = None if point_s is None else point_s - now
    return sensible(seconds)


def _span_or_point(number: float, unit_s: float, now: float) -> float | None:
    """Seconds from now for a number that may be a timestamp or a duration, whatever its header is called."""
    # Vendors put timestamps into headers that are defined as a number of seconds. A number that is close to the current
    # time can only be a timestamp: as a duration in seconds it would be more than 50 years.
    for scale in EPOCHS:
        if abs(number / scale - now) <= LONGEST_S:
            return number / scale - now
    seconds = number * unit_s
    # A longer span is not credible: most likely it is a timestamp that is years away.
    return seconds if seconds <= SPAN_S_MAX else None


@lru_cache(DATES_KEPT)
def span_s(text: str) -> float | None:
    """Seconds of a duration: "1h2m3.5s", "12ms", "2 minutes", "00:01:30", "PT30S", or a bare number of seconds."""
    text = text.strip().lower()
    # Every character has to belong to a part. "5 minutes ago" or "5m of 10m" contain parts, but are not durations.
    parts = _PART.findall(text)
    if parts and not _BETWEEN_PARTS.sub("", _PART.sub("", text)):
        return math.fsum(float(number) * _UNITS_S[_one(unit)] for number, unit in parts)
    if re.fullmatch(_CLOCK, text):
        hours, minutes, seconds = map(float, text.split(":"))
        return hours * 3600 + minutes * 60 + seconds
    iso = _ISO_SPAN.fullmatch(text)
    if iso is not None and any(iso.groups()):
        days, hours, minutes, seconds = (float(part or 0) for part in iso.groups())
        return days * 86_400 + hours * 3600 + minutes * 60 + seconds
    return number_of(text)


def _one(unit: str) -> str:
    return unit.removesuffix("s") if len(unit) > 2 else unit


def sensible(seconds: float | None) -> float | None:
    """A plausible wait: None unless it is above zero, and never more than 31 days."""
    if seconds is None or not seconds > 0:
        return None
    return min(seconds, LONGEST_S)


# ── numbers and dates ─────────────────────────────────────────────────────────────────────────────────────────────────


def number_of(text: str) -> float | None:
    """A finite number, or None. `float` alone would also accept "nan", "infinity" and "1_000"."""
    text = text.strip()
    if not text or not text.isascii() or "_" in text:
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def server_s(headers: Headers, wall_s: float) -> float:
    """The server's current time in seconds since 1970; this machine's if it sends no `Date`."""
    said = http_date(headers.get("date", ""))
    return wall_s if said is None else said


@lru_cache(DATES_KEPT)
def http_date(text: str) -> float | None:
    """An HTTP date in seconds since 1970."""
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return _epoch(date)


@lru_cache(DATES_KEPT)
def iso_date(text: str) -> float | None:
    """An RFC 3339 or ISO 8601 date in seconds since 1970; without a time zone it is UTC."""
    try:
        date = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return _epoch(date)


def _epoch(date: datetime) -> float | None:
    try:
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (OverflowError, ValueError):
        return None
