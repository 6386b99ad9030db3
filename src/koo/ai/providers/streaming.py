"""The one loop over a stream of events that all adapters share; what an event means is the vendor's reader's."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Protocol

from koo.ai.providers.base import CompletionChunk
from koo.ai.providers.transport import UNREADABLE, Wire
from koo.http import ServerSentEvent, TransportError


class Reader(Protocol):
    """Events of one stream → pieces."""

    def read(self, event: ServerSentEvent) -> CompletionChunk | None:
        """A piece, or None for what says nothing. Raises `ExternalServiceError`, or one of `UNREADABLE`."""
        ...

    def finish(self) -> CompletionChunk | None:
        """The stream has ended without an end of its own: the last piece, or None where it was cut."""
        ...


Begin = Callable[[Mapping[str, str]], Reader]
"""Makes the reader of a stream from its headers."""


async def read_stream(
    wire: Wire, path: str, body: bytes, begin: Begin
) -> AsyncGenerator[CompletionChunk, None]:
    """Ask once; the pieces up to the final one. Leaving early closes the connection: so the provider knows, and stops.

    Raises `ExternalServiceError`.
    """
    stream = await wire.open(path, body)
    reader = begin(stream.headers)
    ended = False
    try:
        while batch := await stream.next_events():
            for event in batch:
                piece = reader.read(event)
                if piece is not None:
                    ended = piece.final
                    yield piece
                    if piece.error is not None:
                        raise piece.error
                    if ended:
                        return
        last = reader.finish()
        if last is None:
            raise wire.unfinished()
        yield last
    except TransportError as error:
        raise wire.broken(error) from error
    except UNREADABLE:
        raise wire.unreadable("an event of another form") from None
    finally:
        await stream.aclose(read_out=ended)
