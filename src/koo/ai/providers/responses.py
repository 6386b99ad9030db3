"""The Responses format (`POST /responses`), used by OpenAI and by Perplexity's Agent API.

Both report in `status` how a run ended, even if the HTTP status is 200, and count tokens in the same way. They use
different names for cache tokens, and Perplexity adds the cost. A stream ends with exactly one of completed, incomplete,
failed, cancelled, or an `error`. The final event contains the complete text, so text that was missing in the deltas is
not lost.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import msgspec

from koo.ai.providers.adapter import Adapter
from koo.ai.providers.base import Completion, CompletionChunk, Request
from koo.ai.providers.ends import failure_of
from koo.ai.providers.openai_errors import parse_error, read_error
from koo.ai.providers.streaming import Reader
from koo.ai.providers.transport import (
    NOTHING,
    Wire,
    complete_usage,
    document_of,
    is_something,
    type_of,
)
from koo.ai.providers.usage import CostFields, Count, reported_usd, usage_from
from koo.ai.types import Usage
from koo.ai.usage_names import SEARCHES
from koo.errors import ExternalServiceError
from koo.http.client import HttpResponse
from koo.http.events import ServerSentEvent

PATH = "/responses"
ANSWERED = ("completed", "incomplete")
FAILED = ("failed", "cancelled", "queued", "in_progress")


class Body(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A request. Fields without a default are always sent, even if false."""

    model: str
    input: str
    max_output_tokens: int
    store: bool
    instructions: str | None = None
    temperature: float | None = None
    stream: bool = False


class _InputDetails(msgspec.Struct):
    cached_tokens: Count = None  # OpenAI's names
    cache_write_tokens: Count = None
    cache_read_input_tokens: Count = None  # Perplexity's names
    cache_creation_input_tokens: Count = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: Count = None


class _Usage(CostFields):
    input_tokens: Count = None
    output_tokens: Count = None
    total_tokens: Count = None
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


class _Part(msgspec.Struct):
    text: str | None = None
    refusal: str | None = None


class _Item(msgspec.Struct):
    type: str = ""
    content: str | list[_Part] | None = None
    text: str | None = None

    @property
    def words(self) -> str:
        """The item's text: the parts of a message, or its content as one text."""
        if isinstance(self.content, list):
            return "".join(part.text or part.refusal or "" for part in self.content)
        return self.content or self.text or ""


_WORK = re.compile(r"reasoning|.*_(call|output|results)$")
"""Types of items that are not part of the answer: reasoning, calls and their results."""


class _Incomplete(msgspec.Struct):
    reason: str | None = None


class _Answer(msgspec.Struct):
    model: str | None = None
    status: str | None = None
    output: list[_Item] | None = None
    output_text: str | None = None
    id: str | None = None
    usage: _Usage | None = None
    service_tier: str | None = None
    error: msgspec.Raw = NOTHING
    incomplete_details: _Incomplete | None = None

    @property
    def text(self) -> str:
        output = self.output or ()
        # Reasoning, searches and calls are items too, and contain texts that are not part of the answer.
        messages = [item for item in output if item.type == "message"]
        if not messages:  # some servers use another type, or none
            messages = [item for item in output if not _WORK.match(item.type)]
        return "".join(item.words for item in messages) or self.output_text or ""

    @property
    def units(self) -> Mapping[str, int] | None:
        """The searches, each of which has a price."""
        searches = [SEARCHES[item.type] for item in self.output or () if item.type in SEARCHES]
        return Counter(searches) if searches else None

    @property
    def stop_reason(self) -> str | None:
        incomplete = self.incomplete_details
        return incomplete.reason if incomplete is not None and incomplete.reason else self.status


class _Delta(msgspec.Struct):
    delta: str = ""


class _Thought(msgspec.Struct):
    thought: str | None = None


class _Event(msgspec.Struct):
    """An event with a run, or with a complete text that may repeat earlier deltas."""

    response: _Answer | None = None
    error: msgspec.Raw = NOTHING
    text: str | None = None
    refusal: str | None = None
    part: _Part | None = None
    item: _Item | None = None

    @property
    def words(self) -> str:
        part, item = self.part or NO_PART, self.item
        said = item.words if item is not None and item.type == "message" else ""
        return self.text or self.refusal or part.text or part.refusal or said


