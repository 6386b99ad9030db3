"""One pooled HTTP client: timeouts by stage, server-sent events, nothing hidden.

A resilience layer needs to know what a convenient client hides, so this one does less than usual and reports more:

* It never follows a redirect. It sends a request a second time only if the server closed a kept connection at the
  moment the request was written: the connection failed within seconds and no byte of a response arrived, so the request
  was not received. Neither side counts that as a failure.
* Every failure has a stage. "connect": nothing of the request reached the server (unknown name, connection refused, TLS
  failure, connect timeout), so nothing can have been done or billed. "sent": the server may have received it.
  "answer": a response arrived but cannot be read, because it broke off, is not HTTP or is larger than any real one.
* Its only timeout is for connecting. Everything later is limited by the caller's deadline: cancelling the task ends the
  request and closes its connection, which is how the server finds out that the caller has left.
* Whole responses and single events have a size limit, so that a faulty server cannot fill the memory.

The session belongs to the event loop that first uses the client. A later `asyncio.run` gets a new session. Using the
client from two loops at the same time raises RuntimeError, because connections cannot be shared between loops.
"""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop, get_running_loop
from collections.abc import Iterable, Mapping
from contextlib import suppress
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
from koo.http.encodings import GZIP_BEGINS, Unpacked, unlabelled, unpacked
from koo.http.events import EVENT_BYTES_MAX, EVENTS_AT_ONCE, PORTION_BYTES, EventParser, ServerSentEvent
from koo.http.fresh_request import WRITTEN_AT_ONCE_MAX, ask
from koo.http.prepared import LINE_BYTES_MAX, Prepared, Reply
from koo.http.proxies import Proxy
from koo.http.strays import is_whole
from koo.network_options import NetworkOptions
from koo.shortages import shortage_in

CONNECT_TIMEOUT_S = 5.0
CONNECTIONS_MAX = 0
"""Unlimited. Guards limit each service's concurrency by its own setting; a queue in here would be invisible to them."""
ANSWER_BYTES_MAX = 4 * 1024 * 1024
"""Eight times the longest responses of today's models, which have half a megabyte."""
PREPARED_MAX = 256
"""The most pairs of URL and headers to cache. Gemini's URLs contain the model, so callers could create any number."""
STEPS_TO_A_TUNNEL = 3
"""Three steps may each take the connect timeout: the connection to the proxy, its connection to the server, and TLS."""
DIRECT = NetworkOptions()
READ_OUT_S_MAX = 0.2
"""A well-behaved server ends its response with the last event. Opening a new connection costs about as much."""
BROKEN = (aiohttp.ClientError, OSError, RuntimeError)
"""The exceptions that reading a body can raise. aiohttp raises RuntimeError for a read on a connection that koo has
just closed."""


