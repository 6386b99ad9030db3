"""The tables of the state store, and the steps that upgrade an older store.

A process executes the missing steps of `STEPS` in one transaction while other processes wait. A published step never
changes. There are two kinds of steps, because during a rolling upgrade processes of two versions use one store:

* A `Growth` only adds: tables, columns with a default, indexes. An older koo keeps working on the upgraded store, and
  still accepts it after a restart. `koo_growth` has a row for each growth that was executed.
* Any other step changes something that an older koo uses. `koo_schema` has one row with the number of such steps. A
  process refuses a store with more of them than it has itself. So an unused table or column is dropped one release
  after the code that used it.

The tables:

* `koo_treasuries`: one row per budget and period (`policies/treasury.py`). A `limit_amount` of -1 means no limit.
* `koo_purses`: what one process was granted, sent back, spent, and spent without a grant, by budget and period. The
  purses of all processes that have ended are merged into one row, `ended`.
* `koo_processes`: each process's last beat, its time, and the data loss that it revealed (JSON).
* `koo_limits`: for each limit per minute or hour, the units in the window (JSON: sub-bucket and count). `koo_leases`:
  each process's leased units (`policies/units.py`); `lapsed` units counted as used when a lease ended unreported.
* `koo_probe`: written to test whether a store that failed accepts writes again.
* `koo_entries`: the bookings, one row for each call that ended with a cost.
* `koo_signals`: operators' acts that concern all processes.
* `koo_episodes`: alerts from start to end, at most one open per fingerprint. `koo_sightings`: the processes that see
  each of them, each under a lease. `koo_silences`: alerts that send no notices.
* `koo_notices`: messages for people. `koo_channels`: one row per channel; its `process` may send while its lease lasts,
  in an `epoch` that grows with each new holder. `koo_deliveries`: the state of each notice on each channel. Deliveries
  with the same `message` are sent together.
* `koo_fleet`: each process's last report about itself. `koo_fleet_guards`: its guards. `koo_fleet_configurations`:
  digests of its options (JSON). `koo_fleet_checks`: the result of the leader's last unbilled check of each service.
  `koo_fleet_probes`: probe units (`policies/probing.py`). `koo_leader`: the process that leads, its epoch, and the
  end of its lease (`policies/fleet.py`).
* `koo_history`: the state of a process's components in one minute or five (JSON, `storage/history.py`). `koo_marks`:
  events at one moment. `koo_incidents`: openings of breakers (JSON), one row for each process that saw one; rows with
  the same `outage` belong together (`storage/incidents.py`).

Money is in pico-dollars, times are milliseconds since 1970, days are days since 1970.
"""

from __future__ import annotations

from collections.abc import Iterator

from koo.storage.base import StoreUnavailable
from koo.storage.transaction import Transaction


