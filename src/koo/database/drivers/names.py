"""Resolves the names of a database's servers in koo's own threads, before a driver connects.

Both drivers resolve names through the event loop, in the threads of the application's default executor. A lookup that
hangs would block those threads one after another. psycopg accepts addresses in addition to the names, and then resolves
nothing. asyncpg accepts only the name, because TLS needs it, so it gets an event loop that resolves names as koo does
(`lookup_loop.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, NamedTuple

from koo.lookups import LOOKUPS

SHARE_OF_CONNECTS = 0.9
"""The hosts of a URL share this part of the time for getting a connection; the rest is for the last one's login."""
TIMEOUT_S_MIN = 2
"""libpq's shortest `connect_timeout`."""


class Server(NamedTuple):
    """One server of a URL: its host name, its port as written in the URL, and its addresses."""

    host: str
    port: str
    addresses: tuple[str, ...]


async def find_servers(parameters: Mapping[str, Any]) -> list[Server]:
    """The servers whose names can be resolved; empty if there is no name to resolve. Raises OSError if none can be."""
    hosts = listed(parameters.get("host"))
    ports = listed(parameters.get("port"))
    if all(map(_needs_no_lookup, hosts)):
        return []
    # As in libpq, a single port applies to all hosts. With any other number the driver itself must raise the error.
    if len(ports) != len(hosts):
        ports = (ports or [""]) * len(hosts) if len(ports) < 2 else [""] * len(hosts)
    found = await asyncio.gather(*map(addresses_of, hosts), return_exceptions=True)
    servers = [
        Server(host, port, addresses)
        for host, port, addresses in zip(hosts, ports, found, strict=True)
        if not isinstance(addresses, BaseException)
    ]
    if not servers:
        raise next(one for one in found if isinstance(one, BaseException))
    return servers


def as_libpq(servers: list[Server], parameters: Mapping[str, Any]) -> dict[str, str]:
    """libpq's parameters to try every address of every server; empty if libpq has to resolve the names itself."""
    tries = [(one.host, address, one.port) for one in servers for address in one.addresses]
    if parameters.get("hostaddr") or not tries:
        return {}
    host, hostaddr, port = (",".join(column) for column in zip(*tries, strict=True))
    return {"host": host, "hostaddr": hostaddr, **({"port": port} if port.strip(",") else {})}


def time_of_each(parameters: Mapping[str, Any], within_s: float) -> dict[str, int]:
    """libpq's parameters for a URL with several hosts: the first may be a dead machine, which never responds."""
    hosts = len(listed(parameters.get("host")))
    if hosts < 2 or parameters.get("connect_timeout"):
        return {}
    return {"connect_timeout": max(TIMEOUT_S_MIN, int(within_s * SHARE_OF_CONNECTS / hosts))}


async def addresses_of(host: str) -> tuple[str, ...]:
    """The addresses of a name. An address is returned as it is, a socket path as "" (for libpq). Raises OSError."""
    if _needs_no_lookup(host):
        return ("" if host.startswith(("/", "@")) else host,)
    return tuple(dict.fromkeys(address[4][0] for address in await LOOKUPS.find(host, 0)))


def listed(given: object) -> list[str]:
    """A list of values, read as libpq and asyncpg do: one value, several separated by commas, or a list."""
    if isinstance(given, list | tuple):
        return [str(one) for one in given]
    return str(given).split(",") if given else []


def _needs_no_lookup(host: str) -> bool:
    """Whether the host is an address or a socket's path."""
    if not host or host.startswith(("/", "@")):
        return True
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
