"""Refuses queries that no service could answer, before anything is counted, held or sent. Never quotes a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from koo.ai.types import Query
from koo.errors import InvalidRequest, Kind, name_of

PROMPT_BYTES_MAX = 8 * 1024 * 1024
"""Larger than any model's context window. A longer prompt is refused before it is copied, counted and sent."""
MAX_TOKENS_MAX = 10_000_000
"""Longer than any model's answer. With a higher limit the worst case would not be a sensible amount of money."""
FALLBACKS_MAX = 20
METADATA_MAX = 50
"""The ledger stores all entries in one row. More entries than this are a mistake, such as a copy of a request's
headers."""


def check(query: Query) -> None:
    """Raise `InvalidRequest` if anything in the query is invalid."""
    wrong = _wrong_in_names(query) or _wrong_in_texts(query) or _wrong_in_options(query)
    if wrong:
        raise InvalidRequest(name_of(query.service), wrong, kind=Kind.INVALID_REQUEST)


def _wrong_in_names(query: Query) -> str:
    fallback = query.fallback
    if not isinstance(fallback, (tuple, list)) or (
        fallback and not all(isinstance(one, str) for one in fallback)
    ):
        return "fallback must be a list of service names"
    if len(fallback) > FALLBACKS_MAX:
        return f"fallback names more than {FALLBACKS_MAX} services"
    model = query.model
    if model is not None and not (isinstance(model, str) and 0 < len(model) <= 200 and model.isprintable()):
        return "model must be the name of a model, as a string"
    return ""


def _wrong_in_texts(query: Query) -> str:
    if not isinstance(query.prompt, str):
        return f"the prompt must be text, not {type(query.prompt).__name__}"
    if query.system is not None and not isinstance(query.system, str):
        return f"system must be text, not {type(query.system).__name__}"
    if query.tag is not None and not isinstance(query.tag, str):
        return f"tag must be text, not {type(query.tag).__name__}"
    system = query.system or ""
    if not query.prompt or query.prompt.isspace():
        return "the prompt is empty"
    if len(query.prompt) + len(system) > PROMPT_BYTES_MAX:
        return f"the prompt is longer than {PROMPT_BYTES_MAX:,} characters"
    if not (_is_text(query.prompt) and _is_text(system)):
        return "the prompt contains a character that is not text (a lone surrogate)"
    return ""


def _is_text(text: str) -> bool:
    if text.isascii():  # O(1), and true for most prompts
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _wrong_in_options(query: Query) -> str:
    if query.max_tokens is not None and not _is_whole(query.max_tokens, 1, MAX_TOKENS_MAX):
        return f"max_tokens must be a whole number from 1 to {MAX_TOKENS_MAX:,}"
    if query.temperature is not None and not _is_between(query.temperature, 0, 2):
        return "temperature must be a number from 0 to 2"
    if query.timeout_s is not None and not _is_between(query.timeout_s, 0, 86_400, above=True):
        return "timeout_s must be a number of seconds above 0, at most 86400"
    if query.max_cost_usd is not None and not _is_amount(query.max_cost_usd):
        return "max_cost_usd must be an amount in USD, at least 0"
    if not isinstance(query.clamp, bool):
        return "clamp must be True or False"
    if query.on_limit not in (None, "refuse", "wait"):
        return 'on_limit must be "refuse" or "wait"'
    if not isinstance(query.metadata, Mapping):
        return "metadata must be a dict of strings"
    if len(query.metadata) > METADATA_MAX:
        return f"metadata has more than {METADATA_MAX} entries"
    return ""


def _is_whole(value: object, low: int, high: int) -> bool:
    # A bool is an int in Python: without the second check `max_tokens=True` would be sent as 1.
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_amount(value: object) -> bool:
    if not isinstance(value, (int, float, Decimal)) or isinstance(value, bool):
        return False
    # It is converted through `str`, so that 0.1 is the number that the caller wrote and not the nearest binary
    # fraction.
    amount = Decimal(str(value))
    return amount.is_finite() and amount >= 0


def _is_between(value: object, low: float, high: float, *, above: bool = False) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return (value > low if above else value >= low) and value <= high
