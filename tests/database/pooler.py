"""A minimal pooler: PostgreSQL's wire protocol, one server connection lent to the client in a transaction.

With `shared=False` each client has its own server connection, as in session mode. Like PgBouncer it makes up the
process id that it reports to its clients.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from koo.testing.postgres import PostgresServer

SSL_REQUEST, GSS_REQUEST = 80877103, 80877104
Message = tuple[bytes, bytes]


async def read(reader: asyncio.StreamReader) -> Message:
    kind = await reader.readexactly(1)
    (length,) = struct.unpack("!I", await reader.readexactly(4))
    return kind, await reader.readexactly(length - 4)


def packed(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", 4 + len(body)) + body


class Upstream:
    """One connection to the server, for one client at a time: from its first message to the end of its transaction."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.free = asyncio.Lock()
        self.holder: asyncio.StreamWriter | None = None
        self.settings: list[bytes] = []

    @classmethod
    async def connect(cls, server: PostgresServer, database: str) -> Upstream:
        upstream = cls(*await asyncio.open_connection(server.host, server.port))
        body = struct.pack("!I", 196608) + f"user\0postgres\0database\0{database}\0\0".encode()
        upstream.writer.write(struct.pack("!I", 4 + len(body)) + body)
        while True:
            kind, body = await read(upstream.reader)
            if kind == b"S":
                upstream.settings.append(packed(kind, body))
            if kind == b"Z":
                return upstream

    async def pump(self) -> None:
        """Forward the server's responses to its current client, until that client's transaction ends."""
        with suppress(asyncio.IncompleteReadError, OSError):
            while True:
                kind, body = await read(self.reader)
                if self.holder is None:
                    continue
                self.holder.write(packed(kind, body))
                if (kind, body) == (b"Z", b"I"):
                    self.holder = None
                    self.free.release()


@asynccontextmanager
async def pooling(server: PostgresServer, database: str, *, shared: bool) -> AsyncIterator[int]:
    """Run a pooler; yields its port."""
    tasks: set[asyncio.Task[None]] = set()
    upstreams: list[Upstream] = []
    made_up = itertools.count(4711)

    async def open_upstream() -> Upstream:
        if shared and upstreams:
            return upstreams[0]
        upstream = await Upstream.connect(server, database)
        upstreams.append(upstream)
        tasks.add(asyncio.get_running_loop().create_task(upstream.pump()))
        return upstream

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, OSError):
            while True:
                length, code = struct.unpack("!II", await reader.readexactly(8))
                if code not in (SSL_REQUEST, GSS_REQUEST):
                    break
                writer.write(b"N")
            await reader.readexactly(length - 8)
            upstream = await open_upstream()
            key = packed(b"K", struct.pack("!II", next(made_up), 1))
            writer.write(packed(b"R", bytes(4)) + b"".join(upstream.settings) + key + packed(b"Z", b"I"))
            while True:
                kind, body = await read(reader)
                if kind == b"X":
                    break
                if upstream.holder is not writer:
                    await upstream.free.acquire()
                    upstream.holder = writer
                upstream.writer.write(packed(kind, body))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        try:
            yield listening.sockets[0].getsockname()[1]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for upstream in upstreams:
                upstream.writer.close()
