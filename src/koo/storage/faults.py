"""What a failing state store means, as one sentence to act on: never a DSN, never a statement's values."""

from __future__ import annotations

import re

SQLITE = (
    ("disk is full", "the disk (or its quota) is full"),
    ("readonly", "the file or its folder is read-only for this user"),
    ("not a database", "the file is no SQLite database: move it away, or restore a backup"),
    ("malformed", "the file is damaged: move it away, or restore a backup"),
    ("locked", "another process kept it locked for too long"),
    ("busy", "another process kept it locked for too long"),
    ("unable to open", "the file cannot be opened: look at its folder and permissions"),
    ("disk i/o", "the disk failed or is full (I/O error)"),
    ("interrupted", "a statement took too long and was ended"),
)

POSTGRESQL = {
    "25006": "it is read-only (a standby?)",
    "28000": "it does not let this user in",
    "28P01": "it refuses the password",
    "3D000": "it has no such database",
    "40001": "other processes write the same rows all the time",
    "40P01": "other processes write the same rows all the time",
    "42501": "this user may not create or write koo's tables",
    "42P01": "koo's tables are gone",
    "53100": "its disk is full",
    "53200": "it is out of memory",
    "53300": "it has no connection left",
    "55P03": "another process kept a row locked for too long",
    "57014": "a statement took too long and was ended",
    "57P01": "it is shutting down",
    "57P02": "it crashed and recovers",
    "57P03": "it is starting up or shutting down",
}

# What PostgreSQL says while connecting comes without a code, as the text of another library's error.
CONNECTING = (
    ("password authentication failed", POSTGRESQL["28P01"]),
    ("no password supplied", "it asks for a password"),
    ("no pg_hba.conf entry", POSTGRESQL["28000"]),
    ("does not exist", "the database or the user does not exist there"),
    ("too many", POSTGRESQL["53300"]),
    ("remaining connection slots", POSTGRESQL["53300"]),
    ("starting up", POSTGRESQL["57P03"]),
    ("shutting down", POSTGRESQL["57P03"]),
    ("recovery mode", POSTGRESQL["57P02"]),
    ("refused", "nobody listens there"),
    ("timeout", "it does not answer"),
    ("timed out", "it does not answer"),
    ("resolve", "its host name is unknown"),
    ("name or service not known", "its host name is unknown"),
    ("ssl", "the TLS handshake failed"),
    ("closed the connection unexpectedly", "it closed the connection"),
)

TRANSIENT = frozenset({"40001", "40P01"})


def sentence(error: BaseException, place: str) -> str:
    """Why the store at `place` cannot be used."""
    cause = getattr(error, "orig", None) or error
    code = getattr(cause, "sqlstate", None)
    if isinstance(cause, OSError) and cause.strerror:
        reason = cause.strerror.lower()
    elif code:
        reason = POSTGRESQL.get(code, f"it answered with error {code}")
    else:
        reason = _by_text(str(cause).lower()) or f"it failed with {type(cause).__name__}"
    return f"the state store ({place}) cannot be used: {reason}"


def _by_text(said: str) -> str | None:
    for word, reason in SQLITE + CONNECTING:
        if re.search(rf"\b{re.escape(word)}", said):
            return reason
    return None


def transient(error: BaseException) -> bool:
    """Did the database itself undo the transaction, so that the same one may succeed at once?"""
    return getattr(getattr(error, "orig", None), "sqlstate", None) in TRANSIENT