class Growth(tuple[str, ...]):
    """A step that only adds."""

    __slots__ = ()


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
    (
        """CREATE TABLE koo_treasuries (
             budget TEXT NOT NULL, period BIGINT NOT NULL, limit_amount BIGINT NOT NULL, limit_at_ms BIGINT NOT NULL,
             booked BIGINT NOT NULL, spent BIGINT NOT NULL, recall_at_ms BIGINT NOT NULL,
             PRIMARY KEY (budget, period))""",
        """CREATE TABLE koo_purses (
             budget TEXT NOT NULL, period BIGINT NOT NULL, process TEXT NOT NULL,
             granted BIGINT NOT NULL, back BIGINT NOT NULL, spent BIGINT NOT NULL, over_granted BIGINT NOT NULL,
             held BIGINT NOT NULL, PRIMARY KEY (budget, period, process))""",
        """CREATE TABLE koo_processes (
             name TEXT NOT NULL PRIMARY KEY, number BIGINT NOT NULL, token TEXT NOT NULL,
             closed INTEGER NOT NULL, seen_ms BIGINT NOT NULL)""",
        "CREATE TABLE koo_probe (filler TEXT NOT NULL)",
        "ALTER TABLE koo_schema ADD COLUMN frozen_until_ms BIGINT NOT NULL DEFAULT 0",
        # Settled amounts stay spent. A held amount may have been billed, so it stays booked until its day is over.
        """INSERT INTO koo_treasuries
             SELECT 'service/' || service, day, -1, 0, settled + held, settled, 0 FROM koo_days""",
        """INSERT INTO koo_purses
             SELECT 'service/' || service, day, 'before', settled + held, 0, settled, 0, 0 FROM koo_days""",
        """INSERT INTO koo_treasuries
             SELECT 'requests/' || service, day, -1, 0, requests, requests, 0 FROM koo_days""",
        """INSERT INTO koo_purses
             SELECT 'requests/' || service, day, 'before', 0, 0, requests, requests, 0 FROM koo_days""",
        "DROP TABLE koo_days",
        "DROP TABLE koo_holds",
    ),
    ("ALTER TABLE koo_processes ADD COLUMN forgotten TEXT NOT NULL DEFAULT ''",),
    (
        """CREATE TABLE koo_notices (
             key TEXT NOT NULL PRIMARY KEY, at_ms BIGINT NOT NULL, what TEXT NOT NULL, fingerprint TEXT NOT NULL,
             kind TEXT NOT NULL, severity TEXT NOT NULL, component TEXT NOT NULL, message TEXT NOT NULL,
             started_ms BIGINT NOT NULL, ended_ms BIGINT, data TEXT NOT NULL)""",
        "CREATE INDEX koo_notices_at ON koo_notices (at_ms)",
        """CREATE TABLE koo_channels (
             name TEXT NOT NULL PRIMARY KEY, since_ms BIGINT NOT NULL, process TEXT NOT NULL,
             lease_ends_ms BIGINT NOT NULL, next_ms BIGINT NOT NULL, failures BIGINT NOT NULL,
             failing_since_ms BIGINT, reason TEXT NOT NULL, sent_ms BIGINT)""",
        """CREATE TABLE koo_deliveries (
             notice TEXT NOT NULL, channel TEXT NOT NULL, state TEXT NOT NULL, message TEXT NOT NULL,
             attempts BIGINT NOT NULL, next_ms BIGINT NOT NULL, done_ms BIGINT, reason TEXT NOT NULL,
             PRIMARY KEY (notice, channel))""",
        "CREATE INDEX koo_deliveries_state ON koo_deliveries (channel, state, done_ms)",
    ),
    (
        "ALTER TABLE koo_episodes RENAME TO koo_episodes_before",
        """CREATE TABLE koo_episodes (
             id TEXT NOT NULL PRIMARY KEY, fingerprint TEXT NOT NULL, type TEXT NOT NULL, component TEXT NOT NULL,
             message TEXT NOT NULL, data TEXT NOT NULL, started_ms BIGINT NOT NULL, fired_ms BIGINT,
             notified_ms BIGINT, ended_ms BIGINT, acknowledged TEXT NOT NULL)""",
        "CREATE UNIQUE INDEX koo_episodes_lasting ON koo_episodes (fingerprint) WHERE ended_ms IS NULL",
        "CREATE INDEX koo_episodes_started ON koo_episodes (started_ms, id)",
        """CREATE TABLE koo_sightings (
             episode TEXT NOT NULL, process TEXT NOT NULL, phase TEXT NOT NULL, lease_ends_ms BIGINT NOT NULL,
             PRIMARY KEY (episode, process))""",
        """CREATE TABLE koo_silences (
             id TEXT NOT NULL PRIMARY KEY, kind TEXT NOT NULL, component TEXT NOT NULL, made_ms BIGINT NOT NULL,
             ends_ms BIGINT NOT NULL, made_by TEXT NOT NULL, reason TEXT NOT NULL)""",
        # Every process had its own row for an open episode, and the unique index allows one: the oldest is kept.
        # Ended episodes are all kept.
        """INSERT INTO koo_episodes
             SELECT 'before' || row_number() OVER (ORDER BY started_ms, fingerprint, process), fingerprint, type,
               component, message, data, started_ms, started_ms, NULL,
               CASE WHEN ended_ms < started_ms THEN started_ms ELSE ended_ms END, ''
             FROM koo_episodes_before b WHERE type <> 'info' AND (ended_ms IS NOT NULL OR NOT EXISTS
               (SELECT 1 FROM koo_episodes_before o WHERE o.fingerprint = b.fingerprint AND o.ended_ms IS NULL
                  AND (o.started_ms < b.started_ms OR (o.started_ms = b.started_ms AND o.process < b.process))))""",
        "DROP TABLE koo_episodes_before",
    ),
    Growth(
        (
            """CREATE TABLE koo_fleet (
             process TEXT NOT NULL PRIMARY KEY, ledger TEXT NOT NULL, host TEXT NOT NULL, worker TEXT NOT NULL,
             pid BIGINT NOT NULL, version TEXT NOT NULL, label TEXT NOT NULL, started_ms BIGINT NOT NULL,
             seen_ms BIGINT NOT NULL, beat_ms BIGINT NOT NULL, beats BIGINT NOT NULL,
             in_flight BIGINT NOT NULL)""",
            "CREATE TABLE koo_fleet_configurations (process TEXT NOT NULL PRIMARY KEY, digests TEXT NOT NULL)",
            """CREATE TABLE koo_fleet_guards (
             process TEXT NOT NULL, guard TEXT NOT NULL, place TEXT NOT NULL, phase TEXT NOT NULL,
             is_down BIGINT NOT NULL, since_ms BIGINT NOT NULL, calls BIGINT NOT NULL,
             PRIMARY KEY (process, guard, place))""",
            """CREATE TABLE koo_fleet_checks (
             service TEXT NOT NULL, place TEXT NOT NULL, kind TEXT NOT NULL, reason TEXT NOT NULL,
             at_ms BIGINT NOT NULL, number BIGINT NOT NULL, PRIMARY KEY (service, place))""",
            """CREATE TABLE koo_leader (
             role TEXT NOT NULL PRIMARY KEY, process TEXT NOT NULL, epoch BIGINT NOT NULL, until_ms BIGINT NOT NULL)""",
            "INSERT INTO koo_leader (role, process, epoch, until_ms) VALUES ('fleet', '', 0, 0)",
        )
    ),
    Growth(
        (
            """CREATE TABLE koo_limits (
             name TEXT NOT NULL PRIMARY KEY, occupied TEXT NOT NULL, limit_amount BIGINT NOT NULL,
             limit_at_ms BIGINT NOT NULL, serial BIGINT NOT NULL, frozen_until_ms BIGINT NOT NULL)""",
            """CREATE TABLE koo_leases (
             name TEXT NOT NULL, process TEXT NOT NULL, serial BIGINT NOT NULL, number BIGINT NOT NULL,
             until_ms BIGINT NOT NULL, granted BIGINT NOT NULL, used BIGINT NOT NULL, undone BIGINT NOT NULL,
             back BIGINT NOT NULL, lapsed BIGINT NOT NULL, PRIMARY KEY (name, process))""",
        )
    ),
    Growth(
        (
            "ALTER TABLE koo_fleet_guards ADD COLUMN proved_ms BIGINT NOT NULL DEFAULT 0",
            """CREATE TABLE koo_fleet_probes (
             guard TEXT NOT NULL, place TEXT NOT NULL, process TEXT NOT NULL, units BIGINT NOT NULL,
             until_ms BIGINT NOT NULL, PRIMARY KEY (guard, place, process))""",
        )
    ),
    Growth(
        (
            """CREATE TABLE koo_history (
             step_s BIGINT NOT NULL, at_s BIGINT NOT NULL, process TEXT NOT NULL, data TEXT NOT NULL,
             PRIMARY KEY (step_s, at_s, process))""",
            """CREATE TABLE koo_marks (
             at_ms BIGINT NOT NULL, process TEXT NOT NULL, kind TEXT NOT NULL, component TEXT NOT NULL,
             text TEXT NOT NULL)""",
            "CREATE INDEX koo_marks_at ON koo_marks (at_ms)",
        )
    ),
    Growth(("CREATE INDEX koo_entries_at ON koo_entries (at_ms, id)",)),
    Growth(("ALTER TABLE koo_channels ADD COLUMN epoch BIGINT NOT NULL DEFAULT 0",)),
    Growth(
        (
            """CREATE TABLE koo_incidents (
             id TEXT NOT NULL PRIMARY KEY, outage TEXT NOT NULL, process TEXT NOT NULL, guard TEXT NOT NULL,
             component TEXT NOT NULL, opened_ms BIGINT NOT NULL, closed_ms BIGINT, seen_ms BIGINT NOT NULL,
             has_left BIGINT NOT NULL, counts TEXT NOT NULL, data TEXT NOT NULL)""",
            "CREATE INDEX koo_incidents_opened ON koo_incidents (opened_ms)",
            "CREATE INDEX koo_incidents_outage ON koo_incidents (outage)",
        )
    ),
    Growth(
        (
            "ALTER TABLE koo_entries ADD COLUMN took_ms BIGINT",
            "ALTER TABLE koo_entries ADD COLUMN outcome TEXT",
            "ALTER TABLE koo_entries ADD COLUMN request TEXT",
            "ALTER TABLE koo_entries ADD COLUMN attempt BIGINT",
        )
    ),
)

