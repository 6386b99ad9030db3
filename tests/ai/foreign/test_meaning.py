"""The meaning of an error that another library wraps, that is part of a group, or that only has a status."""

from __future__ import annotations

import asyncio
import errno
import ftplib
import http.client
import io
import json
import smtplib
import socket
import sqlite3
import ssl
import urllib.error
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from email.message import Message
from http import HTTPStatus
from itertools import pairwise
from typing import Any

import httpx2
import msgspec
import openai
import pytest
import requests
import urllib3.exceptions
from fastapi import HTTPException
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError

from koo.ai.foreign.meaning import LOOKED_AT_MAX, meaning_of
from koo.errors import (
    AuthenticationFailed,
    BudgetExceeded,
    ExternalServiceError,
    InvalidRequest,
    Kind,
    RateLimited,
    ServiceFailed,
)
from koo.policies.verdict import FAILURE, NEUTRAL, THROTTLED, Fault, Verdict


class AgentError(Exception):
    """A library's own error class."""


class City(BaseModel):
    name: str


class ParserError(ValueError):
    """A library's own error, of a class that means the caller's mistake."""


def sdk_error(status: int, code: str | None = None, **headers: str) -> openai.APIStatusError:
    kinds = {400: openai.BadRequestError, 401: openai.AuthenticationError, 429: openai.RateLimitError}
    answered = httpx2.Response(
        status,
        request=httpx2.Request("POST", "http://h/"),
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )
    made = kinds.get(status, openai.InternalServerError)
    return made("no", response=answered, body={"code": code, "type": "x", "message": "no"})


def throttled(wait_s: int = 300) -> Exception:
    return sdk_error(429, "rate_limit_exceeded", retry_after=str(wait_s))


def raised(make: Callable[[], object]) -> Exception:
    try:
        make()
    except Exception as error:
        return error
    raise AssertionError


def from_cause(outer: Exception, cause: BaseException | None) -> Exception:
    def make() -> None:
        raise outer from cause

    return raised(make)


def while_handling(context: Exception, outer: Exception) -> Exception:
    """`except …: raise outer`, without a `from`."""

    def make() -> None:
        try:
            raise context
        except Exception:
            raise outer  # noqa: B904 - that is the case

    return raised(make)


def chain(errors: list[Exception]) -> Exception:
    """The first is raised from the second, and so on."""
    for outer, cause in pairwise(errors):
        outer.__cause__ = cause
    return errors[0]


def carrying(name: str = "VendorError", module: str = "vendor", **attributes: Any) -> Exception:
    """An exception of some library, with these attributes."""
    error: Exception = type(name, (Exception,), {"__module__": module})("no")
    vars(error).update(attributes)
    return error


class Answer:
    """A response object like those of most HTTP libraries."""

    def __init__(self, status: int = 429, **headers: str) -> None:
        self.status_code = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def judged(error: Exception) -> tuple[Kind, Verdict, float | None]:
    fault = meaning_of(error, "svc")
    return fault.kind, fault.verdict, fault.retry_after_s


def becomes(error: Exception) -> Exception | None:
    found = meaning_of(error, "svc").error
    assert not isinstance(found, ExternalServiceError) or found.service == "svc"
    return found


# ── inside other errors ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("inner", "kind", "verdict", "of_koo"),
    [
        (throttled(), Kind.THROTTLED, THROTTLED, RateLimited),
        (sdk_error(400), Kind.INVALID_REQUEST, NEUTRAL, InvalidRequest),
        (sdk_error(401, "invalid_api_key"), Kind.AUTH, NEUTRAL, AuthenticationFailed),
        (sdk_error(500), Kind.SERVER_ERROR, FAILURE, ServiceFailed),
    ],
    ids=["429", "400", "401", "500"],
)
@pytest.mark.parametrize("wrap", [from_cause, lambda outer, inner: while_handling(inner, outer)])
def test_an_sdks_error_keeps_its_meaning_inside_another(
    wrap: Any, inner: Exception, kind: Kind, verdict: Verdict, of_koo: type[Exception]
) -> None:
    fault = meaning_of(wrap(AgentError("no answer"), inner), "svc")
    assert (fault.kind, fault.verdict) == (kind, verdict)
    assert type(fault.error) is of_koo
    assert (fault.block is not None) is (kind is Kind.AUTH)
    assert fault.retry_after_s == (300 if kind is Kind.THROTTLED else None)
    assert fault.billed is False, "the service refused it"


