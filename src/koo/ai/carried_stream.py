"""A streamed answer that is read on one event loop and lives on another."""

from __future__ import annotations

import asyncio

from koo.ai.stream import AnswerStream
from koo.ai.types import Chunk
from koo.bridge import carry


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
        # Its last reference must go on its own loop: there it settles what was used, and no step may cut into another.
        if self._home.is_running():
            self._home.call_soon_threadsafe(_let_go, self._stream)


def _let_go(_stream: AnswerStream) -> None:
    """Nothing to do but to have it."""
