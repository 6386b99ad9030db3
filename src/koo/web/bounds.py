"""How large a body may be, and the headers of an answer that is its caller's business alone."""

from __future__ import annotations

from fastapi import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive

BODY_BYTES_MAX = 16 * 1024 * 1024
"""More than the largest prompt, whose own limit raises the clearer error."""
PARAMETERS_MAX = 100
"""Of an address; thousands take longer to read than an answer to make."""
MARK = "koo.careful"
"""In the scope of a request that the edge, or a door before another one, takes care of."""
CLOSE = {"Connection": "close"}
CAREFUL = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class BodyTooLarge(HTTPException):
    """More bytes came than any request needs.

    FastAPI's own, because FastAPI reports any other error while a body is read as invalid JSON.
    """

    def __init__(self, bytes_max: int) -> None:
        # The rest of the body is not read, so the connection cannot be used again.
        super().__init__(413, f"the body is larger than {bytes_max // 2**20} MiB", CLOSE)


def bounded(receive: Receive, bytes_max: int) -> Receive:
    """The same `receive`, which raises `BodyTooLarge` when more bytes than the limit have come."""
    left = bytes_max

    async def receiving() -> Message:
        nonlocal left
        message = await receive()
        if message["type"] == "http.request":
            left -= len(message.get("body", b""))
            if left < 0:
                raise BodyTooLarge(bytes_max)
        return message

    return receiving


def announced_bytes(request: Request) -> int:
    """What the head says of the body's size; 0 where it says nothing that can be read."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() and length.isascii() else 0
