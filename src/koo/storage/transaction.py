"""How a store's work sees its database: one transaction on one connection, in plain SQL that both databases know.

Work is a plain function: it runs in the store's own thread, so it must not touch anything of the event loop. Where
SQLite and PostgreSQL differ, a statement has a word in braces: see `WORDS`.
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
        # The list arrives as one JSON text, so that the statement is the same for one id and for five hundred.
        "ids": "SELECT value FROM json_each(:ids)",
        # The clock of the machine, which all processes on one file share.
        "clock_ms": ":wall_ms",
        "now_ms": ":now_ms",
        "keys": "SELECT value ->> 0 AS budget, value ->> 1 AS period FROM json_each(:keys)",
        "rows": "SELECT value FROM json_each(:rows)",
        "for_update_of_t": "",
        "for_update": "",  # since BEGIN IMMEDIATE the whole file is ours
        "serial": "INTEGER PRIMARY KEY AUTOINCREMENT",
        "latecomers_wait": "SELECT 1",
    },
    "postgresql": {
        "ids": "SELECT json_array_elements_text(CAST(:ids AS json))",
        "clock_ms": "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)",
        "now_ms": "CAST(:now_ms AS bigint)",
        "keys": """SELECT value ->> 0 AS budget, CAST(value ->> 1 AS bigint) AS period
            FROM json_array_elements(CAST(:keys AS json))""",
        "rows": "SELECT value FROM json_array_elements(CAST(:rows AS json))",
        "for_update_of_t": "FOR UPDATE OF t",
        "for_update": "FOR UPDATE",
        "serial": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
        # Held until the end of the transaction; the number only has to differ from other applications'.
        "latecomers_wait": "SELECT pg_advisory_xact_lock(7072003120211)",
    },
}


class Table(NamedTuple):
    """A table that rows are added to: its key, and its columns, text columns first."""

    name: str
    key: str
    texts: tuple[str, ...]
    numbers: tuple[str, ...]


class Transaction(Protocol):
    """One transaction. Work may be run again after a lost connection, when the first run may have been committed."""

    dialect: Dialect

    def rows(self, sql: str, values: Mapping[str, Any] | None = None) -> list[Row]:
        """Run a statement, and return its rows."""
        ...

    def later(self, sql: str, values: Mapping[str, Any] | None = None) -> Callable[[], list[Row]]:
        """Run a statement whose rows are fetched later: on a server, several of these are one round trip."""
        ...

    def run(self, sql: str, values: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None) -> None:
        """Run a statement that returns nothing; once for each of several mappings of values."""
        ...

    def add(self, table: Table, rows: Sequence[Sequence[Any]]) -> None:
        """Write rows, in the order of the table's columns; one whose key is there already changes nothing."""
        ...


class Transactions(Protocol):
    """Where work runs, one transaction after another, for one of the processes on a store."""

    process: str
    clock: Clock

    async def run(self, work: Callable[[Transaction], T], *, exclusive: bool = True) -> T:
        """Run `work` in a transaction. `exclusive`: it writes. Raises `StoreUnavailable`."""
        ...


def as_rows(rows: Iterable[Sequence[Any]]) -> dict[str, str]:
    """Values for a statement with `{rows}`: all rows in one statement, so in one round trip."""
    return {"rows": json.dumps(list(rows), separators=(",", ":"))}


def picked(texts: Sequence[str], numbers: Sequence[str]) -> dict[str, str]:
    """How a statement picks columns out of `{rows}`, each of them texts first and then numbers."""
    found = {name: f"value ->> {place}" for place, name in enumerate(texts)}
    # PostgreSQL extracts numbers as text.
    return found | {
        name: f"CAST(value ->> {place} AS bigint)" for place, name in enumerate(numbers, len(texts))
    }


class StatementRejected(StoreUnavailable):
    """The store works, but rejects this: running it again unchanged cannot help."""
