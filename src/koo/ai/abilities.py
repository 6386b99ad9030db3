"""Checks before a call whether a service lacks something that the query needs.

So far a query can need only one thing that not every model has: room for its prompt. A prompt is known to be too long
if another service refused it for its length, or if its size alone shows it. The price table says how much a model can
read. If the model is not in the table, the service is simply called.
"""

from __future__ import annotations

from koo.ai.pricing import context_tokens
from koo.ai.service import AIService
from koo.errors import ExternalServiceError, InvalidRequest, Kind

TOO_LONG = frozenset({Kind.CONTEXT_LENGTH, Kind.TOO_LARGE})
"""The prompt is too long for this service. Another service may be able to read it."""
CHARACTERS_PER_TOKEN_MAX = 128
"""The longest token in the common vocabularies, a run of spaces."""
LONG_CHARACTERS = 8192 * CHARACTERS_PER_TOKEN_MAX
"""A shorter prompt may fit even into a window of 8,192 tokens, so no window has to be looked up for it."""


def is_too_long_for(one: AIService, model: str, error: ExternalServiceError) -> int:
    """The context window that a prompt did not fit into, in tokens; 0 if neither the refusal nor the table says."""
    if error.kind is not Kind.CONTEXT_LENGTH:
        return 0
    told = (error.detail or {}).get("context_tokens")
    return told if isinstance(told, int) else context_tokens(one.options, model) or 0


def check_room(one: AIService, model: str, characters: int, too_long_for: int) -> None:
    """Raise `InvalidRequest` if a prompt of this many characters cannot fit into the model's context window.

    `too_long_for` is the largest window, in tokens, that the same prompt did not fit into at another service.
    """
    window = context_tokens(one.options, model)
    if window is None or (window > too_long_for and characters <= window * CHARACTERS_PER_TOKEN_MAX):
        return
    reason = f"not called: the prompt is longer than the {window} tokens that its model can read"
    raise InvalidRequest(one.options.name, reason, kind=Kind.CONTEXT_LENGTH)
