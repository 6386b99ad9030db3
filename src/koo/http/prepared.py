"""Requests with a fixed URL and fixed headers that are sent many times with different bodies.

For each request aiohttp's session merges and checks the headers and creates a URL, a payload, a writer, a response and,
before Python 3.12, a task that writes. That is two thirds of the cost of a short call, koo's own part included.
Everything except the body is the same for every call to one URL. So it is computed once, and each request is one write
and one read on a connection from aiohttp's pool. aiohttp still does name lookups, TLS, pooling and parsing, and raises
its usual errors.

This path handles only the plain case: a POST to a server without a proxy, with a body that fits into one write.
Everything else goes through aiohttp's session; see `HttpClient`.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Mapping

import aiohttp
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawResponseMessage
from yarl import URL

from koo.hidden import Headers
from koo.http.connector import TransportError

LINE_BYTES_MAX = 64 * 1024
INTERIM_MAX = 16
"""Interim responses (1xx) to skip. WebDAV suggests a "102 Processing" every 20 s, so 16 cover more than 5 minutes."""
OF_THE_BODY = frozenset({"content-length", "transfer-encoding"})
"""Headers that depend on the body, and so differ between requests."""


class Reply:
    """A response whose headers have arrived. `content` is its body, which may still be arriving.

    Read the body to its end or call `close()`. `held` is the object that owns the connection.
    """

    __slots__ = ("__weakref__", "_held", "content", "headers", "status")

    def __init__(
        self,
        status: int,
        headers: Mapping[str, str],
        content: aiohttp.StreamReader,
        held: aiohttp.ClientResponse | Connection,
    ) -> None:
        self.status = status
        self.headers = headers
        self.content = content
        self._held = held

    def close(self) -> None:
        """Close the connection, unless the body has arrived completely: another request may already use it."""
        content = self.content
        if not content.is_eof() and content.exception() is None:
            # aiohttp closes only the socket and does not wake a task that is waiting for the next bytes. Without the
            # exception, that task would wait until its deadline, or forever if it has none.
            content.set_exception(aiohttp.ClientConnectionError("Connection closed"))
        self._held.close()


class Prepared:
    """A repeatable POST to one URL with the same headers."""

    __slots__ = ("_head", "_request", "_timeout")

    def __init__(
        self, url: str, headers: Headers, loop: AbstractEventLoop, timeout: aiohttp.ClientTimeout
    ) -> None:
        self._timeout = timeout
        self._request: aiohttp.ClientRequest | None = None
        try:
            address = URL(url)
        except ValueError:
            return
        if address.scheme not in {"http", "https"} or not address.raw_host or address.raw_user is not None:
            return
        request = aiohttp.ClientRequest("POST", address, headers=headers, loop=loop)
        request.headers.setdefault("Content-Type", "application/octet-stream")
        lines = [f"POST {address.raw_path_qs} HTTP/1.1"]
        lines += [f"{name}: {of}" for name, of in request.headers.items() if name.lower() not in OF_THE_BODY]
        # aiohttp's own writer, which refuses line breaks, is not used here. A key with a line break in it would start
        # another header, so it could smuggle one into the request. `_request` stays None, and the session refuses it.
        if all(line.isprintable() for line in lines):
            self._head = "\r\n".join([*lines, "Content-Length: "]).encode()
            self._request = request

    async def send(self, session: aiohttp.ClientSession, body: bytes) -> Reply | None:
        """Send once and return when the response's headers have arrived. Raises aiohttp's errors.

        Returns None, with nothing sent, for a request that is not plain (one with credentials in its URL, say).
        """
        request, connector = self._request, session.connector
        if request is None or connector is None:
            return None
        try:
            connection = await connector.connect(request, [], self._timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError from error
        try:
            message, content = await self._exchange(connection, body)
        except HttpProcessingError:
            connection.close()
            raise TransportError("answer", "the response is not HTTP") from None
        except BaseException:
            # This also runs on cancellation. The response to this request is still on its way; the next request on the
            # same connection would read it as its own, and one caller would receive another caller's text.
            connection.close()
            raise
        # The connection returns to the pool when the last byte of the body arrives, not when the reader asks for it: an
        # error response whose body is never read must not occupy a connection. If the body is already complete, aiohttp
        # calls this immediately.
        content.on_eof(connection.release)
        return Reply(message.code, message.headers, content, connection)

    async def _exchange(
        self, connection: Connection, body: bytes
    ) -> tuple[RawResponseMessage, aiohttp.StreamReader]:
        protocol = connection.protocol
        transport = None if protocol is None else protocol.transport
        if protocol is None or transport is None or transport.is_closing():
            raise TransportError("connect", "the connection was closed before anything was sent")
        protocol.set_response_params(
            read_until_eof=True,
            auto_decompress=False,
            max_line_size=LINE_BYTES_MAX,
            max_field_size=LINE_BYTES_MAX,
        )
        transport.write(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))
        # Interim responses (100 Continue, 102, 103) precede the real one, and the parser returns each as a complete
        # message. A faulty server could send them forever, and the call would wait until its deadline.
        for _ in range(INTERIM_MAX + 1):
            message, content = await protocol.read()
            if message.code >= 200 or message.code == 101:
                return message, content
        raise TransportError("answer", f"the server sent more than {INTERIM_MAX} interim responses")
