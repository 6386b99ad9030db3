"""`/docs`: the description of the API as a page of our own, from `openapi.json`.

The usual pages load scripts from a content delivery network: a server on loopback, or one without a way out, would show
nothing, and each reader would be told to a third party. This one is three small files with a strict policy.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter

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
