"""Functions that are one transaction: repeated as a whole, joined, or failing with the original error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from koo.clock import SystemClock
from koo.database.database import Database
from koo.database.transactions import make_transactional
from koo.errors import DatabaseError, DatabaseTimeout, Kind
from koo.policies.verdict import FAILURE
from tests.database.conftest import Place
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
from tests.database.test_faults import kill_all

SERIALIZABLE = "SERIALIZABLE"


async def add_one(session: AsyncSession) -> int:
    """Read, decide, write: of two concurrent runs, one has to be repeated."""
    note = await session.get_one(Note, 1)
    count = int(note.words or "0") + 1
    await asyncio.sleep(0)
    note.words = str(count)
    return count


async def count_of(database: Database) -> str | None:
    async with database.session_scope(readonly=True) as session:
        return (await session.get_one(Note, 1)).words


async def put_note(database: Database) -> None:
    async with database.session_scope() as session:
        session.add(Note(n=1, words="0"))


def test_the_result_is_returned_after_the_commit(url: str) -> None:
    async def insert(session: AsyncSession, n: int, *, twice: bool) -> str:
        await session.execute(INSERT, {"n": n})
        if twice:
            await session.execute(INSERT, {"n": n + 1})
        return "done"

    async def main() -> None:
        async with with_notes(url) as database:
            assert await database.transaction(insert, 1, twice=True) == "done"
            assert await notes(database) == [1, 2]

    run(main)


def test_conflicts_are_repeated_until_each_has_succeeded(url: str) -> None:
    """No update is lost, on any database, and the breaker does not count the conflicts."""

    async def main() -> None:
        async with with_notes(url) as database:
            await put_note(database)
            await asyncio.gather(
                *(database.transaction(add_one, max_retries=50, isolation=SERIALIZABLE) for _ in range(12))
            )
            assert await count_of(database) == "12"
            assert database.guard.tally.totals().verdicts[FAILURE] == 0
            assert database.circuit_breaker_state.value == "healthy"

    run(main)


def test_a_deadlock_is_repeated(any_pg: Place) -> None:
    async def crossing(session: AsyncSession, first: int, second: int, met: asyncio.Barrier | None) -> None:
        update = text("UPDATE notes SET words = 'x' WHERE n = :n")
        await session.execute(text("SET LOCAL deadlock_timeout = '20ms'"))
        await session.execute(update, {"n": first})
        if met is not None and not met.broken:
            try:
                async with asyncio.timeout(0.5):
                    await met.wait()
            except (TimeoutError, asyncio.BrokenBarrierError):
                await met.abort()
        await session.execute(update, {"n": second})

    async def main() -> None:
        async with with_notes(any_pg.url) as database:
            async with database.session_scope() as session:
                await session.execute(INSERT, [{"n": 1}, {"n": 2}])
            met = asyncio.Barrier(2)
            await asyncio.gather(
                database.transaction(crossing, 1, 2, met), database.transaction(crossing, 2, 1, met)
            )
            metrics = database.get_pool_metrics()
            assert metrics["errors"]["contention"] >= 1
            assert metrics["retries"]["transactions"] >= 1

    run(main)


def test_a_transaction_whose_connection_is_lost_before_commit_is_repeated(any_pg: Place) -> None:
    runs = 0

    async def main() -> None:
        async with with_notes(any_pg.url) as database:

            async def insert(session: AsyncSession) -> None:
                nonlocal runs
                runs += 1
                await session.execute(INSERT, {"n": 1})
                if runs == 1:
                    kill_all(any_pg)
                await session.execute(INSERT, {"n": 2})

            await database.transaction(insert)
            assert runs == 2
            assert await notes(database) == [1, 2]

    run(main)


def test_max_retries_counts_the_repeats_after_the_first_run(pg: Place) -> None:
    runs = 0

    async def main() -> None:
        async with with_notes(pg.url) as database:

            async def never(session: AsyncSession) -> None:
                nonlocal runs
                runs += 1
                await session.execute(
                    text("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$")
                )

            seen = 0
            for max_retries, expected in ((0, 1), (2, 3), (None, 4)):
                with pytest.raises(DBAPIError):
                    await database.transaction(never, max_retries=max_retries)
                assert runs - seen == expected
                seen = runs
                assert_free(database)

    run(main)


def test_an_error_that_is_not_transient_is_not_repeated(url: str) -> None:
    runs = 0

    async def main() -> None:
        async with with_notes(url) as database:

            async def duplicate(session: AsyncSession) -> None:
                nonlocal runs
                runs += 1
                await session.execute(INSERT, {"n": 1})
                await session.execute(INSERT, {"n": 1})

            with pytest.raises(IntegrityError):
                await database.transaction(duplicate)
            assert runs == 1

            mine = KeyError("mine")

            async def failing(session: AsyncSession) -> None:
                nonlocal runs
                runs += 1
                raise mine

            with pytest.raises(KeyError) as caught:
                await database.transaction(failing)
            assert caught.value is mine and runs == 2

    run(main)


def test_an_error_caused_by_a_conflict_is_repeated_too(pg: Place) -> None:
    """The transaction is lost as with the original error, and a repeat helps."""
    runs = 0

    async def main() -> None:
        async with opened(pg.url) as database:

            async def renamed(session: AsyncSession) -> str:
                nonlocal runs
                runs += 1
                if runs > 1:
                    return "well"
                try:
                    await session.execute(
                        text("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40P01'; END $$")
                    )
                except DBAPIError as error:
                    raise KeyError("mine") from error
                return "never"

            assert await database.transaction(renamed) == "well"

    run(main)


def test_a_caught_conflict_is_repeated_at_commit(pg: Place) -> None:
    runs = 0

    async def main() -> None:
        async with with_notes(pg.url) as database:

            async def careless(session: AsyncSession) -> None:
                nonlocal runs
                runs += 1
                await session.execute(INSERT, {"n": 1})
                if runs == 1:
                    with pytest.raises(DBAPIError):
                        await session.execute(
                            text("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$")
                        )

            await database.transaction(careless)
            assert runs == 2 and await notes(database) == [1]

    run(main)


CONFLICT = text("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$")


def test_a_conflict_in_a_task_group_is_repeated(pg: Place) -> None:
    runs = 0

    async def main() -> None:
        async with opened(pg.url) as database:

            async def grouped(session: AsyncSession) -> int:
                nonlocal runs
                runs += 1
                async with asyncio.TaskGroup() as outer:
                    outer.create_task(asyncio.sleep(0))
                    async with asyncio.TaskGroup() as inner:
                        inner.create_task(session.execute(CONFLICT if runs == 1 else ONE))
                return runs

            assert await database.transaction(grouped) == 2

    run(main)


def test_a_group_with_one_permanent_error_is_not_repeated(pg: Place) -> None:
    runs = 0

    async def main() -> None:
        async with opened(pg.url) as database:

            async def grouped(session: AsyncSession) -> None:
                nonlocal runs
                runs += 1

                async def fail() -> None:
                    try:
                        await asyncio.Event().wait()
                    except asyncio.CancelledError:  # the conflict came first
                        raise KeyError("mine") from None

                async with asyncio.TaskGroup() as group:
                    group.create_task(session.execute(CONFLICT))
                    group.create_task(fail())

            with pytest.raises(ExceptionGroup) as caught:
                await database.transaction(grouped)
            assert runs == 1 and caught.group_contains(KeyError) and caught.group_contains(DBAPIError)

    run(main)


def test_an_error_caused_by_a_group_of_conflicts_is_repeated(pg: Place) -> None:
    runs = 0

    async def main() -> None:
        async with opened(pg.url) as database:

            async def renamed(session: AsyncSession) -> int:
                nonlocal runs
                runs += 1
                if runs == 1:
                    try:
                        async with asyncio.TaskGroup() as group:
                            group.create_task(session.execute(CONFLICT))
                    except ExceptionGroup as error:
                        raise KeyError("mine") from error
                return runs

            assert await database.transaction(renamed) == 2

    run(main)


def test_an_error_that_follows_from_a_caught_conflict_is_repeated(pg: Place) -> None:
    """The server reports only that an earlier statement failed, and that one was the conflict."""
    runs = 0

    async def main() -> None:
        async with opened(pg.url) as database:

            async def careless(session: AsyncSession) -> None:
                nonlocal runs
                runs += 1
                if runs == 1:
                    with suppress(DBAPIError):
                        await session.execute(CONFLICT)
                await session.execute(ONE)

            await database.transaction(careless)
            assert runs == 2

    run(main)


def test_a_schema_change_under_a_prepared_statement_is_repeated(pg: Place) -> None:
    async def main() -> None:
        async with with_notes(pg.url, pool_size=1, max_overflow=0) as database:

            async def read(session: AsyncSession) -> list[Any]:
                await session.execute(ONE)  # the connection is in use, so it is not replaced unnoticed
                return list((await session.execute(text("SELECT * FROM notes WHERE n > :n"), {"n": 0})).all())

            for _ in range(8):
                await database.transaction(read)
            pg.server.sql("ALTER TABLE notes ADD COLUMN more text", pg.database)
            assert await database.transaction(read) == []

    run(main)


def test_a_type_recreated_under_a_prepared_statement_is_repeated_and_is_not_a_failure(pg: Place) -> None:
    """PostgreSQL reports an internal error, once for each pooled connection."""
    make = "DROP TYPE IF EXISTS mood; CREATE TYPE mood AS ENUM ('well')"
    runs = 0

    async def main() -> None:
        async with opened(pg.url, pool_size=1, max_overflow=0) as database:

            async def feel(session: AsyncSession) -> Any:
                nonlocal runs
                runs += 1
                return await session.scalar(text("SELECT CAST(:mood AS mood)::text"), {"mood": "well"})

            pg.server.sql(make, pg.database)
            for _ in range(8):
                await database.transaction(feel)
            pg.server.sql(make, pg.database)
            assert await database.transaction(feel) == "well" and runs == 8 + 2
            assert database.guard.tally.totals().verdicts[FAILURE] == 0

    run(main)


@pytest.mark.parametrize(("code", "drops"), [("26000", True), ("42P05", True)])
def test_a_prepared_statement_that_a_pooler_mixed_up_is_repeated_once(
    pg: Place, code: str, drops: bool
) -> None:
    """The repeat uses another connection. More repeats would not help, because the pooler would do the same again."""
    runs, pids = 0, set[int]()

    async def main() -> None:
        async with opened(pg.url) as database:

            async def mixed_up(session: AsyncSession) -> None:
                nonlocal runs
                runs += 1
                pids.add(int(await session.scalar(text("SELECT pg_backend_pid()")) or 0))
                await session.execute(
                    text(f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$")
                )

            with pytest.raises(DBAPIError):
                await database.transaction(mixed_up, max_retries=5)
            assert runs == 2 and len(pids) == 2

    run(main)


class WatchedClock(SystemClock):
    """The system's clock, except that each short sleep calls `check` instead and takes no time."""

    def __init__(self) -> None:
        self.pauses: list[float] = []
        self.check: Callable[[], None] = lambda: None

    async def sleep(self, delay_s: float) -> None:
        if delay_s >= 0.5:  # a sleep of the keeper, between two probes
            await super().sleep(delay_s)
            return
        self.check()
        self.pauses.append(delay_s)


