"""Parse server-sent events from a stream of bytes, and collect documents between them that are not events.

The HTML standard's rules are the base. Four deviations exist because servers in use need them; without each of them a
response that was paid for would be lost:

* the last event may lack its empty line (`finish`);
* events may lack the empty line between them (`_dispatch`);
* old llama.cpp servers send an `error:` field (`_take`);
* JSON or HTML outside of any event is reported as an event named `DOCUMENT` (`Strays`), because an error often arrives
  that way in the middle of a stream.

The server may be faulty or hostile. So every buffer has a limit, and no work grows with the square of what arrives.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from koo.hidden import Sent
from koo.http.connector import AnswerTooLarge, TransportError
from koo.http.strays import Strays, is_whole

EVENT_BYTES_MAX = 1024 * 1024
PORTION_BYTES = 8 * 1024
"""Bytes of a stream to parse before other tasks of the event loop run."""
EVENTS_AT_ONCE = 1000
"""Events to handle before other tasks run. Reading a malformed one takes up to 50 µs, so 1000 take 50 ms."""
LINES_MAX = 10_000
"""Data lines of one event; if the server leaves out the empty lines between events, the number of events."""
DOCUMENT = "document"
"""The event name for a document that is not an event."""
_EVENT = re.compile(rb"\{.*\}|\[DONE\]", re.DOTALL)
"""A line of data that is a complete event."""


class ServerSentEvent(NamedTuple):
    """One event: its name ("message" by default) and its data as UTF-8 bytes."""

    event: str
    data: bytes


class EventParser:
    """Server-sent events from bytes in portions of any size, by the rules of the HTML standard.

    A line ends with LF, CR or CRLF; an event ends with an empty line. Comments are not events, and neither is a block
    without data. Lines are split as bytes: the bytes of LF and CR never occur inside a UTF-8 character, so it does no
    harm if a portion ends in the middle of a character.
    """

    __slots__ = ("_after_cr", "_begun", "_bytes", "_bytes_max", "_data", "_event", "_strays", "_tail")

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._bytes_max = event_bytes_max
        self._tail: list[bytes] = []
        self._data: list[bytes] = []
        self._event = ""
        self._bytes = 0
        self._after_cr = False
        self._begun = False
        self._strays = Strays()

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Return the events that this portion completes. Raises `AnswerTooLarge`."""
        # A portion may end between the CR and the LF of one line end. The CR has already ended the line, because it may
        # be the last byte for a long time. If the LF then counted as a line of its own, that empty line would end an
        # event after its first line.
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._after_cr = False
        if not chunk:
            return []
        self._after_cr = chunk.endswith(b"\r")
        # This is an upper bound; `_measure` recounts once it passes the limit. If the buffers were counted for each
        # portion, the work for a long line in small portions would grow with the square of its length.
        self._bytes += len(chunk)
        events: list[ServerSentEvent] = []
        if b"\n\n" in chunk and b"\r" not in chunk and not (self._data or self._event):
            # The fast path, for what nearly all servers send: LF only, and events that end within the portion. It is
            # valid only between events: with lines of an unfinished event in `_data`, the first block would be its rest
            # and not an event. The tail does not prevent this, because it is joined in front.
            whole, _, rest = b"".join([*self._tail, chunk]).rpartition(b"\n\n")
            self._tail = [rest] if rest else []
            for block in whole.split(b"\n\n"):
                self._take_block(block, events)
        elif b"\n" in chunk or b"\r" in chunk:
            # The portions of a line are joined only once it ends. If they were joined on arrival, a line of 1 MiB in
            # portions of 1 KiB would be copied a thousand times.
            lines = b"".join([*self._tail, chunk]).splitlines(keepends=True)
            last = lines[-1]
            self._tail = [] if last.endswith((b"\n", b"\r")) else [lines.pop()]
            for line in lines:
                self._take(line.rstrip(b"\r\n"), events)
        else:
            self._tail.append(chunk)
        if self._bytes > self._bytes_max:
            self._measure()
        return events

    def finish(self) -> list[ServerSentEvent]:
        """Return what is left at the end of the stream: an event that lacks only its empty line, and stray documents.

        The standard drops an event without its empty line, but some servers end with `data: [DONE]` and a single LF, or
        none.
        """
        events: list[ServerSentEvent] = []
        # The fast path leaves several lines of an unfinished event in the tail. The last line may be incomplete.
        *lines, last = b"".join(self._tail).split(b"\n")
        self._tail = []
        for line in lines:
            self._take(line, events)
        if last:
            self._take(last, events)
        # The stream may have been cut inside the last line. Its data is an event only if it is complete: half a JSON
        # document would be reported as a malformed event, and hide that the connection broke.
        if not last or self._data[-1:] == [b"[DONE]"] or is_whole(b"\n".join(self._data)):
            self._dispatch(events)
        events += [ServerSentEvent(DOCUMENT, Sent(document)) for document in self._strays.finish()]
        return events

    def _take_block(self, block: bytes, events: list[ServerSentEvent]) -> None:
        """Read all lines of one event, with a shortcut for an event of just a name and one line of data."""
        name, data = "message", block
        if block.startswith(b"event: "):
            first, _, data = block.partition(b"\n")
            name = first[7:].decode("utf-8", "replace") or name
        if data.startswith(b"data: ") and b"\n" not in data:
            self._begun = True
            events.append(ServerSentEvent(name, Sent(data[6:])))
            return
        for line in block.split(b"\n"):
            self._take(line, events)
        self._dispatch(events)

    def _take(self, line: bytes, events: list[ServerSentEvent]) -> None:
        # A byte order mark may precede the stream, and only the stream: later the same bytes are text.
        if not self._begun:
            self._begun = True
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            self._dispatch(events)
            return
        name, _, value = line.partition(b":")
        value = value[1:] if value.startswith(b" ") else value
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"error":
            # This field is not in the standard. Old llama.cpp servers end a stream with it when the generation failed.
            # If it were ignored, the failure would look like a stream that was cut off.
            self._event = "error"
            self._data.append(value)
        elif name and self._strays.wants(line):
            events += [ServerSentEvent(DOCUMENT, Sent(document)) for document in self._strays.take(line)]

    def _dispatch(self, events: list[ServerSentEvent]) -> None:
        if len(self._data) > LINES_MAX:
            raise TransportError("answer", f"an event of the stream has more than {LINES_MAX} lines")
        if self._data:
            name = self._event or "message"
            if len(self._data) == 1:
                events.append(ServerSentEvent(name, Sent(self._data[0])))
            elif all(map(_EVENT.fullmatch, self._data)):
                # Some servers leave out the empty line between events. By the standard these lines are one event, whose
                # data is several JSON documents and cannot be decoded. Only split if every line is complete: a JSON
                # document that is spread over several data lines must stay in one piece.
                events += [ServerSentEvent(name, Sent(data)) for data in self._data]
            else:
                events.append(ServerSentEvent(name, Sent(b"\n".join(self._data))))
            self._data = []
        self._event = ""

    def _measure(self) -> None:
        """Recount the bytes that are still buffered. `_bytes` also contains those of events already returned."""
        self._bytes = sum(map(len, self._tail)) + sum(map(len, self._data)) + self._strays.size
        if self._bytes > self._bytes_max:
            raise AnswerTooLarge("an event of the stream", self._bytes_max)
