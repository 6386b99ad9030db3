"""One connection of the server: uvicorn's, with a bound on heads, an end of waiting, and errors that are problems.

The parser underneath gathers a whole head, however long it grows and however long it takes, before any code sees it. A
caller without a token, or a broken one, could fill the memory with one endless header, or the descriptors with heads
that never end. So everything that koo waits for has a time limit:

* `head`: the head of a request, from the connection's beginning or the head's first byte.
* `request`: the next one, on an idle connection.
* `body`, `reader`: what is sent to us, or taken from us, may take as long as it likes, but has to go on: a patience,
  used up by time and refilled by bytes.
* `rest`: the rest of a body whose request is answered already.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, ClassVar, Literal

from starlette.requests import Request
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from koo.web.bounds import CLOSE
from koo.web.crowd import Crowd, address_of
from koo.web.door import careful
from koo.web.edge import is_probe
from koo.web.problems import MEDIA_TYPE, http_problem, raw_problem, respond

HEAD_BYTES_MAX = 64 * 1024
HEAD_S = 20.0
KEEP_ALIVE_S = 75
"""Longer than the usual proxy keeps a connection: the side that closes first may lose a request on its way."""
PATIENCE_S = 20.0
BODY_BYTES_PER_S = 8 * 1024
READER_BYTES_PER_S = 1024
REST_S = 5.0
"""Long enough to take an answer that came before the body had been sent."""
CLOSING_S = 5.0
FULL = "the server has reached its limit of open connections; try again in a moment"
Waits = Literal["", "head", "request", "body", "reader", "rest", "closing"]
AT_MOST_S: dict[Waits, float] = {
    "head": HEAD_S,
    "request": KEEP_ALIVE_S,
    "rest": REST_S,
    "closing": CLOSING_S,
}


class HeadTooLarge(Exception):
    """Raised inside the parser, which stops then."""


class Connection(HttpToolsProtocol):
    """Of all bytes that came, those count that brought neither a whole head nor a piece of a body."""

    crowd: ClassVar[Crowd]

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.address = ""
        self._head_bytes = 0
        self._too_large = False
        self._in_head = self._in_body = False
        self._waits_for: Waits = ""
        self._since = self._patience_at = self.crowd.monotonic()
        self._patience_s = PATIENCE_S
        self._body_bytes = 0
        self._unread_bytes = 0
        self._answered: Any = None

    # ── what happens on it ────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.address = address_of(self.client[0]) if self.client else ""
        if self.crowd.enter(self):
            self._turn()
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._count_head(0)
        self.crowd.leave(self)
        self._tell_left()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return  # it came with what we have closed for
        self._count_head(self._head_bytes + len(data))
        super().data_received(data)
        if self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
            self._too_large = True
            self.send_400_response("")
        self._turn()

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES_MAX:
            self._too_large = True
            raise HeadTooLarge
        self._count_head(0)
        self._in_head, self._in_body, self._body_bytes = False, True, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._count_head(0)
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.pipeline:
            # A caller that pipelines may be one read ahead at most, or its requests would fill the memory.
            self.flow.pause_reading()
        self._turn()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._turn()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._turn()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        answer: Any = app if is_probe(cycle.scope) or not self.crowd.refuses(self) else _refuse
        self._answered = cycle
        super()._start_asgi_task(cycle, answer)

    def _count_head(self, byte_count: int) -> None:
        change, self._head_bytes = byte_count - self._head_bytes, byte_count
        if change:
            self.crowd.gather(change)

    # ── whose turn it is, and for how long ────────────────────────────────────────────────────────────────────

    def _turn(self) -> None:
        waits_for = self._what()
        if waits_for == self._waits_for:
            return
        self._waits_for, self._since = waits_for, self.crowd.monotonic()
        self._patience_s, self._patience_at = PATIENCE_S, self._since
        self._unread_bytes = self.transport.get_write_buffer_size()
        if waits_for:
            self.crowd.waits(self, is_known=self.cycle is not None)
        else:
            self.crowd.works(self)

    def _what(self) -> Waits:
        """What koo waits for; empty where koo itself works."""
        is_answered = self.cycle is None or self.cycle.response_complete
        if self.transport.is_closing():
            return "closing"
        if self._in_body:
            return "rest" if is_answered else "body"
        if self.flow.write_paused:
            return "reader"
        if not is_answered:
            return ""
        return "head" if self._in_head or self.cycle is None else "request"

    def is_newcomer(self, since: float) -> bool:
        """Was it opened after `since`, and has not asked yet?"""
        return self.cycle is None and self._since > since and not self.transport.is_closing()

    def look(self, now: float) -> None:
        self._turn()  # the application may have closed it
        if self._waits_for in ("body", "reader"):
            if self._lost_patience(now):
                self._give_up()
        elif self._waits_for and now - self._since > AT_MOST_S[self._waits_for]:
            self._give_up()

    def _lost_patience(self, now: float) -> bool:
        past_s, self._patience_at = now - self._patience_at, now
        if self._waits_for == "body":
            if self.flow.read_paused:
                return False  # it is we who do not read
            gained_s, self._body_bytes = self._body_bytes / BODY_BYTES_PER_S, 0
        else:
            unread = self.transport.get_write_buffer_size()
            gained_s = max(0, self._unread_bytes - unread) / READER_BYTES_PER_S
            self._unread_bytes = unread
        self._patience_s = min(PATIENCE_S, self._patience_s - past_s + gained_s)
        return self._patience_s < 0

    def _give_up(self) -> None:
        if self._waits_for == "head" and self._in_head:
            self._answer(408, f"the head of the request did not end within {HEAD_S:.0f} s")
        elif self._waits_for == "body" and not self.cycle.response_started:
            self._answer(
                408, f"the body of the request arrived at less than {BODY_BYTES_PER_S // 1024} KiB/s"
            )
        elif self._waits_for in ("closing", "reader"):
            self.transport.abort()
        else:
            self.transport.close()
        self._tell_left()
        self.flow.resume_writing()
        self._turn()

    def _tell_left(self) -> None:
        """Tell the request being answered that its caller left: uvicorn tells only the last one pipelined."""
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()

    def end(self) -> None:
        self.transport.abort()

    # ── what cannot be answered by the application ────────────────────────────────────────────────────────────

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong and close the connection: where the next request would begin is unknown."""
        if (
            self.cycle is None or self.cycle.response_complete
        ):  # Otherwise it would land in the middle of another answer.
            reason = (
                f"its head is larger than {HEAD_BYTES_MAX // 1024} KiB"
                if self._too_large
                else "it is not HTTP"
            )
            self._answer(431 if self._too_large else 400, f"the request cannot be read: {reason}")
        self.transport.close()

    def _answer(self, code: int, detail: str) -> None:
        status, body = HTTPStatus(code), raw_problem(code, detail)
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nconnection: close\r\n"
        head += f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.close()


def in_crowd(crowd: Crowd) -> type[Connection]:
    """The class of connections that belong to it."""
    return type("Connection", (Connection,), {"crowd": crowd})


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    problem = http_problem(Request(scope), 503, FULL, kind="too_many_connections", retry_after_s=1.0)
    await respond(problem, CLOSE)(scope, receive, careful(send))
