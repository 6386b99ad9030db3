"""What an error means to a scope: what the driver said (`koo.sqlstates`), and where the scope stood."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum

from sqlalchemy import exc

from koo.database_urls import UnusableArguments
from koo.errors import DatabaseUnavailable, Kind, KooError
from koo.policies.verdict import NEUTRAL, Fault
from koo.server_words import at_connect, by_certificate, by_words, of_pooler, sentence_of
from koo.sqlstates import (
    LATE,
    LOST,
    MISCONFIGURED,
    MISTAKEN,
    SATURATED,
    UNEXPLAINED,
    Drop,
    Meaning,
    by_class,
    by_code,
    is_report,
    original_of,
    sqlstate_of,
)

SERVICE = "database"
"""The name of the database in errors and states."""
AGAIN_IN_S = 1.0
"""When to come back after a failed connect that may pass: about the time a server needs to start."""


class ScopeStage(Enum):
    """Where a scope stood when the error came."""

    CONNECT = "connect"
    BODY = "body"
    COMMIT = "commit"


def explain(error: BaseException, stage: ScopeStage = ScopeStage.BODY, *, lost: bool = False) -> Meaning:
    """What an error met in `stage` means. `lost`: the connection turned out to be gone. Never raises."""
    if isinstance(error, KooError):
        return Meaning(error.kind, NEUTRAL)
    if not isinstance(error, Exception):
        return Meaning(Kind.CANCELLED, NEUTRAL)
    original = original_of(error)
    lost = lost or getattr(error, "connection_invalidated", False)
    # Only if the other side refuses us or ends the connection: a statement's error may quote any words. And not in
    # COMMIT, where a lost connection leaves the outcome open, whatever a pooler says.
    if lost or stage is ScopeStage.CONNECT:
        meaning = of_pooler(original) if stage is not ScopeStage.COMMIT else None
        # During connect, SQLAlchemy 2.0 passes asyncpg's errors through unchanged.
        is_drivers = stage is ScopeStage.CONNECT and sqlstate_of(original) is not None
        if meaning is not None and (is_drivers or isinstance(error, exc.DBAPIError)):
            return meaning
    meaning = _by_code(original, stage)
    if meaning is not None:
        # A server that is going down may first report something harmless; the connection is gone all the same.
        harmless = sqlstate_of(original) is not None and meaning.drop is Drop.KEEP
        return LOST if lost and harmless else meaning
    meaning = _by_class(error, original, stage)
    is_short = meaning is not None and meaning.kind is Kind.OUT_OF_RESOURCES
    # Even if a socket lacked a resource while COMMIT was under way, the server may have received it.
    if (lost and (meaning is None or is_short)) or (is_short and stage is ScopeStage.COMMIT):
        return LOST
    if meaning is None and isinstance(error, exc.DBAPIError) and stage is ScopeStage.CONNECT:
        return by_words(original)
    return meaning or (MISTAKEN if isinstance(error, exc.SQLAlchemyError) else UNEXPLAINED)


def _by_code(original: BaseException, stage: ScopeStage) -> Meaning | None:
    refused = at_connect(original) if stage is ScopeStage.CONNECT and not is_report(original) else None
    return refused or by_code(original)


def _by_class(error: Exception, original: BaseException, stage: ScopeStage) -> Meaning | None:
    if isinstance(
        error, exc.TimeoutError
    ):  # SQLAlchemy's pool: the queue in front of it should make this impossible
        return SATURATED
    if isinstance(error, UnusableArguments):
        return MISCONFIGURED.saying(str(error))
    meaning = by_certificate(original) or by_class(original)
    # asyncpg.connect takes the URL's options as arguments, and raises TypeError for one that it does not have.
    mistaken = meaning is None and stage is ScopeStage.CONNECT and isinstance(error, TypeError)
    return MISCONFIGURED if mistaken else meaning


# ── connects that failed ──────────────────────────────────────────────────────────────────────────────────────────


def classify_connect(error: Exception) -> Fault:
    """For the database's guard: connecting and BEGIN, the only steps that the guard itself runs."""
    meaning = explain(error, ScopeStage.CONNECT)
    if isinstance(error, KooError) or meaning is UNEXPLAINED:
        return meaning.fault()
    return meaning.fault(unavailable(error, meaning))


def unavailable(error: Exception, meaning: Meaning) -> DatabaseUnavailable:
    """The error for a connection that could not be opened. Its sentence holds no address, user or password."""
    original = original_of(error)
    return DatabaseUnavailable(
        SERVICE,
        sentence_of(original, meaning),
        AGAIN_IN_S if meaning.repeatable else None,
        kind=meaning.kind,
        detail={"error": type(original).__name__, "sqlstate": sqlstate_of(original)},
    )


def too_late(seconds: float) -> Meaning:
    """No connection could be opened within the pool's time, and no time is left for a repeat."""
    return replace(LATE, repeatable=False, says=f"no connection could be opened within {seconds:g} s")
