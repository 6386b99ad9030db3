"""Access rules: pure functions of one request's headers. `door.py` applies them inside the routes.

On loopback, plain `curl` commands work without a token. That alone would let in two kinds of attacker: a web page in
the user's browser, and a foreign host name that suddenly resolves to 127.0.0.1 (DNS rebinding). Therefore:

* `Host` must be one of the server's names. A page that rebinds its own name sends that name.
* An unsafe method must not come from another site. Browsers send the origin (`Sec-Fetch-Site`, `Origin`). A request
  with neither does not come from a browser, and a page cannot make a browser omit them. "same-site" counts as another
  site here, because all ports of localhost are "same-site".
* Without a token, only this machine is allowed, whatever address the server listens on. A peer without a readable
  address is not this machine. Neither is a request that came through a proxy, unless the proxy is trusted and names
  this machine as the client.
* With KOO_TOKEN, each request needs that token, or KOO_READ_TOKEN if it changes nothing. A browser never sends a
  bearer token by itself, so a request with one may come from anywhere and use any host name.
* A session cookie (`session.py`) stands for the token that started it. A browser does send it by itself, so the first
  two rules apply as they do without a token. It is ignored if there is an Authorization header.

Probes are answered under any host name: they reveal nothing useful, and a kubelet uses the pod's address.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Literal
from urllib.parse import urlsplit

from starlette.types import Scope

from koo.http.proxies import is_loopback
from koo.options import PlatformOptions
from koo.web.addresses import read_address, read_network
from koo.web.session import Session, Sessions

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
TEST_NAMES = frozenset({"testserver", "testserver.local"})
"""Sent by default by the test clients of Starlette and Django, and by Litestar's."""
TEST_PEER = "testclient"
"""The peer of Starlette's test client. No server on a socket ever has it."""
ANY_ADDRESS = frozenset({"0.0.0.0", "::", ""})
PROXY_HEADERS = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via")
"""Only the client's address in X-Forwarded-For is ever used. The others show that there is a proxy: a common
configuration of nginx sets X-Real-IP alone."""
NO_SESSIONS = Sessions()
Kind = Literal["guarded", "page", "probe"]
"""The kind of a route: it reveals something about this installation, serves a page's files, or is a probe."""
Who = Literal["token", "read token", "session", "read session", "this machine", ""]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the rules use. Header names are lower case; a header that occurred more than once is in `repeated`."""

    method: str
    path: str
    headers: Mapping[str, str]
    peer: str | None = None
    repeated: frozenset[str] = frozenset()
    kind: Kind = "guarded"
    audience: str = ""
    """The path prefix below which the route is mounted. A session is valid for one prefix only."""
    at: float = 0.0
    """The time of the request, in wall-clock seconds."""


@dataclass(frozen=True, slots=True)
class Denial:
    """Why a request is refused: a status and a sentence. `is_guess`: it came with an unknown token."""

    status: int
    detail: str
    is_guess: bool = False


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of one installation. `hosts` is None if any name is allowed (listening on all addresses, with a
    token).
    """

    tokens: tuple[str, ...] = ()
    read_tokens: tuple[str, ...] = ()
    hosts: frozenset[str] | None = frozenset()
    origins: frozenset[str] = frozenset()
    proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    sessions: Sessions = NO_SESSIONS

    @classmethod
    def of(cls, options: PlatformOptions, more_hosts: Iterable[str] = ()) -> Access:
        """Return the rules that follow from the options. `more_hosts`: further names of this server."""
        url = urlsplit(options.url)
        # On 0.0.0.0 the server cannot know its own names. The token then protects against rebinding, because a browser
        # never sends it by itself; without a token the names are still checked.
        everywhere = options.host in ANY_ADDRESS and options.token is not None
        public = urlsplit(options.alerts.public_url or "").hostname
        hosts = {options.host, url.hostname or "", public or "", *more_hosts}
        tokens, read_tokens = (
            _set(options.token, options.token_2),
            _set(options.read_token, options.read_token_2),
        )
        return cls(
            tokens,
            read_tokens,
            None if everywhere else frozenset(host.lower() for host in hosts) - ANY_ADDRESS,
            frozenset({f"{url.scheme}://{url.netloc}".lower()}),
            tuple(read_network(one) for one in options.trusted_proxies),
            # Without any token only this machine is allowed, and there is nothing to log in with. A read token alone
            # is refused at startup.
            Sessions(tokens, read_tokens) if tokens else NO_SESSIONS,
        )

    def judge(self, asked: Asked) -> Denial | None:
        """Return why the request is refused, or None if it is allowed."""
        who = self.who(asked)
        # The order of the checks matters. A bearer token comes first, because it may be used with any host name and
        # from any origin. Everything below can be sent by a browser without its user's intent, so the host name is
        # checked before a session, a page or a local caller is accepted.
        if asked.kind == "probe" or (asked.kind == "guarded" and who == "token"):
            return None
        looks = asked.method in SAFE_METHODS
        if asked.kind == "guarded" and who == "read token":
            return None if looks else Denial(403, "this token is read-only; send KOO_TOKEN")
        if not self._knows_host(asked):
            return Denial(403, _explain_host(asked.headers.get("host", "")))
        if asked.kind == "page" or who == "session":
            return self._judge_origin(asked)
        if who == "read session":
            return None if looks else Denial(403, "this session is read-only; log in with KOO_TOKEN")
        return self._refuse_without_token(asked) if self.tokens else self._judge_stranger(asked)

    def who(self, asked: Asked) -> Who:
        """Return who sent the request, by its token, its session or its address; empty if unknown."""
        given = _token_of(asked)
        if not self.tokens:
            return "this machine" if self.is_local(asked) else ""
        if (session := self.session(asked)) is not None:
            return "session" if session.role == "write" else "read session"
        writes = _fits(given, self.tokens)
        reads = _fits(given, self.read_tokens)
        return "token" if writes else "read token" if reads else ""

    def session(self, asked: Asked) -> Session | None:
        """Return the request's session, or None if it has none or uses a token."""
        # Two Cookie headers, or a token next to a cookie, are ambiguous: a proxy and the server might each read
        # another one.
        if "authorization" in asked.headers or "cookie" in asked.repeated:
            return None
        return self.sessions.find(asked.headers.get("cookie", ""), asked.audience, asked.at)

    # ── the host name ─────────────────────────────────────────────────────────────────────────────────────────

    def _knows_host(self, asked: Asked) -> bool:
        if "host" in asked.repeated:  # ambiguous: the one that a proxy checked may be the other one
            return False
        if self.hosts is None:
            return True
        name = host_name(asked.headers.get("host", ""))
        return name is not None and (name in self.hosts or is_loopback(name))

    # ── the caller ────────────────────────────────────────────────────────────────────────────────────────────

    def _refuse_without_token(self, asked: Asked) -> Denial:
        if "authorization" in asked.repeated:
            return Denial(401, "Authorization was sent twice; send it once")
        if not _token_of(asked) and self.sessions.has_cookie(asked.headers.get("cookie", "")):
            return Denial(401, "the session has expired, or its token was changed; log in again")
        if not _token_of(asked):
            return Denial(401, "a token is required; send the header Authorization: Bearer with KOO_TOKEN")
        return Denial(401, "the token is unknown", is_guess=True)

    def _judge_stranger(self, asked: Asked) -> Denial | None:
        if not self.is_local(asked):
            return Denial(403, _explain_peer(asked))
        return self._judge_origin(asked)

    def _judge_origin(self, asked: Asked) -> Denial | None:
        if asked.method in SAFE_METHODS:
            return None
        site, origin = asked.headers.get("sec-fetch-site"), asked.headers.get("origin")
        own = site in (None, "same-origin", "none") and "sec-fetch-site" not in asked.repeated
        # A page cannot remove or change its Origin header. So a foreign one counts, whatever Sec-Fetch-Site contains.
        foreign = origin is not None and ("origin" in asked.repeated or not self._is_own(origin, asked))
        if own and not foreign:
            return None
        return Denial(403, "a web page from another origin is not allowed to change anything here")

    def is_local(self, asked: Asked) -> bool:
        """Return whether the request is from this machine, and not from a proxy on it, with clients anywhere."""
        # A test client has no address. It counts as local only if the application has allowed the test client's host
        # name: no deployed server does.
        is_test = asked.peer == TEST_PEER and self.hosts is not None and not TEST_NAMES.isdisjoint(self.hosts)
        return is_test or is_local_peer(self.caller(asked))

    def caller(self, asked: Asked) -> str | None:
        """Return the client's address: the peer, or the client that trusted proxies name. None if unknown."""
        # Any sign of a proxy makes the peer's address worthless: the proxy may run on this machine while its clients
        # are anywhere. Taking 127.0.0.1 at face value would give the whole internet the rights of a local caller.
        if not any(name in asked.headers for name in PROXY_HEADERS):
            return _plain(asked.peer or "") or None
        if not self._is_trusted(asked.peer or "") or "x-forwarded-for" in asked.repeated:
            return None
        # The nearest proxy wrote the last entry. Entries before the first untrusted address may be forged by the
        # client.
        named = [one.strip() for one in asked.headers.get("x-forwarded-for", "").split(",")]
        return next((_plain(one) for one in reversed(named) if not self._is_trusted(one)), None)

    def _is_trusted(self, peer: str) -> bool:
        address = read_address(peer)
        return address is not None and any(address in one for one in self.proxies)

    def _is_own(self, origin: str, asked: Asked) -> bool:
        host = asked.headers.get("host", "").lower()
        return origin.lower() in {f"http://{host}", f"https://{host}", *self.origins}


