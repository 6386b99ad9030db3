"""The meaning of PostgreSQL's and SQLite's error codes, for the user's database and for koo's own store.

Exception classes are misleading (through SQLAlchemy, asyncpg's deadlock is a bare `DBAPIError` and its refused
connection a raw `OSError`; psycopg's "too many connections" has no SQLSTATE), so the code is looked up first. The text
is read only if there is no code, or the wrong one (`koo.server_words`).

**Which side reports.** A server that ends koo's connection sends severity FATAL or PANIC, or closes it. The same code
with severity ERROR is a *report* about something else, and the connection is still good: another server behind a
foreign table or dblink, or an application's own `RAISE ... USING ERRCODE`. If it counted as a lost connection, it would
open the circuit of a healthy database, so `REPORTED` is looked up before `SQLSTATES`.

`Meaning.unsure` concerns COMMIT only: after a connection was lost there, it is unknown whether the transaction
committed, even if the server had time to send a reason (57P01 while it waited for a standby: it *is* committed).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from koo.errors import Failure, Kind
from koo.policies.verdict import FAILURE, NEUTRAL, Fault, Verdict
from koo.shortages import NO_DESCRIPTOR, NO_MEMORY, shortage_in, shortage_now


class Drop(Enum):
    """Which of a pool's connections can no longer be used."""

    KEEP = "keep"
    ONE = "one"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Meaning:
    """`repeatable`: the whole transaction may be run again. `unsure`: if it occurs in COMMIT, the outcome is unknown.

    `says` is an actionable clause, without addresses, users, passwords or values.
    """

    kind: Kind
    verdict: Verdict
    repeatable: bool = False
    drop: Drop = Drop.KEEP
    unsure: bool = False
    says: str = ""

    @property
    def is_loss(self) -> bool:
        """Whether the connection is gone, through no fault of its user."""
        return self.unsure and self.kind is Kind.CONNECTION

    def saying(self, says: str) -> Meaning:
        """A copy of this meaning with another text."""
        return replace(self, says=says)

    def fault(self, error: Exception | None = None) -> Fault:
        """The fault for the guard; `error` is raised instead of the original."""
        return Fault(
            verdict=self.verdict, kind=self.kind, repeatable=self.repeatable, billed=False, error=error,
            failure=Failure(self.kind, self.says) if error is None and self.says else None,
        )  # fmt: skip


# ── meanings ──────────────────────────────────────────────────────────────────────────────────────────────────────