class ClosedHere(TransportError):
    """The client was closed during the exchange: the server did not fail."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage, "koo was closed during the call")


class HttpResponse(NamedTuple):
    """A complete response; `headers` is case-insensitive."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpClient:
    """A pool of connections for the running loop.

    Args:
        connect_timeout_s: limit for the name lookup, and for the TCP connection with its TLS handshake.
        answer_bytes_max: largest body of `request`, and of a stream that is read as a whole.
        event_bytes_max: largest single event of a stream.
        unix_socket: connect to this path, whatever the URL's host. Each request opens its own connection.
        network: certificate authorities to trust in addition to the system's. Its proxies are not read here.
        proxy: the proxy for every request.
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
            # `sock_connect` covers only the socket to the proxy. Without a limit for the whole connection setup, a
            # proxy that accepts the connection and never replies to CONNECT would block the request until the attempt's
            # own timeout.
            connect=None if proxy is None else connect_timeout_s * STEPS_TO_A_TUNNEL,
        )
        self._session: aiohttp.ClientSession | None = None
        self._loop: AbstractEventLoop | None = None
        self._prepared: dict[tuple[str, Headers], Prepared] = {}
        self._replies: WeakSet[Reply] = WeakSet()  # those whose bodies are still arriving
        # Replies that `close()` cut off. Their readers see an ordinary connection error, and only this set tells it
        # apart from a server that hung up: that would count against the server's breaker.
        self._cut_off: WeakSet[Reply] = WeakSet()
        self._is_shut = False

    def __repr__(self) -> str:
        return f"<HttpClient {'closed' if self._session is None else 'open'}>"

    def by_way_of(self, proxy: Proxy | None) -> HttpClient:
        """The client for this proxy (None: for direct connections): this one, or another that is closed with it."""
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
        """Send once and read the whole response, whatever its status.

        Raises `TransportError`. An error response (400 and above) whose body cannot be read completely is returned with
        an empty body: its status says enough.
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
        """Send once and return as soon as the headers arrive; the caller must call `aclose()`.

        Raises `TransportError`.
        """
        return HttpStream(await self._send(method, url, hidden(headers), body), self)

    async def read(self, reply: Reply) -> bytes:
        """Return the whole body, decompressed. Raises `TransportError`."""
        content, bytes_max, kept = unpacked(reply.headers, reply.content), self.answer_bytes_max, 0
        parts: list[bytes] = []
        try:
            # Most responses arrive in one piece: that piece is the body, and is neither copied nor counted in `COMING`.
            body = await content.readany()
            if not content.at_eof():
                parts, size = [body], len(body)
                while chunk := await content.readany():
                    parts.append(chunk)
                    size += len(chunk)
                    if size > bytes_max:
                        raise AnswerTooLarge("the response", bytes_max)
                    kept = COMING.keep(kept, size)
                body = b"".join(parts)
            if body.startswith(GZIP_BEGINS):
                body = unlabelled(body, bytes_max + 1)
            if len(body) > bytes_max:
                raise AnswerTooLarge("the response", bytes_max)
            refuse_dense(body)
            return Sent(body)
        except BaseException as error:
            # This also runs on cancellation. A connection returns to aiohttp's pool when its body has arrived
            # completely, whether or not it is still being read. If it were left open here, the rest of a large or
            # endless body would go on filling the memory and occupying a socket after its reader has left, and the
            # provider would keep generating text.
            reply.close()
            if isinstance(error, BROKEN):
                broken = self.explain_body(reply, error)
                body = b"".join([*parts, *(unread(reply) if content is reply.content else ())])
                # Some servers leave out the end of a chunked body, or state a wrong length. A JSON document shows by
                # itself whether it is complete, and an answer that is paid for must not be bought again.
                if isinstance(broken, ClosedHere) or not _is_document(body):
                    raise broken from None
                return Sent(body)
            raise
        finally:
            # This is in `finally`, so that a failed or cancelled read gives its share back too. If it did not, the
            # process-wide limit would fill up with bytes that no longer exist, and in the end refuse every large
            # response.
            COMING.used -= kept

    def explain_body(self, reply: Reply, error: Exception) -> TransportError:
        """The error for a failure after the headers."""
        if reply in self._cut_off:
            return ClosedHere("answer")
        short = shortage_in(error)
        if short is not None:
            return ShortHere("answer", short)
        return TransportError("answer", f"the response broke off ({name_of_class(error)})")

    async def shut(self) -> None:
        """Close the client and refuse new requests with `ClosedHere`: nothing would close their connections."""
        self._set_shut(True)
        await self.close()

    def reopen(self) -> None:
        """Accept requests again after `shut()`."""
        self._set_shut(False)

    def _set_shut(self, is_shut: bool) -> None:
        self._is_shut = is_shut
        for other in self._others.values():
            other._set_shut(is_shut)

    async def close(self) -> None:
        """Close all connections. The client may be used again, even on another loop.

        Running requests end with `ClosedHere`.
        """
        # Forget the session before the first `await`. A request that starts while the old session is closing must open
        # a new one; with the old one it would fail with aiohttp's "Session is closed".
        session, self._session, self._loop = self._session, None, None
        if session is not None:
            self._cut_off, self._replies = self._replies, WeakSet()
            for reply in tuple(self._cut_off):
                reply.close()
            await session.close()
        for other in self._others.values():
            await other.close()

    def forget_parent(self) -> None:
        """In a forked child, drop the connections without closing them: they belong to the parent and its loop."""
        leave_behind(self._session, self._replies, self._prepared)
        self._session, self._loop, self._prepared = None, None, {}
        self._replies = WeakSet()

    async def _send(self, method: str, url: str, headers: Headers, body: bytes | None) -> Reply:
        session = self._session
        if session is None or get_running_loop() is not self._loop:
            try:
                session = await self._open()
            except OSError as error:
                # Opening a session reads the certificate files, which fails if the process has no file descriptor left.
                raise explain(error) from None
        again = False
        while True:
            try:
                reply = None
                # The cheap way first. It returns None, with nothing sent, for a request that it does not support.
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
                # The one retry in this file. A POST may cost money, so it is repeated only with evidence that the
                # server never read it: a kept connection that failed immediately (`was_stale`). Without the retry,
                # every server that closes idle connections would cause failures that count against its breaker. The
                # retry insists on a new connection (`anew`), because after a restart of the server all kept ones are
                # dead.
                if again or note is None or not was_stale(error, note):
                    # The error is raised `from None`: aiohttp's errors contain the request's headers, and so the API
                    # key.
                    raise explain(error) from None
                again = note.anew = True
            else:
                break
        # `close()` has to wake the readers of bodies that are still arriving. A complete body needs no entry, and its
        # connection may already serve another request.
        if not reply.content.is_eof():
            self._replies.add(reply)
        return reply

    def _prepare(self, url: str, headers: Headers) -> Prepared:
        """The prepared request for this URL and these headers."""
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
                "koo's connections are in use on another event loop: call `await platform.close()` before it ends"
            )
        # There must be no `await` before both are set. Otherwise two requests that arrive together would each make a
        # session; the second assignment would win, and the first session's connections would never be closed.
        left, self._loop, self._session = self._session, loop, self._make_session()
        forget_in_child(self)
        # Prepared requests hold the loop that made them.
        self._prepared = {}
        if left is not None:
            # The earlier loop ended without closing its session. Closing it here prevents aiohttp's "Unclosed client
            # session" warning; the sockets themselves are closed when they are garbage-collected.
            await left.close()
        return self._session

    def _make_session(self) -> aiohttp.ClientSession:
        session = aiohttp.ClientSession(
            connector=self._make_connector(),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
            max_line_size=LINE_BYTES_MAX,
            max_field_size=LINE_BYTES_MAX,
            # aiohttp fails while it reads the headers if it does not support the content encoding, and the status is
            # lost with them. A 429 with `Retry-After` would look like a broken server. See `encodings`.
            auto_decompress=False,
        )
        # Instrumentation (OpenTelemetry's, say) patches `ClientSession` to add a trace config that records whole URLs.
        # A webhook's URL is its secret, and would end up in the operator's traces.
        session.trace_configs.clear()
        return session

    def _make_connector(self) -> aiohttp.BaseConnector:
        if self.unix_socket is not None:
            # llama.cpp closes connections after a few idle seconds. This connector is not `Connector`, which records
            # whether a connection was reused, so a POST on a closed one could not be repeated safely. A new connection
            # for each request avoids that, and costs little on a Unix socket.
            return aiohttp.UnixConnector(self.unix_socket, force_close=True, limit=CONNECTIONS_MAX)
        return Connector(
            self.proxy,
            ssl=trusted(self.network),
            limit=CONNECTIONS_MAX,
            keepalive_timeout=self.network.idle_connection_s,
            resolver=Resolver(self.connect_timeout_s),
        )


