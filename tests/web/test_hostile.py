"""Clients that only hold connections open, over raw sockets: no other client is locked out, and each wait ends.

One server for all tests, with a small limit on connections and a clock that is advanced by hand.
"""

from __future__ import annotations

import json
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from koo.testing.polling import wait_until
from koo.testing.providers import FakeAnthropic, hang
from koo.web import create_app
from koo.web.connection import HEAD_S, KEEP_ALIVE_S, PATIENCE_S, REST_S
from koo.web.crowd import FOR_PROBES, Crowd
from koo.web.listener import bind
from koo.web.problems import Problem
from koo.web.server import make_server
from tests.web.serving import claude, platform

BOUND = 40
HOST = b"Host: 127.0.0.1\r\n"
LIVEZ = b"GET /livez HTTP/1.1\r\n" + HOST
ASK = b"POST /api/v1/ai/query HTTP/1.1\r\nContent-Type: application/json\r\n" + HOST
WITHIN_S = 30


class Time:
    """Seconds, advanced by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Served:
    """A server under attack."""

    port: int
    crowd: Crowd
    time: Time
    fake: FakeAnthropic
    tasks: Callable[[], int]
    opened: ExitStack = field(default_factory=ExitStack)

    def connect(self, begin: bytes = b"") -> socket.socket:
        """A connection that has sent `begin`; closed at the end of the test."""
        one = self.opened.enter_context(socket.create_connection(("127.0.0.1", self.port), WITHIN_S))
        if begin:
            one.sendall(begin)
        return one

    def is_alive(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), WITHIN_S) as one:
            one.sendall(LIVEZ + b"Connection: close\r\n\r\n")
            return everything(one).startswith(b"HTTP/1.1 200")

    def pass_s(self, seconds: float) -> None:
        """Advance the time until each connection has been checked."""
        swept = self.crowd._swept_at
        self.time.now += seconds
        wait_until(lambda: self.crowd._swept_at > swept)

    def wait_for(self, count: int) -> None:
        wait_until(lambda: len(self.crowd) == count)


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    clock = Time()
    crowd = Crowd(BOUND, clock)
    with (
        FakeAnthropic(strict=False) as fake,
        serving(tmp_path_factory.mktemp("hostile"), crowd, fake) as (port, tasks),
    ):
        yield Served(port, crowd, clock, fake, tasks)


@contextmanager
def serving(folder: Path, crowd: Crowd, fake: FakeAnthropic) -> Iterator[tuple[int, Callable[[], int]]]:
    made = platform(folder, claude(fake))
    server = make_server(made, create_app(made), crowd=crowd)
    listener = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        yield listener.getsockname()[1], lambda: len(server.server_state.tasks)
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()


@pytest.fixture
def server(one_server: Served) -> Iterator[Served]:
    one_server.wait_for(0)
    with ExitStack() as opened:
        one_server.opened = opened
        yield one_server


def everything(one: socket.socket) -> bytes:
    """Return everything that arrives until the connection is closed in any way."""
    content = b""
    with suppress(ConnectionError):
        while piece := one.recv(65_536):
            content += piece
    return content


def answer(one: socket.socket) -> bytes:
    """Read one response from a connection that stays open."""
    content, length = b"", None
    while length is None or len(content) < length:
        piece = one.recv(65_536)
        assert piece, content
        content += piece
        head, end, _ = content.partition(b"\r\n\r\n")
        if end:
            length = len(head + end) + int(head.lower().partition(b"content-length: ")[2].split()[0])
    return content


def status_of(content: bytes) -> int:
    """Return a problem's status, after checking its shape."""
    head, _, body = content.partition(b"\r\n\r\n")
    Problem.model_validate(json.loads(body), strict=True)
    assert b"connection: close" in head.lower()
    return int(head.split()[1])


