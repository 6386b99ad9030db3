"""Retry-After in all its forms: a table of what providers send and what it means."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koo.ai.providers.waits import (
    LONGEST_S,
    resets_in_s,
    retry_after_s,
    said_s,
    span_s,
)

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
WALL_S = NOW.timestamp()


def http_date(seconds: float) -> str:
    return format_datetime(datetime.fromtimestamp(WALL_S + seconds, UTC), usegmt=True)


def rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(WALL_S + seconds, UTC).isoformat().replace("+00:00", "Z")


WAITS: list[tuple[dict[str, str], float | None]] = [
    ({}, None),
    # retry-after-ms takes precedence, as in the SDKs.
    ({"retry-after-ms": "1500"}, 1.5),
    ({"retry-after-ms": "94.5", "retry-after": "7"}, 0.0945),
    ({"retry-after-ms": "soon", "retry-after": "7"}, 7),
    # Seconds.
    ({"retry-after": "3"}, 3),
    ({"retry-after": " 0.25 "}, 0.25),
    ({"retry-after": "1e2"}, 100),
    ({"retry-after": "3600"}, 3600),
    # A date, compared with the server's clock if it sends one.
    ({"retry-after": http_date(90)}, 90),
    ({"retry-after": http_date(90), "date": http_date(60)}, 30),
    ({"retry-after": http_date(90), "date": "yesterday"}, 90),
    ({"retry-after": "Mon, 23 Nov 2026 12:02:00 -0000"}, 120),
    # Impossible values are ignored.
    ({"retry-after": "0"}, None),
    ({"retry-after": "-5"}, None),
    ({"retry-after": "nan"}, None),
    ({"retry-after": "inf"}, None),
    ({"retry-after": "1_000"}, None),
    ({"retry-after": ""}, None),
    ({"retry-after": "a while"}, None),
    ({"retry-after": "٣"}, None),
    ({"retry-after": http_date(-90)}, None),
    ({"retry-after": "Mon, 99 Foo 2026 25:99:99 GMT"}, None),
    ({"retry-after": "0", "x-ratelimit-reset-requests": "9s"}, 9),
    # A timestamp in seconds or milliseconds must not turn a wait of a minute into 31 days.
    ({"retry-after": str(int(WALL_S) + 60)}, 60),
    ({"retry-after": str((int(WALL_S) + 60) * 1000)}, 60),
    ({"retry-after-ms": str((int(WALL_S) + 60) * 1000)}, 60),
    ({"retry-after-ms": str(int(WALL_S) + 60)}, 60),
    ({"retry-after": str(int(WALL_S) + 60), "date": http_date(30)}, 30),
    ({"retry-after": str(int(WALL_S) - 60)}, None),
    ({"retry-after": str(int(WALL_S) - 60), "x-ratelimit-reset": "9"}, 9),
    ({"retry-after": "99999999"}, None),
    # Durations in words, and other dates.
    ({"retry-after": "7s"}, 7),
    ({"retry-after": "1m2s"}, 62),
    ({"retry-after": "2 minutes"}, 120),
    ({"retry-after": "00:01:30"}, 90),
    # A header that was sent twice, in quotes or with a comment.
    ({"retry-after": "60, 60"}, 60),
    ({"retry-after": "5, 60"}, 60),
    ({"retry-after": '"60"'}, 60),
    ({"retry-after": "60; window"}, 60),
    ({"retry-after": "60 (seconds)"}, 60),
    ({"retry-after": "5 parsecs, 60"}, None),
    ({"retry-after": rfc3339(60)}, 60),
    ({"retry-after": "Monday, 23-Nov-26 12:01:00 GMT"}, 60),
    ({"retry-after": http_date(86_400 * 300)}, LONGEST_S),
    # Milliseconds have three names, and a zero is ignored there too.
    ({"x-ms-retry-after-ms": "1500"}, 1.5),
    ({"x-retry-after-ms": "1500"}, 1.5),
    ({"x-ms-retry-after-ms": "00:00:01.500"}, 1.5),
    ({"retry-after-ms": "0", "retry-after": "7"}, 7),
    ({"retry-after-ms": "-1", "x-ms-retry-after-ms": "250", "retry-after": "7"}, 0.25),
    # Anthropic: RFC 3339. The reset of the used-up limit counts; of two used-up limits, the later reset.
    ({"anthropic-ratelimit-tokens-reset": rfc3339(40), "anthropic-ratelimit-tokens-remaining": "0"}, 40),
    (
        {
            "anthropic-ratelimit-requests-reset": rfc3339(2),
            "anthropic-ratelimit-requests-remaining": "17",
            "anthropic-ratelimit-tokens-reset": rfc3339(40),
            "anthropic-ratelimit-tokens-remaining": "0",
            "anthropic-ratelimit-output-tokens-reset": rfc3339(50),
            "anthropic-ratelimit-output-tokens-remaining": "0",
        },
        50,
    ),
    ({"anthropic-ratelimit-tokens-reset": rfc3339(40), "date": http_date(30)}, 10),
    ({"anthropic-ratelimit-tokens-reset": rfc3339(-40)}, None),
    ({"anthropic-ratelimit-unified-5h-reset": str(int(WALL_S) + 500)}, 500),
    # OpenAI: Go durations. If no limit is used up, the earliest counts.
    ({"x-ratelimit-reset-requests": "6m0s", "x-ratelimit-reset-tokens": "120ms"}, 0.12),
    (
        {
            "x-ratelimit-reset-requests": "12ms",
            "x-ratelimit-remaining-requests": "99",
            "x-ratelimit-reset-tokens": "1h2m3.5s",
            "x-ratelimit-remaining-tokens": "0",
        },
        3723.5,
    ),
    ({"x-ratelimit-reset-tokens_usage_based": "8s"}, 8),
    # Azure: seconds, with -1 and 0 for nothing.
    ({"x-ratelimit-reset-tokens": "17"}, 17),
    ({"x-ratelimit-reset-tokens": "-1", "x-ratelimit-reset-requests": "0"}, None),
    # Cerebras: per minute and per day.
    (
        {
            "x-ratelimit-reset-requests-day": "3600.5",
            "x-ratelimit-remaining-requests-day": "0",
            "x-ratelimit-reset-requests-minute": "2.5",
        },
        3600.5,
    ),
    # OpenRouter: a timestamp in milliseconds or seconds, or seconds from now.
    ({"x-ratelimit-reset": str(int(WALL_S + 30) * 1000), "x-ratelimit-remaining": "0"}, 30),
    ({"x-ratelimit-reset": str(int(WALL_S + 30))}, 30),
    ({"x-ratelimit-reset": "45"}, 45),
    ({"x-ratelimit-reset": "6m0s"}, 360),
    ({"x-ratelimit-reset": "whenever"}, None),
    # Gateways: by the IETF draft, and under their own names.
    ({"ratelimit-reset": "50", "ratelimit-remaining": "0"}, 50),
    ({"ratelimit": "limit=100, remaining=0, reset=50"}, 50),
    ({"ratelimit": '"default";r=0;t=50'}, 50),
    ({"ratelimit-policy": '"default";q=100;w=60'}, None),
    ({"x-rate-limit-reset": "50"}, 50),
    ({"x-ratelimit-reset-after": "1.5"}, 1.5),
    ({"X-RateLimit-Reset": "45"}, 45),
]


@pytest.mark.parametrize(("headers", "seconds"), WAITS)
def test_a_providers_wait_is_read_from_its_headers(headers: dict[str, str], seconds: float | None) -> None:
    wait_s = retry_after_s(headers, WALL_S) or resets_in_s(headers, WALL_S)
    assert wait_s == (None if seconds is None else pytest.approx(seconds))


def test_a_limits_reset_is_not_a_retry_after() -> None:
    """Limits are sent with every response, including one that was refused for another reason."""
    headers = {"x-ratelimit-reset-requests": "12ms", "anthropic-ratelimit-tokens-reset": rfc3339(40)}
    assert retry_after_s(headers, WALL_S) is None


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_text_raises_or_yields_an_absurd_wait(value: str, date: str) -> None:
    names = [
        "retry-after-ms",
        "retry-after",
        "x-ratelimit-reset",
        "x-ratelimit-reset-tokens",
        "anthropic-ratelimit-tokens-reset",
    ]
    for name in names:
        headers = {name: value, "date": date}
        wait_s = retry_after_s(headers, WALL_S) or resets_in_s(headers, WALL_S)
        assert wait_s is None or (math.isfinite(wait_s) and 0 < wait_s <= LONGEST_S)
    said_s(value, WALL_S)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("12ms", 0.012), ("1s", 1), ("6m0s", 360), ("1h2m3.5s", 3723.5), ("250µs", 0.00025),
        ("45.837906927s", 45.837906927),
        ("17", 17), ("2.5", 2.5), ("", None), ("ms", None), ("1s2", None), ("5 parsecs", None),
        ("5 minutes", 300), ("1 minute 30 seconds", 90), ("1 hour, 2 minutes and 3 secs", 3723), ("1d", 86_400),
        ("00:01:30", 90), ("00:00:00.033", 0.033), ("PT30S", 30), ("PT1H2M3.5S", 3723.5), ("P1D", 86_400), ("p", None),
    ],
)  # fmt: skip
def test_durations_are_parsed(text: str, seconds: float | None) -> None:
    assert span_s(text) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        (
            "Rate limit reached for gpt-6 in organization org-1 on tokens per min. Please try again in 94ms.",
            0.094,
        ),
        ("Limit 3, used 3. Please try again in 20s. Visit https://platform.openai.com", 20),
        ("please TRY AGAIN IN 1m30s", 90),
        ("TPM: Limit 6000, Used 5000, Requested 1200. Please try again in 6m59.904s.", 419.904),
        ("have exceeded token rate limit. Please retry after 6 seconds.", 6),
        ("Rate limit of 50 per 86400s exceeded. Please wait 5434 seconds before retrying.", 5434),
        ("Out of call volume quota. Quota will be replenished in 12:34:56.", 45_296),
        ("No deployments available for selected model, Try again in 5 seconds. Passed model=m", 5),
        ("Your limit resets at 2026-11-23 13:00 UTC", 3600),
        ("You will regain access on 2026-11-24 at 00:00 UTC.", 43_200),
        ("wait or upgrade; you made 50 requests", None),
        ("retried 3 times", None),
        ("Please try again in a while", None),
        ("try again", None),
    ],
)
def test_the_wait_in_a_sentence_is_read(message: str, seconds: float | None) -> None:
    assert said_s(message, WALL_S) == (None if seconds is None else pytest.approx(seconds))
