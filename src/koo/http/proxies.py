"""Which proxy a request takes: HTTP_PROXY and the like, read as other clients read them.

* `HTTPS_PROXY` is for addresses that begin with https, `HTTP_PROXY` for http, `ALL_PROXY` for both if theirs is not
  set.
* `NO_PROXY` lists what is reached directly, separated by commas or spaces: a domain with everything below it (a dot or
  `*.` in front makes no difference), an address, a network (`10.0.0.0/8`), any of them with a port, or `*` for
  everything.
* Servers on this machine are reached directly, whatever those say: a proxy elsewhere cannot reach them. For them only a
  proxy is used that was set for the service.
* The password goes to the proxy and is never shown: `Proxy` prints only its address.
* The password goes to the proxy and is shown nowhere: `Proxy` prints its address only.

Pure: the variables come as options, the caller decides which client to use.
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
    """An HTTP proxy: its address, and the value of `Proxy-Authorization` if it requires a login ("" if not)."""

    url: str
    credentials: str = field(default="", repr=False)

    def __str__(self) -> str:
        return self.url


def read_proxy(text: str) -> Proxy:
    """A proxy's URL; a host and port without a scheme are http. Raises `ValueError`, without the text."""
    parts = _split(text)
    # A password's unquoted / ? or # would make its rest look like a path, and its beginning like a host.
    if parts is None or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError(f"allowed is {ALLOWED_PROXY}")
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    url = f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
    if parts.username is None:
        return Proxy(url)
    user, password = unquote(parts.username), unquote(parts.password or "")
    if ":" in user:
        raise ValueError("allowed is a user without a colon: a proxy could not tell it from the password")
    return Proxy(url, Secret("Basic " + b64encode(f"{user}:{password}".encode()).decode()))


def _split(text: str) -> SplitResult | None:
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        right = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts if right and text.isprintable() and " " not in text else None


def proxy_of(url: str, network: NetworkOptions, own: str | None = "") -> Proxy | None:
    """The proxy on the way to a URL; None without one.

    `own` is the service's own setting: a proxy, None for none, "" for what the environment says. Raises
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
        scheme = text.partition("://")[0] if "://" in text else ""
        held = f'"{scheme}://…"' if scheme.isalnum() and len(scheme) <= 24 else '"…"'
        said = f"{name} holds {held}; {error}"
    # Raised out here: the caught error, whose frames hold the password, would otherwise become this one's context.
    raise ConfigurationError("", f"{said}; PROXY=none of a service bypasses it")


def _named_for(url: str, network: NetworkOptions) -> tuple[str, str]:
    """The variable that applies to a URL, and its value; "" if the URL is reached directly."""
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
    """Whether only this machine can reach it."""
    return host.lower() == "localhost" or (is_address(host) and ip_address(host).is_loopback)


def is_address(host: str) -> bool:
    """Whether it is an IP address, not a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_excepted(host: str, port: int, no_proxy: str) -> bool:
    return any(_excepts(entry.lower(), host.lower(), port) for entry in no_proxy.replace(",", " ").split())


def _excepts(entry: str, host: str, port: int) -> bool:
    """Whether one entry of NO_PROXY matches the host."""
    entry = entry.partition("://")[2] or entry  # some clients let an entry be a URL
    if entry == "*":
        return True
    if not is_address(entry):  # the colons of an IPv6 address are not a port
        name, colon, number = entry.rpartition(":")
        if colon and number.isdecimal():
            if int(number) != port:
                return False
            entry = name
    entry = entry.strip("[]").removeprefix("*").strip(".")
    if is_address(host):
        return _holds(entry, host)
    return host == entry or host.endswith(f".{entry}")


def _holds(network: str, address: str) -> bool:
    try:
        return ip_address(address) in ip_network(network, strict=False)
    except ValueError:
        return False
