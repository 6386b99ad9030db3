"""How OpenAI and everybody who imitates it tells an error, and which words mean that a prompt is too long.

{"error": {"message", "type", "param", "code"}}           OpenAI, vLLM, llama.cpp (code: a string or a status)
{"error": {"code": 402, "message", "metadata": {...}}}    OpenRouter
{"error": "model 'x' not found"}                          Ollama: a string, not an object
{"object": "error", "message", "type", "code"}            older vLLM: flat
{"type": "error", "code", "message"}                      the Responses API, inside a stream
{"code": 500, "message", "type"}                          older llama.cpp, inside a stream
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from koo.ai.providers.faults import ParsedError
from koo.ai.providers.transport import document_of

CONTEXT_WORDS = (
    "exceed context limit",
    "this model's maximum context length is",
    "maximum context length",
    "is longer than the model's context length",
    "input tokens exceed the configured limit",
    "exceeds the available context size",
    "exceeds the maximum number of tokens allowed",
    "context_length_exceeded",
    "prompt is too long",
    "exceeds the context window",
)
"""Servers differ, and each by its version. All of them are looked for in refusals of a request only."""

_METADATA_NAMES = ("error_type", "limit_source", "reason", "code")


def read_error(status: int, headers: Mapping[str, str], body: bytes) -> ParsedError:
    """What an error's body says; anything that is no such body says nothing (`shaped` is False)."""
    return parse_error(status, headers, document_of(body))


def parse_error(status: int, headers: Mapping[str, str], document: object) -> ParsedError:
    """As `read_error`, of a decoded body."""
    request_id = headers.get("x-request-id")
    error = _error_of(document)
    if error is None:
        return ParsedError(status=status, request_id=request_id, headers=headers)
    if isinstance(error, str):
        return ParsedError(status=status, message=error, request_id=request_id, headers=headers, shaped=True)
    code, more = error.get("code"), _metadata_names(error.get("metadata"))
    return ParsedError(
        status=_status(status, code),
        code=code if isinstance(code, str) and not code.isdigit() else None,
        type=_text(error.get("type")),
        more=more,
        message=_text(error.get("message")) or "",
        param=_text(error.get("param")),
        request_id=request_id,
        headers=headers,
        until_wall_s=_resets_at(error.get("metadata")),
        counts=_counts(error),
        shaped=True,
    )


def _error_of(document: object) -> Mapping[str, Any] | str | None:
    if not isinstance(document, dict):
        return None
    error = document.get("error")
    if isinstance(error, dict):
        # A gateway in front of a gateway wraps the error once more.
        inner = error.get("error")
        return inner if isinstance(inner, dict) and "message" not in error else error
    if isinstance(error, str) and error:
        return error
    flat = document.get("object") == "error" or document.get("type") == "error" or "code" in document
    if flat and "message" in document:
        # In the flat forms `type: "error"` is the envelope's, not the error's.
        return {**document, "type": None if document.get("type") == "error" else document.get("type")}
    return None


def _status(status: int, code: object) -> int:
    """Inside a success the code may be the status that it would have had; outside, the real one stands."""
    if status >= 300:
        return status
    number = int(code) if isinstance(code, str) and code.isdigit() and len(code) == 3 else code
    return number if isinstance(number, int) and 400 <= number < 600 else status


def _metadata_names(metadata: object) -> tuple[str, ...]:
    if not isinstance(metadata, dict):
        return ()
    names = [value for key in _METADATA_NAMES if isinstance(value := metadata.get(key), str)]
    # Moderation is told by the presence of its reasons.
    return (*names, "moderation") if "reasons" in metadata or "flagged_input" in metadata else tuple(names)


def _counts(error: Mapping[str, Any]) -> dict[str, int]:
    """How long the prompt was and how long it may be, where the server (llama.cpp) says it."""
    names = {"n_prompt_tokens": "prompt_tokens", "n_ctx": "context_tokens"}
    return {ours: count for name, ours in names.items() if isinstance(count := error.get(name), int)}


def _resets_at(metadata: object) -> float | None:
    value = metadata.get("resets_at") if isinstance(metadata, dict) else None
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value).timestamp()
        except (ValueError, OverflowError):
            return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value / 1000 if value > 1e11 else float(value)
    return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
