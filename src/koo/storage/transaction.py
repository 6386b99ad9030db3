"""The database as the store's work sees it: one transaction on one connection, in SQL that both databases accept.

Work is a plain function. It runs in the store's own thread, so it must not touch anything that belongs to the event
loop. Where SQLite and PostgreSQL differ, a statement contains a placeholder in braces, which `WORDS` replaces.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from koo.clock import Clock
from koo.storage.base import StoreUnavailable

Dialect = Literal["sqlite", "postgresql"]
Row = tuple[Any, ...]
T = TypeVar("T")

WORDS: dict[Dialect, dict[str, str]] = {
    "sqlite": {
        # A list is passed as one JSON text, so the statement is the same for one id and for five hundred. `IN (?, ?,
        # …)` would be another statement for each length, and each would have to be parsed again.
        "ids": "SELECT value FROM json_each(:ids)",
        # The caller's clock is good enough here: all processes on one file run on the same machine.
        "clock_ms": ":wall_ms",
        "now_ms": ":now_ms",
        "keys": "SELECT value ->> 0 AS budget, value ->> 1 AS period FROM json_each(:keys)",
        "rows": "SELECT value FROM json_each(:rows)",
        "for_update_of_t": "",
        "for_update": "",  # BEGIN IMMEDIATE has already locked the whole file
        "serial": "INTEGER PRIMARY KEY AUTOINCREMENT",
        "latecomers_wait": "SELECT 1",
    },
    "postgresql": {
        "ids": "SELECT json_array_elements_text(CAST(:ids AS json))",
        # This is the server's clock, because the processes' machines may disagree by seconds. It is not now(), which is
        # the time at which the transaction began: it may have waited for a lock since, and leases would start in the
        # past.
        "clock_ms": "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)",
        "now_ms": "CAST(:now_ms AS bigint)",
        "keys": """SELECT value ->> 0 AS budget, CAST(value ->> 1 AS bigint) AS period
            FROM json_array_elements(CAST(:keys AS json))""",
        "rows": "SELECT value FROM json_array_elements(CAST(:rows AS json))",
        "for_update_of_t": "FOR UPDATE OF t",
        "for_update": "FOR UPDATE",
        "serial": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
        # An exclusive lock until the transaction ends, for work that reads before it inserts, and for numbers that must
        # become visible in order. Its own number only has to differ from those of other applications.
        "latecomers_wait": "SELECT pg_advisory_xact_lock(7072003120211)",
    },
}


class Table(NamedTuple):
    """A table to which rows are added: its key and its columns, text columns first."""

    name: str
    key: str
    texts: tuple[str, ...]
    numbers: tuple[str, ...]


class Transaction(Protocol):
    """One transaction. After a lost connection its work may run again, although the first run may be committed."""

    dialect: Dialect

    def rows(self, sql: str, values: Mapping[str, Any] | None = None) -> list[Row]:
        """Run a statement and return its rows."""
        ...

    def later(self, sql: str, values: Mapping[str, Any] | None = None) -> Callable[[], list[Row]]:
        """Run a statement whose rows are fetched later: on a server, several of these share one round trip."""
        ...

    def run(self, sql: str, values: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None) -> None:
        """Run a statement that returns nothing, once for each of several mappings of values."""
        ...

    def add(self, table: Table, rows: Sequence[Sequence[Any]]) -> None:
        """Insert rows, in the order of the table's columns. A row whose key already exists is skipped."""
        ...


class Transactions(Protocol):
    """Runs one process's work on a store, one transaction after another."""

    process: str
    clock: Clock

    async def run(self, work: Callable[[Transaction], T], *, exclusive: bool = True) -> T:
        """Run `work` in a transaction. Set `exclusive` if it writes. Raises `StoreUnavailable`."""
        ...


def as_rows(rows: Iterable[Sequence[Any]]) -> dict[str, str]:
    """The values for a statement with `{rows}`: all rows in one statement, and so in one round trip."""
    return {"rows": json.dumps(list(rows), separators=(",", ":"))}


def picked(texts: Sequence[str], numbers: Sequence[str]) -> dict[str, str]:
    """The SQL that extracts columns from `{rows}`, where each row has its texts first and then its numbers."""
    found = {name: f"value ->> {place}" for place, name in enumerate(texts)}
    # In PostgreSQL `->>` always returns text, and a bigint column does not accept that.
    return found | {
        name: f"CAST(value ->> {place} AS bigint)" for place, name in enumerate(numbers, len(texts))
    }


class StatementRejected(StoreUnavailable):
    """The store works but rejects this statement, so running it again unchanged cannot help."""
