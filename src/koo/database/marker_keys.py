"""The keys of markers, and the statement that writes them."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

TABLE = "koo_markers"
OF_COMMIT, OF_OPERATION = "tx:", "op:"
"""How the keys of the two kinds of rows begin."""
_CERTAIN = re.compile(r"\s*(?:INSERT|UPDATE|DELETE|MERGE|NOTIFY)\b", re.IGNORECASE)


def writes_for_certain(statement: str) -> bool:
    """Whether the statement's text proves that it has an effect. For other statements the server decides at COMMIT."""
    # A transaction that only notifies has no transaction id before its COMMIT. Without a marker of its own, a COMMIT
    # that was lost would be reported as not committed, and the repeat would send the notification again.
    return _CERTAIN.match(statement) is not None or "pg_notify" in statement.lower()


def commit_key(wall_s: float) -> str:
    """A unique key for one COMMIT: a UUID of version 7, which begins with the time."""
    # The time comes first so that old rows are a range of the primary key, which can be deleted without another index.
    # New keys are also inserted next to each other: random ones would touch a different index page each time.
    number = (int(wall_s * 1000) & (1 << 48) - 1) << 80 | secrets.randbits(80)
    number = number & ~(0xF << 76) | 0x7 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    digits = f"{number:032x}"
    return f"{OF_COMMIT}{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


@dataclass(frozen=True, slots=True)
class Place:
    """The location of the markers table: its name with the schema, as written in SQL."""

    table: str
    is_sqlite: bool = False

    def insertion(self, key: str, certain: bool) -> str:
        """The statement to send before COMMIT. `certain`: the transaction has written; otherwise the server checks."""
        insert = f"INSERT INTO {self.table} (key) VALUES ('{key}')"
        if certain:
            return insert
        # A SELECT may call a function that writes, and only the server knows whether it did. INSERT ... SELECT ...
        # WHERE would not do: a read-only transaction refuses the statement even if it would insert no row. A DO block
        # decides while it runs. The condition must come first: INSERT itself would assign a transaction id.
        return (
            "DO $koo$BEGIN IF pg_current_xact_id_if_assigned() IS NOT NULL"
            f" AND NOT current_setting('transaction_read_only')::bool THEN {insert}; END IF; END$koo$"
        )


def quoted(name: str) -> str:
    """A quoted SQL identifier, safe for any characters."""
    return '"' + name.replace('"', '""') + '"'
