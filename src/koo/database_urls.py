"""The allowed form of a database server's URL, checked before anything else parses it.

SQLAlchemy accepts `user:my@pass:word@host`, or raises an error that shows the end of the password, and the driver then
cannot resolve the host `pass:word@host`. So the form is checked first, wherever koo receives a URL, and the error never
contains any part of it.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

from koo.hidden import Secret

ALLOWED_PLACE = (
    "expected postgresql://user:password@host:port/database with a port from 1 to 65535"
    " (in a user or password write / as %2F, @ as %40, : as %3A, ? as %3F, # as %23;"
    " several hosts as /database?host=a:5432&host=b:5432)"
)

NAMES_NO_USER = "its URL names no user, and this process's system account has no user name either: add a user"
UNREADABLE = "an option in its URL, or a PG… environment variable, is unknown or has a wrong value"

_HOST_AND_PORT = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^:\[\]@\s]*)(?::(\d{1,5}))?")


class UnusableArguments(Exception):
    """A driver could not build connection arguments from a URL and the environment; its text is for people."""


def with_hidden_password(url: Any) -> Any:
    """A copy of the SQLAlchemy URL with a hidden password. The URL is a tuple, which error reporters unpack in
    tracebacks."""
    return url.set(password=Secret(url.password)) if url.password else url


def check_place(rest: str) -> None:
    """Check the part after `://`. Raises `ValueError` with the allowed form, and no part of the URL."""
    authority = re.split(r"[/?]", rest, maxsplit=1)[0]
    user, _, host = authority.rpartition("@")
    place = _HOST_AND_PORT.fullmatch(host)
    # Only one @ is expected, in front of the host. A second one before it is part of the password. One after the first
    # / or ? means that the password contains that / or ?, and its rest would be read as a host or path, and shown.
    cut = "@" in user or "@" in rest[len(authority) :]
    if cut or place is None or not _is_port(place[1]):
        raise ValueError(ALLOWED_PLACE)


def check_host(host: str | None, port: int | None) -> None:
    """Check parts that were already parsed: the supposed host may be the end of a password."""
    if "@" in (host or "") or not (port is None or 0 < port < 65_536):
        raise ValueError(ALLOWED_PLACE)


def _is_port(text: str | None) -> bool:
    return text is None or 0 < int(text) < 65_536


def is_same_server(one: str, other: str) -> bool:
    """Whether two URLs name the same PostgreSQL server: the same host and port.

    With several hosts, both URLs must list the same ones. False for an unreadable URL.
    """
    first = _places(one)
    return first is not None and first == _places(other)


def _places(url: str) -> tuple[tuple[str, int], ...] | None:
    try:
        parts = urlsplit(url)
        if not parts.scheme.startswith("postgres"):
            return None
        asked = parse_qs(parts.query)
        listed = [*asked.get("host", []), *([parts.hostname] if parts.hostname else [])]
        hosts = [host for one in listed for host in one.split(",")] or ["localhost"]
        port = int(asked["port"][0]) if "port" in asked else parts.port or 5432
        return tuple(_place(host, port) for host in hosts)
    except ValueError:
        return None


def _place(host: str, port: int) -> tuple[str, int]:
    name, _, own = host.rpartition(":")
    if host.startswith("/") or not own.isdecimal() or (":" in name and not name.endswith("]")):
        name, own = host, str(port)  # a socket, a bare name, or an IPv6 address
    return ("localhost" if name in ("127.0.0.1", "::1", "[::1]") else name.lower(), int(own))