def test_a_meaning_is_found_in_a_chain_of_causes_up_to_a_maximum_depth() -> None:
    deep: list[Exception] = [AgentError(str(number)) for number in range(LOOKED_AT_MAX - 1)]
    assert judged(chain([*deep, throttled()]))[0] is Kind.THROTTLED
    assert judged(chain([*deep, AgentError(), throttled()]))[0] is Kind.UNKNOWN


def test_a_circular_chain_of_causes_is_read_in_finite_time() -> None:
    one, two = AgentError("one"), AgentError("two")
    one.__cause__, two.__cause__ = two, one
    assert judged(one) == (Kind.UNKNOWN, FAILURE, None)
    one.__cause__ = one
    assert judged(one) == (Kind.UNKNOWN, FAILURE, None)


def test_a_context_suppressed_with_from_none_does_not_count() -> None:
    def make() -> None:
        try:
            raise throttled()
        except Exception:
            raise AgentError("a thing of its own") from None

    assert judged(raised(make)) == (Kind.UNKNOWN, FAILURE, None)


def test_a_context_counts_only_if_it_is_an_error_of_the_service() -> None:
    assert judged(while_handling(KeyError("not in the cache"), AgentError())) == (Kind.UNKNOWN, FAILURE, None)
    assert judged(while_handling(throttled(), KeyError("a slip in the handler"))) == (
        Kind.INVALID_REQUEST, NEUTRAL, None,
    )  # fmt: skip


def test_an_error_in_an_argument_or_attribute_counts_like_a_cause() -> None:
    assert judged(from_cause(AgentError(throttled()), None))[0] is Kind.THROTTLED
    attempt: Future[None] = Future()
    attempt.set_exception(throttled())
    assert judged(carrying("RetryError", "tenacity", last_attempt=attempt))[0] is Kind.THROTTLED
    assert judged(carrying("RetryError", "tenacity", last_attempt=Future()))[0] is Kind.UNKNOWN


def test_the_class_of_a_cause_decides_if_nothing_else_does() -> None:
    assert judged(from_cause(AgentError(), ConnectionResetError()))[:2] == (Kind.CONNECTION, FAILURE)
    assert judged(from_cause(AgentError(), json.JSONDecodeError("x", "", 0)))[:2] == (
        Kind.INVALID_REQUEST,
        NEUTRAL,
    )
    assert judged(from_cause(AgentError(), asyncio.CancelledError())) == (Kind.UNKNOWN, FAILURE, None)
    assert becomes(from_cause(AgentError(), ConnectionResetError())) is None


def test_the_callers_own_errors_are_raised_unchanged_and_keep_the_requested_wait() -> None:
    error = from_cause(ParserError("no answer to parse"), throttled())
    assert judged(error) == (Kind.THROTTLED, THROTTLED, 300) and becomes(error) is None
    error = from_cause(ParserError("bad"), KeyError("name"))
    assert judged(error) == (Kind.INVALID_REQUEST, NEUTRAL, None) and becomes(error) is None


def test_koos_own_errors_inside_another_say_nothing_about_this_service() -> None:
    error = from_cause(AgentError(), BudgetExceeded("claude", "spent"))
    assert judged(error)[1] is NEUTRAL and becomes(error) is None


def test_an_unreadable_answer_is_billed() -> None:
    for read in (
        lambda: json.loads("{"),
        lambda: City.model_validate_json('{"name": '),
        lambda: list[str]()[0],
        lambda: dict[str, str]()["name"],
        lambda: len(None),  # type: ignore[arg-type]
        lambda: None.text,  # type: ignore[attr-defined]
        lambda: from_json(b"<html>"),
    ):
        fault = meaning_of(raised(read), "svc")
        assert (fault.verdict, fault.billed, fault.error) == (NEUTRAL, True, None)


def from_json(body: bytes) -> object:
    answer = requests.Response()
    answer._content = body
    return answer.json()