NO_PART, NO_RUN, NO_USAGE = _Part(), _Answer(), Usage()
encode_body = msgspec.json.Encoder().encode
_answer = msgspec.json.Decoder(_Answer)
_delta = msgspec.json.Decoder(_Delta)
_thought = msgspec.json.Decoder(_Thought)
_event = msgspec.json.Decoder(_Event)

TEXT = "response.output_text.delta"
WHOLE_TEXTS = (
    "response.output_text.done", "response.refusal.done", "response.content_part.done", "response.output_item.done"
)  # fmt: skip
ENDS = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")


class _Reader(Reader):
    shapes: ClassVar = {
        TEXT: _delta,
        "response.refusal.delta": _delta,
        "response.reasoning_text.delta": _delta,
        "response.reasoning_summary_text.delta": _delta,
        "response.created": _event,
        "response.content_part.added": _event,
        **dict.fromkeys(WHOLE_TEXTS, _event),
        **dict.fromkeys(ENDS, _event),
        "error": _event,
        "": _answer,
    }

    def read(self, event: ServerSentEvent) -> CompletionChunk | None:
        name = event.event if event.event != "message" else type_of(event.data)
        # The body of `_piece`, inlined: nearly all events of a stream end here.
        if name == TEXT:
            text = _delta.decode(event.data).delta
            if self._start_text:
                text = self._after_start(text)
            self._begun = True
            self._texts.append(text)
            return CompletionChunk(text=text)
        if name in WHOLE_TEXTS and self._texts:  # a repetition of the deltas
            return None
        if name.startswith("response.reasoning."):
            # These events include searches, which are billed.
            self._begun = True
            return CompletionChunk(text=_thought.decode(event.data).thought or "", reasoning=True)
        decoder = self.shapes.get(name)
        # The start of an item, a new kind of event, or a gateway that gives all events the same name. Then the
        # document's own type decides.
        if decoder is None:
            name = type_of(event.data)
            decoder = self.shapes.get(name)
        return None if decoder is None else self.take(name, decoder.decode(event.data), event.data)

    def take(self, name: str, told: Any, data: bytes) -> CompletionChunk | None:
        match name:
            case "response.output_text.delta" | "response.refusal.delta":
                return self._piece(told.delta)
            case "response.reasoning_text.delta" | "response.reasoning_summary_text.delta":
                self._begun = True
                return CompletionChunk(text=told.delta, reasoning=True)
            case "response.created":
                return self._begin(told.response or NO_RUN)
            case "response.content_part.added":
                self._start_text = told.words
                return None
            case name if name in WHOLE_TEXTS:
                # Servers that send no deltas send only these. Several of them carry the same text one after another
                # (text done, part done, item done), hence the check for texts that were already yielded.
                text = self._take_start() or self._rest_of(told.words)
                return self._piece(text) if text and text not in self._texts else None
            case name if name in ENDS:
                return self._end(name, told.response or NO_RUN, told.error)
            # A whole response without an event around it, from a server that ignores `stream`.
            case "" if told.output is not None or told.output_text:
                return self._end(ENDS[0], told, told.error)
            case _:  # an `error` event, or an event without a name that may contain an error
                parsed = read_error(200, self.headers, data)
                if parsed.shaped and (
                    name in ("error", "") or is_something(told.error) or "message" in parsed.names
                ):
                    raise self._error(parsed)
                return None

    def _piece(self, text: str) -> CompletionChunk:
        if self._start_text:
            text = self._after_start(text)
        self._begun = True
        self._texts.append(text)
        return CompletionChunk(text=text)

    def _begin(self, response: _Answer) -> CompletionChunk:
        request_id = self.headers.get("x-request-id") or response.id
        return CompletionChunk(model=response.model, request_id=request_id, pace=self.wire.pace(self.headers))

    def _end(self, name: str, answer: _Answer, error: msgspec.Raw) -> CompletionChunk:
        """The piece for one of the four ends: the rest of the text, the usage, and the failure if there is one."""
        # Only the text that no delta contained is returned. If the two contradict each other, the deltas count, because
        # the caller has already received them.
        usage = usage_of(answer.usage) if answer.usage else None
        text = self._take_start() + self._rest_of(answer.text)
        told = answer if answer.error is not NOTHING else msgspec.structs.replace(answer, error=error)
        self.stop_reason = answer.stop_reason or name.partition(".")[2]
        failure = _failure_of(self.wire, self.headers, told, name, billable=self._begun or usage is not None)
        if failure is None and not text:
            self._written = usage is not None and usage.output_tokens > 0
            self._final()  # raises if there was no text at all
        # A failure with a usage is passed on as a piece, because the tokens up to it are billed.
        if failure is not None and usage is None:
            raise failure
        return CompletionChunk(
            final=failure is None,
            text=text if failure is None else "",
            model=answer.model,
            usage=usage,
            cost_usd=reported_usd(answer.usage),
            tier=answer.service_tier,
            units=answer.units,
            stop_reason=self.stop_reason,
            error=failure,
        )


