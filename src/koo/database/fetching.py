"""Streamed rows: each piece is fetched when the block asks for it, so each fetch counts as a database answer.

SQLAlchemy fetches through the driver's cursor, past every hook. `FetchingCursor` stands before that cursor: a fetch
counts as the database's time and ends at the scope's deadline like a statement, and what asyncpg raises in it becomes
what SQLAlchemy would raise (SQLAlchemy translates asyncpg's errors everywhere but here).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from koo.database.faults import ScopeStage
from koo.database.records import ConnectionRecord, Occupant

BODY = ScopeStage.BODY


class FetchingCursor:
    """A server-side cursor as SQLAlchemy's results use it; everything else is the cursor's own."""

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
        """The rows that are left."""
        return self._fetch(self._cursor.fetchall)

    def _fetch(self, fetch: Callable[..., Any], *args: Any) -> Any:
        record, occupant = self._record, self._occupant
        began = occupant.enter(record, BODY)
        try:
            rows = fetch(*args)
        except BaseException as error:
            occupant.leave(record, began, False)
            translated = record.driver.error_of(record.adapted, error)
            if translated is None or translated is error:
                raise
            raise translated from error
        occupant.leave(record, began, True)
        return rows
