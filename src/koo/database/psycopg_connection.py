"""psycopg's connection, whose cancelled statement ends promptly.

psycopg answers a cancellation by asking the server to stop the statement and waiting until it has: up to ten seconds
when the server is a black hole, and nothing from outside can shorten them. SQLAlchemy drops a connection whose
statement was cancelled, so there is nothing to wait for: ask once, within the cleanup time, and close.
"""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.waiting import wait_async


class ServerCursor(psycopg.AsyncServerCursor[Any]):
    """A streamed result. When its connection is lost nobody can close it, and psycopg's warning would be no help."""

    def __del__(self, *warn: Any) -> None:
        if not self.connection.closed:
            super().__del__(*warn)


class PromptConnection(psycopg.AsyncConnection[Any]):
    """Leaves a cancelled statement within `cleanup_s` seconds."""

    cleanup_s = 2.0

    @classmethod
    async def connect_within(cls, cleanup_s: float, *args: Any, **kwargs: Any) -> PromptConnection:
        """As `connect`."""
        connection = await cls.connect(*args, **kwargs)
        connection.cleanup_s = cleanup_s
        connection.server_cursor_factory = ServerCursor
        return connection

    @property
    def is_idle(self) -> bool:
        """Is no transaction open, by what the server said last?"""
        return self.pgconn.transaction_status == TransactionStatus.IDLE

    async def wait(self, gen: Any, interval: float = 0.1, **more: Any) -> Any:  # type: ignore[override]
        """Run a step of the protocol to its end; a cancellation in the midst of a statement closes the connection."""
        try:
            return await wait_async(gen, self.pgconn.socket, interval=interval, **more)
        except asyncio.CancelledError:
            try:
                await self._stop_statement()
            finally:
                self.pgconn.finish()
            raise

    async def _stop_statement(self) -> None:
        if self.pgconn.transaction_status != TransactionStatus.ACTIVE:
            return
        try:
            await self.cancel_safe(timeout=self.cleanup_s)
        except (psycopg.Error, OSError):
            return  # unreachable: the server will notice the closed connection, or has gone itself
