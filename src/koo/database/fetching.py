"""Streamed rows: rows are fetched in batches when the block asks for them, and each fetch is guarded like a statement.

SQLAlchemy fetches directly from the driver's cursor, where no hook sees it. `FetchingCursor` wraps that cursor: a fetch
is charged to the database, the scope's deadline ends it, and asyncpg's errors are translated to SQLAlchemy's
(SQLAlchemy translates them everywhere except in a fetch).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from koo.database.faults import ScopeStage
from koo.database.records import ConnectionRecord, Occupant

BODY = ScopeStage.BODY


class FetchingCursor:
    """A server-side cursor whose fetches are guarded. All other attributes are those of the wrapped cursor."""

    def __init__(self, cursor: Any, record: ConnectionRecord, occupant: Occupant) -> None:
        self._cursor = cursor
        self._record = record
        self._occupant = occupant

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def fetchone(self) -> Any:
        """The next row, or None."""
        return self._fetch(self._cursor.fetchone)

    def fetchmany(self, size: int | None = None) -> Any:
        """The next rows, at most `size`."""
        return self._fetch(self._cursor.fetchmany, size)

    def fetchall(self) -> Any:
        """The remaining rows."""
        return self._fetch(self._cursor.fetchall)

    def _fetch(self, fetch: Callable[..., Any], *args: Any) -> Any:
        # The result may be read after its scope has ended, or after the scope lost this connection. `enter` then
        # raises: the connection may already be running another scope's transaction.
        record, occupant = self._record, self._occupant
        began = occupant.enter(record, BODY)
        try:
            rows = fetch(*args)
        except BaseException as error:
            occupant.leave(record, began, False)
            # Untranslated, asyncpg's error would not be a `DBAPIError`: SQLAlchemy would not recognise a lost
            # connection in it, and would return the dead connection to the pool.
            translated = record.driver.error_of(record.adapted, error)
            if translated is None or translated is error:
                raise
            raise translated from error
        occupant.leave(record, began, True)
        return rows
