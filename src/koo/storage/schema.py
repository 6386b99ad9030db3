"""The tables of the state store, and how an older store becomes a newer one.

`koo_schema` holds one row: how many steps of `STEPS` were taken. A process takes the missing steps in one transaction,
while others wait; it refuses a store that has more steps than it knows. A step that was published never changes.

* `koo_days`: one row for each service and UTC day. Whoever writes money locks this row first.
* `koo_holds`: what is held now. A hold's row is its state: it is there as long as the hold stands, and whoever deletes
  it has ended it; nobody else can. `process` tells whose it was.
* `koo_entries`: what was booked, one row for each hold that ended with a cost.
* `koo_signals`: what operators did, for all processes.
* `koo_episodes`: alerts, from their beginning to their end. Each is its `process`'s as long as the lease lasts.

Money is in pico-dollars, times are milliseconds since 1970, days are days since then.
"""

from __future__ import annotations

from koo.storage.base import StoreUnavailable
from koo.storage.transaction import Transaction

STEPS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE koo_days (
             service TEXT NOT NULL, day BIGINT NOT NULL,
             settled BIGINT NOT NULL, held BIGINT NOT NULL, requests BIGINT NOT NULL,
             PRIMARY KEY (service, day))""",
        """CREATE TABLE koo_holds (
             id TEXT NOT NULL PRIMARY KEY, service TEXT NOT NULL, day BIGINT NOT NULL, model TEXT NOT NULL,
             amount BIGINT NOT NULL, lease_ends_ms BIGINT NOT NULL, tag TEXT, process TEXT NOT NULL)""",
        "CREATE INDEX koo_holds_lease ON koo_holds (lease_ends_ms)",
        """CREATE TABLE koo_entries (
             id TEXT NOT NULL PRIMARY KEY, at_ms BIGINT NOT NULL, service TEXT NOT NULL, day BIGINT NOT NULL,
             model TEXT NOT NULL, amount BIGINT NOT NULL, bound BIGINT NOT NULL,
             source TEXT NOT NULL, estimated INTEGER NOT NULL,
             input_tokens BIGINT NOT NULL, cache_read_tokens BIGINT NOT NULL, cache_write_tokens BIGINT NOT NULL,
             output_tokens BIGINT NOT NULL, reasoning_tokens BIGINT NOT NULL,
             unit_prices TEXT NOT NULL, price_version TEXT NOT NULL, tag TEXT, process TEXT NOT NULL)""",
        "CREATE INDEX koo_entries_day ON koo_entries (day, service)",
        """CREATE TABLE koo_signals (
             id {serial}, at_ms BIGINT NOT NULL, process TEXT NOT NULL,
             kind TEXT NOT NULL, target TEXT NOT NULL, payload TEXT NOT NULL)""",
        """CREATE TABLE koo_episodes (
             fingerprint TEXT NOT NULL, started_ms BIGINT NOT NULL, ended_ms BIGINT,
             type TEXT NOT NULL, component TEXT NOT NULL, message TEXT NOT NULL, data TEXT NOT NULL,
             PRIMARY KEY (fingerprint, started_ms))""",
    ),
    (
        "ALTER TABLE koo_episodes RENAME TO koo_episodes_before",
        """CREATE TABLE koo_episodes (
             fingerprint TEXT NOT NULL, started_ms BIGINT NOT NULL, ended_ms BIGINT,
             type TEXT NOT NULL, component TEXT NOT NULL, message TEXT NOT NULL, data TEXT NOT NULL,
             process TEXT NOT NULL, lease_ends_ms BIGINT NOT NULL,
             PRIMARY KEY (fingerprint, started_ms, process))""",
        """INSERT INTO koo_episodes
             SELECT fingerprint, started_ms, ended_ms, type, component, message, data, '', started_ms
             FROM koo_episodes_before""",
        "DROP TABLE koo_episodes_before",
    ),
    (
        "ALTER TABLE koo_holds ADD COLUMN metadata TEXT",
        "ALTER TABLE koo_entries ADD COLUMN metadata TEXT",
    ),
)

_EXISTS = {
    "sqlite": "SELECT count(*) FROM sqlite_master WHERE name = 'koo_schema'",
    # Not to_regclass(): what it remembers of a table that was not there outlives the wait for whoever makes it.
    "postgresql": "SELECT count(*) FROM pg_class WHERE relname = 'koo_schema' AND pg_table_is_visible(oid)",
}


def is_current(tx: Transaction) -> bool:
    """Has the store all steps? Raises `StoreUnavailable` if a newer koo wrote it."""
    return _steps_taken(tx) == len(STEPS)


def prepare(tx: Transaction) -> None:
    """Take the missing steps. Raises `StoreUnavailable` if a newer koo wrote the store."""
    tx.rows("{latecomers_wait}")
    taken = _steps_taken(tx)
    if taken == 0:
        tx.run("CREATE TABLE koo_schema (steps INTEGER NOT NULL)")
        tx.run("INSERT INTO koo_schema (steps) VALUES (0)")
    for step in STEPS[taken:]:
        for statement in step:
            tx.run(statement)
    tx.run("UPDATE koo_schema SET steps = :steps", {"steps": len(STEPS)})


def _steps_taken(tx: Transaction) -> int:
    if not tx.rows(_EXISTS[tx.dialect])[0][0]:
        return 0
    taken = int(tx.rows("SELECT steps FROM koo_schema")[0][0])
    if taken > len(STEPS):
        raise StoreUnavailable(
            f"the state store was written by a newer koo (schema {taken}, this one knows {len(STEPS)}): upgrade koo, "
            "or set KOO_STATE_URL to another store"
        )
    return taken
