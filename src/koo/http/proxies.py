"""Choose the proxy for a URL from HTTP_PROXY and the related variables, by the rules of other HTTP clients.

* `HTTPS_PROXY` applies to https URLs, `HTTP_PROXY` to http URLs, and `ALL_PROXY` to both if the specific one is not
  set.
* `NO_PROXY` lists the hosts to reach directly, separated by commas or spaces. An entry is a domain with its subdomains
  (a leading dot or `*.` makes no difference), an IP address, a network (`10.0.0.0/8`), any of these with a port, or `*`
  for all hosts.
* Servers on this machine are always reached directly, because a proxy elsewhere cannot reach them. The only exception
  is a proxy that is set for the service itself.
* The password is sent to the proxy and never shown: `Proxy` prints only its URL.

The functions here are pure: they read the variables from the options, and their caller chooses the client.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from urllib.parse import SplitResult, unquote, urlsplit

from koo.errors import ConfigurationError
from koo.hidden import Secret
from koo.network_options import NetworkOptions

ALLOWED_PROXY = (
    "a URL that begins with http:// or https://, such as http://user:password@proxy.example:3128 "
    "(in a user or password write / as %2F, @ as %40, : as %3A, ? as %3F, # as %23)"
)


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy: its URL, and the value of `Proxy-Authorization` ("" if it needs no login)."""

    url: str
    credentials: str = field(default="", repr=False)

    def __str__(self) -> str:
        return self.url


def read_proxy(text: str) -> Proxy:
    """Parse a proxy's URL; without a scheme it is http. Raises `ValueError`, which does not quote the text."""
    parts = _split(text)
    # A password with an unquoted `/`, `?` or `#` shifts the parts: in http://user:pa/ss@proxy the host is `user` and
    # the rest is a path. A name lookup would then send half a password to the name server, and the error would print
    # it.
    if parts is None or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError(f"expected {ALLOWED_PROXY}")
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    url = f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
    if parts.username is None:
        return Proxy(url)
    user, password = unquote(parts.username), unquote(parts.password or "")
    if ":" in user:
        # Basic authentication joins both with a colon (RFC 7617), so a proxy splits at the first one it finds.
        raise ValueError("expected a user name without a colon, which separates it from the password")
    return Proxy(url, Secret("Basic " + b64encode(f"{user}:{password}".encode()).decode()))


def _split(text: str) -> SplitResult | None:
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        right = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts if right and text.isprintable() and " " not in text else None


def proxy_of(url: str, network: NetworkOptions, own: str | None = "") -> Proxy | None:
    """The proxy for a URL, or None for a direct connection.

    `own` is the service's own setting: a proxy, None for no proxy, "" to use the environment. Raises
    `ConfigurationError` for a proxy that koo cannot use.
    """
    if own is None:
        return None
    name, text = ("PROXY", own) if own else _named_for(url, network)
    if not text:
        return None
    try:
        return read_proxy(text)
    except ValueError as error:
        # Only a scheme is quoted. A longer or odd text before "://" may be part of a password.
        scheme = text.partition("://")[0] if "://" in text else ""
        held = f'"{scheme}://…"' if scheme.isalnum() and len(scheme) <= 24 else '"…"'
        said = f"{name} is {held}; {error}"
    # The error is raised outside of the `except` block. Inside it, the caught error would become this one's
    # `__context__`, and error reporters print the local variables of its frames: the password.
    raise ConfigurationError("", f"{said}; PROXY=none for a service bypasses it")


def _named_for(url: str, network: NetworkOptions) -> tuple[str, str]:
    """The variable that applies to a URL, and its value; both are "" for a direct connection."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    if is_loopback(host) or _is_excepted(
        host, parts.port or {"https": 443}.get(parts.scheme, 80), network.no_proxy
    ):
        return "", ""
    name, text = (
        ("HTTPS_PROXY", network.https_proxy)
        if parts.scheme == "https"
        else ("HTTP_PROXY", network.http_proxy)
    )
    return (name, text) if text else ("ALL_PROXY", network.all_proxy or "")


def is_loopback(host: str) -> bool:
    """Whether the host is this machine."""
    return host.lower() == "localhost" or (is_address(host) and ip_address(host).is_loopback)


def is_address(host: str) -> bool:
    """Whether the host is an IP address."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_excepted(host: str, port: int, no_proxy: str) -> bool:
    return any(_excepts(entry.lower(), host.lower(), port) for entry in no_proxy.replace(",", " ").split())


def _excepts(entry: str, host: str, port: int) -> bool:
    """Whether one entry of NO_PROXY matches the host."""
    entry = entry.partition("://")[2] or entry  # some clients accept URLs as entries
    if entry == "*":
        return True
    # An IPv6 address contains colons of its own. Split at the last one, `fe80::1` would become `fe80:` with port 1.
    if not is_address(entry):
        name, colon, number = entry.rpartition(":")
        if colon and number.isdecimal():
            if int(number) != port:
                return False
            entry = name
    entry = entry.strip("[]").removeprefix("*").strip(".")
    # An IP address has no subdomains. If they were compared as text, the entry `0.0.1` would match the host 10.0.0.1.
    if is_address(host):
        return _holds(entry, host)
    return host == entry or host.endswith(f".{entry}")


def _holds(network: str, address: str) -> bool:
    try:
        return ip_address(address) in ip_network(network, strict=False)
    except ValueError:
        return False
