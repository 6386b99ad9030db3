"""Between a request and its connection: aiohttp's pool, with notes of how far each request got.

A failure here is put into words without a secret: neither a URL nor a header is repeated.
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
"""A kept connection that is already closed answers within a round trip; later, a server may have died while working."""


class TransportError(Exception):
    """The exchange failed below HTTP; `stage` says how far it got, `reason` is half a sentence without secrets.

    `lasting`: trying again cannot help before something is changed here or on the way.
    """

    def __init__(self, stage: Stage, reason: str, *, lasting: bool = False) -> None:
        super().__init__(reason)
        self.stage = stage
        self.reason = reason
        self.lasting = lasting


class ShortHere(TransportError):
    """This process lacks a file descriptor, memory or a thread: the other side did not fail."""


class AnswerTooLarge(TransportError):
    """More bytes than any real answer has: reading was given up and the connection closed."""

    def __init__(self, what: str, bytes_max: int) -> None:
        super().__init__("answer", f"{what} is larger than {bytes_max // 1024} KiB")


class AnswerTooDense(TransportError):
    """More parts than any answer has: it is complete, and is not decoded."""

    def __init__(self, parts_max: int) -> None:
        super().__init__("answer", f"the answer has more than {parts_max} objects and lists")


DENSE_FROM = 64 * 1024
PARTS_MAX = 50_000
"""Objects, lists and values: decoding this many takes some hundredths of a second, in which the loop stands still."""


def refuse_dense(document: bytes) -> None:
    """Raises `AnswerTooDense` for a document with more parts than any answer; a small one is not checked."""
    if len(document) > DENSE_FROM and is_dense(document, PARTS_MAX):
        raise AnswerTooDense(PARTS_MAX)


def is_dense(document: bytes, parts_max: int) -> bool:
    """Whether it has more objects and lists than this, or five times as many values. Commas in texts count too."""
    return document.count(b"{") + document.count(b"[") > parts_max or document.count(b",") > 5 * parts_max


class Departure:
    """How far one request got: a note for an owner that may be cancelled, and so never sees an error that says it.

    `waits`: no connection was there yet, so nothing was sent. `reused_at`: when it got a connection that others had
    used before it, in the loop's time; None: it got a new one. `anew`: it wants a new one.
    """

    __slots__ = ("anew", "is_reused", "reused_at", "waits")

    def __init__(self) -> None:
        self.waits = self.is_reused = self.anew = False
        self.reused_at: float | None = None


departure: ContextVar[Departure | None] = ContextVar("departure", default=None)
"""Where this task's requests are noted, until it is set to another one."""