class ResponsesAdapter(Adapter):
    """A service with the Responses format. Vendors may add fields to the request."""

    own_path = PATH
    shape = _answer
    reader = _Reader

    def encode(self, request: Request, *, stream: bool) -> bytes:
        """The request's body."""
        request, form = self._forms.fit(request), self._forms.of(request.model)
        body = Body(
            model=request.model,
            input=request.prompt,
            max_output_tokens=request.max_tokens,
            store=False,
            instructions=request.system,
            temperature=request.temperature,
            stream=stream if form.stream is None else form.stream,
        )
        return encode_body(body)

    def _completion(self, request: Request, response: HttpResponse, answer: _Answer) -> Completion:
        wire, text = self._wire, answer.text
        failure = _failure_of(wire, response.headers, answer, billable=answer.usage is not None)
        if failure is not None:
            raise failure
        if answer.output is None and not text:
            raise wire.no_answer(response, "a response without output")
        usage, cost_usd = usage_of(answer.usage) if answer.usage else NO_USAGE, reported_usd(answer.usage)
        if not (usage.input_tokens and usage.output_tokens):
            usage = complete_usage(usage, request, text, cost_usd)
        return Completion(
            text=text,
            model=answer.model or request.model,
            usage=usage,
            stop_reason=answer.stop_reason,
            request_id=response.headers.get("x-request-id") or answer.id,
            cost_usd=cost_usd,
            tier=answer.service_tier,
            units=answer.units,
            pace=wire.pace(response.headers),
        )


def usage_of(usage: _Usage) -> Usage:
    """Disjoint token counts: tokens read from or written to the cache are part of `input_tokens`."""
    details = usage.input_tokens_details or _InputDetails()
    output = usage.output_tokens_details or _OutputDetails()
    return usage_from(
        read=usage.input_tokens,
        written=usage.output_tokens,
        total=usage.total_tokens,
        cached=(details.cached_tokens, details.cache_read_input_tokens),
        into_cache=(details.cache_write_tokens, details.cache_creation_input_tokens),
        reasoning=(output.reasoning_tokens,),
    )


def _failure_of(
    wire: Wire, headers: Mapping[str, str], answer: _Answer, name: str = "", *, billable: bool
) -> ExternalServiceError | None:
    """The error of a run that failed; without a reason it counts as a server error."""
    # `queued` and `in_progress` count as failures here: the HTTP response has ended, so the rest will never arrive.
    error = answer.error
    if answer.status in ANSWERED and (error is NOTHING or bytes(error) == b"null"):
        return None
    status = answer.status or name.partition(".")[2]
    if is_something(error) or status in FAILED:
        document = document_of(bytes(error)) if is_something(error) else {}
        parsed = parse_error(200, headers, {"error": document})
        return wire.error(replace(parsed, request_id=parsed.request_id or answer.id), billable=billable)
    parsed_end = failure_of(answer.stop_reason)
    return None if parsed_end is None else wire.error(parsed_end, billable=True)
