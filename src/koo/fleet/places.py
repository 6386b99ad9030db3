"""The place that a guard protects, as a digest, so that processes compare only guards of the same server.

Two processes may use the same name for different servers: another address, or an address local to each machine.
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
    """The place of a service's server, whatever the key."""
    if options.kind == "local":
        return _digest("local", socket.gethostname())
    address = options.base_url or ADDRESSES.get(options.kind, "")
    return _digest(options.kind, address, _machine(address))


def place_of_key(options: ServiceOptions) -> str:
    """The place including the key, for results that are about one key, such as whether it is accepted."""
    return _digest(place_of(options), options.api_key or "")


def place_of_database(options: DatabaseOptions) -> str:
    """The place of a database, without user and password."""
    # Whether a server can be reached does not depend on the user, and each process often has its own.
    parts = urlsplit(options.url or "")
    return _digest(parts.scheme, parts.netloc.rpartition("@")[2], parts.path, _machine(options.url or ""))


def _machine(address: str) -> str:
    """This machine's name if the address is local to it, else empty."""
    # 127.0.0.1 on two machines is two servers. If they were taken for the same server, an outage of one would prime the
    # breakers of the other.
    host = urlsplit(address).hostname or ""
    return socket.gethostname() if not host or is_loopback(host) else ""


def _digest(*parts: str) -> str:
    # The parts are wrapped in `Secret`, because a key is among them: a traceback that shows local variables must not
    # show it.
    text = Secret("\n".join(parts))
    return hashlib.blake2b(
        text.encode("utf-8", "surrogatepass"), digest_size=6, person=b"koo place"
    ).hexdigest()


def presence_of(ledger: str, label: str, configuration: str) -> Presence:
    """This process's description of itself. In Kubernetes the host name is the pod's name."""
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
    from importlib.metadata import PackageNotFoundError, version  # the import takes some milliseconds

    try:
        return version("koo")
    except PackageNotFoundError:  # run from a source folder that was never installed
        return ""