_TABLES = {
    "sqlite": "SELECT name FROM sqlite_master WHERE name IN ('koo_schema', 'koo_growth')",
    # to_regclass() is not used, because it caches that a table is missing. After waiting for the process that creates
    # the table, it would still report it as missing, and this process would try to create it again.
    "postgresql": """SELECT relname FROM pg_class
        WHERE relname IN ('koo_schema', 'koo_growth') AND pg_table_is_visible(oid)""",
}


def is_current(tx: Transaction) -> bool:
    """Whether all steps were executed on the store. Raises `StoreUnavailable` if a newer koo wrote it."""
    return next(_missing(tx), None) is None


def prepare(tx: Transaction) -> None:
    """Execute the missing steps. Raises `StoreUnavailable` if a newer koo wrote the store."""
    # Of several processes that start at the same time, one upgrades and the others wait for its COMMIT here. They read
    # the tables only after that: what `is_current` found earlier is outdated by now.
    tx.rows("{latecomers_wait}")
    for table, first in _FIRST.items():
        if table not in _tables(tx):
            for statement in first:
                tx.run(statement)
    for number, step in list(_missing(tx)):
        for statement in step:
            tx.run(statement)
        if isinstance(step, Growth):
            tx.run("INSERT INTO koo_growth (number) VALUES (:number)", {"number": number})
        else:
            tx.run("UPDATE koo_schema SET steps = steps + 1")


