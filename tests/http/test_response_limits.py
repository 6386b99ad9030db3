"""Limits on what a faulty provider may send: bytes, objects, layers of encodings, and work."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import ClassVar

import pytest

from koo.http.client import ANSWER_BYTES_MAX, HttpClient, HttpResponse, HttpStream
from koo.http.coming import COMING, SMALL_BYTES
from koo.http.connector import PARTS_MAX, AnswerTooLarge, ShortHere, TransportError
from koo.http.encodings import LAYERS_MAX
from koo.http.events import EVENTS_AT_ONCE, LINES_MAX, PORTION_BYTES, EventParser
from koo.http.prepared import INTERIM_MAX
from koo.http.strays import STRAY_PARTS_MAX, TRIED_BYTES_MAX, TRIES_MAX, Strays
from koo.testing.polling import until
from tests.http.test_client import OK, answer, client, failure_of, serving, talking

DENSE = b'{"choices":[' + b"{}," * (PARTS_MAX + 1) + b"{}]}"
COMMAS = b"[" + b"1," * (5 * PARTS_MAX + 1) + b"1]"


async def answered(*parts: bytes, body: bytes = b"x") -> HttpResponse:
    async with serving(talking(*parts)) as url, client() as http:
        return await http.request("POST", url, body=body)


def whole(body: bytes, *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 200 OK", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@pytest.mark.parametrize("body", [DENSE, COMMAS], ids=["objects", "values"])
def test_a_document_with_too_many_parts_is_not_decoded(body: bytes) -> None:
    async def main() -> None:
        error = await failure_of(answered(whole(body)))
        assert error.stage == "answer" and "objects and lists" in error.reason

    asyncio.run(main())


def test_a_body_is_limited_to_a_few_megabytes() -> None:
    async def main() -> None:
        text = whole(b'{"text":"' + b"a" * (ANSWER_BYTES_MAX - 100) + b'"}')
        assert len((await answered(text)).body) > ANSWER_BYTES_MAX - 100
        error = await failure_of(answered(whole(b"a" * (ANSWER_BYTES_MAX + 1))))
        assert isinstance(error, AnswerTooLarge)

    asyncio.run(main())


def test_an_event_with_too_many_parts_is_not_decoded() -> None:
    async def main() -> None:
        for event in (b"data: " + DENSE + b"\n\n", DENSE + b"\n"):
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
            async with serving(talking(head, event)) as url, client() as http:
                stream = await http.stream("POST", url, body=b"x")
                error = await failure_of(stream.next_events())
                await stream.aclose()
                assert "objects and lists" in error.reason

    asyncio.run(main())


def test_interim_responses_are_skipped_up_to_a_limit() -> None:
    interim = b"HTTP/1.1 102 Processing\r\n\r\n"

    async def main() -> None:
        assert (await answered(interim * INTERIM_MAX + OK)).body == b"ok"
        error = await failure_of(answered(interim * (INTERIM_MAX + 1) + OK))
        assert error.stage == "answer" and "interim responses" in error.reason

    asyncio.run(main())


def test_too_many_layers_of_encodings_cost_only_the_body() -> None:
    async def main() -> None:
        body = b"x"
        for _ in range(LAYERS_MAX):
            body = gzip.compress(body)
        label = b"content-encoding: " + b", ".join([b"gzip"] * LAYERS_MAX)
        assert (await answered(whole(body, label))).body == b"x"
        error = await failure_of(answered(whole(gzip.compress(body), label + b", gzip")))
        assert error.stage == "answer" and "several nested encodings" in error.reason

    asyncio.run(main())


def test_a_body_that_decompresses_to_nothing_is_given_up() -> None:
    """A few kilobytes of empty deflate blocks, compressed again, would keep a processor busy for minutes."""
    empty = b"\x00\x00\x00\xff\xff" * 2_000_000
    packed = zlib.compress(b"\x78\x9c" + empty)

    async def main() -> None:
        error = await failure_of(answered(whole(packed, b"content-encoding: deflate, deflate")))
        assert "compressed but empty" in error.reason

    asyncio.run(main())


def test_an_endless_document_is_not_parsed_for_each_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[bytes] = []
    monkeypatch.setattr("koo.http.strays.is_whole", read.append)
    strays = Strays()
    for line in [b'{"a": [1,', *[b"}"] * 1000]:
        assert strays.take(line) == []
    assert len(read) == TRIES_MAX


def test_a_large_endless_document_is_parsed_at_most_a_few_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[bytes] = []
    monkeypatch.setattr("koo.http.strays.is_whole", read.append)
    strays = Strays()
    for line in [b'{"a": "' + b"a" * (TRIED_BYTES_MAX * 2 // 5), *[b"}"] * 1000]:
        strays.take(line)
    assert len(read) == 3


def test_a_list_of_very_many_chunks_is_not_split() -> None:
    few, many = (b"[" + b"{}," * number + b"{}]" for number in (STRAY_PARTS_MAX - 2, STRAY_PARTS_MAX))
    assert len(Strays().take(few)) == STRAY_PARTS_MAX - 1
    strays = Strays()
    assert strays.take(many) == [] and strays.finish() == [many]


def test_the_lines_of_an_event_are_limited() -> None:
    with pytest.raises(TransportError, match="lines"):
        EventParser().feed(b"data: {}\n" * (LINES_MAX + 1) + b"\n")


class AtOnce:
    """A reply whose whole body has arrived already, and its content."""

    status = 200
    headers: ClassVar[dict[str, str]] = {}

    def __init__(self, body: bytes) -> None:
        self._left = [body, b""]
        self.content = self

    async def readany(self) -> bytes:
        return self._left.pop(0)


@pytest.mark.parametrize(
    "body",
    [b"data: 1\n\n" * 20_000, (b"data: {}\n" * 5_000 + b"\n") * 3, b"\n" * 200_000 + b"data: 1\n\n"],
    ids=["many events", "events without empty lines", "empty lines"],
)
def test_a_stream_that_arrives_in_one_piece_is_read_in_portions(body: bytes) -> None:
    """The test counts the turns of the loop and the events in each of them."""

    turns, most, count = 0, 0, 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main() -> None:
        nonlocal most, count
        turning = asyncio.create_task(turn())
        stream = HttpStream(AtOnce(body), HttpClient())  # type: ignore[arg-type]
        while events := await stream.next_events():
            most, count = max(most, len(events)), count + len(events)
        turning.cancel()

    asyncio.run(main())
    assert count == body.count(b"data") and most <= EVENTS_AT_ONCE
    assert turns >= max(len(body) // PORTION_BYTES, count // EVENTS_AT_ONCE)


def test_large_responses_share_a_memory_limit_and_small_ones_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exceeding the limit counts as koo's own shortage, and the counted bytes are released however a response ends."""
    half = 4 * SMALL_BYTES
    monkeypatch.setattr(COMING, "most", half + SMALL_BYTES)

    async def main() -> None:
        rest = asyncio.Event()

        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await answer(reader, writer, whole(b"a" * 2 * half)[: half + 100])
            await rest.wait()

        async with serving(slow) as url, client() as http:
            first = asyncio.create_task(http.request("POST", url, body=b"x"))
            await until(lambda: COMING.used > half - SMALL_BYTES)
            error = await failure_of(answered(whole(b"a" * half)))
            assert isinstance(error, ShortHere) and "already use the" in error.reason
            assert len((await answered(whole(b"a" * SMALL_BYTES))).body) == SMALL_BYTES
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            rest.set()
        assert COMING.used == 0
        assert len((await answered(whole(b"a" * half))).body) == half and COMING.used == 0

    asyncio.run(main())
