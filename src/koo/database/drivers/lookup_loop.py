"""An event loop for asyncpg that resolves names in koo's own threads. Everything else is done by the real loop.

asyncpg connects to a name through its loop, which would resolve it in one of the application's threads. It accepts a
loop as an argument, and takes the name for TLS from the original host. So TLS checks the name, and the real loop
connects to an address.
"""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Any

from koo.database.drivers.names import addresses_of
from koo.options import NEVER

OFTEN = ("call_at", "call_later", "call_soon", "create_future", "create_task", "is_closed", "time")
"""Methods that every statement uses. They are copied, because through `__getattr__` each call would first pay for a
failed lookup."""


class LookupLoop:
    """A loop whose `create_connection` resolves names with `LOOKUPS`.

    `hosts`: for how many it will be called; together they have `within_s` seconds, unless only one is left.
    """

    def __init__(self, loop: AbstractEventLoop, hosts: int = 1, within_s: float = NEVER) -> None:
        self._loop = loop
        self._hosts_left = hosts
        self._each_s = within_s / hosts
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
        addresses = await addresses_of(host)
        self._hosts_left -= 1
        for left in reversed(range(len(addresses))):
            # A dead machine does not refuse a connection but drops it. Without a share of the time for each address,
            # the first one would use up all of it, and the others would never be tried.
            is_last = left == 0 and self._hosts_left <= 0
            try:
                async with asyncio.timeout(None if is_last else self._each_s / len(addresses)):
                    return await self._loop.create_connection(factory, addresses[-1 - left], port, **more)
            except OSError as error:  # TimeoutError too
                failed = failed or error
        assert failed is not None
        raise failed
