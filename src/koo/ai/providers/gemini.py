"""Google's Gemini API: `generateContent` and `streamGenerateContent?alt=sse`.

The key is sent in the header `x-goog-api-key` and never in the URL, which proxies write to their logs. The model's name
is part of the path, and is quoted.

Usage: thoughts are counted separately from the answer but billed with it, and `maxOutputTokens` limits both together.
Cached tokens are part of the prompt's count. A stream reports the usage so far with each chunk and has no end event:
it is complete if a chunk contained a stop reason, and cut if none did. A blocked prompt or answer has status 200 and a
stop reason that says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar
from urllib.parse import quote

import msgspec

from koo.ai.providers.adapter import Adapter, Vendor
from koo.ai.providers.base import Completion, CompletionChunk, Request
from koo.ai.providers.ends import OUTCOMES
from koo.ai.providers.gemini_errors import FAULTS
from koo.ai.providers.openai_errors import read_error
from koo.ai.providers.streaming import Reader
from koo.ai.providers.transport import NOTHING, complete_usage, is_something
from koo.ai.providers.usage import Count, count_of, searches_of, web_searches
from koo.ai.types import Usage
from koo.http.client import HttpResponse
from koo.http.events import ServerSentEvent

BASE_URL = "https://generativelanguage.googleapis.com/v1"


# ── the wire ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Part(msgspec.Struct, omit_defaults=True):
    text: str | None = None
    thought: bool | None = None


class _Content(msgspec.Struct, omit_defaults=True):
    parts: list[_Part] | None = None
    role: str | None = None


class _Config(msgspec.Struct, rename="camel", omit_defaults=True):
    max_output_tokens: int
    temperature: float | None = None


class _Body(msgspec.Struct, rename="camel", omit_defaults=True):
    contents: list[_Content]
    generation_config: _Config
    system_instruction: _Content | None = None


class _Grounding(msgspec.Struct, rename="camel"):
    web_search_queries: list[str] | None = None


class _Candidate(msgspec.Struct, rename="camel"):
    content: _Content | None = None
    finish_reason: str | None = None
    grounding_metadata: _Grounding | None = None


class _Feedback(msgspec.Struct, rename="camel"):
    block_reason: str | None = None


class _Usage(msgspec.Struct, rename="camel"):
    prompt_token_count: Count = None
    cached_content_token_count: Count = None
    tool_use_prompt_token_count: Count = None
    candidates_token_count: Count = None
    thoughts_token_count: Count = None
    total_token_count: Count = None


class _Answer(msgspec.Struct, rename="camel"):
    """A complete response, or a chunk of a stream."""

    candidates: list[_Candidate] | None = None
    prompt_feedback: _Feedback | None = None
    usage_metadata: _Usage | None = None
    model_version: str | None = None
    response_id: str | None = None
    error: msgspec.Raw = NOTHING

    @property
    def candidate(self) -> _Candidate | None:
        return self.candidates[0] if self.candidates else None

    @property
    def stop_reason(self) -> str | None:
        """Why the model stopped, or why the prompt was blocked."""
        candidate, feedback = self.candidate, self.prompt_feedback
        reason = candidate.finish_reason if candidate is not None else None
        return reason or (feedback.block_reason if feedback is not None else None)


NO_USAGE = Usage()
_encode = msgspec.json.Encoder().encode
_answer = msgspec.json.Decoder(_Answer)


class _Reader(Reader):
    shapes: ClassVar = {"": _answer}

    def read(self, event: ServerSentEvent) -> CompletionChunk | None:
        return self.take("", _answer.decode(event.data), event.data)

    def take(self, name: str, told: _Answer, data: bytes) -> CompletionChunk | None:
        usage = usage_of(told.usage_metadata) if told.usage_metadata else None
        if told.error is not NOTHING and is_something(told.error):
            error = self._error(read_error(200, self.headers, data))
            # An error with a usage is passed on as a piece, because the tokens up to it are billed.
            if usage is None:
                raise error
            return CompletionChunk(usage=usage, error=error)
        # All fields have defaults, so any JSON object decodes. One without content is a keep-alive.
        if usage is None and told.candidate is None and told.stop_reason is None:
            if told.error is NOTHING:
                self._skip(data)
            return None
        text, thought = _text(told.candidate, thought=False), _text(told.candidate, thought=True)
        self._stops(told.stop_reason, text or thought)
        if usage is not None:
            self._usage_told = True
            self._written = self._written or usage.output_tokens > 0
        # Thoughts are collected too: they are billed, and an estimate of missing usage has to include them.
        if text or thought:
            self._texts.append(text or thought)
        first, self._begun = not self._begun, True
        return CompletionChunk(
            text=text or thought,
            reasoning=not text and bool(thought),
            model=told.model_version if first else None,
            request_id=told.response_id if first else None,
            usage=usage,
            input_counted=True,
            units=_units(told.candidate, self.request.model),
            stop_reason=told.stop_reason,
            # Google sends no such headers, but gateways in front of it do.
            pace=self.wire.pace(self.headers) if first else (),
            error=self._failed_end(),
        )


class GeminiProvider(Adapter):
    """A service with Google's Gemini API.

    `base_url` is the URL including `/v1` (or `/v1beta`, which has more models); `/v1` is added if there is no version.
    """

    shape = _answer
    reader = _Reader
    vendor = Vendor(FAULTS, read_error, BASE_URL, "/models?pageSize=1")

    @staticmethod
    def address(base_url: str) -> str:
        return base_url if re.search(r"/v\d+\w*$", base_url) else base_url + "/v1"

    @staticmethod
    def headers(api_key: str | None) -> dict[str, str]:
        return {} if api_key is None else {"x-goog-api-key": api_key}

    def _completion(self, request: Request, response: HttpResponse, answer: _Answer) -> Completion:
        text, reason = _text(answer.candidate, thought=False), answer.stop_reason
        usage = usage_of(answer.usage_metadata) if answer.usage_metadata else NO_USAGE
        if not text or reason not in OUTCOMES or answer.error is not NOTHING:
            self._wire.judge(response, answer.error, text, reason, usage)
            if answer.candidate is None and reason is None:
                raise self._wire.no_answer(response, "a response without candidates")
        if not (usage.input_tokens and usage.output_tokens):
            usage = complete_usage(usage, request, text)
        return Completion(
            text=text,
            model=answer.model_version or request.model,
            usage=usage,
            stop_reason=reason,
            request_id=answer.response_id,
            units=_units(answer.candidate, request.model),
            pace=self._wire.pace(response.headers),
        )

    def path(self, request: Request, *, stream: bool) -> str:
        """The path, which contains the model."""
        if stream:
            return path_of(request.model, "streamGenerateContent") + "?alt=sse"
        return path_of(request.model, "generateContent")

    def encode(self, request: Request, *, stream: bool) -> bytes:
        """The request's body."""
        return encode(self._forms.fit(request))


