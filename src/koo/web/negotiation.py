"""Which content coding a response may have, according to the client's Accept-Encoding (RFC 9110, 12.5.3)."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import Receive, Scope, Send


def accepts(header: str, coding: str) -> bool:
    """Return whether an Accept-Encoding header accepts this coding. A weight of 0 refuses it; an entry with its name
    overrides `*`."""
    weights: dict[str, float] = {}
    for part in header.split(","):
        name, *parameters = (word.strip().lower() for word in part.split(";"))
        weights[name] = min((_weight(one) for one in parameters), default=1.0)
    return weights.get(coding, weights.get("*", 0.0)) > 0


def _weight(parameter: str) -> float:
    name, _, value = parameter.partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0  # unreadable: leave the response unencoded, which every client accepts


class Gzip(GZipMiddleware):
    """Starlette's middleware with a correct check: Starlette only searches for the word, which `gzip;q=0` contains."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = Headers(scope=scope).get("accept-encoding", "")
            kept = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
            taken = [(b"accept-encoding", b"gzip")] if accepts(given, "gzip") else []
            scope = {**scope, "headers": kept + taken}
        await super().__call__(scope, receive, send)
