"""How much is left of a provider's limits, by the headers of an answer."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from koo.ai.providers.base import Pace
from koo.ai.providers.headers import anthropic_pace, openai_pace

WALL_S = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC).timestamp()


def rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(WALL_S + seconds, UTC).isoformat().replace("+00:00", "Z")


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_text_breaks_the_reader(value: str, date: str) -> None:
    anthropic_pace(
        {"anthropic-ratelimit-tokens-remaining": value, "anthropic-ratelimit-tokens-reset": date}, WALL_S
    )
    openai_pace({"x-ratelimit-remaining-tokens": value, "x-ratelimit-limit-tokens": date})


def test_the_pace_of_anthropic() -> None:
    headers = {
        "anthropic-ratelimit-requests-limit": "4000",
        "anthropic-ratelimit-requests-remaining": "3999",
        "anthropic-ratelimit-requests-reset": rfc3339(15),
        "anthropic-ratelimit-output-tokens-remaining": "5",
    }
    assert anthropic_pace(headers, WALL_S) == (
        Pace("requests", 4000, 3999, 15.0),
        Pace("output-tokens", None, 5, None),
    )
    assert anthropic_pace({}, WALL_S) == ()


def test_the_pace_of_openai_and_azures_garbage() -> None:
    headers = {
        "x-ratelimit-limit-tokens": "400000",
        "x-ratelimit-remaining-tokens": "399000",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    assert openai_pace(headers) == (Pace("tokens", 400_000, 399_000, 360),)
    assert openai_pace({"x-ratelimit-limit-tokens": "0", "x-ratelimit-remaining-tokens": "0"}) == ()
    assert openai_pace({"x-ratelimit-limit-tokens": "-1", "x-ratelimit-remaining-tokens": "-1"}) == ()
