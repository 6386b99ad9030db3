"""An HTTP proxy for tests: `with FakeHttpProxy() as proxy:`. It stands for the only way out of a company's network.

It opens tunnels (CONNECT), forwards plain requests, and requires a user and password if `user` is set. With `trouble`
it misbehaves: it refuses, resets, stays silent or sends something other than HTTP. `reaches` maps names that no
resolver knows to real addresses, so that a test can verify that a request went through the proxy. It runs in a separate
thread, so it serves tests with and without an event loop, and other processes.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from asyncio import StreamReader, StreamWriter
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

HOST = "127.0.0.1"
_CHUNK = 65_536
_LINGER_RESET = struct.pack("ii", 1, 0)
Ends = tuple[StreamReader, StreamWriter]


@dataclass(frozen=True, slots=True)
class Passed:
    """One request that the proxy received; header names are in lower case. For CONNECT, `target` is `host:port`."""

    method: str
    target: str
    headers: Mapping[str, str] = field(repr=False)


class FakeHttpProxy:
    """Listens on 127.0.0.1.

    Args:
        reaches: the real address for a `host:port`; any other target is connected to directly.
        user, password: required from clients, with a 407; None admits every client.

    `trouble`: None, a status (403, 502) for every response, "reset" (at the first byte), "silent", or bytes to send
    instead of a response. `requests`: the received requests, in order.
    """

    def __init__(
        self,
        *,
        reaches: Mapping[str, tuple[str, int]] | None = None,
        user: str | None = None,
        password: str = "",
    ) -> None:
        self.reaches = dict(reaches or {})
        self.trouble: int | str | bytes | None = None
        self.requests: list[Passed] = []
        self.port = 0
        self._ask = None if user is None else "Basic " + b64encode(f"{user}:{password}".encode()).decode()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The proxy's address, as the value of a proxy variable."""
        return f"http://{HOST}:{self.port}"

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(ready)), name="fake-http-proxy", daemon=True
        )
        self._thread.start()
        ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None and self._thread is not None and self._end is not None
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    async def _run(self, ready: threading.Event) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._end.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await server.wait_closed()

    # ── one connection ────────────────────────────────────────────────────────────────────────────────────────

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._talk(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # one side has closed its connection, or the test has ended
        finally:
            self._tasks.discard(task)
            await _close(writer)

    async def _talk(self, reader: StreamReader, writer: StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            line, *rest = head.decode("latin-1").split("\r\n")
            pairs = (one.partition(":") for one in rest if one)
            headers = {name.lower(): value.strip() for name, _, value in pairs}
            method, target, _ = line.split(" ")
            self.requests.append(Passed(method, target, headers))
            if await self._goes_wrong(writer):
                return
            if self._ask is not None and headers.get("proxy-authorization") != self._ask:
                await _refuse(writer, 407, "proxy-authenticate: Basic realm=fake\r\n")
                continue
            if method == "CONNECT":
                await self._tunnel(target, reader, writer)
            else:
                await self._pass_on(method, target, headers, reader, writer)
            return

    async def _goes_wrong(self, writer: StreamWriter) -> bool:
        trouble = self.trouble
        if trouble is None:
            return False
        if trouble == "silent":
            await asyncio.get_running_loop().create_future()
        # With SO_LINGER at zero seconds, closing the socket sends an RST instead of a FIN.
        if trouble == "reset":
            wire = writer.get_extra_info("socket")
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            writer.transport.abort()
        elif isinstance(trouble, int):
            await _refuse(writer, trouble)
        elif isinstance(trouble, bytes):
            writer.write(trouble)
            await writer.drain()
        return True

    async def _tunnel(self, target: str, reader: StreamReader, writer: StreamWriter) -> None:
        host, _, port = target.rpartition(":")
        there = await self._connect(host.strip("[]"), int(port), writer)
        if there is not None:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await pump((reader, writer), there)

    async def _pass_on(
        self, method: str, target: str, headers: Mapping[str, str], reader: StreamReader, writer: StreamWriter
    ) -> None:
        """Forward one plain request; the connection ends with its response."""
        parts = urlsplit(target)
        there = await self._connect(parts.hostname or "", parts.port or 80, writer)
        if there is None:
            return
        kept = {name: value for name, value in headers.items() if not name.startswith("proxy-")}
        kept["connection"] = "close"
        lines = [
            f"{method} {parts.path or '/'} HTTP/1.1",
            *(f"{name}: {value}" for name, value in kept.items()),
        ]
        there[1].write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")
        await pump((reader, writer), there)

    async def _connect(self, host: str, port: int, writer: StreamWriter) -> Ends | None:
        try:
            return await asyncio.open_connection(*self.reaches.get(f"{host}:{port}", (host, port)))
        except OSError:
            await _refuse(writer, 502)
            return None


async def pump(one: Ends, other: Ends) -> None:
    """Copy everything from each side to the other until one of them ends."""
    ways = [asyncio.create_task(_copy(one[0], other[1])), asyncio.create_task(_copy(other[0], one[1]))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        other[1].close()  # before the first await, which may be cancelled when the proxy itself ends
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        await _close(other[1])


async def _copy(reader: StreamReader, writer: StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()


async def _refuse(writer: StreamWriter, status: int, more: str = "") -> None:
    page = b"<html>refused by the proxy</html>"
    head = f"HTTP/1.1 {status} No\r\n{more}content-type: text/html\r\ncontent-length: {len(page)}\r\n\r\n"
    writer.write(head.encode() + page)
    await writer.drain()


async def _close(writer: StreamWriter) -> None:
    """Close a connection. A cancellation is ignored, because this is the last act of the connection's task."""
    writer.close()
    with suppress(OSError, asyncio.CancelledError):
        await writer.wait_closed()
