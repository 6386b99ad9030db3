"""SQLite's traps: one writer, snapshots, folders, memory, interruption, other processes."""

# ruff: noqa: PT012 - these tests are about what is raised inside a scope and what leaves it

from __future__ import annotations

import asyncio
import gc
import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiosqlite
import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from koo.database.database import Database
from koo.database.drivers.aiosqlite import Aiosqlite, connect
from koo.database.sqlite import Need, ask_need, need_of
from koo.errors import ConfigurationError, DatabaseError, DatabaseTimeout, Kind, PoolSaturated
from koo.policies.verdict import FAILURE
from koo.testing.polling import until
from tests.database.support import (
    INSERT,
    ONE,
    SELECT,
    Note,
    assert_free,
    notes,
    opened,
    options,
    run,
    with_notes,
)

# A query that keeps SQLite busy for about ten seconds.
LONG = text(
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 200000000) SELECT count(*) FROM c"
)


@pytest.mark.parametrize(
    ("statement", "need"),
    [
        ("SELECT 1", Need.READ),
        ("  -- a comment\n select 1", Need.READ),
        ("/* one */ SELECT 1", Need.READ),
        ("/* one */ (/* two */ INSERT", None),
        ("/**/" * 1000 + "?", None),
        ("VALUES (1)", Need.READ),
        ("/* a route */ INSERT INTO t VALUES (1)", Need.WRITE),
        ("CREATE TABLE t (n)", Need.WRITE),
        ("SAVEPOINT sa_1", Need.SAVEPOINT),
        ("PRAGMA foreign_keys", Need.NOTHING),
        ("VACUUM", Need.NOTHING),
        ("WITH a AS (SELECT 1) SELECT * FROM a", None),
        ("something unheard of", None),
    ],
)
def test_the_first_word_of_a_statement_shows_what_it_needs_or_sqlite_decides(
    statement: str, need: Need | None
) -> None:
    assert need_of(statement, SimpleNamespace(compiled=None)) is need


@pytest.mark.parametrize(
    ("statement", "need"),
    [
        ("WITH a AS (SELECT 1) SELECT * FROM a", Need.READ),
        ("WITH a AS (SELECT n FROM notes WHERE words = 'delete') SELECT * FROM a", Need.READ),
        ('/* insert */ WITH "update" AS (SELECT 1) SELECT * FROM "update" -- replace', Need.READ),
        ("WITH a AS (SELECT 1 AS n) INSERT INTO notes (n) SELECT n FROM a", Need.WRITE),
        ("WITH a AS (SELECT 1 AS n) DELETE FROM notes WHERE n IN (SELECT n FROM a)", Need.WRITE),
        ("WITH a AS (SELECT :n AS n) UPDATE notes SET words = '' WHERE n IN (SELECT n FROM a)", Need.WRITE),
        ("ANALYZE", Need.WRITE),
        ("something unheard of", Need.READ),
    ],
)
def test_sqlite_determines_what_a_statement_needs(statement: str, need: Need, sqlite_url: str) -> None:
    async def main() -> None:
        async with with_notes(sqlite_url) as database, database.session_scope() as session:
            raw = await (await session.connection()).get_raw_connection()
            values = {"n": 1} if ":n" in statement else ()
            assert await ask_need(raw.driver_connection, statement, values) is need

    run(main)


def test_a_cte_that_only_reads_does_not_wait_for_a_writer_and_is_allowed_to_a_reader(sqlite_url: str) -> None:
    count = text("WITH gone AS (SELECT n FROM notes WHERE words = 'delete') SELECT count(*) FROM gone")

    async def main() -> None:
        async with with_notes(sqlite_url) as database:
            async with database.session_scope(readonly=True) as session:
                assert await session.scalar(count) == 0
            async with database.session_scope() as writer:
                await writer.execute(INSERT, {"n": 1})
                async with database.session_scope() as session:
                    assert await session.scalar(count) == 0
                    writers = database.connections.writers  # type: ignore[union-attr]
                    assert writers is not None and not writers.line

    run(main)


def test_a_cte_that_writes_is_refused_in_a_read_only_scope(sqlite_url: str) -> None:
    delete = text("WITH a AS (SELECT :n AS n) DELETE FROM notes WHERE n IN (SELECT n FROM a)")

    async def main() -> None:
        async with with_notes(sqlite_url) as database:
            await insert(database, 1)
            with pytest.raises(DatabaseError, match="read-only"):
                async with database.session_scope(readonly=True) as session:
                    await session.execute(delete, {"n": 1})
            assert await notes(database) == [1]

    run(main)


