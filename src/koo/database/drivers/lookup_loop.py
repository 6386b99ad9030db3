"""The event loop as asyncpg sees it: names are looked up in koo's own threads, everything else is the loop's.

asyncpg connects to a name through its loop, which would look it up in one of the application's threads. It accepts a
loop as an argument, and takes the name for TLS from the original host: so TLS sees the name, and the loop an address.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Any

from koo.database.drivers.names import addresses_of

OFTEN = ("call_at", "call_later", "call_soon", "create_future", "create_task", "is_closed", "time")
"""Methods that each statement needs: through `__getattr__` each would be found only after a failed lookup."""


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
        """As the loop's. Raises OSError: with several addresses, the error of the first."""
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
