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
        "proxy for https:// addresses, through a tunnel (CONNECT)",
        "none, unless the machine's other programs use one too",
        secret=True,
    )
    http_proxy: str | None = option(None, "proxy for http:// addresses", "as for https", secret=True)
    all_proxy: str | None = option(
        None, "proxy if neither of the two above is set", "as for https", secret=True
    )
    no_proxy: str = option(
        "",
        "hosts reached without a proxy, in addition to this machine: domains, addresses, networks, or * for all",
        "a remote proxy cannot reach local hosts",
    )
    cert_file: Path | None = option(
        None,
        "file of certificate authorities (PEM) that are trusted in addition to the system's",
        "the system's are enough, unless the network has one of its own",
    )
    cert_dir: str | None = option(
        None,
        "folders of such files, with the names that `openssl rehash` gives them",
        "as for the file",
    )
    idle_connection_s: float = option(
        4.0,
        "idle time after which a connection to an AI service is closed, and the next query opens a new one",
        "uvicorn (and with it vLLM), Node.js and Apache close theirs after 5 s; raise it if your servers wait longer",
        unit="s",
        above=0,
        at_most=3600,
    )