# ── earlier attempts that were billed ─────────────────────────────────────────────────────────────────────────────────


def test_a_refusal_after_several_tries_may_follow_a_billed_answer() -> None:
    """instructor repeats a query whose answer does not fit its schema; tenacity repeats any failure."""
    error = from_cause(carrying("InstructorRetryException", "instructor.core", n_attempts=2), throttled())
    fault = meaning_of(error, "svc")
    assert (fault.kind, fault.billed, fault.in_part) == (Kind.THROTTLED, True, True)
    first = from_cause(carrying("InstructorRetryException", "instructor.core", n_attempts=1), throttled())
    assert not meaning_of(first, "svc").billed


def test_a_refusal_that_follows_a_broken_connection_may_be_billed() -> None:
    broken = from_cause(openai.APIConnectionError(request=httpx2.Request("POST", "http://h/")), OSError())
    for error in (
        from_cause(carrying("InternalServerError", "litellm.exceptions", status_code=500), broken),
        while_handling(broken, throttled()),
        while_handling(httpx2.ReadTimeout("late"), carrying(status_code=429)),
    ):
        fault = meaning_of(error, "svc")
        assert fault.billed
        assert isinstance(fault.error, ExternalServiceError)
    free = while_handling(httpx2.ConnectError("refused"), throttled())
    assert not meaning_of(free, "svc").billed
    assert not meaning_of(while_handling(BudgetExceeded("other", "spent"), throttled()), "svc").billed


# ── answers that an agent library cannot use ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("instructor.core.exceptions", "IncompleteOutputException"),
        ("pydantic_ai.exceptions", "IncompleteToolCall"),
    ],
)
def test_the_error_for_an_answer_cut_at_its_token_limit_names_the_limit_and_is_billed(
    module: str, name: str
) -> None:
    fault = meaning_of(carrying(name, module), "svc")
    assert isinstance(fault.error, InvalidRequest) and "raise max_tokens" in str(fault.error)
    assert fault.verdict is NEUTRAL and fault.billed


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("agents.exceptions", "ModelBehaviorError"),
        ("agents.exceptions", "MaxTurnsExceeded"),
        ("dspy.utils.exceptions", "AdapterParseError"),
        ("pydantic_ai.exceptions", "UsageLimitExceeded"),
    ],
)
def test_an_unparsable_answer_is_not_an_outage(module: str, name: str) -> None:
    fault = meaning_of(carrying(name, module), "svc")
    assert (fault.verdict, fault.billed, fault.error) == (NEUTRAL, True, None)
    assert judged(carrying(name, "elsewhere")) == (Kind.UNKNOWN, FAILURE, None)


def test_a_models_refusal_of_content_is_billed_and_is_the_callers_mistake() -> None:
    fault = meaning_of(carrying("ContentFilterError", "pydantic_ai.exceptions"), "svc")
    assert fault.kind is Kind.CONTENT_POLICY and fault.billed


@pytest.mark.parametrize(
    "read",
    [
        lambda: json.loads('{"name": "Par'),
        lambda: json.loads('{"name": "Paris", '),
        lambda: City.model_validate_json('{"name": "Par'),
        lambda: json.loads(""),
        lambda: msgspec.json.decode(b'{"name": "Par'),
    ],
    ids=["json, in a string", "json", "pydantic", "empty", "msgspec"],
)
def test_truncated_json_is_raised_unchanged_with_a_note_about_the_token_limit(read: Any) -> None:
    error = raised(read)
    wrapped = from_cause(AgentError(), error)
    for one in (error, wrapped, wrapped):
        assert meaning_of(one, "svc").error is None
        assert len(one.__notes__) == 1 and "raise max_tokens" in one.__notes__[0]


@pytest.mark.parametrize("text", ["no JSON", '{"name": 5}', '{"name" "x"}'])
def test_other_unreadable_answers_get_no_note(text: str) -> None:
    assert not hasattr(noted(lambda: City.model_validate_json(text)), "__notes__")
    assert text == '{"name": 5}' or not hasattr(noted(lambda: json.loads(text)), "__notes__")