_FIRST = {
    "koo_schema": (
        "CREATE TABLE koo_schema (steps INTEGER NOT NULL)",
        "INSERT INTO koo_schema (steps) VALUES (0)",
    ),
    "koo_growth": ("CREATE TABLE koo_growth (number INTEGER NOT NULL PRIMARY KEY)",),
}


def _tables(tx: Transaction) -> set[str]:
    return {name for (name,) in tx.rows(_TABLES[tx.dialect])}


def _missing(tx: Transaction) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The missing steps with their numbers. Raises `StoreUnavailable` if a newer koo wrote the store."""
    tables = _tables(tx)
    taken = int(tx.rows("SELECT steps FROM koo_schema")[0][0]) if "koo_schema" in tables else 0
    grown = (
        {number for (number,) in tx.rows("SELECT number FROM koo_growth")}
        if "koo_growth" in tables
        else set()
    )
    known = sum(not isinstance(step, Growth) for step in STEPS)
    if taken > known:
        raise StoreUnavailable(
            f"the state store was written by a newer koo (schema {taken}; this one supports {known}): upgrade koo, "
            "or set KOO_STATE_URL to another store"
        )
    # Growths of a newer koo do not prevent the use of the store: their numbers are simply not in this koo's `STEPS`.
    for number, step in enumerate(STEPS):
        if isinstance(step, Growth):
            if number not in grown:
                yield number, step
        elif taken:
            taken -= 1
        else:
            yield number, step
