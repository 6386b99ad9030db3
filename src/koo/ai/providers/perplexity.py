"""Perplexity: its Agent API (`POST /responses`, OpenAI's Responses format), with one web search before each answer.

Sonar's chat completions ended in September 2026 (docs/decisions tells what was found). An Agent request searches only
if it is given the tool, and may leave it alone; Sonar always searched, and who asks Perplexity wants that, so the
search is forced. `max_steps: 1` is one pass that searches and one that answers: the model reads the prompt twice, and
what was found is read, and paid for, like a prompt. Both are in the bound, with some searches more than one, because a
pass may send several at once.

Every answer says what it cost, searches included, and is believed. A run that failed is a 200 whose `status` says so.
In a stream, data alone carries the events (there is no `event:` line and no `[DONE]`); it ends with exactly one of
completed, incomplete, failed, cancelled, or an `error`. Text that came in no delta stands in the final answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from decimal import Decimal
from urllib.parse import urlsplit

import msgspec

from koo.ai.pricing import SEARCHES_MAX
from koo.ai.providers.base import Completion, Piece, Request
from koo.ai.providers.faults import FaultTable, Row
from koo.ai.providers.headers import openai_pace
from koo.ai.providers.openai import FAULTS as OPENAI_FAULTS
from koo.ai.providers.openai_errors import CONTEXT_WORDS, read_error, said_of
from koo.ai.providers.streaming import read_stream
from koo.ai.providers.transport import Wire, bound_tokens, estimate_usage, name_of
from koo.ai.types import Usage
from koo.clock import SYSTEM_CLOCK, Clock
from koo.errors import ExternalServiceError, Kind
from koo.http import HttpClient, ServerSentEvent

BASE_URL = "https://api.perplexity.ai/v1"

PASSES = 2
"""One that searches, one that answers."""
SEARCH_TOKENS = 4096
"""What one search may bring into the prompt, as we ask for it."""
SEARCH_TOKENS_BOUND = SEARCH_TOKENS * 3 // 2
"""What it may be counted as: titles and addresses stand beside the text, and tokenizers differ."""
PASS_TOKENS = 2048
"""The instructions and the tool's description that Perplexity puts before a pass, and the call itself."""

INVALID = "invalid_request"

FAULTS = FaultTable(
    "perplexity",
    (
        Row(
            Kind.BILLING,
            ("insufficient_quota", "insufficient_credits", "payment_required"),
            sentence="its account has no credits left: see the provider's billing page",
        ),
        Row(Kind.AUTH, "invalid_api_key"),
        # A refused key and an empty account are one status there, and often no more than a page of the web server.
        Row(
            Kind.AUTH,
            status=401,
            sentence="it refuses the API key, or the account has no credits left: see both at the provider",
        ),
        Row(Kind.NOT_FOUND, "chat_completions_not_available"),
        Row(Kind.INVALID_REQUEST, status=403, shaped=False, sentence="something on the way forbids the request"),
        Row(Kind.PERMISSION, "forbidden"),
        Row(Kind.NOT_FOUND, ("invalid_model", "not_found")),
        Row(Kind.TOO_LARGE, "payload_too_large"),
        Row(Kind.THROTTLED, "request_rate_limit_exceeded"),
        Row(Kind.TIMEOUT, "gateway_timeout"),
        Row(Kind.SERVER_ERROR, ("internal_error", "bad_gateway", "upstream_structured_output_failed")),
        # Words refine a refused request, and nothing else.
        Row(Kind.CONTEXT_LENGTH, INVALID, (200, 400, 413, 422), says=CONTEXT_WORDS),
        Row(Kind.INVALID_REQUEST, INVALID, (200, 400, 422)),
        # Other vendors' models answer through it, and their codes come through too.
        *OPENAI_FAULTS.rows,
    ),
)  # fmt: skip


