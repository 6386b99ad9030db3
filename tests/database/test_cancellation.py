"""Cancellation at every point: it is raised to the caller, and nothing is left behind.

Each test repeats a scope and cancels it at its first, second, third ... wait: once during the wait, and once in the
turn of the event loop in which the wait completes. The last repetition ends before its cancellation is reached.
"""

# ruff: noqa: PT012 - these tests are about what is raised inside a scope and what leaves it

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import pytest
from sqlalchemy import text

from koo.database.database import Database
from koo.database.drivers.sqlite_handle import OwnCursors
from koo.deadlines import Deadline
from koo.policies.verdict import FAILURE
from koo.testing.polling import until
from tests.database.conftest import Place
from tests.database.support import (
    INSERT,
    SELECT,
    assert_free,
    checked_out,
    notes,
    opened,
    options,
    run,
    with_notes,
)
from tests.database.test_faults import until_asleep

# The errors' tracebacks keep cursors alive: nothing may depend on the garbage collector.
KEPT: list[BaseException] = []


class CancelAt:
    """Awaits `work`, and cancels the task at its `step`-th wait; `late`: in the turn in which that wait completes.

    Waits are counted while `counts()` says so.
    """

    def __init__(
        self, work: Awaitable[Any], step: int, late: bool, counts: Callable[[], bool] = lambda: True
    ) -> None:
        self.work = work
        self.step = step
        self.late = late
        self.counts = counts
        self.waits = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        task = asyncio.current_task()
        assert task is not None
        waits = self.work.__await__()
        send: Callable[[], Any] = lambda: next(waits)  # noqa: E731
        while True:
            try:
                future = send()
            except StopIteration as end:
                return end.value
            self.waits += self.counts()
            if self.waits == self.step and self.counts():
                self._cancel(task, future)
            try:
                yield future
            except BaseException as error:
                send = lambda error=error: waits.throw(error)  # type: ignore[misc] # noqa: E731
            else:
                send = lambda: next(waits)  # noqa: E731

    def _cancel(self, task: asyncio.Task[Any], future: Any) -> None:
        if self.late and future is not None:
            future.add_done_callback(lambda _: task.cancel(), context=None)
        else:
            asyncio.get_running_loop().call_soon(task.cancel)


async def cancelled_at(
    work: Awaitable[Any], step: int, late: bool, counts: Callable[[], bool] = lambda: True
) -> bool:
    """True if `work` reached its `step`-th wait and was cancelled there."""
    at = CancelAt(work, step, late, counts)
    task = asyncio.ensure_future(_await(at))
    try:
        await task
    except asyncio.CancelledError as error:
        KEPT.append(error)
        return True
    # A cancellation in the very last turn may come too late to take effect.
    return at.waits >= step


async def _await(at: CancelAt) -> None:
    await at


async def write_one(database: Database) -> None:
    async with database.session_scope() as session:
        await session.execute(INSERT, {"n": 1})
        await session.execute(SELECT)


@pytest.mark.parametrize("late", [False, True])
def test_a_scope_on_a_warm_pool_can_be_cancelled_at_every_wait(url: str, late: bool) -> None:
    async def main() -> None:
        async with with_notes(url) as database:
            step = 1
            while await cancelled_at(write_one(database), step, late):
                assert_free(database)
                async with database.session_scope() as session:
                    assert list((await session.scalars(SELECT)).all()) in ([], [1])
                    await session.execute(text("DELETE FROM notes"))
                step += 1
            assert step > 3
            assert await notes(database) == [1]
            assert database.guard.tally.totals().verdicts[FAILURE] == 0

    run(main)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "kind", [{"readonly": True}, {"isolation": "SERIALIZABLE"}], ids=["reads", "isolated"]
)
def test_a_read_only_or_isolated_scope_can_be_cancelled_at_every_wait(
    url: str, late: bool, kind: dict[str, Any]
) -> None:
    async def read(database: Database) -> None:
        async with database.session_scope(**kind) as session:
            await session.execute(SELECT)

    async def main() -> None:
        async with with_notes(url) as database:
            step = 1
            while await cancelled_at(read(database), step, late):
                assert_free(database)
                step += 1
            assert step > 2

    run(main)


@pytest.mark.parametrize("late", [False, True])
def test_a_scope_that_has_to_connect_can_be_cancelled_at_every_wait(url: str, late: bool) -> None:
    async def main() -> None:
        if url == "sqlite://":
            pytest.skip("an in-memory database exists as long as its `Database`")
        async with with_notes(url):
            pass
        step = 1
        more = True
        while more:
            database = Database(options(url))
            more = await cancelled_at(write_one(database), step, late)
            if database.connections is not None:
                assert_free(database)
                async with database.session_scope() as session:
                    await session.execute(text("DELETE FROM notes"))
                await database.close()
            step += 1
        assert step > 4

    run(main)


