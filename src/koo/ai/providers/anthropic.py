"""Anthropic: the Messages API (`POST /v1/messages`), its answers, its stream, and what its errors mean.

Usage: `input_tokens` counts only what was read fresh; what came from or went to the cache is counted beside it.
Thinking is a part of `output_tokens`. In a stream `message_start` tells what was read and `message_delta` the final
counts; `message_stop` is the end, and without it the stream was cut. An error after the headers is an `error` event,
whose status is 200 and whose `type` therefore decides.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

import msgspec

from koo.ai.providers.adapter import Adapter, Vendor
from koo.ai.providers.base import Completion, CompletionChunk, Request
from koo.ai.providers.faults import (
    FORBIDDEN_ON_THE_WAY,
    FaultTable,
    Row,
    until_next_month,
    until_stated,
)
from koo.ai.providers.headers import anthropic_pace
from koo.ai.providers.openai_errors import read_error
from koo.ai.providers.streaming import Reader, read_stream
from koo.ai.providers.transport import Wire, estimate_usage, name_of
from koo.ai.providers.usage import Count, count_of
from koo.ai.types import Usage
from koo.errors import Kind
from koo.http import ServerSentEvent

BASE_URL = "https://api.anthropic.com"
VERSION = "2023-06-01"
"""2026-10-21 is newer and takes away what older models can: a temperature. Newer models accept none in any version."""

INVALID = "invalid_request_error"

FAULTS = FaultTable(
    "anthropic",
    (
        # An exact code first.
        Row(Kind.BILLING, "organization_on_hold"),
        Row(
            Kind.BILLING,
            ("linked_organization_spend_limit_reached", "linked_organization_billing_unavailable"),
        ),
        Row(Kind.TIMEOUT, "request_body_timeout", sentence="our request took too long to arrive there"),
        Row(Kind.THROTTLED, "ramp_limit_exceeded", sentence="our rate grows faster than it allows"),
        Row(Kind.QUOTA, "enforced_spend_limit_reached", until=until_next_month),
        Row(Kind.QUOTA, "contract_spend_limit_reached"),
        # Four things that share one type and differ by their words alone. Words that stop the whole service have to
        # be how the message begins: elsewhere it may quote the prompt.
        Row(Kind.BILLING, INVALID, 400, begins=("your credit balance is too low",)),
        Row(
            Kind.QUOTA,
            INVALID,
            400,
            begins=(
                "you have reached your specified api usage limits",
                "you have reached your specified workspace api usage limits",
            ),
            until=until_stated,
        ),
        Row(Kind.CONTEXT_LENGTH, INVALID, 400, says=("prompt is too long", "exceed context limit")),
        # Then the type, which is all there is inside a stream.
        Row(Kind.INVALID_REQUEST, INVALID),
        Row(Kind.AUTH, "authentication_error"),
        Row(Kind.BILLING, "billing_error"),
        Row(Kind.PERMISSION, "permission_error"),
        Row(Kind.NOT_FOUND, "not_found_error"),
        Row(Kind.CONFLICT, "conflict_error"),
        Row(Kind.TOO_LARGE, "request_too_large"),
        Row(Kind.THROTTLED, "rate_limit_error"),
        Row(Kind.TIMEOUT, "timeout_error"),
        Row(Kind.OVERLOADED, "overloaded_error"),
        FORBIDDEN_ON_THE_WAY,
    ),
)


# ── the wire ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Message(msgspec.Struct):
    role: str
    content: str


class _Body(msgspec.Struct, omit_defaults=True):
    model: str
    max_tokens: int
    messages: list[_Message]
    system: str | None = None
    temperature: float | None = None
    stream: bool = False


class _Thinking(msgspec.Struct):
    thinking_tokens: Count = None


class _Usage(msgspec.Struct):
    input_tokens: Count = None
    cache_read_input_tokens: Count = None
    cache_creation_input_tokens: Count = None
    output_tokens: Count = None
    output_tokens_details: _Thinking | None = None


class _Block(msgspec.Struct):
    type: str
    text: str = ""


class _Answer(msgspec.Struct):
    model: str
    content: list[_Block]
    id: str | None = None
    stop_reason: str | None = None
    usage: _Usage | None = None


class _Delta(msgspec.Struct):
    type: str = ""
    text: str = ""
    thinking: str = ""


class _ContentDelta(msgspec.Struct):
    delta: _Delta


class _Begun(msgspec.Struct):
    model: str | None = None
    usage: _Usage | None = None


class _MessageStart(msgspec.Struct):
    message: _Begun


class _Ending(msgspec.Struct):
    stop_reason: str | None = None


class _MessageDelta(msgspec.Struct):
    delta: _Ending
    usage: _Usage | None = None


_encode = msgspec.json.Encoder().encode
_answer = msgspec.json.Decoder(_Answer)
_content_delta = msgspec.json.Decoder(_ContentDelta)
_message_start = msgspec.json.Decoder(_MessageStart)
_message_delta = msgspec.json.Decoder(_MessageDelta)


class AnthropicProvider(Adapter):
    """A service that speaks Anthropic's Messages API. `base_url` is the address without `/v1`."""

    vendor = Vendor(FAULTS, read_error, BASE_URL, "/v1/models?limit=1")

    @staticmethod
    def address(base_url: str) -> str:
        return base_url.removesuffix("/v1")

    @staticmethod
    def headers(api_key: str | None) -> dict[str, str]:
        headers = {"anthropic-version": VERSION}
        return headers if api_key is None else {**headers, "x-api-key": api_key}

    async def complete(self, request: Request) -> Completion:
        """Ask once. Raises `ExternalServiceError`."""
        wire = self._wire
        response = await wire.request("POST", "/v1/messages", encode(request))
        answer = wire.decode(response, _answer)
        text = _text(answer.content)
        return Completion(
            text=text,
            model=answer.model,
            usage=usage_of(answer.usage) if answer.usage else estimate_usage(request, text),
            stop_reason=answer.stop_reason,
            request_id=response.headers.get("request-id") or answer.id,
            pace=anthropic_pace(response.headers, wire.wall()),
        )

    def stream(self, request: Request) -> AsyncGenerator[CompletionChunk, None]:
        """Ask once, and give the pieces as they come. Raises `ExternalServiceError`."""
        return read_stream(self._wire, "/v1/messages", encode(request, stream=True), request, _Reader)


