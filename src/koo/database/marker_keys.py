"""What a marker is called, and the statement that writes it."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

TABLE = "koo_markers"
OF_COMMIT, OF_OPERATION = "tx:", "op:"
"""What a key begins with."""
_CERTAIN = re.compile(r"\s*(?:INSERT|UPDATE|DELETE|MERGE)\b", re.IGNORECASE)


def writes_for_certain(statement: str) -> bool:
    """Whether its first word says that it writes; of any other the server is asked."""
    return _CERTAIN.match(statement) is not None


def commit_key(wall_s: float) -> str:
    """A key that no other COMMIT has (a UUID of version 7): it begins with the time, so old ones are found by it."""
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
        """What goes before COMMIT. `certain`: the transaction has written; else the server sees whether it has."""
        insert = f"INSERT INTO {self.table} (key) VALUES ('{key}')"
        if certain:
            return insert
        # By DO and not by INSERT ... WHERE: in a read-only transaction that is refused also where it inserts nothing.
        return (
            "DO $koo$BEGIN IF pg_current_xact_id_if_assigned() IS NOT NULL"
            f" AND NOT current_setting('transaction_read_only')::bool THEN {insert}; END IF; END$koo$"
        )


def quoted(name: str) -> str:
    """A name as SQL takes it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'
