"""One connection of the server: uvicorn's, with a bound on the head of a request, and errors that are problems.

The parser underneath gathers a head, however long it grows, before anybody can look at it: a caller without a token,
or a broken one, could fill the memory with a single header that never ends.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from koo.web.problems import MEDIA_TYPE, raw_problem

HEAD_BYTES_MAX = 64 * 1024


class HeadTooLarge(Exception):
    """Raised inside the parser, which stops then."""


class Connection(HttpToolsProtocol):
    """Of all bytes that came, those count that brought neither a whole head nor a piece of a body."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self._head_bytes = 0
        self._too_large = False

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
            self._too_large = True
            self.send_400_response("")

    def on_headers_complete(self) -> None:
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES_MAX:
            self._too_large = True
            raise HeadTooLarge
        self._head_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.pipeline:
            # Who asks ahead gets no further ahead than one reading, or his questions would fill the memory.
            self.flow.pause_reading()

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong, and end the connection: nobody knows where the next request would begin."""
        if (
            self.cycle is None or self.cycle.response_complete
        ):  # Else it would stand in the midst of an answer.
            status = HTTPStatus(431 if self._too_large else 400)
            reason = (
                f"its head is larger than {HEAD_BYTES_MAX // 1024} KiB"
                if self._too_large
                else "it is no HTTP"
            )
            body = raw_problem(status, f"the request cannot be read: {reason}")
            head = f"HTTP/1.1 {status.value} {status.phrase}\r\nconnection: close\r\n"
            head += f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n\r\n"
            self.transport.write(head.encode() + body)
        self.transport.close()
