"""Documents that stand in a stream of events without being events.

A whole answer in place of a stream, an error as bare JSON, one document a line, a list of chunks, a web page: whatever
the label of the stream says. A line that begins like a document begins one. It ends with the line that closes it, or
with the stream.
"""

from __future__ import annotations

import json

from koo.http.connector import is_dense, refuse_dense

OPENING = (b"{", b"[", b"<")
TRIES_MAX = 16
"""A document that never ends, and then a thousand lines that could end it, would be read a thousand times."""
TRIED_BYTES_MAX = 1024 * 1024
"""The same of a large one, which the loop waits for each time."""
STRAY_PARTS_MAX = 10_000
"""Objects and lists of one that is read, cut and written again, all at once. One with more is left as it is."""


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
        """Is this line a part of a document?"""
        return bool(self._lines) or line.lstrip().startswith(OPENING)

    def take(self, line: bytes) -> list[bytes]:
        """The documents that this line completes."""
        self._lines.append(line)
        # Only these lines can be a document's last: to try each one would read a long document again and again.
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
        """At the end of the stream: what has no end of its own."""
        document, self._lines = b"\n".join(self._lines), []
        if not document:
            return []
        can_be_cut = not is_dense(document, STRAY_PARTS_MAX) and is_whole(document)
        return _parts(document) if can_be_cut else [document]


def is_whole(document: bytes) -> bool:
    """Is it JSON to its end? Raises `TransportError` for one of more parts than any answer has."""
    refuse_dense(document)
    try:
        json.loads(document.decode("utf-8", "surrogateescape"), strict=False)
    except (ValueError, RecursionError):
        return False
    return True


def _parts(document: bytes) -> list[bytes]:
    """A list of chunks is as many documents."""
    if not document.lstrip().startswith(b"["):
        return [document]
    items = json.loads(document.decode("utf-8", "surrogateescape"), strict=False)
    return [json.dumps(item).encode() for item in items]
