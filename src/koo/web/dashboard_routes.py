"""`/dashboard/`: the state of everything as a page that refreshes itself.

Plain files, without a build step, served under a policy that lets the page talk to this server and to nobody else, run
no script but its own and never make markup out of text (`trusted-types`). The files say nothing about this
installation, so they are open to all; what they ask for is guarded like every other request.

All addresses in the page are relative, so that it works below whatever path a proxy or another application puts it.
"""

from __future__ import annotations

import posixpath
from html import escape
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.responses import Response

from koo.web.door import Door
from koo.web.routing import add_file, file_router
from koo.web.session_routes import login_path

PATH = "/dashboard"
MODULES = (
    "alerts.js", "api.js", "budgets.js", "cards.js", "checks.js", "data.js", "dialog.js", "dom.js", "feed.js",
    "folds.js", "hush.js", "main.js", "meters.js", "past.js", "places.js", "reset.js", "runbook.js", "shapes.js",
    "view.js", "words.js",
)  # fmt: skip
ASSETS = ("style.css", *MODULES)
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def dashboard_router(
    door: Door, prefix: str = "/api/v1", path: str = PATH, application: str = ""
) -> APIRouter:
    """The page below `path` and its files. `prefix`: of the routes that it asks. `application`: whose page it is."""
    router = file_router(door)
    folder = files("koo.web").joinpath("dashboard")
    page = folder.joinpath("index.html").read_text(encoding="utf-8")
    login = _from(path, login_path(prefix, path))
    has_login = "../koo-login" in page
    page = page.replace("../koo-login", login).replace("../koo-logout", login.replace("-login", "-logout"))
    page = page.replace("../api/v1", _from(path, prefix)).replace("../docs", _from(path, "/docs"))
    page = page.replace('data-application=""', f'data-application="{escape(application)}"')
    content = page.encode()

    async def show(request: Request) -> Response:
        if has_login and door.has_sessions and not door.look(request.scope)[0]:
            return Response(status_code=303, headers={"Location": login, **HEADERS})
        return Response(content, media_type="text/html", headers=HEADERS)

    router.add_api_route(f"{path}/", show, methods=["GET"])
    for name in ASSETS:
        media_type = "text/css" if name.endswith(".css") else "text/javascript"
        add_file(router, f"{path}/{name}", folder.joinpath(name).read_bytes(), media_type, HEADERS)

    async def lead() -> Response:
        # Relative: below a proxy's own path, an absolute one would lead out of it.
        return Response(status_code=307, headers={"Location": f"{posixpath.basename(path)}/", **HEADERS})

    router.add_api_route(path, lead, methods=["GET"])
    return router


def _from(path: str, target: str) -> str:
    """The relative way from the page to `target`; both are absolute paths within the application."""
    return posixpath.relpath(target or "/", path)
