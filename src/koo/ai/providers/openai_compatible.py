"""All services with chat completions (`POST /chat/completions`): vLLM, llama.cpp, Ollama, OpenRouter, Groq, ...

They agree on requests and responses, less on usage, and not at all on errors. So the usage is requested; if it is
missing, it is estimated and marked as such. A finish reason counts as the end if `[DONE]` is missing. Every response
and every chunk is checked for an error, because many servers send errors with status 200. OpenRouter reports the cost
of a call, which is used instead of koo's own computation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar
from urllib.parse import urlsplit

import msgspec

from koo.ai.providers.adapter import Adapter, Vendor
from koo.ai.providers.base import Completion, CompletionChunk, Request
from koo.ai.providers.ends import OUTCOMES
from koo.ai.providers.faults import FaultTable, Row
from koo.ai.providers.openai import FAULTS as OPENAI_FAULTS
from koo.ai.providers.openai import check_models
from koo.ai.providers.openai_errors import read_error
from koo.ai.providers.streaming import Reader
from koo.ai.providers.transport import NOTHING, complete_usage, is_something
from koo.ai.providers.usage import CostFields, Count, ToolUse, reported_usd, usage_from, web_searches
from koo.ai.types import Usage
from koo.errors import ExternalServiceError, Kind
from koo.http.client import HttpResponse
from koo.http.events import ServerSentEvent

FAULTS = FaultTable(
    "openai_compatible",
    (
        # OpenRouter uses 402 and 403 for five cases, which only its metadata distinguishes.
        Row(
            Kind.THROTTLED,
            ("in_flight_budget_exhausted", "openrouter_in_flight_budget"),
            sentence="the calls in progress use up the account's budget",
        ),
        Row(
            Kind.TOO_LARGE,
            "weight_exceeds_budget",
            sentence="this one request may cost more than the account allows: lower max_tokens",
        ),
        Row(Kind.BILLING, "openrouter_credits", 402),
        Row(
            Kind.QUOTA,
            ("openrouter_key_limit", "openrouter_guardrail_budget", "openrouter_workspace_budget"),
            (402, 403),
        ),
        Row(Kind.CONTENT_POLICY, "moderation", 403),
        # llama.cpp.
        Row(Kind.CONTEXT_LENGTH, "exceed_context_size_error"),
        Row(Kind.OVERLOADED, "unavailable_error", sentence="it is still loading the model"),
        Row(Kind.INVALID_REQUEST, "validation"),  # TGI, inside a stream
        # Most servers imitate OpenAI's codes too.
        *OPENAI_FAULTS.rows,
    ),
)


# ── the wire ──────────────────────────────────────────────────────────────────────────────────────────────────────────


PATH = "/chat/completions"
NEW_NAME = "max_completion_tokens"


class _Message(msgspec.Struct):
    role: str
    content: str


class _StreamOptions(msgspec.Struct):
    include_usage: bool


USAGE_TOO = _StreamOptions(include_usage=True)


class _Body(msgspec.Struct, omit_defaults=True):
    model: str
    messages: list[_Message]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: Count = None
    cache_write_tokens: Count = None
    cache_creation_tokens: Count = None
    cache_creation_input_tokens: Count = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: Count = None


class _Usage(CostFields):
    prompt_tokens: Count = None
    completion_tokens: Count = None
    total_tokens: Count = None
    reasoning_tokens: Count = None
    cached_tokens: Count = None  # Moonshot
    num_cached_tokens: Count = None  # Mistral
    prompt_cache_hit_tokens: Count = None  # DeepSeek
    cache_read_input_tokens: Count = None  # gateways in front of Anthropic
    cache_creation_input_tokens: Count = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    server_tool_use: ToolUse | None = None  # gateways in front of Anthropic
    num_search_queries: Count = None  # Perplexity


class _Part(msgspec.Struct, frozen=True):
    type: str = ""
    text: str | None = None


class _Reply(msgspec.Struct, frozen=True):
    content: str | list[_Part] | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    """A response's `message`, or a chunk's `delta`; `text` is from the older completions format."""

    message: _Reply | None = None
    delta: _Reply | None = None
    text: str | None = None
    finish_reason: str | None = None
    usage: _Usage | None = None  # Moonshot
    error: msgspec.Raw = NOTHING


class _Groq(msgspec.Struct):
    usage: _Usage | None = None


class _Timings(msgspec.Struct):
    """llama.cpp's report with each chunk, on request: tokens read, taken from its cache, and written so far."""

    prompt_n: int = 0
    cache_n: int = 0
    predicted_n: int = 0