def noted(read: Callable[[], object]) -> Exception:
    error = raised(read)
    meaning_of(error, "svc")
    return error


# ── groups ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_group_whose_errors_have_one_kind_has_that_kind() -> None:
    group = ExceptionGroup("both", [throttled(5), from_cause(AgentError(), throttled(300)), throttled(7)])
    assert judged(group) == (Kind.THROTTLED, THROTTLED, 300)
    assert isinstance(becomes(group), RateLimited)
    assert judged(ExceptionGroup("outer", [group])) == (Kind.THROTTLED, THROTTLED, 300)
    assert judged(from_cause(AgentError(), group)) == (Kind.THROTTLED, THROTTLED, 300)
    assert judged(ExceptionGroup("both", [ValueError(), KeyError()]))[:2] == (Kind.INVALID_REQUEST, NEUTRAL)
    assert judged(ExceptionGroup("both", [OSError(), OSError()]))[:2] == (Kind.CONNECTION, FAILURE)
    assert judged(ExceptionGroup("both", [AgentError()])) == (Kind.UNKNOWN, FAILURE, None)


@pytest.mark.parametrize(
    ("errors", "kind"),
    [
        ([ValueError(), throttled(), sdk_error(401, "invalid_api_key"), sdk_error(500)], Kind.AUTH),
        ([sdk_error(500), ValueError(), throttled()], Kind.THROTTLED),
        ([ValueError(), sdk_error(500)], Kind.SERVER_ERROR),
        ([ValueError(), AgentError()], Kind.UNKNOWN),
    ],
)
def test_a_mixed_group_has_the_kind_of_its_worst_error_and_is_raised_unchanged(
    errors: list[Exception], kind: Kind
) -> None:
    fault = meaning_of(ExceptionGroup("mixed", errors), "svc")
    assert fault.kind is kind and fault.error is None


def test_other_parts_of_a_failed_group_may_have_been_carried_out_and_billed() -> None:
    fault = meaning_of(ExceptionGroup("both", [throttled(), throttled()]), "svc")
    assert fault.billed and fault.in_part and fault.repeatable
    assert not meaning_of(ExceptionGroup("both", [throttled(), ValueError()]), "svc").repeatable


def test_a_limited_number_of_a_groups_errors_is_read_and_a_repeated_error_counts_once() -> None:
    assert judged(ExceptionGroup("many", [throttled() for _ in range(1000)]))[0] is Kind.THROTTLED
    assert isinstance(becomes(ExceptionGroup("many", [throttled() for _ in range(1000)])), RateLimited)
    same = throttled()
    assert isinstance(becomes(ExceptionGroup("same", [same, same])), RateLimited)


# ── a status in any attribute ─────────────────────────────────────────────────────────────────────────────────────────


class OfDictionary(dict[str, str]):
    """googleapiclient's response: a dictionary of headers with the status as an attribute."""

    status = 429


CARRIED: list[tuple[str, dict[str, Any]]] = [
    ("status_code, headers", {"status_code": 429, "headers": {"Retry-After": "300"}}),
    ("status, headers", {"status": 429, "headers": {"retry-after": "300"}}),
    ("code, hdrs", {"code": 429, "hdrs": {"Retry-After": "300"}}),
    ("HTTPStatus", {"code": HTTPStatus.TOO_MANY_REQUESTS, "headers": {"retry-after": "300"}}),
    ("http_status", {"http_status": 429, "headers": {"retry-after": "300"}, "code": "rate_limit"}),
    ("response.status_code", {"response": Answer(retry_after="300")}),
    ("raw_response", {"raw_response": Answer(retry_after="300")}),
    ("a clearer one wins", {"status_code": 429, "code": 500, "headers": {"retry-after": "300"}}),
    ("a vendor's own code", {"status": 429, "code": 20003, "headers": {"retry-after": "300"}}),
    ("resp", {"resp": OfDictionary({"retry-after": "300"})}),
    ("retry_after", {"status_code": 429, "retry_after": 300}),
    ("retry_after, a span", {"status_code": 429, "retry_after": timedelta(minutes=5)}),
]


