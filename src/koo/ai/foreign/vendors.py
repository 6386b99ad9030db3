"""What the exceptions of the vendors' own SDKs mean, for applications that run an SDK under koo's guard.

No SDK is imported: an exception is known by its class's module and read by its attributes. There are three traps. An
error inside a stream has status 200 (anthropic) or none (openai), so codes and types are checked first. Three of the
SDKs are built on `httpx2`, which is not `httpx`: both are known, by name. And an SDK's own timeout is a timeout, but if
its cause is that no connection was made, nothing has been sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from koo.ai.foreign.frameworks import classify_framework, cut_short
from koo.ai.foreign.http_libraries import (
    UNSENT,
    Found,
    judge_aiohttp,
    judge_botocore,
    judge_http_client,
    judge_httpx,
    judge_requests,
    judge_urllib,
    judge_urllib3,
)
from koo.ai.foreign.peek import names_of
from koo.ai.providers.anthropic import FAULTS as ANTHROPIC
from koo.ai.providers.faults import FaultTable, ParsedError, make_error
from koo.ai.providers.gemini_errors import FAULTS as GEMINI
from koo.ai.providers.openai_compatible import FAULTS as COMPATIBLE
from koo.ai.providers.openai_errors import parse_error
from koo.ai.providers.perplexity import FAULTS as PERPLEXITY
from koo.clock import SYSTEM_CLOCK
from koo.errors import ExternalServiceError, Kind
from koo.policies.treatment import fault_of
from koo.policies.verdict import Fault

OF_CHAT = ("openai", "groq", "cerebras", "together")
"""SDKs of services that speak chat completions. LiteLLM's exceptions are also openai's."""


def classify_sdk(error: Exception, service: str = "") -> Fault | None:
    """The fault for an error of a vendor's SDK, a framework or an HTTP library, or None for any other.

    `fault.error`, if it has one, is to be raised in its place, `from` the original. `service` names it; without it, its
    vendor does.
    """
    names = names_of(type(error))
    for module, judge in JUDGES.items():
        if module in names and (found := judge(error, names[module], service)) is not None:
            return _fault(found)
    found = classify_framework(names, service)
    return None if found is None else _fault(found)


def _fault(found: ExternalServiceError | Fault) -> Fault:
    return found if isinstance(found, Fault) else replace(fault_of(found), error=found)


def _judge_stainless(table: FaultTable) -> Callable[[Exception, set[str], str], ExternalServiceError | None]:
    """Most SDKs are made by one generator, and name their classes alike."""

    def judge(error: Exception, names: set[str], service: str) -> ExternalServiceError | None:
        service = service or table.vendor
        if "APIConnectionError" in names:
            return _unreached(error, names, service)
        if "APIResponseValidationError" in names:
            return make_error(service, Kind.BAD_ANSWER, billable=True)
        if "LengthFinishReasonError" in names:
            return cut_short(service)
        if "ContentFilterFinishReasonError" in names:
            return make_error(service, Kind.CONTENT_POLICY, billable=True)
        if "APIError" in names:
            return table.error(service, _parse(error), SYSTEM_CLOCK.wall(), billable=_billable(error))
        # What is left is a client set up or used wrongly, like a missing key: the caller's mistake.
        reason = "the SDK's client is not set up to make this call"
        return make_error(service, Kind.INVALID_REQUEST, reason, billable=len(names) > 1)

    return judge


def _unreached(error: Exception, names: set[str], service: str) -> ExternalServiceError:
    cause = error.__cause__
    unsent = cause is not None and any(base.__name__ in UNSENT for base in type(cause).__mro__)
    if "APITimeoutError" in names and not unsent:
        return make_error(service, Kind.TIMEOUT, "no answer within the SDK's own timeout", billable=True)
    reason = "cannot connect" if unsent else "the connection broke before an answer came"
    return make_error(service, Kind.CONNECTION, reason, billable=not unsent)


def _parse(error: Exception) -> ParsedError:
    """What an SDK's error carries: the decoded body, the headers, and the status if it has one."""
    code = getattr(error, "status_code", None)
    status = code if isinstance(code, int) else 200
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    request_id = getattr(error, "request_id", None)
    body = getattr(error, "body", None)
    if body is None:
        body = getattr(error, "message", None)  # LiteLLM's have the error in their sentence
    # openai's SDK hands over the inner object of the error, anthropic's the whole body; a page of something on the way
    # is text.
    if isinstance(body, Mapping) and body.get("type") != "error" and not {"error", "object"} & set(body):
        body = {"error": dict(body)}
    parsed = parse_error(status, headers, body)
    return replace(parsed, request_id=request_id or parsed.request_id)


def _billable(error: Exception) -> bool | None:
    """A refusal is not billed; an error in the middle of a stream may come after paid work."""
    status = getattr(error, "status_code", None)
    return not (isinstance(status, int) and status >= 400)


def _judge_google(error: Exception, names: set[str], service: str) -> ExternalServiceError | None:
    service = service or GEMINI.vendor
    if "UnknownApiResponseError" in names:
        return make_error(service, Kind.BAD_ANSWER, billable=True)
    if "APIError" not in names:
        return None
    code, response = getattr(error, "code", None), getattr(error, "response", None)
    status = code if isinstance(code, int) else 200
    parsed = parse_error(status, getattr(response, "headers", None) or {}, getattr(error, "details", None))
    # A refusal is not billed. An error inside a stream has a code like one, but carries the SDK's own answer.
    billable = hasattr(response, "response_stream")
    return GEMINI.error(service, parsed, SYSTEM_CLOCK.wall(), billable=billable)


def _judge_litellm(_: Exception, names: set[str], service: str) -> ExternalServiceError | None:
    """Its own budget, which is not a vendor's error; all its other exceptions are."""
    if "BudgetExceededError" in names:
        return make_error(service or "litellm", Kind.QUOTA, billable=False)
    return None


JUDGES: dict[str, Callable[[Exception, set[str], str], Found]] = {
    "anthropic": _judge_stainless(ANTHROPIC),
    # OpenAI's SDK is the usual client for compatible services too.
    **{name: _judge_stainless(FaultTable(name, COMPATIBLE.rows)) for name in OF_CHAT},
    "perplexity": _judge_stainless(PERPLEXITY),
    "google": _judge_google,
    "litellm": _judge_litellm,
    "httpx": judge_httpx,
    "httpx2": judge_httpx,
    "aiohttp": judge_aiohttp,
    "requests": judge_requests,
    "botocore": judge_botocore,
    "urllib3": judge_urllib3,
    "urllib": judge_urllib,
    "http": judge_http_client,
}
"""By the top module of a class. botocore's and requests' errors are urllib3's too, so theirs are asked first."""
