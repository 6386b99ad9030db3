"""Errors of agent and structured-output libraries about an answer, or about a limit of the application's own.

Most of their errors are raised from an SDK's, and mean what that means. These are not, and without special treatment
five answers that cannot be parsed would open the circuit of a healthy service.
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
"""Neutral and unchanged, like a `ValueError`: an answer that cannot be read, or a limit of the application's own."""
CUT: dict[str, frozenset[str]] = {
    "instructor": frozenset({"IncompleteOutputException"}),
    "pydantic_ai": frozenset({"IncompleteToolCall", "OutputTokenLimitExceeded"}),
}
FILTERED: dict[str, frozenset[str]] = {"pydantic_ai": frozenset({"ContentFilterError"})}
NOTHING: frozenset[str] = frozenset()

CUT_SHORT = (
    "the answer was cut at its token limit, so it cannot be parsed: raise max_tokens (max_completion_tokens)"
)
ENDS_EARLY = "The JSON ends too early: if the answer was cut at its token limit, raise max_tokens."


def classify_framework(names: dict[str, set[str]], service: str) -> Found:
    """What an error of one of these libraries means, by the names of its classes; None for any other."""
    for module, own in names.items():
        if own & CUT.get(module, NOTHING):
            return cut_short(service or module)
        if own & FILTERED.get(module, NOTHING):
            return make_error(service or module, Kind.CONTENT_POLICY, billable=True)
        if own & MISTAKES.get(module, NOTHING):
            return MISTAKEN
    return None


def cut_short(service: str) -> ExternalServiceError:
    """The answer was given and is paid for, but a larger limit is the caller's to set."""
    return make_error(service, Kind.INVALID_REQUEST, CUT_SHORT, billable=True)


def ends_early(error: Exception) -> bool:
    """Whether a parser reports that the text ended before its JSON did: json's, pydantic's, msgspec's.

    An empty text too: a model that thinks may have used all its tokens for that.
    """
    if type(error).__name__ == "JSONDecodeError":
        doc, pos = getattr(error, "doc", ""), getattr(error, "pos", 0)
        return str(error).startswith("Unterminated string") or pos >= len(doc.rstrip())
    if type(error).__name__ == "ValidationError":
        return "EOF while parsing" in str(error)
    return type(error).__name__ == "DecodeError" and str(error) == "Input data was truncated"
