"""Classify exceptions of HTTP libraries: httpx, httpx2, aiohttp, requests, urllib3, urllib, http.client, botocore.

They all distinguish the same three cases: a response with a status, a request that was never sent, and everything else,
which may have been billed. Several are also `OSError`s, and would otherwise count as lost connections.
"""

from __future__ import annotations

import re
from ssl import SSLCertVerificationError

from koo.ai.foreign.peek import names_of, peek
from koo.ai.foreign.statuses import HTTP, by_aws, by_status
from koo.ai.providers.faults import make_error
from koo.errors import ExternalServiceError, Kind, ServiceSaturated
from koo.policies.treatment import MISTAKEN
from koo.policies.verdict import Fault

UNSENT = frozenset({"ConnectError", "ConnectTimeout", "ProxyError"})
"""Errors of httpx and httpx2 for a request that was never sent."""
HTTPX_MISTAKES = frozenset({"InvalidURL", "StreamError", "CookieConflict"})
AIOHTTP_UNSENT = frozenset({
    "ClientConnectorError", "ConnectionTimeoutError", "ClientConnectorDNSError", "ClientSSLError",
})  # fmt: skip
URLLIB3_UNSENT = frozenset({
    "ConnectTimeoutError", "NewConnectionError", "ProxyError", "FullPoolError", "ClosedPoolError",
})  # fmt: skip
BOTOCORE_UNSENT = frozenset({"EndpointConnectionError", "ConnectTimeoutError", "ProxyConnectionError"})
REQUESTS_MISTAKES = frozenset({
    "InvalidJSONError", "MissingSchema", "InvalidSchema", "InvalidURL", "InvalidHeader", "URLRequired",
    "UnrewindableBodyError", "StreamConsumedError",
})  # fmt: skip
"""The caller's mistakes; most are `ValueError`s. `InvalidJSONError` means that the response, which is paid for, is not
JSON."""
BOTOCORE_MISTAKES = frozenset({
    "ParamValidationError", "ValidationError", "NoCredentialsError", "PartialCredentialsError", "NoRegionError",
    "UnknownServiceError", "ProfileNotFound", "ConfigNotFound", "DataNotFoundError",
})  # fmt: skip
NESTED_MAX = 5
"""Levels to unwrap: requests wraps urllib3's error, which wraps its reason."""
_TOO_MANY = re.compile(r"too many (\d{3}) error responses")

Found = ExternalServiceError | Fault | None


def judge_httpx(error: Exception, names: set[str], service: str) -> Found:
    if "HTTPStatusError" in names:
        return _answered(error, peek(error, "response", "status_code"), service)
    if names & HTTPX_MISTAKES:
        return MISTAKEN
    if "TooManyRedirects" in names:
        return _unreadable(service, "too many redirects")
    if (held_back := judge_held_back(error, names, service)) is not None:
        return held_back
    if names & UNSENT:
        return _unsent(service)
    if "TimeoutException" in names:
        return _late(service)
    if "TransportError" in names:
        return _broke(service)
    return _unreadable(service) if "DecodingError" in names else None


def judge_held_back(error: BaseException, names: set[str], service: str) -> ExternalServiceError | None:
    """Classify an error of httpx for a request that its client could not even begin to send; None for any other.

    The service has not failed. If it had, one tenant's mistyped key would open the breaker for all.
    """
    if "PoolTimeout" in names:
        return _saturated(service)
    if "UnsupportedProtocol" in names:
        return _mistaken(service, "the URL does not begin with http:// or https://")
    # The same class stands for races of HTTP/2 connections, so the text decides. It contains the key: it is not quoted.
    if "LocalProtocolError" in names and str(error).startswith("Illegal header"):
        return _mistaken(
            service,
            "HTTP does not allow one of the headers (check the key for a line break, or whether it is empty)",
        )
    return None


def judge_aiohttp(error: Exception, names: set[str], service: str) -> Found:
    if "ClientResponseError" in names:
        return _answered(error, peek(error, "status"), service)
    if "NonHttpUrlClientError" in names and "RedirectClientError" not in names:
        return MISTAKEN
    if names & AIOHTTP_UNSENT:
        return _unsent(service)
    if "ServerTimeoutError" in names:
        return _late(service)
    if "ClientPayloadError" in names:
        return _unreadable(service, "the response broke off")
    return _broke(service) if "ClientConnectionError" in names else None


def judge_requests(error: Exception, names: set[str], service: str) -> Found:
    if "HTTPError" in names:
        return _answered(error, peek(error, "response", "status_code"), service)
    # They are checked in this order because these classes overlap: `ConnectTimeout` is both a `ConnectionError` and a
    # `Timeout`.
    if names & REQUESTS_MISTAKES:
        return MISTAKEN
    if names & {"ChunkedEncodingError", "ContentDecodingError"}:
        return _unreadable(service, "the response broke off")
    if "TooManyRedirects" in names:
        return _unreadable(service, "too many redirects")
    if names & {"ConnectTimeout", "ProxyError"}:
        return _unsent(service)
    inner = _innermost(error)
    found = judge_urllib3(inner, names_of(type(inner)).get("urllib3", set()), service)
    if found is None and "ConnectionError" in names:
        return _broke(service)
    return _late(service) if found is None and "Timeout" in names else found


