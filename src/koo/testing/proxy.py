"""A TCP proxy that breaks connections: `async with FaultProxy(host, port) as proxy: ... proxy.reset_all()`.

It runs between a client and any server, on the test's own event loop. Without `async` (`with FaultProxy(host, port) as
proxy:`) it runs in a separate thread, for tests that have no loop or block it. It can

* refuse new connections (`refuses`), and accept them again (`accepts`);
* reset all connections (`reset_all`), so that both ends receive an RST;
* be a black hole (`black_hole`): everything stays connected, no data passes, and neither side notices, until `heal`;
* forget the open connections (`forget`), so that only those are black holes;
* reset each new connection as soon as it is made (`reset_new`);
* be distant (`delay_s`: each piece of data arrives that much later, plus up to `jitter_s`);
* limit the bandwidth (`bytes_per_s`), and cut each connection after a number of bytes (`cut_after_bytes`);
* do that in one direction only (`toward`: "client" or "server");
* for PostgreSQL, cut exactly at COMMIT (`cut_commit`): before the server receives it, at the moment in which it is
  forwarded (so it is unknown whether it was executed), after the server has executed it but before the client is told,
  or hold it until the connection ends. For that it parses the messages of both sides, with any driver, and it needs
  connections without TLS.

It never waits except for the two delays and the bandwidth, and it opens no port except its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

from koo.testing.backstage import Backstage, on_loop
from koo.testing.proxy_checks import CommitCut, Side, Toward, check_attribute, check_word
from koo.testing.proxy_messages import Login, Messages, is_commit

__all__ = ["CommitCut", "FaultProxy"]

T = TypeVar("T")

_CHUNK = 65_536
_PIECES_A_SECOND = 50
"""With limited bandwidth, this many pieces are forwarded per second, so that a client receives a steady trickle."""
_LINGER_RESET = struct.pack("ii", 1, 0)
_PORTS = {"postgresql": 5432, "http": 80, "https": 443}


class FaultProxy:
    """Listens on 127.0.0.1 (`host`, `port`) and forwards to a server.

    `delay_s`, `jitter_s`, `bytes_per_s`, `cut_after_bytes`, `toward` and `reset_new` are attributes that may be set at
    any time. `toward`: the direction of the delays, of the bandwidth limit and of the cut: "client", "server" or
    "both". A method's change is in force when the method returns. `refuse` and `accept` are the awaitable forms of
    `refuses` and `accepts`.

    `connections`: accepted so far; `open_connections`: open now. `commits`: COMMITs that clients have sent; `cuts`: how
    many of them were cut. `swallowed`: pieces of data that arrived on forgotten connections. `round_trips`: how often
    clients of PostgreSQL have waited for a reply, in however many packets their messages came. `logging_in`: accepted
    connections to PostgreSQL that are not ready for queries yet; `most_logging_in`: the maximum at the same time (set
    it to 0 to start over).
    """

    def __init__(
        self, target_host: str, target_port: int, *, draw: Callable[[], float] = random.random
    ) -> None:
        self.target = (target_host, target_port)
        self.host = "127.0.0.1"
        self.port = 0
        self.delay_s = 0.0
        self.jitter_s = 0.0
        self.bytes_per_s: float | None = None
        self.cut_after_bytes: int | None = None
        self.toward: Toward = "both"
        self.reset_new = False
        self.connections = 0
        self.commits = 0
        self.cuts = 0
        self.swallowed = 0
        self.round_trips = 0
        self.logging_in = 0
        self.most_logging_in = 0
        self._draw = draw
        self._cut: CommitCut | None = None
        self._cuts_left = 0
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._pipes: set[_Pipe] = set()
        self._open: dict[Side, asyncio.Event] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._backstage: Backstage | None = None

    if not TYPE_CHECKING:  # with it, a type checker would accept every name

        def __setattr__(self, name, value):
            if not name.startswith("_") and "_backstage" in vars(self):
                check_attribute(vars(self), name, value)
            super().__setattr__(name, value)

    @classmethod
    def before(cls, url: str) -> Self:
        """A proxy for the server of this URL. Raises ValueError if the URL has no host or port."""
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme.partition("+")[0])
        if parts.hostname is None or port is None:
            raise ValueError("the URL of a server must contain a host and a port")
        return cls(parts.hostname, port)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._open = {"client": _set_event(), "server": _set_event()}
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse()
        self.heal()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def __enter__(self) -> Self:
        self._backstage = Backstage("fault-proxy")
        self._backstage.start()
        return self._backstage.run(self.__aenter__())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._backstage is not None
        self._backstage.run(self.__aexit__(kind, error, trace))
        self._backstage.stop()

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return len(self._pipes)

    def through(self, url: str) -> str:
        """A copy of the URL that leads through the proxy."""
        parts = urlsplit(url)
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}{self.host}:{self.port}"))

    # ── faults ────────────────────────────────────────────────────────────────────────────────────────────────

    def refuses(self) -> None:
        """Refuse new connections; open ones stay."""
        self._act(self._stop_listening)

    def accepts(self) -> None:
        """Accept new connections again, on the same port. Raises OSError if the port is taken."""
        self._act(self._listen)

    async def refuse(self) -> None:
        """Like `refuses`, awaitable."""
        self.refuses()
        await asyncio.sleep(0)

    async def accept(self) -> None:
        """Like `accepts`, awaitable."""
        self.accepts()
        await asyncio.sleep(0)

    def reset_all(self) -> None:
        """Reset every connection at both ends."""
        self._act(self._reset_all)

    def _reset_all(self) -> None:
        for pipe in tuple(self._pipes):
            pipe.reset()

    def forget(self) -> None:
        """Turn the open connections into black holes, as a firewall that forgets them does; new ones work."""
        for pipe in tuple(self._pipes):
            pipe.forgotten = True

    def black_hole(self, toward: Toward = "both") -> None:
        """Let no data pass in that direction, without any error; new connections are accepted but stay silent."""
        check_word("toward", toward, Toward)
        self._act(lambda: self._let_pass(False, toward))

    def heal(self) -> None:
        """End a black hole; the held data passes."""
        self._act(lambda: self._let_pass(True, "both"))

    def _let_pass(self, passes: bool, toward: Toward) -> None:
        for side, event in self._open.items():
            if toward in (side, "both"):
                (event.set if passes else event.clear)()

    def cut_commit(self, when: CommitCut, times: int = 1) -> None:
        """Cut the next `times` COMMITs, or "hold" them; 0 takes back what was not used.

        "before": before the server receives it, so the transaction is not committed; "hold" has the same result.
        "after": after the server has executed it, so the transaction is committed. "at": while it is forwarded; the
        transaction may be committed or not. Raises ValueError for anything else.
        """
        check_word("when", when, CommitCut)
        if times < 0:
            raise ValueError(f"times is {times}; expected at least 0")
        self._cut, self._cuts_left = when, times

    def _act(self, act: Callable[[], T]) -> T:
        if self._loop is None:
            raise RuntimeError("the proxy has not started: enter it with `with` or `async with` first")
        return on_loop(self._loop, act)

    def _listen(self) -> None:
        if self._listener is not None:
            return
        # The port is bound before this returns, so a client that connects right after `accepts()` waits in the
        # kernel's backlog instead of being refused.
        self._listener = socket.create_server((self.host, self.port), backlog=128)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        assert self._loop is not None
        self._loop.add_reader(self._listener, self._take, self._listener)

    def _take(self, listener: socket.socket) -> None:
        """Accept one connection and serve it in a task."""
        # This is not an `asyncio.Server`: one that is closed while it accepts leaves the accepted socket open, and a
        # client would be connected to nothing.
        with contextlib.suppress(OSError):
            wire, _ = listener.accept()
            wire.setblocking(False)
            task = asyncio.ensure_future(self._serve(wire))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            # The socket is also closed here, because a task that is cancelled before its first step never runs its own
            # cleanup.
            task.add_done_callback(lambda _: wire.close())

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            assert self._loop is not None
            self._loop.remove_reader(listener)
            listener.close()

    # ── forwarding ────────────────────────────────────────────────────────────────────────────────────────────

    async def _serve(self, wire: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=wire)
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

    async def hold_up(self, pipe: _Pipe, came_at: float, side: Side) -> None:
        """Delay a piece on its way to `side`, as the faults require; `came_at`: when it arrived (the loop's time)."""
        # The data of a forgotten connection is never forwarded, but the connection stays open: this task waits until
        # it is cancelled, because one side has closed or the proxy ends.
        if pipe.forgotten:
            self.swallowed += 1
            await asyncio.get_running_loop().create_future()
        if (self.delay_s or self.jitter_s) and self._is_toward(side):
            late_s = self.delay_s + self.jitter_s * self._draw()
            await asyncio.sleep(came_at + late_s - asyncio.get_running_loop().time())
        await self._open[side].wait()

    def _is_toward(self, side: Side) -> bool:
        return self.toward in (side, "both")

    def pieces_of(self, data: bytes, side: Side) -> Iterator[tuple[bytes, float]]:
        """Divide data into the pieces that are forwarded together, with the seconds that each takes."""
        rate = self.bytes_per_s
        if rate is None or not self._is_toward(side):
            yield data, 0.0
            return
        size = max(1, int(rate / _PIECES_A_SECOND))
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            yield piece, len(piece) / rate

    def room_left(self, passed: int, side: Side) -> int | None:
        """How many more bytes pass to `side` before the connection is cut; None if it is not cut."""
        if self.cut_after_bytes is None or not self._is_toward(side):
            return None
        return max(0, self.cut_after_bytes - passed)

    def commit_cut(self) -> CommitCut | None:
        """Count a COMMIT; returns how it is cut, or None if it passes."""
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
        self._messages = Messages()
        self._login: Login | None = Login()
        self._last_kind = b""
        self._cut: CommitCut | None = None
        self._passed: dict[Side, int] = {"client": 0, "server": 0}

    async def run(self) -> None:
        """Forward data until one side ends."""
        writers = [self._client[1]]
        try:
            if self._proxy.reset_new:
                self.reset()
                return
            await self._proxy.hold_up(self, asyncio.get_running_loop().time(), "server")
            self._server = await asyncio.open_connection(*self._proxy.target)
            writers.append(self._server[1])
            await self._pump()
        except (OSError, asyncio.CancelledError):
            pass  # a fault, or a refusing server: the client's connection is closed below
        finally:
            for writer in writers:
                writer.close()
            try:
                for writer in writers:
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
            except asyncio.CancelledError:
                for writer in writers:
                    writer.transport.abort()  # the peer does not read, so the unsent data would block the close
                raise

    async def _pump(self) -> None:
        assert self._server is not None
        up, down = asyncio.Queue[Piece](), asyncio.Queue[Piece]()
        ways = [asyncio.create_task(self._upstream(up)), asyncio.create_task(self._downstream(down))]
        # Reading is separate from forwarding. In one task, the delay of a piece would also delay the reading of the
        # next, and a burst of ten pieces would take ten delays instead of one.
        reads = [
            asyncio.create_task(_read(self._client[0], up)),
            asyncio.create_task(_read(self._server[0], down)),
        ]
        # Only the forwarding tasks are awaited. The end of a reading task is put into its queue, so data that was read
        # before the end is still forwarded.
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*ways, *reads):
                task.cancel()
            await asyncio.gather(*ways, *reads, return_exceptions=True)

    async def _upstream(self, pieces: asyncio.Queue[Piece]) -> None:
        assert self._server is not None
        while (piece := await pieces.get()).data:
            await self._proxy.hold_up(self, piece.came_at, "server")
            # A message may arrive in several pieces, and is recognised with its last one. The earlier pieces have been
            # forwarded then, which does no harm: a server does not execute a message before it is complete.
            data = piece.data
            messages = list(self._messages.feed(data))
            self._count_round_trips(messages)
            if self._login is not None:
                self._login.note_request(messages)
            if any(is_commit(message) for message in messages):
                self._cut = self._proxy.commit_cut()
            if self._cut == "before":
                self.reset()
                return
            # The message is never forwarded: this task waits until either side closes its connection, and the server
            # then rolls back.
            if self._cut == "hold":
                await asyncio.get_running_loop().create_future()
            if not await self._write(self._server[1], data, "server"):
                return
            if self._cut == "at":
                self.reset()
                return

    def note_login(self) -> None:
        """Note that the login has ended: the connection is ready for queries, or closed."""
        if self._login is not None:
            self._login = None
            self._proxy.logging_in -= 1

    def _count_round_trips(self, messages: list[tuple[bytes, bytes]]) -> None:
        """Count the messages that make the server send its replies: Flush (H), Sync (S) and simple query (Q)."""
        for kind, _ in messages:
            # libpq sends a Flush after a Sync, which causes no further reply.
            if kind in (b"S", b"Q") or (kind == b"H" and self._last_kind not in (b"S", b"H")):
                self._proxy.round_trips += 1
            self._last_kind = kind

    async def _downstream(self, pieces: asyncio.Queue[Piece]) -> None:
        assert self._server is not None
        while (piece := await pieces.get()).data:
            await self._proxy.hold_up(self, piece.came_at, "client")
            if self._cut == "after":  # the server's reply to the COMMIT, so the COMMIT was executed
                self.reset()
                return
            if self._login is not None and self._login.is_ready(piece.data):
                self.note_login()
            if not await self._write(self._client[1], piece.data, "client"):
                return

    async def _write(self, writer: asyncio.StreamWriter, data: bytes, side: Side) -> bool:
        """Forward data as the bandwidth and the cut allow; False if the connection was cut."""
        room = self._proxy.room_left(self._passed[side], side)
        passes = data if room is None else data[:room]
        for piece, takes_s in self._proxy.pieces_of(passes, side):
            if takes_s:
                await asyncio.sleep(takes_s)
            writer.write(piece)
            await writer.drain()
            self._passed[side] += len(piece)
        if len(passes) == len(data):
            return True
        # The last bytes may still be in the kernel's send buffer, and a reset discards them. So the connection is
        # closed cleanly first.
        writer.close()
        await writer.wait_closed()
        self.reset()
        return False

    def reset(self) -> None:
        """Send an RST to both ends."""
        # With SO_LINGER at zero seconds, closing the socket sends an RST instead of a FIN.
        for _, writer in filter(None, (self._client, self._server)):
            wire = writer.get_extra_info("socket")
            if wire is not None:
                with contextlib.suppress(OSError):
                    wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            writer.transport.abort()


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


class Piece(NamedTuple):
    """Data from one read, and when it was read (the loop's time). No data: that side has ended."""

    data: bytes
    came_at: float


async def _read(reader: asyncio.StreamReader, pieces: asyncio.Queue[Piece]) -> None:
    data = b"begun"
    while data:
        try:
            data = await reader.read(_CHUNK)
        except OSError:
            data = b""  # the forwarding task then ends the connection
        pieces.put_nowait(Piece(data, asyncio.get_running_loop().time()))
