"""The keys of markers, and the statement that writes them."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

TABLE = "koo_markers"
OF_COMMIT, OF_OPERATION = "tx:", "op:"
"""What a key begins with."""
_CERTAIN = re.compile(r"\s*(?:INSERT|UPDATE|DELETE|MERGE)\b", re.IGNORECASE)


def writes_for_certain(statement: str) -> bool:
    """Whether its first word proves that it writes; for any other statement the server is asked."""
    return _CERTAIN.match(statement) is not None


def commit_key(wall_s: float) -> str:
    """A unique key for one COMMIT (a UUID of version 7). It begins with the time, so old rows are found by it."""
    number = (int(wall_s * 1000) & (1 << 48) - 1) << 80 | secrets.randbits(80)
    number = number & ~(0xF << 76) | 0x7 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    digits = f"{number:032x}"
    return f"{OF_COMMIT}{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the table is: its name with the schema, as SQL writes it."""

    table: str
    is_sqlite: bool = False

    def insertion(self, key: str, certain: bool) -> str:
        """What goes before COMMIT. `certain`: the transaction has written; otherwise the server checks that."""
        insert = f"INSERT INTO {self.table} (key) VALUES ('{key}')"
        if certain:
            return insert
        # By DO, not by INSERT ... WHERE: a read-only transaction refuses that even where it would insert nothing.
        return (
            "DO $koo$BEGIN IF pg_current_xact_id_if_assigned() IS NOT NULL"
            f" AND NOT current_setting('transaction_read_only')::bool THEN {insert}; END IF; END$koo$"
        )


def quoted(name: str) -> str:
    """A quoted SQL identifier, whatever characters it holds."""
    return '"' + name.replace('"', '""') + '"'
