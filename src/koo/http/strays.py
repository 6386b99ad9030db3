"""Documents in a stream of events that are not events.

A whole answer instead of a stream, an error as bare JSON, one document per line, a list of chunks, a web page: whatever
the stream's label says. A line that looks like the beginning of a document starts one. It ends with the line that
closes it, or with the stream.
"""

from __future__ import annotations

import json

from koo.http.connector import is_dense, refuse_dense

OPENING = (b"{", b"[", b"<")
TRIES_MAX = 16
"""A document that never ends, followed by a thousand lines that could end it, would be parsed a thousand times."""
TRIED_BYTES_MAX = 1024 * 1024
"""The same for a large one, which the loop waits for each time."""
STRAY_PARTS_MAX = 10_000
"""Objects and lists in a document that is parsed, split and written again at once. A larger one is left unsplit."""


class Strays:
    """Lines outside of events → documents."""

    __slots__ = ("_lines", "_tried_bytes", "_tries")

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._tries = self._tried_bytes = 0

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return sum(map(len, self._lines))

    def wants(self, line: bytes) -> bool:
        """Whether this line is part of a document."""
        return bool(self._lines) or line.lstrip().startswith(OPENING)

    def take(self, line: bytes) -> list[bytes]:
        """The documents that this line completes."""
        self._lines.append(line)
        # Only these lines can be a document's last: trying each one would parse a long document again and again.
        if len(self._lines) > 1 and line[:1] not in (b"}", b"]"):
            return []
        if self._tries >= TRIES_MAX or self._tried_bytes > TRIED_BYTES_MAX:
            return []
        document = b"\n".join(self._lines)
        self._tries, self._tried_bytes = self._tries + 1, self._tried_bytes + len(document)
        if is_dense(document, STRAY_PARTS_MAX) or not is_whole(document):
            return []
        self._lines, self._tries, self._tried_bytes = [], 0, 0
        return _parts(document)

    def finish(self) -> list[bytes]:
        """At the end of the stream: documents without an end of their own."""
        document, self._lines = b"\n".join(self._lines), []
        if not document:
            return []
        can_be_cut = not is_dense(document, STRAY_PARTS_MAX) and is_whole(document)
        return _parts(document) if can_be_cut else [document]


def is_whole(document: bytes) -> bool:
    """Whether it is complete JSON. Raises `TransportError` for one with more parts than any answer has."""
    refuse_dense(document)
    try:
        json.loads(document.decode("utf-8", "surrogateescape"), strict=False)
    except (ValueError, RecursionError):
        return False
    return True


def _parts(document: bytes) -> list[bytes]:
    """A list of chunks becomes one document per chunk."""
    if not document.lstrip().startswith(b"["):
        return [document]
    items = json.loads(document.decode("utf-8", "surrogateescape"), strict=False)
    return [json.dumps(item).encode() for item in items]
