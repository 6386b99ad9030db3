"""The loop over an event stream that all adapters share, and the base class of their readers.

A vendor's reader decides what an event means. Events are decoded strictly, which is fast. If that fails, the event is
decoded again leniently (`loose`), and so are all later events of that stream. An event without content counts as a
keep-alive, whatever its form. `[DONE]` ends a stream in every format, and so does a stop reason: after it the reader
waits a moment for the usage, and the stream is complete even if the connection breaks.

Two mistakes have to be avoided here, and pull in opposite directions. A stream that was cut must not look complete,
because the caller would use half an answer as a whole one. A complete stream must not look cut, because the caller
would get an error in place of an answer that was paid for.
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
from koo.ai.providers.loose import NOT_JSON, Halves, fit, in_utf8, loads, whole_text
from koo.ai.providers.openai_errors import read_error
from koo.ai.providers.transport import UNREADABLE, Wire, complete_usage, estimate_usage, kind_of_document
from koo.ai.types import Usage
from koo.errors import ExternalServiceError
from koo.hidden import Sent
from koo.http.client import HttpStream
from koo.http.connector import TransportError
from koo.http.events import DOCUMENT, EVENTS_AT_ONCE, PORTION_BYTES, EventParser, ServerSentEvent

USAGE_WAIT_S = 1.0
"""How long to wait for the usage after a stop reason. Servers send it immediately or not at all."""
GOES_ON_WITHIN_S = 5.0
"""How long to wait for the next piece from a server that sends a stop reason with every piece."""
NO_REASON = frozenset({None, "", "null"})
"""Stop reasons of a piece that is not the last. Some servers write null as a text."""

_PING = re.compile(
    rb"\s*(:.*|[\[(<]*(ping|pong|keep.?alive|heart.?beat|processing|waiting)[\])>.!]*)?\s*",
    re.IGNORECASE | re.DOTALL,
)
_DONE = re.compile(r"\W*(done|end)\W*", re.IGNORECASE)

NO_EVENT = ServerSentEvent("", b"")
AGAIN = CompletionChunk()
"""Returned in place of a piece if its event has to be read again, leniently."""

Decoder = msgspec.json.Decoder[Any]


class Reader(ABC):
    """Turns the events of one stream into pieces.

    `_begun` is True once the provider has done billable work; `_texts` is the text so far. `shapes` maps the names of
    events to their decoders; "" is for events without a name. `stop_reason` is set once the model has stopped, and
    `usage_wait_s` limits the wait for the usage after that.
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
        self._start_text = ""  # text that the start of a block or message contained
        self.stop_reason: str | None = None
        self.waits_until: float | None = None

    @abstractmethod
    def read(self, event: ServerSentEvent) -> CompletionChunk | None:
        """Return a piece, or None for an event without content. Raises `ExternalServiceError` or an `UNREADABLE`."""

    @abstractmethod
    def take(self, name: str, told: Any, data: bytes) -> CompletionChunk | None:
        """Return the piece for a decoded event of this name. Raises `ExternalServiceError`."""

    def read_leniently(self, event: ServerSentEvent) -> CompletionChunk | None:
        """Like `read`, for a stream with an event that could not be decoded. Raises `ExternalServiceError`."""
        piece: CompletionChunk | None = AGAIN
        with suppress(*UNREADABLE):
            piece = self.read(event)
        # This is outside of `suppress`, so that errors raised here do not carry the decoder's error, which quotes the
        # response.
        if piece is AGAIN:
            piece = self._reread(event)
        # From the first odd event on, every piece passes through `Halves`: a server that cuts JSON into invalid pieces
        # also cuts characters in half, and both halves arrive as separate pieces.
        halves = self._halves = self._halves or Halves()
        return piece if piece is None else _joined(piece, halves)

    def finish(self) -> CompletionChunk | None:
        """The connection ended without an end event: return the last piece, or None if the stream was cut."""
        if self.stop_reason is None:
            return None
        return self._final() if self._halves is None else _joined(self._final(), self._halves)

    def _reread(self, event: ServerSentEvent) -> CompletionChunk | None:
        document = loads(in_utf8(event.data, self.headers))
        if document is NOT_JSON:
            return self._read_word(event.data)
        if isinstance(document, str) and _DONE.fullmatch(document):
            return self._done()
        if isinstance(document, list) and len(document) == 1:
            document = document[0]
        if event.event == "error" and isinstance(document, str):
            raise self._error(read_error(200, self.headers, event.data))
        if not isinstance(document, dict) or not document:
            return None
        # Proxies drop or rename `event:` lines, so the document's own type is the second source. An event without a
        # name is called "message" by the standard.
        name = event.event
        if name == "message" or name not in self.shapes:
            name = document.get("type", "")
        if not isinstance(name, str) or name not in self.shapes:
            name = ""
        decoder = self.shapes.get(name)
        if decoder is None:
            return None
        told = fit(document, decoder.type)
        return None if told is None else self.take(name, told, event.data)

    def _read_word(self, data: bytes) -> CompletionChunk | None:
        """Read an event that is not JSON: a keep-alive, an end, or an error."""
        data = Sent(data.strip().removeprefix(b"data:"))
        if _PING.fullmatch(data):
            return None
        if _DONE.fullmatch(data.decode("latin-1")):
            return self._done()
        raise self.wire.unreadable(kind_of_document({}, data))

    def _done(self) -> CompletionChunk:
        """Return the last piece after `[DONE]`. Raises `ExternalServiceError`."""
        # Gateways send `[DONE]` even if the server behind them died before its first token. If that were reported as
        # complete, the caller would get an empty answer without any error.
        if not any(self._texts) and self.stop_reason is None:
            raise self.wire.unfinished("it ended without an answer")
        return self._final()

    def _final(self) -> CompletionChunk:
        """Return the last piece. Raises `ExternalServiceError` if there is no text and no reason for that."""
        # This uses `any`, because a piece may be empty: a list of empty texts is not an answer either.
        if not any(self._texts) and not self._written and is_silent(self.stop_reason):
            raise self.wire.unfinished("it ended without an answer")
        usage = None if self._usage_told else estimate_usage(self.request, "".join(self._texts))
        return CompletionChunk(final=True, usage=usage, stop_reason=self.stop_reason)

    def _stops(self, reason: str | None, said: str) -> None:
        """Note the stop reason of a piece with this text, if it has one."""
        # Some servers send a stop reason with every piece, or before the first text. The usual second would then cut
        # off an answer whose pieces arrive more slowly. If the first piece already has a reason, or text follows after
        # one, the server is of that kind.
        if reason in NO_REASON:
            reason = None
        is_early = self.stop_reason is None and not self._texts and (bool(said) or is_silent(reason))
        if (reason is not None and is_early) or (said and self.stop_reason is not None):
            self.usage_wait_s, self.waits_until = GOES_ON_WITHIN_S, None
        self.stop_reason = reason or self.stop_reason

    def _failed_end(self) -> ExternalServiceError | None:
        """The error that the stop reason means, if any."""
        if self.stop_reason in OUTCOMES:
            return None
        parsed = failure_of(self.stop_reason)
        return None if parsed is None else self.wire.error(parsed, billable=True)

    def _after_start(self, text: str) -> str:
        """The first delta's text after a start that contained text itself."""
        # Some servers put the first words into the start and continue in the deltas; others send the complete text in
        # the start and again in the deltas. If the start begins with this delta's text, it is a repetition.
        start, self._start_text = self._start_text, ""
        return text if start.startswith(text) else start + text

    def _take_start(self) -> str:
        """The text of a start that no delta has repeated."""
        text, self._start_text = self._start_text, ""
        if text:
            self._texts.append(text)
        return text

    def _rest_of(self, text: str) -> str:
        """The part of a complete text that has not arrived in pieces; "" if the text contradicts the pieces."""
        seen = "".join(self._texts)
        return text[len(seen) :] if text.startswith(seen) else ""

    def _skip(self, data: bytes) -> None:
        """Skip a document with none of the format's fields. Raises `ExternalServiceError` if it is an error."""
        parsed = read_error(200, self.headers, data)
        if parsed.shaped:
            raise self._error(parsed)

    def _error(self, parsed: ParsedError) -> ExternalServiceError:
        # An error as the first event is a refused request, which is not billed. After that the provider has read the
        # prompt, and charges for it.
        return self.wire.error(parsed, billable=self._begun)