class _Answer(msgspec.Struct):
    """A complete response, or a chunk of a stream."""

    choices: list[_Choice] | None = None
    model: str | None = None
    id: str | None = None
    usage: _Usage | None = None
    service_tier: str | None = None
    x_groq: _Groq | None = None
    timings: _Timings | None = None
    error: msgspec.Raw = NOTHING


NO_REPLY, NO_CHOICE = _Reply(), _Choice()
_encode = msgspec.json.Encoder().encode
_answer = msgspec.json.Decoder(_Answer)


class _Reader(Reader):
    shapes: ClassVar = {"": _answer}

    def read(self, event: ServerSentEvent) -> CompletionChunk | None:
        data = event.data
        if data.startswith(b"[DONE]"):
            return self._done()
        # llama.cpp and others name the event "error" and put the error's fields at the top level.
        if event.event == "error":
            raise self._fault(data)
        return self.take("", _answer.decode(data), data)

    def take(self, name: str, told: _Answer, data: bytes) -> CompletionChunk | None:
        choice = told.choices[0] if told.choices else NO_CHOICE
        # A document with none of the format's fields decodes without an error, because all of them have defaults. It
        # may be a keep-alive or an error in a flat format.
        if choice is NO_CHOICE and told.usage is None and told.id is None and not is_something(told.error):
            if told.error is NOTHING:
                self._skip(data)
            return None
        reply = choice.delta or NO_REPLY
        text, thought = _text(reply), _thought(reply)
        # Some servers send the complete message in the last chunk, in addition to the deltas. Only text that has not
        # arrived yet may be yielded.
        if not text and (choice.message is not None or choice.text):
            text = choice.text or self._rest_of(_text(choice.message or NO_REPLY))
        if choice.finish_reason is not None or self.stop_reason is not None:
            self._stops(choice.finish_reason, text or thought)
        # Reasoning is collected too: it is billed, and an estimate of missing usage has to include it.
        if text or thought:
            self._texts.append(text or thought)
        usage = self._usage(told)
        failure = self._failure(told, choice, data)
        # A failure with text or a usage is passed on as a piece, because that part is billed.
        if failure is not None and not (text or thought or usage):
            raise failure
        first, self._begun = not self._begun, True
        if not (first or text or thought or usage):
            return None
        return CompletionChunk(
            text=text or thought,
            reasoning=not text and bool(thought),
            model=told.model if first else None,
            usage=usage,
            input_counted=usage is not None and _counts_prompt(told),
            request_id=(self.headers.get("x-request-id") or told.id) if first else None,
            cost_usd=reported_usd(told.usage),
            tier=told.service_tier,
            units=_units(told.usage) if told.usage else None,
            pace=self.wire.pace(self.headers) if first else (),
            error=failure,
        )

    def _failure(self, told: _Answer, choice: _Choice, data: bytes) -> ExternalServiceError | None:
        """The error in the chunk, in its choice, or in its finish reason, if any."""
        for error in (told.error, choice.error):
            if error is not NOTHING and is_something(error):
                return self.wire.told(self.headers, error, data, billable=self._begun)
        return self._failed_end()

    def _usage(self, chunk: _Answer) -> Usage | None:
        # A usage that has only zeros reports nothing. If it were taken as final, the answer would be booked as free.
        told = _usage_in(chunk)
        if told is None:
            return None if chunk.timings is None else usage_so_far(chunk.timings)
        usage = usage_of(told)
        self._usage_told = True
        self._written = self._written or usage.output_tokens > 0
        return usage

    def _fault(self, data: bytes) -> ExternalServiceError:
        parsed = read_error(200, self.headers, data)
        return self._error(parsed) if parsed.shaped else self.wire.unreadable("an error in an unknown format")


