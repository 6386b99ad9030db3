"""The event loop as asyncpg gets it: names are looked up in koo's own threads, everything else is the loop's.

asyncpg connects to a name by its loop, which would look it up in a thread of the application's. It takes a loop as an
argument, and the name for TLS from where it was asked to connect: so TLS sees the name, and the loop an address.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Any

from koo.database.drivers.names import addresses_of

OFTEN = ("call_at", "call_later", "call_soon", "create_future", "create_task", "is_closed", "time")
"""Methods that each statement needs: by `__getattr__` each would be found after a search in vain."""


class LookupLoop:
    """A loop whose `create_connection` looks names up in `LOOKUPS`."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        for name in OFTEN:
            setattr(self, name, getattr(loop, name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def create_connection(
        self, factory: Callable[[], Any], host: str, port: int, **more: Any
    ) -> tuple[Any, Any]:
        """As the loop's. Raises OSError: of several addresses that of the first."""
        if more.get("ssl"):
            more.setdefault("server_hostname", host)
        failed: OSError | None = None
        for address in await addresses_of(host):
            try:
                return await self._loop.create_connection(factory, address, port, **more)
            except OSError as error:
                failed = failed or error
        assert failed is not None
        raise failed