@pytest.mark.parametrize("attributes", [row[1] for row in CARRIED], ids=[row[0] for row in CARRIED])
def test_a_status_and_its_wait_are_read_from_the_attributes_that_libraries_use(
    attributes: dict[str, Any],
) -> None:
    error = carrying(**attributes)
    assert judged(error) == (Kind.THROTTLED, THROTTLED, 300)
    assert isinstance(becomes(error), RateLimited) and meaning_of(error).billed is False


@pytest.mark.parametrize(
    ("status", "kind", "verdict"),
    [
        (400, Kind.INVALID_REQUEST, NEUTRAL),
        (401, Kind.AUTH, NEUTRAL),
        (402, Kind.INVALID_REQUEST, NEUTRAL),
        (403, Kind.INVALID_REQUEST, NEUTRAL),
        (404, Kind.NOT_FOUND, NEUTRAL),
        (409, Kind.CONFLICT, NEUTRAL),
        (422, Kind.INVALID_REQUEST, NEUTRAL),
        (424, Kind.SERVER_ERROR, FAILURE),
        (500, Kind.SERVER_ERROR, FAILURE),
        (503, Kind.OVERLOADED, FAILURE),
        (529, Kind.OVERLOADED, FAILURE),
    ],
)
def test_a_bare_status_has_its_kind_and_a_403_for_one_document_blocks_no_key(
    status: int, kind: Kind, verdict: Verdict
) -> None:
    fault = meaning_of(carrying(status_code=status), "svc")
    assert (fault.kind, fault.verdict) == (kind, verdict)
    assert (fault.block is not None) is (status == 401)


def test_a_403_with_a_retry_time_is_a_pause() -> None:
    assert judged(carrying(status=403, headers={"retry-after": "300"})) == (Kind.THROTTLED, THROTTLED, 300)


def test_an_error_code_next_to_the_status_distinguishes_a_quota_from_a_rate_limit() -> None:
    assert judged(carrying(status=429, code="insufficient_quota"))[0] is Kind.QUOTA
    assert judged(carrying(status=429, provider_code="rate_limit_error"))[0] is Kind.THROTTLED
    denied = meaning_of(carrying(status=403, code="access_denied"), "svc")
    assert denied.verdict is NEUTRAL and denied.block is None


class Other(int):
    """Like some library's enumeration of statuses."""


@pytest.mark.parametrize(
    "error",
    [
        carrying(code=1062),
        carrying(code=1),
        carrying(code="42P01"),
        carrying(code="429"),
        carrying(status=True),
        carrying(status_code=200),
        carrying(status_code=600),
        carrying(status_code=429.0),
        carrying(status=Other(429)),
        carrying(response="429"),
        carrying("OperationFailure", "pymongo.errors", code=429),
    ],
    ids=lambda error: f"{type(error).__name__} {vars(error)!r}",
)
def test_a_number_that_is_not_a_status_is_ignored(error: Exception) -> None:
    assert judged(error) == (Kind.UNKNOWN, FAILURE, None) and becomes(error) is None


def test_an_underlying_sdk_error_takes_precedence_over_a_status() -> None:
    error = from_cause(carrying("ModelHTTPError", status_code=429), sdk_error(429, "insufficient_quota"))
    assert judged(error)[0] is Kind.QUOTA


def test_an_applications_response_to_its_own_client_does_not_count_against_the_service() -> None:
    assert judged(HTTPException(401)) == (Kind.INVALID_REQUEST, NEUTRAL, None)
    assert meaning_of(HTTPException(401)).block is None and becomes(HTTPException(404)) is None
    assert judged(HTTPException(503)) == (Kind.UNKNOWN, FAILURE, None)
    error = while_handling(throttled(), HTTPException(503))
    assert judged(error) == (Kind.THROTTLED, THROTTLED, 300) and becomes(error) is None


