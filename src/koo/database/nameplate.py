"""Names the database that an error or a status is about: host, port and name, never a user or a password.

"The server refuses connections" does not help a person who runs three servers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import URL

from koo.clock import iso
from koo.errors import DatabaseError
from koo.monitoring.shapes import DatabaseServer
from koo.monitoring.vitals import words_since
from koo.policies.breaker import CLOSED, Breaker

POSTGRES_PORT = 5432


class Nameplate:
    """`server`: which database it is; `answered_since`: since when (wall time) its probes have succeeded, or None."""

    __slots__ = ("_breaker", "answered_since", "server")

    def __init__(self, url: URL, breaker: Breaker) -> None:
        self.server = server_of(url)
        self.answered_since: float | None = None
        self._breaker = breaker

    @property
    def answers_since(self) -> float | None:
        """Since when (wall seconds) the database responds again while callers are still refused; None otherwise."""
        return None if self._breaker.phase is CLOSED else self.answered_since

    def sign(self, error: DatabaseError) -> None:
        """Record in an error which database it is about and, if the database has recovered, since when it has responded
        again."""
        error.server = self.server
        since = self.answers_since
        if since is not None and error.answers_since is None:
            error.answers_since = iso(since)
            error.reason += f"; {words_since(since)}"


def server_of(url: URL) -> DatabaseServer:
    """Host, port and name of a URL's database. If there are several hosts: all of them, and no port."""
    if url.get_backend_name() == "sqlite":
        return {"host": None, "port": None, "name": Path(url.database or ":memory:").name}
    hosts = [url.host] if url.host else [*_listed(url.query.get("host"))]
    ports = [str(url.port)] if url.port else [*_listed(url.query.get("port"))]
    port = int(ports[0]) if len(ports) == 1 and ports[0].isdecimal() else None
    if not ports and len(hosts) == 1 and not hosts[0].startswith("/"):
        port = POSTGRES_PORT
    name = url.database or next(iter(_listed(url.query.get("dbname"))), None)
    return {"host": ",".join(hosts) or None, "port": port, "name": name}


def _listed(said: str | tuple[str, ...] | None) -> Iterator[str]:
    for one in (said,) if isinstance(said, str) else said or ():
        yield from one.split(",")
