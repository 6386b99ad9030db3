"""What Gemini's errors mean, over HTTP and inside a stream, from its adapter and from Google's own SDK.

    {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message", "details": [
        {"@type": ".../google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"},
        {"@type": ".../google.rpc.QuotaFailure", "violations": [{"quotaId": "GenerateRequestsPerDayPer..."}]},
        {"@type": ".../google.rpc.RetryInfo", "retryDelay": "45.8s"}]}}

A wrong key is a 400, and only its reason tells it from a wrong request. A 429 names the quotas that were hit. A day's
quota may come with a wait of seconds, after which it is still used up: it ends at midnight in California.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, time, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from koo.ai.providers.faults import FORBIDDEN_ON_THE_WAY, FaultTable, ParsedError, Row
from koo.ai.providers.headers import duration_s, sensible
from koo.ai.providers.openai_errors import CONTEXT_WORDS
from koo.ai.providers.transport import document_of
from koo.errors import Kind

PACIFIC = "America/Los_Angeles"
PACIFIC_STANDARD = timezone(timedelta(hours=-8))
"""Where the machine knows no time zones: in summer an hour off."""
EXHAUSTED = "RESOURCE_EXHAUSTED"
INVALID = "INVALID_ARGUMENT"
PERIODS = ("PerDay", "PerMinute")


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
        Row(Kind.SERVER_ERROR, ("INTERNAL", "UNKNOWN", "DATA_LOSS")),
        Row(Kind.OVERLOADED, "UNAVAILABLE"),
        Row(Kind.TIMEOUT, "DEADLINE_EXCEEDED"),
        FORBIDDEN_ON_THE_WAY,
    ),
)


# ── reading them ──────────────────────────────────────────────────────────────────────────────────────────────────────

_RETRY_IN = re.compile(r"\bretry in (\d+(?:\.\d+)?(?:ms|s|m|h))\b", re.IGNORECASE)


def read_error(status: int, headers: Mapping[str, str], body: bytes) -> ParsedError:
    """What an error's body says; a page of something on the way says nothing."""
    return parse_error(status, headers, document_of(body))


def parse_error(status: int, headers: Mapping[str, str], document: object) -> ParsedError:
    """As `read_error`, of a decoded body: `{"error": {"code", "message", "status", "details": [...]}}`."""
    if isinstance(document, list) and len(document) == 1:
        document = document[0]  # A stream without `alt=sse` is a list, and so are its errors.
    error = document.get("error") if isinstance(document, Mapping) else None
    if not isinstance(error, Mapping):
        return ParsedError(status=status, headers=headers)
    kind, message, code = error.get("status"), error.get("message"), error.get("code")
    reasons, periods, wait_s = _details(error.get("details"))
    if wait_s is None and kind == EXHAUSTED and isinstance(message, str):
        hint = _RETRY_IN.search(message[:2000])
        wait_s = duration_s(hint[1]) if hint else None
    if wait_s is not None:
        headers = {**{name.lower(): value for name, value in headers.items()}, "retry-after": f"{wait_s}"}
    return ParsedError(
        # Inside a success the code is the status that it would have had.
        status=code if status < 300 and isinstance(code, int) and 400 <= code < 600 else status,
        code=reasons[0] if reasons else None,
        type=kind if isinstance(kind, str) else None,
        more=(*reasons[1:], *periods),
        message=message if isinstance(message, str) else "",
        headers=headers,
        shaped=isinstance(kind, str) or isinstance(code, int),
    )


def _details(details: object) -> tuple[list[str], list[str], float | None]:
    """Reasons, the periods of the quotas that were hit, and the wait ("45.8s")."""
    reasons: list[str] = []
    periods: list[str] = []
    wait_s: float | None = None
    for detail in details if isinstance(details, list) else ():
        if not isinstance(detail, Mapping):
            continue
        if isinstance(reason := detail.get("reason"), str):
            reasons.append(reason)
        if isinstance(delay := detail.get("retryDelay"), str):
            wait_s = duration_s(delay)
        periods += _periods(detail.get("violations"))
    return reasons, periods, wait_s


def _periods(violations: object) -> list[str]:
    ids = [
        violation.get("quotaId")
        for violation in (violations if isinstance(violations, list) else ())
        if isinstance(violation, Mapping)
    ]
    return [period for period in PERIODS if any(isinstance(name, str) and period in name for name in ids)]