def test_a_pause_between_two_attempts_holds_neither_permit_nor_connection(pg: Place) -> None:
    async def main() -> None:
        clock = WatchedClock()
        database = Database(options(pg.url), clock=clock)
        clock.check = lambda: assert_free(database)

        async def conflict(session: AsyncSession) -> None:
            await session.execute(text("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$"))

        with pytest.raises(DBAPIError):
            await database.transaction(conflict, max_retries=3)
        assert len(clock.pauses) == 3 and max(clock.pauses) < 0.1
        await database.close()

    run(main)


def test_one_deadline_covers_all_attempts(pg: Place) -> None:
    async def main() -> None:
        async with opened(pg.url, scope_timeout_s=0.5) as database:

            async def slow(session: AsyncSession) -> None:
                await session.execute(text("SELECT pg_sleep(0.2)"))
                await session.execute(
                    text("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$")
                )

            loop = asyncio.get_running_loop()
            began = loop.time()
            with pytest.raises((DBAPIError, DatabaseTimeout)):
                await database.transaction(slow, max_retries=1000)
            assert loop.time() - began < 5.0

    run(main)


# ── nesting ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_function_called_inside_another_joins_it(url: str) -> None:
    async def main() -> None:
        async with with_notes(url) as database:

            async def inner(session: AsyncSession, n: int) -> AsyncSession:
                await session.execute(INSERT, {"n": n})
                return session

            async def outer(session: AsyncSession) -> None:
                assert await database.transaction(inner, 1) is session
                raise KeyError

            with pytest.raises(KeyError):
                await database.transaction(outer)
            assert await notes(database) == []

    run(main)


