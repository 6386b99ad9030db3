"""A TCP proxy that breaks connections: `async with FaultProxy(host, port) as proxy: ... proxy.reset_all()`.

It stands between a client and any server, on the test's own event loop, and can

* refuse new connections (`refuse`), and accept them again (`accept`);
* reset all connections (`reset_all`), so that both ends see RST;
* be a black hole (`black_hole`): everything stays connected, nothing passes, nobody is told; until `heal`;
* forget what is connected (`forget`), so that only those connections are black holes;
* reset each new connection as soon as it is made (`reset_new`);
* be far away (`delay_s`: each piece of data arrives so much later, in each direction);
* for PostgreSQL, cut exactly at COMMIT (`cut_commit`): before the server has seen it, at the moment in which it is sent
  on (done or not, nobody knows), after the server has done it but before the client hears of it, or hold it until the
  connection ends. It reads the messages of both sides for that, with any driver, and needs connections without TLS.

Nothing in it waits for time but `delay_s`, and it opens nothing but its own port.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Literal, NamedTuple
from urllib.parse import urlsplit, urlunsplit

CommitCut = Literal["before", "at", "after", "hold"]

_CHUNK = 65_536
_ENCRYPTION = {80877103, 80877104}
"""SSLRequest and GSSENCRequest, which are answered by a single byte."""
_UNTYPED = {*_ENCRYPTION, 80877102}
"""... and CancelRequest: a client's packets without a type byte, but for the start itself."""
_LOGIN_BYTES_MAX = 65_536
"""What answers so much without a ReadyForQuery is not PostgreSQL."""
_LINGER_RESET = struct.pack("ii", 1, 0)