def test_a_read_only_scope_may_set_a_savepoint(sqlite_url: str) -> None:
    async def main() -> None:
        async with with_notes(sqlite_url) as database:
            await insert(database, 1)
            async with database.session_scope(readonly=True) as session:
                async with session.begin_nested():
                    assert await session.scalar(text("SELECT count(*) FROM notes")) == 1
                await insert(database, 2)
                assert await session.scalar(text("SELECT count(*) FROM notes")) == 1

    run(main)


def test_a_write_after_a_savepoint_is_not_a_conflict(sqlite_url: str) -> None:
    async def main() -> None:
        async with with_notes(sqlite_url) as database:
            async with database.session_scope() as session, session.begin_nested():
                assert await session.scalar(text("SELECT count(*) FROM notes")) == 0
                await session.execute(INSERT, {"n": 1})
            assert await notes(database) == [1]

    run(main)


def held_by_a_foreign_reader(path: Path) -> sqlite3.Cursor:
    """A database without WAL, while another program (a backup, a browser) is in the middle of reading a table."""
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE notes (n INTEGER PRIMARY KEY, words TEXT)")
    other.executemany("INSERT INTO notes (n) VALUES (?)", [(n,) for n in range(1000)])
    other.commit()
    reading = other.execute("SELECT n FROM notes")
    reading.fetchone()
    return reading


def test_a_commit_waits_for_another_programs_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first attempts fail with BUSY and leave the transaction open. Then the reader ends."""
    tries = 0
    commit = aiosqlite.Connection.commit

    async def counted(connection: aiosqlite.Connection) -> None:
        nonlocal tries
        tries += 1
        await commit(connection)

    monkeypatch.setattr(aiosqlite.Connection, "commit", counted)

    async def main() -> None:
        reading = held_by_a_foreign_reader(tmp_path / "given.db")
        async with opened(f"sqlite:///{tmp_path / 'given.db'}") as database:
            writing = asyncio.create_task(insert(database, -1))
            await until(lambda: tries >= 3)
            assert not writing.done()
            reading.close()
            await writing
            assert database.metrics.contention == 0
            assert -1 in await notes(database)
        reading.connection.close()

    run(main)


def test_a_commit_waits_for_another_programs_reader_until_its_deadline(tmp_path: Path) -> None:
    async def main() -> None:
        reading = held_by_a_foreign_reader(tmp_path / "given.db")
        async with opened(f"sqlite:///{tmp_path / 'given.db'}", pool_timeout_s=1.0) as database:
            with pytest.raises(OperationalError, match="locked"):
                await insert(database, -1)
            assert_free(database)
            reading.close()
            assert -1 not in await notes(database)
        reading.connection.close()

    run(main)


def test_missing_wal_is_a_condition_until_a_new_connection_switches_it_on(tmp_path: Path) -> None:
    async def main() -> None:
        reading = held_by_a_foreign_reader(tmp_path / "given.db")
        async with opened(f"sqlite:///{tmp_path / 'given.db'}") as database:
            assert len(await notes(database)) == 1000
            assert database.get_health()["conditions"] == ["without_wal"]
            reading.close()
            await database.health_check()
            assert database.get_health()["conditions"] == []
        reading.connection.close()

    run(main)


@pytest.mark.parametrize(
    "options",
    ["mode=ro", "mode=ro&uri=true", "timeout=3", "isolation_level=DEFERRED", "mdoe=ro", "immutable=1"],
)
def test_an_option_that_sqlite_would_ignore_is_refused(options: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"would be ignored|in this form only"):
        Database(f"sqlite:///{tmp_path / 'given.db'}?{options}")
    assert list(tmp_path.iterdir()) == []


def test_connections_are_set_up(sqlite_url: str) -> None:
    async def main() -> None:
        async with opened(sqlite_url) as database, database.session_scope() as session:
            asked = {"journal_mode": "wal", "foreign_keys": 1, "synchronous": 1}
            for pragma, value in asked.items():
                assert await session.scalar(text(f"PRAGMA {pragma}")) == value

    run(main)


def test_foreign_keys_are_enforced(url: str) -> None:
    async def main() -> None:
        if not url.startswith("sqlite"):
            pytest.skip("only SQLite ignores foreign keys by default")
        async with opened(url) as database:
            async with database.session_scope() as session:
                await session.execute(text("CREATE TABLE a (n INTEGER PRIMARY KEY)"))
                await session.execute(text("CREATE TABLE b (n INTEGER REFERENCES a)"))
            with pytest.raises(IntegrityError):
                async with database.session_scope() as session:
                    await session.execute(text("INSERT INTO b VALUES (7)"))

    run(main)


def test_memory_is_one_database_for_all_connections_as_long_as_the_object_lives() -> None:
    folder = _written_and_read(Database(options("sqlite:///:memory:")))
    gc.collect()
    assert not folder.exists()


def _written_and_read(database: Database) -> Path:
    async def write() -> None:
        async with database.session_scope() as session:
            await session.execute(text("CREATE TABLE notes (n INTEGER PRIMARY KEY)"))
        await asyncio.gather(*(insert(database, n) for n in range(10)))

    async def read() -> Path:
        assert await notes(database) == list(range(10))
        assert database.connections is not None
        return Path(str(database.connections.engine.url.database)).parent

    asyncio.run(write())
    folder = asyncio.run(read())
    assert folder.exists()
    return folder


async def insert(database: Database, n: int) -> None:
    async with database.session_scope() as session:
        await session.execute(INSERT, {"n": n})


def test_fifty_concurrent_writers_each_get_their_turn(url: str) -> None:
    async def main() -> None:
        async with with_notes(url) as database:
            await asyncio.gather(*(insert(database, n) for n in range(50)))
            assert await notes(database) == list(range(50))
            assert database.get_pool_metrics()["errors"]["total"] == 0

    run(main)


def test_reading_then_writing_while_others_write_is_not_a_conflict(sqlite_url: str) -> None:
    """A deferred transaction that read before another connection's write could never write (BUSY_SNAPSHOT)."""

    async def main() -> None:
        async with with_notes(sqlite_url) as database:
            async with database.session_scope() as session:
                assert list((await session.scalars(SELECT)).all()) == []
                await insert(database, 1)
                await session.execute(INSERT, {"n": 2})
                # From its first write on, no other connection writes.
                assert list((await session.scalars(SELECT)).all()) == [1, 2]
            assert await notes(database) == [1, 2]
            assert database.get_pool_metrics()["errors"]["total"] == 0

    run(main)


