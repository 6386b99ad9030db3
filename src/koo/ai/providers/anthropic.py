"""Anthropic's Messages API (`POST /v1/messages`): its responses, its stream, and the meaning of its errors.

Usage: `input_tokens` excludes tokens read from or written to the cache, which have counts of their own. Thinking is
part of `output_tokens`. In a stream, `message_start` reports the input and `message_delta` the final counts.
`message_stop` is the end; without it the stream was cut. An error after the headers arrives as an `error` event with
status 200, so its `type` decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import msgspec

from koo.ai.model_price import tier_of
from koo.ai.providers.adapter import Adapter, Vendor
from koo.ai.providers.base import Completion, CompletionChunk, Request
from koo.ai.providers.ends import OUTCOMES
from koo.ai.providers.faults import (
    FORBIDDEN_ON_THE_WAY,
    FaultTable,
    Row,
    until_next_month,
    until_stated,
)
from koo.ai.providers.openai_errors import read_error
from koo.ai.providers.streaming import Reader
from koo.ai.providers.transport import (
    NOTHING,
    Wire,
    complete_usage,
    is_something,
    type_of,
)
from koo.ai.providers.usage import Count, ToolUse, count_of, web_searches
from koo.ai.types import Usage
from koo.errors import Kind
from koo.http.client import HttpResponse
from koo.http.events import ServerSentEvent

BASE_URL = "https://api.anthropic.com"
PATH = "/v1/messages"
VERSION = "2023-06-01"
"""The newer version 2026-10-21 rejects `temperature` for all models; with this one, older models still accept it."""

INVALID = "invalid_request_error"

FAULTS = FaultTable(
    "anthropic",
    (
        # Exact codes come first.
        Row(Kind.BILLING, "organization_on_hold"),
        Row(
            Kind.BILLING,
            ("linked_organization_spend_limit_reached", "linked_organization_billing_unavailable"),
        ),
        Row(Kind.TIMEOUT, "request_body_timeout", sentence="it did not receive the request in time"),
        Row(Kind.THROTTLED, "ramp_limit_exceeded", sentence="the request rate grew faster than it allows"),
        Row(Kind.QUOTA, "enforced_spend_limit_reached", until=until_next_month),
        Row(Kind.QUOTA, "contract_spend_limit_reached"),
        # These errors share one type and differ only by their message. For errors that stop the whole service, the
        # message has to begin with the listed words: later parts may quote the prompt.
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
        # Then the type, which is all that an error inside a stream has.
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
    server_tool_use: ToolUse | None = None
    speed: str | None = None
    inference_geo: str | None = None

    @property
    def tier(self) -> str | None:
        """The speed of the answer, and whether it was computed in one region."""
        return tier_of(self.speed, self.inference_geo)


class _Block(msgspec.Struct):
    type: str = ""
    text: str | None = None


class _Answer(msgspec.Struct, frozen=True):
    model: str | None = None
    content: list[_Block] | None = None
    id: str | None = None
    stop_reason: str | None = None
    usage: _Usage | None = None
    error: msgspec.Raw = NOTHING


class _Delta(msgspec.Struct):
    text: str | None = None
    thinking: str | None = None


class _ContentDelta(msgspec.Struct):
    delta: _Delta


class _ContentStart(msgspec.Struct):
    content_block: _Block


class _MessageStart(msgspec.Struct):
    message: _Answer = _Answer()


class _Ending(msgspec.Struct, frozen=True):
    stop_reason: str | None = None


class _MessageDelta(msgspec.Struct):
    delta: _Ending = _Ending()
    usage: _Usage | None = None


class _Event(msgspec.Struct):
    """An event without a name, or one without fields of interest."""

    error: msgspec.Raw = NOTHING


NO_USAGE = Usage()
_encode = msgspec.json.Encoder().encode
_answer = msgspec.json.Decoder(_Answer)
_content_delta = msgspec.json.Decoder(_ContentDelta)
_event = msgspec.json.Decoder(_Event)


class _Reader(Reader):
    shapes: ClassVar = {
        "content_block_delta": _content_delta,
        "message_start": msgspec.json.Decoder(_MessageStart),
        "content_block_start": msgspec.json.Decoder(_ContentStart),
        "content_block_stop": _event,
        "message_delta": msgspec.json.Decoder(_MessageDelta),
        "message_stop": _event,
        "message": _answer,
        "error": _event,
        "": _event,
    }

    def __init__(self, wire: Wire, headers: Mapping[str, str], request: Request) -> None:
        super().__init__(wire, headers, request)
        self._usage = NO_USAGE

    def read(self, event: ServerSentEvent) -> CompletionChunk | None:
        # "message" is the standard's name for an event without one: something in between dropped the `event:` lines.
        name = event.event if event.event != "message" else type_of(event.data)
        if name == "content_block_delta":
            said = _content_delta.decode(event.data).delta
            text = said.text
            if text and not self._start_text:  # the body of `_piece`, inlined because most events end here
                self._texts.append(text)
                return CompletionChunk(text=text)
            return self._piece(said)
        decoder = self.shapes.get(name)
        # A ping, a new kind of event, or a gateway that gives all events the same name. Then the document's own type
        # decides.
        if decoder is None:
            name = type_of(event.data)
            decoder = self.shapes.get(name, _event)
        return self.take(name, decoder.decode(event.data), event.data)

    def take(self, name: str, told: Any, data: bytes) -> CompletionChunk | None:
        match name:
            case "content_block_delta":
                return self._piece(told.delta)
            case "message_start":
                return self._start(told.message)
            # A text in the start of a block is kept back until the next event: only then is it known whether the
            # deltas repeat it (`_after_start`) or not (`_take_start`).
            case "content_block_start":
                text, self._start_text = self._take_start(), told.content_block.text or ""
                return CompletionChunk(text=text) if text else None
            case "content_block_stop":
                text = self._take_start()
                return CompletionChunk(text=text) if text else None
            case "message_delta":
                return self._change(told.delta.stop_reason, told.usage)
            case "message_stop":
                return self._final()
            case "message":
                return self._whole(told)
            case "error":
                raise self._error(read_error(200, self.headers, data))
            case _:
                if is_something(told.error):
                    raise self._error(read_error(200, self.headers, data))
                return None

    def _piece(self, delta: _Delta) -> CompletionChunk | None:
        text = delta.text
        if not text:
            return CompletionChunk(text=delta.thinking, reasoning=True) if delta.thinking else None
        if self._start_text:
            text = self._after_start(text)
        self._texts.append(text)
        return CompletionChunk(text=text)

    def _start(self, message: _Answer) -> CompletionChunk:
        # From here on the prompt has been read, so even an error is billed.
        self._begun = True
        self._start_text = _text(message.content)
        usage = self._grown(message.usage)
        request_id = self.headers.get("request-id") or message.id
        # `output_counted=False`: the start counts one output token, which says nothing about the answer. If the caller
        # stops in the middle, the text so far has to be estimated and not billed as one token.
        return CompletionChunk(
            model=message.model,
            usage=usage,
            input_counted=True,
            output_counted=False,
            tier=message.usage.tier if message.usage else None,
            request_id=request_id,
            pace=self.wire.pace(self.headers),
        )

    def _change(self, reason: str | None, told: _Usage | None) -> CompletionChunk:
        # May occur several times; a later one without a reason must not erase the earlier reason.
        self.stop_reason = reason or self.stop_reason
        text = self._take_start()
        usage = self._grown(told)
        counted = told is not None and told.output_tokens is not None
        self._written = self._written or (told is not None and count_of(told.output_tokens) > 0)
        self._usage_told = self._usage_told or counted
        return CompletionChunk(
            text=text,
            usage=usage,
            output_counted=counted,
            tier=told.tier if told else None,
            units=_units(told),
            stop_reason=self.stop_reason,
            error=self._failed_end(),
        )

    def _grown(self, told: _Usage | None) -> Usage | None:
        """The usage so far. A later report may omit a count or set it back to 0."""
        if told is None:
            return None
        self._usage = self._usage.grown(usage_of(told))
        return self._usage

    def _whole(self, message: _Answer) -> CompletionChunk:
        """Return a complete response that arrived in place of events as a single final piece."""
        # Some gateways send deltas first and then the complete message again. Only the part that is new may be yielded,
        # or the caller would receive the answer twice.
        text = self._rest_of(_text(message.content))
        if is_something(message.error):
            raise self.wire.told(self.headers, message.error, billable=bool(text))
        start = self._start(message)
        self._start_text = text
        last = self._change(message.stop_reason or "end_turn", message.usage)
        if last.error is None:
            self._final()
        return replace(
            last, model=start.model, request_id=start.request_id, pace=start.pace, final=last.error is None
        )


class AnthropicProvider(Adapter):
    """A service with Anthropic's Messages API. `base_url` is the URL without `/v1`."""

    own_path = PATH
    shape = _answer
    reader = _Reader
    vendor = Vendor(FAULTS, read_error, BASE_URL, "/v1/models?limit=1")

    @staticmethod
    def address(base_url: str) -> str:
        return base_url.removesuffix("/v1")

    @staticmethod
    def headers(api_key: str | None) -> dict[str, str]:
        headers = {"anthropic-version": VERSION}
        return headers if api_key is None else {**headers, "x-api-key": api_key}

    def _completion(self, request: Request, response: HttpResponse, answer: _Answer) -> Completion:
        # `judge` is called only for answers that look unusual: it parses errors, which would cost every good answer
        # time.
        wire, reason = self._wire, answer.stop_reason
        text = _text(answer.content)
        usage = usage_of(answer.usage) if answer.usage else NO_USAGE
        if not answer.content or reason not in OUTCOMES or answer.error is not NOTHING:
            wire.judge(response, answer.error, text, reason, usage)
        if not (usage.input_tokens and usage.output_tokens):
            usage = complete_usage(usage, request, text)
        return Completion(
            text=text,
            model=answer.model or request.model,
            usage=usage,
            stop_reason=reason,
            request_id=response.headers.get("request-id") or answer.id,
            tier=answer.usage.tier if answer.usage else None,
            units=_units(answer.usage) if answer.usage and answer.usage.server_tool_use else None,
            pace=wire.pace(response.headers),
        )

    def encode(self, request: Request, *, stream: bool) -> bytes:
        """The request's body."""
        form = self._forms.of(request.model)
        return encode(self._forms.fit(request), stream=stream if form.stream is None else form.stream)


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


def usage_of(usage: _Usage) -> Usage:
    """Tokens by class."""
    details = usage.output_tokens_details
    return Usage(
        input_tokens=count_of(usage.input_tokens),
        cache_read_tokens=count_of(usage.cache_read_input_tokens),
        cache_write_tokens=count_of(usage.cache_creation_input_tokens),
        output_tokens=count_of(usage.output_tokens),
        reasoning_tokens=count_of(details.thinking_tokens if details else None),
    )


def _units(usage: _Usage | None) -> Mapping[str, int] | None:
    tools = usage.server_tool_use if usage else None
    return web_searches(tools.web_search_requests) if tools else None


def _text(blocks: list[_Block] | None) -> str:
    if not blocks:
        return ""
    # Only blocks of the type "text" are the answer. If there are none, the server uses other names or leaves the type
    # out, and any text is better than none.
    if len(blocks) == 1 and blocks[0].type == "text":
        return blocks[0].text or ""
    text = "".join(block.text or "" for block in blocks if block.type == "text")
    return text or "".join(block.text or "" for block in blocks)
