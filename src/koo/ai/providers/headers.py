"""How much is left: what an answer's headers say about the provider's own limits, in every vendor's dialect.

    anthropic-ratelimit-input-tokens-limit, -remaining, -reset: 2026-08-21T12:40:59Z    Anthropic
    x-ratelimit-limit-requests, -remaining-, -reset-: 6m0s | 120ms | 17                 OpenAI, Azure, Groq, xAI, vLLM
    x-ratelimit-remaining-tokens-minute, x-ratelimit-remaining-requests-day             Cerebras, Mistral
    x-ratelimit-limit, -remaining, -reset: 1786000000000                                OpenRouter, Together, GitHub
    ratelimit-limit, -remaining, -reset: 30                                             gateways

A header that names what remains of a rate limit is one, whatever its vendor: the words in its name say of what, and the
names of its two companions are made of its own. Which of them a server sends is learned from its answers, so that an
answer costs as many look-ups as it has limits. When to come back after a refusal is in `waits`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from koo.ai.providers.base import Pace
from koo.ai.providers.waits import Headers, iso_date, sensible, server_s, span_s, wait_of

LOOKED_AT_EVERY, NOTHING_YET = 64, 8
"""Answers until all names are looked at again: a server may begin to say more, or its first answer may be a proxy's."""
LIMITS_MAX = 16
"""More limits than any vendor has: a server gone mad must not cost each answer more."""
WINDOWS = ("day", "hour", "minute", "month", "second")


class Named(NamedTuple):
    """The three headers of one limit, and what it counts."""

    resource: str
    remaining: str
    limit: str
    reset: str


class LimitHeaders:
    """What one server says of its limits."""

    __slots__ = ("_named", "_until_look")

    def __init__(self) -> None:
        self._named: tuple[Named, ...] = ()
        self._until_look = 0

    def read(self, headers: Headers, wall: Callable[[], float]) -> tuple[Pace, ...]:
        """The limits that an answer names; `wall` is our clock, for dates where the server sends no `Date`."""
        if not self._until_look:
            self._named = tuple(_names(headers))[:LIMITS_MAX]
            self._until_look = LOOKED_AT_EVERY if self._named else NOTHING_YET
        self._until_look -= 1
        found: tuple[Pace, ...] = ()
        now_s = 0.0  # by the server's clock: looked at once, and only for a date
        for resource, of_remaining, of_limit, of_reset in self._named:
            remaining = _count(headers.get(of_remaining))
            if remaining is not None:
                limit = _count(headers.get(of_limit))
                # Azure sends -1 and 0 as limits that mean nothing; a "remaining" beside them means nothing either.
                if limit != 0:
                    reset = headers.get(of_reset)
                    if reset is None:
                        resets_in_s = None
                    elif reset[10:11] == "T" and (point_s := iso_date(reset)) is not None:
                        now_s = now_s or server_s(headers, wall())
                        resets_in_s = sensible(point_s - now_s)
                    else:
                        resets_in_s = _resets_in_s(reset, headers, wall)
                    found += (Pace(resource, limit, remaining, resets_in_s),)
        return found


def _names(headers: Headers) -> list[Named]:
    """The headers that name what remains of a limit."""
    named = []
    for name in map(str.lower, headers):
        # Anthropic's "unified" ones are shares of a subscription, which count neither requests nor tokens.
        if "remaining" in name and ("ratelimit" in name or "rate-limit" in name) and "unified" not in name:
            limit, reset = (name.replace("remaining", word) for word in ("limit", "reset"))
            named.append(Named(_resource(name), name, limit, reset))
    return named


def _resource(name: str) -> str:
    """What a limit counts ("requests", "input-tokens"), and by which window, if its name says so ("tokens-day")."""
    what = "requests"
    if "token" in name:
        what = "tokens"
        if "input" in name or "prompt" in name:
            what = "input-tokens"
        elif "output" in name or "generated" in name or "completion" in name:
            what = "output-tokens"
    window = next((one for one in WINDOWS if name.endswith(one)), "")
    return f"{what}-{window}" if window else what


def _resets_in_s(text: str, headers: Headers, wall: Callable[[], float]) -> float | None:
    if text[-1:] in {"s", "m", "h"}:  # a span, which needs no clock
        return sensible(span_s(text))
    return wait_of(text, headers, wall())


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 19 else None
