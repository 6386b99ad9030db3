"""Documents in an event stream that are not events.

Servers send complete responses instead of a stream, errors as bare JSON, one document per line, a list of chunks, or a
web page, often labelled as an event stream. A line that looks like the beginning of a document starts one. The document
ends with the line that completes it, or with the stream.
"""

from __future__ import annotations

import json

from koo.http.connector import is_dense, refuse_dense

OPENING = (b"{", b"[", b"<")
TRIES_MAX = 16
"""Attempts to parse a document. Without a limit, an endless one would be parsed for each line that could end it."""
TRIED_BYTES_MAX = 1024 * 1024
"""Total bytes to parse in those attempts, because the event loop waits during each of them."""
STRAY_PARTS_MAX = 10_000
"""The most objects and lists in a document that is split: it is parsed and encoded again without yielding to the
loop."""


class Strays:
    """Collects lines outside of events into documents."""

    __slots__ = ("_lines", "_tried_bytes", "_tries")

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._tries = self._tried_bytes = 0

    @property
    def size(self) -> int:
        """Bytes in the buffer."""
        return sum(map(len, self._lines))

    def wants(self, line: bytes) -> bool:
        """Whether this line is part of a document."""
        return bool(self._lines) or line.lstrip().startswith(OPENING)

    def take(self, line: bytes) -> list[bytes]:
        """Return the documents that this line completes."""
        self._lines.append(line)
        # Only the first line and lines that begin with a closing bracket can complete a document as servers print them.
        # Trying every line would parse a long document once per line.
        if len(self._lines) > 1 and line[:1] not in (b"}", b"]"):
            return []
        if self._tries >= TRIES_MAX or self._tried_bytes > TRIED_BYTES_MAX:
            return []
        # Both limits are checked before the lines are joined. Past them the lines are only collected, and `finish`
        # parses the document once: a real document is not lost, and a hostile one costs a bounded amount of work.
        document = b"\n".join(self._lines)
        self._tries, self._tried_bytes = self._tries + 1, self._tried_bytes + len(document)
        if is_dense(document, STRAY_PARTS_MAX) or not is_whole(document):
            return []
        self._lines, self._tries, self._tried_bytes = [], 0, 0
        return _parts(document)

    def finish(self) -> list[bytes]:
        """Return the unfinished document at the end of the stream, split if it is a list."""
        document, self._lines = b"\n".join(self._lines), []
        if not document:
            return []
        can_be_cut = not is_dense(document, STRAY_PARTS_MAX) and is_whole(document)
        return _parts(document) if can_be_cut else [document]


def is_whole(document: bytes) -> bool:
    """Whether the document is complete JSON. Raises `TransportError` for a document that is too dense to be decoded."""
    refuse_dense(document)
    # "surrogateescape" and `strict=False`: a document with an invalid byte or a raw line break in a text is complete
    # all the same, and lenient decoding will read it. If it were refused here, its end would never be found.
    try:
        json.loads(document.decode("utf-8", "surrogateescape"), strict=False)
    except (ValueError, RecursionError):
        return False
    return True


def _parts(document: bytes) -> list[bytes]:
    """Split a list of chunks into one document per chunk."""
    if not document.lstrip().startswith(b"["):
        return [document]
    items = json.loads(document.decode("utf-8", "surrogateescape"), strict=False)
    return [json.dumps(item).encode() for item in items]
