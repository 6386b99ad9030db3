"""DB_EXACTLY_ONCE=marker: after a lost COMMIT koo finds out if it took effect, and a function takes effect once."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any, Literal

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from koo.database.database import Database
from koo.database.marker_keys import commit_key
from koo.errors import CommitOutcomeUnknown, DatabaseError, Kind, NotCommitted
from koo.testing.polling import until
from koo.testing.proxy import FaultProxy
from tests.database.conftest import Place
from tests.database.support import (
    INSERT,
    ONE,
    Base,
    Note,
    assert_free,
    leave_markers_alone,
    notes,
    opened,
    proxied,
    run,
    through,
)

KEYS = "SELECT count(*) FROM koo_markers WHERE NOT burned"
BURNED = "SELECT count(*) FROM koo_markers WHERE burned"


@asynccontextmanager
async def marked(pg: Place, **changes: Any) -> AsyncIterator[tuple[Database, FaultProxy]]:
    """A database with markers and an empty table `notes`, behind a proxy."""
    async with proxied(pg.server) as proxy:
        url = through(proxy, pg.server, pg.driver, pg.database)
        async with opened(url, exactly_once="marker", **changes) as database:
            await database.init_exactly_once()
            async with database.session_scope() as session:
                await session.run_sync(lambda sync: Base.metadata.create_all(sync.connection()))
            await leave_markers_alone(database)
            await in_thread(pg, "DELETE FROM koo_markers")
            yield database, proxy


async def in_thread(pg: Place, statement: str) -> None:
    """Run in a thread: waiting for a lock on the table must not block the loop, which may be deleting old rows."""
    await asyncio.to_thread(pg.server.sql, statement, pg.database)


def count(pg: Place, statement: str) -> int:
    return int(pg.server.sql(statement, pg.database))


async def insert(session: AsyncSession, n: int = 1) -> int:
    await session.execute(INSERT, {"n": n})
    return n


# ── a lost COMMIT ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("when", ["before", "after", "at"])
def test_a_function_whose_commit_is_lost_takes_effect_once(
    any_pg: Place, when: Literal["before", "at", "after"]
) -> None:
    runs = 0

    async def add(session: AsyncSession) -> int:
        nonlocal runs
        runs += 1
        return await insert(session)

    async def main() -> None:
        async with marked(any_pg) as (database, proxy):
            proxy.cut_commit(when)
            assert await database.transaction(add) == 1
            assert proxy.cuts == 1
            assert await notes(database) == [1]
            if when == "before":
                assert runs == 2 and count(any_pg, KEYS) == 1 and count(any_pg, BURNED) == 1
            elif when == "after":
                assert runs == 1 and count(any_pg, KEYS) == 1 and count(any_pg, BURNED) == 0
            assert database.get_pool_metrics()["errors"]["unknown_commits"] == 0

    run(main)


def test_a_scope_whose_lost_commit_happened_ends_as_a_success(pg: Place) -> None:
    async def main() -> None:
        async with marked(pg) as (database, proxy):
            proxy.cut_commit("after")
            heard: list[str] = []
            note = Note(n=1, words="kept")
            async with database.session_scope() as session:
                event.listen(session.sync_session, "after_commit", lambda _: heard.append("commit"))
                event.listen(session.sync_session, "after_rollback", lambda _: heard.append("rollback"))
                session.add(note)
            assert (proxy.cuts, heard) == (1, ["commit"]), "for SQLAlchemy's own session it is a success too"
            assert note.words == "kept", "and the objects are in the state of any other commit"
            assert await notes(database) == [1]

    run(main)


@pytest.mark.parametrize("notify", ["NOTIFY notes", "SELECT pg_notify('notes', '')"])
def test_a_transaction_that_only_notifies_notifies_once(pg: Place, notify: str) -> None:
    """For PostgreSQL it has not written anything before its COMMIT."""
    runs = 0

    async def tell(session: AsyncSession) -> None:
        nonlocal runs
        runs += 1
        await session.execute(text(notify))

    async def main() -> None:
        async with marked(pg) as (database, proxy):
            proxy.cut_commit("after")
            await database.transaction(tell)
            assert (proxy.cuts, runs, count(pg, KEYS), count(pg, BURNED)) == (1, 1, 1, 0)

    run(main)


def test_a_scope_whose_lost_commit_did_not_happen_raises_not_committed(pg: Place) -> None:
    async def main() -> None:
        async with marked(pg) as (database, proxy):
            proxy.cut_commit("before")
            with pytest.raises(NotCommitted, match="nothing of it was written") as caught:
                async with database.session_scope() as session:
                    await insert(session)
            assert caught.value.kind is Kind.CONNECTION and isinstance(caught.value.__cause__, Exception)
            assert await notes(database) == []
            assert_free(database)

    run(main)


def test_a_commit_inside_the_block_has_its_own_marker_and_the_block_continues(pg: Place) -> None:
    async def main() -> None:
        async with marked(pg) as (database, proxy):
            async with database.session_scope() as session:
                await insert(session, 1)
                proxy.cut_commit("after")
                await session.commit()
                await insert(session, 2)
                proxy.cut_commit("before")
                with pytest.raises(NotCommitted):
                    await session.commit()
                await session.rollback()
                await insert(session, 3)
            assert await notes(database) == [1, 3]
            assert (count(pg, KEYS), count(pg, BURNED)) == (2, 1)

    run(main)


def test_a_function_that_committed_part_of_its_work_is_not_repeated(pg: Place) -> None:
    async def two_parts(session: AsyncSession, proxy: FaultProxy) -> None:
        await insert(session, 1)
        await session.commit()
        proxy.cut_commit("before")
        await insert(session, 2)

    async def main() -> None:
        async with marked(pg) as (database, proxy):
            with pytest.raises(NotCommitted):
                await database.transaction(two_parts, proxy)
            assert await notes(database) == [1]

    run(main)


def test_a_commit_after_work_on_the_drivers_own_connection_has_a_marker(pg: Place) -> None:
    async def main() -> None:
        async with marked(pg) as (database, proxy):
            proxy.cut_commit("after")
            async with database.session_scope() as session:
                raw: Any = (await (await session.connection()).get_raw_connection()).driver_connection
                if pg.driver == "psycopg":
                    async with raw.cursor().copy("COPY notes (n) FROM STDIN") as copy:
                        await copy.write_row((1,))
                else:
                    await raw.copy_records_to_table("notes", records=[(1,)], columns=["n"])
            assert await notes(database) == [1] and proxy.cuts == 1

    run(main)


def test_a_commit_that_arrives_after_its_key_was_burned_is_not_committed(
    pg: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "tx:00000000-0000-7000-8000-000000000000"
    monkeypatch.setattr("koo.database.marked_hooks.commit_key", lambda wall_s: key)

    async def main() -> None:
        async with marked(pg) as (database, _):
            pg.server.sql(f"INSERT INTO koo_markers (key, burned) VALUES ('{key}', true)", pg.database)
            with pytest.raises(NotCommitted):
                async with database.session_scope() as session:
                    await insert(session)
            assert await notes(database) == []
            assert_free(database)

    run(main)


def test_a_repeated_query_does_not_mistake_its_own_row_for_the_transactions(pg: Place) -> None:
    """The query's own COMMIT may be lost too. The repeated query then meets the row that the first one left behind."""

    async def main() -> None:
        async with marked(pg) as (database, _):
            assert database.connections is not None
            outcomes, key = database.connections.outcomes, "tx:00000000-0000-7000-8000-000000000001"
            assert [await outcomes.learn(key, 0.0), await outcomes.learn(key, 0.0)] == [False, False]

    run(main)


