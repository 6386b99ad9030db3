"""Classify the exceptions of the vendors' own SDKs, for applications that call an SDK under a koo guard.

No SDK is imported: an exception is recognised by the module of its class and read by its attributes. There are three
traps. An error inside a stream has status 200 (anthropic) or none (openai), so codes and types are checked first. Three
SDKs use `httpx2`, which is a different package than `httpx`; both are supported by name. And an SDK's timeout counts as
a timeout, except if its cause is that no connection could be opened: then nothing was sent.
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
"""SDKs of services with chat completions. LiteLLM's exceptions are subclasses of openai's."""


def classify_sdk(error: Exception, service: str = "") -> Fault | None:
    """The fault for an error of a vendor's SDK, a framework or an HTTP library; None for any other error.

    If `fault.error` is set, raise it in place of the original and `from` it. `service` is the name for messages;
    without it, the vendor's name is used.
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
    """Classify errors of SDKs that the generator Stainless made; most SDKs are, and their classes have the same
    names.
    """

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
        # The remaining errors mean that the client is configured or used wrongly (a missing key, say).
        reason = "the SDK's client is not configured for this call"
        return make_error(service, Kind.INVALID_REQUEST, reason, billable=len(names) > 1)

    return judge


def _unreached(error: Exception, names: set[str], service: str) -> ExternalServiceError:
    cause = error.__cause__
    unsent = cause is not None and any(base.__name__ in UNSENT for base in type(cause).__mro__)
    if "APITimeoutError" in names and not unsent:
        return make_error(service, Kind.TIMEOUT, "no response within the SDK's own timeout", billable=True)
    reason = "cannot connect" if unsent else "the connection broke before a response arrived"
    return make_error(service, Kind.CONNECTION, reason, billable=not unsent)


def _parse(error: Exception) -> ParsedError:
    """Parse an SDK's error from its decoded body, its headers and its status, if it has one."""
    code = getattr(error, "status_code", None)
    status = code if isinstance(code, int) else 200
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    request_id = getattr(error, "request_id", None)
    body = getattr(error, "body", None)
    if body is None:
        body = getattr(error, "message", None)  # LiteLLM puts the error's JSON into its message
    # openai's SDK stores the inner error object, anthropic's the whole body. A proxy's error page is stored as text.
    if isinstance(body, Mapping) and body.get("type") != "error" and not {"error", "object"} & set(body):
        body = {"error": dict(body)}
    parsed = parse_error(status, headers, body)
    return replace(parsed, request_id=request_id or parsed.request_id)


def _billable(error: Exception) -> bool | None:
    """Whether the call may be billed. A refusal is not; an error inside a stream may follow billed work."""
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
    # A refusal is not billed. An error inside a stream has the same kind of code, but carries the SDK's own response
    # object, which has a `response_stream`.
    billable = hasattr(response, "response_stream")
    return GEMINI.error(service, parsed, SYSTEM_CLOCK.wall(), billable=billable)


def _judge_litellm(_: Exception, names: set[str], service: str) -> ExternalServiceError | None:
    """Classify LiteLLM's own budget error; its other exceptions are classified like openai's."""
    if "BudgetExceededError" in names:
        return make_error(service or "litellm", Kind.QUOTA, billable=False)
    return None


JUDGES: dict[str, Callable[[Exception, set[str], str], Found]] = {
    "anthropic": _judge_stainless(ANTHROPIC),
    # OpenAI's SDK is also the usual client for compatible services.
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
"""By the top-level module of a class. botocore and requests derive errors from urllib3's, so they come before it."""
