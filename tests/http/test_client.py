"""The HTTP client: the stages of its failures, what it never does, and how it parses event streams."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koo.http.client import ClosedHere, HttpClient
from koo.http.connector import AnswerTooLarge, TransportError
from koo.http.events import EventParser, ServerSentEvent
from koo.network_options import NetworkOptions

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
Talk = Callable[[StreamReader, StreamWriter], Awaitable[None]]
BODIES = pytest.mark.parametrize("body", [b"x", None], ids=["by hand", "by aiohttp's session"])
"""The prepared path sends requests with a body, aiohttp's session those without. Both report the same failures."""


@asynccontextmanager
async def serving(talk: Talk) -> AsyncIterator[str]:
    """Run a server that handles every connection with `talk`; yields its URL."""

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def client(**options: object) -> AsyncIterator[HttpClient]:
    http = HttpClient(**options)  # type: ignore[arg-type]
    try:
        yield http
    finally:
        await http.close()


async def read_request(reader: StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        (
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length")
        ),
        0,
    )
    return head + await reader.readexactly(length)


async def answer(reader: StreamReader, writer: StreamWriter, *parts: bytes) -> None:
    await read_request(reader)
    for part in parts:
        writer.write(part)
        await writer.drain()


def talking(*parts: bytes) -> Talk:
    return lambda reader, writer: answer(reader, writer, *parts)


async def failure_of(call: Awaitable[object]) -> TransportError:
    with pytest.raises(TransportError) as caught:
        await call
    return caught.value


# ── requests ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_response_has_a_status_case_insensitive_headers_and_a_body() -> None:
    async def main() -> None:
        reply = b"HTTP/1.1 418 Teapot\r\nX-Id: 7\r\ncontent-length: 5\r\n\r\nshort"
        async with serving(talking(reply)) as url, client() as http:
            response = await http.request("POST", url, headers={"a": "b"}, body=b"{}")
            assert (response.status, response.headers.get("x-id"), response.body) == (418, "7", b"short")

    asyncio.run(main())