def judge_urllib3(error: Exception, names: set[str], service: str) -> Found:
    if "MaxRetryError" in names and (inner := _innermost(error)) is not error:
        return judge_urllib3(inner, names_of(type(inner)).get("urllib3", set()), service) or _broke(service)
    if "ResponseError" in names and (said := _TOO_MANY.fullmatch(str(error))):
        return by_status(error, int(said[1]), service)
    if "LocationValueError" in names:
        return MISTAKEN
    if "EmptyPoolError" in names:
        return _saturated(service)
    if names & URLLIB3_UNSENT:
        return _unsent(service)
    if "TimeoutError" in names:
        return _late(service)
    if names & {"DecodeError", "IncompleteRead", "InvalidChunkLength", "ResponseNotChunked"}:
        return _unreadable(service, "the response broke off")
    return _broke(service) if names & {"ProtocolError", "SSLError"} else None


def judge_urllib(error: Exception, names: set[str], service: str) -> Found:
    """Classify urllib's errors. A `URLError` wraps a failure before the response: while connecting or sending."""
    if "HTTPError" in names:
        return _answered(error, peek(error, "code"), service)
    if "ContentTooShortError" in names:
        return _unreadable(service, "the response broke off")
    if "URLError" not in names:
        return None
    reason = peek(error, "reason")
    if isinstance(reason, str):  # an unknown scheme, no host
        return MISTAKEN
    if isinstance(reason, TimeoutError):
        return _late(service)
    # urllib raises the same error for connecting and for sending, and only the reason tells them apart. A refused
    # connection and an untrusted certificate happen before the request is sent; a reset or another TLS error may happen
    # afterwards. If it is unclear, the call counts as sent, and so as billed.
    lost = isinstance(reason, ConnectionError) and not isinstance(reason, ConnectionRefusedError)
    unsure = isinstance(reason, OSError) and type(reason).__name__.startswith("SSL")
    return _broke(service) if lost or (unsure and not _untrusted(reason)) else _unsent(service)


def judge_http_client(error: Exception, names: set[str], service: str) -> Found:
    # An exception that is a `ValueError` too is left to the classification by class, as the caller's mistake.
    if "HTTPException" not in names or isinstance(error, ValueError):
        return None
    if names & {"InvalidURL", "ImproperConnectionState", "NotConnected"}:
        return MISTAKEN
    if "RemoteDisconnected" in names:
        return _broke(service)
    return _unreadable(service, "the response broke off")


def judge_botocore(error: Exception, names: set[str], service: str) -> Found:
    if "ClientError" in names:
        return by_aws(error, service)
    if names & BOTOCORE_MISTAKES:
        return MISTAKEN
    if names & BOTOCORE_UNSENT:
        return _unsent(service)
    if "ReadTimeoutError" in names:
        return _late(service)
    if names & {"HTTPClientError", "ConnectionError", "ConnectionClosedError", "IncompleteReadError"}:
        return _broke(service)
    return None


def judge_elastic(error: Exception, names: set[str], service: str) -> Found:
    """Classify errors below HTTP of the clients of Elasticsearch and OpenSearch, which hide their causes."""
    if "ConnectionTimeout" in names:
        return _late(service)
    if "ConnectionError" in names:
        return _broke(service)
    if "BulkIndexError" in names:
        return _of_bulk(error)
    return None


def _of_bulk(error: Exception) -> Fault | None:
    """A bulk request whose documents were refused is the caller's mistake, unless the server refused one for a lack of
    room or failed."""
    items = [item for one in error.errors for item in one.values()]  # type: ignore[attr-defined]
    return None if any(item["status"] == 429 or item["status"] >= 500 for item in items) else MISTAKEN


def _innermost(error: Exception) -> Exception:
    """The error that requests or urllib3 wrapped, as its reason or first argument."""
    for _ in range(NESTED_MAX):
        inner = peek(error, "reason")
        if not isinstance(inner, Exception):
            inner = error.args[0] if error.args else None
        if not isinstance(inner, Exception):
            break
        error = inner
    return error


def _untrusted(reason: object) -> bool:
    return isinstance(reason, SSLCertVerificationError)


# ── the cases that all libraries distinguish ──────────────────────────────────────────────────────────────────────────


def _answered(error: Exception, status: object, service: str) -> ExternalServiceError:
    if type(status) is not int or status < 300:
        return _unreadable(service)
    return by_status(error, status, service)


def _unsent(service: str) -> ExternalServiceError:
    return make_error(service or HTTP.vendor, Kind.CONNECTION, "cannot connect", billable=False)


def _saturated(service: str) -> ExternalServiceError:
    reason = "all connections of the client's own pool are in use; raise its limit, or lower concurrency_max"
    error = ServiceSaturated(service or HTTP.vendor, reason)
    error.billable = False
    return error


def _mistaken(service: str, reason: str) -> ExternalServiceError:
    return make_error(service or HTTP.vendor, Kind.INVALID_REQUEST, reason, billable=False)


def _late(service: str) -> ExternalServiceError:
    return make_error(service or HTTP.vendor, Kind.TIMEOUT, "no response in time", billable=True)


def _broke(service: str) -> ExternalServiceError:
    return make_error(service or HTTP.vendor, Kind.CONNECTION, "the connection broke", billable=True)


def _unreadable(service: str, reason: str = "") -> ExternalServiceError:
    return make_error(service or HTTP.vendor, Kind.BAD_ANSWER, reason, billable=True)
