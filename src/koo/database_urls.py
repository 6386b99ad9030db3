"""What the URL of a database server may look like, checked before anything reads it.

SQLAlchemy reads `user:my@pass:word@host` without complaint, or complains with the end of the password in its error, and
the driver then cannot resolve the host `pass:word@host`. So the form is checked first, wherever such a URL comes in,
and the error never contains any part of it.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

from koo.hidden import Secret

ALLOWED_PLACE = (
    "allowed is postgresql://user:password@host:port/database with a port from 1 to 65535"
    " (in a user or password write / as %2F, @ as %40, : as %3A, ? as %3F, # as %23;"
    " several hosts as /database?host=a:5432&host=b:5432)"
)

NAMES_NO_USER = (
    "its URL names no user, and the system has no user name for the account of this process: add a user"
)
UNREADABLE = "an option in its URL, or in a variable PG… of the environment, is unknown or has a wrong value"

_HOST_AND_PORT = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^:\[\]@\s]*)(?::(\d{1,5}))?")


class UnusableArguments(Exception):
    """A driver could not build connection arguments from a URL and the environment; its text is for people."""


def with_hidden_password(url: Any) -> Any:
    """The same SQLAlchemy URL with its password hidden from tracebacks: it is a tuple, which error reporters unpack."""
    return url.set(password=Secret(url.password)) if url.password else url


def check_place(rest: str) -> None:
    """Check what follows `://`. Raises `ValueError` with what is allowed, and no part of the URL."""
    authority = re.split(r"[/?]", rest, maxsplit=1)[0]
    user, _, host = authority.rpartition("@")
    place = _HOST_AND_PORT.fullmatch(host)
    # A second @ before the host belongs to the password, and one further on to a password with a / or ? in it: taken
    # for a host or a path, it would be shown.
    cut = "@" in user or "@" in rest[len(authority) :]
    if cut or place is None or not _is_port(place[1]):
        raise ValueError(ALLOWED_PLACE)


def check_host(host: str | None, port: int | None) -> None:
    """The same for parts that were already parsed: what was taken for the host may be the end of a password."""
    if "@" in (host or "") or not (port is None or 0 < port < 65_536):
        raise ValueError(ALLOWED_PLACE)


def _is_port(text: str | None) -> bool:
    return text is None or 0 < int(text) < 65_536


def is_same_server(one: str, other: str) -> bool:
    """Whether two URLs lead to the same PostgreSQL server, as far as they say: the same host and port.

    Several hosts in a URL are one place only if both URLs list the same ones. False for a URL that cannot be read.
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