def test_redirects_are_returned_and_not_followed() -> None:
    async def main() -> None:
        seen: list[bytes] = []

        async def talk(reader: StreamReader, writer: StreamWriter) -> None:
            seen.append(await read_request(reader))
            writer.write(b"HTTP/1.1 307 Moved\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()

        async with serving(talk) as url, client() as http:
            assert (await http.request("POST", url, body=b"secret")).status == 307
        assert len(seen) == 1

    asyncio.run(main())


def test_cookies_are_neither_kept_nor_sent() -> None:
    async def main() -> None:
        seen: list[bytes] = []

        async def talk(reader: StreamReader, writer: StreamWriter) -> None:
            while True:
                seen.append(await read_request(reader))
                writer.write(b"HTTP/1.1 200 OK\r\nset-cookie: a=b\r\ncontent-length: 0\r\n\r\n")
                await writer.drain()

        async with serving(talk) as url, client() as http:
            by_name = url.replace("127.0.0.1", "localhost")  # cookie jars ignore IP addresses
            await http.request("GET", by_name)
            await http.request("GET", by_name)
        assert len(seen) == 2 and b"cookie" not in seen[1].lower()

    asyncio.run(main())


# ── stages of failures ────────────────────────────────────────────────────────────────────────────────────────────────


@BODIES
def test_a_refused_connection_has_stage_connect(body: bytes | None) -> None:
    async def main() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # bound, but not listening
            port = taken.getsockname()[1]
            async with client() as http:
                error = await failure_of(http.request("POST", f"http://127.0.0.1:{port}/", body=body))
        assert error.stage == "connect" and f"127.0.0.1:{port}" in error.reason

    asyncio.run(main())


@BODIES
def test_an_unknown_host_name_has_stage_connect(body: bytes | None) -> None:
    async def main() -> None:
        async with client() as http:
            error = await failure_of(http.request("POST", "http://no-such-host.invalid/", body=body))
        assert error.stage == "connect" and "no-such-host.invalid" in error.reason

    asyncio.run(main())


@BODIES
def test_a_failed_tls_handshake_has_stage_connect(body: bytes | None) -> None:
    async def main() -> None:
        async def talk(_: StreamReader, writer: StreamWriter) -> None:
            writer.write(b"220 this is no TLS\r\n")
            await writer.drain()

        async with serving(talk) as url, client() as http:
            error = await failure_of(http.request("POST", url.replace("http:", "https:"), body=body))
        assert error.stage == "connect" and "secure" in error.reason

    asyncio.run(main())


def test_an_untrusted_certificate_has_stage_connect(tmp_path_factory: pytest.TempPathFactory) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if not _self_signed(context, tmp_path_factory):
        pytest.skip("openssl is not installed")

    async def main() -> None:
        server = await asyncio.start_server(talking(OK), "127.0.0.1", 0, ssl=context)
        asyncio.get_running_loop().set_exception_handler(
            lambda *_: None
        )  # the server's side of the failed handshake
        async with server, client() as http:
            port = server.sockets[0].getsockname()[1]
            error = await failure_of(http.request("POST", f"https://127.0.0.1:{port}/", body=b"x"))
        assert error.stage == "connect" and "secure" in error.reason

    asyncio.run(main())


def _self_signed(context: ssl.SSLContext, folders: pytest.TempPathFactory) -> bool:
    import shutil
    import subprocess

    if shutil.which("openssl") is None:
        return False
    folder = folders.mktemp("certificate")
    key, certificate = folder / "key.pem", folder / "cert.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context.load_cert_chain(certificate, key)
    return True


@BODIES
def test_a_connect_timeout_has_stage_connect(body: bytes | None) -> None:
    """A listener with a full queue does not answer a SYN, just like a host that drops all packets."""

    async def main() -> None:
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            waiting = []
            for _ in range(4):
                one = socket.socket()
                one.setblocking(False)
                one.connect_ex(full.getsockname())
                waiting.append(one)
            try:
                async with client(connect_timeout_s=0.1) as http:
                    url = f"http://127.0.0.1:{full.getsockname()[1]}/"
                    error = await failure_of(http.request("POST", url, body=body))
            finally:
                for one in waiting:
                    one.close()
        assert (error.stage, error.reason) == ("connect", "the connection attempt timed out")

    asyncio.run(main())


def test_the_connect_timeout_also_limits_name_lookups(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def stuck(*_: object, **__: object) -> object:
        released.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "late")

    monkeypatch.setattr(socket, "getaddrinfo", stuck)

    async def main() -> None:
        try:
            async with client(connect_timeout_s=0.05) as http:
                error = await failure_of(http.request("POST", "http://slow-name.example/", body=b"x"))
        finally:
            released.set()
        assert error.stage == "connect" and "slow-name.example" in error.reason

    asyncio.run(main())


@BODIES
@pytest.mark.parametrize("url", ["ftp://example.com/", "nonsense", "http://"])
def test_an_invalid_url_has_stage_connect(url: str, body: bytes | None) -> None:
    async def main() -> None:
        async with client() as http:
            error = await failure_of(http.request("POST", url, body=body))
        assert error.stage == "connect" and "base URL" in error.reason

    asyncio.run(main())


@BODIES
def test_a_connection_closed_without_a_response_has_stage_sent(body: bytes | None) -> None:
    async def main() -> None:
        async with serving(talking()) as url, client() as http:
            assert (await failure_of(http.request("POST", url, body=body))).stage == "sent"

    asyncio.run(main())


@BODIES
def test_a_response_that_breaks_off_has_stage_answer(body: bytes | None) -> None:
    async def main() -> None:
        async with (
            serving(talking(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")) as url,
            client() as http,
        ):
            assert (await failure_of(http.request("POST", url, body=body))).stage == "answer"

    asyncio.run(main())


@BODIES
@pytest.mark.parametrize(
    "told",
    [
        (b"content-length: 100\r\n\r\n", b'{"text": "Paris."}'),
        (b"content-length: 100\r\n\r\n", b'{"text": ', b'"Paris."}'),
        (b"transfer-encoding: chunked\r\n\r\n", b'12\r\n{"text": "Paris."}\r\n'),
    ],
    ids=["a length that is too large", "in two pieces", "no last chunk"],
)
def test_a_complete_json_document_is_kept_although_its_response_breaks_off(
    body: bytes | None, told: tuple[bytes, ...]
) -> None:
    async def main() -> None:
        async with serving(talking(b"HTTP/1.1 200 OK\r\n", *told)) as url, client() as http:
            assert (await http.request("POST", url, body=body)).body == b'{"text": "Paris."}'

    asyncio.run(main())


@BODIES
def test_an_error_response_that_breaks_off_keeps_its_status(body: bytes | None) -> None:
    async def main() -> None:
        reply = b"HTTP/1.1 429 Slow\r\nretry-after: 3\r\ncontent-length: 100\r\n\r\nhalf"
        async with serving(talking(reply)) as url, client() as http:
            response = await http.request("POST", url, body=body)
            assert (response.status, response.headers["retry-after"], response.body) == (429, "3", b"")

    asyncio.run(main())


@BODIES
def test_a_response_that_is_not_http_has_stage_answer(body: bytes | None) -> None:
    async def main() -> None:
        async with serving(talking(b"220 mail.example ESMTP\r\n\r\n")) as url, client() as http:
            assert (await failure_of(http.request("POST", url, body=body))).stage == "answer"

    asyncio.run(main())


def test_an_error_response_during_the_upload_is_read_or_has_stage_sent() -> None:
    async def main() -> None:
        async def talk(reader: StreamReader, writer: StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            await writer.drain()

        async with serving(talk) as url, client() as http:
            try:
                seen: object = (await http.request("POST", url, body=b"x" * 20_000_000)).status
            except TransportError as error:
                seen = error.stage
        assert seen in (413, "sent")

    asyncio.run(main())


@pytest.mark.parametrize("chunked", [False, True])
def test_reading_stops_at_the_size_limit(chunked: bool) -> None:
    head = b"HTTP/1.1 200 OK\r\n" + (
        b"transfer-encoding: chunked\r\n\r\n" if chunked else b"content-length: 9000\r\n\r\n"
    )
    body = b"3e8\r\n" + b"x" * 1000 + b"\r\n" if chunked else b"x" * 1000

    async def main() -> None:
        end = b"0\r\n\r\n" if chunked else b""
        async with serving(talking(head, *[body] * 9, end)) as url, client(answer_bytes_max=4000) as http:
            with pytest.raises(AnswerTooLarge):
                await http.request("GET", url)

    asyncio.run(main())


# ── reuse and repetition ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_post_that_the_server_may_have_read_is_never_sent_twice() -> None:
    """The server answers once, then closes each kept connection after the next request has arrived on it."""

    async def main() -> None:
        posts: list[bytes] = []

        async def talk(reader: StreamReader, writer: StreamWriter) -> None:
            posts.append(await read_request(reader))
            writer.write(OK)
            await writer.drain()
            posts.append(await read_request(reader))

        async with serving(talk) as url, client() as http:
            assert (await http.request("POST", url, body=b"1")).status == 200
            assert (await failure_of(http.request("POST", url, body=b"2"))).stage == "sent"
            assert [post[-1:] for post in posts] == [b"1", b"2"]

    asyncio.run(main())


@BODIES
def test_connections_are_reused(body: bytes | None) -> None:
    async def main() -> None:
        connections: list[StreamWriter] = []

        async def talk(reader: StreamReader, writer: StreamWriter) -> None:
            connections.append(writer)
            while True:
                await answer(reader, writer, OK)

        async with serving(talk) as url, client() as http:
            for _ in range(5):
                await http.request("POST", url, body=body)
        assert len(connections) == 1

    asyncio.run(main())


def test_a_connection_that_was_idle_for_too_long_is_not_reused() -> None:
    """koo closes the connection before the server does, because a request on a connection that is being closed may be
    lost.
    """

    async def main() -> None:
        connections: list[StreamWriter] = []

        async def talk(reader: StreamReader, writer: StreamWriter) -> None:
            connections.append(writer)
            while True:
                await answer(reader, writer, OK)

        async with serving(talk) as url, client(network=NetworkOptions(idle_connection_s=0.05)) as http:
            await http.request("POST", url, body=b"x")
            await asyncio.sleep(0.15)  # the idle time of a real connection
            await http.request("POST", url, body=b"x")
        assert len(connections) == 2

    asyncio.run(main())


def test_idle_connections_are_closed_before_the_usual_servers_close_them() -> None:
    """uvicorn, Node.js and Apache close idle connections after five seconds."""
    assert NetworkOptions().idle_connection_s < 5


# ── cancelling and closing ────────────────────────────────────────────────────────────────────────────────────────────


@BODIES
@pytest.mark.parametrize(
    "sent", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"], ids=["headers", "body"]
)
def test_cancelling_closes_the_connection(sent: bytes, body: bytes | None) -> None:
    async def main() -> None:
        arrived, gone = asyncio.Event(), asyncio.Event()

        async def talk(reader: StreamReader, writer: StreamWriter) -> None:
            await answer(reader, writer, sent)
            arrived.set()
            await reader.read()
            gone.set()

        async with serving(talk) as url, client() as http:
            task = asyncio.ensure_future(http.request("POST", url, body=body))
            await arrived.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(gone.wait(), 5)

    asyncio.run(main())


@BODIES
def test_closing_a_stream_early_closes_the_connection(body: bytes | None) -> None:
    async def main() -> None:
        gone = asyncio.Event()

        async def talk(reader: StreamReader, writer: StreamWriter) -> None:
            await answer(reader, writer, STREAM_HEAD, chunk(b"data: 1\n\n"))
            await reader.read()
            gone.set()

        async with serving(talk) as url, client() as http:
            stream = await http.stream("POST", url, body=body)
            assert await stream.next_events() == [ServerSentEvent("message", b"1")]
            await stream.aclose()
            await asyncio.wait_for(gone.wait(), 5)

    asyncio.run(main())


@BODIES
def test_a_finished_stream_returns_its_connection_to_the_pool(body: bytes | None) -> None:
    async def main() -> None:
        connections: list[StreamWriter] = []
        may_end = asyncio.Event()

        async def talk(reader: StreamReader, writer: StreamWriter) -> None:
            connections.append(writer)
            while True:
                await answer(reader, writer, STREAM_HEAD, chunk(b"data: last\n\n"))
                await may_end.wait()
                writer.write(b"0\r\n\r\n")

        async with serving(talk) as url, client() as http:
            for _ in range(3):
                stream = await http.stream("POST", url, body=body)
                await stream.next_events()
                may_end.set()  # the rest arrives after the last event in a separate segment
                await stream.aclose(read_out=True)
        assert len(connections) == 1

    asyncio.run(main())


# ── loops ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_later_run_gets_a_new_session() -> None:
    http = HttpClient()

    async def main() -> None:
        async with serving(talking(OK)) as url:
            assert (await http.request("GET", url)).status == 200
            await http.close()

    asyncio.run(main())
    asyncio.run(main())


def test_a_later_run_works_if_the_earlier_session_was_not_closed() -> None:
    http = HttpClient()

    async def main(close: bool) -> None:
        async with serving(
            talking(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        ) as url:
            assert (await http.request("GET", url)).status == 200
        if close:
            await http.close()

    asyncio.run(main(close=False))
    asyncio.run(main(close=True))


def test_two_loops_at_the_same_time_raise() -> None:
    http = HttpClient()
    said: list[str] = []

    async def elsewhere() -> None:
        try:
            await http.request("GET", "http://127.0.0.1:9/")
        except RuntimeError as error:
            said.append(str(error))

    async def main() -> None:
        async with serving(talking(OK)) as url:
            await http.request("GET", url)
            await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
        await http.close()

    asyncio.run(main())
    assert said and "event loop" in said[0]


def test_creating_a_client_opens_nothing() -> None:
    assert "closed" in repr(HttpClient())  # and it needs no running loop


# ── server-sent events ────────────────────────────────────────────────────────────────────────────────────────────────

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def parse(*portions: bytes) -> list[ServerSentEvent]:
    parser = EventParser()
    events = [event for portion in portions for event in parser.feed(portion)]
    return events + parser.finish()


@pytest.mark.parametrize(
    ("text", "events"),
    [
        (b"data: 1\n\n", [("message", b"1")]),
        (b"data:1\n\ndata:  2\n\n", [("message", b"1"), ("message", b" 2")]),
        (b"event: ping\ndata: {}\n\n", [("ping", b"{}")]),
        (b"data: a\ndata: b\ndata\n\n", [("message", b"a\nb\n")]),
        (b": a comment\n\ndata: 1\n\n", [("message", b"1")]),
        (b"event: lost\n\ndata: 1\n\n", [("message", b"1")]),
        (b"id: 7\nretry: 10\nunknown: x\ndata: 1\n\n", [("message", b"1")]),
        (
            b"data: 1\r\rdata: 2\r\n\r\ndata: 3\n\r\n",
            [("message", b"1"), ("message", b"2"), ("message", b"3")],
        ),
        (b"\xef\xbb\xbfdata: 1\n\n", [("message", b"1")]),
        (b"data: 1\n\ndata: cut in the mid", [("message", b"1")]),
        (b"data: [DONE]\n", [("message", b"[DONE]")]),
        (b"data: 1\x0b2\x852\xe2\x80\xa83\n\n", [("message", b"1\x0b2\x852\xe2\x80\xa83")]),
        (b'error: {"code":500}\n\n', [("error", b'{"code":500}')]),
        (b"data\n\n", [("message", b"")]),
        (b"", []),
    ],
)
def test_events_are_parsed_by_the_standard(text: bytes, events: list[tuple[str, bytes]]) -> None:
    assert parse(text) == events


@pytest.mark.parametrize(
    ("text", "events"),
    [
        (b'{"error":1}', [("document", b'{"error":1}')]),
        (b'data: 1\n\n{\n "e": {\n }\n}\n\ndata: 2\n\n', [("message", b"1"), ("document", b'{\n "e": {\n }\n}'),
                                                        ("message", b"2")]),
        (b'{"a":1}\n{"a":2}\n', [("document", b'{"a":1}'), ("document", b'{"a":2}')]),
        (b'[{"a":1}\n,\n{"a":2}]', [("document", b'{"a": 1}'), ("document", b'{"a": 2}')]),
        (b"<html>\n<p>no", [("document", b"<html>\n<p>no")]),
        (b'{"a":', [("document", b'{"a":')]),
        (b'data: {"a":1}\ndata: {"a":2}\n\n', [("message", b'{"a":1}'), ("message", b'{"a":2}')]),
        (b'data: {"a":\ndata: 1}\n\n', [("message", b'{"a":\n1}')]),
        (b'data: {"a":1}', [("message", b'{"a":1}')]),
        (b'data: {"a":', []),
        (b"data: [DONE]", [("message", b"[DONE]")]),
    ],
)  # fmt: skip
def test_documents_between_events_are_found(text: bytes, events: list[tuple[str, bytes]]) -> None:
    """The standard drops all of them. The result does not depend on how the bytes are split."""
    assert parse(text) == events
    assert parse(*(text[at : at + 1] for at in range(len(text)))) == events


LINES = st.sampled_from(
    [
        b"data: one",
        b"data: \xe2\x82\xac\xf0\x9f\x98\x80",
        b"data",
        b"event: x",
        b"event:",
        b": ping",
        b"",
        b"",
        b"id: 1",
        b"data: [DONE]",
    ]
)
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])


@given(st.lists(st.tuples(LINES, ENDS), max_size=20), st.booleans(), st.data())
def test_events_do_not_depend_on_how_the_bytes_are_split(
    lines: list[tuple[bytes, bytes]], whole: bool, data: st.DataObject
) -> None:
    text = b"".join(line + end for line, end in lines)
    if not whole:
        text = text[: data.draw(st.integers(0, len(text)))]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=len(text))))
    portions = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parse(*portions) == parse(text)
    assert parse(*(text[i : i + 1] for i in range(len(text)))) == parse(text)


