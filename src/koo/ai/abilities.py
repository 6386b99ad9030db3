"""What a service lacks for a query, found before it is called.

For now a query can require one thing that not every model has: room for its prompt. That it is too long is known from
another service's refusal, or from its size alone; what a model can read at once is known from the price table, and
otherwise the service is simply called. Images and tools get a line here when a query can hold them.
"""

from __future__ import annotations

from koo.ai.pricing import context_tokens
from koo.ai.service import AIService
from koo.errors import ExternalServiceError, InvalidRequest, Kind

TOO_LONG = frozenset({Kind.CONTEXT_LENGTH, Kind.TOO_LARGE})
"""The prompt is too long for this service: the caller's mistake here, but perhaps not elsewhere."""
CHARACTERS_PER_TOKEN_MAX = 128
"""The longest token of the usual vocabularies, a run of spaces."""
LONG_CHARACTERS = 8192 * CHARACTERS_PER_TOKEN_MAX
"""A shorter prompt may fit into the smallest windows, so nothing has to be looked up for it."""


def is_too_long_for(one: AIService, model: str, error: ExternalServiceError) -> int:
    """The window that a prompt did not fit into, in tokens; 0 if neither the refusal nor a table says."""
    if error.kind is not Kind.CONTEXT_LENGTH:
        return 0
    told = (error.detail or {}).get("context_tokens")
    return told if isinstance(told, int) else context_tokens(one.options, model) or 0


def check_room(one: AIService, model: str, characters: int, too_long_for: int) -> None:
    """Raises `InvalidRequest` if so many characters cannot fit, or did not fit into as large a window elsewhere."""
    window = context_tokens(one.options, model)
    if window is None or (window > too_long_for and characters <= window * CHARACTERS_PER_TOKEN_MAX):
        return
    reason = f"not called: the prompt is longer than the {window} tokens that its model can read"
    raise InvalidRequest(one.options.name, reason, kind=Kind.CONTEXT_LENGTH)
