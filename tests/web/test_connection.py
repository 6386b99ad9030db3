"""koo survives bytes that are not a complete request: endless heads, bytes that are not HTTP, pipelined requests."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from koo.testing.polling import wait_until
from koo.web import create_app
from koo.web.connection import HEAD_BYTES_MAX
from koo.web.crowd import Crowd
from koo.web.listener import bind
from koo.web.problems import Problem
from koo.web.server import make_server
from tests.web.serving import platform

HOST = b"Host: 127.0.0.1\r\n"
GET = b"GET /livez HTTP/1.1\r\n" + HOST
POST = b"POST /api/v1/ai/query HTTP/1.1\r\nContent-Type: application/json\r\n" + HOST
FLOOD = b"a" * 65_536
FLOODS_MAX = 300
"""Less than the limit for all heads together, and more than the socket buffers hold."""


@contextmanager
def listening(
    folder: Path, app: Any = None, crowd: Crowd | None = None
) -> Iterator[tuple[uvicorn.Server, int]]:
    """The server of `koo serve` in a thread, and its port."""
    made = platform(folder)
    server = make_server(made, app or create_app(made), crowd=crowd)
    listener = bind("127.0.0.1", 0)
    port: int = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline and thread.is_alive()
            time.sleep(0.01)
        yield server, port
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
    assert not thread.is_alive()


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        yield connection


def answer_of(connection: socket.socket) -> tuple[int, dict[str, Any] | None]:
    """Status and body of the only response; (0, None) if the connection was just closed."""
    content = b""
    try:
        while piece := connection.recv(65_536):
            content += piece
    except ConnectionResetError:
        pass  # the server closed while the test was still sending
    if not content:
        return 0, None
    head, _, body = content.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head.lower()
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize(
    ("begin", "more", "statuses"),
    [
        pytest.param(GET + b"X: ", FLOOD, {431}, id="a header"),
        pytest.param(GET, b"X: a\r\n" * 10_000, {431}, id="headers"),
        pytest.param(b"GET /", FLOOD, {431}, id="a path"),
        pytest.param(POST + b"Transfer-Encoding: chunked\r\n\r\n1;", FLOOD, {431}, id="the head of a chunk"),
    ],
)
def test_an_endless_head_is_cut_off_before_it_fills_the_memory(
    tmp_path: Path, begin: bytes, more: bytes, statuses: set[int]
) -> None:
    with listening(tmp_path) as (_, port), connected(port) as connection:
        sent = 0
        try:
            connection.sendall(begin)
            while sent < FLOODS_MAX:
                connection.sendall(more)
                sent += 1
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert sent < FLOODS_MAX
        # Linux may discard the response together with what was sent after it.
        status, body = answer_of(connection)
        assert status in statuses | {0}
        if body is not None:
            assert body["kind"] == "too_large" and body["status"] == status


def test_a_head_that_is_too_large_is_refused_with_the_reason(tmp_path: Path) -> None:
    with listening(tmp_path) as (_, port), connected(port) as connection:
        connection.sendall(GET + b"X: " + b"a" * HEAD_BYTES_MAX + b"\r\n\r\n")
        status, body = answer_of(connection)
        assert status == 431
        Problem.model_validate(body, strict=True)
        with connected(port) as other:
            other.sendall(GET + b"X: " + b"a" * (HEAD_BYTES_MAX // 2) + b"\r\nConnection: close\r\n\r\n")
            assert other.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\0 a browser that speaks TLS\r\n\r\n",
        b"BREW /livez HTTP/1.1\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\0b\r\n\r\n",
        b"CONNECT /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n",
    ],
)
def test_bytes_that_are_not_http_get_a_problem_response(tmp_path: Path, sent: bytes) -> None:
    with listening(tmp_path) as (_, port), connected(port) as connection:
        connection.sendall(sent)
        status, body = answer_of(connection)
        assert status == 400
        Problem.model_validate(body, strict=True)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the request's path and body."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body, more = scope["path"].encode() + b" ", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n" % len(HIDDEN)
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
CHUNK = b"%x\r\n%s\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)


@pytest.mark.parametrize(
    "pieces", [(LENGTH + HIDDEN,), (LENGTH, HIDDEN), (CHUNKED + CHUNK,), (CHUNKED, CHUNK)]
)
def test_a_request_that_offers_another_protocol_keeps_its_body(
    tmp_path: Path, pieces: tuple[bytes, ...]
) -> None:
    """Java's HTTP client offers h2c with its first request. The body is part of it and never a request of its own."""
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    with listening(tmp_path, echo) as (server, port), connected(port) as connection:
        connection.sendall(b"POST /one HTTP/1.1\r\n" + HOST + offer + pieces[0])
        wait_until(lambda: server.server_state.total_requests == 1 or server.server_state.tasks)
        for piece in (*pieces[1:], b"GET /two HTTP/1.1\r\n" + HOST + offer + b"Connection: close\r\n\r\n"):
            connection.sendall(piece)
        content = b""
        while piece := connection.recv(65_536):
            content += piece
        assert [one.partition(b"\r\n\r\n")[2] for one in content.split(b"HTTP/1.1 200 OK")[1:]] == [
            b"/one " + HIDDEN,
            b"/two ",
        ]


