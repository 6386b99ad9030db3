"""The Responses format (`POST /responses`): OpenAI's own, and Perplexity's for its agents.

Both say how a run ended in `status`, also inside a 200, and count alike; what they call the cache's tokens differs, and
Perplexity adds a price. A stream ends with exactly one of completed, incomplete, failed, cancelled, or an `error`.
Text that came in no delta stands in the final answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from decimal import Decimal

import msgspec

from koo.ai.providers.adapter import Adapter
from koo.ai.providers.base import Completion, CompletionChunk, Request
from koo.ai.providers.headers import openai_pace
from koo.ai.providers.openai_errors import parse_error, read_error
from koo.ai.providers.streaming import Reader, read_stream
from koo.ai.providers.transport import Wire, estimate_usage, name_of
from koo.ai.providers.usage import Count, usage_from
from koo.ai.types import Usage
from koo.errors import ExternalServiceError
from koo.http import ServerSentEvent

PATH = "/responses"
ANSWERED = ("completed", "incomplete")


class Body(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A request. What has no default is always sent, false included."""

    model: str
    input: str
    max_output_tokens: int
    store: bool
    instructions: str | None = None
    temperature: float | None = None
    stream: bool = False


class _InputDetails(msgspec.Struct):
    cached_tokens: Count = None  # these two are OpenAI's names
    cache_write_tokens: Count = None
    cache_read_input_tokens: Count = None  # and these Perplexity's
    cache_creation_input_tokens: Count = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: Count = None


class _Cost(msgspec.Struct):
    total_cost: Decimal | None = None
    currency: str = "USD"


class _Usage(msgspec.Struct):
    input_tokens: Count = None
    output_tokens: Count = None
    total_tokens: Count = None
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None
    cost: _Cost | None = None


class _Part(msgspec.Struct):
    text: str | None = None
    refusal: str | None = None


class _Item(msgspec.Struct):
    type: str
    content: list[_Part] | str | None = None


class _Incomplete(msgspec.Struct):
    reason: str | None = None


class _Failure(msgspec.Struct):
    message: str | None = None
    type: str | None = None
    code: str | int | None = None


class _Answer(msgspec.Struct):
    model: str
    status: str
    output: list[_Item]
    id: str | None = None
    usage: _Usage | None = None
    error: _Failure | None = None
    incomplete_details: _Incomplete | None = None

    @property
    def text(self) -> str:
        return "".join(
            part.text or part.refusal or ""
            for item in self.output
            if item.type == "message" and isinstance(item.content, list)
            for part in item.content
        )

    @property
    def stop_reason(self) -> str:
        incomplete = self.incomplete_details
        return incomplete.reason if incomplete is not None and incomplete.reason else self.status


class _Delta(msgspec.Struct):
    delta: str = ""


class _Thought(msgspec.Struct):
    thought: str | None = None


class _BegunResponse(msgspec.Struct):
    model: str | None = None
    id: str | None = None


class _Begun(msgspec.Struct):
    response: _BegunResponse | None = None


class _Ended(msgspec.Struct):
    response: _Answer | None = None
    error: _Failure | None = None


encode_body = msgspec.json.Encoder().encode
_answer = msgspec.json.Decoder(_Answer)
_delta = msgspec.json.Decoder(_Delta)
_thought = msgspec.json.Decoder(_Thought)
_begun = msgspec.json.Decoder(_Begun)
_ended = msgspec.json.Decoder(_Ended)


class ResponsesAdapter(Adapter):
    """A service that speaks the Responses format; a vendor may send more in a request."""

    def encode(self, request: Request, *, stream: bool) -> bytes:
        """The request's body."""
        body = Body(
            model=request.model,
            input=request.prompt,
            max_output_tokens=request.max_tokens,
            store=False,
            instructions=request.system,
            temperature=request.temperature,
            stream=stream,
        )
        return encode_body(body)

    async def complete(self, request: Request) -> Completion:
        """Ask once. Raises `ExternalServiceError`."""
        wire = self._wire
        response = await wire.request("POST", PATH, self.encode(request, stream=False))
        answer = wire.decode(response, _answer)
        if answer.status not in ANSWERED:
            billable = answer.usage is not None
            raise _failure(wire, response.headers, answer.error, answer.id, billable=billable)
        return Completion(
            text=answer.text,
            model=answer.model,
            usage=usage_of(answer.usage) if answer.usage else estimate_usage(request, answer.text),
            stop_reason=answer.stop_reason,
            request_id=response.headers.get("x-request-id") or answer.id,
            cost_usd=cost_of(answer.usage),
            pace=openai_pace(response.headers),
        )

    def stream(self, request: Request) -> AsyncGenerator[CompletionChunk, None]:
        """Ask once, and give the pieces as they come. Raises `ExternalServiceError`."""
        return read_stream(self._wire, PATH, self.encode(request, stream=True), request, _Reader)


