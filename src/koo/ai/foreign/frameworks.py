"""Classify errors of agent and structured-output libraries about an answer or about the application's own limits.

Most of their errors are raised from an SDK's error and mean the same. The ones listed here are not, and without special
treatment five answers that cannot be parsed would open the breaker of a healthy service.
"""

from __future__ import annotations

from koo.ai.foreign.http_libraries import Found
from koo.ai.providers.faults import make_error
from koo.errors import ExternalServiceError, Kind
from koo.policies.treatment import MISTAKEN

MISTAKES: dict[str, frozenset[str]] = {
    "agents": frozenset({
        "MaxTurnsExceeded", "ModelBehaviorError", "ModelRefusalError", "UserError",
        "InputGuardrailTripwireTriggered", "OutputGuardrailTripwireTriggered",
    }),
    "dspy": frozenset({"AdapterParseError"}),
    "langgraph": frozenset({"GraphRecursionError"}),
    "pydantic_ai": frozenset({"ConcurrencyLimitExceeded", "UsageLimitExceeded", "UserError"}),
}  # fmt: skip
"""Errors about an unusable answer or the application's own limits: neutral and not replaced, like a `ValueError`."""
CUT: dict[str, frozenset[str]] = {
    "instructor": frozenset({"IncompleteOutputException"}),
    "pydantic_ai": frozenset({"IncompleteToolCall", "OutputTokenLimitExceeded"}),
}
FILTERED: dict[str, frozenset[str]] = {"pydantic_ai": frozenset({"ContentFilterError"})}
NOTHING: frozenset[str] = frozenset()

CUT_SHORT = (
    "the answer was cut at its token limit, so it cannot be parsed: raise max_tokens (max_completion_tokens)"
)
ENDS_EARLY = "The JSON is incomplete: if the answer was cut at its token limit, raise max_tokens."


def classify_framework(names: dict[str, set[str]], service: str) -> Found:
    """Classify an error by the names of its classes; None for errors of other libraries."""
    for module, own in names.items():
        if own & CUT.get(module, NOTHING):
            return cut_short(service or module)
        if own & FILTERED.get(module, NOTHING):
            return make_error(service or module, Kind.CONTENT_POLICY, billable=True)
        if own & MISTAKES.get(module, NOTHING):
            return MISTAKEN
    return None


def cut_short(service: str) -> ExternalServiceError:
    """The error for an answer that was cut: it is billed, and only the caller can raise the limit."""
    return make_error(service, Kind.INVALID_REQUEST, CUT_SHORT, billable=True)


def ends_early(error: Exception) -> bool:
    """Whether an error of json, pydantic or msgspec means that the JSON is incomplete.

    An empty text counts too: a reasoning model may have used all its tokens for reasoning.
    """
    if type(error).__name__ == "JSONDecodeError":
        doc, pos = getattr(error, "doc", ""), getattr(error, "pos", 0)
        return str(error).startswith("Unterminated string") or pos >= len(doc.rstrip())
    if type(error).__name__ == "ValidationError":
        return "EOF while parsing" in str(error)
    return type(error).__name__ == "DecodeError" and str(error) == "Input data was truncated"