def test_in_a_separate_task_or_an_open_scope_a_function_has_its_own_transaction(pg: Place) -> None:
    async def main() -> None:
        async with with_notes(pg.url) as database:

            async def insert(session: AsyncSession, n: int) -> None:
                await session.execute(INSERT, {"n": n})

            async def outer(session: AsyncSession) -> None:
                await asyncio.gather(database.transaction(insert, 1), database.transaction(insert, 2))
                raise KeyError

            with pytest.raises(KeyError):
                await database.transaction(outer)
            assert await notes(database) == [1, 2]
            async with database.session_scope():
                await database.transaction(insert, 3)
                assert await notes(database) == [1, 2, 3]

    run(main)


LEVELS = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]


@pytest.mark.parametrize("outer_level", [None, *LEVELS])
@pytest.mark.parametrize("inner_level", [None, *LEVELS])
def test_a_function_that_requires_a_stricter_isolation_than_it_joins_is_refused(
    outer_level: str | None, inner_level: str | None
) -> None:
    async def main() -> None:
        async with opened("sqlite://") as database:

            async def inner(session: AsyncSession) -> str:
                return "joined"

            async def outer(session: AsyncSession) -> str:
                return await database.transaction(inner, isolation=inner_level)

            joins = inner_level is None or LEVELS.index(inner_level) <= LEVELS.index(outer_level or LEVELS[0])
            if joins:
                assert await database.transaction(outer, isolation=outer_level) == "joined"
                return
            with pytest.raises(DatabaseError, match=f"isolation='{inner_level}'") as caught:
                await database.transaction(outer, isolation=outer_level)
            assert caught.value.kind is Kind.INVALID_REQUEST and caught.value.attempts == 1

    run(main)


