"""`/metrics`, for Prometheus; what is in it is `koo.web.exposition`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

import koo
from koo.platform import Platform
from koo.web.door import Door
from koo.web.routing import make_router, problems

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TEXT = {"text/plain": {"schema": {"type": "string"}, "example": "koo_database_up 1.0\n"}}
RESPONSES: dict[int | str, dict[str, Any]] = {200: {"content": TEXT}, **problems()}


def metrics_text(platform: Platform | None = None) -> bytes:
    """What `/metrics` answers, for an application that is none of FastAPI's: serve it as `METRICS_TYPE`.

    `platform` None: the process's own, which `query_ai` and `db_manager` use. No I/O.
    """
    from koo.web.exposition import text_of  # only those who are scraped load the client

    return text_of(platform or koo.platform)


def metrics_router(platform: Platform, door: Door) -> APIRouter:
    """`/metrics` for one platform."""
    router = make_router("", "probes", door)

    @router.get("/metrics", summary="Numbers for Prometheus", response_class=Response, responses=RESPONSES)
    async def metrics() -> Response:
        """Prometheus text, version 0.0.4."""
        return Response(metrics_text(platform), media_type=METRICS_TYPE)

    return router
