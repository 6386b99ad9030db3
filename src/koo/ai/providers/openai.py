"""OpenAI: the Responses API (`POST /responses`), its answers, its stream, and what its errors mean.

OpenAI recommends Responses for everything new, its reasoning models answer better there, and `max_output_tokens`
bounds reasoning and text together, which is what a budget needs. `store: false`, because by default OpenAI keeps every
answer for 30 days. Servers that imitate OpenAI mostly know chat completions only: they are `openai_compatible`.

Usage: `input_tokens` includes what came from and went to the cache; reasoning is a part of `output_tokens`. A stream
ends with `response.completed` or `response.incomplete`; an answer can also say `failed` with an error inside a 200.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

import msgspec

from koo.ai.providers.base import Completion, Piece, Request
from koo.ai.providers.faults import FaultTable, Row, Said
from koo.ai.providers.headers import openai_pace
from koo.ai.providers.openai_errors import CONTEXT_WORDS, read_error
from koo.ai.providers.streaming import read_stream
from koo.ai.providers.transport import Wire, bound_tokens, estimate_usage, name_of
from koo.ai.types import Usage
from koo.clock import SYSTEM_CLOCK, Clock
from koo.errors import ExternalServiceError, Kind
from koo.http import HttpClient, ServerSentEvent

BASE_URL = "https://api.openai.com/v1"

INVALID = "invalid_request_error"

FAULTS = FaultTable(
    "openai",
    (
        # An exact code first. A type alone may be shared: `insufficient_quota` covers five different ends of money.
        Row(Kind.CONTEXT_LENGTH, "context_length_exceeded"),
        Row(
            Kind.CONTENT_POLICY,
            (
                "content_filter", "content_policy_violation", "cyber_policy", "bio_policy", "invalid_prompt",
                "misalignment_policy_violation",
            ),
        ),
        Row(Kind.BILLING, ("credit_balance_exhausted", "billing_not_active", "billing_hard_limit_reached")),
        Row(
            Kind.QUOTA,
            ("organization_spend_limit_exceeded", "project_spend_limit_exceeded", "organization_usage_limit_exceeded"),
        ),
        Row(Kind.QUOTA, "insufficient_quota", sentence="its quota for this account is used up, or its credit is"),
        Row(Kind.THROTTLED, "slow_down", sentence="our rate grows faster than it allows"),
        Row(Kind.THROTTLED, "flex_unavailable", sentence="its flex tier has no room now"),
        Row(Kind.THROTTLED, ("rate_limit_exceeded", "rate_limit_error")),
        Row(Kind.OVERLOADED, ("server_is_overloaded", "server_overloaded", "service_unavailable_error")),
        Row(Kind.AUTH, ("invalid_api_key", "authentication_error", "account_deactivated")),
        Row(Kind.PERMISSION, "unsupported_country_region_territory", sentence="it does not serve this country"),
        Row(Kind.NOT_FOUND, "model_not_found"),
        Row(Kind.TIMEOUT, "request_timeout"),
        Row(Kind.SERVER_ERROR, ("server_error", "api_error", "vector_store_timeout")),
        # Words refine a refused request, and nothing else.
        Row(Kind.CONTEXT_LENGTH, INVALID, (200, 400), says=CONTEXT_WORDS),
        # The type alone decides only where no status says more: a 401 and a 404 have it too.
        Row(Kind.INVALID_REQUEST, INVALID, (200, 400)),
        # A page of something on the way that forbids is no word of OpenAI about the key.
        Row(Kind.INVALID_REQUEST, status=403, shaped=False, sentence="something on the way forbids the request"),
    ),
)  # fmt: skip


# ── the wire ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Body(msgspec.Struct, omit_defaults=True):
    model: str
    input: str
    max_output_tokens: int
    store: bool  # Without a default, so that false is sent.
    instructions: str | None = None
    temperature: float | None = None
    stream: bool = False


class _InputDetails(msgspec.Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


class _Part(msgspec.Struct):
    type: str = ""
    text: str | None = None
    refusal: str | None = None


class _Item(msgspec.Struct):
    type: str
    content: list[_Part] | str | None = None


class _Incomplete(msgspec.Struct):
    reason: str | None = None


class _Failure(msgspec.Struct):
    code: str | None = None
    type: str | None = None
    message: str | None = None


class _Answer(msgspec.Struct):
    model: str
    status: str
    output: list[_Item]
    id: str | None = None
    usage: _Usage | None = None
    error: _Failure | None = None
    incomplete_details: _Incomplete | None = None


class _Delta(msgspec.Struct):
    delta: str = ""


class _Ended(msgspec.Struct):
    response: _Answer


class _BegunResponse(msgspec.Struct):
    model: str | None = None
    id: str | None = None


class _Begun(msgspec.Struct):
    response: _BegunResponse


_encode = msgspec.json.Encoder().encode
_answer = msgspec.json.Decoder(_Answer)
_delta = msgspec.json.Decoder(_Delta)
_begun = msgspec.json.Decoder(_Begun)
_ended = msgspec.json.Decoder(_Ended)


class OpenAIProvider:
    """A service that speaks OpenAI's Responses API. `base_url` is the address with its `/v1`."""

    __slots__ = ("_wire",)

    def __init__(
        self,
        service: str,
        http: HttpClient,
        *,
        base_url: str = BASE_URL,
        api_key: str | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._wire = Wire(
            service,
            http,
            base_url=base_url,
            headers=headers,
            table=FAULTS,
            read_error=read_error,
            clock=clock,
        )

    def __repr__(self) -> str:
        return f"<OpenAIProvider {self._wire!r}>"

    def bound_input_tokens(self, request: Request) -> int:
        """UTF-8 bytes of prompt and system, and an allowance for what is put around them."""
        return bound_tokens(request)

    async def complete(self, request: Request) -> Completion:
        """Ask once. Raises `ExternalServiceError`."""
        wire = self._wire
        response = await wire.post("/responses", encode(request))
        answer = wire.decode(response, _answer)
        if answer.status not in ("completed", "incomplete"):
            raise _failure(wire, answer, response.headers)
        text = _text(answer.output)
        return Completion(
            text=text,
            model=answer.model,
            usage=usage_of(answer.usage) if answer.usage else estimate_usage(request, text),
            stop_reason=_stop_reason(answer),
            request_id=response.headers.get("x-request-id") or answer.id,
            pace=openai_pace(response.headers),
        )

    def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Ask once, and give the pieces as they come. Raises `ExternalServiceError`."""
        body = encode(request, stream=True)
        return read_stream(self._wire, "/responses", body, lambda headers: _Reader(self._wire, headers))

    async def check(self) -> None:
        """Ask for the list of models, which is never billed. Raises `ExternalServiceError`."""
        await check_models(self._wire)

    async def close(self) -> None:
        """Nothing is held: the connections are the client's."""


class _Reader:
    """Events of one stream → pieces."""

    __slots__ = ("_delivered", "_headers", "_wire")

    def __init__(self, wire: Wire, headers: Mapping[str, str]) -> None:
        self._wire = wire
        self._headers = headers
        self._delivered = False

    def read(self, event: ServerSentEvent) -> Piece | None:
        """A piece, or None for what says nothing. Raises `ExternalServiceError`, or one of `UNREADABLE`."""
        match name_of(event):
            case "response.output_text.delta" | "response.refusal.delta":
                self._delivered = True
                return Piece(text=_delta.decode(event.data).delta)
            case "response.reasoning_text.delta" | "response.reasoning_summary_text.delta":
                self._delivered = True
                return Piece(text=_delta.decode(event.data).delta, reasoning=True)
            case "response.created":
                return self._begin(_begun.decode(event.data).response)
            case "response.completed" | "response.incomplete" | "response.failed":
                return self._end(_ended.decode(event.data).response)
            case "error" | "":
                self._fail(event.data)
                return None
            case _:  # Items and parts that begin and end, and what OpenAI may add: no content.
                return None

    def finish(self) -> Piece | None:
        """OpenAI always says how a response ended: a stream without it was cut."""
        return None

    def _fail(self, data: bytes) -> None:
        """Raise the error that an `error` event is, or an event without a name that holds one."""
        said = read_error(200, self._headers, data)
        if said.shaped:
            # As the very first thing it stands for a refusal, which nobody bills.
            raise self._wire.told(said, billable=self._delivered)

    def _begin(self, response: _BegunResponse) -> Piece:
        request_id = self._headers.get("x-request-id") or response.id
        return Piece(model=response.model, request_id=request_id, pace=openai_pace(self._headers))

    def _end(self, answer: _Answer) -> Piece:
        if answer.status not in ("completed", "incomplete"):
            raise _failure(self._wire, answer, self._headers)
        usage = usage_of(answer.usage) if answer.usage else None
        return Piece(final=True, model=answer.model, usage=usage, stop_reason=_stop_reason(answer))


async def check_models(wire: Wire, path: str = "/models") -> None:
    """GET it. A key that may ask but not list is a working key: restricted keys are common."""
    try:
        await wire.get(path)
    except ExternalServiceError as error:
        if error.kind is not Kind.PERMISSION:
            raise


def encode(request: Request, *, stream: bool = False) -> bytes:
    """The request's body."""
    return _encode(
        _Body(
            model=request.model,
            input=request.prompt,
            max_output_tokens=request.max_tokens,
            store=False,
            instructions=request.system,
            temperature=request.temperature,
            stream=stream,
        )
    )


def usage_of(usage: _Usage) -> Usage:
    """Tokens by class, made disjoint."""
    details = usage.input_tokens_details or _InputDetails()
    output = usage.output_tokens_details or _OutputDetails()
    cached, written = max(0, details.cached_tokens or 0), max(0, details.cache_write_tokens or 0)
    return Usage(
        input_tokens=max(0, usage.input_tokens - cached - written),
        cache_read_tokens=cached,
        cache_write_tokens=written,
        output_tokens=max(0, usage.output_tokens),
        reasoning_tokens=max(0, output.reasoning_tokens or 0),
    )


def _failure(wire: Wire, answer: _Answer, headers: Mapping[str, str]) -> ExternalServiceError:
    """An answer that says `failed`, or that is not ready although we waited for it."""
    error = answer.error or _Failure()
    said = Said(
        status=200,
        code=error.code,
        type=error.type,
        message=error.message or "",
        request_id=headers.get("x-request-id") or answer.id,
        headers=headers,
        shaped=True,
    )
    return wire.told(said, billable=answer.usage is not None)


def _text(items: list[_Item]) -> str:
    return "".join(
        part.text or part.refusal or ""
        for item in items
        if item.type == "message" and isinstance(item.content, list)
        for part in item.content
    )


def _stop_reason(answer: _Answer) -> str:
    incomplete = answer.incomplete_details
    return incomplete.reason if incomplete is not None and incomplete.reason else answer.status
