"""OpenTelemetry spans of requests contain no query string: it may contain a token, for example in a hand-made link.

If the process has set up OpenTelemetry, FastAPI starts a span for each request and records the query string before any
middleware runs. Therefore the application takes the query string out of the scope, and the edge, which is the first
middleware, puts it back.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

ASIDE = "koo.query_string"


class Application(FastAPI):
    """FastAPI, without the query string until the edge puts it back."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope[ASIDE], scope["query_string"] = scope.get("query_string", b""), b""
        await super().__call__(scope, receive, send)


def put_back(scope: Scope) -> None:
    """Called by the edge: restores the query string for the rest of the request."""
    if ASIDE in scope:
        scope["query_string"] = scope.pop(ASIDE)