# ── the wire ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Search(msgspec.Struct):
    """The web search, with all its limits sent. Unknown fields are refused there, so none is sent in vain."""

    type: str = "web_search"
    max_tokens: int = SEARCH_TOKENS
    max_tokens_per_page: int = SEARCH_TOKENS // 4


class _Choice(msgspec.Struct):
    type: str = "web_search"


SEARCH, SEARCH_FIRST = _Search(), _Choice()


class _Body(msgspec.Struct, omit_defaults=True):
    model: str
    input: str
    max_output_tokens: int
    store: bool  # These without defaults, so that they are always sent.
    max_steps: int
    tools: list[_Search]
    tool_choice: _Choice
    instructions: str | None = None
    temperature: float | None = None
    stream: bool = False


class _InputDetails(msgspec.Struct):
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Cost(msgspec.Struct):
    total_cost: Decimal | None = None
    currency: str = "USD"


class _Usage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None
    cost: _Cost | None = None


class _Part(msgspec.Struct):
    text: str | None = None


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


_encode = msgspec.json.Encoder().encode
_answer = msgspec.json.Decoder(_Answer)
_delta = msgspec.json.Decoder(_Delta)
_thought = msgspec.json.Decoder(_Thought)
_begun = msgspec.json.Decoder(_Begun)
_ended = msgspec.json.Decoder(_Ended)


class PerplexityProvider:
    """A service that speaks Perplexity's Agent API.

    `base_url` is the address with its `/v1`; one without any path gets it. `api_key` None sends no key.
    """

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
        if urlsplit(base_url).path in ("", "/"):
            base_url = base_url.rstrip("/") + "/v1"
        self._wire = Wire(
            service,
            http,
            base_url=base_url,
            headers={} if api_key is None else {"authorization": f"Bearer {api_key}"},
            table=FAULTS,
            read_error=read_error,
            clock=clock,
        )

    def __repr__(self) -> str:
        return f"<PerplexityProvider {self._wire!r}>"

    def bound_input_tokens(self, request: Request) -> int:
        """UTF-8 bytes of prompt and system in each pass, and what searches may bring."""
        return PASSES * (bound_tokens(request) + PASS_TOKENS) + SEARCHES_MAX * SEARCH_TOKENS_BOUND

    async def complete(self, request: Request) -> Completion:
        """Ask once. Raises `ExternalServiceError`."""
        wire = self._wire
        response = await wire.post("/responses", encode(request))
        answer = wire.decode(response, _answer)
        if answer.status not in ("completed", "incomplete"):
            raise _failure(wire, answer.error, response.headers, billable=answer.usage is not None)
        text = _text(answer.output)
        return Completion(
            text=text,
            model=answer.model,
            usage=usage_of(answer.usage) if answer.usage else estimate_usage(request, text),
            stop_reason=_stop_reason(answer),
            request_id=response.headers.get("x-request-id") or answer.id,
            cost_usd=cost_of(answer.usage),
            pace=openai_pace(response.headers),
        )

    def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Ask once, and give the pieces as they come. Raises `ExternalServiceError`."""
        body = encode(request, stream=True)
        return read_stream(self._wire, "/responses", body, lambda headers: _Reader(self._wire, headers))

    async def check(self) -> None:
        """Ask for the list of models, which is never billed. Raises `ExternalServiceError`."""
        await self._wire.get("/models")

    async def close(self) -> None:
        """Nothing is held: the connections are the client's."""


