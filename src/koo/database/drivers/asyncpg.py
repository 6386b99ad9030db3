"""asyncpg, beneath `postgresql+asyncpg://`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from koo.database.drivers.base import POSTGRESQL_HEALTH, Keep
from koo.options import DatabaseOptions


class Asyncpg:
    """The driver `asyncpg`."""

    answers_begin = True
    health_query = POSTGRESQL_HEALTH

    def connect_args(self, options: DatabaseOptions, keep: Keep) -> dict[str, Any]:
        return {"timeout": options.pool_timeout_s}

    def begin(self, adapted: Any) -> Awaitable[Any] | None:
        start: Callable[[], Awaitable[Any]] | None = getattr(adapted, "_start_transaction", None)
        return None if start is None else start()

    def is_closed(self, connection: Any) -> bool:
        return bool(connection.is_closed())

    def is_idle(self, connection: Any) -> bool:
        return False

    async def cancel(self, connection: Any, within_s: float) -> None:
        cancel = getattr(connection, "_cancel", None)
        if cancel is None or connection.is_closed():
            return
        async with asyncio.timeout(within_s):
            await cancel(asyncio.get_running_loop().create_future())

    def cut_off(self, connection: Any) -> None:
        connection.terminate()
