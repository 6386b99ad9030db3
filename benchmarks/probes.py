"""The cost of an orchestrator's probe: `/readyz` compared with an empty route of the same server and of a bare
FastAPI.

All are called through ASGI with the scope that a server passes, without sockets, whose cost is the same for all. koo's
server adds an id, security headers and access checks to each response; the bare application adds nothing.
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
    """GET `path` repeatedly; each response must be a 200."""
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
    """The application with a route in front that returns the same response as `/readyz`."""

    async def empty() -> JSONResponse:
        return JSONResponse({"status": "ready"})

    app.router.routes.insert(0, APIRoute("/empty", empty))
    return app


async def report(rounds: int = 15) -> Report:
    """The ratio to the empty route; the ratio to a bare FastAPI is only printed."""
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
