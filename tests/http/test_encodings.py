"""Bodies that arrive compressed although koo did not ask for it: which are read, and which cost only the body."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Callable

import pytest

from koo.http.client import HttpResponse
from koo.http.connector import AnswerTooLarge, TransportError
from tests.http.test_client import STREAM_HEAD, chunk, client, serving, talking

BODY = b'{"answer": "Paris."}'
GIBBERISH = b"\x0b\x02\x80hello\x03"


def bare_deflate(body: bytes) -> bytes:
    """Deflate without zlib's header, which some servers send because they misread the standard."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


def in_two_parts(body: bytes) -> bytes:
    return gzip.compress(body[:5]) + gzip.compress(body[5:])


def in_zlib(body: bytes) -> bytes:
    return zlib.compress(body)


def reply(label: str, body: bytes, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-encoding: {label}\r\nretry-after: 7\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def asked(answer: bytes, **options: int) -> HttpResponse:
    async def main() -> HttpResponse:
        async with serving(talking(answer)) as url, client(**options) as http:
            return await http.request("POST", url, body=b"{}")

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("label", "pack"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("gzip, identity", gzip.compress),
        ("deflate", zlib.compress),
        ("x-deflate", zlib.compress),
        ("deflate", bare_deflate),
        ("gzip, deflate", lambda body: zlib.compress(gzip.compress(body))),
        ("gzip", in_two_parts),
        ("gzip", in_zlib),
        # A wrong label does not matter.
        ("gzip", bytes),
        ("br", bytes),
        ("identity", bytes),
        ("utf-8", bytes),
        ("", bytes),
    ],
)
def test_gzip_and_deflate_are_decompressed_under_all_their_names(
    label: str, pack: Callable[[bytes], bytes]
) -> None:
    assert asked(reply(label, pack(BODY))).body == BODY


@pytest.mark.parametrize("status", ["200 OK", "429 Too Many Requests"])
def test_a_gzip_body_is_recognised_without_its_label(status: str) -> None:
    assert asked(reply("identity", gzip.compress(BODY), status)).body == BODY


def test_the_size_limit_applies_to_a_body_without_its_label_too() -> None:
    packed = gzip.compress(b"[" + b"0," * 5_000_000 + b"0]")
    with pytest.raises(AnswerTooLarge):
        asked(reply("identity", packed), answer_bytes_max=1_000_000)


@pytest.mark.parametrize("label", ["br", "zstd", "compress", "gzip, br", "gzip", "deflate"])
def test_an_error_response_keeps_its_status_and_headers_if_its_body_is_unreadable(label: str) -> None:
    answer = asked(reply(label, GIBBERISH, "429 Too Many Requests"))
    assert (answer.status, answer.headers["retry-after"], answer.body) == (429, "7", b"")


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("br", "the response is compressed as br, which koo did not ask for"),
        ("gzip", "the response cannot be decompressed as gzip"),
    ],
)
def test_an_unreadable_success_says_why(label: str, reason: str) -> None:
    with pytest.raises(TransportError) as caught:
        asked(reply(label, GIBBERISH))
    assert (caught.value.stage, caught.value.reason) == ("answer", reason)


def test_the_size_limit_applies_to_the_decompressed_body() -> None:
    packed = gzip.compress(b"[" + b"0," * 5_000_000 + b"0]")
    assert len(packed) < 20_000
    with pytest.raises(AnswerTooLarge):
        asked(reply("gzip", packed), answer_bytes_max=1_000_000)


@pytest.mark.parametrize(
    "label", [b"content-encoding: x-gzip\r\n", b""], ids=["labelled", "without its label"]
)
def test_a_compressed_event_stream_is_read_as_it_arrives(label: bytes) -> None:
    """The first event is returned before the second one is sent."""
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    first = packer.compress(b"data: 1\n\n") + packer.flush(zlib.Z_SYNC_FLUSH)
    second = packer.compress(b"data: 2\n\n") + packer.flush()
    head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\n" + label + b"\r\n")

    async def main() -> None:
        went_on = asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head + chunk(first))
            await went_on.wait()
            writer.write(chunk(second) + b"0\r\n\r\n")
            await writer.drain()

        async with serving(talk) as url, client() as http:
            stream = await http.stream("POST", url, body=b"")
            assert await stream.next_events() == [("message", b"1")]
            went_on.set()
            assert await stream.next_events() == [("message", b"2")]
            assert await stream.next_events() == []
            await stream.aclose()

    asyncio.run(main())
