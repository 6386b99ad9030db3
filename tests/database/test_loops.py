"""Event loops: one at a time, several in succession, and a clean end of the process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest
from sqlalchemy import text

from koo.database.database import Database
from koo.deadlines import WrongLoop
from koo.errors import DatabaseUnavailable, Kind
from koo.testing.polling import until
from tests.database.conftest import Place
from tests.database.support import ONE, assert_free, options, proxied, through


async def use(database: Database) -> None:
    async with database.session_scope() as session:
        assert await session.scalar(ONE) == 1


def test_two_successive_runs_work_without_closing(url: str) -> None:
    """There is no warning, no connection stays open on the server, and breaker and counts continue."""
    database = Database(options(url))
    for _ in range(3):
        asyncio.run(use(database))
        assert_free(database)
        assert database.connections is None
    assert database.guard.tally.first_successes == 3


def test_a_run_that_ends_in_the_middle_of_scopes_leaves_the_next_run_a_free_pool(url: str) -> None:
    database = Database(options(url, pool_size=2, max_overflow=0, pool_timeout_s=2.0))

    async def abandoned() -> None:
        async def hold() -> None:
            async with database.session_scope() as session:
                await session.execute(ONE)
                await asyncio.sleep(60)

        tasks = {asyncio.create_task(hold()) for _ in range(4)}
        await until(lambda: len(database.pool_queue.holders) == 2 and database.pool_queue.waiting == 2)
        assert len(tasks) == 4

    asyncio.run(abandoned())
    assert_free(database)
    asyncio.run(use(database))


def test_no_connection_is_left_on_the_server(pg: Place) -> None:
    database = Database(options(pg.url))

    async def main() -> None:
        await asyncio.gather(*(use(database) for _ in range(5)))
        await database.health_check()

    asyncio.run(main())
    count = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{pg.database}'"

    async def gone() -> None:
        await until(lambda: pg.server.sql(count) == "0")

    asyncio.run(gone())


def test_using_a_second_running_loop_raises_a_clear_error(url: str) -> None:
    database = Database(options(url))
    errors: list[BaseException] = []

    def elsewhere() -> None:
        try:
            asyncio.run(use(database))
        except BaseException as error:
            errors.append(error)

    async def main() -> None:
        await use(database)
        thread = threading.Thread(target=elsewhere)
        thread.start()
        await asyncio.get_running_loop().run_in_executor(None, thread.join)
        await use(database)  # unharmed
        assert database.get_pool_metrics()["connection_metrics"]["created"] == 1

    asyncio.run(main())
    (error,) = errors
    assert isinstance(error, WrongLoop) and "another event loop" in str(error) and "koo.run" in str(error)


def test_closing_waits_for_running_scopes_and_refuses_new_ones(url: str) -> None:
    async def main() -> None:
        database = Database(options(url))
        inside, go = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            async with database.session_scope() as session:
                inside.set()
                await go.wait()
                await session.execute(ONE)

        holder = asyncio.create_task(hold())
        await inside.wait()
        closing = asyncio.create_task(database.close())
        await until(lambda: database.connections is not None and database.connections.draining)
        with pytest.raises(DatabaseUnavailable) as caught:
            await use(database)
        assert caught.value.kind is Kind.DRAINING
        go.set()
        await asyncio.gather(holder, closing)
        await use(database)  # the database may be used again
        await database.close()

    asyncio.run(main())


def test_closing_does_not_wait_forever(pg: Place) -> None:
    async def main() -> None:
        database = Database(options(pg.url, cleanup_timeout_s=0.2))

        async def hold() -> None:
            async with database.session_scope() as session:
                await session.execute(ONE)
                await asyncio.sleep(60)

        holder = asyncio.create_task(hold())
        await until(lambda: database.pool_queue.holders)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await database.close()
        assert loop.time() - began < 3.0
        holder.cancel()
        await asyncio.gather(holder, return_exceptions=True)

    asyncio.run(main())


def test_closing_refuses_waiting_callers_immediately_and_opens_no_connection(pg: Place) -> None:
    """A waiter that took a slot freed by closing would open a connection that stays open. So would a scope whose first
    statement is repeated because its connection was cut off."""

    async def main() -> None:
        database = Database(options(pg.url, pool_size=2, max_overflow=0, cleanup_timeout_s=0.2))

        async def hold() -> None:
            async with database.session_scope() as session:
                await session.execute(text("SELECT pg_sleep(60)"))

        holders = [asyncio.create_task(hold()) for _ in range(6)]
        await until(lambda: len(database.pool_queue.holders) == 2 and database.pool_queue.waiting == 4)
        waiting = [
            task for task in holders if task not in {holder.owner for holder in database.pool_queue.holders}
        ]
        opened = database.metrics.created
        closing = asyncio.create_task(database.close())
        await asyncio.wait(waiting)
        assert database.pool_queue.holders, "waiting callers do not wait for running scopes"
        assert {task.exception().kind for task in waiting} == {Kind.DRAINING}  # type: ignore[union-attr]
        await closing
        ends = await asyncio.gather(*holders, return_exceptions=True)
        assert all(isinstance(end, Exception) for end in ends)
        assert database.metrics.created == opened
        assert_free(database)

    asyncio.run(main())


def test_a_scope_that_was_connecting_during_close_is_refused_and_leaves_nothing_open(pg: Place) -> None:
    async def main() -> None:
        async with proxied(pg.server) as proxy:
            database = Database(options(through(proxy, pg.server, pg.driver, pg.database)))
            proxy.black_hole()
            entering = asyncio.create_task(use(database))
            await until(lambda: proxy.connections == 1)
            await database.close()
            proxy.heal()
            with pytest.raises(DatabaseUnavailable) as caught:
                await entering
            assert caught.value.kind is Kind.DRAINING
            assert_free(database)
            await until(lambda: proxy.open_connections == 0)

    asyncio.run(main())


@pytest.mark.parametrize("closes", [True, False])
def test_a_process_ends_cleanly(url: str, closes: bool) -> None:
    script = f"""
