"""Errors over HTTP: one table from an error's kind to a status, and one response shape (RFC 9457).

The status tells the client what to do. 429: slow down, a limit or budget is reached. 503: try later, the request was
fine. 504: a deadline passed. 502: the provider responded, but badly. 404 and 422: change the request. A provider that
rejects *koo's* key results in 503, never 401: a client that receives 401 looks for a fault in its own credentials.

A problem never repeats what the client sent: a prompt in an error message ends up in a log.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from koo.errors import (
    AllServicesFailed,
    DatabaseError,
    ExternalServiceError,
    IdempotencyKeyInUse,
    Kind,
    KooError,
)
from koo.monitoring.guards import last_error_view
from koo.monitoring.shapes import DatabaseServer, LastError
from koo.web import bodies
from koo.web.request_ids import request_id_of

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:koo:problem:"
PROBLEMS = "koo.problems"
"""The key of a list in a request's scope. Each problem sent in a response is added to it, so that the log line has its
kind and cause.
"""

STATUS: dict[Kind, int] = {
    Kind.CIRCUIT_OPEN: 503,
    Kind.RATE_LIMITED: 429,
    Kind.BUDGET_EXCEEDED: 429,
    Kind.SATURATED: 503,
    Kind.COOLING_DOWN: 429,
    Kind.KEY_REFUSED: 503,
    Kind.DRAINING: 503,
    Kind.STORE_UNAVAILABLE: 503,
    Kind.OUT_OF_RESOURCES: 503,
    Kind.CONNECTION: 503,
    Kind.TIMEOUT: 504,
    Kind.OVERLOADED: 503,
    Kind.SERVER_ERROR: 502,
    Kind.BAD_ANSWER: 502,
    Kind.TRUNCATED_STREAM: 502,
    Kind.STALLED: 504,
    Kind.THROTTLED: 429,
    Kind.QUOTA: 429,
    Kind.BILLING: 429,
    Kind.AUTH: 503,
    Kind.PERMISSION: 503,
    Kind.CONFLICT: 502,
    Kind.UNKNOWN: 502,
    Kind.INVALID_REQUEST: 422,
    Kind.CONTEXT_LENGTH: 422,
    Kind.CONTENT_POLICY: 422,
    Kind.NOT_FOUND: 404,
    Kind.TOO_LARGE: 422,
    Kind.NOT_CONFIGURED: 503,
    Kind.UNKNOWN_SERVICE: 404,
    Kind.PRICE_UNKNOWN: 422,
    Kind.DEADLINE: 504,
    Kind.ALL_FAILED: 503,
    Kind.CONTENTION: 503,
    Kind.INTEGRITY: 500,
    Kind.READ_ONLY: 503,
    # The status is not 503: clients retry a 503 automatically, and would repeat a transaction that may have been
    # committed.
    Kind.OUTCOME_UNKNOWN: 500,
    Kind.CANCELLED: 503,
}
"""The status of each kind of error. A test checks that none is missing."""

HTTP_KINDS: dict[int, str] = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "too_large",
    422: "invalid_request",
    431: "too_large",
    500: "internal_error",
    503: "draining",
}
"""The kinds of errors that belong to HTTP itself."""

WORDS: dict[str, str] = {
    "json_invalid": "is not JSON",
    "missing": "is missing",
    "extra_forbidden": "is unknown",
    "model_attributes_type": "must be a JSON object",
    "dict_type": "must be a JSON object",
}
"""koo's own messages in place of pydantic's where those would puzzle a reader who does not know pydantic."""
PATH_MAX = 200
ERRORS_MAX = 20
"""A body may have half a million invalid fields. A few are enough for a reader, and listing all takes a minute."""
_JSON_TYPE = re.compile(r"application/([\w.!#$&^+-]+\+)?json\s*(;|$)", re.IGNORECASE)
_PLACES = frozenset({"body", "query", "path", "header"})


def _fields_of(body: type[bodies.Body]) -> Iterator[str]:
    yield from body.model_fields
    for more in body.__subclasses__():
        yield from _fields_of(more)


_FIELDS = frozenset({*_fields_of(bodies.Body), *bodies.SPEND_NAMES, *bodies.HISTORY_NAMES})
"""koo's own names, in every body and query string that is read."""


class FieldProblem(BaseModel):
    """One invalid part of a request, and where it is. What was sent is not repeated."""

    loc: list[str | int] = Field(description="path to the field, starting with body, path or query")
    msg: str
    type: str


