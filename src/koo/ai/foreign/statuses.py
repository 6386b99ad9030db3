"""The HTTP status that an error carries under one of the usual names, and the headers and the wait with it.

Most libraries that speak HTTP raise an error with the status in `status_code`, `status`, `code` or `http_status`, or
with the answer in `response` or `resp`. A name alone proves little: `code` may be a database's or SMTP's. So only a
plain whole number from 400 to 599 is a status, and libraries whose codes lie there and mean something else are listed.
What an application answers its own clients (a web framework's `HTTPException`) says nothing about the service.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from http import HTTPStatus
from itertools import islice

from koo.ai.foreign.peek import names_of, peek
from koo.ai.providers.faults import FaultTable, ParsedError, Row, make_error
from koo.ai.providers.openai_errors import parse_error
from koo.ai.providers.waits import Stated
from koo.clock import SYSTEM_CLOCK
from koo.errors import ExternalServiceError, Kind

HTTP = FaultTable(
    "http",
    (
        Row(Kind.NOT_FOUND, status=404, sentence="what was asked for does not exist there"),
        # A bare 402 may be about a customer's declined card: not a reason to keep other calls waiting.
        Row(Kind.INVALID_REQUEST, status=402, sentence="it requires payment first"),
        # A bare 403 may be about one document of many; a block would stop every other call.
        Row(Kind.INVALID_REQUEST, status=403, sentence="it forbids this request"),
        # Bedrock's and TGI's status for a model that failed.
        Row(Kind.SERVER_ERROR, status=424, sentence="something it depends on failed"),
    ),
)
"""Not a vendor: only the status counts."""

PLACES: tuple[tuple[str, ...], ...] = (
    ("status_code",),
    ("http_status",),
    ("response", "status_code"),
    ("response", "status"),
    ("resp", "status"),
    ("resp", "status_code"),
    ("raw_response", "status_code"),
    ("status",),
    ("code",),
)
"""Where a status is stored. `status` and `code` come last: beside a clearer one they may be a vendor's own number."""
HEADERS: tuple[tuple[str, ...], ...] = (
    ("response", "headers"),
    ("headers",),
    ("resp",),  # googleapiclient: a mapping that is the headers
    ("hdrs",),
    ("meta", "headers"),
    ("raw_response", "headers"),
)
CODES = ("provider_error_code", "provider_code", "error_code", "code")
HEADERS_MAX = 64
"""More belong to no error."""
OTHER_CODES = frozenset({"aiosmtplib", "asynch", "clickhouse_driver", "pymongo", "smtplib"})
"""Modules whose `code` is a number of their own."""
ANSWERS = (
    "aiohttp.web", "bottle", "django", "falcon", "fastapi", "flask", "litestar", "ninja", "quart", "rest_framework",
    "sanic", "starlette", "tornado.web", "werkzeug",
)  # fmt: skip
"""Modules of web frameworks: an error of theirs is what the application answers."""

GRPC: dict[str, int] = {
    "INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "OUT_OF_RANGE": 400, "ALREADY_EXISTS": 400,
    "UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "NOT_FOUND": 404, "UNIMPLEMENTED": 404, "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429, "CANCELLED": 499, "INTERNAL": 500, "UNKNOWN": 500, "DATA_LOSS": 500,
    "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504,
}  # fmt: skip
"""gRPC's codes by the HTTP status of the same sense."""


def classify_status(error: Exception, service: str) -> ExternalServiceError | None:
    """The error for a carried status, or None without one."""
    if is_answer(error):
        return None
    names = names_of(type(error))
    if "grpc" in names or any(base.__name__.endswith("RpcError") for base in type(error).__mro__):
        return _by_grpc(error, service)
    if _status(aws_metadata(error).get("HTTPStatusCode")):
        return by_aws(error, service)
    if not OTHER_CODES.isdisjoint(names):
        return None
    status = status_of(error)
    return None if status is None else by_status(error, status, service)


def status_of(error: Exception) -> int | None:
    """The first status in one of the usual places."""
    return next((found for place in PLACES if (found := _status(peek(error, *place)))), None)


