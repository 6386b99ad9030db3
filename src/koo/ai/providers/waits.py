"""When to come back: what services say about it, in headers, in bodies and in sentences.

    retry-after: 3 | 0.5 | 7s | 1m2s | 2 minutes | 00:01:30     a span of time
    retry-after: Wed, 21 Oct 2026 07:28:00 GMT                  a date of HTTP
    retry-after: 2026-08-21T12:40:59Z                           an ISO date
    retry-after: 1786000000 | 1786000000000                     a point in time, in s or ms since 1970
    retry-after-ms, x-ms-retry-after-ms, x-retry-after-ms       the same, with plain numbers in milliseconds
    x-ratelimit-reset-requests: 6m0s | 120ms | 17               when a limit is free again: any header of that sense
    "Please try again in 6m59.9s", {"retry_after_seconds": 5}   the body

A point in time is read against the server's own `Date`, so that a wrong clock on either side does not matter. A number
above 30 days is a point in time, and so is one that lies near now. An impossible value (zero, negative, NaN, a past
point in time, words) is ignored, and the next place is read. Nothing is more than 31 days away.
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
"""A month is the longest period that any provider bills or limits by."""
SPAN_S_MAX = 30 * 86_400.0
"""A number above this is a point in time; below it, seconds from now."""
EPOCHS = (1.0, 1e3, 1e6, 1e9)
"""Points in time are counted in seconds since 1970, or in thousandths, millionths, billionths of them."""
IN_MS = ("retry-after-ms", "x-ms-retry-after-ms", "x-retry-after-ms")
IN_S = ("retry-after", "x-retry-after", "x-ratelimit-retry-after")
DATES_KEPT = 256
"""Each answer has some dates and spans, which change once a second at most: what was read last is remembered."""

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
# RateLimit: limit=100, remaining=0, reset=50; in newer drafts "default";r=0;t=50
_NONE_LEFT = re.compile(r"\b(?:remaining|r)=0\b")
_STRUCTURED = re.compile(r"(?:^|[;,\s])(?:reset|t)=\"?(\d+(?:\.\d+)?)")


class Stated(NamedTuple):
    """A wait that a body states in a field of its own; `unit_s` of a plain number."""

    text: str
    unit_s: float = 1.0


# ── where it may stand ────────────────────────────────────────────────────────────────────────────────────────────────


def retry_after_s(headers: Headers, wall_s: float) -> float | None:
    """Seconds until the provider wants the next request, by `Retry-After` and the like; None if it does not say.

    `wall_s` is our clock (seconds since 1970), used for points in time if the server sends no `Date`.
    """
    for names, unit_s in ((IN_MS, 1e-3), (IN_S, 1.0)):
        for name in names:
            value = headers.get(name)
            wait_s = None if value is None else wait_of(value, headers, wall_s, unit_s)
            if wait_s is not None:
                return wait_s
    return None


def resets_in_s(headers: Headers, wall_s: float, *, exhausted_only: bool = False) -> float | None:
    """When the limit that was hit is free again: the one with nothing remaining, the later one of several.

    Only for an answer that says that a limit was hit: these headers are sent with every answer.
    """
    exhausted: list[float] = []
    others: list[float] = []
    for is_exhausted, wait_s in _resets(headers, wall_s):
        (exhausted if is_exhausted else others).append(wait_s)
    if exhausted:
        return max(exhausted)
    return None if exhausted_only else min(others, default=None)


def _resets(headers: Headers, wall_s: float) -> Iterator[tuple[bool, float]]:
    """Each header that says when a limit is free again; every gateway has its own name for it."""
    known = {name.lower(): value for name, value in headers.items()}
    for name, value in known.items():
        if "ratelimit" not in name.replace("rate-limit", "ratelimit"):
            continue
        if "reset" in name:
            left = known.get(name.replace("reset-after", "remaining").replace("reset", "remaining"), "")
            wait_s, exhausted = wait_of(value, headers, wall_s), number_of(left) == 0
        else:
            found = _STRUCTURED.search(value)
            wait_s = wait_of(found[1], headers, wall_s) if found else None
            exhausted = _NONE_LEFT.search(value) is not None
        if wait_s is not None:
            yield exhausted, wait_s


def said_s(message: str, wall_s: float) -> float | None:
    """The wait that a sentence names: "Please try again in 94ms", "resets at 2026-12-01 00:00 UTC"."""
    found = _IN_WORDS.search(message)
    wait_s = sensible(span_s(found[1])) if found else None
    return until_said_s(message, wall_s) if wait_s is None else wait_s


def until_said_s(message: str, wall_s: float) -> float | None:
    """Seconds to the point in time that a message names: "You will regain access on 2026-12-01 at 00:00 UTC"."""
    found = _ON_DATE.search(message)
    point_s = None if found is None else iso_date(f"{found[1]}T{found[2] or '00:00'}")
    return None if point_s is None else sensible(point_s - wall_s)


# ── one value ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def wait_of(text: str, headers: Headers, wall_s: float, unit_s: float = 1.0) -> float | None:
    """Seconds from now, in whatever form they are written; None for an impossible value."""
    text = text.strip()
    now = server_s(headers, wall_s)
    number = number_of(text)
    if number is not None:
        return sensible(_span_or_point(number, unit_s, now))
    seconds = span_s(text)
    if seconds is None:
        point_s = http_date(text)
        point_s = iso_date(text) if point_s is None else point_s
        seconds = None if point_s is None else point_s - now
    return sensible(seconds)


def _span_or_point(number: float, unit_s: float, now: float) -> float | None:
    """A number near now is a point in time, whatever its header is called: as a span it would be a month or more."""
    for scale in EPOCHS:
        if abs(number / scale - now) <= LONGEST_S:
            return number / scale - now
    seconds = number * unit_s
    # A point in time that lies years away says nothing.
    return seconds if seconds <= SPAN_S_MAX else None


@lru_cache(DATES_KEPT)
def span_s(text: str) -> float | None:
    """A span of time: "1h2m3.5s", "12ms", "2 minutes", "00:01:30", "PT30S", or a bare number of seconds."""
    text = text.strip().lower()
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
    """A wait that can be right: above zero, at most 31 days; else None."""
    if seconds is None or not seconds > 0:
        return None
    return min(seconds, LONGEST_S)


# ── numbers and dates ─────────────────────────────────────────────────────────────────────────────────────────────────


def number_of(text: str) -> float | None:
    """A finite number. `float` alone would take "nan", "infinity" and "1_000" too."""
    text = text.strip()
    if not text or not text.isascii() or "_" in text:
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def server_s(headers: Headers, wall_s: float) -> float:
    """Now, by the server's clock, in seconds since 1970; by ours if it does not say."""
    said = http_date(headers.get("date", ""))
    return wall_s if said is None else said


@lru_cache(DATES_KEPT)
def http_date(text: str) -> float | None:
    """A date as HTTP writes it, in seconds since 1970."""
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return _epoch(date)


@lru_cache(DATES_KEPT)
def iso_date(text: str) -> float | None:
    """A date of RFC 3339 or ISO 8601, in seconds since 1970; one without a zone is UTC."""
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
