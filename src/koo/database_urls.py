"""What the URL of a database on a server may look like, before anything reads it.

SQLAlchemy reads `user:my@pass:word@host` without a complaint, or complains with the end of the password in its error,
and the driver then cannot resolve the host `pass:word@host`. So the form is checked first, everywhere where such a URL
comes in, and the error never holds a part of it.
"""

from __future__ import annotations

import re

ALLOWED_PLACE = (
    "allowed is postgresql://user:password@host:port/database with a port from 1 to 65535"
    " (in a user or password write / as %2F, @ as %40, : as %3A, ? as %3F, # as %23;"
    " several hosts as /database?host=a:5432&host=b:5432)"
)

NAMES_NO_USER = "its URL names no user, and the system has no name for the one that this process runs as"
UNREADABLE = "an option in its URL, or in a variable PG… of the environment, is unknown or has a wrong value"

_HOST_AND_PORT = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^:\[\]@\s]*)(?::(\d{1,5}))?")


class UnusableArguments(Exception):
    """A driver could not make a connection's arguments of a URL and the environment; its text is for people."""


def check_place(rest: str) -> None:
    """What follows the `://`. Raises `ValueError` with what is allowed, and nothing of the URL."""
    authority = re.split(r"[/?]", rest, maxsplit=1)[0]
    user, _, host = authority.rpartition("@")
    place = _HOST_AND_PORT.fullmatch(host)
    # A second @ before the host is one of the password, and one further on is of a password with a / or ? in it: taken
    # for a host or a path, it would be shown.
    cut = "@" in user or "@" in rest[len(authority) :]
    if cut or place is None or not _is_port(place[1]):
        raise ValueError(ALLOWED_PLACE)


def check_host(host: str | None, port: int | None) -> None:
    """The same of parts that something else has read already: what it took for the host may be a password's end."""
    if "@" in (host or "") or not (port is None or 0 < port < 65_536):
        raise ValueError(ALLOWED_PLACE)


def _is_port(text: str | None) -> bool:
    return text is None or 0 < int(text) < 65_536
