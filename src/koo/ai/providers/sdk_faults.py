"""What the exceptions of the vendors' own SDKs mean, for those who run an SDK under koo's guard.

No SDK is imported: an exception is known by the module of its class and read by its attributes. Three traps are in the
code. An error inside a stream comes with status 200 (anthropic) or without any (openai), so codes and types are asked
first. Three of the SDKs stand on `httpx2`, which is not `httpx`: both are known, by name. And an SDK's own timeout is a
timeout, but where its cause is that no connection was made, nothing has been sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

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
HTTP = FaultTable("http", ())
"""A plain HTTP library: only the status speaks."""

UNSENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol")
"""httpx and httpx2: nothing of the request left."""
AIOHTTP_UNSENT = (
    "ClientConnectorError",
    "ConnectionTimeoutError",
    "ClientConnectorDNSError",
    "ClientSSLError",
)


def classify_sdk(error: Exception, service: str = "") -> Fault | None:
    """The fault that an exception of a vendor's SDK stands for, or None for any other exception.

    `fault.error` is to be raised in its place, `from` the original. `service` names it; without, its vendor does.
    """
    names = _names(type(error))
    for module, judge in JUDGES.items():
        if module in names:
            found = judge(error, names[module], service)
            return None if found is None else _fault(found)
    return None


def own_retries(operation: object) -> int:
    """How often an SDK repeats this operation by itself: what `max_retries` of its client says, 0 where there is none.

    Knows bound methods (`client.messages.create`), what `functools.wraps` or `partial` put around them, and
    google-genai's `HttpRetryOptions`.
    """
    for _ in range(5):
        owner = getattr(operation, "__self__", None)
        if owner is not None:
            return _retries_of(owner)
        operation = getattr(operation, "__wrapped__", None) or getattr(operation, "func", None)
        if operation is None:
            break
    return 0


# ── the vendors' own exceptions ───────────────────────────────────────────────────────────────────────────────────────


def _names(cls: type) -> dict[str, set[str]]:
    """Top module → names of the classes that an exception is, so that a user's subclass is known too."""
    names: dict[str, set[str]] = {}
    for base in cls.__mro__:
        names.setdefault(base.__module__.partition(".")[0], set()).add(base.__name__)
    return names


def _judge_stainless(table: FaultTable) -> Callable[[Exception, set[str], str], ExternalServiceError | None]:
    """Most SDKs are made by one generator, and name their classes alike."""

    def judge(error: Exception, names: set[str], service: str) -> ExternalServiceError | None:
        service = service or table.vendor
        if "APIConnectionError" in names:
            return _unreached(error, names, service)
        if "APIResponseValidationError" in names:
            return make_error(service, Kind.BAD_ANSWER, billable=True)
        if "ContentFilterFinishReasonError" in names:
            return make_error(service, Kind.CONTENT_POLICY, billable=True)
        if "APIError" in names:
            return table.error(service, _parse(error), SYSTEM_CLOCK.wall(), billable=_billable(error))
        # What is left is a client set up wrongly, like a missing key: the caller's.
        return make_error(
            service, Kind.INVALID_REQUEST, "the SDK's client is not set up to make this call", billable=False
        )

    return judge


def _unreached(error: Exception, names: set[str], service: str) -> ExternalServiceError:
    cause = error.__cause__
    unsent = cause is not None and bool(set(UNSENT) & {base.__name__ for base in type(cause).__mro__})
    if "APITimeoutError" in names and not unsent:
        return make_error(service, Kind.TIMEOUT, "no answer within the SDK's own timeout", billable=True)
    reason = "cannot connect" if unsent else "the connection broke before an answer came"
    return make_error(service, Kind.CONNECTION, reason, billable=not unsent)


def _parse(error: Exception) -> ParsedError:
    """What an SDK's error carries: the decoded body, the headers, and the status where there is one."""
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
    """Its own budget, which is no error of a vendor's; all others of its exceptions are."""
    if "BudgetExceededError" in names:
        return make_error(service or "litellm", Kind.QUOTA, billable=False)
    return None