# ── leaves ────────────────────────────────────────────────────────────────────────────────────────────────────────


def host_name(header: str) -> str | None:
    """Return the name in a Host header, without its port; None if it is invalid."""
    try:
        parts = urlsplit(f"//{header.strip()}")
        parts.port  # noqa: B018 - raises if it is not a port
    except ValueError:
        return None
    if not parts.hostname or parts.path or parts.query or parts.fragment or parts.username is not None:
        return None
    return parts.hostname.lower().removesuffix(".")


def _explain_host(header: str) -> str:
    """Explain what to do about an unknown host name.

    The name is repeated only if it is a test client's; any other one may contain anything.
    """
    name = host_name(header)
    if name in TEST_NAMES:
        return (
            f"the Host header contains {name}, the default of a test client, which is not a name of this server; send"
            f' localhost (TestClient(app, base_url="http://localhost")) or allow the name (hosts=["{name}"])'
        )
    return "the name in the Host header is not a name of this server; set KOO_URL to its address"


def _explain_peer(asked: Asked) -> str:
    proxied = next((name for name in PROXY_HEADERS if name in asked.headers), None)
    if proxied is not None:
        return (
            f"without KOO_TOKEN only this machine is allowed, and this came through a proxy ({proxied}); set "
            "KOO_TOKEN, or KOO_TRUSTED_PROXIES to the address of a proxy that sends X-Forwarded-For"
        )
    if asked.peer == TEST_PEER:
        return (
            "without KOO_TOKEN only this machine is allowed, and a test client has no address; give it one, "
            'TestClient(app, client=("127.0.0.1", 50000)), or allow its name (hosts=["testserver"])'
        )
    unseen = "" if asked.peer else ", and a Unix socket shows no address of its client; set KOO_TOKEN"
    return f"without KOO_TOKEN only this machine is allowed{unseen}"


