"""Options of connections to other machines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from koo.checked import Checked, option


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions(Checked):
    """Connections to other machines: proxies, and trusted certificates."""

    https_proxy: str | None = option(
        None,
        "proxy on the way to addresses that begin with https://, asked for a tunnel (CONNECT)",
        "none, unless the machine's other programs use one too",
        secret=True,
    )
    http_proxy: str | None = option(
        None, "proxy on the way to addresses that begin with http://", "as for https", secret=True
    )
    all_proxy: str | None = option(
        None, "proxy if neither of the two above is set", "as for https", secret=True
    )
    no_proxy: str = option(
        "",
        "hosts that are reached without a proxy: domains, addresses, networks, or * for all; this machine always is",
        "a proxy elsewhere cannot reach what is near",
    )
    cert_file: Path | None = option(
        None,
        "file of certificate authorities (PEM) that are trusted beside the system's",
        "the system's are enough, unless the network has one of its own",
    )
    cert_dir: str | None = option(
        None,
        "the same as folders of such files, with the names that `openssl rehash` makes",
        "as for the file",
    )
    idle_connection_s: float = option(
        4.0,
        "idle time after which a connection to an AI service is closed, and the next query opens a new one",
        "uvicorn (and with it vLLM), Node.js and Apache close theirs after 5 s; larger where the servers wait longer",
        unit="s",
        above=0,
        at_most=3600,
    )
