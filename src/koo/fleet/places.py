"""What a guard protects, so that processes only compare guards in front of the same server.

Two processes may use one name for two servers: different addresses, or an address that is local to each machine.
"""

from __future__ import annotations

import hashlib
import os
import socket
from functools import cache
from urllib.parse import urlsplit

from koo.ai.assembly import ADDRESSES
from koo.hidden import Secret
from koo.http.proxies import is_loopback
from koo.options import DatabaseOptions, ServiceOptions
from koo.policies.fleet import Presence
from koo.workplace import worker_name


def place_of(options: ServiceOptions) -> str:
    """Of a service's server, whatever the key."""
    if options.kind == "local":
        return _digest("local", socket.gethostname())
    address = options.base_url or ADDRESSES.get(options.kind, "")
    return _digest(options.kind, address, _machine(address))


def place_of_key(options: ServiceOptions) -> str:
    """The same, with the key: whether a key is accepted depends on that key alone."""
    return _digest(place_of(options), options.api_key or "")


def place_of_database(options: DatabaseOptions) -> str:
    """Of a database's server, without user and password."""
    parts = urlsplit(options.url or "")
    return _digest(parts.scheme, parts.netloc.rpartition("@")[2], parts.path, _machine(options.url or ""))


def _machine(address: str) -> str:
    """This machine, if only it can reach the address."""
    host = urlsplit(address).hostname or ""
    return socket.gethostname() if not host or is_loopback(host) else ""


def _digest(*parts: str) -> str:
    text = Secret("\n".join(parts))
    return hashlib.blake2b(
        text.encode("utf-8", "surrogatepass"), digest_size=6, person=b"koo place"
    ).hexdigest()


def presence_of(ledger: str, label: str, configuration: str) -> Presence:
    """What this process says of itself. In Kubernetes the host's name is the pod's."""
    return Presence(
        ledger=ledger,
        host=socket.gethostname(),
        worker=worker_name(),
        pid=os.getpid(),
        version=_version(),
        label=label,
        configuration=configuration,
    )


@cache
def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # it takes some milliseconds

    try:
        return version("koo")
    except PackageNotFoundError:  # a folder of sources that was never installed
        return ""