def path_of(model: str, method: str) -> str:
    """The path for a model and a method."""
    # Callers choose the model's name. Unquoted, `x/../../other?y=` would turn it into another path or a query.
    # The prefixes are those of Google's own names ("tunedModels/…"); any other slash is part of the name.
    collection, slash, name = model.partition("/")
    if not slash or collection not in {"models", "tunedModels"}:
        collection, name = "models", model
    return f"/{collection}/{quote(name, safe='', errors='replace')}:{method}"


def encode(request: Request) -> bytes:
    """The request's body; the path decides whether the response is a stream."""
    system = request.system
    return _encode(
        _Body(
            contents=[_Content([_Part(request.prompt)], "user")],
            generation_config=_Config(request.max_tokens, request.temperature),
            system_instruction=_Content([_Part(system)]) if system is not None else None,
        )
    )


def usage_of(usage: _Usage) -> Usage:
    """Disjoint token counts. Whatever the total has beyond its parts is output: some models leave out the thoughts."""
    read = count_of(usage.prompt_token_count) + count_of(usage.tool_use_prompt_token_count)
    cached = min(read, count_of(usage.cached_content_token_count))
    thoughts = count_of(usage.thoughts_token_count)
    return Usage(
        input_tokens=read - cached,
        cache_read_tokens=cached,
        output_tokens=max(
            count_of(usage.candidates_token_count) + thoughts, count_of(usage.total_token_count) - read
        ),
        reasoning_tokens=thoughts,
    )


def _units(candidate: _Candidate | None, model: str) -> Mapping[str, int] | None:
    grounding = candidate.grounding_metadata if candidate is not None else None
    return web_searches(searches_of(grounding.web_search_queries, model)) if grounding is not None else None


def _text(candidate: _Candidate | None, *, thought: bool) -> str:
    parts = candidate.content.parts if candidate is not None and candidate.content is not None else None
    return "".join(part.text or "" for part in parts or () if bool(part.thought) is thought)
