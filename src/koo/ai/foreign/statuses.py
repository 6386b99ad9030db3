"""Find the HTTP status, the headers and the wait in an error of any library.

Most HTTP libraries raise an error with the status in `status_code`, `status`, `code` or `http_status`, or with the
response in `response` or `resp`. A name alone proves little: `code` may be a database's. So only a plain integer from
400 to 599 counts as a status, and libraries whose own codes fall into that range are listed and skipped. A response
that an application sends to its own clients (a web framework's `HTTPException`) says nothing about the service.
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
        Row(Kind.NOT_FOUND, status=404, sentence="the requested resource does not exist"),
        # A bare 402 may be about a customer's declined card, which is not a reason to hold back other calls.
        Row(Kind.INVALID_REQUEST, status=402, sentence="it requires payment first"),
        # A bare 403 may be about a single document, and blocking the key would stop every other call.
        Row(Kind.INVALID_REQUEST, status=403, sentence="it forbids this request"),
        # Bedrock's and TGI's status for a model that failed.
        Row(Kind.SERVER_ERROR, status=424, sentence="a service that it depends on failed"),
    ),
)
"""The table for services without a vendor of their own: only the status counts."""

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
"""Where libraries store a status. `status` and `code` come last: next to a clearer name they may be a vendor's code."""
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
"""More headers than a response has."""
OTHER_CODES = frozenset({"asynch", "clickhouse_driver", "pymongo"})
"""Modules whose `code` is not an HTTP status."""
ANSWERS = (
    "aiohttp.web", "bottle", "django", "falcon", "fastapi", "flask", "litestar", "ninja", "quart", "rest_framework",
    "sanic", "starlette", "tornado.web", "werkzeug",
)  # fmt: skip
"""Modules of web frameworks: their errors are the application's responses to its own clients."""

GRPC: dict[str, int] = {
    "INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "OUT_OF_RANGE": 400, "ALREADY_EXISTS": 400,
    "UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "NOT_FOUND": 404, "UNIMPLEMENTED": 404, "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429, "CANCELLED": 499, "INTERNAL": 500, "UNKNOWN": 500, "DATA_LOSS": 500,
    "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504,
}  # fmt: skip
"""gRPC's codes and the HTTP statuses with the same meaning."""


def classify_status(error: Exception, service: str) -> ExternalServiceError | None:
    """The error for the status that an exception carries, or None if it carries none."""
    if is_answer(error):
        return None
    names = names_of(type(error))
    # gRPC's `code` is a method, and AWS's 400 may be a rate limit. Both would be misread by the general rule below.
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
    """Whether the error is a web framework's, which is the application's response to its own client."""
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
        # GitHub and others send 403 for too many requests. A request that is really forbidden has no `Retry-After`.
        reason = "its rate limit was reached (status 403)"
        wait_s, detail = found.retry_after_s, found.detail
        return make_error(found.service, Kind.THROTTLED, reason, wait_s, detail=detail, billable=billable)
    return found


def headers_of(error: Exception) -> dict[str, str]:
    """The response's headers with names in lower case, from the places where libraries store them."""
    found = (plain_headers(peek(error, *place)) for place in HEADERS)
    return next((headers for headers in found if headers), {})


def plain_headers(given: object) -> dict[str, str]:
    """The headers in any library's own mapping as a dict with names in lower case; {} if they are not headers."""
    headers: dict[str, str] = {}
    try:
        for name, value in islice(given.items(), HEADERS_MAX):  # type: ignore[attr-defined]
            if isinstance(name, str) and isinstance(value, str):
                headers[name.lower()] = value
    except Exception:  # noqa: BLE001 - nothing like headers
        return {}
    return headers


def _status(value: object) -> int | None:
    """The value if it is a status: a plain integer, and not a string, a bool or a library's own enumeration."""
    # Below 400 there is no failure to classify. `type(…) is int` excludes bools and enumerations of other libraries,
    # whose members compare like numbers but mean something else.
    if (type(value) is int or isinstance(value, HTTPStatus)) and 400 <= value < 600:
        return int(value)
    return None


def _code(error: Exception) -> str | None:
    """The code next to a status, which distinguishes a quota from a rate limit."""
    found = (peek(error, name) for name in CODES)
    return next((code for code in found if isinstance(code, str)), None)


def _stated(error: Exception) -> tuple[Stated, ...]:
    """The wait that some libraries have already parsed: seconds or a timedelta."""
    wait = peek(error, "retry_after")
    if isinstance(wait, timedelta):
        wait = wait.total_seconds()
    return (Stated(str(wait)),) if type(wait) in (int, float) else ()


def aws_metadata(error: Exception) -> Mapping[str, object]:
    """The status and headers that botocore and similar libraries store with a response; {} for other errors."""
    response = peek(error, "response")
    metadata = response.get("ResponseMetadata") if isinstance(response, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def by_aws(error: Exception, service: str) -> ExternalServiceError:
    """The error for an AWS response by its code, because AWS also throttles with status 400.

    An error in a stream has no status.
    """
    metadata, response = aws_metadata(error), peek(error, "response")
    found = metadata.get("HTTPStatusCode")
    status = found if type(found) is int else 200
    headers, said = plain_headers(metadata.get("HTTPHeaders")), None
    if isinstance(response, dict):
        said = response.get("Error")
    if isinstance(said, dict) and str(said.get("Code", "")).startswith("AccessDenied"):
        # Like any bare 403, it may be about a single object. Its code would block the key for all calls.
        said = headers["x-amzn-errortype"] = ""
    parsed = parse_error(status, headers, said)
    return HTTP.error(service or "aws", parsed, SYSTEM_CLOCK.wall(), billable=status < 400)


def _by_grpc(error: Exception, service: str) -> ExternalServiceError | None:
    """The error for a gRPC code, which an `RpcError` returns from a method.

    A call that was not refused (a status from 499) may have been executed and billed.
    """
    code = peek(error, "code")
    if not callable(code):
        return None
    try:
        status = GRPC.get(str(code().name))
    except Exception:  # noqa: BLE001 - a call that is still running has no code
        return None
    return None if status is None else by_status(error, status, service, billable=status >= 499, headers={})
