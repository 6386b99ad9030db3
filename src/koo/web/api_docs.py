"""`/docs`: the API description as koo's own page, generated from `openapi.json`.

The usual pages load scripts from a content delivery network. A server on loopback, or without internet access, would
show an empty page, and a third party would see each reader. This page is three small files with a strict policy.
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
    """Builds the API description when it is first requested, in a thread, because it takes a second of CPU time."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._making = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and str(scope["path"]).endswith("/openapi.json"):
            described = scope["app"]
            # Only one build runs at a time: without the lock, ten early requests would start ten builds that compete
            # for the interpreter.
            async with self._making:
                if described.openapi_schema is None:
                    await asyncio.to_thread(described.openapi)
        await self.app(scope, receive, send)
