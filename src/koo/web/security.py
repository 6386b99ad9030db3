"""Who may ask: pure rules over one request's headers, and the ASGI middleware that applies them.

On loopback, without a token, the plain `curl` lines work. Two things would still let a stranger in: a web page in
somebody's browser, and a name of its own that suddenly points to 127.0.0.1 (DNS rebinding). So:

* `Host` must be a name that is meant for us. A page that rebinds its own name sends that name.
* An unsafe method must not come from another site. Browsers say where it comes from (`Sec-Fetch-Site`, `Origin`);
  whoever says nothing is no browser, and a page cannot make a browser say nothing. "same-site" is another site here:
  every port of localhost is.
* Without a token only this machine may ask, whatever address somebody made the server listen on.
* With KOO_TOKEN each request needs it, or KOO_READ_TOKEN for what changes nothing. A browser never sends a bearer token
  by itself, so who has one may come from anywhere.

The probes and the description of the API say nothing about this installation and are open to all.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from koo.http.proxies import is_loopback
from koo.options import PlatformOptions
from koo.web.api_docs import FILES as DOCS
from koo.web.dashboard_routes import OPEN_PATHS as PAGE
from koo.web.problems import http_problem, respond
from koo.web.runbook import open_paths as runbook_paths

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN_PATHS = frozenset({"/livez", "/readyz", "/openapi.json", *DOCS}) | PAGE | runbook_paths()
TEST_NAMES = frozenset({"testserver", "testserver.local"})
"""What the test clients of Starlette and Django, and that of Litestar, send unless told otherwise."""
ANY_ADDRESS = frozenset({"0.0.0.0", "::", ""})


@dataclass(frozen=True, slots=True)
class Asked:
    """What the rules look at. `headers` are lower case; a header that came twice is in `repeated`."""

    method: str
    path: str
    headers: Mapping[str, str]
    peer: str | None = None
    repeated: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Denial:
    """Why not, as a status and a sentence."""

    status: int
    detail: str


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of one installation. `hosts` None: any name (the server listens on all addresses, with a token)."""

    token: str | None = None
    read_token: str | None = None
    hosts: frozenset[str] | None = frozenset()
    origins: frozenset[str] = frozenset()

    @classmethod
    def of(cls, options: PlatformOptions, more_hosts: Iterable[str] = ()) -> Access:
        """The rules that follow from the options; `more_hosts` are further names of this server."""
        url = urlsplit(options.url)
        everywhere = options.host in ANY_ADDRESS and options.token is not None
        hosts = {options.host.lower(), (url.hostname or "").lower(), *(host.lower() for host in more_hosts)}
        return cls(
            options.token,
            options.read_token,
            None if everywhere else frozenset(hosts - ANY_ADDRESS),
            frozenset({f"{url.scheme}://{url.netloc}".lower()}),
        )

    def judge(self, asked: Asked) -> Denial | None:
        """None: go on."""
        if not self._knows_host(asked):
            return Denial(403, _explain_host(asked.headers.get("host", "")))
        if asked.path in OPEN_PATHS and asked.method in SAFE_METHODS:
            return None
        return self._judge_token(asked) if self.token is not None else self._judge_stranger(asked)

    # ── whom it is meant for ──────────────────────────────────────────────────────────────────────────────────

    def _knows_host(self, asked: Asked) -> bool:
        if "host" in asked.repeated:
            return False
        if self.hosts is None:
            return True
        name = host_name(asked.headers.get("host", ""))
        return name is not None and (name in self.hosts or is_loopback(name))

    # ── who asks ──────────────────────────────────────────────────────────────────────────────────────────────

    def _judge_token(self, asked: Asked) -> Denial | None:
        scheme, _, given = asked.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            return Denial(401, "a token is needed: send Authorization: Bearer, with KOO_TOKEN")
        if _same(given.strip(), self.token):
            return None
        if not _same(given.strip(), self.read_token):
            return Denial(401, "the token is not known")
        if asked.method not in SAFE_METHODS:
            return Denial(403, "this token may only look; send KOO_TOKEN")
        return None

    def _judge_stranger(self, asked: Asked) -> Denial | None:
        if not is_local_peer(asked.peer):
            return Denial(403, "without KOO_TOKEN only this machine may ask")
        if asked.method in SAFE_METHODS:
            return None
        site, origin = asked.headers.get("sec-fetch-site"), asked.headers.get("origin")
        if site is not None:
            own = site in ("same-origin", "none") and "sec-fetch-site" not in asked.repeated
        else:
            own = origin is None or ("origin" not in asked.repeated and self._is_own(origin, asked))
        return None if own else Denial(403, "a web page of another origin may change nothing here")

    def _is_own(self, origin: str, asked: Asked) -> bool:
        host = asked.headers.get("host", "").lower()
        return origin.lower() in {f"http://{host}", f"https://{host}", *self.origins}


# ── leaves ────────────────────────────────────────────────────────────────────────────────────────────────────────


def host_name(header: str) -> str | None:
    """The name in a Host header, without its port; None for what is none."""
    try:
        parts = urlsplit(f"//{header.strip()}")
        parts.port  # noqa: B018 - raises for what is no port
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
    return "this server is not known by the name in the Host header; set KOO_URL to its address"


def is_local_peer(peer: str | None) -> bool:
    """This machine: a loopback address, or no address at all (a Unix socket, a test's client)."""
    if not peer:
        return True
    try:
        address = ip_address(peer)
    except ValueError:
        return True
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _same(given: str, wanted: str | None) -> bool:
    return wanted is not None and hmac.compare_digest(given.encode(), wanted.encode())


# ── the middleware ────────────────────────────────────────────────────────────────────────────────────────────────


class AccessControl:
    """Refuses what `Access` denies. `paths`: the prefixes that it watches over; None: everything."""

    def __init__(
        self, app: ASGIApp, access: Callable[[], Access], paths: tuple[str, ...] | None = None
    ) -> None:
        self.app = app
        self._make = access
        self._access: Access | None = None
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or not self._watches(scope):
            await self.app(scope, receive, send)
            return
        if self._access is None:
            self._access = self._make()
        denial = self._access.judge(asked_of(scope))
        if denial is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            request = Request(scope)
            headers = {"WWW-Authenticate": "Bearer"} if denial.status == 401 else {}
            answer = respond(http_problem(request, denial.status, denial.detail), headers)
            await answer(scope, receive, send)

    def _watches(self, scope: Scope) -> bool:
        if self._paths is None:
            return True
        path = _path_of(scope)
        return any(path == prefix or path.startswith(f"{prefix}/") for prefix in self._paths)


def asked_of(scope: Scope) -> Asked:
    """What the rules look at, of an ASGI scope."""
    headers: dict[str, str] = {}
    repeated = set()
    for raw_name, raw_value in scope["headers"]:
        name = raw_name.decode("latin-1").lower()
        if name in headers:
            repeated.add(name)
        headers[name] = raw_value.decode("latin-1")
    client = scope.get("client")
    method = scope.get("method", "CONNECT")  # a websocket may do anything, so it counts as unsafe
    return Asked(method, _path_of(scope), headers, client[0] if client else None, frozenset(repeated))


def _path_of(scope: Scope) -> str:
    """The path below the folder where the application is mounted."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root) if root and path.startswith(f"{root}/") else path