def test_the_fast_path_does_not_depend_on_how_the_bytes_are_split() -> None:
    text = b'event: one\ndata: {"a":1}\n\ndata: [2]\n\n: ping\n\nevent: three\n\ndata: 4\ndata: 5\n\n\n\ndata:6\n\n'
    text += b"data: 7\n\n"
    events = [
        ("one", b'{"a":1}'),
        ("message", b"[2]"),
        ("message", b"4\n5"),
        ("message", b"6"),
        ("message", b"7"),
    ]
    assert parse(text) == events
    for first in range(len(text)):
        for second in range(first, len(text)):
            assert parse(text[:first], text[first:second], text[second:]) == events


def test_an_event_passes_up_to_the_size_limit() -> None:
    parser = EventParser(1000)
    assert len(parser.feed(b"data: " + b"x" * 900 + b"\n\n" + b"data: 1\n\n" * 500)) == 501
    portions = [b"data: " + b"y" * 100 + b"\n"] * 100
    with pytest.raises(AnswerTooLarge):
        list(map(parser.feed, portions))
    with pytest.raises(AnswerTooLarge):
        EventParser(1000).feed(b"z" * 1001)


def test_events_are_streamed_over_a_socket() -> None:
    async def main() -> None:
        parts = [b"data: a\n", b"\ndata: \xe2", b"\x82\xac\n\n: ping\n\n", b"event: end\ndata: z\n\n"]
        async with serving(talking(STREAM_HEAD, *map(chunk, parts), b"0\r\n\r\n")) as url, client() as http:
            stream = await http.stream("POST", url, body=b"x")
            events = []
            while batch := await stream.next_events():
                events += batch
            await stream.aclose()
        assert stream.status == 200 and stream.headers["content-type"] == "text/event-stream"
        assert events == [("message", b"a"), ("message", "€".encode()), ("end", b"z")]

    asyncio.run(main())


