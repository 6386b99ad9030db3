"""What both PostgreSQL drivers ask of the network and of the server, each in its own words.

*TCP.* A peer that vanished without a goodbye is noticed by keepalives while nothing is said, and by the user timeout
while something is unanswered. The system's own defaults are two hours and a quarter of one.

*The server.* A process that is stopped or cut off cannot take its statement back, and its transaction keeps its locks.
So each connection is opened with the server's own timeouts, a little longer than the longest scope: while the process
lives, koo's deadline always comes first. A value in the URL or in `connect_args` wins. A pooler that refuses parameters
at the start is asked once more without them, and from then on not again. What is said at the start goes before what a
role has been given (`ALTER ROLE ... SET statement_timeout`), so the first connection asks for that, and of the two the
shorter holds.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress

from koo.options import DatabaseOptions

KEEPALIVE_PROBES = 3
MS_MAX = 2**31 - 1
"""The server's timeouts are 32-bit milliseconds."""
REFUSES_PARAMETERS = ("startup parameter", "command-line options")
"""Words of PgBouncer and its like, and of RDS Proxy."""

ROLE_TIMEOUTS = """
SELECT DISTINCT ON (split_part(one, '=', 1)) split_part(one, '=', 1), substr(one, strpos(one, '=') + 1)
FROM pg_catalog.pg_db_role_setting, unnest(setconfig) AS one
WHERE split_part(one, '=', 1) IN ('statement_timeout', 'idle_in_transaction_session_timeout')
AND setrole IN (0, (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user))
AND setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()))
ORDER BY split_part(one, '=', 1), setrole = 0, setdatabase = 0
"""
"""What a role was given in this database, else anywhere, else what all roles were: in the order in which it counts."""
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s|min|h|d)?")
_UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1e3, "min": 60e3, "h": 3600e3, "d": 86_400e3}

log = logging.getLogger("koo")


def server_timeouts(options: DatabaseOptions) -> dict[str, str]:
    """The server's settings for a connection; empty where the option leaves them alone."""
    if not options.server_timeouts:
        return {}
    last_s = options.scope_timeout_s + options.cleanup_timeout_s
    last = str(min(int(last_s * 1000), MS_MAX))
    return {"statement_timeout": last, "idle_in_transaction_session_timeout": last}


class ServerTimeouts:
    """What the connections of one database ask the server for at their start, and what was learned about it."""

    def __init__(self, options: DatabaseOptions) -> None:
        self._ours = server_timeouts(options)
        self._of_role: dict[object, Mapping[str, str]] = {}

    def of(self, user: object) -> dict[str, str]:
        """koo's own, without those for which the role has something shorter."""
        return {name: value for name, value in self._ours.items() if name not in self._of_role.get(user, ())}

    def must_ask(self, user: object) -> bool:
        """Whether this user's role was not asked for yet."""
        return bool(self._ours) and user not in self._of_role

    def learn(self, user: object, rows: Iterable[tuple[str, str]]) -> Mapping[str, str]:
        """The answer to `ROLE_TIMEOUTS`; returns what is shorter than koo's, to be set where koo's is already."""
        ours = {name: int(value) for name, value in self._ours.items()}
        shorter = {name: value for name, value in rows if 0 < milliseconds(value) < ours.get(name, 0)}
        self._of_role[user] = shorter
        return shorter

    def are_refused(self, asked: Mapping[str, str], error: Exception) -> bool:
        """Whether a pooler refused to be asked for these settings; then it is not asked again."""
        # By what this connection asked for: others may have been refused while it was being opened.
        refused = bool(asked) and any(words in str(error) for words in REFUSES_PARAMETERS)
        if refused:
            self._ours = {}
            log.info(
                "database: the pooler takes no statement_timeout, so the server does not know koo's deadlines"
            )
        return refused


def milliseconds(setting: str) -> float:
    """A time as PostgreSQL writes it in a setting: milliseconds, where it has no unit. Zero is none."""
    found = _TIME.fullmatch(setting.strip().strip("'"))
    return float(found[1]) * _UNITS_MS[found[2] or "ms"] if found else 0.0


def libpq_parameters(options: DatabaseOptions) -> dict[str, int]:
    """The TCP options as libpq spells them."""
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
    """The same options on a socket that is connected; a Unix socket needs none."""
    # Of a copy: an event loop's own socket object may not let itself be set.
    with suppress(OSError), socket.socket(fileno=os.dup(fileno)) as wire:
        if wire.family not in (socket.AF_INET, socket.AF_INET6):
            return
        if options.keepalive_s:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _tcp_options(options).items():
            number = getattr(socket, name, None)  # each system lacks one or another
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


def sever(fd: int) -> None:
    """In a forked child: let an inherited socket's descriptor lead nowhere, and the parent's connection be.

    Whatever closes it later, or ends its transaction, says that to nobody. Without this a child that ends by itself
    (`sys.exit`) would say goodbye in its parent's name, and take the socket out of the selector that both share.
    """
    nowhere, other = socket.socketpair()
    other.close()
    os.dup2(nowhere.fileno(), fd)
    nowhere.close()
