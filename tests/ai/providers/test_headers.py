"""A provider's remaining limits, from the headers of its responses."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from koo.ai.providers.base import Pace
from koo.ai.providers.headers import LOOKED_AT_EVERY, LimitHeaders

WALL_S = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC).timestamp()


def rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(WALL_S + seconds, UTC).isoformat().replace("+00:00", "Z")


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_header_value_raises(value: str, date: str) -> None:
    read({"anthropic-ratelimit-tokens-remaining": value, "anthropic-ratelimit-tokens-reset": date})
    read({"x-ratelimit-remaining-tokens": value, "x-ratelimit-limit-tokens": date})
    read({"x-ratelimit-remaining": "1", "x-ratelimit-reset": value, "date": date})


def read(headers: dict[str, str]) -> tuple[Pace, ...]:
    """The limits in a server's first response."""
    return LimitHeaders().read(headers, lambda: WALL_S)


def test_anthropics_limits_are_read() -> None:
    headers = {
        "anthropic-ratelimit-requests-limit": "4000",
        "anthropic-ratelimit-requests-remaining": "3999",
        "anthropic-ratelimit-requests-reset": rfc3339(15),
        "anthropic-ratelimit-output-tokens-remaining": "5",
    }
    assert read(headers) == (Pace("requests", 4000, 3999, 15.0), Pace("output-tokens", None, 5, None))
    assert read({}) == ()


def test_openais_limits_are_read_and_azures_meaningless_values_ignored() -> None:
    headers = {
        "x-ratelimit-limit-tokens": "400000",
        "x-ratelimit-remaining-tokens": "399000",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    assert read(headers) == (Pace("tokens", 400_000, 399_000, 360),)
    assert read({"x-ratelimit-limit-tokens": "0", "x-ratelimit-remaining-tokens": "0"}) == ()
    assert read({"x-ratelimit-limit-tokens": "-1", "x-ratelimit-remaining-tokens": "-1"}) == ()


@pytest.mark.parametrize(
    ("headers", "pace"),
    [
        # Groq: requests per day, tokens per minute, and durations with fractions.
        (
            {
                "X-RateLimit-Limit-Requests": "14400",
                "X-RateLimit-Remaining-Requests": "14370",
                "X-RateLimit-Reset-Requests": "2m59.56s",
            },
            Pace("requests", 14_400, 14_370, 179.56),
        ),
        # Azure: whole seconds, or only what remains.
        (
            {
                "x-ratelimit-limit-requests": "120",
                "x-ratelimit-remaining-requests": "119",
                "x-ratelimit-reset-requests": "10",
            },
            Pace("requests", 120, 119, 10.0),
        ),
        ({"x-ratelimit-remaining-requests": "119"}, Pace("requests", None, 119, None)),
        # OpenRouter: one limit, and a timestamp in milliseconds.
        (
            {
                "X-RateLimit-Limit": "20",
                "X-RateLimit-Remaining": "0",
                "X-RateLimit-Reset": str(int((WALL_S + 42) * 1000)),
            },
            Pace("requests", 20, 0, 42.0),
        ),
        (
            {"ratelimit-limit": "50", "ratelimit-remaining": "3", "ratelimit-reset": "30"},
            Pace("requests", 50, 3, 30.0),
        ),
        # Several windows of one resource are separate limits.
        (
            {
                "x-ratelimit-limit-tokens-minute": "60000",
                "x-ratelimit-remaining-tokens-minute": "59000",
                "x-ratelimit-reset-tokens-minute": "12.5",
            },
            Pace("tokens-minute", 60_000, 59_000, 12.5),
        ),
        (
            {"x-ratelimit-limit-tokens-prompt": "600", "x-ratelimit-remaining-tokens-prompt": "500"},
            Pace("input-tokens", 600, 500, None),
        ),
        (
            {"x-ratelimit-limit-tokens-generated": "600", "x-ratelimit-remaining-tokens-generated": "500"},
            Pace("output-tokens", 600, 500, None),
        ),
    ],
)
def test_limits_in_other_dialects_are_read(headers: dict[str, str], pace: Pace) -> None:
    sent = CIMultiDict(headers)
    (found,) = LimitHeaders().read(sent, lambda: WALL_S)
    assert (found.resource, found.limit, found.remaining) == (pace.resource, pace.limit, pace.remaining)
    assert found.resets_in_s == (
        None if pace.resets_in_s is None else pytest.approx(pace.resets_in_s, abs=1e-3)
    )


def test_a_servers_header_names_are_learned_and_rescanned() -> None:
    """A response costs as many lookups as it has limits, and a server may start to send more."""
    limits, headers = LimitHeaders(), {"x-ratelimit-remaining-requests": "5"}
    assert limits.read({}, lambda: WALL_S) == ()
    seen = [limits.read(headers, lambda: WALL_S) for _ in range(LOOKED_AT_EVERY)]
    assert seen[0] == () and seen[-1] == (Pace("requests", None, 5, None),)