LOST = Meaning(
    Kind.CONNECTION, FAILURE, repeatable=True, drop=Drop.ONE, unsure=True, says="the connection was lost"
)
STARTING = Meaning(
    Kind.CONNECTION, FAILURE, repeatable=True, says="the server is starting, recovering or shutting down"
)
# This is neutral: the server does what it is configured to do. The next connection works.
IDLED = Meaning(
    Kind.CONNECTION, NEUTRAL, repeatable=True, drop=Drop.ONE, says="the server closed an idle session"
)
UNSURE = Meaning(
    Kind.OUTCOME_UNKNOWN, FAILURE, unsure=True, says="the server does not know whether it committed"
)
BROKEN = Meaning(Kind.SERVER_ERROR, FAILURE, drop=Drop.ONE, unsure=True, says="the server broke the protocol")
LATE = Meaning(Kind.TIMEOUT, FAILURE, repeatable=True, unsure=True, says="there was no response in time")
STOPPED = Meaning(Kind.TIMEOUT, NEUTRAL, says="a statement was cancelled or took too long")
OVERSTAYED = Meaning(Kind.TIMEOUT, NEUTRAL, drop=Drop.ONE, says="the transaction was open for too long")
FULL = Meaning(Kind.OVERLOADED, FAILURE, repeatable=True, says="the server has no connection left")
EXHAUSTED = Meaning(Kind.SERVER_ERROR, FAILURE, says="the server is out of memory, disk or another resource")
# This is neutral: reads still succeed, and an open circuit would refuse them too.
DISK_FULL = Meaning(
    Kind.READ_ONLY, NEUTRAL, says="the disk (or its quota) is full: writes fail, reads succeed"
)
FAILED = Meaning(Kind.SERVER_ERROR, FAILURE, says="the server failed")
CORRUPT = Meaning(Kind.SERVER_ERROR, FAILURE, says="the data is corrupt")
# This is a failure, although the server responds: no call can succeed, and servers may lock an account after many
# failed logins.
REFUSED = Meaning(Kind.AUTH, FAILURE, says="the server refuses the user, the password or this address")
MISSING = Meaning(Kind.NOT_FOUND, FAILURE, says="the database does not exist")
CONTENDED = Meaning(
    Kind.CONTENTION, NEUTRAL, repeatable=True, says="another transaction conflicted with this one"
)
LOCKED = Meaning(Kind.CONTENTION, NEUTRAL, says="another transaction holds the lock")
OUTDATED = Meaning(
    Kind.CONFLICT, NEUTRAL, repeatable=True, says="the schema changed under a prepared statement"
)
# asyncpg does not notice that a composite type has another number of attributes. On a connection with the old type its
# statements would fail for good, so all connections are replaced.
OUTGROWN = replace(OUTDATED, drop=Drop.ALL, says="the schema changed under a type that the driver has cached")
UNPREPARED = Meaning(
    Kind.CONFLICT,
    NEUTRAL,
    repeatable=True,
    drop=Drop.ONE,
    says="a prepared statement is not on the server's connection: behind a pooler in transaction mode set"
    " DATABASE_PREPARED_STATEMENTS=false",
)
# After a failover the pooled connections still go to the old primary, which is now a standby: all are replaced.
READ_ONLY = Meaning(Kind.READ_ONLY, NEUTRAL, drop=Drop.ALL, says="the database accepts no writes")
STANDBY = READ_ONLY.saying(
    "the server accepts no writes: it is a standby, or was made read-only; new connections will be opened"
)
VIOLATED = Meaning(Kind.INTEGRITY, NEUTRAL, says="a constraint forbids it")
FORBIDDEN = Meaning(Kind.PERMISSION, NEUTRAL, says="the user has no permission for it")
MISTAKEN = Meaning(Kind.INVALID_REQUEST, NEUTRAL, says="the statement is invalid")
SATURATED = Meaning(Kind.SATURATED, NEUTRAL, says="all connections are in use")
MISCONFIGURED = Meaning(
    Kind.NOT_CONFIGURED,
    FAILURE,
    says="an option in its URL is unknown, or has a wrong value",
)
UNREADABLE = Meaning(
    Kind.NOT_FOUND, FAILURE, says="the file cannot be opened: check its folder and permissions"
)
# These are not repeated: koo's server has rolled the transaction back, but what the other server did is unknown.
ELSEWHERE = Meaning(
    Kind.CONNECTION,
    NEUTRAL,
    says="the server reports that its connection to another server failed; koo's connection is fine",
)
SHORT = Meaning(
    Kind.SERVER_ERROR, NEUTRAL, says="the statement needs more resources than the server allows it"
)
FOREIGN = Meaning(Kind.SERVER_ERROR, NEUTRAL, says="another server that the statement uses failed")
SHORT_HERE = Meaning(Kind.OUT_OF_RESOURCES, NEUTRAL, repeatable=True, says=NO_DESCRIPTOR)
UNEXPLAINED = Meaning(Kind.UNKNOWN, NEUTRAL)

