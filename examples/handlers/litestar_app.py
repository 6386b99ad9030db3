"""koo's errors as problem+json in Litestar: one handler.

litestar --app examples.handlers.litestar_app:app run --port 8003
"""

from __future__ import annotations

from typing import Any

from litestar import Litestar, Request, Response, get

import koo


def answer(request: Request[Any, Any, Any], error: koo.KooError) -> Response[bytes]:
    """Pass `Content-Type`, which is one of the headers, as the media type that Litestar expects."""
    body, status, headers = koo.problem_answer(error, request.url.path)
    return Response(body, status_code=status, headers=headers, media_type=headers.pop("Content-Type"))


@get("/ask")
async def ask() -> str:
    """A view whose call is refused by an open circuit."""
    raise koo.CircuitOpen("claude", "5 failures in a row", 41.7)


app = Litestar([ask], exception_handlers={koo.KooError: answer})
