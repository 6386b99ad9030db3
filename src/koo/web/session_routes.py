"""The form that exchanges a token for a session, and the routes that end one and say who asks.

The form works without JavaScript. Its cookie has no `Path`: a browser then takes the folder of the address that set it,
as the browser sees it. So the form lies where the page and the API have their common beginning, and the cookie is valid
for exactly these, also below a path that a proxy has put in front and taken away again.
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
    """`/session`: who asks."""
    router = make_router("", "monitoring", door)

    @router.get("/session", summary="Who asks, and what they may do", **described(SessionView))
    async def get_session(request: Request) -> Response:
        """What the page may offer: with the role `read`, what changes something is refused."""
        return JsonView(session_view(door, request.scope))

    return router


def session_view(door: Door, scope: Scope) -> SessionView:
    """Who a guarded request is from, which the door has let in."""
    who, session = door.look(scope)
    return {
        "role": "read" if who in ("read token", "read session") else "write",
        "who": who,
        "expires_at": None if session is None else iso(session.ends_at),
        "login": door.has_sessions,
        "timestamp": now_iso(),
    }


def login_path(prefix: str, page: str) -> str:
    """Where the form lies: in the folder that the routes below `prefix` and those below `page` have in common."""
    common = posixpath.commonpath([prefix or "/", page])
    return posixpath.join(common, LOGIN)


def login_router(door: Door, prefix: str, page: str, application: str = "") -> APIRouter:
    """The form, and the end of a session. `page`: the path of the dashboard; the others as there."""
    router, path = file_router(door), login_path(prefix, page)
    form = Form(application)
    # Relative, as all addresses: below a proxy's own path, an absolute one would lead out of it.
    home = f"{posixpath.relpath(page, posixpath.dirname(path))}/"

    async def show(request: Request) -> Response:
        return form.answer() if door.has_sessions else _lead(home)

    async def log_in(request: Request) -> Response:
        if not door.has_sessions:
            return _lead(home)
        begun = door.begin_session(await _token_in(request), f"POST {path}", request.scope)
        if isinstance(begun, Denial):
            return form.refuse(begun, door.again_in_s)
        name, value = begun
        return _lead(home, [f"{name}={value}; Max-Age={LASTS_S}{_attributes(request)}"])

    async def log_out(request: Request) -> Response:
        names = door.session_names if door.has_sessions else []
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
        style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
        assert style is not None
        digest = base64.b64encode(sha256(style[1].encode()).digest()).decode()
        policy = (
            f"default-src 'none'; style-src 'sha256-{digest}'; form-action 'self'; base-uri 'none'; "
            "frame-ancestors 'none'"
        )
        # With "no-referrer" a browser sends `Origin: null` with a form, and every login would be refused.
        self._headers = {"Content-Security-Policy": policy, "Referrer-Policy": "same-origin"}

    def answer(self, status: int = 200, words: str = "", more: dict[str, str] | None = None) -> Response:
        """The form, with what was wrong with the last one."""
        page = self._page.replace("{words}", escape(words)).replace("{hidden}", "" if words else "hidden")
        return Response(page, status, {**self._headers, **(more or {})}, media_type="text/html")

    def refuse(self, denial: Denial, again_in_s: int) -> Response:
        """The form once more."""
        if denial.status == 429:
            return self.answer(429, TOO_MANY, {"Retry-After": str(again_in_s)})
        return self.answer(denial.status, WRONG)


async def _token_in(request: Request) -> str:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > FORM_BYTES_MAX:
            return ""
    given = parse_qs(body.decode("utf-8", "replace"), max_num_fields=10).get("token", [""])
    return given[0].strip() if len(given) == 1 else ""


def _attributes(request: Request) -> str:
    # Behind a proxy that has the certificate only the browser knows: it says so in Origin.
    origin = request.headers.get("origin", "")
    is_https = request.url.scheme == "https" or origin.lower().startswith("https://")
    return "; HttpOnly; SameSite=Strict" + ("; Secure" if is_https else "")


def _lead(where: str, cookies: list[str] | None = None) -> Response:
    response = Response(status_code=303, headers={"Location": where})
    for cookie in cookies or []:
        response.headers.append("Set-Cookie", cookie)
    return response