def test_a_read_only_function_does_not_join_one_that_writes(url: str) -> None:
    async def main() -> None:
        async with with_notes(url) as database:

            async def read(session: AsyncSession) -> list[int]:
                return list((await session.scalars(SELECT)).all())

            async def outer(session: AsyncSession) -> list[int]:
                return await database.transaction(read, readonly=True)

            with pytest.raises(DatabaseError, match="readonly=True"):
                await database.transaction(outer)
            assert await database.transaction(outer, readonly=True) == []

    run(main)


def test_a_function_joins_the_transaction_of_its_own_database_even_inside_one_of_another_database(
    pg: Place, sqlite_url: str
) -> None:
    """Otherwise the function would wait for its own row lock."""

    async def main() -> None:
        async with with_notes(pg.url, scope_timeout_s=5.0) as here, opened(sqlite_url) as there:
            await put_note(here)

            async def middle(session: AsyncSession) -> int:
                await session.execute(ONE)
                return await here.transaction(add_one)

            async def outer(session: AsyncSession) -> int:
                await add_one(session)
                await session.flush()
                return await there.transaction(middle)

            assert await here.transaction(outer) == 2
            assert await count_of(here) == "2"

    run(main)


# ── the decorator ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_decorator_finds_its_database_when_it_is_called(url: str) -> None:
    databases: list[Database] = []
    transactional_with_retry = make_transactional(lambda: databases[0])

    @transactional_with_retry(max_retries=5)
    async def insert(session: AsyncSession, n: int, *, words: str = "") -> int:
        """Insert a note."""
        session.add(Note(n=n, words=words))
        return n

    @transactional_with_retry()
    async def count(session: AsyncSession) -> int:
        return int(await session.scalar(text("SELECT count(*) FROM notes")) or 0)

    async def main() -> None:
        async with with_notes(url) as database:
            databases.append(database)
            assert await insert(7, words="hello") == 7
            assert await count() == 1

    run(main)
    assert insert.__name__ == "insert" and insert.__doc__ == "Insert a note."


def test_the_decorator_works_without_parentheses() -> None:
    databases: list[Database] = []
    transactional_with_retry: Any = make_transactional(lambda: databases[0])

    @transactional_with_retry  # type: ignore[untyped-decorator]
    async def one(session: AsyncSession) -> int:
        return int(await session.scalar(ONE) or 0)

    async def main() -> None:
        async with opened("sqlite://") as database:
            databases.append(database)
            assert await one() == 1

    run(main)


def plain(session: AsyncSession) -> None: ...


async def generator(session: AsyncSession) -> Any:
    yield session


class Repository:
    async def method(self, session: AsyncSession) -> None: ...


@pytest.mark.parametrize("wrong", [plain, generator, lambda session: session, 7, Repository.method])
def test_only_coroutine_functions_are_accepted(wrong: Any) -> None:
    transactional_with_retry = make_transactional(lambda: pytest.fail("not asked"))
    with pytest.raises(TypeError, match="async def"):
        transactional_with_retry(max_retries=5)(wrong)


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "3"])
def test_an_invalid_number_of_repeats_raises_at_decoration(wrong: Any) -> None:
    with pytest.raises(ValueError, match="max_retries"):
        make_transactional(lambda: pytest.fail("not asked"))(max_retries=wrong)


def test_a_function_that_shares_its_session_between_tasks_gets_a_clear_error(pg: Place) -> None:
    async def main() -> None:
        async with opened(pg.url) as database:

            async def together(session: AsyncSession) -> None:
                await asyncio.gather(session.execute(ONE), session.execute(ONE))

            with pytest.raises(DatabaseError, match="two tasks"):
                await database.transaction(together)

    run(main)
