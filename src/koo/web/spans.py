"""Spans of requests carry no query string: there may be a token in it, as in a link made by hand.

FastAPI makes a span of each request where the process has set OpenTelemetry up, and writes the query string into it
before any middleware runs. So the application puts it aside, and the edge, the first middleware, puts it back.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

ASIDE = "koo.query_string"


class Application(FastAPI):
    """FastAPI, which sees no query string until the edge has it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope[ASIDE], scope["query_string"] = scope.get("query_string", b""), b""
        await super().__call__(scope, receive, send)


def put_back(scope: Scope) -> None:
    """In the edge: from here on the request has its query string."""
    if ASIDE in scope:
        scope["query_string"] = scope.pop(ASIDE)