def test_a_stream_that_is_cut_raises() -> None:
    async def main() -> None:
        async with (
            serving(talking(STREAM_HEAD, chunk(b"data: 1\n\n"), b"ff\r\ndata")) as url,
            client() as http,
        ):
            stream = await http.stream("POST", url, body=b"x")
            await stream.next_events()
            assert (await failure_of(stream.next_events())).stage == "answer"
            await stream.aclose()

    asyncio.run(main())


def test_an_endless_event_is_given_up_over_a_socket_too() -> None:
    async def main() -> None:
        endless = [chunk(b"data: " + b"x" * 1000 + b"\n")] * 20
        async with serving(talking(STREAM_HEAD, *endless)) as url, client(event_bytes_max=5000) as http:
            stream = await http.stream("POST", url, body=b"x")
            with pytest.raises(AnswerTooLarge):
                await stream.next_events()
            await stream.aclose()

    asyncio.run(main())


def test_the_body_of_a_stream_can_be_read_as_a_whole() -> None:
    async def main() -> None:
        async with serving(talking(OK)) as url, client() as http:
            stream = await http.stream("GET", url)
            assert await stream.read() == b"ok"
            await stream.aclose()

    asyncio.run(main())


SENT_UNTIL = {"nothing": (), "headers": (STREAM_HEAD,), "a part": (STREAM_HEAD, chunk(b"data: 1\n\n"))}


