"""Server-sent events out of bytes in any portions, and documents between them that are not events."""

from __future__ import annotations

import re
from typing import NamedTuple

from koo.hidden import Sent
from koo.http.connector import AnswerTooLarge, TransportError
from koo.http.strays import Strays, is_whole

EVENT_BYTES_MAX = 1024 * 1024
PORTION_BYTES = 8 * 1024
"""How much of a stream is read at once before the loop does something else."""
EVENTS_AT_ONCE = 1000
"""The same for events: reading an odd one takes up to fifty microseconds."""
LINES_MAX = 10_000
"""For one event's data; without empty lines between events, the number of events."""
DOCUMENT = "document"
"""The name of a document in a stream that is not an event."""
_EVENT = re.compile(rb"\{.*\}|\[DONE\]", re.DOTALL)
"""A line of data that is an event by itself."""


class ServerSentEvent(NamedTuple):
    """One event: its name ("message" unless the server says otherwise) and its data as UTF-8 bytes."""

    event: str
    data: bytes


class EventParser:
    """Bytes in any portions → server-sent events, by the rules of the HTML standard.

    A line ends with LF, CR or CRLF; an event ends with an empty line. Comments and pings are not events, and neither is
    a block without data. Lines are cut as bytes: no terminator's byte occurs inside a character of UTF-8, so a
    character may be split over portions without harm.
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
        """The events that this portion completes. Raises `AnswerTooLarge`."""
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]  # The second half of a CRLF whose first half already ended the line.
            self._after_cr = False
        if not chunk:
            return []
        self._after_cr = chunk.endswith(b"\r")
        self._bytes += len(chunk)
        events: list[ServerSentEvent] = []
        if b"\n\n" in chunk and b"\r" not in chunk and not (self._data or self._event):
            # As nearly all servers write them: whole events, apart from the first and last of a portion.
            whole, _, rest = b"".join([*self._tail, chunk]).rpartition(b"\n\n")
            self._tail = [rest] if rest else []
            for block in whole.split(b"\n\n"):
                self._take_block(block, events)
        elif b"\n" in chunk or b"\r" in chunk:
            # Joined only when a line ends: a long line in small portions would otherwise be copied again and again.
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
        """At the end of the stream: an event that is whole and lacks only the empty line, and strays.

        The standard would drop it, but servers that end with `data: [DONE]` and a single LF, or none, exist.
        """
        events: list[ServerSentEvent] = []
        *lines, last = b"".join(self._tail).split(
            b"\n"
        )  # of an event that has begun; the last may be incomplete
        self._tail = []
        for line in lines:
            self._take(line, events)
        if last:
            self._take(last, events)
        if not last or self._data[-1:] == [b"[DONE]"] or is_whole(b"\n".join(self._data)):
            self._dispatch(events)
        events += [ServerSentEvent(DOCUMENT, Sent(document)) for document in self._strays.finish()]
        return events

    def _take_block(self, block: bytes, events: list[ServerSentEvent]) -> None:
        """The lines of one event, at once where it has no more than a name and a line of data."""
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
            # Not in the standard, but in old servers of llama.cpp: an error that ends the stream.
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
                # Servers that leave out the empty line between two events.
                events += [ServerSentEvent(name, Sent(data)) for data in self._data]
            else:
                events.append(ServerSentEvent(name, Sent(b"\n".join(self._data))))
            self._data = []
        self._event = ""

    def _measure(self) -> None:
        """`_bytes` counts everything that came since it was last measured; what counts is what is still kept."""
        self._bytes = sum(map(len, self._tail)) + sum(map(len, self._data)) + self._strays.size
        if self._bytes > self._bytes_max:
            raise AnswerTooLarge("an event of the stream", self._bytes_max)