def test_a_scope_is_the_writer_from_its_select_for_update_on(url: str) -> None:
    """Reading, deciding and writing loses no update: the same code is correct here and on PostgreSQL."""

    async def count_up(database: Database) -> None:
        async with database.session_scope() as session:
            note = (await session.scalars(select(Note).where(Note.n == 1).with_for_update())).one()
            await asyncio.sleep(0.001)
            note.words = str(int(note.words or "0") + 1)

    async def main() -> None:
        async with with_notes(url) as database:
            await insert(database, 1)
            await asyncio.gather(*(count_up(database) for _ in range(20)))
            async with database.session_scope() as session:
                assert (await session.get_one(Note, 1)).words == "20"

    run(main)


def test_a_transaction_keeps_its_snapshot_and_its_caller_sees_no_conflict(sqlite_url: str) -> None:
    runs = 0

    async def main() -> None:
        async with with_notes(sqlite_url) as database:

            async def read_then_write(session: AsyncSession) -> list[int]:
                nonlocal runs
                runs += 1
                seen = list((await session.scalars(SELECT)).all())
                if runs == 1:
                    await insert(database, 1)
                    assert list((await session.scalars(SELECT)).all()) == seen
                await session.execute(INSERT, {"n": 10 + len(seen)})
                return seen

            assert await database.transaction(read_then_write) == [1]
            assert runs == 2
            assert await notes(database) == [1, 11]

    run(main)


def test_after_a_conflict_the_repeat_is_the_writer_from_the_start(sqlite_url: str) -> None:
    """One repeat is therefore enough, however many writers there are."""

    async def main() -> None:
        async with with_notes(sqlite_url) as database:
            await insert(database, 1)

            async def count_up(session: AsyncSession) -> None:
                note = await session.get_one(Note, 1)
                await asyncio.sleep(0.001)
                note.words = str(int(note.words or "0") + 1)

            await asyncio.gather(*(database.transaction(count_up, max_retries=1) for _ in range(20)))
            async with database.session_scope() as session:
                assert (await session.get_one(Note, 1)).words == "20"

    run(main)


def test_a_read_only_scope_keeps_one_snapshot_and_never_waits(sqlite_url: str) -> None:
    async def main() -> None:
        async with with_notes(sqlite_url) as database:
            async with database.session_scope() as writer:
                await writer.execute(INSERT, {"n": 1})
                async with database.session_scope(readonly=True) as reader:
                    assert list((await reader.scalars(SELECT)).all()) == []
                    await writer.commit()
                    assert list((await reader.scalars(SELECT)).all()) == []
            assert await notes(database) == [1]

    run(main)