class _Reader(Reader):
    def read(self, event: ServerSentEvent) -> CompletionChunk | None:
        match name_of(event):
            case "response.output_text.delta" | "response.refusal.delta":
                text = _delta.decode(event.data).delta
                self._begun = True
                self._texts.append(text)
                return CompletionChunk(text=text)
            case "response.reasoning_text.delta" | "response.reasoning_summary_text.delta":
                self._begun = True
                return CompletionChunk(text=_delta.decode(event.data).delta, reasoning=True)
            case "response.created":
                return self._begin(_begun.decode(event.data).response or _BegunResponse())
            case "response.completed" | "response.incomplete":
                ended = _ended.decode(event.data)
                nothing = ended.response is None and ended.error is None
                return CompletionChunk(final=True) if nothing else self._end(ended)
            case "response.failed" | "response.cancelled":
                return self._end(_ended.decode(event.data))
            case "error" | "":
                self._fail(event.data)
                return None
            case name if name.startswith("response.reasoning."):
                # Searches are among them, and are paid for.
                self._begun = True
                return CompletionChunk(text=_thought.decode(event.data).thought or "", reasoning=True)
            case _:  # Items and parts that begin and end, and what may be added: no content.
                return None

    def _fail(self, data: bytes) -> None:
        """Raise the error that an `error` event is, or an event without a name that holds one."""
        parsed = read_error(200, self._headers, data)
        if parsed.shaped:
            raise self._error(parsed)

    def _begin(self, response: _BegunResponse) -> CompletionChunk:
        request_id = self._headers.get("x-request-id") or response.id
        return CompletionChunk(model=response.model, request_id=request_id, pace=openai_pace(self._headers))

    def _end(self, ended: _Ended) -> CompletionChunk:
        answer = ended.response
        if answer is None or answer.status not in ANSWERED:
            error = ended.error or (answer.error if answer is not None else None)
            run = answer.id if answer is not None else None
            billable = self._begun or (answer is not None and answer.usage is not None)
            failure = _failure(self._wire, self._headers, error, run, billable=billable)
            if answer is None or answer.usage is None:
                raise failure
            return CompletionChunk(
                usage=usage_of(answer.usage), cost_usd=cost_of(answer.usage), error=failure
            )
        text, seen = answer.text, "".join(self._texts)
        return CompletionChunk(
            final=True,
            text=text[len(seen) :] if text.startswith(seen) else "",
            model=answer.model,
            usage=usage_of(answer.usage) if answer.usage else None,
            cost_usd=cost_of(answer.usage),
            stop_reason=answer.stop_reason,
        )


def usage_of(usage: _Usage) -> Usage:
    """Tokens by class, made disjoint: what came from or went to the cache is a part of what was read."""
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


def cost_of(usage: _Usage | None) -> Decimal | None:
    """What the provider says that it bills, where it says so."""
    cost = usage.cost if usage is not None else None
    if cost is None or cost.total_cost is None or cost.currency != "USD":
        return None
    return cost.total_cost if cost.total_cost.is_finite() and cost.total_cost >= 0 else None


def _failure(
    wire: Wire, headers: Mapping[str, str], error: _Failure | None, run: str | None, *, billable: bool
) -> ExternalServiceError:
    """A run that ended otherwise than with an answer; without a reason it is the server's error."""
    parsed = parse_error(200, headers, {"error": msgspec.to_builtins(error or _Failure())})
    return wire.error(replace(parsed, request_id=parsed.request_id or run), billable=billable)
