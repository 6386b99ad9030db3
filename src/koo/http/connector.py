"""aiohttp's connection pool, extended by a record of how far each request got.

Error messages made here contain no secret: they never quote a URL or a header.
"""

from __future__ import annotations

import asyncio
import ssl
from asyncio import get_running_loop
from contextvars import ContextVar
from socket import AF_INET, AddressFamily, getnameinfo
from typing import Any, Literal, cast

import aiohttp
from aiohttp.abc import ResolveResult

from koo.http.proxies import Proxy
from koo.lookups import LOOKUPS, Address
from koo.network_options import NetworkOptions
from koo.shortages import shortage_in

Stage = Literal["connect", "sent", "answer"]

STALE_S_MAX = 5.0
"""A reused connection that was already closed fails within one round trip; 5 s leave room for lost packets. If it fails
later, the server may have read the request and died while working on it."""


class TransportError(Exception):
    """The exchange failed below HTTP. `stage` says how far it got; `reason` is half a sentence without secrets.

    `lasting`: a retry cannot help until the configuration is changed, here or at a proxy.
    """

    def __init__(self, stage: Stage, reason: str, *, lasting: bool = False) -> None:
        super().__init__(reason)
        self.stage = stage
        self.reason = reason
        self.lasting = lasting


class ShortHere(TransportError):
    """This process has run out of file descriptors, memory or threads: the server did not fail."""


class AnswerTooLarge(TransportError):
    """The response has more bytes than any real one: reading stopped and the connection was closed."""

    def __init__(self, what: str, bytes_max: int) -> None:
        super().__init__("answer", f"{what} is larger than {bytes_max // 1024} KiB")


class AnswerTooDense(TransportError):
    """The response arrived completely, but has more objects and lists than any real one, and is not decoded."""

    def __init__(self, parts_max: int) -> None:
        super().__init__("answer", f"the response has more than {parts_max} objects and lists")


DENSE_FROM = 64 * 1024
PARTS_MAX = 50_000
"""The most objects and lists in a document. Decoding this many blocks the event loop for a few hundredths of a
second."""


def refuse_dense(document: bytes) -> None:
    """Raises `AnswerTooDense` for a document with more parts than any real response."""
    # Counting bytes costs microseconds and comes before decoding. A limit on bytes alone is not enough: 4 MiB of
    # `[],[],…` become a million Python objects, and every other call in the process waits while they are made.
    if len(document) > DENSE_FROM and is_dense(document, PARTS_MAX):
        raise AnswerTooDense(PARTS_MAX)


def is_dense(document: bytes, parts_max: int) -> bool:
    """Whether the document has more than `parts_max` objects and lists, or five times as many values.

    Brackets and commas inside texts count too. That is an overestimate, but a real response of mostly brackets is still
    far below the limits.
    """
    return document.count(b"{") + document.count(b"[") > parts_max or document.count(b",") > 5 * parts_max


class Departure:
    """How far one request got. Its owner needs this record because a cancelled request raises no error with a stage.

    `waits`: the request has no connection yet, so nothing was sent. `reused_at`: the loop's time at which it got a
    connection that had served earlier requests; None if the connection is new. `anew`: the request needs a new one.
    """

    __slots__ = ("anew", "is_reused", "reused_at", "waits")

    def __init__(self) -> None:
        self.waits = self.is_reused = self.anew = False
        self.reused_at: float | None = None


departure: ContextVar[Departure | None] = ContextVar("departure", default=None)
"""The record for the requests of this task, until it is replaced."""


