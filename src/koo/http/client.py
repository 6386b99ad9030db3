"""One pooled HTTP client: timeouts by stage, server-sent events, nothing hidden.

A resilience layer needs to know what a convenient client hides, so this one does less than usual and reports more:

* It never follows a redirect, and writes a request a second time only if the other side closed a kept connection just
  then: no byte of an answer came, and that at once, so it was not received. That is a failure of neither side.
* A failure says how far the request got. "connect": nothing of it reached the other side (no name, refused, TLS, too
  late), so nothing can have been done or billed. "sent": it may have been received. "answer": an answer came and cannot
  be read, because it broke off, is not HTTP or is larger than any real answer.
* It has one timeout of its own, for connecting. Everything later belongs to the caller's deadline: cancelling the task
  ends the request and closes its connection, which is how the other side learns that the caller has left.
* Reading is bounded, for whole answers and single events alike: a faulty server must not fill the memory.

The session belongs to the loop that first uses the client. A later `asyncio.run` gets a new one; using it from two
loops at once raises RuntimeError, because connections cannot be shared between them.
"""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop, get_running_loop
from collections.abc import Mapping
from typing import NamedTuple
from weakref import WeakSet

import aiohttp

from koo.forks import forget_in_child, leave_behind
from koo.hidden import Headers, Sent
from koo.http.coming import COMING
from koo.http.connector import (
    AnswerTooLarge,
    Connector,
    Resolver,
    ShortHere,
    Stage,
    TransportError,
    departure,
    explain,
    name_of_class,
    refuse_dense,
    trusted,
    was_stale,
)
from koo.http.encodings import unpacked
from koo.http.events import EVENT_BYTES_MAX, EVENTS_AT_ONCE, PORTION_BYTES, EventParser, ServerSentEvent
from koo.http.fresh_request import WRITTEN_AT_ONCE_MAX, ask
from koo.http.prepared import LINE_BYTES_MAX, Prepared, Reply
from koo.http.proxies import Proxy
from koo.network_options import NetworkOptions
from koo.shortages import shortage_in

CONNECT_TIMEOUT_S = 5.0
CONNECTIONS_MAX = 0
"""No bound: the guards limit concurrency, each service's by its own setting, and a queue in here would be invisible."""
ANSWER_BYTES_MAX = 4 * 1024 * 1024
"""The longest answers of today's models have half a megabyte."""
PREPARED_MAX = 256
"""Addresses and headers that are remembered: Gemini's addresses contain the model, which callers choose."""
STEPS_TO_A_TUNNEL = 3
"""To the proxy, from there to the other side, and the secure connection: each may take as long as connecting may."""
DIRECT = NetworkOptions()
READ_OUT_S_MAX = 0.2
"""A well-behaved server ends its answer together with the last event; a new connection would cost about this."""
BROKEN = (aiohttp.ClientError, OSError, RuntimeError)
"""What reading raises. RuntimeError: aiohttp's error for waiting on a connection that was closed here a moment ago."""


