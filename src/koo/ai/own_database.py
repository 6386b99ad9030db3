"""What an error of SQLAlchemy means when an operation of the user's own raised it, on an engine of his own.

By the same table as for koo's database: a duplicate key is the caller's, a lost connection a failure. SQLAlchemy is not
imported for it: an error of SQLAlchemy can only come where it has been.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from koo.policies.verdict import Fault
from koo.sqlstates import LOST, MISTAKEN, SATURATED, by_class, by_code, by_words, original_of


def classify_sqlalchemy(error: Exception) -> Fault | None:
    """What it means, or None for what SQLAlchemy did not raise. The error itself passes unchanged."""
    exc = sys.modules.get("sqlalchemy.exc")
    if exc is None or not isinstance(error, exc.SQLAlchemyError):
        return None
    original = original_of(error)
    if isinstance(error, exc.TimeoutError):  # of its pool
        meaning = SATURATED
    elif getattr(error, "connection_invalidated", False):
        meaning = by_code(original) or LOST
    elif isinstance(error, exc.OperationalError):  # psycopg's failed connects have words and no code
        meaning = by_code(original) or by_class(original) or by_words(original)
    else:
        meaning = by_code(original) or by_class(original) or MISTAKEN
    # The operation may have done paid work elsewhere before its statement failed.
    return replace(meaning.fault(), billed=True)
