"""What an error means for a scope, which depends on the driver's error (`koo.sqlstates`) and on the scope's stage."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum

from sqlalchemy import exc

from koo.database_urls import UnusableArguments
from koo.errors import DatabaseUnavailable, Kind, KooError
from koo.policies.verdict import NEUTRAL, Fault
from koo.server_words import at_connect, by_certificate, by_option, by_words, of_pooler, sentence_of
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
    severity_of,
    sqlstate_of,
)

SERVICE = "database"
"""The name of the database in errors and states."""
POOLERS_CODE = "08P01"
"""PgBouncer's only code. PostgreSQL adds the severity in English to every error, and PgBouncer does not: so the two can
be told apart even if the driver has not noticed yet that the connection was closed."""
DRIVERS = frozenset({"asyncpg", "psycopg"})
"""The packages whose errors may arrive without SQLAlchemy's around them."""
AGAIN_IN_S = 1.0
"""When to try again after a temporary connect failure: about the time that a server needs to start."""


class ScopeStage(Enum):
    """How far a scope had come when the error occurred."""

    CONNECT = "connect"
    BODY = "body"
    COMMIT = "commit"


def explain(error: BaseException, stage: ScopeStage = ScopeStage.BODY, *, lost: bool = False) -> Meaning:
    """What an error in `stage` means. `lost`: the connection turned out to be gone. Never raises."""
    if isinstance(error, KooError):
        return Meaning(error.kind, NEUTRAL)
    if not isinstance(error, Exception):
        return Meaning(Kind.CANCELLED, NEUTRAL)
    original = original_of(error)
    lost = lost or getattr(error, "connection_invalidated", False)
    # A pooler is recognised by the text of its errors, so this is only for a refused or a lost connection: the error of
    # a statement may quote any text, the user's data included. Never in COMMIT: a lost connection leaves the outcome
    # unknown, and a pooler's "no more connections" must not make it look as if nothing had been sent.
    code = sqlstate_of(original)
    is_poolers = code == POOLERS_CODE and severity_of(original) is None
    if lost or stage is ScopeStage.CONNECT or is_poolers:
        meaning = of_pooler(original) if stage is not ScopeStage.COMMIT else None
        # The hooks pass the driver's own error, without SQLAlchemy's around it.
        if meaning is not None and (code is not None or isinstance(error, exc.DBAPIError)):
            return meaning
    # PgBouncer closes the connection after each of its errors. A text without a rule is, for example, "server conn
    # crashed?": the connection behind it was lost in the middle of the transaction.
    if is_poolers and stage is not ScopeStage.CONNECT:
        return LOST
    meaning = _by_code(original, stage)
    if meaning is not None:
        # A server that is shutting down may report a harmless error first. Without LOST the connection would be kept
        # and the failure not counted, although the connection is gone.
        harmless = code is not None and meaning.drop is Drop.KEEP
        return LOST if lost and harmless else meaning
    meaning = _by_class(error, original, stage)
    is_short = meaning is not None and meaning.kind is Kind.OUT_OF_RESOURCES
    # Even if this process ran out of a resource during COMMIT, the server may have received the COMMIT.
    if (lost and (meaning is None or is_short)) or (is_short and stage is ScopeStage.COMMIT):
        return LOST
    if meaning is None and _is_drivers(error) and stage is ScopeStage.CONNECT:
        return by_words(original)
    return meaning or (MISTAKEN if isinstance(error, exc.SQLAlchemyError) else UNEXPLAINED)


def _is_drivers(error: Exception) -> bool:
    """Whether the driver raised `error`. `rotate`, and SQLAlchemy 2.0 for connects, pass asyncpg's errors unwrapped."""
    return isinstance(error, exc.DBAPIError) or type(error).__module__.partition(".")[0] in DRIVERS


def _by_code(original: BaseException, stage: ScopeStage) -> Meaning | None:
    refused = at_connect(original) if stage is ScopeStage.CONNECT and not is_report(original) else None
    return refused or by_code(original)


def _by_class(error: Exception, original: BaseException, stage: ScopeStage) -> Meaning | None:
    if isinstance(
        error, exc.TimeoutError
    ):  # of SQLAlchemy's pool; koo's queue in front of it should prevent this
        return SATURATED
    if isinstance(error, UnusableArguments):
        return MISCONFIGURED.saying(str(error))
    meaning = by_certificate(original) or by_class(original)
    # asyncpg.connect receives the URL's options as arguments, and raises TypeError for an unknown one.
    mistaken = meaning is None and stage is ScopeStage.CONNECT and isinstance(error, TypeError)
    return by_option(original) or MISCONFIGURED if mistaken else meaning


# ── connects that failed ──────────────────────────────────────────────────────────────────────────────────────────


class NoneLeft(DatabaseUnavailable):
    """The server has no connection left, but this pool has some: the caller can wait for one of those."""


def classify_connect(error: Exception) -> Fault:
    """The classifier of the database's guard, which itself runs only connecting and BEGIN."""
    if isinstance(error, NoneLeft):
        # Neutral: the server serves this pool. As a failure it would open the circuit, and a pool that is too large
        # would turn into an outage. `unmade`: the caller goes back to the queue, which `shrink` has narrowed.
        return Fault(verdict=NEUTRAL, kind=error.kind, unmade=True, billed=False)
    meaning = explain(error, ScopeStage.CONNECT)
    if isinstance(error, KooError) or meaning is UNEXPLAINED:
        return meaning.fault()
    return meaning.fault(unavailable(error, meaning))


def unavailable(
    error: Exception, meaning: Meaning, of_class: type[DatabaseUnavailable] = DatabaseUnavailable
) -> DatabaseUnavailable:
    """The error for a connection that could not be opened. Its text contains no address, user or password."""
    original = original_of(error)
    return of_class(
        SERVICE,
        sentence_of(original, meaning),
        AGAIN_IN_S if meaning.repeatable else None,
        kind=meaning.kind,
        detail={"error": type(original).__name__, "sqlstate": sqlstate_of(original)},
    )


def too_late(seconds: float) -> Meaning:
    """The meaning of a connect that took the whole timeout, so that no time is left for a repeat."""
    return replace(LATE, repeatable=False, says=f"no connection could be opened within {seconds:g} s")