def is_answer(error: Exception) -> bool:
    """Whether it is an application's answer to its own client, in its web framework's way."""
    return any(str(base.__module__).startswith(ANSWERS) for base in type(error).__mro__)


def by_status(
    error: Exception,
    status: int,
    service: str,
    *,
    billable: bool = False,
    headers: Mapping[str, str] | None = None,
) -> ExternalServiceError:
    """The error for a status, with the wait from the headers of `error` or its `retry_after`."""
    parsed = ParsedError(
        status=status,
        # "access_denied" is about one document, like any other 403.
        code=None if status == 403 else _code(error),
        headers=headers_of(error) if headers is None else headers,
        stated=_stated(error),
    )
    found = HTTP.error(service or HTTP.vendor, parsed, SYSTEM_CLOCK.wall(), billable=billable)
    if status == 403 and found.retry_after_s is not None:
        # GitHub's and others' status for too many requests; a merely forbidden request has no time to come back.
        reason = "it limits our rate (status 403)"
        wait_s, detail = found.retry_after_s, found.detail
        return make_error(found.service, Kind.THROTTLED, reason, wait_s, detail=detail, billable=billable)
    return found


def headers_of(error: Exception) -> dict[str, str]:
    """The headers of the answer, their names in lower case, from where the libraries keep them."""
    found = (plain_headers(peek(error, *place)) for place in HEADERS)
    return next((headers for headers in found if headers), {})


def plain_headers(given: object) -> dict[str, str]:
    """Headers of any library's own mapping, as a dictionary with names in lower case; {} if they are not headers."""
    headers: dict[str, str] = {}
    try:
        for name, value in islice(given.items(), HEADERS_MAX):  # type: ignore[attr-defined]
            if isinstance(name, str) and isinstance(value, str):
                headers[name.lower()] = value
    except Exception:  # noqa: BLE001 - nothing like headers
        return {}
    return headers


def _status(value: object) -> int | None:
    """A status is a plain number: not a string of digits, a bool or a library's enumeration."""
    if (type(value) is int or isinstance(value, HTTPStatus)) and 400 <= value < 600:
        return int(value)
    return None


def _code(error: Exception) -> str | None:
    """The word beside a status, which distinguishes a quota from a rate."""
    found = (peek(error, name) for name in CODES)
    return next((code for code in found if isinstance(code, str)), None)


def _stated(error: Exception) -> tuple[Stated, ...]:
    """What some libraries have read from the headers themselves: seconds, or a span."""
    wait = peek(error, "retry_after")
    if isinstance(wait, timedelta):
        wait = wait.total_seconds()
    return (Stated(str(wait)),) if type(wait) in (int, float) else ()


def aws_metadata(error: Exception) -> Mapping[str, object]:
    """What botocore, and libraries like it, keep beside an answer: its status and headers; {} for other errors."""
    response = peek(error, "response")
    metadata = response.get("ResponseMetadata") if isinstance(response, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def by_aws(error: Exception, service: str) -> ExternalServiceError:
    """AWS throttles with 400 too, so its codes are read; an error in a stream has no status."""
    metadata, response = aws_metadata(error), peek(error, "response")
    found = metadata.get("HTTPStatusCode")
    status = found if type(found) is int else 200
    headers, said = plain_headers(metadata.get("HTTPHeaders")), None
    if isinstance(response, dict):
        said = response.get("Error")
    if isinstance(said, dict) and str(said.get("Code", "")).startswith("AccessDenied"):
        # About one object of many, like any other bare 403: its name would block the key for all.
        said = headers["x-amzn-errortype"] = ""
    parsed = parse_error(status, headers, said)
    return HTTP.error(service or "aws", parsed, SYSTEM_CLOCK.wall(), billable=status < 400)


def _by_grpc(error: Exception, service: str) -> ExternalServiceError | None:
    """An `RpcError` returns its code from a method. What a 4xx did not turn away may have been done, and billed."""
    code = peek(error, "code")
    if not callable(code):
        return None
    try:
        status = GRPC.get(str(code().name))
    except Exception:  # noqa: BLE001 - a call that is still running has no code
        return None
    return None if status is None else by_status(error, status, service, billable=status >= 499, headers={})
