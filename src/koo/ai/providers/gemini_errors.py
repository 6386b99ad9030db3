"""The meaning of Gemini's errors: over HTTP, inside a stream, and from Google's own SDK.

    {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message", "details": [
        {"@type": ".../google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"},
        {"@type": ".../google.rpc.QuotaFailure", "violations": [{"quotaId": "GenerateRequestsPerDayPer..."}]},
        {"@type": ".../google.rpc.RetryInfo", "retryDelay": "45.8s"}]}}

A wrong key is a 400, and only its reason distinguishes it from a wrong request. A 429 names the exceeded quotas. An
exceeded daily quota may state a wait of seconds, but it is still exceeded after that: it resets at midnight in
California.
"""

from __future__ import annotations

from datetime import datetime, time, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from koo.ai.providers.faults import FORBIDDEN_ON_THE_WAY, FaultTable, ParsedError, Row
from koo.ai.providers.waits import sensible
from koo.errors import Kind

PACIFIC = "America/Los_Angeles"
PACIFIC_STANDARD = timezone(timedelta(hours=-8))
"""Used on a machine without a time zone database; in summer it is off by an hour."""
EXHAUSTED = "RESOURCE_EXHAUSTED"
INVALID = "INVALID_ARGUMENT"


def until_midnight_pacific(parsed: ParsedError, wall_s: float) -> float | None:
    """Seconds until a daily quota resets: midnight in California, where two days a year have 23 or 25 hours."""
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
        # Reasons come first.
        Row(Kind.AUTH, ("API_KEY_INVALID", "API_KEY_EXPIRED")),
        Row(Kind.BILLING, "BILLING_DISABLED"),
        # The exceeded quotas follow. A daily one comes first, because it lasts longer than one per minute in the same
        # error.
        Row(Kind.QUOTA, "PerDay", sentence="its quota for today is used up", until=until_midnight_pacific),
        Row(Kind.THROTTLED, "PerMinute"),
        # One status has several meanings here. For errors that stop the whole service, the message has to begin with
        # the listed words: later parts may quote the prompt.
        Row(Kind.BILLING, EXHAUSTED, (402, 429), begins=("your prepayment credits are depleted",)),
        Row(Kind.BILLING, (EXHAUSTED, "payment_required"), 402),
        Row(Kind.QUOTA, EXHAUSTED, 429, begins=("your project has exceeded its monthly spending cap",)),
        Row(Kind.AUTH, INVALID, 400, begins=("api key not valid", "api key expired", "api key not found")),
        Row(
            Kind.AUTH,
            "PERMISSION_DENIED",
            403,
            begins=("your api key was reported as leaked", "method doesn't allow unregistered callers"),
        ),
        Row(Kind.BILLING, "FAILED_PRECONDITION", (200, 400), says=("billing",)),
        Row(
            Kind.PERMISSION,
            "FAILED_PRECONDITION",
            (200, 400),
            sentence="it is not available for this account or country",
        ),
        # Then the status, which is all that an error inside a stream has.
        Row(Kind.THROTTLED, EXHAUSTED),
        Row(Kind.INVALID_REQUEST, (INVALID, "OUT_OF_RANGE", "UNIMPLEMENTED")),
        Row(Kind.AUTH, "UNAUTHENTICATED"),
        Row(Kind.PERMISSION, "PERMISSION_DENIED"),
        Row(Kind.NOT_FOUND, "NOT_FOUND"),
        Row(Kind.CONFLICT, ("CANCELLED", "ABORTED"), sentence="it cancelled the request"),
        Row(Kind.OVERLOADED, "UNAVAILABLE"),
        Row(Kind.TIMEOUT, "DEADLINE_EXCEEDED"),
        FORBIDDEN_ON_THE_WAY,
    ),
)
