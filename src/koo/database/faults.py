"""What an error of a database means: one table, whatever the driver.

The classes of exceptions mislead (through SQLAlchemy, asyncpg's deadlock is a bare `DBAPIError`, its refused connection
a raw `OSError`; psycopg's "too many connections" has no SQLSTATE), so the code is looked up first, then what Python
says, and only for psycopg's failed connects the words of the server.

`Meaning.unsure` is about COMMIT alone: a connection that is lost there leaves open whether the transaction happened,
also where the server had time to say why (57P01 while it waited for a standby: it *is* committed).
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from sqlalchemy import exc

from koo.errors import DatabaseUnavailable, Kind, KooError
from koo.policies.verdict import FAILURE, NEUTRAL, Fault, Verdict

AGAIN_IN_S = 1.0
"""When to come back after a failed connect that may pass: a server needs about that long to start."""


class Phase(Enum):
    """Where a scope stood when the error came."""

    CONNECT = "connect"
    BODY = "body"
    COMMIT = "commit"


class Drop(Enum):
    """Which connections of the pool are of no use any more."""

    KEEP = "keep"
    ONE = "one"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Meaning:
    """`repeatable`: the whole transaction may be run again. `unsure`: in COMMIT nobody knows whether it happened."""

    kind: Kind
    verdict: Verdict
    repeatable: bool = False
    drop: Drop = Drop.KEEP
    unsure: bool = False
    says: str = ""

    def fault(self, error: Exception | None = None) -> Fault:
        """For the guard; `error` is raised in place of the original."""
        return Fault(
            verdict=self.verdict, kind=self.kind, repeatable=self.repeatable, billed=False, error=error
        )


# ── what there is to mean ─────────────────────────────────────────────────────────────────────────────────────────

LOST = Meaning(
    Kind.CONNECTION, FAILURE, repeatable=True, drop=Drop.ONE, unsure=True, says="the connection was lost"
)
STARTING = Meaning(Kind.CONNECTION, FAILURE, repeatable=True, says="the server is starting or recovering")
IDLED = Meaning(
    Kind.CONNECTION, NEUTRAL, repeatable=True, drop=Drop.ONE, says="the server closed an idle session"
)
UNSURE = Meaning(
    Kind.OUTCOME_UNKNOWN, FAILURE, unsure=True, says="the server does not know whether it committed"
)
BROKEN = Meaning(Kind.SERVER_ERROR, FAILURE, drop=Drop.ONE, unsure=True, says="the server broke the protocol")
LATE = Meaning(Kind.TIMEOUT, FAILURE, repeatable=True, unsure=True, says="there was no answer in time")
STOPPED = Meaning(Kind.TIMEOUT, NEUTRAL, says="the statement was cancelled")
OVERSTAYED = Meaning(Kind.TIMEOUT, NEUTRAL, drop=Drop.ONE, says="the transaction was open for too long")
FULL = Meaning(Kind.OVERLOADED, FAILURE, repeatable=True, says="the server has no connection left")
EXHAUSTED = Meaning(Kind.SERVER_ERROR, FAILURE, says="the server is out of memory, disk or another resource")
FAILED = Meaning(Kind.SERVER_ERROR, FAILURE, says="the server failed")
CORRUPT = Meaning(Kind.SERVER_ERROR, FAILURE, says="the data is corrupt")
REFUSED = Meaning(Kind.AUTH, FAILURE, says="the server refuses the user, the password or this address")
MISSING = Meaning(Kind.NOT_FOUND, FAILURE, says="the database does not exist")
CONTENDED = Meaning(
    Kind.CONTENTION, NEUTRAL, repeatable=True, says="another transaction was in conflict with this one"
)
LOCKED = Meaning(Kind.CONTENTION, NEUTRAL, says="another transaction holds the lock")
OUTDATED = Meaning(
    Kind.CONFLICT, NEUTRAL, repeatable=True, says="the schema changed under a prepared statement"
)
READ_ONLY = Meaning(Kind.READ_ONLY, NEUTRAL, drop=Drop.ALL, says="the database takes no writes")
VIOLATED = Meaning(Kind.INTEGRITY, NEUTRAL, says="a constraint forbids it")
FORBIDDEN = Meaning(Kind.PERMISSION, NEUTRAL, says="the user has no permission for it")
MISTAKEN = Meaning(Kind.INVALID_REQUEST, NEUTRAL, says="the statement cannot be right")
SATURATED = Meaning(Kind.SATURATED, NEUTRAL, says="all connections are in use")
MISCONFIGURED = Meaning(
    Kind.NOT_CONFIGURED,
    FAILURE,
    says="an option in its URL is none that the driver knows, or has a wrong value",
)
UNREADABLE = Meaning(Kind.NOT_FOUND, FAILURE, says="the file cannot be opened")
NOBODYS = Meaning(Kind.UNKNOWN, NEUTRAL)

SQLSTATES: dict[str, Meaning] = {
    "08": LOST,
    "08007": UNSURE,
    "08P01": BROKEN,
    "22": MISTAKEN,
    "23": VIOLATED,
    "25": MISTAKEN,
    "25006": READ_ONLY,
    "25P03": OVERSTAYED,
    "25P04": OVERSTAYED,
    "28": REFUSED,
    "3D000": MISSING,
    "40001": CONTENDED,
    "40002": VIOLATED,
    "40003": UNSURE,
    "40P01": CONTENDED,
    "42": MISTAKEN,
    "42501": FORBIDDEN,
    "53": EXHAUSTED,
    "53300": FULL,
    "55": MISTAKEN,
    "55006": LOCKED,
    "55P03": LOCKED,
    "57": FAILED,
    "57014": STOPPED,
    "57P01": LOST,
    "57P02": LOST,
    "57P03": STARTING,
    "57P04": MISSING,
    "57P05": IDLED,
    "58": FAILED,
    "F0": FAILED,
    "HV": FAILED,
    "XX": FAILED,
    "XX001": CORRUPT,
    "XX002": CORRUPT,
}
"""PostgreSQL: the code itself, else its class (the first two letters), else the statement's mistake."""

