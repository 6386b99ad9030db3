"""Who may ask: pure rules over one request's headers. `door.py` applies them, in the routes themselves.

On loopback, without a token, the plain `curl` lines work. Two things would still let a stranger in: a web page in the
user's browser, and a stranger's host name that suddenly points to 127.0.0.1 (DNS rebinding). So:

* `Host` must be a name that is meant for us. A page that rebinds its own name sends that name.
* An unsafe method must not come from another site. Browsers say where it comes from (`Sec-Fetch-Site`, `Origin`);
  a request with neither is not from a browser, and a page cannot make a browser leave them out. "same-site" counts as
  another site here: every port of localhost is "same-site".
* Without a token only this machine may ask, whatever address the server listens on. A peer without a
  readable address is not this machine, and neither is a request that came through a proxy, unless the proxy is trusted
  and names this machine as the caller.
* With KOO_TOKEN each request needs it, or KOO_READ_TOKEN for what changes nothing. A browser never sends a bearer token
  on its own, so a request with one may come from anywhere and use any name for us.
* A session's cookie (`session.py`) stands for the token it was begun with. A browser does send it on its own, so the
  two rules above hold for it as they do without a token. Beside an Authorization header it does not count.

Probes answer under any name: they say nothing that a stranger could use, and a kubelet asks by the pod's address.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Literal
from urllib.parse import urlsplit

from starlette.types import Scope

from koo.http.proxies import is_loopback
from koo.options import PlatformOptions
from koo.web.session import Session, Sessions

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
TEST_NAMES = frozenset({"testserver", "testserver.local"})
"""What the test clients of Starlette and Django, and that of Litestar, send by default."""
TEST_PEER = "testclient"
"""The peer of Starlette's test client, which no server on a socket ever has."""
ANY_ADDRESS = frozenset({"0.0.0.0", "::", ""})
PROXY_HEADERS = ("forwarded", "x-forwarded-for", "via")
NO_SESSIONS = Sessions()
Kind = Literal["guarded", "page", "probe"]
"""Of a route: what says something about this installation, a page's files, what an orchestrator asks."""
Who = Literal["token", "read token", "session", "read session", "this machine", ""]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the rules look at. `headers` are lower case; a header that came twice is in `repeated`."""

    method: str
    path: str
    headers: Mapping[str, str]
    peer: str | None = None
    repeated: frozenset[str] = frozenset()
    kind: Kind = "guarded"
    audience: str = ""
    """Below which prefix the route lies, which a session has to be made for."""
    at: float = 0.0
    """When, in wall seconds."""


@dataclass(frozen=True, slots=True)
class Denial:
    """Why not, as a status and a sentence. `is_guess`: with a token that is not known."""

    status: int
    detail: str
    is_guess: bool = False


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of one installation. `hosts` None: any name (the server listens on all addresses, with a token)."""

    tokens: tuple[str, ...] = ()
    read_tokens: tuple[str, ...] = ()
    hosts: frozenset[str] | None = frozenset()
    origins: frozenset[str] = frozenset()
    proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    sessions: Sessions = NO_SESSIONS

    @classmethod
    def of(cls, options: PlatformOptions, more_hosts: Iterable[str] = ()) -> Access:
        """The rules that follow from the options; `more_hosts` are further names of this server."""
        url = urlsplit(options.url)
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
            tuple(ip_network(one, strict=False) for one in options.trusted_proxies),
            # Without a token this machine may ask, and a read token alone is refused at the start.
            Sessions(tokens, read_tokens) if tokens else NO_SESSIONS,
        )

    def judge(self, asked: Asked) -> Denial | None:
        """None: go on."""
        who = self.who(asked)
        if asked.kind == "probe" or (asked.kind == "guarded" and who == "token"):
            return None
        looks = asked.method in SAFE_METHODS
        if asked.kind == "guarded" and who == "read token":
            return None if looks else Denial(403, "this token may only look; send KOO_TOKEN")
        if not self._knows_host(asked):
            return Denial(403, _explain_host(asked.headers.get("host", "")))
        if asked.kind == "page" or who == "session":
            return self._judge_origin(asked)
        if who == "read session":
            return None if looks else Denial(403, "this session may only look; log in with KOO_TOKEN")
        return self._refuse_without_token(asked) if self.tokens else self._judge_stranger(asked)

    def who(self, asked: Asked) -> Who:
        """Whose request it is, by its token, its session, or where it comes from; empty: unknown."""
        given = _token_of(asked)
        if not self.tokens:
            return "this machine" if self.is_local(asked) else ""
        if (session := self.session(asked)) is not None:
            return "session" if session.role == "write" else "read session"
        writes = _fits(given, self.tokens)
        reads = _fits(given, self.read_tokens)
        return "token" if writes else "read token" if reads else ""

    def session(self, asked: Asked) -> Session | None:
        """The session that a request comes with; None: none, or a token."""
        if "authorization" in asked.headers or "cookie" in asked.repeated:
            return None
        return self.sessions.find(asked.headers.get("cookie", ""), asked.audience, asked.at)

    # ── whom it is meant for ──────────────────────────────────────────────────────────────────────────────────

    def _knows_host(self, asked: Asked) -> bool:
        if "host" in asked.repeated:
            return False
        if self.hosts is None:
            return True
        name = host_name(asked.headers.get("host", ""))
        return name is not None and (name in self.hosts or is_loopback(name))

    # ── who asks ──────────────────────────────────────────────────────────────────────────────────────────────

    def _refuse_without_token(self, asked: Asked) -> Denial:
        if "authorization" in asked.repeated:
            return Denial(401, "Authorization was sent twice; send it once")
        if not _token_of(asked) and self.sessions.has_cookie(asked.headers.get("cookie", "")):
            return Denial(401, "the session has ended, or its token was changed: log in again")
        if not _token_of(asked):
            return Denial(401, "a token is needed: send Authorization: Bearer, with KOO_TOKEN")
        return Denial(401, "the token is not known", is_guess=True)

    def _judge_stranger(self, asked: Asked) -> Denial | None:
        if not self.is_local(asked):
            return Denial(403, _explain_peer(asked))
        return self._judge_origin(asked)

    def _judge_origin(self, asked: Asked) -> Denial | None:
        if asked.method in SAFE_METHODS:
            return None
        site, origin = asked.headers.get("sec-fetch-site"), asked.headers.get("origin")
        own = site in (None, "same-origin", "none") and "sec-fetch-site" not in asked.repeated
        # A page cannot take its origin away: whatever the other header says, a foreign one counts.
        foreign = origin is not None and ("origin" in asked.repeated or not self._is_own(origin, asked))
        if own and not foreign:
            return None
        return Denial(403, "a web page from another origin may not change anything here")

    def is_local(self, asked: Asked) -> bool:
        """Does it come from this machine, and not through a proxy on it, whose callers may be anywhere?"""
        is_test = asked.peer == TEST_PEER and self.hosts is not None and not TEST_NAMES.isdisjoint(self.hosts)
        return is_test or is_local_peer(self.caller(asked))

    def caller(self, asked: Asked) -> str | None:
        """Where it comes from: the peer, or before trusted proxies the caller that they name. None: unknown."""
        if not any(name in asked.headers for name in PROXY_HEADERS):
            return asked.peer
        if not self._is_trusted(asked.peer) or "x-forwarded-for" in asked.repeated:
            return None
        # The nearest proxy wrote the last one. Anything before the first untrusted address may be forged.
        named = [one.strip() for one in asked.headers.get("x-forwarded-for", "").split(",")]
        return next((one for one in reversed(named) if not self._is_trusted(one)), None)

    def _is_trusted(self, peer: str | None) -> bool:
        try:
            address = ip_address(peer or "")
        except ValueError:
            return False
        return any(address in one for one in self.proxies)

    def _is_own(self, origin: str, asked: Asked) -> bool:
        host = asked.headers.get("host", "").lower()
        return origin.lower() in {f"http://{host}", f"https://{host}", *self.origins}


