"""`/metrics`, for Prometheus. `koo.web.exposition` defines its contents."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from fastapi import APIRouter
from starlette.responses import Response

import koo
from koo.platform import Platform
from koo.shortages import shortage_in
from koo.web.door import Door
from koo.web.routing import make_router, problems
from koo.web.siblings import Siblings
from koo.workplace import parent_of_workers, worker_name

T = TypeVar("T")

METRICS_PATH = "/metrics"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TEXT = {"text/plain": {"schema": {"type": "string"}, "example": "koo_database_up 1.0\n"}}
RESPONSES: dict[int | str, dict[str, Any]] = {200: {"content": TEXT}, **problems()}


TOLD_EVERY_S = 1.0
_siblings: WeakKeyDictionary[Platform, Siblings] = WeakKeyDictionary()


@asynccontextmanager
async def told_to_siblings(platform: Platform) -> AsyncIterator[None]:
    """Within the block, this process shares its numbers with the other workers of its server; alone, it shares
    nothing.
    """
    parent = parent_of_workers()
    if parent is None:
        yield
        return
    from koo.web.exposition import bury

    siblings = _siblings[platform] = Siblings(platform.options.home, worker_name(), parent, bury)
    task = asyncio.create_task(_tell(platform, siblings), name="koo metrics of workers")
    try:
        yield
    finally:
        # The numbers are written once more after the task has ended: otherwise what was counted in the last second
        # would be missing.
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await in_thread(siblings.leave, _snapshot(platform))
        del _siblings[platform]


async def _tell(platform: Platform, siblings: Siblings) -> None:
    while True:
        await in_thread(siblings.leave, _snapshot(platform))
        await asyncio.sleep(TOLD_EVERY_S)


def _snapshot(platform: Platform) -> dict[str, Any]:
    from koo.web.exposition import snapshot_of

    return {"at": time.monotonic(), **snapshot_of(platform)}


async def in_thread(act: Callable[..., T], *given: Any) -> T:
    """Run in a thread, because a disk may hang; if this process cannot start another thread, run it here."""
    try:
        return await asyncio.to_thread(act, *given)
    except RuntimeError as error:
        if shortage_in(error) is None:
            raise
        return act(*given)


async def text_for_scrape(platform: Platform) -> bytes:
    """Return the text for this process, or for all workers of its server."""
    from koo.web.exposition import text_of, text_of_all

    siblings = _siblings.get(platform)
    if siblings is None:
        return text_of(platform)
    living, gone = await in_thread(siblings.exchange, _snapshot(platform))
    return text_of_all(living, gone)


def metrics_text(platform: Platform | None = None) -> bytes:
    """Return what `/metrics` returns, for an application without FastAPI. Serve it with the media type `METRICS_TYPE`.

    `platform` defaults to the process's own, which `query_ai` and `db_manager` use. No I/O; covers this process only.
    """
    from koo.web.exposition import (
        text_of,
    )  # imported here, so that only scraped processes load the Prometheus client

    return text_of(platform or koo.platform)


def metrics_router(platform: Platform, door: Door, path: str = METRICS_PATH) -> APIRouter:
    """`/metrics`, or another path, for one platform."""
    router = make_router("", "probes", door)

    @router.get(path, summary="Numbers for Prometheus", response_class=Response, responses=RESPONSES)
    async def metrics() -> Response:
        """Prometheus text, version 0.0.4."""
        return Response(await text_for_scrape(platform), media_type=METRICS_TYPE)

    return router
