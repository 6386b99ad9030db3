"""koo's routes in an application of plain Starlette, which cannot include a FastAPI router.

The routes stay in a FastAPI application behind one route of the host. That route matches what one of koo's routes
matches and nothing else, so the host's own routes, 404s and error handlers stay as they are.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.datastructures import URLPath
from starlette.routing import BaseRoute, Match, Mount, NoMatchFound
from starlette.types import Receive, Scope, Send


class Guest(BaseRoute):
    """All routes of `app` as one route."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        # The child scope stays empty: the guest's own router matches again and finds the path's parameters.
        return max((route.matches(scope)[0] for route in self.app.routes), key=lambda m: m.value), {}

    def url_path_for(self, name: str, /, **path_params: Any) -> URLPath:
        raise NoMatchFound(name, path_params)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The guest gets a copy of the scope: it stores itself there, where the host's middleware expects its own
        # application.
        await self.app({**scope}, receive, send)


def receive_guest(routes: list[BaseRoute], guest: Guest) -> None:
    """Insert the guest after the host's routes, but before a mount at the root, which matches every path."""
    everything = (
        place for place, route in enumerate(routes) if isinstance(route, Mount) and route.path == ""
    )
    routes.insert(next(everything, len(routes)), guest)
