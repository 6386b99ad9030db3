"""What Gemini's errors mean, over HTTP and inside a stream, from its adapter and from Google's own SDK.

    {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message", "details": [
        {"@type": ".../google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"},
        {"@type": ".../google.rpc.QuotaFailure", "violations": [{"quotaId": "GenerateRequestsPerDayPer..."}]},
        {"@type": ".../google.rpc.RetryInfo", "retryDelay": "45.8s"}]}}

A wrong key is a 400, and only its reason tells it from a wrong request. A 429 names the quotas that were hit. A day's
quota may come with a wait of seconds, after which it is still used up: it ends at midnight in California.
"""

from __future__ import annotations

from datetime import datetime, time, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from koo.ai.providers.faults import FORBIDDEN_ON_THE_WAY, FaultTable, ParsedError, Row
from koo.ai.providers.other_words import CONTEXT_WORDS
from koo.ai.providers.waits import sensible
from koo.errors import Kind

PACIFIC = "America/Los_Angeles"
PACIFIC_STANDARD = timezone(timedelta(hours=-8))
"""Where the machine knows no time zones: in summer an hour off."""
EXHAUSTED = "RESOURCE_EXHAUSTED"
INVALID = "INVALID_ARGUMENT"


def until_midnight_pacific(parsed: ParsedError, wall_s: float) -> float | None:
    """Daily quotas end at midnight in California, whose days have 23 or 25 hours twice a year."""
    zone = _pacific()
    today = datetime.fromtimestamp(wall_s, zone).date()
    midnight = datetime.combine(today + timedelta(days=1), time(), zone)
    return sensible(midnight.timestamp() - wall_s)


def _pacific() -> tzinfo:
    try:
        return ZoneInfo(PACIFIC)
    except ZoneInfoNotFoundError:
        return PACIFIC_STANDARD


FAULTS = FaultTable(
    "gemini",
    (
        # A reason first.
        Row(Kind.AUTH, ("API_KEY_INVALID", "API_KEY_EXPIRED")),
        Row(Kind.BILLING, "BILLING_DISABLED"),
        # Then the quotas that were hit: one of the day outlasts one of the minute beside it.
        Row(Kind.QUOTA, "PerDay", sentence="its quota for today is used up", until=until_midnight_pacific),
        Row(Kind.THROTTLED, "PerMinute"),
        # One status, several meanings. Words that stop the whole service have to be how the message begins.
        Row(Kind.BILLING, EXHAUSTED, (402, 429), begins=("your prepayment credits are depleted",)),
        Row(Kind.BILLING, (EXHAUSTED, "payment_required"), 402),
        Row(Kind.AUTH, INVALID, 400, begins=("api key not valid", "api key expired", "api key not found")),
        Row(
            Kind.AUTH,
            "PERMISSION_DENIED",
            403,
            begins=("your api key was reported as leaked", "method doesn't allow unregistered callers"),
        ),
        Row(Kind.CONTEXT_LENGTH, INVALID, (200, 400), says=CONTEXT_WORDS),
        Row(Kind.BILLING, "FAILED_PRECONDITION", (200, 400), says=("billing",)),
        Row(
            Kind.PERMISSION,
            "FAILED_PRECONDITION",
            (200, 400),
            sentence="it does not serve this account or country",
        ),
        # Then the status, which is all there is inside a stream.
        Row(Kind.THROTTLED, EXHAUSTED),
        Row(Kind.INVALID_REQUEST, (INVALID, "OUT_OF_RANGE", "UNIMPLEMENTED")),
        Row(Kind.AUTH, "UNAUTHENTICATED"),
        Row(Kind.PERMISSION, "PERMISSION_DENIED"),
        Row(Kind.NOT_FOUND, "NOT_FOUND"),
        Row(Kind.CONFLICT, ("CANCELLED", "ABORTED"), sentence="the request was cancelled there"),
        Row(Kind.OVERLOADED, "UNAVAILABLE"),
        Row(Kind.TIMEOUT, "DEADLINE_EXCEEDED"),
        FORBIDDEN_ON_THE_WAY,
    ),
)
