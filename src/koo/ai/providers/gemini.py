"""Gemini: Google's `generateContent` and `streamGenerateContent?alt=sse`, and what its errors mean.

The key goes in the header `x-goog-api-key`, never into the URL, where every log on the way would keep it; the model's
name is a part of the path, and so is quoted.

Usage: what was thought stands beside what was said and is billed with it, and `maxOutputTokens` bounds both together.
What came from the cache is a part of the prompt's count. A stream says after each chunk what was used so far, and has
no end of its own: it is whole if a chunk named a reason for stopping, and cut if none did. A blocked prompt or answer
is a success whose stop reason says so.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from urllib.parse import quote

import msgspec

from koo.ai.providers.adapter import Adapter, Vendor
from koo.ai.providers.base import Completion, CompletionChunk, Request
from koo.ai.providers.gemini_errors import FAULTS
from koo.ai.providers.openai_errors import read_error
from koo.ai.providers.streaming import Reader, read_stream
from koo.ai.providers.transport import estimate_usage
from koo.ai.providers.usage import Count, count_of
from koo.ai.types import Usage
from koo.http import ServerSentEvent

BASE_URL = "https://generativelanguage.googleapis.com/v1"


# ── the wire ──────────────────────────────────────────────────────────────────────────────────────────────────────────


NOTHING = msgspec.Raw(b"")


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


class _Candidate(msgspec.Struct, rename="camel"):
    content: _Content | None = None
    finish_reason: str | None = None


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
    """A whole answer, or a chunk of a streamed one."""

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
        """Why the model stopped, or why the prompt was not answered at all."""
        candidate, feedback = self.candidate, self.prompt_feedback
        reason = candidate.finish_reason if candidate is not None else None
        return reason or (feedback.block_reason if feedback is not None else None)


_encode = msgspec.json.Encoder().encode
_answer = msgspec.json.Decoder(_Answer)


class GeminiProvider(Adapter):
    """A service that speaks Google's Gemini API.

    `base_url` is the address with its `/v1` (or `/v1beta`, which knows more models); one without a version gets `/v1`.
    """

    vendor = Vendor(FAULTS, read_error, BASE_URL, "/models?pageSize=1")

    @staticmethod
    def address(base_url: str) -> str:
        return base_url if re.search(r"/v\d+\w*$", base_url) else base_url + "/v1"

    @staticmethod
    def headers(api_key: str | None) -> dict[str, str]:
        return {} if api_key is None else {"x-goog-api-key": api_key}

    async def complete(self, request: Request) -> Completion:
        """Ask once. Raises `ExternalServiceError`."""
        wire = self._wire
        response = await wire.request("POST", path_of(request.model, "generateContent"), encode(request))
        answer = wire.decode(response, _answer)
        if answer.candidate is None and answer.stop_reason is None:
            raise wire.no_answer(response, "an answer without candidates")
        text = _text(answer.candidate, thought=False)
        usage = answer.usage_metadata
        return Completion(
            text=text,
            model=answer.model_version or request.model,
            usage=usage_of(usage) if usage else estimate_usage(request, text),
            stop_reason=answer.stop_reason,
            request_id=answer.response_id,
        )

    def stream(self, request: Request) -> AsyncGenerator[CompletionChunk, None]:
        """Ask once, and give the pieces as they come. Raises `ExternalServiceError`."""
        path = path_of(request.model, "streamGenerateContent") + "?alt=sse"
        return read_stream(self._wire, path, encode(request), request, _Reader)


class _Reader(Reader):
    def read(self, event: ServerSentEvent) -> CompletionChunk | None:
        chunk = _answer.decode(event.data)
        if bytes(chunk.error) not in (b"", b"null"):
            error = self._error(read_error(200, self._headers, event.data))
            if chunk.usage_metadata is None:
                raise error
            return CompletionChunk(usage=usage_of(chunk.usage_metadata), error=error)
        self._stop_reason = chunk.stop_reason or self._stop_reason
        usage = chunk.usage_metadata
        self._usage_told = self._usage_told or usage is not None
        text, thought = _text(chunk.candidate, thought=False), _text(chunk.candidate, thought=True)
        if text or thought:
            self._texts.append(text or thought)
        first, self._begun = not self._begun, True
        return CompletionChunk(
            text=text or thought,
            reasoning=not text and bool(thought),
            model=chunk.model_version if first else None,
            request_id=chunk.response_id if first else None,
            usage=usage_of(usage) if usage else None,
            input_counted=True,
            stop_reason=chunk.stop_reason,
        )

    def finish(self) -> CompletionChunk | None:
        """Whole if Google said why it stopped: some models say so in each chunk, so that none is the last by itself."""
        return self._final() if self._stop_reason is not None else None


def path_of(model: str, method: str) -> str:
    """Where a model is asked. Its name is the caller's, and must not become another path or a query."""
    collection, slash, name = model.partition("/")
    if not slash or collection not in {"models", "tunedModels"}:
        collection, name = "models", model
    return f"/{collection}/{quote(name, safe='', errors='replace')}:{method}"


def encode(request: Request) -> bytes:
    """The request's body; whether it streams is said by the path."""
    system = request.system
    return _encode(
        _Body(
            contents=[_Content([_Part(request.prompt)], "user")],
            generation_config=_Config(request.max_tokens, request.temperature),
            system_instruction=_Content([_Part(system)]) if system is not None else None,
        )
    )


def usage_of(usage: _Usage) -> Usage:
    """Tokens by class, made disjoint. What the total has beyond its parts was written: some leave thoughts out."""
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


def _text(candidate: _Candidate | None, *, thought: bool) -> str:
    parts = candidate.content.parts if candidate is not None and candidate.content is not None else None
    return "".join(part.text or "" for part in parts or () if bool(part.thought) is thought)
