"""`/dashboard/`: the state of everything as a page that updates itself.

Plain files without a build step. The policy lets the page connect only to this server, run only its own scripts, and
never turn text into markup (`trusted-types`). The files contain nothing about this installation, so anyone may load
them; the data that they request is guarded like every other request.

All URLs in the page are relative, so it works below any path of a proxy or another application.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator
from html import escape
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request
from starlette.responses import Response

from koo.web.door import Door
from koo.web.routing import add_file, file_router
from koo.web.session_routes import login_path

PATH = "/dashboard"
FOLDER = files("koo.web").joinpath("page")
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "json": "application/json"}
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


def page_files() -> dict[str, bytes]:
    """The page's files by their path below its folder, unchanged. `index.html` is filled in when it is served."""
    return dict(_files_below(FOLDER, ""))


def _files_below(folder: Traversable, path: str) -> Iterator[tuple[str, bytes]]:
    for one in sorted(folder.iterdir(), key=lambda one: one.name):
        if one.is_dir():
            yield from _files_below(one, f"{path}{one.name}/")
        else:
            yield path + one.name, one.read_bytes()


def dashboard_router(
    door: Door,
    prefix: str = "/api/v1",
    path: str = PATH,
    application: str = "",
    environment: Callable[[], str] = str,
) -> APIRouter:
    """The page below `path` and its files. `prefix`: the path prefix of the routes that it calls.

    `application` and `environment`: whose page it is. The settings are read when it is requested, not at import.
    """
    router, content = file_router(door), page_files()
    login = _from(path, login_path(prefix, path))
    page = content.pop("index.html").decode()
    page = page.replace("../koo-login", login).replace("../koo-logout", login.replace("-login", "-logout"))
    page = page.replace("../api/v1", _from(path, prefix)).replace("../docs", _from(path, "/docs"))
    page = page.replace('data-application=""', f'data-application="{escape(application)}"')
    page = page.replace("</head>", f"{_preloads(content)}</head>")

    async def show(request: Request) -> Response:
        if door.has_sessions and not door.look(request.scope)[0]:
            return Response(status_code=303, headers={"Location": login, **HEADERS})
        whole = page.replace('data-environment=""', f'data-environment="{escape(environment())}"')
        return Response(whole, media_type="text/html", headers=HEADERS)

    router.add_api_route(f"{path}/", show, methods=["GET"])
    for name, body in content.items():
        media_type = TYPES.get(name.rpartition(".")[2], "text/plain")
        add_file(router, f"{path}/{name}", body, media_type, HEADERS)

    async def lead() -> Response:
        # The path is relative: behind a proxy with its own path prefix, an absolute path would lead out of it.
        return Response(status_code=307, headers={"Location": f"{posixpath.basename(path)}/", **HEADERS})

    if path:
        router.add_api_route(path, lead, methods=["GET"])
    return router


def _preloads(names: Iterable[str]) -> str:
    """Preload all modules. Discovered one after another, each import level would cost a round trip to the server."""
    modules = (name for name in names if name.endswith(".js") and name != "main.js")
    return "".join(f'<link rel="modulepreload" href="{name}">\n' for name in modules)


def _from(path: str, target: str) -> str:
    """The relative path from the page to `target`; both are absolute paths in the application, the root is empty."""
    return posixpath.relpath(target or "/", path or "/")