async def read_stream(
    wire: Wire, path: str, body: bytes, request: Request, make_reader: type[Reader]
) -> AsyncGenerator[CompletionChunk, None]:
    """Send once and yield the pieces up to the final one.

    Closing the generator early closes the connection, which makes the provider stop. Raises `ExternalServiceError`.
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
                # This is not inside the `except`: the decoder's error quotes the response. It would become the
                # `__context__` of every error raised there, and a traceback in a log would print what the model wrote.
                if piece is AGAIN:
                    piece = read(event)
                if piece is not None:
                    # This is set before `yield`: a caller that stops after the final piece closes the generator there,
                    # and `finally` may then read the rest and keep the connection.
                    ended = piece.final
                    yield piece
                    # The piece comes first: it carries the usage, which has to be settled although the call failed.
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
    """The error for a stream without an end: it was cut off, or the response was not a stream at all."""
    # The form of what arrived decides. The content type counts only if nothing arrived, because many servers label
    # streams as JSON. The difference matters to an operator: a cut stream points to the network or the provider, a web
    # page usually to a wrong BASE_URL or a proxy.
    labelled = any(kind in headers.get("content-type", "") for kind in ("json", "html"))
    if last.event == DOCUMENT or (last is NO_EVENT and labelled):
        return wire.unreadable(f"not an event stream, but {kind_of_document(headers, last.data)}")
    return wire.unfinished()


async def _rest(stream: HttpStream, reader: Reader) -> list[ServerSentEvent]:
    """The events after the stop reason; none if they do not arrive soon, or if the connection breaks."""
    # The answer is complete here. So a broken connection is no longer an error, and one deadline covers all events:
    # with a new timeout for each of them, a server that sends keep-alives would hold the call open for good.
    if reader.waits_until is None:
        reader.waits_until = asyncio.get_running_loop().time() + reader.usage_wait_s
    try:
        async with asyncio.timeout_at(reader.waits_until):
            return await stream.next_events()
    except (TimeoutError, TransportError):
        return []


async def read_events(reader: Reader, body: bytes) -> Completion:
    """Read a complete stream that arrived although none was requested. Raises `ExternalServiceError`."""
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
        tier=next((piece.tier for piece in reversed(pieces) if piece.tier is not None), None),
        units=next((piece.units for piece in reversed(pieces) if piece.units is not None), None),
        pace=next((piece.pace for piece in pieces if piece.pace), ()),
    )


def _joined(piece: CompletionChunk, halves: Halves) -> CompletionChunk:
    """The piece with the halves of split characters joined."""
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