def test_a_scope_that_only_reads_does_not_block_a_writer(sqlite_url: str) -> None:
    async def main() -> None:
        async with with_notes(sqlite_url) as database, database.session_scope() as session:
            await session.execute(SELECT)
            await insert(database, 1)  # while the other is open
            assert list((await session.scalars(SELECT)).all()) == [1]

    run(main)


def test_a_serializable_scope_is_the_writer_from_the_start(sqlite_url: str) -> None:
    async def main() -> None:
        async with with_notes(sqlite_url, pool_timeout_s=1.0) as database:
            async with database.session_scope(isolation="SERIALIZABLE"):
                other = asyncio.create_task(insert(database, 1))
                with pytest.raises(PoolSaturated, match="one writer"):
                    await other
            await insert(database, 2)
            assert await notes(database) == [2]

    run(main)


def test_writers_are_served_in_order_of_arrival(sqlite_url: str) -> None:
    async def main() -> None:
        async with with_notes(sqlite_url) as database:
            turns: list[int] = []

            async def write(n: int) -> None:
                async with database.session_scope() as session:
                    await session.execute(INSERT, {"n": n})
                    turns.append(n)

            async with database.session_scope() as first:
                await first.execute(INSERT, {"n": 100})
                waiting = []
                for n in range(5):
                    waiting.append(asyncio.create_task(write(n)))
                    await until(lambda n=n: len(database.connections.writers.line) == n + 1)  # type: ignore[misc, union-attr]
                waiting[1].cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            assert turns == [0, 2, 3, 4]
            assert_free(database)

    run(main)


def test_a_writer_inside_a_writer_is_refused_without_waiting(sqlite_url: str) -> None:
    async def main() -> None:
        async with with_notes(sqlite_url) as database:
            async with database.session_scope() as outer:
                await outer.execute(INSERT, {"n": 1})
                with pytest.raises(DatabaseError, match="outer") as caught:
                    await insert(database, 2)
                assert caught.value.kind is Kind.CONTENTION
            assert await notes(database) == [1]

    run(main)


def test_a_rollback_inside_the_block_ends_the_writers_turn_early(sqlite_url: str) -> None:
    async def main() -> None:
        async with with_notes(sqlite_url) as database:
            async with database.session_scope() as session:
                await session.execute(INSERT, {"n": 1})
                await session.rollback()
                await insert(database, 2)
            assert await notes(database) == [2]

    run(main)