def unread(reply: Reply) -> Iterable[bytes]:
    """What had arrived of a body before it broke off. aiohttp raises the error before it returns these bytes."""
    return getattr(reply.content, "_buffer", ())


def _is_document(body: bytes) -> bool:
    with suppress(TransportError):  # too dense to be an answer
        return body.lstrip()[:1] == b"{" and is_whole(body)
    return False


def hidden(headers: Mapping[str, str] | None) -> Headers:
    """Headers hidden from tracebacks."""
    return headers if isinstance(headers, Headers) else Headers(headers or {})


class HttpStream:
    """A response whose body arrives in portions. Always call `aclose()` at the end."""

    __slots__ = ("_begun", "_client", "_content", "_events", "_later", "_left", "_reply", "headers", "status")

    def __init__(self, reply: Reply, client: HttpClient) -> None:
        self._reply = reply
        self._client = client
        self._events = EventParser(client.event_bytes_max)
        self.status = reply.status
        self.headers: Mapping[str, str] = reply.headers
        self._content = unpacked(reply.headers, reply.content)
        self._begun = False
        self._left = b""
        self._later: list[ServerSentEvent] = []

    async def next_events(self) -> list[ServerSentEvent]:
        """Return the next events, one or more; [] means that the stream has ended. Raises `TransportError`."""
        # A fast server can fill aiohttp's buffer faster than events are read. `readany` then returns without ever
        # giving control to the loop, and one stream would starve every other call in the process, deadlines included.
        # Hence the limits on bytes and events for each turn of the loop, and the `sleep(0)` between them.
        if self._later:
            await asyncio.sleep(0)
            return self._first_of(self._later)
        content = self._content
        try:
            while chunk := await (self._rest() if self._left else content.readany()):
                if not self._begun:
                    self._begun = True
                    if chunk.startswith(GZIP_BEGINS):  # a proxy has dropped the label
                        content = self._content = Unpacked(content, "gzip", chunk)
                        continue
                if len(chunk) > PORTION_BYTES:
                    self._left, chunk = chunk[PORTION_BYTES:], chunk[:PORTION_BYTES]
                events = self._events.feed(chunk)
                chunk = b""
                if events:
                    # Only the first event can have started in an earlier portion. The others fit into this portion, and
                    # a document of 8 KiB is decoded in no time, however dense it is.
                    refuse_dense(events[0].data)
                    return events if len(events) <= EVENTS_AT_ONCE else self._first_of(events)
        except BROKEN as error:
            raise self._client.explain_body(self._reply, error) from None
        events = self._events.finish()
        for event in events:
            refuse_dense(event.data)
        return self._first_of(events)

    def _first_of(self, events: list[ServerSentEvent]) -> list[ServerSentEvent]:
        """Return the first `EVENTS_AT_ONCE` and keep the rest: one portion may contain thousands of tiny events."""
        self._later = events[EVENTS_AT_ONCE:]
        return events[:EVENTS_AT_ONCE]

    async def _rest(self) -> bytes:
        """Return what arrived with the last portion, after the loop has run its other work."""
        await asyncio.sleep(0)
        rest, self._left = self._left, b""
        return rest

    async def read(self) -> bytes:
        """Return the rest of the body as a whole, for a response that is not a stream. Raises `TransportError`."""
        return await self._client.read(self._reply)

    async def aclose(self, *, read_out: bool = False) -> None:
        """End the stream and close its connection, unless the connection can be reused.

        `read_out`: everything of interest has arrived. The rest is read for at most `READ_OUT_S_MAX` and dropped,
        because a connection is reused only if its response was read to the end.
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
