"""The names of a database's servers, looked up in koo's own threads before a driver is asked to connect.

Both drivers look names up through the event loop, in the application's threads, and a name that hangs would block them
one after another. psycopg is passed the addresses, and then looks nothing up. asyncpg takes no address beside the name,
which TLS needs: it gets a loop that looks names up as koo does (`lookup_loop.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, NamedTuple

from koo.lookups import LOOKUPS


class Server(NamedTuple):
    """One server of a URL: its host as named, its port as written, its addresses."""

    host: str
    port: str
    addresses: tuple[str, ...]


async def find_servers(parameters: Mapping[str, Any]) -> list[Server]:
    """The servers whose names resolve. Raises OSError if none does; empty: there is no name to look up."""
    hosts = _listed(parameters.get("host"))
    ports = _listed(parameters.get("port"))
    if all(map(_needs_no_lookup, hosts)):
        return []
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
    """Each address of each server as one to try, as libpq lists them; empty if libpq has to find them itself."""
    tries = [(one.host, address, one.port) for one in servers for address in one.addresses]
    if parameters.get("hostaddr") or not tries:
        return {}
    host, hostaddr, port = (",".join(column) for column in zip(*tries, strict=True))
    return {"host": host, "hostaddr": hostaddr, **({"port": port} if port.strip(",") else {})}


async def addresses_of(host: str) -> tuple[str, ...]:
    """The addresses of a name; an address itself; for libpq an empty one for a socket path. Raises OSError."""
    if _needs_no_lookup(host):
        return ("" if host.startswith(("/", "@")) else host,)
    return tuple(dict.fromkeys(address[4][0] for address in await LOOKUPS.find(host, 0)))


def _listed(given: object) -> list[str]:
    """As libpq and asyncpg read it: a single one, several separated by commas, or a list."""
    if isinstance(given, list | tuple):
        return [str(one) for one in given]
    return str(given).split(",") if given else []


def _needs_no_lookup(host: str) -> bool:
    """An address, or a socket's path."""
    if not host or host.startswith(("/", "@")):
        return True
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
