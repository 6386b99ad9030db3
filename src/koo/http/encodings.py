"""Bodies that arrive compressed although koo did not ask for it.

koo asks for `identity`, and most servers comply. If a gateway compresses all the same, gzip and deflate are read under
all their names, once or several times around each other, whole or bit by bit. An encoding that koo cannot read (br,
zstd, …) costs the body but never the status: aiohttp would fail on the header, and a 429 with its `Retry-After` would
become an answer that is not HTTP. A wrong label decides nothing: plain text under it is read as plain text.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Protocol

from koo.http.connector import TransportError

GZIP = frozenset({"gzip", "x-gzip"})
DEFLATE = frozenset({"deflate", "x-deflate", "zlib"})
MANY_LAYERS = "several encodings around one another"
UNREAD = frozenset(
    {
        "br",
        "brotli",
        "zstd",
        "zst",
        "compress",
        "x-compress",
        "lz4",
        "snappy",
        "xz",
        "dcb",
        "dcz",
        MANY_LAYERS,
    }
)
"""Other labels (`identity`, `utf-8`, …) are not compression."""
PORTION_MAX = 256 * 1024
"""Bytes that are unpacked at once: a small body may unpack to more than the memory."""
LAYERS_MAX = 4
EMPTY_BYTES_MAX = 1024 * 1024
"""Compressed bytes that may yield nothing: empty blocks, a thousand of them in each byte of another layer."""
PLAIN_FROM = 16
"""Bytes at the beginning that distinguish plain text from compressed data."""


class Content(Protocol):
    """A body that comes bit by bit."""

    async def readany(self) -> bytes:
        """The next bytes; none at the end."""
        ...

    def at_eof(self) -> bool:
        """True once everything has been returned."""
        ...


def unpacked(headers: Mapping[str, str], content: Content) -> Content:
    """The body as it was before it was compressed."""
    label = headers.get("content-encoding")
    if label is None:
        return content
    names = [name.strip().lower() for name in label.split(",")]
    if len(names) > LAYERS_MAX:
        return Unpacked(content, MANY_LAYERS)
    # The last one was put around the others.
    for name in reversed(names):
        if name in GZIP or name in DEFLATE or name in UNREAD:
            content = Unpacked(content, name)
    return content


class Unpacked:
    """A compressed body. Raises `TransportError` for what cannot be unpacked."""

    __slots__ = ("_content", "_empty", "_inflate", "_name", "_plain", "_tail")

    def __init__(self, content: Content, name: str) -> None:
        self._content = content
        self._name = name
        self._tail = b""
        self._empty = 0
        self._plain = False
        self._inflate: zlib._Decompress | None = None

    async def readany(self) -> bytes:
        """The next bytes; none at the end."""
        while True:
            packed = self._tail or await self._content.readany()
            self._tail = b""
            if not packed:
                return self._inflate.flush() if self._inflate is not None and not self._inflate.eof else b""
            if self._inflate is None and not self._plain:
                self._begin(packed)
            if self._plain:
                return packed
            if bytes_ := self._unpack(packed):
                self._empty = 0
                return bytes_
            self._empty += len(packed) - len(self._tail)
            if self._empty > EMPTY_BYTES_MAX:
                raise TransportError("answer", "the answer is compressed, but contains nothing")

    def at_eof(self) -> bool:
        """True once everything has been returned."""
        return not self._tail and self._content.at_eof()

    def _begin(self, packed: bytes) -> None:
        self._plain = _is_text(packed[:PLAIN_FROM])
        if self._plain:
            return
        if self._name in UNREAD:
            raise TransportError(
                "answer", f"the answer is compressed as {self._name}, which koo did not ask for"
            )
        # 32: gzip and zlib, whichever it is; some send what is meant to be in zlib without its header.
        is_wrapped = packed[:2] == b"\x1f\x8b" or packed[0] & 0xF == zlib.DEFLATED
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32 if is_wrapped else -zlib.MAX_WBITS)

    def _unpack(self, packed: bytes) -> bytes:
        inflate = self._inflate
        assert inflate is not None
        try:
            found = inflate.decompress(packed, PORTION_MAX)
        except zlib.error:
            raise TransportError("answer", f"the answer cannot be unpacked as {self._name}") from None
        self._tail = inflate.unconsumed_tail
        if inflate.eof and inflate.unused_data:
            # Several compressed parts, one after another, are one body.
            self._tail, self._inflate = inflate.unused_data, zlib.decompressobj(zlib.MAX_WBITS | 32)
        return found


def _is_text(beginning: bytes) -> bool:
    """JSON, a page or events, and not what a compressor makes of them."""
    return beginning.lstrip()[:1] in (b"{", b"[", b"<", b":", b"d", b"e") and all(
        32 <= byte < 127 or byte in b"\t\r\n" for byte in beginning
    )