class Connector(aiohttp.TCPConnector):
    """A pool that notes whether a request got a connection, and whether others had used it before."""

    def __init__(self, proxy: Proxy | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._proxy = proxy
        self._opening: set[asyncio.Timeout] = set()

    def close(self, **options: Any) -> Any:
        """Close it; connections that are being opened are given up at once."""
        # aiohttp waits for each of them as long as for any other, and a call waiting for one holds its money meanwhile.
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
            # One kept connection was closed already, and after a restart of the server the others are too.
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
        """What the pool calls when it has no connection: so this one is new."""
        note = departure.get()
        if note is not None:
            note.is_reused = False
        bound = asyncio.timeout(None)
        try:
            async with bound:
                self._opening.add(bound)
                return await super()._create_connection(req, traces, timeout)
        except (TimeoutError, asyncio.CancelledError):
            # aiohttp cancels its own lookup, and all that wait for that get a cancellation that was not theirs.
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
            # Whatever it is, the request itself has not left: the way to the other side was not open yet.
            raise on_the_way(self._proxy, req.host, error) from None


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def trusted(network: NetworkOptions) -> ssl.SSLContext | bool:
    """Whose certificates are trusted: the system's, and those in the files that an operator named."""
    if network.cert_file is None and network.cert_dir is None:
        return True
    context = ssl.create_default_context()
    context.load_verify_locations(network.cert_file, network.cert_dir)
    return context


class Names:
    """The part of an event loop that aiohttp's resolver uses: lookups in koo's threads, not in the application's."""

    async def getaddrinfo(
        self, host: str, port: int, *, family: int, flags: int, **_: object
    ) -> list[Address]:
        return await LOOKUPS.find(host, port, family=family, flags=flags)

    async def getnameinfo(self, place: tuple[Any, ...], flags: int) -> tuple[str, str]:
        return getnameinfo(place, flags)  # from numbers, to numbers: no name server is asked


class Resolver(aiohttp.ThreadedResolver):
    """The system's own name lookup, which knows no timeout, with one."""

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
            # An OSError without a number would be taken for the timeout of the whole request.
            raise OSError(None, f"no answer for the name within {self._timeout_s:g} s") from None


def was_stale(error: aiohttp.ClientError | OSError, note: Departure | None) -> bool:
    """Whether a kept connection turned out to be closed: then not a byte of an answer came, and that at once."""
    if note is None or note.reused_at is None or get_running_loop().time() > note.reused_at + STALE_S_MAX:
        return False
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return isinstance(error.message, str)  # else it is the beginning of an answer
    return isinstance(error, OSError)


def explain(error: aiohttp.ClientError | OSError) -> TransportError:
    """What went wrong before the headers. Only our own words and the system's: no URL, no header."""
    short = shortage_in(error)
    if short is not None:
        return ShortHere("connect" if isinstance(error, aiohttp.ClientConnectorError) else "sent", short)
    match error:
        case aiohttp.ClientConnectorDNSError():
            return TransportError("connect", f"the name {error.host} cannot be looked up")
        case aiohttp.ClientSSLError():  # Certificates too.
            return TransportError(
                "connect", f"no secure connection to {error.host}:{error.port}: {_cause(error)}"
            )
        case aiohttp.ClientConnectorError():
            return TransportError("connect", f"cannot connect to {error.host}:{error.port}: {_cause(error)}")
        case aiohttp.ConnectionTimeoutError():
            return TransportError("connect", "cannot connect in time")
        case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError():
            return TransportError("connect", "the base URL is not an http or https URL")
        case aiohttp.ClientResponseError():
            return TransportError("answer", "the answer is not HTTP")
        case aiohttp.ServerDisconnectedError():
            return TransportError("sent", "the connection was closed before an answer came")
        case _:
            return TransportError(
                "sent", f"the connection broke before an answer came ({name_of_class(error)})"
            )


def on_the_way(proxy: Proxy, host: str, error: aiohttp.ClientError | OSError) -> TransportError:
    """What went wrong on the way to the other side, of which a proxy is part: nothing was sent."""
    short = shortage_in(error)
    if short is not None:
        return ShortHere("connect", short)
    match error:
        case aiohttp.ClientHttpProxyError(status=407):
            return credentials_refused(proxy)
        case aiohttp.ClientHttpProxyError(status=status):
            reason = f"the proxy {proxy} does not connect to {host} (status {status})"
            return TransportError("connect", reason, lasting=status < 500)
        case aiohttp.ClientConnectorDNSError():
            return TransportError("connect", f"the name of the proxy {proxy} cannot be looked up")
        case aiohttp.ClientSSLError():
            place = f"{error.host}:{error.port}"
            reason = f"no secure connection to {place} by way of the proxy {proxy}: {_cause(error)}"
            if isinstance(error, aiohttp.ClientConnectorCertificateError):
                reason += " (a network with its own certificate authority needs it in SSL_CERT_FILE)"
            return TransportError("connect", reason)
        case aiohttp.ClientConnectorError():
            return TransportError("connect", f"cannot connect to the proxy {proxy}: {_cause(error)}")
        case aiohttp.ClientResponseError():
            return TransportError("connect", f"the proxy {proxy} answers, but not as an HTTP proxy does")
        case TimeoutError():
            return TransportError("connect", f"the proxy {proxy} did not open the way to {host} in time")
        case _:
            reason = f"the proxy {proxy} closed the connection before the way to {host} was open"
            return TransportError("connect", reason)


def credentials_refused(proxy: Proxy) -> TransportError:
    """407: the proxy itself requires a login. A password tried again and again may lock the account."""
    why = (
        "refuses the user and password that it was given"
        if proxy.credentials
        else "asks for a user and password"
    )
    return TransportError("connect", f"the proxy {proxy} {why} (status 407)", lasting=True)


def _cause(error: aiohttp.ClientConnectorError) -> str:
    inner: Exception
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        inner = error.certificate_error  # Its `os_error` is not set before aiohttp 3.14.
    else:
        inner = error.os_error
    return getattr(inner, "reason", None) or getattr(inner, "strerror", None) or name_of_class(inner)


def name_of_class(error: BaseException) -> str:
    return type(error).__name__