class FaultProxy:
    """Listens on 127.0.0.1 (`host`, `port`) and forwards to a server.

    `connections`: accepted so far. `open_connections`: now. `commits`: COMMITs that clients have sent, `cuts`: how many
    of them were cut. `swallowed`: pieces of data that came by a forgotten connection. `round_trips`: how often clients
    of PostgreSQL have asked for an answer to wait for, in however many packets their messages came. `logging_in`:
    connections to PostgreSQL that were accepted and are not ready for queries yet, `most_logging_in`: the most at once;
    set it to 0 to count anew.
    """

    def __init__(self, target_host: str, target_port: int) -> None:
        self.target = (target_host, target_port)
        self.host = "127.0.0.1"
        self.port = 0
        self.delay_s = 0.0
        self.reset_new = False
        self.connections = 0
        self.commits = 0
        self.cuts = 0
        self.swallowed = 0
        self.round_trips = 0
        self.logging_in = 0
        self.most_logging_in = 0
        self._cut: CommitCut | None = None
        self._cuts_left = 0
        self._server: asyncio.Server | None = None
        self._pipes: set[_Pipe] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._open: asyncio.Event | None = None

    async def __aenter__(self) -> FaultProxy:
        self._open = asyncio.Event()
        self._open.set()
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse()
        self.heal()
        await asyncio.gather(*(pipe.end() for pipe in tuple(self._pipes)))

    @property
    def open_connections(self) -> int:
        return len(self._pipes)

    def through(self, url: str) -> str:
        """The same URL by way of the proxy."""
        parts = urlsplit(url)
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}{self.host}:{self.port}"))

    # ── faults ────────────────────────────────────────────────────────────────────────────────────────────────

    async def refuse(self) -> None:
        """New connections are refused; those that are open stay."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            # From Python 3.12 on `wait_closed` waits for the open connections too, and they may be black holes.
            await asyncio.sleep(0)

    async def accept(self) -> None:
        """New connections are accepted, on the same port as before."""
        if self._server is None:
            self._server = await asyncio.start_server(self._begin, self.host, self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    def reset_all(self) -> None:
        """Both ends of every connection see a reset."""
        for pipe in tuple(self._pipes):
            pipe.reset()

    def forget(self) -> None:
        """What is connected now becomes a black hole, as when a firewall forgets it; new connections are well."""
        for pipe in tuple(self._pipes):
            pipe.forgotten = True

    def black_hole(self) -> None:
        """Nothing passes any more, and nobody is told; new connections are accepted, and silent."""
        assert self._open is not None
        self._open.clear()

    def heal(self) -> None:
        """What was held up passes."""
        assert self._open is not None
        self._open.set()

    def cut_commit(self, when: CommitCut, times: int = 1) -> None:
        """Cut the next COMMITs: "before" the server sees them, "at" their passing, "after" it did them; or "hold" them.

        After "at" the transaction may have happened or not; after "before" and "hold" it has not, after "after" it has.
        """
        self._cut, self._cuts_left = when, times

    # ── passing on ────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Not asyncio's own task for a coroutine: Python 3.11 reports one that is cancelled as an error.
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.logging_in += 1
        self.most_logging_in = max(self.most_logging_in, self.logging_in)
        pipe = _Pipe(self, reader, writer)
        self._pipes.add(pipe)
        try:
            await pipe.run()
        finally:
            self._pipes.discard(pipe)
            pipe.note_login()

    async def pass_on(self, pipe: _Pipe, came_at: float) -> None:
        """Wait as long as the faults say, of a piece that came at `came_at` (the loop's time)."""
        assert self._open is not None
        if pipe.forgotten:
            self.swallowed += 1
            await asyncio.get_running_loop().create_future()
        if self.delay_s:
            await asyncio.sleep(came_at + self.delay_s - asyncio.get_running_loop().time())
        await self._open.wait()

    def commit_cut(self) -> CommitCut | None:
        """A COMMIT came: is it to be cut?"""
        self.commits += 1
        if self._cuts_left <= 0:
            return None
        self._cuts_left -= 1
        self.cuts += 1
        return self._cut


class _Pipe:
    """One connection through the proxy."""

    def __init__(self, proxy: FaultProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._client = (reader, writer)
        self._server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.forgotten = False
        self._messages = _Messages()
        self._login: _Login | None = _Login()
        self._last_kind = b""
        self._cut: CommitCut | None = None
        self._task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Until one side ends."""
        self._task = asyncio.current_task()
        writers = [self._client[1]]
        try:
            if self._proxy.reset_new:
                self.reset()
                return
            await self._proxy.pass_on(self, asyncio.get_running_loop().time())
            self._server = await asyncio.open_connection(*self._proxy.target)
            writers.append(self._server[1])
            await self._pump()
        except (OSError, asyncio.CancelledError):
            pass  # a fault of ours, or the server's refusal: the client sees the end of its connection
        finally:
            for writer in writers:
                writer.close()
            try:
                for writer in writers:
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
            except asyncio.CancelledError:
                for writer in writers:
                    writer.transport.abort()  # it does not take what was still to be sent
                raise

    async def _pump(self) -> None:
        assert self._server is not None
        up, down = asyncio.Queue[Piece](), asyncio.Queue[Piece]()
        ways = [asyncio.create_task(self._upstream(up)), asyncio.create_task(self._downstream(down))]
        # Read apart from passing on: a piece that follows at once travels beside the one before, not after it.
        reads = [
            asyncio.create_task(_read(self._client[0], up)),
            asyncio.create_task(_read(self._server[0], down)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*ways, *reads):
                task.cancel()
            await asyncio.gather(*ways, *reads, return_exceptions=True)

    async def _upstream(self, pieces: asyncio.Queue[Piece]) -> None:
        assert self._server is not None
        while (piece := await pieces.get()).data:
            await self._proxy.pass_on(self, piece.came_at)
            data = piece.data
            messages = list(self._messages.feed(data))
            self._count_round_trips(messages)
            if self._login is not None:
                self._login.note_request(messages)
            if any(_is_commit(message) for message in messages):
                self._cut = self._proxy.commit_cut()
            if self._cut == "before":
                self.reset()
                return
            if self._cut == "hold":
                await asyncio.get_running_loop().create_future()
            self._server[1].write(data)
            await self._server[1].drain()
            if self._cut == "at":
                self.reset()
                return

    def note_login(self) -> None:
        """It is ready for queries, or has ended."""
        if self._login is not None:
            self._login = None
            self._proxy.logging_in -= 1

    def _count_round_trips(self, messages: list[tuple[bytes, bytes]]) -> None:
        """Flush (H) and Sync (S) make the server send what it has answered; a simple query (Q) is its own Sync."""
        for kind, _ in messages:
            # libpq sends a Flush after a Sync, which asks for nothing more.
            if kind in (b"S", b"Q") or (kind == b"H" and self._last_kind not in (b"S", b"H")):
                self._proxy.round_trips += 1
            self._last_kind = kind

    async def _downstream(self, pieces: asyncio.Queue[Piece]) -> None:
        assert self._server is not None
        while (piece := await pieces.get()).data:
            await self._proxy.pass_on(self, piece.came_at)
            if self._cut == "after":  # the answer to the COMMIT: it is done
                self.reset()
                return
            if self._login is not None and self._login.is_ready(piece.data):
                self.note_login()
            self._client[1].write(piece.data)
            await self._client[1].drain()

    def reset(self) -> None:
        """RST to both ends."""
        for _, writer in filter(None, (self._client, self._server)):
            wire = writer.get_extra_info("socket")
            if wire is not None:
                with contextlib.suppress(OSError):
                    wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            writer.transport.abort()

    async def end(self) -> None:
        task = self._task
        if task is not None and not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class Piece(NamedTuple):
    """What was read at once, and when (the loop's time); no data: that side has ended."""

    data: bytes
    came_at: float


async def _read(reader: asyncio.StreamReader, pieces: asyncio.Queue[Piece]) -> None:
    data = b"begun"
    while data:
        try:
            data = await reader.read(_CHUNK)
        except OSError:
            data = b""  # The side that passes on ends the connection.
        pieces.put_nowait(Piece(data, asyncio.get_running_loop().time()))


class _Messages:
    """Divides a client's bytes into PostgreSQL's frontend messages: (type, body)."""

    def __init__(self) -> None:
        self._buffer = b""
        self._started = False

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        self._buffer += data
        while True:
            head = 1 if self._started else 0
            if len(self._buffer) < head + 4:
                return
            length = int.from_bytes(self._buffer[head : head + 4], "big")
            if len(self._buffer) < head + length or length < 4:
                return
            kind, body = self._buffer[:head], self._buffer[head + 4 : head + length]
            self._buffer = self._buffer[head + length :]
            if not self._started:
                self._started = int.from_bytes(body[:4], "big") not in _UNTYPED
            yield kind, body


class _Login:
    """Finds the first ReadyForQuery in what a server answers."""

    def __init__(self) -> None:
        self._answers = b""
        self._single_bytes = 0

    def note_request(self, messages: list[tuple[bytes, bytes]]) -> None:
        """A client that asks for encryption is answered by one byte."""
        for kind, body in messages:
            self._single_bytes += not kind and int.from_bytes(body[:4], "big") in _ENCRYPTION

    def is_ready(self, data: bytes) -> bool:
        """Whether the login is over, or this is not PostgreSQL."""
        self._answers += data
        at = self._single_bytes
        while len(self._answers) >= at + 5:
            if self._answers[at : at + 1] == b"Z":
                return True
            at += 1 + int.from_bytes(self._answers[at + 1 : at + 5], "big")
        return len(self._answers) > _LOGIN_BYTES_MAX


def _is_commit(message: tuple[bytes, bytes]) -> bool:
    """A simple query (Q), or one to be parsed (P: its name comes first), that commits."""
    kind, body = message
    if kind == b"P":
        body = body.partition(b"\0")[2]
    elif kind != b"Q":
        return False
    words = body.lstrip().upper()
    return words.startswith((b"COMMIT", b"END"))
