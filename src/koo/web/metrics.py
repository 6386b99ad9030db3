"""`/metrics`, for Prometheus; what is in it is `koo.web.exposition`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from koo.platform import Platform
from koo.web.routing import make_router, problems

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TEXT = {"text/plain": {"schema": {"type": "string"}, "example": "koo_database_up 1.0\n"}}
RESPONSES: dict[int | str, dict[str, Any]] = {200: {"content": TEXT}, **problems()}


def metrics_router(platform: Platform) -> APIRouter:
    """`/metrics` for one platform."""
    router = make_router("", "probes")

    @router.get("/metrics", summary="Numbers for Prometheus", response_class=Response, responses=RESPONSES)
    async def metrics() -> Response:
        """Prometheus text, version 0.0.4."""
        from koo.web.exposition import text_of  # only those who are scraped load the client

        return Response(text_of(platform), media_type=MEDIA_TYPE)

    return router