def test_a_session_that_hangs_in_commit_is_terminated_and_the_query_repeated(pg: Place) -> None:
    """A deferred trigger keeps the session in COMMIT for as long as the server allows."""
    pg.server.sql(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN"
        " PERFORM pg_sleep(CASE WHEN NEW.n = 1 THEN 600 ELSE 0 END); RETURN NEW; END$$",
        pg.database,
    )

    async def main() -> None:
        async with marked(pg, cleanup_timeout_s=0.2) as (database, _):
            pg.server.sql(
                "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED"
                " FOR EACH ROW EXECUTE FUNCTION dawdle()",
                pg.database,
            )
            deadline = asyncio.get_running_loop().time() + 2.0
            with pytest.raises(NotCommitted):
                async with database.make_scope(deadline=deadline) as session:
                    await insert(session)
            assert await notes(database) == []
            left = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%tx:%' AND state = 'active'"
            assert count(pg, f"{left} AND pid <> pg_backend_pid()") == 0

    run(main)


async def fall_silent(database: Database, proxy: FaultProxy, deadline: float) -> None:
    """A transaction whose COMMIT is lost while no new connection can be opened."""
    async with database.make_scope(deadline=deadline) as session:
        await insert(session)
        proxy.cut_commit("after")
        proxy.refuses()