def test_a_writer_waits_for_another_process_that_writes(sqlite_url: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with with_notes(sqlite_url) as database:
            other = sqlite3.connect(tmp_path / "test.db", isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            other.execute("INSERT INTO notes (n) VALUES (1)")
            writing = asyncio.create_task(insert(database, 2))
            await asyncio.sleep(0.2)
            assert not writing.done()
            other.execute("COMMIT")
            other.close()
            await writing
            assert await notes(database) == [1, 2]

    run(main)


def test_another_process_that_never_finishes_writing_raises_in_time(sqlite_url: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with with_notes(sqlite_url, pool_timeout_s=1.0) as database:
            other = sqlite3.connect(tmp_path / "test.db", isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(OperationalError, match="locked"):
                await insert(database, 2)
            other.close()
            assert_free(database)
            assert database.guard.breaker.consecutive == 0
            await insert(database, 2)

    run(main)


def test_a_cancelled_statement_is_interrupted(sqlite_url: str) -> None:
    async def main() -> None:
        async with opened(sqlite_url) as database:
            running = asyncio.Event()

            async def long() -> None:
                async with database.session_scope() as session:
                    await session.execute(ONE)
                    running.set()
                    await session.execute(LONG)

            loop = asyncio.get_running_loop()
            task = asyncio.create_task(long())
            await running.wait()
            await asyncio.sleep(0.05)
            began = loop.time()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert loop.time() - began < 2.0
            assert_free(database)

    run(main)


def test_a_deadline_interrupts_the_statement(sqlite_url: str) -> None:
    async def main() -> None:
        async with with_notes(sqlite_url) as database:
            loop = asyncio.get_running_loop()
            began = loop.time()
            with pytest.raises(DatabaseTimeout):
                async with database.make_scope(deadline=began + 0.1) as session:
                    await session.execute(INSERT, {"n": 1})
                    await session.execute(LONG)
            assert loop.time() - began < 2.0
            assert await notes(database) == []
            await insert(database, 1)

    run(main)


def test_an_idle_writer_loses_its_turn_at_the_deadline(sqlite_url: str) -> None:
    async def main() -> None:
        async with with_notes(sqlite_url) as database:
            loop = asyncio.get_running_loop()
            remembered = asyncio.Event()

            async def forgetful() -> None:
                async with database.make_scope(deadline=loop.time() + 0.5) as session:
                    await session.execute(INSERT, {"n": 1})
                    await remembered.wait()

            forgetting = asyncio.create_task(forgetful())
            await until(lambda: database.connections.writers.used)  # type: ignore[union-attr]
            await insert(database, 2)
            assert not forgetting.done()
            remembered.set()
            with pytest.raises(DatabaseTimeout):
                await forgetting
            assert await notes(database) == [2]

    run(main)


def test_a_read_only_file_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "given.db"
    with sqlite3.connect(path) as given:
        given.execute("CREATE TABLE notes (n INTEGER PRIMARY KEY)")
        given.execute("INSERT INTO notes VALUES (1)")
    given.close()

    async def main() -> None:
        async with opened(f"sqlite:///file:{path}?mode=ro&uri=true") as database:
            assert await notes(database) == [1]
            with pytest.raises(OperationalError, match="readonly"):
                await insert(database, 2)
            assert "read_only" in (await database.health_check())["conditions"]

    run(main)


def replace(folder: Path, path: Path) -> None:
    for one in folder.iterdir():
        one.rename(one.with_name(f"old-{one.name}"))
    with closing(sqlite3.connect(path)) as restored:
        restored.execute("CREATE TABLE notes (n INTEGER PRIMARY KEY, words TEXT)")


@pytest.mark.parametrize("first", ["read", "insert", "add an object"])
def test_a_replaced_file_is_opened_anew_and_nothing_is_written_to_the_old_one(
    tmp_path: Path, first: str
) -> None:
    """As after a restored backup. An open connection would read and write the old file until it is recycled."""
    path = tmp_path / "given.db"

    async def work(session: AsyncSession) -> None:
        if first == "add an object":
            session.add(Note(n=2))
        else:
            await session.execute(INSERT, {"n": 2})

    async def main() -> None:
        async with with_notes(f"sqlite:///{path}") as database:
            await insert(database, 1)
            replace(tmp_path, path)
            if first == "read":
                assert await notes(database) == []
            await database.transaction(work)
            assert await notes(database) == [2]
            assert database.guard.tally.totals().verdicts[FAILURE] == 0

    run(main)
    with closing(sqlite3.connect(path)) as restored:
        assert restored.execute("SELECT n FROM notes").fetchall() == [(2,)]


def test_an_interrupt_remembered_by_an_open_statement_leaves_no_lock(tmp_path: Path) -> None:
    """A cancelled caller's traceback keeps its cursor; the next writer must not wait until that is freed."""

    async def main() -> None:
        kept: list[asyncio.Future[Any] | None] = []
        one = await connect(kept.append, str(tmp_path / "x.db"), isolation_level=None)
        await one.execute("CREATE TABLE notes (id INTEGER)")
        await one.execute("INSERT INTO notes VALUES (1), (2), (3)")
        await one.execute("BEGIN IMMEDIATE")
        cursor = await one.execute("SELECT id FROM notes")
        await cursor.fetchone()
        Aiosqlite().cut_off(one)
        await one.close()
        with closing(sqlite3.connect(tmp_path / "x.db", timeout=0)) as other:
            other.execute("BEGIN IMMEDIATE")
        del cursor

    asyncio.run(main())


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_transaction_that_sqlite_rolled_back_does_not_end_in_a_successful_commit(
    sqlite_url: str, goes_on: bool
) -> None:
    """Some errors end the whole transaction: later statements would be committed one by one."""

    async def main() -> None:
        async with with_notes(sqlite_url) as database:
            with pytest.raises(
                DatabaseError, match="rolled this transaction back" if goes_on else "rolls back"
            ):
                async with database.session_scope() as session:
                    await session.execute(text("INSERT INTO notes (n) VALUES (1)"))
                    with pytest.raises(IntegrityError):
                        await session.execute(text("INSERT OR ROLLBACK INTO notes (n) VALUES (1)"))
                    if goes_on:
                        await session.execute(text("INSERT INTO notes (n) VALUES (2)"))
            assert await notes(database) == []

    run(main)


def test_after_a_rollback_a_scope_that_sqlite_rolled_back_works_again(sqlite_url: str) -> None:
    async def main() -> None:
        async with with_notes(sqlite_url) as database:
            async with database.session_scope() as session:
                await session.execute(text("INSERT INTO notes (n) VALUES (1)"))
                with pytest.raises(IntegrityError):
                    await session.execute(text("INSERT OR ROLLBACK INTO notes (n) VALUES (1)"))
                await session.rollback()
                await session.execute(text("INSERT INTO notes (n) VALUES (2)"))
            assert await notes(database) == [2]

    run(main)