@pytest.mark.parametrize("module", ["botocore.exceptions", "that_imitates_it"])
def test_botos_status_400_may_be_throttling_and_its_403_may_concern_one_object(module: str) -> None:
    def client_error(status: int, code: str, **headers: str) -> Exception:
        metadata = {"HTTPStatusCode": status, "HTTPHeaders": headers}
        answer = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": metadata}
        return carrying("ClientError", module, response=answer)

    assert judged(client_error(429, "TooManyRequestsException", **{"retry-after": "300"}))[2] == 300
    assert judged(client_error(400, "ThrottlingException"))[0] is Kind.THROTTLED
    assert judged(client_error(400, "ValidationException"))[0] is Kind.INVALID_REQUEST
    assert judged(client_error(403, "InvalidSignatureException"))[0] is Kind.AUTH
    assert judged(client_error(404, "NoSuchKey"))[0] is Kind.NOT_FOUND
    assert judged(client_error(500, "InternalError"))[0] is Kind.SERVER_ERROR
    denied = meaning_of(client_error(403, "AccessDenied", **{"x-amzn-errortype": "AccessDenied"}), "svc")
    assert denied.verdict is NEUTRAL and denied.block is None
    assert meaning_of(carrying("ClientError", "botocore.exceptions", response=None)).billed


@pytest.mark.parametrize("module", ["grpc.aio._call", "that_imitates_it"])
def test_a_grpc_code_has_the_kind_of_the_equivalent_http_status(module: str) -> None:
    def rpc_error(name: str) -> Exception:
        code = type("StatusCode", (), {"name": name})
        error: Exception = type("AioRpcError", (Exception,), {"__module__": module, "code": code})()
        return error

    assert judged(rpc_error("RESOURCE_EXHAUSTED"))[:2] == (Kind.THROTTLED, THROTTLED)
    assert judged(rpc_error("UNAUTHENTICATED"))[0] is Kind.AUTH
    assert judged(rpc_error("INVALID_ARGUMENT"))[1] is NEUTRAL
    assert meaning_of(rpc_error("UNAVAILABLE")).billed and judged(rpc_error("UNAVAILABLE"))[1] is FAILURE
    assert judged(rpc_error("SOMETHING_NEW")) == (Kind.UNKNOWN, FAILURE, None)


# ── HTTP libraries that raise `OSError`s ──────────────────────────────────────────────────────────────────────────────


def of_urllib(status: int) -> Exception:
    headers = Message()
    headers["Retry-After"] = "300"
    return urllib.error.HTTPError("http://h/", status, "no", headers, io.BytesIO())


def of_requests(status: int) -> Exception:
    answer = requests.Response()
    answer.status_code = status
    answer.headers["Retry-After"] = "300"
    return raised(answer.raise_for_status)


@pytest.mark.parametrize("make", [of_urllib, of_requests])
def test_an_http_status_takes_precedence_over_the_class_of_a_connection_error(make: Any) -> None:
    assert judged(make(429)) == (Kind.THROTTLED, THROTTLED, 300)
    assert judged(make(404))[:2] == (Kind.NOT_FOUND, NEUTRAL)
    assert judged(make(401))[0] is Kind.AUTH
    assert judged(make(500))[:2] == (Kind.SERVER_ERROR, FAILURE)
    assert isinstance(becomes(make(404)), InvalidRequest)


def retried(reason: Exception) -> Exception:
    return requests.exceptions.ConnectionError(
        urllib3.exceptions.MaxRetryError(None, "/", reason)  # type: ignore[arg-type]
    )


