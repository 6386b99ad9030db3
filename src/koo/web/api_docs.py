"""`/docs`: the description of the API as a page of our own, from `openapi.json`.

The usual pages load scripts from a content delivery network: a server on loopback, or one without a way out, would show
nothing, and each reader would be told to a third party. This one is three small files with a strict policy.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

from koo.web.routing import ProblemRoute

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FILES = {
    "/docs": ("docs.html", "text/html"),
    "/docs/page.js": ("docs.js", "text/javascript"),
    "/docs/page.css": ("docs.css", "text/css"),
}


def docs_router() -> APIRouter:
    """The page and its two files."""
    router = APIRouter(include_in_schema=False, route_class=ProblemRoute)
    for path, (name, media_type) in FILES.items():
        router.add_api_route(path, _serve(name, media_type), methods=["GET"], response_class=Response)
    return router


def _serve(name: str, media_type: str):  # type: ignore[no-untyped-def]
    content = files("koo.web").joinpath("pages", name).read_bytes()

    async def page() -> Response:
        return Response(content, media_type=media_type, headers={"Content-Security-Policy": POLICY})

    return page
