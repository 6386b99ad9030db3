"""The frame of every adapter that talks over the network; its wire format is told in its vendor's file."""

from __future__ import annotations

from koo.ai.providers.base import Request
from koo.ai.providers.transport import Wire, bound_tokens


class Adapter:
    """One service behind a `Wire`."""

    __slots__ = ("_wire",)

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._wire!r}>"

    def bound_input_tokens(self, request: Request) -> int:
        """UTF-8 bytes of prompt and system, and an allowance for what is put around them."""
        return bound_tokens(request)

    async def close(self) -> None:
        """Nothing is held: the connections are the client's."""
