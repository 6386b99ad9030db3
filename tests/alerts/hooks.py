"""A receiver of webhooks on a real socket that responds as a test wants."""

from __future__ import annotations

import asyncio
import json
from asyncio import StreamReader, StreamWriter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Taken:
    """A received request; header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def answer(status: int = 200, body: str = "ok", **headers: str) -> bytes:
    """A response; `retry_after` is the header `retry-after`."""
    lines = [f"HTTP/1.1 {status} Some", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


ENDLESS = b"HTTP/1.1 %d Some\r\ncontent-length: 1000000000000\r\n\r\n"
"""Followed by as much as its reader accepts."""
SILENT = b""
"""It receives the request and sends no response."""


class Hook:
    """Listens on 127.0.0.1. `answers` are the responses to the next requests, in order; `always` is for all others."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.always = answer()
        self.taken: list[Taken] = []
        self.came = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/hook/T0k3n?key=s3cret"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._begin, HOST, 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def until(self, count: int) -> None:
        """Wait until this many requests have arrived."""
        async with asyncio.timeout(60):
            while len(self.taken) < count:
                self.came.clear()
                await self.came.wait()

    def _begin(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._answer_one(reader, writer)
        finally:
            writer.close()

    async def _answer_one(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Receive one request, and close the connection after the response."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)
        }
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.taken.append(Taken(method, path, headers, body))
        self.came.set()
        said = self.answers.pop(0) if self.answers else self.always
        if said == SILENT:
            await reader.read()
            return
        writer.write(said)
        while b"1000000000000" in said:
            writer.write(b"x" * 65_536)
            await writer.drain()
        await writer.drain()