@BODIES
@pytest.mark.parametrize("sent", SENT_UNTIL.values(), ids=SENT_UNTIL.keys())
@pytest.mark.parametrize("way", ["request", "stream"])
def test_closing_the_client_wakes_tasks_that_wait_for_a_body(
    way: str, sent: tuple[bytes, ...], body: bytes | None
) -> None:
    """aiohttp closes the socket of a body, but does not wake the task that waits for it."""

    async def main() -> None:
        arrived = asyncio.Event()

        async def talk(reader: StreamReader, writer: StreamWriter) -> None:
            await answer(reader, writer, *sent)
            arrived.set()
            await reader.read()

        async def stream(http: HttpClient, url: str) -> None:
            answered = await http.stream("POST", url, body=body)
            while await answered.next_events():
                pass

        async with serving(talk) as url, client() as http:
            work = http.request("POST", url, body=body) if way == "request" else stream(http, url)
            task = asyncio.ensure_future(work)
            await arrived.wait()
            for _ in range(20):  # until it waits at the place where it would wait forever
                await asyncio.sleep(0)
            await http.close()
            async with asyncio.timeout(5):
                with pytest.raises(ClosedHere):
                    await task

    asyncio.run(main())


def test_closing_the_client_raises_the_same_error_at_any_turn_of_the_loop() -> None:
    """If a reader is woken without data while the client is closed, aiohttp raises a bare RuntimeError."""

    async def main(turns: int) -> None:
        go_on = asyncio.Event()

        async def talk(reader: StreamReader, writer: StreamWriter) -> None:
            await answer(reader, writer, STREAM_HEAD, chunk(b"data: 1\n\n").removesuffix(b"\r\n"))
            await go_on.wait()
            writer.write(b"\r\n")
            await reader.read()

        async with serving(talk) as url, client() as http:
            answered = await http.stream("POST", url, body=b"x")
            assert [event.data for event in await answered.next_events()] == [b"1"]
            task = asyncio.ensure_future(answered.next_events())
            go_on.set()
            for _ in range(turns):
                await asyncio.sleep(0)
            await http.close()
            with pytest.raises(ClosedHere):
                await task

    for turns in range(12):
        asyncio.run(main(turns))
