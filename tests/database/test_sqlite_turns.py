"""Each statement on SQLite is one turn of its connection's thread: BEGIN, the statement, its rows, its close."""

# ruff: noqa: PT012 - these tests are about what is raised inside a scope and what leaves it

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from sqlalchemy import TextClause, text
from sqlalchemy.exc import OperationalError

from koo.database.database import Database
from koo.database.drivers.aiosqlite import SingleEnd, connect
from koo.database.drivers.aiosqlite_cursor import AdaptedConnection, OneTurnCursor
from koo.database.greenlets import in_greenlet
from koo.database.sqlite import Opening
from tests.database.support import INSERT, SELECT, notes, run, with_notes

TABLE = "CREATE TABLE notes (n INTEGER PRIMARY KEY, words TEXT)"


@asynccontextmanager
async def on_file(path: Path) -> AsyncIterator[SingleEnd]:
    kept: list[Any] = []
    one = await connect(kept.append, str(path), isolation_level=None)
    try:
        yield one
    finally:
        await one.close()


def execute(one: SingleEnd, statement: str) -> asyncio.Future[Any]:
    return one.take_turn(sqlite3.Cursor.execute, statement)


async def turns(database: Database, statement: TextClause, **values: int) -> int:
    """The number of jobs that a scope with one statement on a warm connection puts into the thread's queue."""
    count = 0

    def note(frame: FrameType, event: str, what: Any) -> None:
        nonlocal count
        count += event == "c_call" and what.__name__ == "put_nowait"

    sys.setprofile(note)
    try:
        async with database.session_scope() as session:
            await session.execute(statement, values)
    finally:
        sys.setprofile(None)
    return count


def test_a_scope_that_writes_takes_two_turns_and_one_that_reads_takes_one(sqlite_url: str) -> None:
    """BEGIN and the statement in one turn, COMMIT in another. A read begins nothing, so there is nothing to commit."""

    async def main() -> None:
        async with with_notes(sqlite_url) as database:
            assert await notes(database) == []
            assert await turns(database, INSERT, n=1) == 2
            assert await turns(database, SELECT) == 1

    run(main)


STATEMENTS = [
    ("execute", "INSERT INTO notes (n, words) VALUES (?, ?)", (7, "seven")),
    ("execute", "INSERT INTO notes (words) VALUES (?) RETURNING n, words", ("eight",)),
    ("execute", "SELECT n, words FROM notes ORDER BY n", ()),
    ("execute", "SELECT n FROM notes WHERE n < 0", ()),
    ("execute", "UPDATE notes SET words = ?", ("same",)),
    ("execute", "DELETE FROM notes WHERE n = ?", (99,)),
    ("executemany", "INSERT INTO notes (n) VALUES (?)", [(1,), (2,)]),
    ("execute", "CREATE TABLE others (n INTEGER)", ()),
]


@pytest.mark.parametrize("begin", [None, "BEGIN IMMEDIATE"])
def test_koos_cursor_reports_the_same_values_as_sqlites_own_cursor(tmp_path: Path, begin: str | None) -> None:
    def said_by(cursor: Any) -> list[object]:
        said = [cursor.description, cursor.rowcount, cursor.lastrowid]
        return [*said, cursor.fetchone(), cursor.fetchmany(1), list(cursor), cursor.fetchone()]

    def ask(one: SingleEnd, opening: Opening | None) -> list[list[object]]:
        driver: Any = one
        adapted = AdaptedConnection(sqlite3, driver)
        answers = []
        one.opening = opening
        for method, statement, parameters in STATEMENTS:
            cursor = adapted.cursor()
            assert isinstance(cursor, OneTurnCursor)
            getattr(cursor, method)(statement, parameters)
            answers.append(said_by(cursor))
            cursor.close()
        return answers

    async def main() -> None:
        with closing(sqlite3.connect(tmp_path / "own.db", isolation_level=None)) as own:
            own.execute(TABLE)
            expected = []
            for method, statement, parameters in STATEMENTS:
                cursor = own.cursor()
                getattr(cursor, method)(statement, parameters)
                # The row count of RETURNING is known only once all rows were fetched.
                rows = cursor.fetchall()
                said = [cursor.description, cursor.rowcount, cursor.lastrowid]
                expected.append([*said, rows[0] if rows else None, rows[1:2], rows[2:], None])
        async with on_file(tmp_path / "test.db") as one:
            await execute(one, TABLE)
            assert await in_greenlet(ask, one, Opening(begin) if begin else None) == expected
            assert one.in_transaction is (begin is not None)

    run(main)


