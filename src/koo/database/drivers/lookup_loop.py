"""An event loop for asyncpg that resolves names in koo's own threads. Everything else is done by the real loop.

asyncpg connects to a name through its loop, which would resolve it in one of the application's threads. It accepts a
loop as an argument, and takes the name for TLS from the original host. So TLS checks the name, and the real loop
connects to an address.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Any

from koo.database.drivers.names import addresses_of

OFTEN = ("call_at", "call_later", "call_soon", "create_future", "create_task", "is_closed", "time")
"""Methods that every statement uses. They are copied, because through `__getattr__` each call would first pay for a
failed lookup."""


class LookupLoop:
    """A loop whose `create_connection` resolves names with `LOOKUPS`."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        for name in OFTEN:
            setattr(self, name, getattr(loop, name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def create_connection(
        self, factory: Callable[[], Any], host: str, port: int, **more: Any
    ) -> tuple[Any, Any]:
        """Like the loop's. Raises OSError; if there are several addresses, the error of the first one."""
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
