"""Read the remaining rate limits from a response's headers, in every vendor's dialect.

    anthropic-ratelimit-input-tokens-limit, -remaining, -reset: 2026-08-21T12:40:59Z    Anthropic
    x-ratelimit-limit-requests, -remaining-, -reset-: 6m0s | 120ms | 17                 OpenAI, Azure, Groq, xAI, vLLM
    x-ratelimit-remaining-tokens-minute, x-ratelimit-remaining-requests-day             Cerebras, Mistral
    x-ratelimit-limit, -remaining, -reset: 1786000000000                                OpenRouter, Together, GitHub
    ratelimit-limit, -remaining, -reset: 30                                             gateways

A header counts as a limit if its name says that it is what remains of a rate limit. The other words in the name say
what is limited, and the names of the two related headers are derived from it. The headers that a server sends are
learned from its responses, so that reading a response costs as many lookups as it has limits. How long to wait after a
refusal is in `waits`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from koo.ai.providers.base import Pace
from koo.ai.providers.waits import Headers, iso_date, sensible, server_s, span_s, wait_of

LOOKED_AT_EVERY, NOTHING_YET = 64, 8
"""After how many responses all header names are scanned again: if limits are known, and if none are. A server may start
to send more of them, and its first response may have come from a proxy."""
LIMITS_MAX = 16
"""More limits than any vendor has. It keeps the cost per response low if a faulty server sends hundreds."""
WINDOWS = ("day", "hour", "minute", "month", "second")


class Named(NamedTuple):
    """The names of the three headers of one limit, and the resource that it counts."""

    resource: str
    remaining: str
    limit: str
    reset: str


class LimitHeaders:
    """Reads the limits that one server reports."""

    __slots__ = ("_named", "_until_look")

    def __init__(self) -> None:
        self._named: tuple[Named, ...] = ()
        self._until_look = 0

    def read(self, headers: Headers, wall: Callable[[], float]) -> tuple[Pace, ...]:
        """The limits in a response's headers; `wall` is this machine's clock, used if the server sends no `Date`."""
        if not self._until_look:
            self._named = tuple(_names(headers))[:LIMITS_MAX]
            self._until_look = LOOKED_AT_EVERY if self._named else NOTHING_YET
        self._until_look -= 1
        found: tuple[Pace, ...] = ()
        now_s = 0.0  # the server's clock, read at most once, and only if a header contains a date
        for resource, of_remaining, of_limit, of_reset in self._named:
            remaining = _count(headers.get(of_remaining))
            if remaining is not None:
                limit = _count(headers.get(of_limit))
                # Azure sends -1 and 0 as limits without a meaning. Their "remaining" has none either, and a 0 there
                # would look like a used-up limit.
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
    """The names of the headers for each limit."""
    named = []
    for name in map(str.lower, headers):
        # Anthropic's "unified" limits are shares of a subscription and count neither requests nor tokens.
        if "remaining" in name and ("ratelimit" in name or "rate-limit" in name) and "unified" not in name:
            limit, reset = (name.replace("remaining", word) for word in ("limit", "reset"))
            named.append(Named(_resource(name), name, limit, reset))
    return named


def _resource(name: str) -> str:
    """What a limit counts ("requests", "input-tokens"), with its window if the name contains one ("tokens-day")."""
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
    if text[-1:] in {"s", "m", "h"}:  # a duration, which needs no clock
        return sensible(span_s(text))
    return wait_of(text, headers, wall())


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 19 else None
