"""A stream that is read on one event loop while its guard and its connection belong to another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from types import TracebackType
from typing import Any, TypeVar

from koo.ai.opened import Opened
from koo.ai.operation_stream import OperationStream
from koo.ai.stream import AnswerStream
from koo.ai.types import Chunk
from koo.crossing import carry

T = TypeVar("T")
R = TypeVar("R")


class CarriedStream(AnswerStream):
    """Reads `stream`, which belongs to the loop `home` in another thread. Each piece is fetched from there."""

    def __init__(self, stream: AnswerStream, home: asyncio.AbstractEventLoop) -> None:
        self._stream: AnswerStream = stream
        self._home = home
        self.answer = None

    async def __anext__(self) -> Chunk:
        try:
            return await carry(self._home, self._stream.__anext__())
        except StopAsyncIteration:
            self.answer = self._stream.answer
            raise

    async def aclose(self) -> None:
        """Leave the stream; see `AnswerStream.aclose`."""
        await carry(self._home, self._stream.aclose())

    def __del__(self) -> None:
        # Dropping the last reference runs the inner stream's `__del__`, which settles the permit and the money. In this
        # thread that would race with the home loop's own changes of the same breaker and ledger, which have no locks.
        # So the reference is handed to the home loop, and is dropped there.
        if self._home.is_running():
            self._home.call_soon_threadsafe(_let_go, self._stream)


class CarriedOperation(OperationStream[T]):
    """A stream of a user's own operation whose guard belongs to the loop `home`, where each wait runs.

    The operation itself still runs on the reader's loop, to which its client belongs.
    """

    def __init__(self, stream: OperationStream[T], home: asyncio.AbstractEventLoop) -> None:
        self._stream: OperationStream[T] = stream
        self._home = home
        # This object has no permit of its own, so its inherited `__del__` must not settle one. The inner stream's
        # `__del__` may run in any thread: it schedules its end on its own loop.
        self._closed = True

    async def __anext__(self) -> T:
        return await carry(self._home, self._stream.__anext__())

    async def athrow(
        self,
        kind: type[BaseException] | BaseException,
        value: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> T:
        return await carry(self._home, self._stream.athrow(kind, value, trace))

    async def _opened(self) -> None:
        await carry(self._home, self._stream._opened())

    async def __aenter__(self) -> Opened[T]:
        return (await carry(self._home, self._stream.__aenter__())).owned_by(self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: Any
    ) -> bool | None:
        return await carry(self._home, self._stream.__aexit__(kind, error, trace))

    async def read(self, pieces: AsyncIterator[R]) -> R:
        return await carry(self._home, self._stream.read(pieces))

    def note(self, error: Exception) -> None:
        self._stream.note(error)

    async def call(self, awaitable: Awaitable[R]) -> R:
        return await carry(self._home, self._stream.call(awaitable))

    async def aclose(self) -> None:
        await carry(self._home, self._stream.aclose())


def _let_go(_stream: AnswerStream) -> None:
    """Drop the last reference to the stream, on the loop that this runs on."""
