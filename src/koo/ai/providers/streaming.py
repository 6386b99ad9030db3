"""The one loop over a stream of events that all adapters share, and what their readers keep while it runs.

What an event means is up to the vendor's reader. It is read strictly, which is fast; an event that fails that is read
once more leniently (`loose`), and from then on so is each event of that stream. An event without content is a
keep-alive, whatever its form. `[DONE]` is an end in every format, and so is a stop reason: after that the stream waits
a moment for its usage, and is complete whatever the connection does.
"""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar

import msgspec

from koo.ai.providers.base import Completion, CompletionChunk, Request
from koo.ai.providers.ends import OUTCOMES, failure_of, is_silent
from koo.ai.providers.faults import ParsedError
from koo.ai.providers.loose import NOT_JSON, Halves, fit, loads, whole_text
from koo.ai.providers.transport import UNREADABLE, Wire, complete_usage, estimate_usage, kind_of_document
from koo.ai.types import Usage
from koo.errors import ExternalServiceError
from koo.hidden import Sent
from koo.http.client import HttpStream
from koo.http.connector import TransportError
from koo.http.events import DOCUMENT, EVENTS_AT_ONCE, PORTION_BYTES, EventParser, ServerSentEvent

USAGE_WAIT_S = 1.0
"""A stream's usage follows its stop reason at once, or not at all."""

_PING = re.compile(
    rb"\s*(:.*|[\[(<]*(ping|pong|keep.?alive|heart.?beat|processing|waiting)[\])>.!]*)?\s*",
    re.IGNORECASE | re.DOTALL,
)
_DONE = re.compile(r"\W*(done|end)\W*", re.IGNORECASE)

NO_EVENT = ServerSentEvent("", b"")
AGAIN = CompletionChunk()
"""In place of the piece that an event is which has to be read leniently."""

Decoder = msgspec.json.Decoder[Any]


class Reader(ABC):
    """Events of one stream → pieces. `_begun` is True once the provider has worked; `_texts` has arrived so far.

    `shapes`: what events are decoded to, by their names; "" is for events without one. `stop_reason`: why the model
    stopped, once it has; `usage_wait_s`: how long its usage is then waited for.
    """

    shapes: ClassVar[Mapping[str, Decoder]]
    usage_wait_s = USAGE_WAIT_S

    def __init__(self, wire: Wire, headers: Mapping[str, str], request: Request) -> None:
        self.wire = wire
        self.headers = headers
        self.request = request
        self._texts: list[str] = []
        self._begun = self._usage_told = self._written = False
        self._halves: Halves | None = None
        self._start_text = ""  # what stood in the start of a block or message
        self.stop_reason: str | None = None
        self.waits_until: float | None = None

    @abstractmethod
    def read(self, event: ServerSentEvent) -> CompletionChunk | None:
        """A piece, or None for an event without content. Raises `ExternalServiceError`, or one of `UNREADABLE`."""

    @abstractmethod
    def take(self, name: str, told: Any, data: bytes) -> CompletionChunk | None:
        """The piece that an event of this name is, decoded to its shape. Raises `ExternalServiceError`."""

    def read_leniently(self, event: ServerSentEvent) -> CompletionChunk | None:
        """As `read`, for a stream in which something was odd. Raises `ExternalServiceError`."""
        piece: CompletionChunk | None = AGAIN
        with suppress(*UNREADABLE):
            piece = self.read(event)
        if piece is AGAIN:
            piece = self._reread(event)
        halves = self._halves = self._halves or Halves()
        return piece if piece is None else _joined(piece, halves)

    def finish(self) -> CompletionChunk | None:
        """The stream has ended without an end of its own: the last piece, or None if it was cut."""
        if self.stop_reason is None:
            return None
        return self._final() if self._halves is None else _joined(self._final(), self._halves)

    def _reread(self, event: ServerSentEvent) -> CompletionChunk | None:
        document = loads(event.data)
        if document is NOT_JSON:
            return self._read_word(event.data)
        if isinstance(document, str) and _DONE.fullmatch(document):
            return self._done()
        if not isinstance(document, dict) or not document:
            return None
        name = event.event
        if name == "message" or name not in self.shapes:  # the first is what all are called that have no name
            name = document.get("type", "")
        if not isinstance(name, str) or name not in self.shapes:
            name = ""
        decoder = self.shapes.get(name)
        if decoder is None:
            return None
        told = fit(document, decoder.type)
        return None if told is None else self.take(name, told, event.data)

    def _read_word(self, data: bytes) -> CompletionChunk | None:
        """An event that is not JSON."""
        data = Sent(data.strip().removeprefix(b"data:"))
        if _PING.fullmatch(data):
            return None
        if _DONE.fullmatch(data.decode("latin-1")):
            return self._done()
        raise self.wire.unreadable(kind_of_document({}, data))

    def _done(self) -> CompletionChunk:
        """`[DONE]`, which ends a stream in every format, and the last piece. Raises `ExternalServiceError`."""
        if not self._texts and self.stop_reason is None:
            raise self.wire.unfinished("it ended without an answer")
        return self._final()

    def _final(self) -> CompletionChunk:
        """The last piece. Raises `ExternalServiceError` if there is no text, and nothing explains why."""
        if not self._texts and not self._written and is_silent(self.stop_reason):
            raise self.wire.unfinished("it ended without an answer")
        usage = None if self._usage_told else estimate_usage(self.request, "".join(self._texts))
        return CompletionChunk(final=True, usage=usage, stop_reason=self.stop_reason)

    def _failed_end(self) -> ExternalServiceError | None:
        """The error that the stop reason names."""
        if self.stop_reason in OUTCOMES:
            return None
        parsed = failure_of(self.stop_reason)
        return None if parsed is None else self.wire.error(parsed, billable=True)

    def _after_start(self, text: str) -> str:
        """The first delta after a start with a text, which may be the first words, or all of them beforehand."""
        start, self._start_text = self._start_text, ""
        return text if start.startswith(text) else start + text

    def _take_start(self) -> str:
        """The text of a start, where no delta has brought it."""
        text, self._start_text = self._start_text, ""
        if text:
            self._texts.append(text)
        return text

    def _rest_of(self, text: str) -> str:
        """The part of a whole text that did not arrive in pieces before."""
        seen = "".join(self._texts)
        return text[len(seen) :] if text.startswith(seen) else ""

    def _error(self, parsed: ParsedError) -> ExternalServiceError:
        # As the very first event it stands for a refusal, which is not billed; later the prompt has been read.
        return self.wire.error(parsed, billable=self._begun)


