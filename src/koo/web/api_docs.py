"""`/docs`: the description of the API as a page of our own, from `openapi.json`.

The usual pages load scripts from a content delivery network: a server on loopback, or one without a way out, would show
nothing, and a third party would see each reader. This one is three small files with a strict policy.
"""

from __future__ import annotations

import asyncio
from importlib.resources import files

from fastapi import APIRouter
from starlette.types import ASGIApp, Receive, Scope, Send

from koo.web.door import Door
from koo.web.routing import add_file, file_router

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FILES = {
    "/docs": ("docs.html", "text/html"),
    "/docs/page.js": ("docs.js", "text/javascript"),
    "/docs/page.css": ("docs.css", "text/css"),
}


def docs_router(door: Door) -> APIRouter:
    """The page and its two files."""
    router, folder = file_router(door), files("koo.web").joinpath("pages")
    for path, (name, media_type) in FILES.items():
        content = folder.joinpath(name).read_bytes()
        add_file(router, path, content, media_type, {"Content-Security-Policy": POLICY})
    return router


class MadeAside:
    """The description of the API is made when it is first asked for, in a thread: it takes a second of work."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._making = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and str(scope["path"]).endswith("/openapi.json"):
            described = scope["app"]
            async with self._making:
                if described.openapi_schema is None:
                    await asyncio.to_thread(described.openapi)
        await self.app(scope, receive, send)