class _Reader:
    """Events of one stream → pieces."""

    __slots__ = ("_headers", "_parts", "_wire", "_worked")

    def __init__(self, wire: Wire, headers: Mapping[str, str]) -> None:
        self._wire = wire
        self._headers = headers
        self._parts: list[str] = []
        self._worked = False

    def read(self, event: ServerSentEvent) -> Piece | None:
        """A piece, or None for what says nothing. Raises `ExternalServiceError`, or one of `UNREADABLE`."""
        match name_of(event):
            case "response.output_text.delta":
                text = _delta.decode(event.data).delta
                self._worked = True
                self._parts.append(text)
                return Piece(text=text)
            case "response.created":
                return self._begin(_begun.decode(event.data).response or _BegunResponse())
            case "response.completed" | "response.incomplete" | "response.failed" | "response.cancelled":
                return self._end(_ended.decode(event.data))
            case "error":
                said = read_error(200, self._headers, event.data)
                raise self._wire.told(said, billable=self._worked)
            case name if name.startswith("response.reasoning."):
                # Searches are among them, and are paid for.
                self._worked = True
                return Piece(text=_thought.decode(event.data).thought or "", reasoning=True)
            case _:  # Items that begin and end, and what Perplexity may add: no content.
                return None

    def finish(self) -> Piece | None:
        """Perplexity always says how a run ended: a stream without it was cut."""
        return None

    def _begin(self, response: _BegunResponse) -> Piece:
        request_id = self._headers.get("x-request-id") or response.id
        return Piece(model=response.model, request_id=request_id, pace=openai_pace(self._headers))

    def _end(self, ended: _Ended) -> Piece:
        answer = ended.response
        if answer is None and ended.error is None:
            return Piece(final=True)
        if answer is None or answer.status not in ("completed", "incomplete"):
            error = ended.error or (answer.error if answer is not None else None)
            raise _failure(self._wire, error, self._headers, billable=self._worked)
        text, told = _text(answer.output), "".join(self._parts)
        return Piece(
            final=True,
            text=text[len(told) :] if text.startswith(told) else "",
            model=answer.model,
            usage=usage_of(answer.usage) if answer.usage else None,
            cost_usd=cost_of(answer.usage),
            stop_reason=_stop_reason(answer),
        )


def encode(request: Request, *, stream: bool = False) -> bytes:
    """The request's body."""
    return _encode(
        _Body(
            model=request.model,
            input=request.prompt,
            max_output_tokens=request.max_tokens,
            store=False,
            max_steps=1,
            tools=[SEARCH],
            tool_choice=SEARCH_FIRST,
            instructions=request.system,
            temperature=request.temperature,
            stream=stream,
        )
    )


def usage_of(usage: _Usage) -> Usage:
    """Tokens by class, made disjoint: what came from or went to the cache is a part of what was read."""
    details = usage.input_tokens_details or _InputDetails()
    output = usage.output_tokens_details or _OutputDetails()
    cached = max(0, details.cache_read_input_tokens or 0)
    written = max(0, details.cache_creation_input_tokens or 0)
    return Usage(
        input_tokens=max(0, usage.input_tokens - cached - written),
        cache_read_tokens=cached,
        cache_write_tokens=written,
        output_tokens=max(0, usage.output_tokens),
        reasoning_tokens=max(0, output.reasoning_tokens or 0),
    )


def cost_of(usage: _Usage | None) -> Decimal | None:
    """What Perplexity says that it bills, searches included."""
    cost = usage.cost if usage is not None else None
    if cost is None or cost.total_cost is None or cost.currency != "USD":
        return None
    return cost.total_cost if cost.total_cost.is_finite() and cost.total_cost >= 0 else None


def _failure(
    wire: Wire, error: _Failure | None, headers: Mapping[str, str], *, billable: bool
) -> ExternalServiceError:
    """A run that ended otherwise than with an answer; without a reason it is the server's error."""
    document = {"error": msgspec.to_builtins(error or _Failure())}
    return wire.told(said_of(200, headers, document), billable=billable)


def _text(items: list[_Item]) -> str:
    return "".join(
        part.text or ""
        for item in items
        if item.type == "message" and isinstance(item.content, list)
        for part in item.content
    )


def _stop_reason(answer: _Answer) -> str:
    incomplete = answer.incomplete_details
    return incomplete.reason if incomplete is not None and incomplete.reason else answer.status