import asyncio, warnings
warnings.simplefilter("error")
from sqlalchemy import text
from koo.database.database import Database
from koo.deadlines import WrongLoop
from koo.options import DatabaseOptions

async def main(database):
    async with database.session_scope() as session:
        print(await session.scalar(text("SELECT 1")))
    if {closes}:
        await database.close()

database = Database(DatabaseOptions(url={url!r}))
asyncio.run(main(database))
asyncio.run(main(database))
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "1\n1\n"), done.stderr
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr and "never" not in done.stderr


def test_a_script_that_closes_its_loop_with_tasks_pending_ends_without_a_traceback(url: str) -> None:
    script = f"""
import asyncio
from sqlalchemy import text
from koo.database.database import Database
from koo.options import DatabaseOptions

async def main(database):
    async with database.session_scope() as session:
        print(await session.scalar(text("SELECT 1")))

database = Database(DatabaseOptions(url={url!r}))
for _ in range(2):
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main(database))
    loop.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "1\n1\n"), done.stderr
    assert "Traceback" not in done.stderr and "never" not in done.stderr


@pytest.mark.parametrize("warm", [True, False])
def test_a_run_may_end_at_any_step_of_a_probe_and_a_scope(url: str, warm: bool) -> None:
    """The end of a run cancels every task at the same time, including those that are closing something."""
    if "asyncpg" in url:
        pytest.skip("asyncpg leaves an exception unretrieved if its connect is cancelled between two steps")
    script = f"""
import asyncio, warnings
warnings.simplefilter("error")
from sqlalchemy import text
from koo.database.database import Database
from koo.options import DatabaseOptions

async def main(steps):
    database = Database(DatabaseOptions(url={url!r}))
    if {warm}:
        await database.health_check()

    async def hold():
        async with database.session_scope() as session:
            await session.execute(text("SELECT 1"))
            await asyncio.get_running_loop().create_future()

    tasks = [asyncio.create_task(database.health_check()), asyncio.create_task(hold())]
    for _ in range(steps):
        await asyncio.sleep(0)
    if steps % 2:
        await asyncio.wait(tasks, timeout=steps / 10_000)

for steps in range(60):
    asyncio.run(main(steps))
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not any(word in done.stderr for word in ("Warning", "Traceback", "never", "pending!")), done.stderr
