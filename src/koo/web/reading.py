"""How request bodies are read: within a common memory budget, counted before parsing, long lists in slices.

Sixteen MiB of text are parsed in milliseconds. Sixteen MiB of `[],[],[]` are five million lists: seconds during which
the loop does nothing else, and a hundred times the memory. Therefore names and values are counted first, as the chunks
arrive, and a body with more of them than any request needs is refused without parsing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
from fastapi import HTTPException
from pydantic import ValidationError
from starlette.requests import Request

from koo.web.bodies import QUERIES_MAX, QueryBody

T = TypeVar("T")
U = TypeVar("U")

BODIES_BYTES_MAX = 64 * 1024 * 1024
"""The limit for all large bodies together, each counted from its first byte until its response."""
SMALL_BYTES = 64 * 1024
"""Bodies up to this size are not counted, so small requests are not refused because of large ones."""
MARKS_MAX = 100_000
"""Brackets, commas and colons outside of strings. Parsing this many takes some milliseconds."""
BATCH_MARKS_MAX = 1_000_000
PIECE_BYTES = 64 * 1024
# Rows that are handled before the loop gets a turn: a few milliseconds of work.
SLICE = 200
AGAIN_S = 1


class BodiesFull(HTTPException):
    """Raised if the bodies in progress use up the memory budget."""

    kind = "too_many_bodies"

    def __init__(self) -> None:
        detail = (
            "the requests in progress use all the memory set aside for large bodies; try again in a moment"
        )
        super().__init__(503, detail, {"Retry-After": str(AGAIN_S)})


class TooManyNames(HTTPException):
    """Raised if a body has more names and values than a request can need."""

    def __init__(self, most: int) -> None:
        super().__init__(422, f"the body cannot be read: it has more than {most} names and values")


class Budget:
    """The bytes that all bodies together may take."""

    def __init__(self, most: int = BODIES_BYTES_MAX) -> None:
        self.most = most
        self.used = 0


BUDGET = Budget()


class Compressed(HTTPException):
    """Raised for a body with a content coding: a small one could become any size, and prompts are not large."""

    def __init__(self) -> None:
        super().__init__(422, "the body is compressed (Content-Encoding); send it without compression")


class Marks:
    """Counts the structural characters of a JSON document that arrives in pieces."""

    def __init__(self) -> None:
        self.count = 0
        self._in_text = False
        self._tail = b""

    def feed(self, piece: bytes) -> None:
        # Remove escaped backslashes first, then escaped quotes: in `\\"` the quote ends the string, in `\"` it does
        # not. A single backslash at the end of a piece may escape the next piece's first character, so it is kept for
        # that one.
        piece = (self._tail + piece).replace(b"\\\\", b"").replace(b'\\"', b"")
        self._tail = b"\\" if piece.endswith(b"\\") else b""
        parts = piece.removesuffix(b"\\").split(b'"')
        # Splitting at quotes alternates between outside and inside of strings. Everything here is a C-level operation
        # on bytes: a loop over sixteen million characters in Python would alone take a second.
        between = b"".join(parts[self._in_text :: 2])
        self.count += len(between) - len(between.translate(None, b"[]{},:"))
        self._in_text ^= len(parts) % 2 == 0


class Reading(Request):
    """A request whose body is read within the budget. `close_body` returns what it took."""

    def __init__(self, request: Request, is_batch: bool, budget: Budget = BUDGET) -> None:
        super().__init__(request.scope, request.receive)
        self._is_batch = is_batch
        self._budget = budget
        self._taken = 0

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            most = BATCH_MARKS_MAX if self._is_batch else MARKS_MAX
            marks, chunks, size = Marks(), [], 0
            is_compressed = self.headers.get("content-encoding", "").strip().lower() not in ("", "identity")
            async for chunk in self.stream():
                if is_compressed and chunk:
                    raise Compressed
                chunks.append(chunk)
                size += len(chunk)
                self._take(size)
                async for piece in _pieces(chunk):
                    marks.feed(piece)
                    if marks.count > most:
                        raise TooManyNames(most)
            self._body = b"".join(chunks)
        return self._body

    def _take(self, size: int) -> None:
        more = size - self._taken
        if size <= SMALL_BYTES:
            return
        if self._budget.used + more > self._budget.most:
            raise BodiesFull
        self._budget.used += more
        self._taken = size

    def close_body(self) -> None:
        """Return its bytes to the budget: the memory is free now or will be in a moment."""
        self._budget.used -= self._taken
        self._taken = 0

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            body = await self.body()
            large = self._is_batch and len(body) > SMALL_BYTES
            self._json = await _batch(body) if large else json.loads(body)
        return self._json


async def _pieces(chunk: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(chunk), PIECE_BYTES):
        if begin:
            await asyncio.sleep(0)
        yield chunk[begin : begin + PIECE_BYTES]


async def _batch(body: bytes) -> dict[str, Any]:
    """Parse a long list of queries slice by slice. Stops at the first invalid one, which pydantic then reports."""
    # `Raw` leaves each query as undecoded bytes, so this step only finds the list's elements. The queries are then
    # parsed and validated one by one, with a turn of the loop in between; one `json.loads` of 16 MiB would block it.
    try:
        given = msgspec.json.decode(body, type=dict[str, list[msgspec.Raw]])
    except (msgspec.DecodeError, RecursionError):
        raise HTTPException(
            422, 'the body cannot be read: it is not JSON of the form {"queries": […]}'
        ) from None
    lists = {name: rows for name, rows in given.items() if name != "queries"}
    queries: list[Any] = []
    if len(given.get("queries", [])) > QUERIES_MAX:
        raise HTTPException(
            422, f"queries: at most {QUERIES_MAX} in one request; send more in several requests"
        )
    for rows in _slices(given.get("queries", [])):
        for one in rows:
            if not _is_few(one):
                raise TooManyNames(MARKS_MAX)
            raw = json.loads(one)
            try:
                queries.append(QueryBody.model_validate(raw))
            except ValidationError:
                return {**lists, "queries": [*queries, raw]}
        await asyncio.sleep(0)
    return {**lists, "queries": queries} if "queries" in given else dict(lists)


def _slices(rows: Sequence[msgspec.Raw]) -> Iterator[list[bytes]]:
    """Yield slices of at most `SLICE` rows and about `PIECE_BYTES` bytes."""
    taken: list[bytes] = []
    size = 0
    for row in rows:
        taken.append(bytes(row))
        size += len(taken[-1])
        if len(taken) == SLICE or size >= PIECE_BYTES:
            yield taken
            taken, size = [], 0
    yield taken


def _is_few(row: bytes) -> bool:
    if len(row) <= MARKS_MAX:
        return True
    marks = Marks()
    marks.feed(row)
    return marks.count <= MARKS_MAX


async def in_slices(make: Callable[[T], U], ones: Sequence[T]) -> list[U]:
    """Apply `make` to each item, letting the loop run in between."""
    made: list[U] = []
    for begin in range(0, len(ones), SLICE):
        if begin:
            await asyncio.sleep(0)
        made += map(make, ones[begin : begin + SLICE])
    return made