SQLSTATES: dict[str, Meaning] = {
    "08": LOST,
    "08007": UNSURE,
    "08P01": BROKEN,
    "22": MISTAKEN,
    "23": VIOLATED,
    "25": MISTAKEN,
    "25006": STANDBY,
    "25P03": OVERSTAYED,
    "25P04": OVERSTAYED,
    "26000": UNPREPARED,
    "28": REFUSED,
    "28P01": REFUSED.saying("the server refuses the password"),
    "3D000": MISSING,
    "40001": CONTENDED,
    "40002": VIOLATED,
    "40003": UNSURE,
    "40P01": CONTENDED,
    "42": MISTAKEN,
    "42501": FORBIDDEN,
    "42P05": UNPREPARED,
    "53": EXHAUSTED,
    "53100": DISK_FULL,
    "53200": EXHAUSTED.saying("the server is out of memory"),
    "53300": FULL,
    "55": MISTAKEN,
    "55006": LOCKED,
    "55P03": LOCKED,
    "57": FAILED,
    "57014": STOPPED,
    "57P01": LOST.saying("the server is shutting down"),
    "57P02": LOST.saying("the server crashed and is recovering"),
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
"""PostgreSQL: by the code, else by its class (the first two characters), else a mistake in the statement."""

REPORTED: dict[str, Meaning] = {
    "08": ELSEWHERE,
    "08007": replace(UNSURE, verdict=NEUTRAL),
    "08P01": MISTAKEN,
    "28": FORBIDDEN,
    "3D000": MISTAKEN,
    "53": SHORT,
    "53100": DISK_FULL,
    "53300": FOREIGN.saying("another server that the statement uses has no connection left"),
    "57P01": ELSEWHERE,
    "57P02": ELSEWHERE,
    "57P03": ELSEWHERE,
    "57P04": ELSEWHERE,
    "57P05": ELSEWHERE,
    "58P01": MISTAKEN.saying("the server has no such file"),
    "HV": FOREIGN,
}
"""PostgreSQL, with severity ERROR. Codes that are missing here mean the same with any severity."""

AT_CONNECT: dict[str, Meaning] = {
    "0A": MISCONFIGURED.saying("the server does not support something that the driver or the URL requires"),
    "22": MISCONFIGURED,
    "42": MISCONFIGURED,
    "42501": REFUSED.saying("the user may not connect to this database (GRANT CONNECT)"),
    "55": MISSING.saying("the database accepts no connections"),
}
"""PostgreSQL, when it refuses a connection. There is no statement yet, so the mistake is in the URL."""

HELD = CONTENDED.saying("another process kept the file locked for too long")
NOT_OURS = CORRUPT.saying("the file is not an SQLite database: move it away, or restore a backup")
# All connections lead to the old file, and new ones do not.
MOVED = Meaning(
    Kind.CONNECTION,
    NEUTRAL,
    repeatable=True,
    drop=Drop.ALL,
    says="the file was moved, removed or replaced while it was open; it will be opened anew",
)

SQLITE_CODES: dict[int, Meaning] = {
    1: MISTAKEN,
    3: FORBIDDEN,
    5: HELD,
    6: HELD,
    7: SHORT_HERE.saying(NO_MEMORY),
    8: READ_ONLY.saying("the file or its folder is read-only for this user"),
    9: STOPPED,
    10: FAILED.saying("the disk failed or is full (I/O error)"),
    11: CORRUPT.saying("the file is damaged: move it away, or restore a backup"),
    13: DISK_FULL,
    14: UNREADABLE,
    17: OUTDATED,
    18: MISTAKEN,
    19: VIOLATED,
    20: MISTAKEN,
    23: FORBIDDEN,
    25: MISTAKEN,
    26: NOT_OURS,
    # SQLITE_IOERR_NOMEM
    3082: SHORT_HERE.saying(NO_MEMORY),
    # SQLITE_READONLY_DBMOVED
    1032: MOVED,
}
"""SQLite: the extended result code, else its primary one (the low byte)."""
NEED_DESCRIPTORS = frozenset({10, 14})
"""SQLITE_IOERR and SQLITE_CANTOPEN: opening the file, its journal, its folder or a temporary file failed."""


# ── reading an error ──────────────────────────────────────────────────────────────────────────────────────────────


def original_of(error: BaseException) -> BaseException:
    """The driver's own error inside SQLAlchemy's."""
    original = getattr(error, "orig", None)
    if not isinstance(original, BaseException):
        original = error
    # SQLAlchemy 2.0 wraps asyncpg's errors in its own, whose text begins with a class name and which have no severity.
    is_its_own = type(original).__module__.startswith("sqlalchemy.dialects.")
    original = original.__cause__ or original if is_its_own else original
    # asyncpg's own error for a connection that ended in the middle of a statement. Its cause is what the server said.
    if type(original).__name__ == "ConnectionDoesNotExistError" and hasattr(original.__cause__, "sqlstate"):
        return original.__cause__ or original
    return original


def sqlstate_of(error: BaseException) -> str | None:
    """PostgreSQL's five-character code, or None."""
    original = original_of(error)
    code = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)  # psycopg2
    return code if isinstance(code, str) else None