@pytest.mark.parametrize("when", ["before its opening", "after its opening"])
def test_a_statement_of_a_cancelled_caller_that_has_not_begun_does_not_begin(
    tmp_path: Path, when: str
) -> None:
    """An interrupt reaches only a running statement: nothing would end one that began afterwards."""
    reached, goes_on = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        reached.set()
        goes_on.wait()

    class Slow(Opening):
        def say(self, inner: sqlite3.Connection) -> None:
            super().say(inner)
            hold()

    async def main() -> None:
        async with on_file(tmp_path / "test.db") as one:
            await execute(one, TABLE)
            if when == "before its opening":
                one._tx.put_nowait((None, hold))
                one.opening = Opening("BEGIN IMMEDIATE")
            else:
                one.opening = Slow("BEGIN IMMEDIATE")
            statement = execute(one, "INSERT INTO notes (n) VALUES (1)")
            await asyncio.to_thread(reached.wait)
            statement.cancel()
            goes_on.set()
            one.opening = None
            assert (await execute(one, "SELECT n FROM notes")).rows == []
            assert one.in_transaction is (when == "after its opening")

    run(main)


def test_a_statement_that_fails_while_fetching_rows_keeps_no_lock(tmp_path: Path) -> None:
    """The error's traceback would otherwise keep the statement open."""

    async def main() -> None:
        async with on_file(tmp_path / "test.db") as one:
            await execute(one, TABLE)
            await execute(one, "INSERT INTO notes VALUES (1, 'one'), (2, CAST(x'ff' AS TEXT)), (3, 'three')")
            with pytest.raises(sqlite3.OperationalError, match="decode"):
                await execute(one, "SELECT words FROM notes")
            with closing(sqlite3.connect(tmp_path / "test.db", timeout=0)) as other:
                other.execute("DELETE FROM notes")
                other.commit()

    run(main)


def test_streamed_rows_of_a_first_write_are_part_of_the_transaction(sqlite_url: str) -> None:
    async def main() -> None:
        async with with_notes(sqlite_url) as database:
            with pytest.raises(ZeroDivisionError):
                async with database.session_scope() as session:
                    rows = await session.stream(text("INSERT INTO notes (n) VALUES (1) RETURNING n"))
                    assert [row.n async for row in rows] == [1]
                    raise ZeroDivisionError
            assert await notes(database) == []

    run(main)


def test_a_lock_held_by_the_scope_itself_raises_without_waiting(sqlite_url: str) -> None:
    """A statement is repeated only until its transaction has begun: the pauses are for other processes' locks."""
    pauses = []

    def draw() -> float:
        pauses.append(0.5)
        return 0.5

    async def main() -> None:
        async with with_notes(sqlite_url, pool_timeout_s=1.0) as database:
            assert database.connections is not None and database.connections.writers is not None
            database.connections.writers.draw = draw
            with pytest.raises(OperationalError, match="locked"):
                async with database.session_scope() as session:
                    await session.execute(text("CREATE TEMPORARY TABLE seen AS SELECT 1 AS n UNION SELECT 2"))
                    await session.commit()
                    reading = await session.stream(text("SELECT n FROM seen"))
                    await reading.fetchone()
                    await session.execute(text("DROP TABLE seen"))
            assert pauses == []

    run(main)
