"""The limit on a body's size, and the headers of a response that is private to its caller."""

from __future__ import annotations

from fastapi import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive

BODY_BYTES_MAX = 16 * 1024 * 1024
"""More than the largest prompt, whose own limit raises a clearer error."""
PARAMETERS_MAX = 100
"""The limit on query parameters. Parsing thousands of them takes longer than producing the response."""
MARK = "koo.careful"
"""Set in the scope of a request whose headers and body are already handled by the edge or by an outer `Door`."""
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
    """The body has more bytes than any request needs.

    A subclass of FastAPI's exception, because FastAPI reports any other error raised while a body is read as invalid
    JSON.
    """

    def __init__(self, bytes_max: int) -> None:
        # The rest of the body is not read, so the connection cannot be used again.
        super().__init__(413, f"the body is larger than {bytes_max // 2**20} MiB", CLOSE)


def bounded(receive: Receive, bytes_max: int) -> Receive:
    """Wrap `receive`: the result raises `BodyTooLarge` as soon as more bytes than the limit have arrived."""
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
    """Return the body's size according to its head, or 0 if the head does not contain a valid length."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() and length.isascii() else 0
