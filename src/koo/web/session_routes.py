"""The form that exchanges a token for a session, and the routes that end a session and show whose it is.

The form works without JavaScript. Its cookie has no `Path`, so a browser uses the folder of the URL that set it, as the
browser sees that URL. Therefore the URL of the form is in the folder that the page and the API share. The cookie is
then sent to both and to nothing else, even behind a proxy that adds or strips a path prefix.
"""

from __future__ import annotations

import base64
import posixpath
import re
from hashlib import sha256
from html import escape
from importlib.resources import files
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Scope

from koo.clock import iso
from koo.monitoring.guards import now_iso
from koo.web.answers import SessionView
from koo.web.door import Door
from koo.web.routing import JsonView, described, file_router, make_router
from koo.web.security import Denial
from koo.web.session import LASTS_S

FORM_BYTES_MAX = 4096
LOGIN, LOGOUT = "koo-login", "koo-logout"
WRONG = "This token is not valid."
TOO_MANY = "Too many wrong tokens came from this address. Try again in a minute."


def session_router(door: Door) -> APIRouter:
    """`/session`: who sent the request."""
    router = make_router("", "monitoring", door)

    @router.get("/session", summary="Who sent the request, and what they may do", **described(SessionView))
    async def get_session(request: Request) -> Response:
        """What the page may offer. With the role `read`, requests that change something are refused."""
        return JsonView(session_view(door, request.scope))

    return router


def session_view(door: Door, scope: Scope) -> SessionView:
    """Describe the sender of a guarded request that was let in."""
    who, session = door.look(scope)
    return {
        "role": "read" if who in ("read token", "read session") else "write",
        "who": who,
        "expires_at": None if session is None else iso(session.ends_at),
        "login": door.has_sessions,
        "timestamp": now_iso(),
    }


def login_path(prefix: str, page: str) -> str:
    """Return the form's path: in the common folder of the routes below `prefix` and those below `page`."""
    common = posixpath.commonpath([prefix or "/", page or "/"])
    return posixpath.join(common, LOGIN)


def login_router(door: Door, prefix: str, page: str, application: str = "") -> APIRouter:
    """The login form and logout. `page`: the dashboard's path; the other parameters are those of the dashboard."""
    router, path = file_router(door), login_path(prefix, page)
    form = Form(application)
    # The path is relative, like all links: behind a proxy with its own path prefix, an absolute path would lead out of
    # it.
    home = posixpath.relpath(page or "/", posixpath.dirname(path)) + "/"

    async def show(request: Request) -> Response:
        return form.answer() if door.has_sessions else _lead(home)

    async def log_in(request: Request) -> Response:
        if not door.has_sessions:
            return _lead(home)
        begun = door.begin_session(await _token_in(request), f"POST {path}", request.scope)
        if isinstance(begun, Denial):
            return form.refuse(begun, door.again_in_s)
        name, value = begun
        # The cookie has no Path attribute: see the module docstring. With one, a proxy that strips a prefix would make
        # the browser store the cookie for a path that it never requests.
        return _lead(home, [f"{name}={value}; Max-Age={LASTS_S}{_attributes(request)}"])

    async def log_out(request: Request) -> Response:
        names = door.session_names if door.has_sessions else []
        # One cookie for each configured token: the browser may have sessions of several, such as a read token and the
        # other one. Deleting only the current one would leave the person logged in.
        return _lead(LOGIN, [f"{name}=; Max-Age=0{_attributes(request)}" for name in names])

    router.add_api_route(path, show, methods=["GET"])
    router.add_api_route(path, log_in, methods=["POST"])
    router.add_api_route(path.replace(LOGIN, LOGOUT), log_out, methods=["POST"])
    return router


class Form:
    """The page with the form, for one application."""

    def __init__(self, application: str) -> None:
        page = files("koo.web").joinpath("pages", "login.html").read_text(encoding="utf-8")
        self._page = page.replace("{application}", escape(application or "koo"))
        # The style element is allowed by its hash instead of 'unsafe-inline': an injected one would not be applied.
        style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
        assert style is not None
        digest = base64.b64encode(sha256(style[1].encode()).digest()).decode()
        policy = (
            f"default-src 'none'; style-src 'sha256-{digest}'; form-action 'self'; base-uri 'none'; "
            "frame-ancestors 'none'"
        )
        # With "no-referrer" a browser sends `Origin: null` with a form. The origin check would refuse every login.
        self._headers = {"Content-Security-Policy": policy, "Referrer-Policy": "same-origin"}

    def answer(self, status: int = 200, words: str = "", more: dict[str, str] | None = None) -> Response:
        """Return the form, with a message about the last attempt."""
        page = self._page.replace("{words}", escape(words)).replace("{hidden}", "" if words else "hidden")
        return Response(page, status, {**self._headers, **(more or {})}, media_type="text/html")

    def refuse(self, denial: Denial, again_in_s: int) -> Response:
        """Return the form again, after a failed attempt."""
        if denial.status == 429:
            return self.answer(429, TOO_MANY, {"Retry-After": str(again_in_s)})
        return self.answer(denial.status, WRONG)


async def _token_in(request: Request) -> str:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > FORM_BYTES_MAX:  # the limit on all bodies is 16 MiB; a token needs a few bytes
            return ""
    # at most 10 fields: parsing thousands takes long
    given = parse_qs(body.decode("utf-8", "replace"), max_num_fields=10).get("token", [""])
    return given[0].strip() if len(given) == 1 else ""


def _attributes(request: Request) -> str:
    # A proxy that terminates TLS sends plain HTTP, so `request.url` says "http". The browser's Origin header has the
    # scheme that it used itself. Without `Secure`, the cookie could later be sent over an unencrypted connection.
    origin = request.headers.get("origin", "")
    is_https = request.url.scheme == "https" or origin.lower().startswith("https://")
    return "; HttpOnly; SameSite=Strict" + ("; Secure" if is_https else "")


def _lead(where: str, cookies: list[str] | None = None) -> Response:
    response = Response(status_code=303, headers={"Location": where})
    for cookie in cookies or []:
        response.headers.append("Set-Cookie", cookie)
    return response
