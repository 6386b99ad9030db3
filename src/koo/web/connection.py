"""One connection of the server: uvicorn's, with a limit on the head's size, deadlines, and errors sent as problems.

uvicorn's parser collects a whole head before any of koo's code runs, however large it grows and however long it takes.
A client without a token, or a broken one, could fill the memory with one endless header, or use up the descriptors with
heads that never end. Therefore everything that koo waits for has a time limit:

* `head`: the head of a request, counted from the connection's start or the head's first byte.
* `request`: the next request on an idle connection.
* `body`, `reader`: a body that the client sends, a response that it reads. Both may take any time, but must make
  progress: each has an allowance of seconds that time uses up and bytes refill (`PATIENCE_S`).
* `rest`: the remainder of a body whose request is already answered.
* `closing`: a closed connection whose last bytes the client has not read yet.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, ClassVar, Literal

from httptools import HttpParserUpgrade, HttpRequestParser
from starlette.requests import Request
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from koo.web.addresses import client_of
from koo.web.bounds import CLOSE
from koo.web.crowd import Crowd
from koo.web.door import careful
from koo.web.edge import is_probe
from koo.web.problems import MEDIA_TYPE, http_problem, raw_problem, respond

# nginx allows 32 KiB by default (four buffers of 8 KiB), and Node.js 16 KiB. 64 KiB leaves room for long cookies.
HEAD_BYTES_MAX = 64 * 1024
# nginx waits for 60 s by default. 20 s is still many round trips of a slow mobile network, and until the head is
# complete nothing shows whether the client is authorized at all.
HEAD_S = 20.0
KEEP_ALIVE_S = 75
"""Longer than a proxy usually keeps an idle connection. The side that closes first may lose a request on its way."""
# Patience is like a token bucket of seconds. A body may pause for 20 s once, and afterwards must arrive at 8 KiB/s on
# average; a response must be read at 1 KiB/s. Both rates are far below any usable connection.
PATIENCE_S = 20.0
BODY_BYTES_PER_S = 8 * 1024
READER_BYTES_PER_S = 1024
REST_S = 5.0
"""Long enough for the client to read a response that was sent before its body had arrived."""
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
    """Raised in a callback of the parser, to make the parser stop."""


class Tunnel(Exception):
    """Raised in the same way, for CONNECT."""


class Parser(HttpRequestParser):
    """Reads a request that asks for another protocol as if it did not: a server may ignore `Upgrade` (RFC 9110, 7.8).

    httptools ends such a request after its head and takes its body for the next request. Java's HTTP client sends
    `Upgrade: h2c` with its first request, so its POST would arrive without a body. And a client could hide a request in
    a body, where a proxy in front of koo does not check it.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._connection = connection

    def feed_data(self, data: bytes) -> None:  # type: ignore[override] # uvicorn passes nothing else
        parser, rest = self, memoryview(data)
        while True:
            try:
                super(Parser, parser).feed_data(rest)
            except HttpParserUpgrade as upgrade:
                head, rest = self._connection.head_without_upgrade(), rest[upgrade.args[0] :]
                # A new parser, because after a head with `Connection: close` the old one would ignore everything.
                parser = self._connection.parser = Parser(self._connection)
                super(Parser, parser).feed_data(head)
            else:
                return


