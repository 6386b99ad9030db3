"""Options for transactions that happen exactly once, even if the connection is lost during COMMIT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from koo.checked import Checked, option


@dataclass(frozen=True, slots=True, kw_only=True)
class OnceOptions(Checked):
    """Markers: the rows that show, after a connection was lost during COMMIT, whether the transaction happened."""

    exactly_once: Literal["off", "marker"] = option(
        "off",
        "`marker` writes a row with each COMMIT on PostgreSQL, which shows after a lost connection whether "
        "it happened; `koo db init` creates the table. On SQLite the outcome is always known, without a row",
        "koo creates no table in your database unless told to",
    )
    resolve_timeout_s: float = option(
        10.0,
        "how long after a scope's deadline koo tries to find the outcome of a lost COMMIT",
        "a server that crashed has usually recovered by then",
        unit="s",
        at_least=0,
        at_most=3600,
    )
    marker_retention_s: float = option(
        86_400.0,
        "age at which markers and the results of idempotency keys are deleted; longer than any client retries",
        "clients and people retry within a day",
        unit="s",
        at_least=3600,
    )