def is_local_peer(peer: str | None) -> bool:
    """Return whether the peer has a loopback address. False for anything else, such as a Unix socket, which may serve
    any client."""
    address = read_address(peer or "")
    return address is not None and address.is_loopback


def _plain(peer: str) -> str:
    """The address without a port; a text that is not an address is returned unchanged."""
    address = read_address(peer)
    return peer if address is None else str(address)


def _set(*given: str | None) -> tuple[str, ...]:
    return tuple(one for one in given if one is not None)


def _token_of(asked: Asked) -> str:
    scheme, _, given = asked.headers.get("authorization", "").partition(" ")
    is_bearer = scheme.lower() == "bearer" and "authorization" not in asked.repeated
    return given.strip() if is_bearer else ""


def _fits(given: str, tokens: tuple[str, ...]) -> bool:
    # All tokens are compared, so that the time taken does not reveal which of them was close.
    return sum(hmac.compare_digest(given.encode(), one.encode()) for one in tokens) > 0


def audience_of(scope: Scope) -> str:
    """Return the path prefix below which koo's routes are mounted, according to the application that has them."""
    app = scope.get("app")
    return f"{scope.get('root_path', '')}{getattr(app.state, 'koo_prefix', '') if app is not None else ''}"


def asked_of(scope: Scope, kind: Kind = "guarded") -> Asked:
    """Return what the rules use of an ASGI scope."""
    headers: dict[str, str] = {}
    repeated = set()
    for raw_name, raw_value in scope["headers"]:
        name = raw_name.decode("latin-1").lower()
        if name in headers:
            repeated.add(name)
        headers[name] = raw_value.decode("latin-1")
    client = scope.get("client")
    return Asked(
        scope["method"],
        str(scope["path"]),
        headers,
        client[0] if client else None,
        frozenset(repeated),
        kind,
        audience_of(scope),
        time.time(),
    )