async def read_stream(
    wire: Wire, path: str, body: bytes, request: Request, make_reader: type[Reader]
) -> AsyncGenerator[CompletionChunk, None]:
    """Send once; the pieces up to the final one. Leaving early closes the connection: so the provider knows, and stops.

    Raises `ExternalServiceError`.
    """
    stream = await wire.open(path, body, request)
    reader = make_reader(wire, stream.headers, request)
    read, ended, event = reader.read, False, NO_EVENT
    try:
        while batch := await (stream.next_events() if reader.stop_reason is None else _rest(stream, reader)):
            for event in batch:
                try:
                    piece = read(event)
                except UNREADABLE:
                    read, piece = reader.read_leniently, AGAIN
                if (
                    piece is AGAIN
                ):  # not above: that error may quote the answer, and would stay behind each of ours
                    piece = read(event)
                if piece is not None:
                    ended = piece.final
                    yield piece
                    if piece.error is not None:
                        raise piece.error
                    if ended:
                        return
        last = reader.finish()
        if last is None:
            raise _cut(wire, stream.headers, event)
        yield last
    except TransportError as error:
        raise wire.broken(error) from error
    finally:
        await stream.aclose(read_out=ended)


def _cut(wire: Wire, headers: Mapping[str, str], last: ServerSentEvent) -> ExternalServiceError:
    """A stream without an end; or a document without an answer, by its form or, if nothing arrived, by its label."""
    labelled = any(kind in headers.get("content-type", "") for kind in ("json", "html"))
    if last.event == DOCUMENT or (last is NO_EVENT and labelled):
        return wire.unreadable(f"not an event stream, but {kind_of_document(headers, last.data)}")
    return wire.unfinished()


async def _rest(stream: HttpStream, reader: Reader) -> list[ServerSentEvent]:
    """What follows the stop reason: nothing more if it does not come soon, or the connection breaks."""
    if reader.waits_until is None:
        reader.waits_until = asyncio.get_running_loop().time() + reader.usage_wait_s
    try:
        async with asyncio.timeout_at(reader.waits_until):
            return await stream.next_events()
    except (TimeoutError, TransportError):
        return []


async def read_events(reader: Reader, body: bytes) -> Completion:
    """A whole stream that came instead of an answer. Raises `ExternalServiceError`."""
    pieces: list[CompletionChunk] = []
    parser = EventParser(len(body))
    portions = [body[begin : begin + PORTION_BYTES] for begin in range(0, len(body), PORTION_BYTES)]
    for portion in (*portions, b""):
        for number, event in enumerate(parser.feed(portion) if portion else parser.finish(), 1):
            if number % EVENTS_AT_ONCE == 0:
                await asyncio.sleep(0)
            piece = reader.read_leniently(event)
            if piece is not None:
                pieces.append(piece)
                if piece.error is not None:
                    raise piece.error
                if piece.final:
                    return _gathered(reader, pieces)
        await asyncio.sleep(0)
    last = reader.finish()
    if last is None:
        raise reader.wire.unfinished()
    return _gathered(reader, [*pieces, last])


def _gathered(reader: Reader, pieces: list[CompletionChunk]) -> Completion:
    text = "".join(piece.text for piece in pieces if not piece.reasoning)
    request = reader.request
    usage: Usage | None = None
    for piece in pieces:
        if piece.usage is not None and not piece.usage.estimated:
            usage = piece.usage if usage is None else usage.grown(piece.usage)
    return Completion(
        text=text,
        model=next((piece.model for piece in pieces if piece.model), request.model),
        usage=complete_usage(usage or Usage(), request, text),
        stop_reason=reader.stop_reason,
        request_id=next((piece.request_id for piece in pieces if piece.request_id), None),
        cost_usd=next((piece.cost_usd for piece in reversed(pieces) if piece.cost_usd is not None), None),
        pace=next((piece.pace for piece in pieces if piece.pace), ()),
    )


def _joined(piece: CompletionChunk, halves: Halves) -> CompletionChunk:
    """The piece with no half characters in it."""
    text = whole_text(piece.text) if piece.reasoning else halves.join(piece.text)
    if piece.final or piece.error is not None:
        text += halves.finish()
    return replace(
        piece,
        text=text,
        model=piece.model and whole_text(piece.model),
        request_id=piece.request_id and whole_text(piece.request_id),
        stop_reason=piece.stop_reason and whole_text(piece.stop_reason),
    )
