"""The network and server settings that both PostgreSQL drivers use, each under its own names.

*TCP.* If the peer vanishes silently, keepalives detect it on an idle connection, and the user timeout detects it while
sent data is unacknowledged. The defaults of the operating system are two hours and about a quarter of an hour.

*The server.* A process that is stopped or disconnected cannot cancel its statement, and its transaction keeps its
locks. So each connection is opened with the server's own timeouts, slightly longer than the longest scope: as long as
the process lives, koo's deadline always comes first. A value in the URL or in `connect_args` wins. If a pooler refuses
startup parameters, koo opens the connection again without them, and later connections do not send them. Startup
parameters override a role's settings (`ALTER ROLE ... SET statement_timeout`), so the first connection queries those,
and the shorter value wins.
"""

from __future__ import annotations

import logging
import os
import re
import select
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress

from koo.options import NEVER, DatabaseOptions

KEEPALIVE_PROBES = 3
MS_MAX = 2**31 - 1
"""The server's timeouts are 32-bit milliseconds."""
IDLE_TIMEOUT = "idle_in_transaction_session_timeout"
REFUSES_PARAMETERS = ("startup parameter", "command-line options")
"""Text in the errors of poolers that refuse startup parameters: PgBouncer and similar ones, and RDS Proxy."""

ROLE_TIMEOUTS = """
SELECT DISTINCT ON (split_part(one, '=', 1)) split_part(one, '=', 1), substr(one, strpos(one, '=') + 1)
FROM pg_catalog.pg_db_role_setting, unnest(setconfig) AS one
WHERE split_part(one, '=', 1) IN ('statement_timeout', 'idle_in_transaction_session_timeout')
AND setrole IN (0, (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user))
AND setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()))
ORDER BY split_part(one, '=', 1), setrole = 0, setdatabase = 0
"""
"""In order of precedence: the role's settings in this database, those in all databases, and those of all roles."""
_HUNG_UP = getattr(select, "POLLRDHUP", 0)
"""Linux only. Elsewhere the system reports the end of a connection as POLLHUP, which needs no request."""
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s|min|h|d)?")
_UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1e3, "min": 60e3, "h": 3600e3, "d": 86_400e3}

log = logging.getLogger("koo")


def server_timeouts(options: DatabaseOptions) -> dict[str, str]:
    """The server's timeouts for a connection; empty if the option turns them off."""
    if not options.server_timeouts:
        return {}
    last_s = options.scope_timeout_s + options.cleanup_timeout_s
    last = str(min(int(last_s * 1000), MS_MAX))
    return {"statement_timeout": last, IDLE_TIMEOUT: last}


class ServerTimeouts:
    """The timeouts that one database's connections request at startup, and the roles' own timeouts."""

    def __init__(self, options: DatabaseOptions) -> None:
        self._ours = server_timeouts(options)
        self._of_role: dict[object, Mapping[str, str]] = {}

    def of(self, user: object) -> dict[str, str]:
        """koo's timeouts, without those for which the role has a shorter value."""
        return {name: value for name, value in self._ours.items() if name not in self._of_role.get(user, ())}

    def must_ask(self, user: object) -> bool:
        """Whether the timeouts of this user's role have not been queried yet."""
        return bool(self._ours) and user not in self._of_role

    def learn(self, user: object, rows: Iterable[tuple[str, str]]) -> Mapping[str, str]:
        """Keep the result of `ROLE_TIMEOUTS`; returns the values shorter than koo's, to be set on this connection."""
        # This connection was opened with koo's values, which override the role's, so the role's must be set again on
        # it. Later connections leave those values out (`of`), and the role's take effect by themselves.
        ours = {name: int(value) for name, value in self._ours.items()}
        shorter = {name: value for name, value in rows if 0 < milliseconds(value) < ours.get(name, 0)}
        self._of_role[user] = shorter
        return shorter

    def idle_limit_s(self, user: object, given: Mapping[str, str]) -> float:
        """After how many idle seconds the server ends this user's transactions. `given`: the URL's settings."""
        settings = {**self._ours, **self._of_role.get(user, {}), **given}
        return milliseconds(str(settings.get(IDLE_TIMEOUT, ""))) / 1000 or NEVER

    def are_refused(self, asked: Mapping[str, str], error: Exception) -> bool:
        """Whether a pooler refused these settings; then they are not requested again."""
        # Depends on what *this* connection requested, not on `_ours`: several may be opening at the same time, and the
        # first one that is refused empties `_ours`. The others must still be opened again, without parameters.
        refused = bool(asked) and any(words in str(error) for words in REFUSES_PARAMETERS)
        if refused:
            self._ours = {}
            log.info(
                "database: the pooler does not accept statement_timeout, so the server cannot enforce koo's deadlines"
            )
        return refused


