"""What a provider may send, however mad: bounded in bytes, in parts, in layers and in patience."""

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
def test_a_document_of_more_parts_than_an_answer_has_is_not_decoded(body: bytes) -> None:
    async def main() -> None:
        error = await failure_of(answered(whole(body)))
        assert error.stage == "answer" and "objects and lists" in error.reason

    asyncio.run(main())


def test_a_document_is_bounded_by_a_few_megabytes() -> None:
    async def main() -> None:
        text = whole(b'{"text":"' + b"a" * (ANSWER_BYTES_MAX - 100) + b'"}')
        assert len((await answered(text)).body) > ANSWER_BYTES_MAX - 100
        error = await failure_of(answered(whole(b"a" * (ANSWER_BYTES_MAX + 1))))
        assert isinstance(error, AnswerTooLarge)

    asyncio.run(main())


def test_an_event_of_more_parts_than_an_answer_has_is_not_decoded() -> None:
    async def main() -> None:
        for event in (b"data: " + DENSE + b"\n\n", DENSE + b"\n"):
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
            async with serving(talking(head, event)) as url, client() as http:
                stream = await http.stream("POST", url, body=b"x")
                error = await failure_of(stream.next_events())
                await stream.aclose()
                assert "objects and lists" in error.reason

    asyncio.run(main())


def test_interim_answers_are_passed_over_and_counted() -> None:
    interim = b"HTTP/1.1 102 Processing\r\n\r\n"

    async def main() -> None:
        assert (await answered(interim * INTERIM_MAX + OK)).body == b"ok"
        error = await failure_of(answered(interim * (INTERIM_MAX + 1) + OK))
        assert error.stage == "answer" and "interim responses" in error.reason

    asyncio.run(main())


def test_layers_of_encodings_are_bounded_and_cost_the_body_alone() -> None:
    async def main() -> None:
        body = b"x"
        for _ in range(LAYERS_MAX):
            body = gzip.compress(body)
        label = b"content-encoding: " + b", ".join([b"gzip"] * LAYERS_MAX)
        assert (await answered(whole(body, label))).body == b"x"
        error = await failure_of(answered(whole(gzip.compress(body), label + b", gzip")))
        assert error.stage == "answer" and "several encodings" in error.reason

    asyncio.run(main())


def test_what_unpacks_to_nothing_for_ever_is_given_up() -> None:
    """Empty blocks of deflate, packed once more: a few kilobytes that keep a processor busy for minutes."""
    empty = b"\x00\x00\x00\xff\xff" * 2_000_000
    packed = zlib.compress(b"\x78\x9c" + empty)

    async def main() -> None:
        error = await failure_of(answered(whole(packed, b"content-encoding: deflate, deflate")))
        assert "compressed but empty" in error.reason

    asyncio.run(main())


def test_a_document_that_never_ends_is_not_read_for_each_line_that_could_end_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[bytes] = []
    monkeypatch.setattr("koo.http.strays.is_whole", read.append)
    strays = Strays()
    for line in [b'{"a": [1,', *[b"}"] * 1000]:
        assert strays.take(line) == []
    assert len(read) == TRIES_MAX


def test_a_large_document_that_never_ends_is_read_a_few_times_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[bytes] = []
    monkeypatch.setattr("koo.http.strays.is_whole", read.append)
    strays = Strays()
    for line in [b'{"a": "' + b"a" * (TRIED_BYTES_MAX * 2 // 5), *[b"}"] * 1000]:
        strays.take(line)
    assert len(read) == 3


def test_a_list_of_very_many_chunks_is_left_in_one_piece() -> None:
    few, many = (b"[" + b"{}," * number + b"{}]" for number in (STRAY_PARTS_MAX - 2, STRAY_PARTS_MAX))
    assert len(Strays().take(few)) == STRAY_PARTS_MAX - 1
    strays = Strays()
    assert strays.take(many) == [] and strays.finish() == [many]


def test_an_event_has_fewer_lines_than_would_keep_the_loop() -> None:
    with pytest.raises(TransportError, match="lines"):
        EventParser().feed(b"data: {}\n" * (LINES_MAX + 1) + b"\n")


class AtOnce:
    """A reply whose whole body has come already, and its content."""

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
def test_what_comes_at_once_in_a_stream_is_read_portion_by_portion(body: bytes) -> None:
    """Counted: turns of the loop, and events of one of them."""

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


def test_large_answers_that_come_at_once_are_bounded_together_and_small_ones_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is over the bound is ours, and what was counted is given back, however an answer ends."""
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
