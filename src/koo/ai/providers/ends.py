"""What the word for an end means: the answer is complete, cut on purpose, or a failure reported as a success."""

from __future__ import annotations

import re

from koo.ai.providers.faults import ParsedError

OUTCOMES = frozenset({
    None, "stop", "length", "content_filter", "tool_calls", "function_call",
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn", "refusal", "model_context_window_exceeded",
    "completed", "incomplete", "max_output_tokens",
    "STOP", "MAX_TOKENS", "SAFETY", "RECITATION", "LANGUAGE", "OTHER", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII",
})  # fmt: skip
"""The vendors' own words for an answer that ended as answers do: no need to look into them."""

SILENT = frozenset({None, "stop", "end_turn", "stop_sequence", "completed", "eos", "eos_token", "unknown"})
"""In lower case: ends after which something was said. The others explain why nothing was."""

_LATE = re.compile(r"time.?out|timed.?out|deadline")
_FULL = re.compile(r"overload|unavailable|insufficient_system_resource|capacity")
_FAILED = re.compile(
    r"error|fail|abort|cancel|interrupt|exception|disconnect|crash|network|malformed_response"
)


def failure_of(reason: str | None) -> ParsedError | None:
    """The error that an end's word stands for, if it names one."""
    if reason is None:
        return None
    word = reason.lower()
    if _LATE.search(word):
        status = 504
    elif _FULL.search(word):
        status = 503
    elif _FAILED.search(word):
        status = 200  # nothing more is known
    else:
        return None
    return ParsedError(status=status, code=reason, shaped=True)


def is_silent(reason: str | None) -> bool:
    """Whether this end does not explain why there is no text."""
    return (reason.lower() if reason else None) in SILENT
