"""aiosqlite's connection, whose end is one and is waited for.

A thread serves each connection, until it is told to stop. Told twice, aiosqlite waits for a second answer that nobody
gives: whoever is cancelled while SQLAlchemy closes (at the end of `asyncio.run`, say) would leave a task that waits for
ever. And an attempt to connect that is cancelled stops its thread without waiting, so that the thread may answer to a
loop that has ended meanwhile.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Any

import aiosqlite

from koo.database.drivers import Keep

CHUNK_ROWS = 64


class SingleEnd(aiosqlite.Connection):
    """Stops once, however often it is told to; `keep` gets what is done when its thread has ended."""

    def __init__(self, connector: Callable[[], sqlite3.Connection], keep: Keep) -> None:
        super().__init__(connector, CHUNK_ROWS)
        self._thread.daemon = True  # a statement without end must not keep the process alive
        self._keep = keep
        self._stopped: asyncio.Future[Any] | None = None

    def stop(self) -> asyncio.Future[Any] | None:
        if self._running:
            self._stopped = super().stop()
            self._keep(self._stopped)
        return self._stopped


async def connect(keep: Keep, database: str, **options: Any) -> SingleEnd:
    """As `aiosqlite.connect`."""
    connection = SingleEnd(partial(sqlite3.connect, database, **options), keep)
    _ = await connection
    return connection