class Connection(HttpToolsProtocol):
    """A connection with deadlines. `head_bytes` counts received bytes that have completed neither a head nor a part
    of a body.
    """

    crowd: ClassVar[Crowd]

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.parser = Parser(self)
        self.address = ""
        self.head_bytes = 0
        self._too_large = False
        self._in_head = self._in_body = False
        self._waits_for: Waits = ""
        self._since = self._patience_at = self.crowd.monotonic()
        self._patience_s = PATIENCE_S
        self._body_bytes = 0
        self._unread_bytes = 0
        self._answered: Any = None

    # ── events ────────────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.address = client_of(self.client[0]) if self.client else ""
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
            return  # the client sent it before it learned that koo had closed the connection
        # The bytes are counted before parsing, because the parser keeps the bytes of an unfinished head. The callbacks
        # below set the count back to 0 when a head is complete or a part of a body arrives, so only an endless head
        # reaches the limit.
        self._count_head(self.head_bytes + len(data))
        super().data_received(data)
        if self.head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
            self._too_large = True
            self.send_400_response("")
        self._turn()

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        # uvicorn would add the fields that follow a chunked body to the headers of the request that is running. A proxy
        # in front of koo checks only the head.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        # The count above sees only whole reads: a head that arrives complete in one large read has been parsed before
        # the count is compared. An exception in a callback becomes `HttpParserError` in httptools, which uvicorn
        # answers by calling `send_400_response`.
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES_MAX:
            self._too_large = True
            raise HeadTooLarge
        if self.parser.should_upgrade():
            # CONNECT counts as an upgrade too, and would do so again when its head is parsed again: one with a path
            # would run twice and get two responses.
            if self.parser.get_method() == b"CONNECT":
                raise Tunnel
            return  # `Parser` feeds this head again, without `Upgrade`
        self._count_head(0)
        self._in_head, self._in_body, self._body_bytes = False, True, 0
        super().on_headers_complete()

    def head_without_upgrade(self) -> bytes:
        """Return the head that was read last, without `Upgrade`."""
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def on_body(self, body: bytes) -> None:
        self._count_head(0)
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._in_head:
            return  # a head that is read again: there is no request yet
        self._in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.pipeline:
            # uvicorn has just resumed reading and started the next request of the queue. If more are queued, a client
            # that pipelines without reading would get one more read (up to 256 KiB of requests) for each response, and
            # the queue would grow without limit. Pausing again keeps it at most one read ahead.
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
        # uvicorn sets `self.cycle` when it parses a head, so with pipelining it is the newest request and not the one
        # being answered. `_tell_left` needs the latter.
        self._answered = cycle
        super()._start_asgi_task(cycle, answer)

    def _count_head(self, byte_count: int) -> None:
        change, self.head_bytes = byte_count - self.head_bytes, byte_count
        if change:
            self.crowd.gather(change)

    # ── deadlines ─────────────────────────────────────────────────────────────────────────────────────────────

    def _turn(self) -> None:
        # Called after each event that can change who has to act next. The clock is restarted only if the state
        # changes: otherwise a client could extend the deadline for a head by sending one byte now and then.
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
        """Return what koo waits for, or an empty string while koo itself works."""
        is_answered = self.cycle is None or self.cycle.response_complete
        # The order of these checks matters. A closing connection may still be in the middle of a body. A body comes
        # before `reader` and before "busy": as long as it is not complete, the application waits for the client, so it
        # must not count as busy, or slow uploads could hold every connection of a full server.
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
        """Return whether the connection was opened after `since` and has not sent a request yet."""
        return self.cycle is None and self._since > since and not self.transport.is_closing()

    def look(self, now: float) -> None:
        self._turn()  # the application may have closed it
        # These two have no fixed deadline: a large body over a slow line may take an hour.
        if self._waits_for in ("body", "reader"):
            if self._lost_patience(now):
                self._give_up()
        elif self._waits_for and now - self._since > AT_MOST_S[self._waits_for]:
            self._give_up()

    def _lost_patience(self, now: float) -> bool:
        past_s, self._patience_at = now - self._patience_at, now
        if self._waits_for == "body":
            if self.flow.read_paused:
                return False  # koo has paused reading, so the client is not late
            gained_s, self._body_bytes = self._body_bytes / BODY_BYTES_PER_S, 0
        else:
            # The write buffer shrinks only if the client reads: while it is over the high-water mark, `send` waits and
            # the application adds nothing.
            unread = self.transport.get_write_buffer_size()
            gained_s = max(0, self._unread_bytes - unread) / READER_BYTES_PER_S
            self._unread_bytes = unread
        self._patience_s = min(PATIENCE_S, self._patience_s - past_s + gained_s)
        return self._patience_s < 0

    def _give_up(self) -> None:
        if self._waits_for == "head" and self._in_head:
            self._answer(408, f"the head of the request was not complete within {HEAD_S:.0f} s")
        elif self._waits_for == "body" and not self.cycle.response_started:
            self._answer(
                408, f"the body of the request arrived more slowly than {BODY_BYTES_PER_S // 1024} KiB/s"
            )
        elif self._waits_for in ("closing", "reader"):
            # `close` flushes the write buffer first, which would wait for the very client that does not read. `abort`
            # drops it. A response that has begun cannot be replaced by a 408, so a late body ends with a closed
            # connection then.
            self.transport.abort()
        else:
            self.transport.close()
        self._tell_left()
        # The application may be blocked in `send`, waiting for the buffer to drain. uvicorn wakes it only in
        # `connection_lost`, which may be seconds away. Woken now, it sees `disconnected` and drops what it sends.
        self.flow.resume_writing()
        self._turn()

    def _tell_left(self) -> None:
        """Notify the request being answered that its client left: uvicorn only notifies the newest request."""
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()

    def end(self) -> None:
        # This happens now and not in `connection_lost`, which runs in the loop's next turn: until then the crowd would
        # close others.
        self._count_head(0)
        self.transport.abort()

    # ── responses without the application ─────────────────────────────────────────────────────────────────────

    def send_400_response(self, msg: str) -> None:
        """Send the error and close the connection: nothing shows where the next request would begin."""
        # With a response in progress, the error would land in the middle of it and the client would read it as part of
        # the body. If the unreadable bytes come after a request that is running, it would read it as that request's
        # response. Closing the connection is all that is left then.
        one = self._answered
        is_its_body = self._in_body and one is self.cycle and not one.response_started
        if one is None or one.response_complete or is_its_body:
            reason = (
                f"its head is larger than {HEAD_BYTES_MAX // 1024} KiB"
                if self._too_large
                else "it is not HTTP"
            )
            self._answer(431 if self._too_large else 400, f"the request cannot be read: {reason}")
        self.transport.close()
        self._tell_left()

    def _answer(self, code: int, detail: str) -> None:
        # The response is written to the transport directly: an unreadable head has no ASGI cycle that could respond,
        # and with a late body the application is still waiting for that body.
        status, body = HTTPStatus(code), raw_problem(code, detail)
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nconnection: close\r\n"
        head += f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.close()


def in_crowd(crowd: Crowd) -> type[Connection]:
    """Return a connection class bound to this `Crowd`: uvicorn creates the instances itself."""
    return type("Connection", (Connection,), {"crowd": crowd})


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    problem = http_problem(Request(scope), 503, FULL, kind="too_many_connections", retry_after_s=1.0)
    await respond(problem, CLOSE)(scope, receive, careful(send))
