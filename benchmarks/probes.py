"""What an orchestrator's probe costs: `/readyz` beside an empty route of the same server, and of a bare FastAPI.

All are asked through ASGI with what a server hands over, without sockets, whose cost is the same for all. The server
gives each answer an id, careful headers and a door, the bare application nothing.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from benchmarks.measure import AsyncRun, Report, compare
from koo.options import PlatformOptions
from koo.platform import Platform
from koo.web.app import create_app

EMPTY, BARE, READYZ = "an empty route", "a bare FastAPI", "koo: /readyz"


def asking(app: ASGIApp, path: str) -> AsyncRun:
    """GET `path`, again and again; each answer must be a 200."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8000),
    }

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message.get("status", 200) != 200:
            raise RuntimeError(f"{path} answers {message['status']}")

    async def run(times: int) -> None:
        for _ in range(times):
            headers = [(b"host", b"127.0.0.1:8000"), (b"user-agent", b"kube-probe/1.33"), (b"accept", b"*/*")]
            await app({**scope, "headers": headers, "state": {}}, receive, send)

    return run


def with_empty_route(app: FastAPI) -> FastAPI:
    """With a route before all others that answers what `/readyz` does."""

    async def empty() -> JSONResponse:
        return JSONResponse({"status": "ready"})

    app.router.routes.insert(0, APIRoute("/empty", empty))
    return app


async def report(rounds: int = 15) -> Report:
    """The ratio; that to a bare FastAPI is printed."""
    with tempfile.TemporaryDirectory() as home:
        app = with_empty_route(create_app(Platform(PlatformOptions(home=Path(home)))))
        async with app.router.lifespan_context(app):
            contenders = {
                EMPTY: asking(app, "/empty"),
                BARE: asking(with_empty_route(FastAPI()), "/empty"),
                READYZ: asking(app, "/readyz"),
            }
            table = await compare(contenders, times=2000, rounds=rounds)
    print(f"  {READYZ} / a route of a bare FastAPI: {statistics.median(table.ratios(READYZ, BARE)):.2f}")
    return Report({"koo: /readyz / an empty route": table.ratios(READYZ, EMPTY)})
