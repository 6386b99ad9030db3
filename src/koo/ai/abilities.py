"""What a service lacks for a query, seen before it is asked.

Today a query can ask for one thing that not every model has: room for its prompt. That it is too long is known from the
refusal of another service, or from its size alone; what a model reads at once is known from the price table, and where
it is not, the service is asked. Images and tools get a line here when a query can hold them.
"""

from __future__ import annotations

from koo.ai.pricing import context_tokens
from koo.ai.service import AIService
from koo.errors import ExternalServiceError, InvalidRequest, Kind

TOO_LONG = frozenset({Kind.CONTEXT_LENGTH, Kind.TOO_LARGE})
"""The prompt is too long for this service: the caller's mistake here, and perhaps nowhere else."""
CHARACTERS_PER_TOKEN_MAX = 128
"""The longest token of the usual vocabularies, a run of spaces."""
LONG_CHARACTERS = 8192 * CHARACTERS_PER_TOKEN_MAX
"""A shorter prompt may fit into the smallest windows, so that nothing has to be looked up for it."""


def is_too_long_for(one: AIService, model: str, error: ExternalServiceError) -> int:
    """The window that a prompt did not fit into, in tokens; 0: the refusal does not say, and no table does."""
    if error.kind is not Kind.CONTEXT_LENGTH:
        return 0
    told = (error.detail or {}).get("context_tokens")
    return told if isinstance(told, int) else context_tokens(one.options, model) or 0


def check_room(one: AIService, model: str, characters: int, too_long_for: int) -> None:
    """Raises `InvalidRequest` where so many characters cannot fit, or did not fit into as large a window elsewhere."""
    window = context_tokens(one.options, model)
    if window is None or (window > too_long_for and characters <= window * CHARACTERS_PER_TOKEN_MAX):
        return
    reason = f"not asked: its model reads {window} tokens at once, and the prompt is longer"
    raise InvalidRequest(one.options.name, reason, kind=Kind.CONTEXT_LENGTH)
