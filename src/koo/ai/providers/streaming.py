"""The one loop over a stream of events that all adapters share, and what their readers keep while it runs.

What an event means is the vendor's reader's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping

from koo.ai.providers.base import CompletionChunk, Request
from koo.ai.providers.faults import ParsedError
from koo.ai.providers.transport import UNREADABLE, Wire, estimate_usage
from koo.errors import ExternalServiceError
from koo.http import ServerSentEvent, TransportError


class Reader(ABC):
    """Events of one stream → pieces. `_begun` is True once the provider has worked; `_texts` came so far."""

    def __init__(self, wire: Wire, headers: Mapping[str, str], request: Request) -> None:
        self._wire = wire
        self._headers = headers
        self._request = request
        self._texts: list[str] = []
        self._begun = self._usage_told = False
        self._stop_reason: str | None = None

    @abstractmethod
    def read(self, event: ServerSentEvent) -> CompletionChunk | None:
        """A piece, or None for what says nothing. Raises `ExternalServiceError`, or one of `UNREADABLE`."""

    def finish(self) -> CompletionChunk | None:
        """The stream has ended without an end of its own: the last piece, or None where it was cut."""
        return None  # most vendors always say how it ended

    def _final(self) -> CompletionChunk:
        usage = None if self._usage_told else estimate_usage(self._request, "".join(self._texts))
        return CompletionChunk(final=True, usage=usage, stop_reason=self._stop_reason)

    def _error(self, parsed: ParsedError) -> ExternalServiceError:
        # As the very first thing it stands for a refusal, which nobody bills; later the prompt has been read.
        return self._wire.error(parsed, billable=self._begun)


async def read_stream(
    wire: Wire, path: str, body: bytes, request: Request, make_reader: type[Reader]
) -> AsyncGenerator[CompletionChunk, None]:
    """Ask once; the pieces up to the final one. Leaving early closes the connection: so the provider knows, and stops.

    Raises `ExternalServiceError`.
    """
    stream = await wire.open(path, body)
    reader = make_reader(wire, stream.headers, request)
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