# ── many connections ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("count", "begin"),
    [
        pytest.param(2000, LIVEZ, id="half heads"),
        pytest.param(300, b"", id="silent"),
        pytest.param(300, LIVEZ + b"Content-Length: 9\r\n\r\n", id="half bodies"),
    ],
)
def test_endless_connections_do_not_lock_anyone_out(server: Served, count: int, begin: bytes) -> None:
    held: deque[socket.socket] = deque(maxlen=2 * BOUND)  # more than the server keeps open
    for number in range(count):
        if len(held) == held.maxlen:
            held.popleft().close()
        held.append(server.connect(begin))
        if number % (count // 10) == 0:
            assert server.is_alive()
            assert len(server.crowd) <= BOUND
    assert server.is_alive()


def test_a_client_being_served_survives_a_flood_for_any_time(server: Served) -> None:
    server.fake.script(hang())
    body = b'{"service": "claude", "prompt": "Capital of France?"}'
    busy = server.connect(ASK + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    wait_until(lambda: server.fake.queries)
    for _ in range(3 * BOUND):
        server.connect()
    server.pass_s(10 * KEEP_ALIVE_S)
    assert server.is_alive()
    busy.setblocking(False)
    with pytest.raises(BlockingIOError):
        busy.recv(1)
    busy.close()
    wait_until(lambda: not server.tasks())


def test_if_all_connections_are_busy_probes_are_answered_and_other_requests_refused(server: Served) -> None:
    body = b'{"service": "claude", "prompt": "Capital of France?"}'
    asked = ASK + b"Content-Length: %d\r\n\r\n" % len(body) + body
    server.fake.script(*[hang() for _ in range(BOUND)])
    busy = [server.connect(asked) for _ in range(BOUND)]
    wait_until(lambda: server.tasks() >= BOUND)
    content = everything(server.connect(b"GET /api/v1/monitoring/health HTTP/1.1\r\n" + HOST + b"\r\n"))
    assert status_of(content) == 503 and b"retry-after: 1" in content.lower()
    assert b'"too_many_connections"' in content
    for _ in range(3 * FOR_PROBES):
        server.connect()  # silent connections above the limit
    assert server.is_alive()
    for one in busy:
        one.close()
    wait_until(lambda: not server.tasks())


# ── single connections ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_heads_deadline_is_not_extended_by_more_bytes(server: Served) -> None:
    one = server.connect(LIVEZ)
    server.wait_for(1)
    for _ in range(3):
        one.sendall(b"X: 1\r\n")
        server.pass_s(HEAD_S / 4)
    assert len(server.crowd) == 1
    server.pass_s(HEAD_S / 2)
    assert status_of(everything(one)) == 408


def test_a_connection_that_never_sends_anything_is_closed_without_a_response(server: Served) -> None:
    one = server.connect()
    server.wait_for(1)
    server.pass_s(HEAD_S + 1)
    assert everything(one) == b""


def test_an_idle_connection_is_closed_and_a_new_head_has_its_own_deadline(server: Served) -> None:
    one = server.connect(LIVEZ + b"\r\n")
    answer(one)
    server.pass_s(KEEP_ALIVE_S - 1)
    one.sendall(LIVEZ)
    wait_until(lambda: bool(server.crowd._known._of) and _waits(server) == ["head"])
    server.pass_s(HEAD_S - 1)
    one.sendall(b"\r\n")
    answer(one)
    one.sendall(b"\r\n")  # not part of a request
    server.pass_s(KEEP_ALIVE_S + 1)
    assert everything(one) == b""


def test_a_body_may_take_long_but_must_make_progress(server: Served) -> None:
    one = server.connect(ASK + b"Content-Length: 1000000\r\n\r\n")
    server.wait_for(1)
    wait_until(server.tasks)
    for _ in range(3):  # as slowly as allowed, for longer than the patience lasts
        one.sendall(b" " * 200_000)
        wait_until(lambda: _body_bytes(server) == 200_000)
        server.pass_s(PATIENCE_S - 1)
    for _ in range(3):
        one.sendall(b" ")  # a byte now and then is not progress
        server.pass_s(PATIENCE_S / 2)
    assert status_of(everything(one)) == 408
    wait_until(lambda: not server.tasks())


def test_the_unused_rest_of_a_body_has_a_short_deadline(server: Served) -> None:
    one = server.connect(b"POST /nowhere HTTP/1.1\r\n" + HOST + b"Content-Length: 1000\r\n\r\n")
    assert answer(one).startswith(b"HTTP/1.1 404")
    wait_until(lambda: _waits(server) == ["rest"])
    for _ in range(2):
        one.sendall(b"a")  # extends nothing
        server.pass_s(REST_S / 2 + 1)
    assert everything(one) == b""


def test_a_response_that_is_not_read_is_dropped_in_the_end(server: Served) -> None:
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.connect(("127.0.0.1", server.port))
    server.opened.enter_context(one)
    one.settimeout(0.2)
    page = b"GET /dashboard/ HTTP/1.1\r\n" + HOST + b"\r\n"
    with suppress(TimeoutError):
        while _waits(server) != ["reader"]:
            one.sendall(page * 100)
    wait_until(lambda: _waits(server) == ["reader"])
    server.pass_s(PATIENCE_S + 1)
    server.wait_for(0)
    wait_until(lambda: not server.tasks())


def _waits(server: Served) -> list[str]:
    return [one._waits_for for one in list(server.crowd._all)]  # type: ignore[attr-defined]


def _body_bytes(server: Served) -> int:
    (one,) = list(server.crowd._all)
    return one._body_bytes  # type: ignore[attr-defined, no-any-return]
