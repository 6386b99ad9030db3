"""Classify database errors from an application's own operation, on its own engine or connection.

The table is the same as for koo's database: a duplicate key is the caller's mistake, a lost connection a failure.
SQLAlchemy is not imported here, because its errors can occur only if it is already loaded. A driver's own error is
recognised by its code.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from koo.ai.foreign.stores import of_store
from koo.policies.verdict import Fault
from koo.server_words import at_connect, by_words, of_pooler
from koo.sqlstates import (
    LOST,
    MISTAKEN,
    SATURATED,
    SQLSTATES,
    Meaning,
    by_class,
    by_code,
    find,
    is_last_word,
    original_of,
    sqlstate_of,
)


def classify_database(error: Exception) -> Fault | None:
    """The fault for a database's error; None for any other. The error itself is not replaced."""
    meaning = _of_sqlalchemy(error) or _of_driver(error)
    # The operation may have called a paid service before its statement failed.
    return None if meaning is None else replace(meaning.fault(), billed=True)


def _of_sqlalchemy(error: Exception) -> Meaning | None:
    exc = sys.modules.get("sqlalchemy.exc")
    if exc is None or not isinstance(error, exc.SQLAlchemyError):
        return None
    original = original_of(error)
    if isinstance(error, exc.TimeoutError):  # raised by its pool
        return SATURATED
    # SQLAlchemy's pool has discarded the connection, so it was lost, whatever the driver's error says.
    if getattr(error, "connection_invalidated", False):
        return by_code(original) or LOST
    if is_last_word(original):
        return _refused(original)
    found = by_code(original) or by_class(original) or of_store(original)
    # psycopg's failed connects have a message but no code.
    return found or (by_words(original) if isinstance(error, exc.OperationalError) else MISTAKEN)


def _refused(original: BaseException) -> Meaning | None:
    """The meaning of a refused connection. A pooler uses the same code for all its refusals, so it is checked first."""
    return of_pooler(original) or at_connect(original) or by_code(original)


def _of_driver(error: Exception) -> Meaning | None:
    """The meaning of a driver's or client's own error."""
    if is_last_word(error):
        return _refused(error)
    state = sqlstate_of(error)
    # MySQL's drivers have SQLSTATEs too, but few that are in the table.
    return (by_code(error) if state is None or find(SQLSTATES, state) else None) or of_store(error)