def milliseconds(setting: str) -> float:
    """The milliseconds of a time in PostgreSQL's notation, whose default unit is milliseconds. 0 means no limit."""
    found = _TIME.fullmatch(setting.strip().strip("'"))
    return float(found[1]) * _UNITS_MS[found[2] or "ms"] if found else 0.0


def libpq_parameters(options: DatabaseOptions) -> dict[str, int]:
    """The TCP options under libpq's names."""
    parameters: dict[str, int] = {}
    if options.keepalive_s:
        parameters |= {
            "keepalives": 1,
            "keepalives_idle": _whole(options.keepalive_s),
            "keepalives_interval": _whole(options.keepalive_s / KEEPALIVE_PROBES),
            "keepalives_count": KEEPALIVE_PROBES,
        }
    if options.tcp_user_timeout_s:
        parameters["tcp_user_timeout"] = int(options.tcp_user_timeout_s * 1000)
    return parameters


def set_up_socket(fileno: int, options: DatabaseOptions) -> None:
    """Set the same options on a connected socket; a Unix socket needs none."""
    # They are set on a copy of the descriptor: the event loop's own socket object may not allow `setsockopt`.
    with suppress(OSError), socket.socket(fileno=os.dup(fileno)) as wire:
        if wire.family not in (socket.AF_INET, socket.AF_INET6):
            return
        if options.keepalive_s:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _tcp_options(options).items():
            number = getattr(socket, name, None)  # no operating system has all of them
            if number is not None:
                wire.setsockopt(socket.IPPROTO_TCP, number, value)


def _tcp_options(options: DatabaseOptions) -> Mapping[str, int]:
    wanted: dict[str, int] = {}
    if options.keepalive_s:
        wanted |= {
            "TCP_KEEPIDLE": _whole(options.keepalive_s),
            "TCP_KEEPINTVL": _whole(options.keepalive_s / KEEPALIVE_PROBES),
            "TCP_KEEPCNT": KEEPALIVE_PROBES,
        }
    if options.tcp_user_timeout_s:
        wanted["TCP_USER_TIMEOUT"] = int(options.tcp_user_timeout_s * 1000)
    return wanted


def _whole(seconds: float) -> int:
    return max(1, round(seconds))


def is_hung_up(fd: int) -> bool:
    """Whether the peer has closed its side of a connected socket. One system call, which waits for nothing."""
    if fd < 0:  # this process has closed it
        return True
    poll = select.poll()
    poll.register(fd, _HUNG_UP)
    return bool(poll.poll(0))


def sever(fd: int) -> None:
    """In a forked child: detach an inherited descriptor from the parent's connection."""
    # A child that exits (`sys.exit`) would otherwise send the driver's goodbye over the shared socket and so close the
    # parent's connection, and take the socket out of the selector that both processes share. `dup2` puts a socket
    # without a peer behind the same number: what the child sends or closes from now on reaches no server.
    nowhere, other = socket.socketpair()
    other.close()
    os.dup2(nowhere.fileno(), fd)
    nowhere.close()