POOL: Any = None
TRANSPORT: list[tuple[Exception, Kind, bool]] = [
    (retried(urllib3.exceptions.NewConnectionError(POOL, "refused")), Kind.CONNECTION, False),
    (retried(urllib3.exceptions.ProtocolError("aborted", OSError())), Kind.CONNECTION, True),
    (requests.ConnectionError(urllib3.exceptions.ReadTimeoutError(POOL, "/", "late")), Kind.TIMEOUT, True),
    (requests.ConnectTimeout(), Kind.CONNECTION, False),
    (requests.ReadTimeout(), Kind.TIMEOUT, True),
    (requests.exceptions.ChunkedEncodingError(), Kind.BAD_ANSWER, True),
    (requests.ConnectionError(), Kind.CONNECTION, True),
    (requests.TooManyRedirects(), Kind.BAD_ANSWER, True),
    (requests.exceptions.InvalidURL("x"), Kind.INVALID_REQUEST, True),
    (urllib3.exceptions.ReadTimeoutError(POOL, "/", "late"), Kind.TIMEOUT, True),
    (urllib3.exceptions.LocationParseError("x"), Kind.INVALID_REQUEST, True),
    (urllib.error.URLError(ConnectionRefusedError()), Kind.CONNECTION, False),
    (urllib.error.URLError(socket.gaierror()), Kind.CONNECTION, False),
    (urllib.error.URLError(ConnectionResetError()), Kind.CONNECTION, True),
    (urllib.error.URLError(TimeoutError()), Kind.TIMEOUT, True),
    (urllib.error.URLError(ssl.SSLCertVerificationError("untrusted")), Kind.CONNECTION, False),
    (urllib.error.URLError(ssl.SSLError("record")), Kind.CONNECTION, True),
    (urllib.error.URLError("unknown url type: htp"), Kind.INVALID_REQUEST, True),
    (urllib.error.ContentTooShortError("short", ("", Message())), Kind.BAD_ANSWER, True),
    (http.client.RemoteDisconnected(""), Kind.CONNECTION, True),
    (http.client.IncompleteRead(b""), Kind.BAD_ANSWER, True),
    (http.client.InvalidURL(), Kind.INVALID_REQUEST, True),
    (carrying("EndpointConnectionError", "botocore.exceptions"), Kind.CONNECTION, False),
    (carrying("ConnectionClosedError", "botocore.exceptions"), Kind.CONNECTION, True),
    (carrying("NoCredentialsError", "botocore.exceptions"), Kind.INVALID_REQUEST, True),
]


@pytest.mark.parametrize(("error", "kind", "billed"), TRANSPORT, ids=[repr(row[0]) for row in TRANSPORT])
def test_a_request_that_was_not_sent_is_distinguished_from_one_that_may_be_billed(
    error: Exception, kind: Kind, billed: bool
) -> None:
    fault = meaning_of(error, "svc")
    assert (fault.kind, fault.billed) == (kind, billed)
    assert (fault.error is None) is (kind is Kind.INVALID_REQUEST)


def test_the_status_after_which_urllib3_stopped_retrying_is_read_from_its_reason() -> None:
    reason = urllib3.exceptions.ResponseError("too many 429 error responses")
    assert judged(requests.exceptions.RetryError(urllib3.exceptions.MaxRetryError(POOL, "/", reason)))[0] is (
        Kind.THROTTLED
    )


# ── this machine, and databases ───────────────────────────────────────────────────────────────────────────────────────


def test_errors_about_local_files_and_permissions_are_the_callers_mistake(tmp_path: Any) -> None:
    (tmp_path / "file").touch()
    for touch in (
        (tmp_path / "away").read_text,
        tmp_path.read_text,
        (tmp_path / "file" / "below").read_text,
        tmp_path.mkdir,
    ):
        error = raised(touch)
        fault = meaning_of(error, "svc")
        assert isinstance(error, OSError) and (fault.verdict, fault.repeatable) == (NEUTRAL, False)
        assert fault.error is None and fault.billed
    assert judged(PermissionError("not yours"))[1] is NEUTRAL


def test_an_error_from_a_socket_is_a_failure_even_if_files_raise_the_same_class(tmp_path: Any) -> None:
    def connect() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "nobody.sock"))

    error = raised(connect)
    assert isinstance(error, FileNotFoundError) and judged(error)[:2] == (Kind.CONNECTION, FAILURE)
    assert judged(PermissionError(errno.EACCES, "Permission denied"))[:2] == (Kind.CONNECTION, FAILURE)
    assert judged(ConnectionRefusedError())[:2] == (Kind.CONNECTION, FAILURE)


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (smtplib.SMTPRecipientsRefused({"ada@host": (550, b"no such user")}), NEUTRAL),
        (smtplib.SMTPRecipientsRefused({"ada@host": (450, b"greylisted")}), NEUTRAL),
        (smtplib.SMTPSenderRefused(552, b"too large", "bob@host"), NEUTRAL),
        (smtplib.SMTPDataError(554, b"it looks like spam"), NEUTRAL),
        (smtplib.SMTPAuthenticationError(535, b"wrong password"), NEUTRAL),
        (smtplib.SMTPDataError(451, b"local error"), FAILURE),
        (smtplib.SMTPConnectError(554, b"no service"), FAILURE),
        (smtplib.SMTPServerDisconnected("closed"), FAILURE),
        (carrying("SMTPResponseException", "aiosmtplib.errors", code=550), NEUTRAL),
        (carrying("SMTPResponseException", "aiosmtplib.errors", code=421), FAILURE),
        (ftplib.error_perm("550 no such file"), NEUTRAL),
        (ftplib.error_temp("421 too many users"), FAILURE),
    ],
    ids=str,
)
def test_a_mail_servers_permanent_reply_is_about_the_message(error: Exception, verdict: Verdict) -> None:
    fault = meaning_of(error, "svc")
    assert fault.verdict is verdict and fault.error is None