@pytest.mark.parametrize("late", [False, True])
def test_a_sqlite_connection_is_closed_at_whatever_step_its_connect_is_cancelled(
    sqlite_url: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is not left to the garbage collector. Python 3.13 warns about that; older versions do not."""
    still_open: set[int] = set()

    class Counted(OwnCursors):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.number = opened_ever[0] = opened_ever[0] + 1
            still_open.add(self.number)

        def close(self) -> None:
            super().close()
            still_open.discard(self.number)

    opened_ever = [0]
    monkeypatch.setattr("koo.database.drivers.aiosqlite.OwnCursors", Counted)

    async def read(database: Database) -> None:
        async with database.session_scope() as session:
            await session.execute(text("SELECT 1"))

    async def main() -> None:
        step, more = 1, True
        while more:
            database = Database(options(sqlite_url))
            more = await cancelled_at(read(database), step, late)
            await database.close()
            assert still_open == set(), step
            step += 1
        assert opened_ever[0] >= 3

    run(main)


@pytest.mark.parametrize("late", [False, True])
def test_a_rollback_can_be_cancelled_at_every_wait(url: str, late: bool) -> None:
    async def failing(database: Database) -> None:
        try:
            async with database.session_scope() as session:
                await session.execute(INSERT, {"n": 1})
                raise KeyError
        except KeyError:
            pass

    async def main() -> None:
        async with with_notes(url) as database:
            step = 1
            while await cancelled_at(failing(database), step, late):
                assert_free(database)
                assert await notes(database) == []
                step += 1
            assert step > 2

    run(main)


def test_a_cancelled_commit_is_completed_first(pg: Place) -> None:
    """A caller cannot interrupt COMMIT: the transaction is committed, and the cancellation is raised afterwards."""

    async def main() -> None:
        async with with_notes(pg.url) as database:
            held = asyncio.create_task(lock_notes(database))
            await until(lambda: database.pool_queue.holders)
            task = asyncio.create_task(write_deferred(database))
            await until(lambda: waits_in(pg, "COMMIT"))
            task.cancel()
            await asyncio.sleep(0.05)
            assert not task.done()
            held.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await notes(database) == [7]
            assert_free(database)

    run(main)


async def lock_notes(database: Database) -> None:
    async with database.session_scope() as session:
        await session.execute(text("SELECT pg_advisory_xact_lock(1)"))
        await asyncio.sleep(60)


async def write_deferred(database: Database) -> None:
    """A transaction whose COMMIT has to wait, because a deferred trigger takes a lock."""
    async with database.session_scope() as session:
        await session.execute(
            text(
                "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
                " 'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END'"
            )
        )
        await session.execute(
            text(
                "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED"
                " FOR EACH ROW EXECUTE FUNCTION wait()"
            )
        )
        await session.execute(INSERT, {"n": 7})


def waits_in(pg: Place, query: str) -> bool:
    found = pg.server.sql(
        f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{pg.database}' AND query ILIKE '{query}%'"
        " AND wait_event_type = 'Lock'"
    )
    return found == "1"


def test_a_cancelled_statement_stops_on_the_server(pg: Place) -> None:
    async def main() -> None:
        async with opened(pg.url) as database:

            async def asleep() -> None:
                async with database.session_scope() as session:
                    await session.execute(text("SELECT pg_sleep(60)"))

            task = asyncio.create_task(asleep())
            await until_asleep(pg)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            sleeping = (
                f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{pg.database}' AND state = 'active'"
            )
            await until(lambda: pg.server.sql(sleeping) == "0")
            assert_free(database)
            assert database.guard.tally.totals().verdicts[FAILURE] == 0

    run(main)


def test_a_timeout_around_the_scope_is_raised_as_a_timeout(url: str) -> None:
    async def main() -> None:
        async with with_notes(url) as database:
            with pytest.raises(TimeoutError):
                async with Deadline(0.1), database.session_scope() as session:
                    await session.execute(INSERT, {"n": 1})
                    await asyncio.sleep(60)
            assert_free(database)
            assert await notes(database) == []

    run(main)


def test_many_cancellations_leave_the_pool_intact(url: str) -> None:
    async def main() -> None:
        draw = random.Random(7)
        async with with_notes(url, pool_size=3, max_overflow=2) as database:

            async def work(n: int) -> None:
                async with database.session_scope() as session:
                    await session.execute(SELECT)
                    await session.execute(INSERT, {"n": n})
                    await asyncio.sleep(0.001)
                    await session.execute(SELECT)

            for storm in range(8):
                tasks = [asyncio.create_task(work(100 * storm + n)) for n in range(20)]
                while not all(task.done() for task in tasks):
                    await asyncio.sleep(draw.random() * 0.003)
                    draw.choice(tasks).cancel()
                done = await asyncio.gather(*tasks, return_exceptions=True)
                assert all(one is None or isinstance(one, asyncio.CancelledError) for one in done), done
                assert_free(database)
            assert checked_out(database) == 0
            await asyncio.gather(*(work(n) for n in range(10_000, 10_005)))

    run(main)
