"""Markers: rows that show whether a transaction was committed when its connection was lost during COMMIT.

    COMMIT      INSERT INTO koo_markers (key) VALUES ('tx:…'); COMMIT      one message: no extra round trip
    lost        the same key is inserted as *burned*                       on a connection outside the pool

Both INSERTs meet in the unique index. While the lost transaction is still open, the second INSERT waits for it. If the
transaction committed, its row exists. If not, the new row burns the key, and anything of the lost transaction that
arrives later fails on it. So one statement both finds the outcome and makes it final (`koo.database.outcomes`).

The table also has a row for each *idempotency key* (`koo.database.operations`), with the result of the operation.

On PostgreSQL every COMMIT of a scope that wrote has a marker. A SELECT may call a function that writes, and only the
server knows whether it did. So for a scope without a statement that writes, the same message makes the server check,
and insert a row only if something was written. SQLite commits in this process, which always knows the outcome, so it
needs no markers.

The table is created explicitly: with `koo db init`, or by the application's own migration with the same SQL. If the
table is missing or cannot be used, scopes that may write are refused: otherwise they would silently lose the protection
that they were promised.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from koo.crossing import begin
from koo.database.beside import Beside
from koo.database.faults import AGAIN_IN_S, SERVICE, ScopeStage, explain, unavailable
from koo.database.marker_keys import TABLE, Place, commit_key, quoted
from koo.errors import DatabaseError, Kind, KooError
from koo.monitoring.pool import PoolMetrics
from koo.options import DatabaseOptions
from koo.sqlstates import original_of, sqlstate_of

GUIDE = "docs/exactly-once.md"
COLUMNS = ("key", "created_at", "burned", "fingerprint", "result")
BATCH = 1000
"""Rows per DELETE: few enough that its locks and its WAL do not disturb the application."""
BATCHES_MAX = 20
CLEAN_S = 60.0
"""Time between two clean-ups. With the two numbers above, one process keeps up with 300 COMMITs a second."""
REFUSED = "42"
"""The class of SQLSTATEs for statements that can never succeed as they are: a missing table, a missing privilege."""
INIT_LOCK = 0x6B6F6F
"""The advisory lock of `koo db init`. CREATE TABLE IF NOT EXISTS can fail if two processes run it at the same time."""

POSTGRESQL_TABLE = """
CREATE TABLE IF NOT EXISTS koo_markers (
    key text COLLATE "C" PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    burned boolean NOT NULL DEFAULT false,
    fingerprint text,
    result text
);
ALTER TABLE koo_markers ADD COLUMN IF NOT EXISTS created_at timestamptz NOT NULL DEFAULT clock_timestamp();
ALTER TABLE koo_markers ADD COLUMN IF NOT EXISTS burned boolean NOT NULL DEFAULT false;
ALTER TABLE koo_markers ADD COLUMN IF NOT EXISTS fingerprint text;
ALTER TABLE koo_markers ADD COLUMN IF NOT EXISTS result text;
CREATE INDEX IF NOT EXISTS koo_markers_operations ON koo_markers (created_at) WHERE fingerprint IS NOT NULL;
COMMENT ON TABLE koo_markers IS 'koo: which transactions were committed, and results of idempotency keys'
"""
SQLITE_TABLE = """
CREATE TABLE IF NOT EXISTS koo_markers (
    key TEXT PRIMARY KEY,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    burned BOOLEAN NOT NULL DEFAULT 0,
    fingerprint TEXT,
    result TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS koo_markers_operations ON koo_markers (created_at) WHERE fingerprint IS NOT NULL
"""

# The result is one row: the schema, whether it is in the search path, the columns, whether the key is unique, the
# missing privileges. A table in the search path comes first. Otherwise any schema that has the table is named, so that
# the error can say where it is instead of "missing".
_LOOK = text("""
SELECT n.nspname, pg_table_is_visible(c.oid),
    ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped),
    EXISTS(SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
        WHERE i.indrelid = c.oid AND i.indisunique AND i.indnkeyatts = 1 AND i.indpred IS NULL AND a.attname = 'key'),
    ARRAY(SELECT p FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p
        WHERE NOT has_table_privilege(c.oid, p)) || CASE WHEN has_schema_privilege(n.oid, 'USAGE')
        THEN ARRAY[]::text[] ELSE ARRAY['USAGE of the schema'] END
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = 'koo_markers' AND c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_(temp|toast)'
ORDER BY 2 DESC LIMIT 1
""")
_LOOK_SQLITE = text("SELECT name FROM pragma_table_info('koo_markers')")
_DELETE = """
DELETE FROM {table} WHERE key IN (SELECT key FROM {table} WHERE key >= 'tx:' AND key < :before ORDER BY key
LIMIT :batch FOR UPDATE SKIP LOCKED)
"""
_DELETE_OPERATIONS = """
DELETE FROM {table} WHERE key IN (SELECT key FROM {table} WHERE fingerprint IS NOT NULL
AND created_at < {now} ORDER BY created_at LIMIT :batch{lock})
"""


log = logging.getLogger("koo")


class Markers:
    """The markers table of one database. `metrics.marker_problem` says why it cannot be used, or is None.

    `tend_at`: when old rows are next deleted, in monotonic seconds; `tending`: the task that deletes them.
    """

    def __init__(
        self, beside: Beside, options: DatabaseOptions, metrics: PoolMetrics, wall: Callable[[], float]
    ) -> None:
        self.place: Place | None = None
        self._wall = wall
        self._beside = beside
        self._options = options
        self._metrics = metrics
        self._looking: asyncio.Task[Place] | None = None
        self.tending: asyncio.Task[None] | None = None
        self.tend_at = 0.0

    async def ready(self) -> Place:
        """The location of the table, checked at the first use.

        If the table cannot be used, raises `DatabaseError` (not_configured) with the remedy, and the next call checks
        again.
        """
        if self.place is not None:
            return self.place
        return await self.look()

    async def look(self) -> Place:
        """Like `ready`, but check now. Concurrent callers share one check."""
        # The check is shielded: one caller that is cancelled, by its scope's deadline say, must not cancel the check
        # for the others.
        if self._looking is None or self._looking.done():
            self._looking = begin(asyncio.get_running_loop(), self._look(), "koo looks for its markers")
        return await asyncio.shield(self._looking)

    async def _look(self) -> Place:
        async def ask(connection: AsyncConnection) -> Place:
            return await (self._find_sqlite if self._beside.is_sqlite else self._find)(connection)

        try:
            place: Place = await self._run(ask)
        except DatabaseError as error:
            if error.kind is Kind.NOT_CONFIGURED:
                self.distrust(error.reason)
            raise
        self.place, self._metrics.marker_problem = place, None
        return place

    async def _find(self, connection: AsyncConnection) -> Place:
        row = (await connection.execute(_LOOK)).one_or_none()
        if row is None:
            raise refused(f"the table {TABLE} is missing: run `koo db init`")
        schema, is_visible, columns, is_unique, missing = row
        if missing:
            raise refused(
                f"this user lacks {', '.join(missing)} on {schema}.{TABLE}: GRANT it, or connect as the owner"
            )
        if not is_visible:
            raise refused(
                f"the table {TABLE} is in the schema {schema}, which is not in this user's search_path: set that in"
                " DATABASE_URL (options=-csearch_path=…), or run `koo db init` to create one here"
            )
        self._check_columns(columns)
        if not is_unique:
            raise refused(f"the column key of {TABLE} is not unique: this is not koo's table, so rename it")
        return Place(f"{quoted(schema)}.{TABLE}")

    async def _find_sqlite(self, connection: AsyncConnection) -> Place:
        columns = (await connection.execute(_LOOK_SQLITE)).scalars().all()
        if not columns:
            raise refused(f"the table {TABLE} is missing: run `koo db init`")
        self._check_columns(columns)
        return Place(TABLE, is_sqlite=True)

    def _check_columns(self, columns: Any) -> None:
        lacks = [name for name in COLUMNS if name not in columns]
        if lacks:
            raise refused(
                f"the table {TABLE} is from another version of koo: it lacks {', '.join(lacks)}; run `koo db init`"
            )

    def tend(self, now: float, *, must_be_there: bool) -> None:
        """Called every second: delete old rows every `CLEAN_S`; if it `must_be_there`, recheck an unusable table."""
        # A process without markers uses the table only if it has idempotency keys. Until `ready` has found the table
        # for one, there is nothing to clean and nothing to check. With markers, a missing table must be detected before
        # the first write, and its alert must end once the table exists.
        is_busy = self.tending is not None and not self.tending.done()
        if (
            is_busy
            or (self.place is None and not must_be_there)
            or (self.place is not None and now < self.tend_at)
        ):
            return
        self.tend_at = now + CLEAN_S
        self.tending = begin(asyncio.get_running_loop(), self._tend(), "koo tends its markers")

    async def _tend(self) -> None:
        try:
            await self.ready()
            await self.clean()
        except DatabaseError:
            log.debug("database: the markers could not be tended", exc_info=True)

    async def close(self) -> None:
        """Cancel the background work."""
        running = [task for task in (self.tending, self._looking) if task is not None and not task.done()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def distrust(self, problem: str) -> None:
        """A marker could not be written: check the table again before the next scope that may write."""
        self.place, self._metrics.marker_problem = None, problem

    async def make(self) -> None:
        """Create the table, or add the columns that an older one lacks. Safe to repeat. Raises `DatabaseError`."""

        async def create(connection: AsyncConnection) -> None:
            # The statements are sent one at a time: the drivers' prepared statements accept no more. All of it is one
            # transaction, and its end releases the lock.
            statements = SQLITE_TABLE if self._beside.is_sqlite else POSTGRESQL_TABLE
            if not self._beside.is_sqlite:
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({INIT_LOCK})"))
            for statement in statements.split(";"):
                await connection.exec_driver_sql(statement)

        await self._run(create)
        self.place = None
        await self.ready()

    async def clean(self) -> int:
        """Delete rows older than the retention, in small transactions; returns how many. Raises as `ready` does."""
        place = await self.ready()
        deleted = 0
        for _ in range(BATCHES_MAX):
            count = await self._run(lambda connection: self._delete(connection, place))
            deleted += count
            if count < BATCH:
                break
        return deleted

    async def _delete(self, connection: AsyncConnection, place: Place) -> int:
        keep_s = self._options.marker_retention_s
        now = (
            f"strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-{keep_s:.0f} seconds')"
            if place.is_sqlite
            else f"clock_timestamp() - interval '{keep_s:.0f} seconds'"
        )
        # Every process cleans the same table. With SKIP LOCKED they delete different rows instead of waiting for each
        # other, which could end in a deadlock.
        lock = "" if place.is_sqlite else " FOR UPDATE SKIP LOCKED"
        deletion = text(_DELETE_OPERATIONS.format(table=place.table, now=now, lock=lock))
        count: int = (await connection.execute(deletion, {"batch": BATCH})).rowcount
        if not place.is_sqlite:
            # The time in a key comes from the clock of the process that committed. By a clock that runs ahead, rows
            # from the last minutes would look a day old. Deleting them would make lost COMMITs look as if they had not
            # happened, so the earlier of this process's clock and the server's decides.
            server_s = float(
                (await connection.execute(text("SELECT extract(epoch FROM now())"))).scalar_one()
            )
            before = commit_key(min(self._wall(), server_s) - keep_s)
            deletion = text(_DELETE.format(table=place.table))
            count = max(
                count, (await connection.execute(deletion, {"before": before, "batch": BATCH})).rowcount
            )
        return count

    async def _run(self, work: Callable[[AsyncConnection], Awaitable[Any]]) -> Any:
        try:
            async with self._beside.begin(self._options.pool_timeout_s) as connection:
                return await work(connection)
        except KooError:
            raise
        except Exception as error:
            code = sqlstate_of(error)
            if code is not None and code.startswith(REFUSED):
                name = type(original_of(error)).__name__
                raise refused(f"{TABLE} could not be used ({name}, SQLSTATE {code}): see {GUIDE}") from error
            meaning = explain(error, ScopeStage.CONNECT)
            raise unavailable(error, meaning) from error


def refused(reason: str) -> DatabaseError:
    """The error for a markers table that cannot be used."""
    return DatabaseError(SERVICE, reason, AGAIN_IN_S, kind=Kind.NOT_CONFIGURED)