class ServiceProblem(BaseModel):
    """Why one of several services failed."""

    service: str
    kind: str
    detail: str
    retry_after_s: float | None = None
    last_error: LastError | None = None


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {
                "type": f"{TYPE_PREFIX}circuit_open",
                "title": "Service Unavailable",
                "status": 503,
                "detail": "claude: the circuit is open after 5 failures in a row, the last: status 500, api_error; "
                "try again in 42 s",
                "instance": "/api/v1/ai/query",
                "kind": "circuit_open",
                "service": "claude",
                "retry_after_s": 41.7,
                "attempts": 0,
                "last_error": {
                    "kind": "server_error",
                    "status": 500,
                    "sentence": "it failed (status 500, api_error)",
                    "at": "2026-11-28T14:06:03.120000+00:00",
                },
                "request_id": "0b2f6c1e9a3d4f50",
            }
        },
    )

    type: str = Field(description="`urn:koo:problem:` and the kind")
    title: str = Field(description="the status in words")
    status: int
    detail: str = Field(description="one sentence for a person, without prompts, keys and passwords")
    instance: str = Field(description="the requested path")
    kind: str = Field(description="the kind of error, a stable identifier")
    service: str | None = Field(default=None, description="the service or part that it concerns")
    retry_after_s: float | None = Field(
        default=None, description="seconds to wait before trying again; also as Retry-After, rounded up"
    )
    attempts: int | None = Field(default=None, description="calls that reached the dependency")
    last_error: LastError | None = Field(
        default=None, description="if calls are refused because earlier ones failed: the last failure"
    )
    server: DatabaseServer | None = Field(default=None, description="for a database error: which database")
    answers_since: str | None = Field(
        default=None,
        description="while calls to the database are still refused: when its probe first succeeded again",
    )
    request_id: str | None = Field(default=None, description="as in X-Request-ID")
    errors: list[FieldProblem] | None = Field(default=None, description="what is wrong with the request")
    runbook: str | None = Field(
        default=None,
        description="path to the runbook on this server, if an operator can act on the error",
    )
    services: list[ServiceProblem] | None = Field(
        default=None, description="why each of several services failed"
    )


# ── building problems ─────────────────────────────────────────────────────────────────────────────────────────────


def status_of(error: KooError) -> int:
    """Return the status of an error. For several services' errors it is the one that they share, otherwise 503."""
    if isinstance(error, AllServicesFailed):
        each = {status_of(one) for one in _causes(error)}
        return each.pop() if len(each) == 1 else STATUS[Kind.ALL_FAILED]
    if isinstance(error, IdempotencyKeyInUse):
        return 409  # conflicts that a provider reports are of the same kind, and count as bad responses (502)
    return STATUS[error.kind]


def problem_of(
    error: KooError, instance: str = "", request_id: str | None = None, runbook: str | None = None
) -> Problem:
    """Convert one of koo's errors to a problem. `runbook`: where to read what to do about it."""
    services = None
    if isinstance(error, AllServicesFailed):
        services = [
            ServiceProblem(
                service=e.service,
                kind=e.kind,
                detail=str(e),
                retry_after_s=known_s(e.retry_after_s),
                last_error=last_error_view(e.last_error),
            )
            for e in _causes(error)
        ]
    return _problem(
        status_of(error),
        str(error),
        error.kind,
        instance=instance,
        request_id=request_id,
        service=error.service or None,
        retry_after_s=known_s(error.retry_after_s),
        attempts=error.attempts,
        last_error=last_error_view(error.last_error),
        services=services,
        runbook=runbook,
        **(_of_database(error) if isinstance(error, DatabaseError) else {}),
    )


def _of_database(error: DatabaseError) -> dict[str, Any]:
    return {"server": error.server, "answers_since": error.answers_since}


def http_problem(request: Request, status: int, detail: str, kind: str = "", **more: Any) -> Problem:
    """An error of HTTP itself, such as an unknown path or a method that is not allowed."""
    kind = kind or HTTP_KINDS.get(status, "http_error")
    return _note(
        request,
        _problem(
            status,
            detail,
            kind,
            instance=shown_path(request.scope),
            request_id=request_id_of(request),
            **more,
        ),
    )


def error_problem(request: Request, error: KooError, runbook: str | None = None) -> Problem:
    """The problem for one of koo's errors, raised while a request was handled."""
    is_unknown = error.kind is Kind.UNKNOWN_SERVICE
    instance = shown_path(request.scope, request.path_params if is_unknown else {})
    return _note(request, problem_of(error, instance, request_id_of(request), runbook))


