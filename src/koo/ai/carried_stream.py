"""A stream that is read on one event loop and lives on another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from koo.ai.opened import Opened
from koo.ai.operation_stream import OperationStream
from koo.ai.stream import AnswerStream
from koo.ai.types import Chunk
from koo.crossing import carry

T = TypeVar("T")
R = TypeVar("R")


class CarriedStream(AnswerStream):
    """`stream` on its own loop `home`, which runs in another thread: each piece is fetched from there."""

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
        """Leave: as `AnswerStream.aclose`."""
        await carry(self._home, self._stream.aclose())

    def __del__(self) -> None:
        # The last reference must be dropped on its own loop: it settles there what was used, atomically.
        if self._home.is_running():
            self._home.call_soon_threadsafe(_let_go, self._stream)


class CarriedOperation(OperationStream[T]):
    """A stream of an own operation whose guard is on the loop `home`: each wait is carried there.

    The operation itself, whose client belongs to the reader's loop, runs there.
    """

    def __init__(self, stream: OperationStream[T], home: asyncio.AbstractEventLoop) -> None:
        self._stream: OperationStream[T] = stream
        self._home = home
        self._closed = (
            True  # a dropped one has nothing to end: `stream` settles on its own loop, from any thread
        )

    async def __anext__(self) -> T:
        return await carry(self._home, self._stream.__anext__())

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

    async def call(self, awaitable: Awaitable[R]) -> R:
        return await carry(self._home, self._stream.call(awaitable))

    async def aclose(self) -> None:
        await carry(self._home, self._stream.aclose())


def _let_go(_stream: AnswerStream) -> None:
    """Hold the stream until here; nothing else to do."""