# ── leaves ────────────────────────────────────────────────────────────────────────────────────────────────────────


def host_name(header: str) -> str | None:
    """The name in a Host header, without its port; None if it is not valid."""
    try:
        parts = urlsplit(f"//{header.strip()}")
        parts.port  # noqa: B018 - raises if it is not a port
    except ValueError:
        return None
    if not parts.hostname or parts.path or parts.query or parts.fragment or parts.username is not None:
        return None
    return parts.hostname.lower().removesuffix(".")


def _explain_host(header: str) -> str:
    """What to do about a name that is not known. A name of a test's client is repeated, any other may be anything."""
    name = host_name(header)
    if name in TEST_NAMES:
        return (
            f"this server is not known by the name {name} in the Host header, which a test's client sends; let it send"
            f' localhost (TestClient(app, base_url="http://localhost")), or allow the name (hosts=["{name}"])'
        )
    return "this server does not answer to the name in the Host header; set KOO_URL to its address"


def _explain_peer(asked: Asked) -> str:
    proxied = next((name for name in PROXY_HEADERS if name in asked.headers), None)
    if proxied is not None:
        return (
            f"without KOO_TOKEN only this machine may ask, and this came through a proxy ({proxied}): set KOO_TOKEN, "
            "or KOO_TRUSTED_PROXIES to the proxy's address"
        )
    if asked.peer == TEST_PEER:
        return (
            "without KOO_TOKEN only this machine may ask, and a test's client names no address; let it name one, "
            'TestClient(app, client=("127.0.0.1", 50000)), or allow its name (hosts=["testserver"])'
        )
    return "without KOO_TOKEN only this machine may ask"


def is_local_peer(peer: str | None) -> bool:
    """Is it a loopback address? Anything unreadable is not: any caller may be behind a socket file."""
    try:
        address = ip_address(peer or "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _set(*given: str | None) -> tuple[str, ...]:
    return tuple(one for one in given if one is not None)


def _token_of(asked: Asked) -> str:
    scheme, _, given = asked.headers.get("authorization", "").partition(" ")
    is_bearer = scheme.lower() == "bearer" and "authorization" not in asked.repeated
    return given.strip() if is_bearer else ""


def _fits(given: str, tokens: tuple[str, ...]) -> bool:
    # All are compared, so that the time taken does not reveal which one was close.
    return sum(hmac.compare_digest(given.encode(), one.encode()) for one in tokens) > 0


def audience_of(scope: Scope) -> str:
    """Below which prefix koo's routes lie, as the application that has them says."""
    app = scope.get("app")
    return f"{scope.get('root_path', '')}{getattr(app.state, 'koo_prefix', '') if app is not None else ''}"


def asked_of(scope: Scope, kind: Kind = "guarded") -> Asked:
    """What the rules look at, of an ASGI scope."""
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
