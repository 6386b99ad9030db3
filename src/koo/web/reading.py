"""How a body is read: within a budget over all bodies, counted before it is parsed, and a long list in slices.

Sixteen MiB of text are read in milliseconds. Sixteen MiB of `[],[],[]` are five million lists: seconds in which the
loop does nothing else, and a hundred times the memory. So names and values are counted first, piece by piece as they
arrive, and a body with more of them than any request needs is refused unparsed.
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
"""Of all large bodies together, from their first byte to their answer."""
SMALL_BYTES = 64 * 1024
"""A body up to this size is not counted: small requests are not refused because of large ones."""
MARKS_MAX = 100_000
"""Brackets, commas and colons outside of texts; parsing this many takes some milliseconds."""
BATCH_MARKS_MAX = 1_000_000
PIECE_BYTES = 64 * 1024
SLICE = 200
AGAIN_S = 1


class BodiesFull(HTTPException):
    """The bodies that are being answered fill what there is for them."""

    kind = "too_many_bodies"

    def __init__(self) -> None:
        detail = (
            "the requests in progress use all the memory set aside for large bodies; try again in a moment"
        )
        super().__init__(503, detail, {"Retry-After": str(AGAIN_S)})


class TooManyNames(HTTPException):
    """A body that has more names and values than a request can need."""

    def __init__(self, most: int) -> None:
        super().__init__(422, f"the body cannot be read: it has more than {most} names and values")


class Budget:
    """Bytes that all bodies together may take."""

    def __init__(self, most: int = BODIES_BYTES_MAX) -> None:
        self.most = most
        self.used = 0


BUDGET = Budget()


class Marks:
    """Counts what stands between texts, in a document that comes in pieces."""

    def __init__(self) -> None:
        self.count = 0
        self._in_text = False
        self._tail = b""

    def feed(self, piece: bytes) -> None:
        # Pairs of backslashes first: of a longer run, what is left over escapes what follows it.
        piece = (self._tail + piece).replace(b"\\\\", b"").replace(b'\\"', b"")
        self._tail = b"\\" if piece.endswith(b"\\") else b""
        parts = piece.removesuffix(b"\\").split(b'"')
        between = b"".join(parts[self._in_text :: 2])
        self.count += len(between) - len(between.translate(None, b"[]{},:"))
        self._in_text ^= len(parts) % 2 == 0


class Reading(Request):
    """A request whose body is read within the budget; `close` returns what it took."""

    def __init__(self, request: Request, is_batch: bool, budget: Budget = BUDGET) -> None:
        super().__init__(request.scope, request.receive)
        self._is_batch = is_batch
        self._budget = budget
        self._taken = 0

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            most = BATCH_MARKS_MAX if self._is_batch else MARKS_MAX
            marks, chunks, size = Marks(), [], 0
            async for chunk in self.stream():
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
        """Its memory is free, or will be at once."""
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
    """A long list of queries, built slice by slice. It stops at the first wrong one, which pydantic reports."""
    try:
        given = msgspec.json.decode(body, type=dict[str, list[msgspec.Raw]])
    except (msgspec.DecodeError, RecursionError):
        raise HTTPException(
            422, 'the body cannot be read: it is not JSON of the form {"queries": […]}'
        ) from None
    lists = {name: rows for name, rows in given.items() if name != "queries"}
    queries: list[Any] = []
    if len(given.get("queries", [])) > QUERIES_MAX:
        raise HTTPException(422, f"queries: at most {QUERIES_MAX} in one request; ask for more in several")
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
    """Of at most this many rows, and of about this many bytes."""
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
    """`make` of each, and now and then the loop does something else."""
    made: list[U] = []
    for begin in range(0, len(ones), SLICE):
        if begin:
            await asyncio.sleep(0)
        made += map(make, ones[begin : begin + SLICE])
    return made