def test_a_duplicate_key_is_the_callers_mistake_with_every_database_library() -> None:
    duplicate = sqlite3.IntegrityError("UNIQUE")
    duplicate.sqlite_errorcode = sqlite3.SQLITE_CONSTRAINT_UNIQUE
    of_sqlalchemy = IntegrityError("INSERT", {}, duplicate)
    of_driver = carrying("UniqueViolationError", "asyncpg.exceptions", sqlstate="23505")
    for error in (duplicate, of_sqlalchemy, of_driver, from_cause(AgentError(), of_sqlalchemy)):
        fault = meaning_of(error, "svc")
        assert (fault.kind, fault.verdict, fault.error) == (Kind.INTEGRITY, NEUTRAL, None)
    assert judged(carrying("OperationalError", "mysql.connector", sqlstate="HY000"))[1] is FAILURE


# ── errors whose own code misbehaves ──────────────────────────────────────────────────────────────────────────────────


class Odd(Exception):
    """An exception whose attributes all raise."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


class OddClass(Exception):
    @property
    def __class__(self) -> Any:
        raise RuntimeError

    @__class__.setter
    def __class__(self, value: Any) -> None: ...


class OddHeaders:
    def items(self) -> Any:
        yield "retry-after", 5
        raise RuntimeError


@pytest.mark.parametrize("odd", [Odd, OddClass])
def test_an_odd_error_is_unknown_but_the_error_that_wraps_it_is_still_read(odd: type[Exception]) -> None:
    assert meaning_of(odd()) == Fault(verdict=FAILURE)
    outer = carrying(status_code=429, headers={"retry-after": "300"})
    assert judged(from_cause(outer, odd())) == (Kind.THROTTLED, THROTTLED, 300)


@pytest.mark.parametrize(
    "value",
    [
        object(),
        OddHeaders(),
        b"",
        [("retry-after", "5")],
        {1: 2},
        {"retry-after": None},
        Odd,
        lambda: 1,
        Future(),
    ],
)
@pytest.mark.parametrize(
    "name", ["headers", "response", "resp", "retry_after", "last_attempt", "status", "sqlstate"]
)
def test_a_status_is_read_whatever_the_other_attributes_contain(name: str, value: Any) -> None:
    assert judged(carrying(status_code=429, **{name: value}))[:2] == (Kind.THROTTLED, THROTTLED)


@given(
    links=st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 9), st.sampled_from(["cause", "context", "argument"])),
        max_size=30,
    ),
    last=st.sampled_from([throttled, AgentError, Odd, ValueError, lambda: sdk_error(500)]),
)
def test_any_graph_of_linked_errors_has_a_meaning(
    links: list[tuple[int, int, str]], last: Callable[[], Exception]
) -> None:
    errors: list[Exception] = [AgentError(str(number)) for number in range(10)]
    errors[9] = last()
    errors[5] = ExceptionGroup("some", errors[6:9])
    for one, other, link in links:
        if link == "cause":
            Exception.__setattr__(errors[one], "__cause__", errors[other])
        elif link == "context":
            Exception.__setattr__(errors[one], "__context__", errors[other])
        elif one != 5:
            Exception.__setattr__(errors[one], "args", (errors[other],))
    for error in errors:
        fault = meaning_of(error, "svc")
        assert isinstance(fault, Fault) and meaning_of(error, "svc").kind is fault.kind
