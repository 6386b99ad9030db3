"""Decompress bodies that arrive compressed although koo asked for `identity`.

Most servers comply with `identity`, but some gateways compress anyway. gzip and deflate are supported under all their
names, in several layers, and in portions. With an encoding that koo does not support (br, zstd, …) only the body is
lost, never the status: aiohttp itself would fail at the header, and a 429 with its `Retry-After` would look like a
response that is not HTTP. The header alone decides nothing: plain text under a wrong label is read as plain text.

A compressed body can also be an attack: in two layers, 1 KiB can unpack to a gigabyte, or to nothing after minutes of
work. So no step unpacks more than `PORTION_MAX` bytes, `HttpClient.read` counts the unpacked size, and
`EMPTY_BYTES_MAX` limits work without a result.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

from koo.http.connector import TransportError

GZIP = frozenset({"gzip", "x-gzip"})
DEFLATE = frozenset({"deflate", "x-deflate", "zlib"})
MANY_LAYERS = "several nested encodings"
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
"""Encodings that koo does not support. Any other label (`identity`, `utf-8`, …) is not compression and is ignored."""
PORTION_MAX = 256 * 1024
"""The most bytes to unpack in one step: a small body can unpack to more than the memory."""
GZIP_BEGINS = b"\x1f\x8b\x08"
"""The first bytes of gzip. No text begins with them."""
LAYERS_MAX = 4
"""One layer is usual, and two occur if two gateways each compress. More are an attack."""
EMPTY_BYTES_MAX = 1024 * 1024
"""The most compressed bytes in a row that may unpack to nothing. Empty deflate blocks do that, and a second layer of
compression makes a thousand bytes of them from one."""
PLAIN_FROM = 16
"""How many bytes at the beginning are enough to tell plain text from compressed data."""


class Content(Protocol):
    """A body that arrives in portions."""

    async def readany(self) -> bytes:
        """Return the next bytes; b"" at the end."""
        ...

    def at_eof(self) -> bool:
        """Whether everything has been returned."""
        ...


def unpacked(headers: Mapping[str, str], content: Content) -> Content:
    """The decompressed body."""
    label = headers.get("content-encoding")
    if label is None:
        return content
    names = [name.strip().lower() for name in label.split(",")]
    if len(names) > LAYERS_MAX:
        return Unpacked(content, MANY_LAYERS)
    # The header lists the encodings in the order in which they were applied (RFC 9110, 8.4), so the last one is removed
    # first.
    for name in reversed(names):
        if name in GZIP or name in DEFLATE or name in UNREAD:
            content = Unpacked(content, name)
    return content


def unlabelled(body: bytes, bytes_max: int) -> bytes:
    """The first bytes of a body in gzip whose label a proxy has dropped; the body itself if it cannot be unpacked."""
    with suppress(zlib.error):
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, bytes_max)
    return body


class Unpacked:
    """A compressed body; `beginning` has already been read from it.

    Reading raises `TransportError` if it cannot be decompressed.
    """

    __slots__ = ("_content", "_empty", "_inflate", "_name", "_plain", "_tail")

    def __init__(self, content: Content, name: str, beginning: bytes = b"") -> None:
        self._content = content
        self._name = name
        self._tail = beginning
        self._empty = 0
        self._plain = False
        self._inflate: zlib._Decompress | None = None

    async def readany(self) -> bytes:
        """Return the next bytes; b"" at the end."""
        # The loop is needed because compressed bytes often unpack to nothing yet (a header, half a block). An empty
        # result from here means the end of the body, so returning b"" for such a portion would cut off the rest.
        while True:
            # What the last step left compressed comes first: nothing more may be read from the socket before it is used
            # up.
            packed = self._tail or await self._content.readany()
            self._tail = b""
            if not packed:
                # A body that was cut off is returned as far as it goes. Decoding it reports the damage.
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
                raise TransportError("answer", "the response is compressed but empty")

    def at_eof(self) -> bool:
        """Whether everything has been returned."""
        return not self._tail and self._content.at_eof()

    def _begin(self, packed: bytes) -> None:
        self._plain = _is_text(packed[:PLAIN_FROM])
        if self._plain:
            return
        if self._name in UNREAD:
            raise TransportError(
                "answer", f"the response is compressed as {self._name}, which koo did not ask for"
            )
        # The header's name is not reliable. "deflate" means zlib data by the standard, but some servers send bare
        # deflate, and others mix up gzip and deflate. So the first bytes decide: 1f 8b is gzip, and the low half of
        # zlib's first byte is 8. For both, +32 lets zlib detect which; negative window bits mean bare deflate.
        is_wrapped = packed[:2] == b"\x1f\x8b" or packed[0] & 0xF == zlib.DEFLATED
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32 if is_wrapped else -zlib.MAX_WBITS)

    def _unpack(self, packed: bytes) -> bytes:
        inflate = self._inflate
        assert inflate is not None
        try:
            found = inflate.decompress(packed, PORTION_MAX)
        except zlib.error:
            raise TransportError("answer", f"the response cannot be decompressed as {self._name}") from None
        self._tail = inflate.unconsumed_tail
        if inflate.eof and inflate.unused_data:
            # A gzip body may consist of several members, one after another (RFC 1952, 2.2). A server that compresses
            # each event by itself sends that; stopping at the first member would lose all later events.
            self._tail, self._inflate = inflate.unused_data, zlib.decompressobj(zlib.MAX_WBITS | 32)
        return found


def _is_text(beginning: bytes) -> bool:
    """Whether a body begins like JSON, HTML or events, and not like compressed data."""
    # The first character alone is not enough: bare deflate may begin with any byte. Sixteen printable ones in a row are
    # not produced by a compressor in practice.
    return beginning.lstrip()[:1] in (b"{", b"[", b"<", b":", b"d", b"e") and all(
        32 <= byte < 127 or byte in b"\t\r\n" for byte in beginning
    )