async def catch_an_error(database: Database) -> None:
    async with database.session_scope() as session:
        await insert(session)
        with suppress(DBAPIError):
            await session.execute(text("SELECT 1 / 0"))


# ── unknown outcomes ──────────────────────────────────────────────────────────────────────────────────────────────


def test_an_outcome_that_cannot_be_found_is_unknown_and_the_error_has_the_key(pg: Place) -> None:
    async def main() -> None:
        async with marked(pg, resolve_timeout_s=0.2) as (database, proxy):
            assert database.connections is not None
            deadline = asyncio.get_running_loop().time() + 3.0
            with pytest.raises(CommitOutcomeUnknown) as caught:
                await fall_silent(database, proxy, deadline)
            proxy.accepts()
            key = caught.value.key
            assert key is not None and key in str(caught.value)
            assert count(pg, f"SELECT count(*) FROM koo_markers WHERE key = '{key}' AND NOT burned") == 1
            assert "commit_unknown" in database.get_health()["conditions"]
            assert database.get_pool_metrics()["errors"]["unknown_commits"] == 1
            assert_free(database)

    run(main)


def test_a_cancelled_caller_leaves_and_the_outcome_is_logged(
    pg: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with marked(pg, cleanup_timeout_s=0.2) as (database, proxy):

            async def write() -> None:
                async with database.session_scope() as session:
                    await insert(session)
                    proxy.cut_commit("after")
                    proxy.refuses()  # no query is possible for now

            writing = asyncio.create_task(write())
            await until(lambda: proxy.cuts == 1)
            writing.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await writing
            assert isinstance(caught.value.__cause__, CommitOutcomeUnknown)
            assert_free(database)
            proxy.accepts()
            await until(lambda: "caller was lost: it happened" in caplog.text)
            assert f"in {__name__}" in caplog.text.replace("/", "."), (
                "the unknown outcome was published immediately"
            )
            errors = database.get_pool_metrics()["errors"]
            assert (errors["unknown_commits"], errors["resolved_commits"]) == (0, 1)
            assert "commit_unknown" not in database.get_health()["conditions"], "the outcome was found later"
            assert await notes(database) == [1]

    run(main)


def test_a_caller_cancelled_in_its_own_commit_leaves_and_the_outcome_is_logged(
    pg: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with marked(pg) as (database, proxy):

            async def write() -> None:
                async with database.session_scope() as session:
                    await insert(session)
                    proxy.cut_commit("hold")
                    await session.commit()

            writing = asyncio.create_task(write())
            await until(lambda: proxy.cuts == 1)
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
            await until(lambda: "it did not happen" in caplog.text)
            assert_free(database)

    run(main)


def test_a_commit_on_a_server_that_is_killed_meanwhile_happens_once(pg: Place) -> None:
    async def main() -> None:
        async with marked(pg, resolve_timeout_s=60.0) as (database, proxy):
            for when in ("before", "after"):
                proxy.cut_commit(when)
                cuts = proxy.cuts
                writing = asyncio.create_task(database.transaction(insert, cuts, max_retries=20))
                await until(lambda cuts=cuts: proxy.cuts > cuts)  # type: ignore[misc]
                pg.server.kill()
                pg.server.start()
                for n in range(6):
                    pg.server.sql(f"CREATE TABLE unrelated_{when}_{n} ()", pg.database)
                assert await writing == cuts
            assert await notes(database) == [0, 1]

    run(main)


def test_a_cancellation_during_the_lookup_waits_for_an_outcome_found_in_time(
    pg: Place,
) -> None:
    async def main() -> None:
        async with marked(pg, cleanup_timeout_s=30.0) as (database, proxy):

            async def write() -> None:
                async with database.session_scope() as session:
                    await insert(session)
                    proxy.cut_commit("before")

            writing = asyncio.create_task(write())
            await until(lambda: proxy.cuts == 1)
            writing.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await writing
            assert isinstance(caught.value.__cause__, NotCommitted)

    run(main)


# ── when a marker is written ──────────────────────────────────────────────────────────────────────────────────────


def test_a_marker_costs_no_round_trip(pg: Place) -> None:
    async def main() -> None:
        async with marked(pg) as (database, proxy):
            trips = []
            for n in (1, 2, 3, 4):
                before = proxy.round_trips
                async with database.session_scope(readonly=n < 3) as session:
                    await session.execute(ONE) if n < 3 else await insert(session, n)
                trips.append(proxy.round_trips - before)
            assert trips[1] == trips[3] and count(pg, KEYS) == 2

    run(main)


def test_a_transaction_that_only_reads_has_no_marker_unless_a_function_writes(pg: Place) -> None:
    async def main() -> None:
        async with marked(pg) as (database, _):
            pg.server.sql(
                "CREATE FUNCTION add(n int) RETURNS void LANGUAGE sql AS 'INSERT INTO notes VALUES (n)'",
                pg.database,
            )
            async with database.session_scope() as session:
                await session.execute(ONE)
            async with database.session_scope() as session:
                await session.execute(text("SET TRANSACTION READ ONLY"))
                await session.execute(ONE)
            async with database.session_scope(readonly=True) as session:
                await session.execute(ONE)
            async with database.session_scope():
                pass
            assert count(pg, KEYS) == 0
            async with database.session_scope() as session:
                await session.execute(text("SELECT add(1)"))
            assert count(pg, KEYS) == 1

    run(main)


def test_a_flush_at_commit_and_savepoints_precede_the_marker(pg: Place) -> None:
    async def main() -> None:
        async with marked(pg) as (database, proxy):
            proxy.cut_commit("after")
            async with database.session_scope() as session:
                async with session.begin_nested():
                    await insert(session, 1)
                session.add(Note(n=2))
            assert proxy.cuts == 1 and await notes(database) == [1, 2]
            assert count(pg, KEYS) == 1

    run(main)


# ── other errors of COMMIT ────────────────────────────────────────────────────────────────────────────────────────


def test_a_commit_that_the_server_refuses_raises_the_original_error(pg: Place) -> None:
    async def main() -> None:
        async with marked(pg) as (database, _):
            pg.server.sql("ALTER TABLE notes ADD UNIQUE (words) DEFERRABLE INITIALLY DEFERRED", pg.database)
            with pytest.raises(IntegrityError):
                async with database.session_scope() as session:
                    session.add_all([Note(n=1, words="same"), Note(n=2, words="same")])
            with pytest.raises(DatabaseError, match="a statement of this transaction failed"):
                await catch_an_error(database)
            async with database.session_scope() as session:
                await insert(session, 3)
            assert await notes(database) == [3] and count(pg, KEYS) == 1

    run(main)


# ── the table ─────────────────────────────────────────────────────────────────────────────────────────────────────


SPOILED = {
    "missing": ("DROP TABLE koo_markers", "is missing: run `koo db init`"),
    "older": ("ALTER TABLE koo_markers DROP COLUMN burned", "lacks burned; run `koo db init`"),
    "elsewhere": (
        "CREATE SCHEMA aside; ALTER TABLE koo_markers SET SCHEMA aside",
        "is in the schema aside, which is not in this user's search_path",
    ),
    "foreign": ("ALTER TABLE koo_markers DROP CONSTRAINT koo_markers_pkey", "is not unique"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_without_a_usable_table_scopes_raise_and_nothing_is_written(pg: Place, how: str) -> None:
    spoil, says = SPOILED[how]

    async def main() -> None:
        async with marked(pg) as (database, _):
            await in_thread(pg, spoil)
            with pytest.raises(DatabaseError) if how in {"missing", "elsewhere"} else nullcontext():
                async with database.session_scope() as session:  # it was usable at the last check
                    await insert(session)
            await database.close()
            with pytest.raises(DatabaseError, match=re.escape(says)) as caught:
                async with database.session_scope() as session:
                    await insert(session, 2)
            assert caught.value.kind is Kind.NOT_CONFIGURED
            assert "markers_unusable" in database.get_health()["conditions"]
            async with database.session_scope(readonly=True) as session:
                await session.execute(ONE)
            if how != "foreign":
                await database.init_exactly_once()
                async with database.session_scope() as session:
                    await insert(session, 3)
                assert (await notes(database))[-1] == 3
                assert "markers_unusable" not in database.get_health()["conditions"]

    run(main)


def test_the_error_names_the_missing_privileges(pg: Place) -> None:
    async def main() -> None:
        async with marked(pg):
            pg.server.sql(
                "DROP ROLE IF EXISTS clerk; CREATE ROLE clerk LOGIN; GRANT SELECT, INSERT ON koo_markers TO clerk",
                pg.database,
            )
            async with opened(pg.url.replace("postgres:koo-test@", "clerk@"), exactly_once="marker") as clerk:
                with pytest.raises(
                    DatabaseError, match=r"lacks UPDATE, DELETE on public\.koo_markers: GRANT it"
                ):
                    async with clerk.session_scope():
                        pass
            pg.server.sql("DROP OWNED BY clerk; DROP ROLE clerk", pg.database)

    run(main)


def test_a_search_path_of_the_transaction_does_not_redirect_the_marker(pg: Place) -> None:
    async def main() -> None:
        async with marked(pg) as (database, _):
            async with database.session_scope() as session:
                await insert(session)
                await session.execute(text("SET LOCAL search_path = pg_catalog"))
            assert count(pg, KEYS) == 1

    run(main)


def test_old_markers_are_deleted_and_newer_ones_are_kept(pg: Place) -> None:
    async def main() -> None:
        async with marked(pg) as (database, _):
            old, now = commit_key(time.time() - 2 * 86_400), commit_key(time.time())
            pg.server.sql(f"INSERT INTO koo_markers (key) VALUES ('{old}'), ('{now}')", pg.database)
            pg.server.sql(
                "INSERT INTO koo_markers (key, created_at, fingerprint)"
                " VALUES ('op:old', now() - interval '2 days', 'f'), ('op:young', now(), 'f')",
                pg.database,
            )
            assert database.connections is not None
            assert await database.connections.markers.clean() > 0
            assert count(pg, "SELECT count(*) FROM koo_markers") == 2
            assert count(pg, f"SELECT count(*) FROM koo_markers WHERE key IN ('{now}', 'op:young')") == 2

    run(main)


def test_sqlite_needs_neither_the_table_nor_markers(sqlite_url: str) -> None:
    async def main() -> None:
        async with opened(sqlite_url, exactly_once="marker") as database:
            async with database.session_scope() as session:
                await session.run_sync(lambda sync: Base.metadata.create_all(sync.connection()))
                await insert(session)
            await database.init_exactly_once()
            async with database.session_scope() as session:
                await insert(session, 2)
                assert (await session.execute(text("SELECT count(*) FROM koo_markers"))).scalar_one() == 0

    run(main)


def test_a_missing_table_is_detected_without_a_scope_and_old_rows_are_deleted_automatically(
    pg: Place,
) -> None:
    async def main() -> None:
        async with opened(pg.url, exactly_once="marker") as database:
            await database.health_check()  # only opened, without a scope
            await until(lambda: "markers_unusable" in database.get_health()["conditions"])
            async with opened(pg.url) as other:
                await other.init_exactly_once()
            old = commit_key(time.time() - 2 * 86_400)
            pg.server.sql(f"INSERT INTO koo_markers (key) VALUES ('{old}')", pg.database)
            await until(lambda: "markers_unusable" not in database.get_health()["conditions"])
            await until(lambda: count(pg, "SELECT count(*) FROM koo_markers") == 0)

    run(main)