class Connector(aiohttp.TCPConnector):
    """A pool that records whether a request got a connection, and whether that connection had been used before."""

    def __init__(self, proxy: Proxy | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._proxy = proxy
        self._opening: set[asyncio.Timeout] = set()

    def close(self, **options: Any) -> Any:
        """Close the pool, and give up connections that are still being opened."""
        # aiohttp's own `close` lets a connection attempt go on until its timeout. The call that waits for it keeps its
        # hold on the budget for that long, and shutting down takes 5 s longer than it should. So each attempt's timeout
        # is moved to now; `_create_connection` turns it into an error that says so.
        for bound in self._opening:
            bound.reschedule(get_running_loop().time())
        return super().close(**options)

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Any],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own parameter
    ) -> Any:
        note = departure.get()
        if note is None:
            return await self._connect(req, traces, timeout)
        note.waits = note.is_reused = True
        connection = await self._connect(req, traces, timeout)
        while note.anew and note.is_reused:
            # One kept connection turned out to be closed. After a restart of the server all the others are closed too,
            # and the pool would hand them out one by one: the single retry would get the next dead one and fail. So
            # discard what the pool returns until it has to open a new connection.
            connection.close()
            connection = await self._connect(req, traces, timeout)
        note.waits = note.anew = False
        note.reused_at = get_running_loop().time() if note.is_reused else None
        return connection

    async def _create_connection(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Any],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own parameter
    ) -> Any:
        """Called by the pool only if it has no idle connection: this connection is new."""
        note = departure.get()
        if note is not None:
            note.is_reused = False
        bound = asyncio.timeout(None)
        try:
            async with bound:
                self._opening.add(bound)
                return await super()._create_connection(req, traces, timeout)
        except (TimeoutError, asyncio.CancelledError):
            # When a connector is closed, aiohttp cancels its name lookups. All requests that wait for one receive a
            # `CancelledError` although their tasks were not cancelled. If it were passed on, it would end the caller's
            # task silently, as if the caller had wanted that. `cancelling()` tells the two apart: it is above 0 only if
            # `cancel()` was called on this task.
            if bound.expired() or (self.closed and not _is_cancelled()):
                raise aiohttp.ClientConnectionError("the connector was closed") from None
            raise
        finally:
            self._opening.discard(bound)

    async def _connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Any],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own parameter
    ) -> Any:
        if self._proxy is None:
            return await super().connect(req, traces, timeout)
        try:
            return await super().connect(req, traces, timeout)
        except (aiohttp.ClientError, OSError) as error:
            if self.closed:
                raise
            # Errors up to here belong to the proxy and its tunnel. The request itself has not been sent, so the stage
            # is "connect" for all of them, and the call may be repeated.
            raise on_the_way(self._proxy, req.host, error) from None


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def trusted(network: NetworkOptions) -> ssl.SSLContext | bool:
    """The trusted certificate authorities: the system's, and those in the files that the operator configured."""
    if network.cert_file is None and network.cert_dir is None:
        return True
    context = ssl.create_default_context()
    context.load_verify_locations(network.cert_file, network.cert_dir)
    return context


class Names:
    """The methods of an event loop that aiohttp's resolver calls. Lookups run in koo's threads.

    The loop's own `getaddrinfo` runs in the default thread pool, which the application also uses. A name server that
    does not reply would occupy all of those threads, and the application's `asyncio.to_thread` would stop working.
    """

    async def getaddrinfo(
        self, host: str, port: int, *, family: int, flags: int, **_: object
    ) -> list[Address]:
        return await LOOKUPS.find(host, port, family=family, flags=flags)

    async def getnameinfo(self, place: tuple[Any, ...], flags: int) -> tuple[str, str]:
        return getnameinfo(place, flags)  # aiohttp passes numeric flags, so this never queries a name server


