"""A request with a fixed address and headers, which is sent repeatedly with another body.

For each request aiohttp's session merges and checks the headers, and makes a URL, a payload, a writer, a response and,
before Python 3.12, a task that writes: two thirds of the cost of a short call, koo's own part included. Everything
except the body is the same for every call to one address. So it is computed once, and a request is one write and one
read on a connection of aiohttp's pool. Names, TLS, the pool, the parser and their errors stay aiohttp's.

Only the plain case goes this way: a POST whose body fits into one write, to a server that is reached directly. Anything
else is the session's: see `HttpClient`.
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
"""A "102 Processing" every twenty seconds is the most that is written anywhere, and longer than a call lasts."""
OF_THE_BODY = frozenset({"content-length", "transfer-encoding"})
"""Headers that differ from one request to the next."""


class Reply:
    """An answer whose headers have arrived: `content` is its body, which may still be arriving. Leave it read or
    closed.

    `held` is what has the connection.
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
        """Close the connection, unless the answer was read to its end: another request may have it already."""
        content = self.content
        if not content.is_eof() and content.exception() is None:
            # aiohttp closes only the socket, and does not wake a task that waits for the next bytes.
            content.set_exception(aiohttp.ClientConnectionError("Connection closed"))
        self._held.close()


class Prepared:
    """POST to one address with the same headers, as often as wanted."""

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
        if all(line.isprintable() for line in lines):  # A line break would begin a header of its own.
            self._head = "\r\n".join([*lines, "Content-Length: "]).encode()
            self._request = request

    async def send(self, session: aiohttp.ClientSession, body: bytes) -> Reply | None:
        """Send it once; returns when the headers of the answer are there. Raises as aiohttp does.

        None: this is not plain, and nothing was sent (credentials in the URL, say).
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
            raise TransportError("answer", "the answer is not HTTP") from None
        except BaseException:
            # Cancellation included: a connection whose answer is still to come must not return to the pool.
            connection.close()
            raise
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
        for _ in range(INTERIM_MAX + 1):
            message, content = await protocol.read()
            if message.code >= 200 or message.code == 101:  # "100 Continue" and its kin: the answer follows.
                return message, content
        raise TransportError("answer", f"more than {INTERIM_MAX} interim answers came, and none that counts")
