"""Classify stop reasons: the answer is complete, was cut on purpose, or failed although the status is 200."""

from __future__ import annotations

import re

from koo.ai.providers.faults import ParsedError

OUTCOMES = frozenset({
    None, "stop", "length", "content_filter", "tool_calls", "function_call",
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn", "refusal", "model_context_window_exceeded",
    "completed", "incomplete", "max_output_tokens",
    "STOP", "MAX_TOKENS", "SAFETY", "RECITATION", "LANGUAGE", "OTHER", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII",
})  # fmt: skip
"""Stop reasons of the vendors for an answer that did not fail. They need no further check."""

SILENT = frozenset({None, "stop", "end_turn", "stop_sequence", "completed", "eos", "eos_token", "unknown"})
"""Stop reasons, in lower case, that promise a text. All others explain why there is none."""

_LATE = re.compile(r"time.?out|timed.?out|deadline")
_FULL = re.compile(r"overload|unavailable|insufficient_system_resource|capacity")
_FAILED = re.compile(
    r"error|fail|abort|cancel|interrupt|exception|disconnect|crash|network|malformed_response"
)


def failure_of(reason: str | None) -> ParsedError | None:
    """The error that a stop reason means, if any."""
    if reason is None:
        return None
    word = reason.lower()
    if _LATE.search(word):
        status = 504
    elif _FULL.search(word):
        status = 503
    elif _FAILED.search(word):
        status = 200  # no status fits better
    else:
        return None
    return ParsedError(status=status, code=reason, shaped=True)


def is_silent(reason: str | None) -> bool:
    """Whether this stop reason would leave an answer without text unexplained."""
    return (reason.lower() if reason else None) in SILENT