def severity_of(error: BaseException) -> str | None:
    """FATAL, ERROR and so on, in English whatever the server's language; None if the error is not from a server."""
    original = original_of(error)
    told = getattr(getattr(original, "diag", None), "severity_nonlocalized", None)  # psycopg
    told = told or getattr(original, "severity_en", None)  # asyncpg
    return told if isinstance(told, str) else None


def is_report(error: BaseException) -> bool:
    """Whether the server keeps serving this connection after the error."""
    return severity_of(error) == "ERROR"


def is_last_word(error: BaseException) -> bool:
    """Whether a server, or a pooler in front of it, ended this connection with the error."""
    return sqlstate_of(error) is not None and severity_of(error) in {"FATAL", "PANIC"}


def is_locked(error: BaseException) -> bool:
    """Whether another connection holds SQLite's lock, so that the same statement may succeed soon."""
    return by_code(original_of(error)) is HELD


def find(table: Mapping[str, Meaning], state: str) -> Meaning | None:
    """The meaning of an SQLSTATE in a table: by the code itself, else by its class."""
    return table.get(state) or table.get(state[:2])


def by_code(original: BaseException) -> Meaning | None:
    """The meaning of a driver's error by its code; None without a code."""
    state = sqlstate_of(original)
    if (state == "0A000" and _is_outdated(original)) or (state == "XX000" and _GONE.search(str(original))):
        return OUTDATED
    if state is not None:
        return (is_report(original) and find(REPORTED, state)) or find(SQLSTATES, state) or MISTAKEN
    code = getattr(original, "sqlite_errorcode", None)
    if isinstance(code, int):
        # SQLite reports a missing file and a missing file descriptor with the same code.
        if code & 0xFF in NEED_DESCRIPTORS and (short := shortage_now()) is not None:
            return SHORT_HERE.saying(short)
        return SQLITE_CODES.get(code) or SQLITE_CODES.get(code & 0xFF, FAILED)
    return None


_GONE = re.compile(r"cache lookup failed for|could not open relation with OID")
"""PostgreSQL's internal errors, never translated, for a type or table that was dropped and created again. Each pooled
connection raises one of them once, for a statement that it had prepared before. If these counted as failures, they
would open the circuit."""


def _is_outdated(original: BaseException) -> bool:
    """Whether a prepared statement has become invalid: by asyncpg's class or the function in PostgreSQL's source,
    because the text is in the server's language."""
    said_by = getattr(getattr(original, "diag", None), "source_function", None)
    return type(original).__name__ == "InvalidCachedStatementError" or said_by == "RevalidateCachedQuery"


def by_class(original: BaseException) -> Meaning | None:
    """The meaning of a driver's error without a code, by its class."""
    if _is_outdated(original):  # SQLAlchemy 2.1 wraps asyncpg's error without its SQLSTATE
        return OUTDATED
    if type(original).__name__ == "OutdatedSchemaCacheError":
        return OUTGROWN
    if type(original).__name__ == "InternalClientError":
        # asyncpg's protocol state machine is stuck for good, for example because the server ended the session between
        # two messages. The connection looks open, but every statement on it would fail.
        return LOST
    if isinstance(original, TimeoutError) or type(original).__name__ == "ConnectionTimeout":
        return LATE
    short = shortage_in(original)
    if short is not None:
        return SHORT_HERE.saying(short)
    if isinstance(original, OSError | EOFError):  # asyncio.IncompleteReadError is an EOFError
        return LOST
    return None
