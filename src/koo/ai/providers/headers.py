"""How much is left: what an answer's headers say about the provider's own limits.

    anthropic-ratelimit-tokens-limit, -remaining, -reset: 2026-08-21T12:40:59Z      RFC 3339, by the server's clock
    x-ratelimit-limit-requests, -remaining-, -reset-: 6m0s | 120ms | 1h2m3.5s | 17  a Go duration, or seconds

When to come back after a refusal is in `waits`.
"""

from __future__ import annotations

from koo.ai.providers.base import Pace
from koo.ai.providers.waits import Headers, iso_date, sensible, server_s, span_s

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


def anthropic_pace(headers: Headers, wall_s: float) -> tuple[Pace, ...]:
    """What the headers of an Anthropic answer say about its limits."""
    return tuple(
        Pace(
            name,
            _count(headers.get(of_limit)),
            _count(remaining),
            sensible(_until(iso_date(headers.get(of_reset, "")), headers, wall_s)),
        )
        for name, of_remaining, of_limit, of_reset in _ANTHROPIC
        if (remaining := headers.get(of_remaining)) is not None
    )


def openai_pace(headers: Headers) -> tuple[Pace, ...]:
    """What the headers of an answer in OpenAI's format say about its limits."""
    found: tuple[Pace, ...] = ()
    for name, of_remaining, of_limit, of_reset in _OPENAI:
        remaining = _count(headers.get(of_remaining))
        if remaining is not None:
            limit = _count(headers.get(of_limit))
            # Azure sends -1 and 0 as limits that mean nothing; a "remaining" beside them means nothing either.
            if limit != 0:
                found += (Pace(name, limit, remaining, sensible(span_s(headers.get(of_reset, "")))),)
    return found


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 19 else None


def _until(point_s: float | None, headers: Headers, wall_s: float) -> float | None:
    """Seconds from now, by the server's clock, to a point in time."""
    return None if point_s is None else point_s - server_s(headers, wall_s)