SQLITE_CODES: dict[int, Meaning] = {
    1: MISTAKEN,
    3: FORBIDDEN,
    5: CONTENDED,
    6: CONTENDED,
    7: EXHAUSTED,
    8: READ_ONLY,
    9: STOPPED,
    10: FAILED,
    11: CORRUPT,
    13: EXHAUSTED,
    14: UNREADABLE,
    17: OUTDATED,
    18: MISTAKEN,
    19: VIOLATED,
    20: MISTAKEN,
    23: FORBIDDEN,
    25: MISTAKEN,
    26: CORRUPT,
    # SQLITE_READONLY_DBMOVED: somebody moved the file away under the connection.
    1032: FAILED,
}
"""SQLite: the extended result code, else its primary one (the low byte)."""

WORDS: tuple[tuple[str, Meaning], ...] = (
    ("too many clients", FULL),
    ("remaining connection slots", FULL),
    ("too many connections", FULL),
    ("password authentication failed", REFUSED),
    ("no pg_hba.conf entry", REFUSED),
    ("is not permitted to log in", REFUSED),
    ("role ", REFUSED),
    ("does not exist", MISSING),
    ("is starting up", STARTING),
    ("is shutting down", STARTING),
    ("in recovery mode", STARTING),
)
"""What the server told libpq, which passes it on in words only; in another language it is a lost connection."""
OWN_WORDS: tuple[tuple[str, Meaning], ...] = (
    ("no password supplied", REFUSED),
    ("connection option", MISCONFIGURED),
    ("sslmode value", MISCONFIGURED),
)
"""What libpq says itself, before or without a word of the server's."""
REASONS: tuple[tuple[str, str], ...] = (
    ("resolve", "the host name cannot be resolved"),
    ("refused", "the server refuses connections"),
    ("response to SSL negotiation", "what answers there is no PostgreSQL"),
    ("support SSL", "the server speaks no TLS, which its URL asks for"),
    ("SSL upgrade", "the server speaks no TLS, which its URL asks for"),
    ("certificate", "the TLS handshake failed: its certificate is not trusted, or ours is missing"),
)
"""Why nobody could be reached."""