def test_bytes_after_a_running_request_do_not_get_its_response(tmp_path: Path) -> None:
    """The client would read their 400 as the response to the request that came before them."""
    asked, release = threading.Event(), threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            asked.set()
            await asyncio.to_thread(release.wait, 20)
        else:
            await echo(scope, receive, send)

    with listening(tmp_path, app) as (_, port), connected(port) as connection:
        connection.sendall(GET + b"\r\n")
        assert asked.wait(20)
        connection.sendall(b"not HTTP\r\n\r\n")
        assert answer_of(connection) == (0, None)
        release.set()


def test_fields_after_a_body_are_not_headers(tmp_path: Path) -> None:
    """A proxy checks the headers of the head. What a client adds after a chunked body must not count as one of them."""
    seen: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            while (await receive())["more_body"]:
                pass
            seen.extend(name for name, _ in scope["headers"])
            await send({"type": "http.response.start", "status": 204, "headers": [(b"connection", b"close")]})
            await send({"type": "http.response.body", "body": b""})
        else:
            await echo(scope, receive, send)

    with listening(tmp_path, app) as (_, port), connected(port) as connection:
        connection.sendall(
            b"POST / HTTP/1.1\r\n" + HOST + CHUNKED + b"2\r\n{}\r\n0\r\nX-Forwarded-For: 127.0.0.1\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 204")
    assert seen == [b"host", b"transfer-encoding"]


def test_a_connection_lost_in_its_head_leaves_nothing_behind(tmp_path: Path) -> None:
    crowd = Crowd(100)
    with listening(tmp_path, crowd=crowd) as (_, port):
        with connected(port) as connection:
            connection.sendall(GET + b"X: " + b"a" * 1000)
            wait_until(lambda: crowd.heads_bytes > 1000)
            assert len(crowd) == 1
        wait_until(lambda: crowd.heads_bytes == 0 and len(crowd) == 0)


def test_a_request_learns_that_its_client_left_even_if_others_were_pipelined(tmp_path: Path) -> None:
    asked, left = threading.Event(), threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while scope["type"] == "lifespan":
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
        asked.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    with listening(tmp_path, app) as (_, port):
        with connected(port) as connection:
            connection.sendall((GET + b"\r\n") * 2)
            assert asked.wait(20)
        assert left.wait(20)


def test_a_client_that_pipelines_is_answered_and_does_not_fill_the_memory(tmp_path: Path) -> None:
    asked, padding = 4000, b"X: " + b"a" * 400 + b"\r\n"
    with listening(tmp_path) as (server, port), connected(port) as connection:
        asking = threading.Thread(target=connection.sendall, args=((GET + padding + b"\r\n") * asked,))
        asking.start()
        answered, ahead, tail = 0, 0, b""
        while answered < asked:
            piece = connection.recv(65_536)
            assert piece
            answered += (tail + piece).count(b"HTTP/1.1 200 OK\r\n") - tail.count(b"HTTP/1.1 200 OK\r\n")
            tail = piece[-17:]
            ahead = max([ahead, *(len(one.pipeline) for one in list(server.server_state.connections))])  # type: ignore[union-attr]
        asking.join(20)
    assert ahead < asked / 2


def test_a_client_that_leaves_during_a_response_does_not_fill_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(tmp_path) as (server, port), socket.socket() as connection:
        state = server.server_state
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        asking = threading.Thread(target=ask_until_closed, args=(connection,))
        asking.start()
        # Until the unread responses have filled all buffers.
        wait_until(lambda: any(one.flow.write_paused for one in list(state.connections)))  # type: ignore[union-attr]
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
        asking.join(20)
        connection.close()
        wait_until(lambda: not state.tasks and not state.connections)
    assert not [record for record in caplog.records if record.exc_info]


def ask_until_closed(connection: socket.socket) -> None:
    with suppress(OSError):
        while True:
            connection.sendall((GET + b"\r\n") * 100)


def test_a_connection_accepted_just_before_shutdown_may_send_its_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection's first request is on the way. An immediate close would lose that request in each rolling
    restart.
    """
    monkeypatch.setattr("koo.web.ending.NEWCOMER_S", 60.0)
    with listening(tmp_path) as (server, port), connected(port) as newcomer:
        wait_until(lambda: server.server_state.connections)
        server.should_exit = True
        wait_until(lambda: not is_accepting(port))
        newcomer.sendall(GET + b"\r\n")
        assert newcomer.recv(4096).startswith(b"HTTP/1.1 200")
        # An older connection is closed: with a reset if it had sent another request, otherwise with end of file.
        with suppress(ConnectionResetError, BrokenPipeError):
            newcomer.sendall(GET + b"\r\n")
            while newcomer.recv(4096):
                pass


def is_accepting(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0
