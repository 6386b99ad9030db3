"""A server that responds immediately with prepared bytes, so that a benchmark measures the client and not the fake."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Literal, Self

import msgspec

from koo.testing.providers.anthropic import FakeAnthropic
from koo.testing.providers.openai import CHAT, RESPONSES, FakeOpenAI
from koo.testing.providers.script import Answer
from koo.testing.providers.server import HOST, FakeProvider, Tokens
from koo.testing.providers.wire import ReceivedRequest, Reply, encode

Vendor = Literal["anthropic", "openai", "compatible"]
VENDORS: tuple[Vendor, ...] = ("anthropic", "openai", "compatible")

_STREAMS = re.compile(rb'"stream": ?true')
TEXT = "The capital of France is Paris. " * 12
"""With everything around it this is about 0.7 kB, the size of a short real response."""


def prepare(
    server: FakeProvider, path: str, body: dict[str, Any], *, pieces: int = 200
) -> tuple[bytes, bytes]:
    """A whole response as bytes on the wire: plain, and streamed in a number of pieces."""
    request = ReceivedRequest(method="POST", path=path, headers={}, raw=b"", body=body)
    tokens = Tokens(input=12, output=96)
    step = Answer(text=TEXT)
    headers = server.headers("00000001")
    plain = encode(
        Reply(status=200, body=msgspec.json.encode(server.plain(request, step, tokens, 1)), headers=headers)
    )
    before, after = server.around(request, step, [], tokens, 1)
    events = b"".join(
        [*before, *(server.piece(request, f"Paris is city {n}. ") for n in range(pieces)), *after]
    )
    streamed = encode(Reply(status=200, body=events, content_type="text/event-stream", headers=headers))
    return plain, streamed


def prepared(vendor: Vendor) -> tuple[bytes, bytes]:
    """The two prepared responses of a vendor."""
    if vendor == "anthropic":
        return prepare(FakeAnthropic(), "/v1/messages", {"model": "claude-sonnet-5-5", "max_tokens": 1024})
    body = {"model": "gpt-6.1-terra", "stream_options": {"include_usage": True}}
    return prepare(FakeOpenAI(), RESPONSES if vendor == "openai" else CHAT, body)


class InstantProtocol(asyncio.Protocol):
    """Responds to each complete request, without parsing more than its length and whether it streams."""

    __slots__ = ("_buffer", "_plain", "_streamed", "_transport")

    def __init__(self, plain: bytes, streamed: bytes) -> None:
        self._plain = plain
        self._streamed = streamed
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        while True:
            head_end = buffer.find(b"\r\n\r\n")
            if head_end < 0:
                break
            request_end = head_end + 4 + _content_length(buffer[:head_end])
            if len(buffer) < request_end:
                break
            streams = _STREAMS.search(buffer, head_end, request_end)
            self._transport.write(self._plain if streams is None else self._streamed)
            buffer = buffer[request_end:]
        self._buffer = buffer


def _content_length(head: bytes) -> int:
    start = head.lower().find(b"\ncontent-length:")
    if start < 0:
        return 0
    start += 16
    end = head.find(b"\r", start)
    return int(head[start:] if end < 0 else head[start:end])


async def serve(vendor: Vendor, port: int, announce: Callable[[int], None]) -> None:
    """Serve until cancelled; `announce` is called with the port."""
    plain, streamed = prepared(vendor)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: InstantProtocol(plain, streamed), HOST, port)
    announce(server.sockets[0].getsockname()[1])
    async with server:
        await server.serve_forever()


class InstantServer:
    """`with InstantServer("anthropic") as server:` runs one in a separate process; clients use `server.base_url`.

    `core`: the only processor core that it may run on, if the system supports that; None for any core.
    """

    def __init__(
        self, vendor: Vendor = "anthropic", *, instant: bool = True, core: int | None = None
    ) -> None:
        self.vendor = vendor
        self.instant = instant
        self.core = core
        self.port = 0
        self._process: subprocess.Popen[str] | None = None

    @property
    def base_url(self) -> str:
        """The base URL for a client of the vendor."""
        root = f"http://{HOST}:{self.port}"
        return root if self.vendor == "anthropic" else root + "/v1"

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "koo.testing.providers", "--vendor", self.vendor, "--port", "0"]
        command += ["--instant"] if self.instant else []
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        first = self._process.stdout.readline()
        if not first.strip():
            self._process.wait()
            raise RuntimeError(f"the fake server ended immediately with code {self._process.returncode}")
        self.port = int(first.rpartition(":")[2])
        if self.core is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self._process.pid, {self.core})
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None and self._process.stdout is not None
        self._process.terminate()
        self._process.wait()
        self._process.stdout.close()