def explain(error: BaseException, phase: Phase = Phase.BODY, *, lost: bool = False) -> Meaning:
    """What an error means, met in `phase`. `lost`: the connection turned out to be gone. Total: never raises."""
    if isinstance(error, KooError):
        return Meaning(error.kind, NEUTRAL)
    if not isinstance(error, Exception):
        return Meaning(Kind.CANCELLED, NEUTRAL)
    original = original_of(error)
    lost = lost or getattr(error, "connection_invalidated", False)
    meaning = _by_code(original, lost) or _by_class(error, original, phase)
    if meaning is None and lost:
        return LOST
    if meaning is None and isinstance(error, exc.DBAPIError) and phase is Phase.CONNECT:
        return _by_words(original)
    return meaning or (MISTAKEN if isinstance(error, exc.SQLAlchemyError) else NOBODYS)


def original_of(error: BaseException) -> BaseException:
    """The driver's own error inside SQLAlchemy's."""
    original = getattr(error, "orig", None)
    return original if isinstance(original, BaseException) else error


def sqlstate_of(error: BaseException) -> str | None:
    """PostgreSQL's five letters, or None."""
    code = getattr(original_of(error), "sqlstate", None)
    return code if isinstance(code, str) else None


def _by_code(original: BaseException, lost: bool) -> Meaning | None:
    state = sqlstate_of(original)
    if state is not None:
        meaning = SQLSTATES.get(state) or SQLSTATES.get(state[:2], MISTAKEN)
        # A server that goes down may first say something harmless; the connection is gone all the same.
        return meaning if not lost or meaning.drop is not Drop.KEEP else LOST
    code = getattr(original, "sqlite_errorcode", None)
    if isinstance(code, int):
        return SQLITE_CODES.get(code) or SQLITE_CODES.get(code & 0xFF, FAILED)
    return None


def _by_class(error: Exception, original: BaseException, phase: Phase) -> Meaning | None:
    if isinstance(
        error, exc.TimeoutError
    ):  # the pool's own: the gate in front of it should make it impossible
        return SATURATED
    if type(original).__name__ == "InvalidCachedStatementError":  # built by SQLAlchemy without its SQLSTATE
        return OUTDATED
    if isinstance(original, TimeoutError) or type(original).__name__ == "ConnectionTimeout":
        return LATE
    if isinstance(original, OSError | EOFError | asyncio.IncompleteReadError):
        return LOST
    # asyncpg.connect takes the URL's options as arguments, and refuses one that it does not have.
    return MISCONFIGURED if phase is Phase.CONNECT and isinstance(error, TypeError) else None


def _by_words(original: BaseException) -> Meaning:
    text = str(original)
    for words, meaning in WORDS:
        if words in text and "FATAL" in text:
            return meaning
    return next((meaning for words, meaning in OWN_WORDS if words in text), LOST)


# ── connects that failed ──────────────────────────────────────────────────────────────────────────────────────────


def classify_connect(service: str) -> Any:
    """The classifier of the guard of `service`: connecting and BEGIN, the only steps that the guard itself runs."""

    def classify(error: Exception) -> Fault:
        meaning = explain(error, Phase.CONNECT)
        if isinstance(error, KooError) or meaning is NOBODYS:
            return meaning.fault()
        return meaning.fault(unavailable(service, error, meaning))

    return classify


def unavailable(service: str, error: Exception, meaning: Meaning) -> DatabaseUnavailable:
    """What is raised when no connection came about. Its sentence holds no address, user or password."""
    original = original_of(error)
    return DatabaseUnavailable(
        service,
        _sentence(original, meaning),
        AGAIN_IN_S if meaning.repeatable else None,
        kind=meaning.kind,
        detail={"error": type(original).__name__, "sqlstate": sqlstate_of(original)},
    )


def _sentence(original: BaseException, meaning: Meaning) -> str:
    if meaning is LOST:
        if isinstance(original, socket.gaierror):
            return "the host name cannot be resolved"
        if isinstance(original, ConnectionRefusedError):
            return "the server refuses connections"
        said = str(original)
        return next((reason for words, reason in REASONS if words in said), "the server cannot be reached")
    return meaning.says or f"connecting failed ({type(original).__name__})"


def too_late(seconds: float) -> Meaning:
    """No connection came about within the pool's time; nothing of it is left for a repeat."""
    return replace(LATE, repeatable=False, says=f"no connection came about within {seconds:g} s")
