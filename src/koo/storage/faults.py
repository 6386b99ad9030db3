"""Why a state store cannot be used, as one actionable sentence without a DSN or a statement's values."""

from __future__ import annotations

from koo.server_words import by_words, sentence_of
from koo.shortages import shortage_in
from koo.sqlstates import (
    CONTENDED,
    MISTAKEN,
    SQLSTATES,
    UNEXPLAINED,
    by_class,
    by_code,
    original_of,
    sqlstate_of,
)

OURS = {
    "25006": "it is read-only (a standby?)",
    "42501": "this user may not create or write koo's tables",
    "42P01": "koo's tables are gone",
}
"""The meaning of a SQLSTATE for koo's own tables."""


def sentence(error: BaseException, place: str) -> str:
    """Why the store at `place` cannot be used."""
    return f"the state store ({place}) cannot be used: {_reason(original_of(error))}"


def _reason(original: BaseException) -> str:
    short = shortage_in(original)
    if short is not None:
        return short
    if isinstance(original, OSError) and original.strerror:
        return original.strerror.lower()
    state = sqlstate_of(original)
    if state in OURS:
        return OURS[state]
    meaning = by_code(original) or by_class(original)
    if meaning is MISTAKEN and state is not None:
        return f"the server answered with error {state}"
    if meaning is None:
        meaning = by_words(original) if hasattr(original, "sqlstate") else UNEXPLAINED
    return sentence_of(original, meaning)


def transient(error: BaseException) -> bool:
    """Whether the server itself rolled the transaction back, so that repeating it may succeed immediately."""
    state = sqlstate_of(error)
    return state is not None and SQLSTATES.get(state) is CONTENDED


def lost(error: BaseException) -> bool:
    """Whether the server reports that it has ended this connection.

    The report may arrive before the connection is closed, and the driver still considers the connection usable then.
    """
    meaning = by_code(original_of(error))
    return meaning is not None and meaning.unsure