def shown_path(scope: Scope, hidden: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Return the requested path, shortened. Parameters in `hidden` may contain anything and are masked."""
    path = str(scope["path"])
    for value in hidden.values():
        path = path.replace(str(value), "…") if value else path
    return path if len(path) <= PATH_MAX else path[:PATH_MAX] + "…"


def _note(request: Request, problem: Problem) -> Problem:
    request.scope.get(PROBLEMS, []).append(problem)
    return problem


def raw_problem(status: int, detail: str) -> bytes:
    """The body of an error response to something that could not be read as a request."""
    return _encode(_problem(status, detail, HTTP_KINDS[status], instance=""))


def validation_problem(request: Request, wrong: Iterable[Mapping[str, Any]]) -> Problem:
    """A request with invalid fields. Neither values nor unknown names are repeated: both may be a prompt."""
    found = list(wrong)
    errors = [_field_problem(one) for one in found[:ERRORS_MAX]]
    first = errors[0] if errors else FieldProblem(loc=["body"], msg="cannot be read", type="invalid")
    detail = f"{_place(first.loc)}: {first.msg}"
    if len(found) > 1:
        detail += f" (and {len(found) - 1} more)"
    if first.loc == ["body"] and not _JSON_TYPE.match(request.headers.get("content-type", "")):
        detail = "send the body as JSON, with the header Content-Type: application/json"
    return http_problem(request, 422, detail, errors=errors)


class ProblemAnswer(NamedTuple):
    """A problem for any framework: the three parts of a response, in the order that Flask and Quart expect."""

    body: bytes
    status: int
    headers: dict[str, str]


def problem_answer(error: KooError, path: str = "", request_id: str | None = None) -> ProblemAnswer:
    """Return the `application/problem+json` response to one of koo's errors: `body`, `status` and `headers`.

    `path` is the requested path, `request_id` the value of the response's `X-Request-ID`, if any. The headers are
    `Content-Type` and, if a time is known, `Retry-After` in whole seconds.
    """
    problem = problem_of(error, path, request_id)
    headers = {"Content-Type": MEDIA_TYPE, **_retry_after(problem)}
    return ProblemAnswer(_encode(problem), problem.status, headers)


def respond(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """Return the response, with `Retry-After` in whole seconds if a time is known."""
    more = {**(headers or {}), **_retry_after(problem)}
    return Response(_encode(problem), problem.status, more, media_type=MEDIA_TYPE)


def known_s(seconds: float | None) -> float | None:
    """Return a finite time, or None for infinity ("never"). Rounded up, so that a client does not return too early."""
    return math.ceil(seconds * 1000) / 1000 if seconds is not None and math.isfinite(seconds) else None


def _encode(problem: Problem) -> bytes:
    body = problem.model_dump(mode="json", exclude_none=True)
    for key, whole in (("last_error", problem.last_error), ("server", problem.server)):
        if whole is not None:  # these always have all their keys, even if a value is null
            body[key] = whole
    return json.dumps(body, ensure_ascii=False).encode()


def _retry_after(problem: Problem) -> dict[str, str]:
    known = problem.retry_after_s
    return {} if known is None else {"Retry-After": str(max(0, math.ceil(known)))}


def _causes(error: AllServicesFailed) -> list[ExternalServiceError]:
    return [one for one in error.exceptions if isinstance(one, ExternalServiceError)]


def _problem(status: int, detail: str, kind: str, **more: Any) -> Problem:
    return Problem(
        type=f"{TYPE_PREFIX}{kind}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        kind=kind,
        **more,
    )


def _field_problem(wrong: Mapping[str, Any]) -> FieldProblem:
    kind, loc = str(wrong["type"]), wrong["loc"]
    msg = WORDS.get(kind, str(wrong["msg"]).removeprefix("Value error, "))
    if kind == "extra_forbidden":
        msg += _meant(str(loc[-1]))
    return FieldProblem(
        loc=["body"] if kind == "json_invalid" else list(map(_known, loc)), msg=msg, type=kind
    )


def _known(part: str | int) -> str | int:
    """Return the name if it is one of koo's. Any other may be a prompt that slipped into the wrong place."""
    return part if isinstance(part, int) or part in _FIELDS | _PLACES else "…"


def _meant(name: str) -> str:
    near = get_close_matches(name[:50], _FIELDS, 1)
    return f"; did you mean {near[0]}?" if near else f"; allowed are {', '.join(sorted(_FIELDS))}"


def _place(loc: Sequence[str | int]) -> str:
    names = [str(part) for part in loc]
    return "the body" if names == ["body"] else ".".join(names[1:] if len(names) > 1 else names)