class Resolver(aiohttp.ThreadedResolver):
    """The system's name lookup with a timeout, which it does not have by itself."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(cast("asyncio.AbstractEventLoop", Names()))
        self._timeout_s = timeout_s

    async def resolve(
        self, host: str, port: int = 0, family: AddressFamily | int = AF_INET
    ) -> list[ResolveResult]:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await super().resolve(host, port, AddressFamily(family))
        except TimeoutError:
            # aiohttp lets a bare `TimeoutError` pass as the timeout of the whole attempt to connect, and the message
            # would not mention the lookup. It turns a plain OSError into `ClientConnectorDNSError`, which names the
            # host.
            raise OSError(None, f"the name lookup took longer than {self._timeout_s:g} s") from None


def was_stale(error: aiohttp.ClientError | OSError, note: Departure | None) -> bool:
    """Whether the server had closed a kept connection before it read the request.

    That is certain enough if the connection was reused, failed soon after the request was written, and not a byte of a
    response arrived.
    """
    # A new connection that breaks is a different case: the server accepted it a moment ago, so it may have read the
    # request. The same holds for a reused one that breaks late. Repeating such a POST could run and bill it twice.
    if note is None or note.reused_at is None or get_running_loop().time() > note.reused_at + STALE_S_MAX:
        return False
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return isinstance(error.message, str)  # otherwise `message` is the beginning of a response
    return isinstance(error, OSError)


def explain(error: aiohttp.ClientError | OSError) -> TransportError:
    """The error for a failure before the headers. The reason quotes no URL and no header."""
    short = shortage_in(error)
    if short is not None:
        return ShortHere("connect" if isinstance(error, aiohttp.ClientConnectorError) else "sent", short)
    match error:
        case aiohttp.ClientConnectorDNSError():
            return TransportError("connect", f"the host name {error.host} cannot be resolved")
        case aiohttp.ClientSSLError():  # includes certificate errors
            return TransportError(
                "connect", f"no secure connection to {error.host}:{error.port}: {_cause(error)}"
            )
        case aiohttp.ClientConnectorError():
            return TransportError("connect", f"cannot connect to {error.host}:{error.port}: {_cause(error)}")
        case aiohttp.ConnectionTimeoutError():
            return TransportError("connect", "the connection attempt timed out")
        case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError():
            return TransportError("connect", "the base URL is not an http or https URL")
        case aiohttp.ClientResponseError():
            return TransportError("answer", "the response is not HTTP")
        case aiohttp.ServerDisconnectedError():
            return TransportError("sent", "the connection was closed before a response arrived")
        case _:
            return TransportError(
                "sent", f"the connection broke before a response arrived ({name_of_class(error)})"
            )


def on_the_way(proxy: Proxy, host: str, error: aiohttp.ClientError | OSError) -> TransportError:
    """The error for a failure between koo and the server with a proxy in between: nothing was sent."""
    short = shortage_in(error)
    if short is not None:
        return ShortHere("connect", short)
    match error:
        case aiohttp.ClientHttpProxyError(status=407):
            return credentials_refused(proxy)
        case aiohttp.ClientHttpProxyError(status=status):
            reason = f"the proxy {proxy} refuses to connect to {host} (status {status})"
            return TransportError("connect", reason, lasting=status < 500)
        case aiohttp.ClientConnectorDNSError():
            return TransportError("connect", f"the host name of the proxy {proxy} cannot be resolved")
        case aiohttp.ClientSSLError():
            place = f"{error.host}:{error.port}"
            reason = f"no secure connection to {place} through the proxy {proxy}: {_cause(error)}"
            if isinstance(error, aiohttp.ClientConnectorCertificateError):
                reason += (
                    " (if your network has its own certificate authority, name its file in SSL_CERT_FILE)"
                )
            return TransportError("connect", reason)
        case aiohttp.ClientConnectorError():
            return TransportError("connect", f"cannot connect to the proxy {proxy}: {_cause(error)}")
        case aiohttp.ClientResponseError():
            return TransportError("connect", f"the proxy {proxy} does not respond like an HTTP proxy")
        case TimeoutError():
            return TransportError("connect", f"the proxy {proxy} did not connect to {host} in time")
        case _:
            reason = f"the proxy {proxy} closed the connection before it had connected to {host}"
            return TransportError("connect", reason)


def credentials_refused(proxy: Proxy) -> TransportError:
    """407: the proxy itself requires a login. Not repeated: companies lock accounts after wrong passwords."""
    why = "rejects the user and password" if proxy.credentials else "requires a user and password"
    return TransportError("connect", f"the proxy {proxy} {why} (status 407)", lasting=True)


def _cause(error: aiohttp.ClientConnectorError) -> str:
    inner: Exception
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        inner = error.certificate_error  # before aiohttp 3.14 this error has no `os_error`
    else:
        inner = error.os_error
    return getattr(inner, "reason", None) or getattr(inner, "strerror", None) or name_of_class(inner)


def name_of_class(error: BaseException) -> str:
    return type(error).__name__
