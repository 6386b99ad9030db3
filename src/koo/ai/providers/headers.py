"""When to come back, and how much is left: what providers say about it in headers, in seven notations.

    retry-after-ms: 1500                                        milliseconds
    retry-after: 3 | 0.5                                        seconds
    retry-after: Wed, 21 Oct 2026 07:28:00 GMT                  a date, by the server's clock
    anthropic-ratelimit-tokens-reset: 2026-08-21T12:40:59Z      RFC 3339, by the server's clock
    x-ratelimit-reset-requests: 6m0s | 120ms | 1h2m3.5s | 17    a Go duration, or seconds
    x-ratelimit-reset: 1786000000 | 1786000000000 | 30          an epoch in s or ms, or seconds from now

A date is read against the server's own `Date`, so that a clock that is wrong on either side does not matter. What
cannot be right (negative, zero, NaN, a date in the past, words) is taken as not said. Nothing is more than 31 days
away.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache

from koo.ai.providers.base import Pace

Headers = Mapping[str, str]

LONGEST_S = 31 * 86_400.0
"""A month is the longest period that any provider bills or limits by."""
EPOCH_FROM_S = 30 * 86_400.0
"""A number above this is a point in time; below it, seconds from now."""
EPOCH_MS_FROM = 1e11

ANTHROPIC_RESOURCES = ("requests", "tokens", "input-tokens", "output-tokens")
OPENAI_RESOURCES = ("requests", "tokens")
# Put together once: eight strings made for each answer would cost it as much as its price does.
_ANTHROPIC = [
    (name, *(f"anthropic-ratelimit-{name}-{word}" for word in ("remaining", "limit", "reset")))
    for name in ANTHROPIC_RESOURCES
]
_OPENAI = [
    (name, *(f"x-ratelimit-{word}-{name}" for word in ("remaining", "limit", "reset")))
    for name in OPENAI_RESOURCES
]
DATES_KEPT = 256
"""Dates in headers change once a second, and each answer has some: what was read last is remembered."""

_GO_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_GO_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|h|m|s)")
_GO_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|us|µs|ns|h|m|s))+")
_TRY_AGAIN = re.compile(r"try again in ((?:\d+(?:\.\d+)?(?:ms|h|m|s))+)", re.IGNORECASE)


def retry_after_s(headers: Headers, wall_s: float) -> float | None:
    """Seconds until the provider wants to be asked again, by `Retry-After` and its kin; None where it does not say.

    `wall_s` is our clock (seconds since 1970), used for dates where the server sends no `Date`.
    """
    if (value := headers.get("retry-after-ms")) is not None and (ms := _number(value)) is not None:
        return sensible(ms / 1000)
    if (value := headers.get("retry-after")) is not None:
        seconds = _number(value)
        wait_s = sensible(seconds if seconds is not None else _until(_http_date(value), headers, wall_s))
        if wait_s is not None:
            return wait_s
    return None


def anthropic_pace(headers: Headers, wall_s: float) -> tuple[Pace, ...]:
    """What the headers of an Anthropic answer say about its limits."""
    return tuple(
        Pace(
            name,
            _count(headers.get(of_limit)),
            _count(remaining),
            sensible(_until(_rfc3339(headers.get(of_reset)), headers, wall_s)),
        )
        for name, of_remaining, of_limit, of_reset in _ANTHROPIC
        if (remaining := headers.get(of_remaining)) is not None
    )


def openai_pace(headers: Headers) -> tuple[Pace, ...]:
    """What the headers of an answer in OpenAI's format say about its limits."""
    return tuple(
        Pace(
            name,
            limit,
            _count(remaining),
            sensible(duration_s(headers.get(of_reset, ""))),
        )
        for name, of_remaining, of_limit, of_reset in _OPENAI
        if (remaining := headers.get(of_remaining)) is not None
        # Azure sends -1 and 0 as limits that mean nothing; a "remaining" beside them means nothing either.
        and (limit := _count(headers.get(of_limit))) != 0
        and (_count(remaining) is not None)
    )


def hinted_s(message: str) -> float | None:
    """The wait that OpenAI writes into its message: "Please try again in 94ms"."""
    found = _TRY_AGAIN.search(message)
    return sensible(duration_s(found[1])) if found else None


def duration_s(text: str) -> float | None:
    """A Go duration ("1h2m3.5s", "12ms"), a protobuf one ("39s"), or a bare number of seconds."""
    text = text.strip()
    if _GO_DURATION.fullmatch(text):
        return math.fsum(float(number) * _GO_UNITS_S[unit] for number, unit in _GO_PART.findall(text))
    return _number(text)


def sensible(seconds: float | None) -> float | None:
    """A wait that can be right: above zero, at most 31 days; else None."""
    if seconds is None or not seconds > 0:
        return None
    return min(seconds, LONGEST_S)


def resets_in_s(headers: Headers, wall_s: float) -> float | None:
    """When the limit that was hit is free again: the one with nothing remaining, the later where there are several.

    Only for an answer that says that a limit was hit: these headers are sent with every answer.
    """
    exhausted: list[float] = []
    others: list[float] = []
    for remaining, reset_s in _resets(headers, wall_s):
        wait_s = sensible(reset_s)
        if wait_s is not None:
            (exhausted if remaining == "0" else others).append(wait_s)
    if exhausted:
        return max(exhausted)
    return min(others, default=None)


def _resets(headers: Headers, wall_s: float) -> Iterable[tuple[str | None, float | None]]:
    for name in ANTHROPIC_RESOURCES:
        prefix = f"anthropic-ratelimit-{name}"
        if (reset := headers.get(f"{prefix}-reset")) is not None:
            yield headers.get(f"{prefix}-remaining"), _until(_rfc3339(reset), headers, wall_s)
    for suffix in OPENAI_RESOURCES:
        for name in (suffix, f"{suffix}_usage_based", f"{suffix}-minute", f"{suffix}-day"):
            if (reset := headers.get(f"x-ratelimit-reset-{name}")) is not None:
                yield headers.get(f"x-ratelimit-remaining-{name}"), duration_s(reset)
    if (reset := headers.get("anthropic-ratelimit-unified-5h-reset")) is not None:
        yield None, _epoch_or_seconds(reset, headers, wall_s)
    if (reset := headers.get("x-ratelimit-reset")) is not None:
        yield headers.get("x-ratelimit-remaining"), _epoch_or_seconds(reset, headers, wall_s)


def _epoch_or_seconds(text: str, headers: Headers, wall_s: float) -> float | None:
    number = _number(text)
    if number is None:
        return duration_s(text)
    if number < EPOCH_FROM_S:
        return number
    return _until(number / 1000 if number >= EPOCH_MS_FROM else number, headers, wall_s)


# ── numbers and dates ─────────────────────────────────────────────────────────────────────────────────────────────────


def _number(text: str) -> float | None:
    """A finite number. `float` alone would take "nan", "infinity" and "1_000" too."""
    text = text.strip()
    if not text or not text.isascii() or "_" in text:
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 19 else None


def _until(point_s: float | None, headers: Headers, wall_s: float) -> float | None:
    """Seconds from now, by the server's clock, to a point in time."""
    if point_s is None:
        return None
    server_s = _http_date(headers.get("date", ""))
    return point_s - (wall_s if server_s is None else server_s)


@lru_cache(DATES_KEPT)
def _http_date(text: str) -> float | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return _epoch(date)


@lru_cache(DATES_KEPT)
def _rfc3339(text: str | None) -> float | None:
    if text is None:
        return None
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