class ClosedHere(TransportError):
    """The client was closed while the exchange was under way: the other side did not fail."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage, "it was cut off here, because koo is being closed")


class HttpResponse(NamedTuple):
    """A whole answer; `headers` is case-insensitive."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpClient:
    """A pool of connections for the running loop.

    Args:
        connect_timeout_s: longest time for a name, a TCP and a TLS connection together with each of its parts.
        answer_bytes_max: largest body of `request`, and of a stream that is read whole.
        event_bytes_max: largest single event of a stream.
        unix_socket: connect to this path, whatever the URL's host. Each request has a connection of its own.
        network: certificate authorities that are believed beside the system's. Its proxies are not read here.
        proxy: what every request goes through.
    """

    def __init__(
        self,
        *,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        answer_bytes_max: int = ANSWER_BYTES_MAX,
        event_bytes_max: int = EVENT_BYTES_MAX,
        unix_socket: str | None = None,
        network: NetworkOptions = DIRECT,
        proxy: Proxy | None = None,
    ) -> None:
        self.connect_timeout_s = connect_timeout_s
        self.answer_bytes_max = answer_bytes_max
        self.event_bytes_max = event_bytes_max
        self.unix_socket = unix_socket
        self.network = network
        self.proxy = proxy
        self._others: dict[Proxy, HttpClient] = {}
        self._timeout = aiohttp.ClientTimeout(
            total=None,
            sock_connect=connect_timeout_s,
            # Otherwise a proxy that accepts and then stays silent would hold a request up for its whole attempt.
            connect=None if proxy is None else connect_timeout_s * STEPS_TO_A_TUNNEL,
        )
        self._session: aiohttp.ClientSession | None = None
        self._loop: AbstractEventLoop | None = None
        self._prepared: dict[tuple[str, Headers], Prepared] = {}
        self._replies: WeakSet[Reply] = WeakSet()  # whose bodies are still to come
        self._cut_off: WeakSet[Reply] = WeakSet()
        self._is_shut = False

    def __repr__(self) -> str:
        return f"<HttpClient {'closed' if self._session is None else 'open'}>"

    def by_way_of(self, proxy: Proxy | None) -> HttpClient:
        """The client that goes through this proxy (None: without one): itself, or one that is closed with it."""
        if proxy is None or proxy == self.proxy:
            return self
        if proxy not in self._others:
            self._others[proxy] = HttpClient(
                connect_timeout_s=self.connect_timeout_s,
                answer_bytes_max=self.answer_bytes_max,
                event_bytes_max=self.event_bytes_max,
                network=self.network,
                proxy=proxy,
            )
            self._others[proxy]._is_shut = self._is_shut
        return self._others[proxy]

    async def request(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> HttpResponse:
        """Send once and read the whole answer, whatever its status.

        Raises `TransportError`. A refusal (400 and above) whose body cannot be read completely is still an answer: its
        status says enough.
        """
        reply = await self._send(method, url, hidden(headers), body)
        try:
            content = await self.read(reply)
        except TransportError as error:
            if reply.status < 400 or isinstance(error, ClosedHere):
                raise
            content = Sent()
        return HttpResponse(reply.status, reply.headers, content)

    async def stream(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> HttpStream:
        """Send once and return as soon as the headers arrive; the caller ends it with `aclose()`.

        Raises `TransportError`.
        """
        return HttpStream(await self._send(method, url, hidden(headers), body), self)

    async def read(self, reply: Reply) -> bytes:
        """The whole body, decompressed. Raises `TransportError`."""
        content, bytes_max, kept = unpacked(reply.headers, reply.content), self.answer_bytes_max, 0
        try:
            body = await content.readany()
            if not content.at_eof():
                parts, size = [body], len(body)
                while chunk := await content.readany():
                    parts.append(chunk)
                    size += len(chunk)
                    if size > bytes_max:
                        raise AnswerTooLarge("the answer", bytes_max)
                    kept = COMING.keep(kept, size)
                body = b"".join(parts)
            if len(body) > bytes_max:
                raise AnswerTooLarge("the answer", bytes_max)
            refuse_dense(body)
            return Sent(body)
        except BaseException as error:
            # Cancellation included: a connection with half an answer in it must not return to the pool.
            reply.close()
            if isinstance(error, BROKEN):
                raise self.explain_body(reply, error) from None
            raise
        finally:
            COMING.used -= kept

    def explain_body(self, reply: Reply, error: Exception) -> TransportError:
        """What went wrong after the headers."""
        if reply in self._cut_off:
            return ClosedHere("answer")
        short = shortage_in(error)
        if short is not None:
            return ShortHere("answer", short)
        return TransportError("answer", f"the answer broke off ({name_of_class(error)})")

    async def shut(self) -> None:
        """Close it. New requests end with `ClosedHere` too: they would open connections that nothing closes."""
        self._set_shut(True)
        await self.close()

    def reopen(self) -> None:
        """It was shut, and is used again."""
        self._set_shut(False)

    def _set_shut(self, is_shut: bool) -> None:
        self._is_shut = is_shut
        for other in self._others.values():
            other._set_shut(is_shut)

    async def close(self) -> None:
        """Close all connections. The client may be used again, also on another loop.

        Running requests end with `ClosedHere`.
        """
        session, self._session, self._loop = self._session, None, None
        if session is not None:
            self._cut_off, self._replies = self._replies, WeakSet()
            for reply in tuple(self._cut_off):
                reply.close()
            await session.close()
        for other in self._others.values():
            await other.close()

    def forget_parent(self) -> None:
        """In a forked child, where the connections belong to the parent and its loop: they are left alone."""
        leave_behind(self._session, self._replies, self._prepared)
        self._session, self._loop, self._prepared = None, None, {}
        self._replies = WeakSet()

    async def _send(self, method: str, url: str, headers: Headers, body: bytes | None) -> Reply:
        session = self._session
        if session is None or get_running_loop() is not self._loop:
            try:
                session = await self._open()
            except (
                OSError
            ) as error:  # the files of certificates, where there is no descriptor to read them with
                raise explain(error) from None
        again = False
        while True:
            try:
                reply = None
                if (
                    self.proxy is None
                    and method == "POST"
                    and body is not None
                    and len(body) < WRITTEN_AT_ONCE_MAX
                ):
                    reply = await self._prepare(url, headers).send(session, body)
                if reply is None:
                    reply = await ask(session, self.proxy, method, url, headers, body)
            except (aiohttp.ClientError, OSError) as error:
                if session.closed:
                    raise ClosedHere("sent") from None
                note = departure.get()
                if again or note is None or not was_stale(error, note):
                    # Without the cause: aiohttp's errors carry the request's headers, and with them the key.
                    raise explain(error) from None
                again = note.anew = True
            else:
                break
        if not reply.content.is_eof():
            self._replies.add(reply)
        return reply

    def _prepare(self, url: str, headers: Headers) -> Prepared:
        """A prepared request for this address."""
        key = (url, headers)
        found = self._prepared.get(key)
        if found is None:
            if len(self._prepared) >= PREPARED_MAX:
                self._prepared.clear()
            found = self._prepared[key] = Prepared(url, headers, get_running_loop(), self._timeout)
        return found

    async def _open(self) -> aiohttp.ClientSession:
        loop = get_running_loop()
        if self._is_shut:
            raise ClosedHere("connect")
        if self._loop is not None and not self._loop.is_closed():
            raise RuntimeError(
                "koo's connections are in use on another event loop: write `await platform.close()` where that ends"
            )
        # No `await` before both are set, so that two first callers cannot both make a session.
        left, self._loop, self._session = self._session, loop, self._make_session()
        forget_in_child(self)
        self._prepared = {}
        if left is not None:
            # Its loop ended without closing it. Its sockets are closed when they are collected.
            await left.close()
        return self._session

    def _make_session(self) -> aiohttp.ClientSession:
        session = aiohttp.ClientSession(
            connector=self._make_connector(),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
            max_line_size=LINE_BYTES_MAX,
            max_field_size=LINE_BYTES_MAX,
            # It would fail on the header of an encoding that it cannot read, and the status would be lost.
            auto_decompress=False,
        )
        # A tool that instruments sessions would write whole URLs into spans, and a webhook's URL is its secret.
        session.trace_configs.clear()
        return session

    def _make_connector(self) -> aiohttp.BaseConnector:
        if self.unix_socket is not None:
            # llama.cpp closes a connection that was idle for some seconds, and a POST is sent once or not at all.
            return aiohttp.UnixConnector(self.unix_socket, force_close=True, limit=CONNECTIONS_MAX)
        return Connector(
            self.proxy,
            ssl=trusted(self.network),
            limit=CONNECTIONS_MAX,
            keepalive_timeout=self.network.idle_connection_s,
            resolver=Resolver(self.connect_timeout_s),
        )


def hidden(headers: Mapping[str, str] | None) -> Headers:
    """Headers hidden from tracebacks."""
    return headers if isinstance(headers, Headers) else Headers(headers or {})


class HttpStream:
    """An answer whose body comes bit by bit. Leave it with `aclose()`."""

    __slots__ = ("_client", "_content", "_events", "_later", "_left", "_reply", "headers", "status")

    def __init__(self, reply: Reply, client: HttpClient) -> None:
        self._reply = reply
        self._client = client
        self._events = EventParser(client.event_bytes_max)
        self.status = reply.status
        self.headers: Mapping[str, str] = reply.headers
        self._content = unpacked(reply.headers, reply.content)
        self._left = b""
        self._later: list[ServerSentEvent] = []

    async def next_events(self) -> list[ServerSentEvent]:
        """The next events, one or more; none: the stream has ended. Raises `TransportError`."""
        if self._later:
            await asyncio.sleep(0)
            return self._first_of(self._later)
        content = self._content
        try:
            while chunk := await (self._rest() if self._left else content.readany()):
                if len(chunk) > PORTION_BYTES:
                    self._left, chunk = chunk[PORTION_BYTES:], chunk[:PORTION_BYTES]
                events = self._events.feed(chunk)
                chunk = b""
                if events:
                    # Only the first can have begun before this portion, and be large.
                    refuse_dense(events[0].data)
                    return events if len(events) <= EVENTS_AT_ONCE else self._first_of(events)
        except BROKEN as error:
            raise self._client.explain_body(self._reply, error) from None
        events = self._events.finish()
        for event in events:
            refuse_dense(event.data)
        return self._first_of(events)

    def _first_of(self, events: list[ServerSentEvent]) -> list[ServerSentEvent]:
        """As many as are read at once: without empty lines between them, one portion may contain very many."""
        self._later = events[EVENTS_AT_ONCE:]
        return events[:EVENTS_AT_ONCE]

    async def _rest(self) -> bytes:
        """What came together with the last portion; the loop's other work goes first."""
        await asyncio.sleep(0)
        rest, self._left = self._left, b""
        return rest

    async def read(self) -> bytes:
        """The rest of the body as a whole, for an answer that is not a stream. Raises `TransportError`."""
        return await self._client.read(self._reply)

    async def aclose(self, *, read_out: bool = False) -> None:
        """End it, here and on the wire.

        `read_out`: everything of interest has arrived; the rest is awaited for a moment and dropped, because a
        connection whose answer was read to its end is reused.
        """
        content = self._reply.content
        if read_out and not content.at_eof():
            try:
                async with asyncio.timeout(READ_OUT_S_MAX):
                    while await content.readany():
                        pass
            except BROKEN:
                pass
        self._reply.close()