class _Reader(Reader):
    def __init__(self, wire: Wire, headers: Mapping[str, str], request: Request) -> None:
        super().__init__(wire, headers, request)
        self._usage: _Usage | None = None

    def read(self, event: ServerSentEvent) -> CompletionChunk | None:
        match name_of(event):
            case "content_block_delta":
                return _piece(_content_delta.decode(event.data).delta)
            case "message_start":
                return self._start(_message_start.decode(event.data).message)
            case "message_delta":
                return self._change(_message_delta.decode(event.data))
            case "message_stop":
                return CompletionChunk(final=True, stop_reason=self._stop_reason)
            case "error":
                raise self._error(read_error(200, self._headers, event.data))
            case _:  # Pings, and what Anthropic may add: no content.
                return None

    def finish(self) -> CompletionChunk | None:
        """Anthropic always says `message_stop`: a stream without it was cut."""
        return None

    def _start(self, message: _Begun) -> CompletionChunk:
        self._begun = True
        self._usage = message.usage
        usage = usage_of(message.usage) if message.usage else None
        request_id = self._headers.get("request-id")
        # Its count of what was written is a first token's: it says nothing of what comes.
        return CompletionChunk(
            model=message.model,
            usage=usage,
            input_counted=True,
            output_counted=False,
            request_id=request_id,
            pace=anthropic_pace(self._headers, self._wire.wall()),
        )

    def _change(self, change: _MessageDelta) -> CompletionChunk:
        self._stop_reason = change.delta.stop_reason or self._stop_reason
        usage = usage_of(change.usage, self._usage) if change.usage else None
        counted = change.usage is not None and change.usage.output_tokens is not None
        return CompletionChunk(usage=usage, output_counted=counted, stop_reason=self._stop_reason)


def encode(request: Request, *, stream: bool = False) -> bytes:
    """The request's body."""
    return _encode(
        _Body(
            model=request.model,
            max_tokens=request.max_tokens,
            messages=[_Message("user", request.prompt)],
            system=request.system,
            temperature=request.temperature,
            stream=stream,
        )
    )


def usage_of(usage: _Usage, before: _Usage | None = None) -> Usage:
    """Tokens by class; what a later report leaves out, or sets back, stays as it was `before`."""
    old = before or _Usage()
    details = usage.output_tokens_details
    return Usage(
        input_tokens=_later(usage.input_tokens, old.input_tokens),
        cache_read_tokens=_later(usage.cache_read_input_tokens, old.cache_read_input_tokens),
        cache_write_tokens=_later(usage.cache_creation_input_tokens, old.cache_creation_input_tokens),
        output_tokens=_later(usage.output_tokens, old.output_tokens),
        reasoning_tokens=_later(details.thinking_tokens if details else None, None),
    )


def _later(new: Count, old: Count) -> int:
    return max(count_of(new), count_of(old))


def _text(blocks: list[_Block]) -> str:
    if len(blocks) == 1 and blocks[0].type == "text":
        return blocks[0].text
    return "".join(block.text for block in blocks if block.type == "text")


def _piece(delta: _Delta) -> CompletionChunk | None:
    if delta.type == "text_delta":
        return CompletionChunk(text=delta.text)
    return CompletionChunk(text=delta.thinking, reasoning=True) if delta.type == "thinking_delta" else None