class OpenAICompatibleProvider(Adapter):
    """A server with OpenAI's chat completions.

    `base_url` is the URL including `/v1`, which is added if there is no path.
    """

    own_path = PATH
    shape = _answer
    reader = _Reader
    vendor = Vendor(FAULTS, read_error)
    has_two_names = True

    @staticmethod
    def address(base_url: str) -> str:
        return base_url if urlsplit(base_url).path else base_url + "/v1"

    def _completion(self, request: Request, response: HttpResponse, answer: _Answer) -> Completion:
        choice = answer.choices[0] if answer.choices else NO_CHOICE
        # Some servers put the answer of a request without `stream` into `delta`, as in a chunk.
        reply, reason = choice.message or choice.delta or NO_REPLY, choice.finish_reason
        text, cost_usd = _text(reply) or choice.text or "", reported_usd(answer.usage)
        usage, units = usage_of(answer.usage), _units(answer.usage) if answer.usage else None
        if not text or reason not in OUTCOMES or answer.error is not NOTHING or choice.error is not NOTHING:
            error = choice.error if is_something(choice.error) else answer.error
            self._wire.judge(response, error, text, reason, usage)
            if choice is NO_CHOICE:
                raise self._wire.no_answer(response, "a response without choices")
        if not (usage.input_tokens and usage.output_tokens):
            usage = complete_usage(usage, request, text + _thought(reply), cost_usd)
        return Completion(
            text=text,
            model=answer.model or request.model,
            usage=usage,
            stop_reason=reason,
            request_id=response.headers.get("x-request-id") or answer.id,
            cost_usd=cost_usd,
            tier=answer.service_tier,
            units=units,
            pace=self._wire.pace(response.headers),
        )

    async def check(self) -> None:
        """Request the list of models, which is never billed. Raises `ExternalServiceError`.

        A server without such a list passes the check too.
        """
        # OpenRouter lists its models to anyone; only `/key` checks the key.
        path = "/key" if self._wire.host.endswith("openrouter.ai") else "/models"
        try:
            await check_models(self._wire, path)
        except ExternalServiceError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise

    def encode(self, request: Request, *, stream: bool) -> bytes:
        """The request's body, in the form that the model accepts."""
        request, form = self._forms.fit(request), self._forms.of(request.model)
        messages = [_Message("user", request.prompt)]
        if request.system is not None:
            messages.insert(0, _Message("system", request.system))
        # OpenAI's newer models reject `max_tokens`, and most other servers ignore or reject `max_completion_tokens`. An
        # ignored limit would be the worst case: the answer could cost more than its hold.
        is_openai = self._wire.host.endswith(("api.openai.com", ".openai.azure.com"))
        stream = stream if form.stream is None else form.stream
        by_new_name = is_openai if form.tokens_name is None else form.tokens_name == NEW_NAME
        return _encode(
            _Body(
                model=request.model,
                messages=messages,
                max_tokens=None if by_new_name else request.max_tokens,
                max_completion_tokens=request.max_tokens if by_new_name else None,
                temperature=request.temperature,
                stream=stream,
                stream_options=USAGE_TOO if stream and "stream_options" not in form.without else None,
            )
        )


def usage_of(usage: _Usage | None) -> Usage:
    """Tokens by class."""
    usage = usage or _Usage()
    details = usage.prompt_tokens_details or _PromptDetails()
    output = usage.completion_tokens_details or _OutputDetails()
    return usage_from(
        read=usage.prompt_tokens,
        written=usage.completion_tokens,
        total=usage.total_tokens,
        cached=(
            details.cached_tokens,
            usage.cached_tokens,
            usage.num_cached_tokens,
            usage.prompt_cache_hit_tokens,
            usage.cache_read_input_tokens,
        ),
        into_cache=(
            details.cache_write_tokens,
            details.cache_creation_tokens,
            details.cache_creation_input_tokens,
            usage.cache_creation_input_tokens,
        ),
        reasoning=(output.reasoning_tokens, usage.reasoning_tokens),
    )


def _units(usage: _Usage) -> Mapping[str, int] | None:
    if usage.server_tool_use is None:
        return web_searches(usage.num_search_queries) if usage.num_search_queries else None
    return web_searches(usage.server_tool_use.web_search_requests, usage.num_search_queries)


def usage_so_far(timings: _Timings) -> Usage:
    """The counts up to a chunk, used if the caller stops before the end."""
    return Usage(
        input_tokens=timings.prompt_n,
        cache_read_tokens=timings.cache_n,
        output_tokens=timings.predicted_n,
    )


def _thought(reply: _Reply) -> str:
    return reply.reasoning_content or reply.reasoning or ""


def _usage_in(chunk: _Answer) -> _Usage | None:
    """The usage in a chunk, wherever the vendor puts it."""
    if _told(chunk.usage):
        return chunk.usage
    for one in (chunk.x_groq, chunk.choices[0] if chunk.choices else None):
        if one is not None and _told(one.usage):
            return one.usage
    return None


def _counts_prompt(chunk: _Answer) -> bool:
    """Whether the chunk reports the prompt's tokens; a count that arrives in mid-stream is final."""
    usage = _usage_in(chunk)
    return usage is not None and bool(usage.prompt_tokens)


def _told(usage: _Usage | None) -> bool:
    """Whether the usage contains any number: some servers send an object of nulls or zeros."""
    return usage is not None and bool(usage.prompt_tokens or usage.completion_tokens or usage.total_tokens)


def _text(reply: _Reply) -> str:
    content = reply.content
    if isinstance(content, str):
        return content or reply.refusal or ""
    return "".join(part.text or "" for part in content) if content else reply.refusal or ""