# ── plain HTTP libraries ──────────────────────────────────────────────────────────────────────────────────────────────


def _judge_httpx(error: Exception, names: set[str], service: str) -> ExternalServiceError | None:
    service = service or HTTP.vendor
    if "HTTPStatusError" in names:
        return _by_status(error, getattr(getattr(error, "response", None), "status_code", None), service)
    if names & set(UNSENT):
        return make_error(service, Kind.CONNECTION, "cannot connect", billable=False)
    if "TimeoutException" in names:
        return make_error(service, Kind.TIMEOUT, "no answer in time", billable=True)
    if "TransportError" in names:
        return make_error(service, Kind.CONNECTION, "the connection broke", billable=True)
    return make_error(service, Kind.BAD_ANSWER, billable=True) if "DecodingError" in names else None


def _judge_aiohttp(error: Exception, names: set[str], service: str) -> ExternalServiceError | None:
    service = service or HTTP.vendor
    if "ClientResponseError" in names:
        return _by_status(error, getattr(error, "status", None), service)
    if names & set(AIOHTTP_UNSENT):
        return make_error(service, Kind.CONNECTION, "cannot connect", billable=False)
    if "ServerTimeoutError" in names:
        return make_error(service, Kind.TIMEOUT, "no answer in time", billable=True)
    if "ClientPayloadError" in names:
        return make_error(service, Kind.BAD_ANSWER, "the answer broke off", billable=True)
    if "ClientConnectionError" in names:
        return make_error(service, Kind.CONNECTION, "the connection broke", billable=True)
    return None


def _by_status(error: Exception, status: object, service: str) -> ExternalServiceError | None:
    if not isinstance(status, int) or status < 300:
        return make_error(service, Kind.BAD_ANSWER, billable=True)
    headers = getattr(getattr(error, "response", error), "headers", None) or {}
    # Only `Retry-After` and its kin are read from them.
    parsed = ParsedError(status=status, headers=headers, shaped=True)
    return HTTP.error(service, parsed, SYSTEM_CLOCK.wall())


JUDGES: dict[str, Callable[[Exception, set[str], str], ExternalServiceError | None]] = {
    "anthropic": _judge_stainless(ANTHROPIC),
    # OpenAI's SDK is how most people ask its imitators, too.
    **{
        name: _judge_stainless(FaultTable(name, COMPATIBLE.rows))
        for name in ("openai", "groq", "cerebras", "together")
    },
    "perplexity": _judge_stainless(PERPLEXITY),
    "google": _judge_google,
    "httpx": _judge_httpx,
    "httpx2": _judge_httpx,
    "aiohttp": _judge_aiohttp,
    "litellm": _judge_litellm,
}


def _fault(error: ExternalServiceError) -> Fault:
    return replace(fault_of(error), error=error)


# ── the SDKs' own retries ─────────────────────────────────────────────────────────────────────────────────────────────


def _retries_of(owner: object) -> int:
    client = getattr(owner, "_client", None)
    # Perplexity's has an adapter between a resource and its client.
    for thing in (owner, client, getattr(client, "_client", None), getattr(owner, "client", None)):
        retries = getattr(thing, "max_retries", None)
        if isinstance(retries, int) and not isinstance(retries, bool):
            return max(0, retries)
    google = getattr(owner, "_api_client", None)
    retry = getattr(getattr(google, "_http_options", None), "retry_options", None)
    if retry is None:
        return 1 if _repeats_quietly(owner, google) else 0
    attempts = getattr(retry, "attempts", None)
    # google-genai: options without a number mean five attempts.
    return max(0, (attempts if isinstance(attempts, int) else 5) - 1)


def _repeats_quietly(owner: object, client: object) -> bool:
    """google-genai without options: over aiohttp, its asynchronous half repeats once what a connection broke off."""
    uses_aiohttp = getattr(client, "_use_aiohttp", None)
    return type(owner).__name__.startswith("Async") and callable(uses_aiohttp) and bool(uses_aiohttp())
