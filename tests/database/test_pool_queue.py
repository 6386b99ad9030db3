"""The pool's queue is fair, bounded by deadlines, and safe against cancellation; a full pool is not a failure."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from koo.database.database import Database
from koo.database.pool_queue import PoolQueue
from koo.deadlines import Deadline
from koo.errors import DatabaseUnavailable, Kind, PoolSaturated
from koo.options import RetryOptions
from koo.policies.verdict import FAILURE
from koo.testing.clock import StandingClock
from koo.testing.polling import until
from tests.database.conftest import Place
from tests.database.support import ONE, assert_free, checked_out, opened, options, proxied, run, through

SMALL = {"pool_size": 1, "max_overflow": 1}


async def hold(database: Database, until_set: asyncio.Event) -> None:
    async with database.session_scope() as session:
        await session.execute(ONE)
        await until_set.wait()


async def full(database: Database, until_set: asyncio.Event) -> list[asyncio.Task[None]]:
    """Fill every slot of the pool with a scope."""
    holders = [
        asyncio.create_task(hold(database, until_set), name=f"holder {n}")
        for n in range(database.pool_queue.limit)
    ]
    await until(lambda: len(database.pool_queue.holders) == database.pool_queue.limit)
    return holders


def test_callers_are_served_in_order_of_arrival(url: str) -> None:
    async def main() -> None:
        async with opened(url, pool_size=1, max_overflow=0) as database:
            go, served = asyncio.Event(), []

            async def stand(n: int) -> None:
                async with database.session_scope() as session:
                    served.append(n)
                    await session.execute(ONE)

            holders = await full(database, go)
            waiting = []
            for n in range(6):
                waiting.append(asyncio.create_task(stand(n)))
                await until(lambda n=n: database.pool_queue.waiting == n + 1)  # type: ignore[misc]
            # A waiter that leaves the queue passes nothing on, and does not hold up the others.
            waiting[1].cancel()
            go.set()
            await asyncio.gather(*holders, *waiting, return_exceptions=True)
            assert served == [0, 2, 3, 4, 5]

    run(main)


def test_a_waiter_cancelled_just_as_it_gets_a_slot_passes_it_on(url: str) -> None:
    async def main() -> None:
        async with opened(url, pool_size=1, max_overflow=0) as database:
            for _ in range(5):
                go = asyncio.Event()
                (holder,) = await full(database, go)
                first = asyncio.create_task(hold(database, go))
                second = asyncio.create_task(hold(database, go))
                await until(lambda: database.pool_queue.waiting == 2)
                go.set()
                await until(holder.done)  # its slot has just been handed to `first`
                first.cancel()
                await asyncio.gather(holder, second)
                await asyncio.gather(first, return_exceptions=True)
                assert_free(database)

    run(main)


def test_a_full_pool_refuses_callers_naming_its_holders_and_is_not_a_failure(url: str) -> None:
    async def main() -> None:
        async with opened(url, **SMALL, pool_timeout_s=1.0) as database:
            go = asyncio.Event()
            holders = await full(database, go)
            with pytest.raises(PoolSaturated) as caught:
                async with database.session_scope():
                    pytest.fail("it is full")
            error = caught.value
            assert error.kind is Kind.SATURATED
            assert error.retry_after_s is not None and error.retry_after_s > 0
            assert "all 2 connections are in use" in error.reason
            assert database.guard.breaker.consecutive == 0
            assert database.guard.tally.totals().verdicts[FAILURE] == 0
            health = await database.health_check()
            assert health["healthy"] is True and health["state"] == "healthy"
            assert health["conditions"] == ["saturated"]
            assert health["pool_status"]["utilization"] == 1.0
            go.set()
            await asyncio.gather(*holders)

    run(main)


def test_a_caller_waits_no_longer_than_its_own_deadline(url: str) -> None:
    async def main() -> None:
        async with opened(url, **SMALL, pool_timeout_s=30.0) as database:
            go = asyncio.Event()
            holders = await full(database, go)
            with pytest.raises((PoolSaturated, TimeoutError)):
                async with Deadline(0.1), database.session_scope():
                    pytest.fail("it is full")
            assert database.pool_queue.waiting == 0
            go.set()
            await asyncio.gather(*holders)

    run(main)


def test_the_refusal_names_a_task_that_waits_for_itself(url: str) -> None:
    async def main() -> None:
        async with (
            opened(url, pool_size=1, max_overflow=0, pool_timeout_s=1.0) as database,
            database.session_scope(),
        ):
            with pytest.raises(PoolSaturated, match="this task holds one itself"):
                async with database.session_scope():
                    pass

    run(main)


def test_no_caller_waits_in_the_pool_when_a_connect_fails(pg: Place) -> None:
    """SQLAlchemy's own waiters would sit out their whole timeout next to the free slot."""

    async def main() -> None:
        async with proxied(pg.server) as proxy:
            url = through(proxy, pg.server, pg.driver, pg.database)
            async with opened(url, pool_size=1, max_overflow=0, pool_timeout_s=30.0) as database:
                proxy.reset_new = True
                failing = asyncio.create_task(hold(database, asyncio.Event()))
                await until(lambda: proxy.connections >= 1)
                go = asyncio.Event()
                go.set()
                waiting = [asyncio.create_task(hold(database, go)) for _ in range(3)]
                with pytest.raises(DatabaseUnavailable):
                    await failing
                proxy.reset_new = False
                database.reset_circuit_breaker()
                loop = asyncio.get_running_loop()
                began = loop.time()
                await asyncio.gather(*waiting, return_exceptions=True)
                assert loop.time() - began < 10.0
                assert checked_out(database) == 0

    run(main)


def test_a_full_pool_names_the_line_the_age_and_the_first_words_of_each_holder(url: str) -> None:
    """The error names neither the task, which has no name, nor any value of a statement."""

    async def leak(database: Database, until_set: asyncio.Event) -> None:
        async with database.session_scope() as session:  # this line is named
            await session.execute(text("SELECT 'a secret', 42 AS answer"))
            await until_set.wait()

    async def main() -> None:
        async with opened(url, **SMALL, pool_timeout_s=1.5) as database:
            go = asyncio.Event()
            holders = [asyncio.create_task(leak(database, go)) for _ in range(2)]
            await until(lambda: len(database.pool_queue.holders) == 2)
            await until(lambda: all(holder.statement for holder in database.pool_queue.holders))
            with pytest.raises(PoolSaturated) as caught:
                async with database.session_scope():
                    pytest.fail("it is full")
            line = leak.__code__.co_firstlineno + 1
            said = caught.value.reason
            assert said.count(f"tests.database.test_pool_queue:{line} for ") == 2
            assert said.count("(SELECT)") == 2 and "secret" not in said and "42" not in said
            go.set()
            await asyncio.gather(*holders)

    run(main)


def test_a_scope_open_for_too_long_is_logged_once_with_its_place(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        clock = StandingClock()
        database = Database(options(sqlite_url, held_warning_s=20.0), clock=clock)
        async with database.session_scope() as session:
            await session.execute(ONE)
            began = sys._getframe().f_lineno - 2
            clock.now += 19.0
            database.tick()
            assert caplog.text == ""
            for _ in range(3):
                clock.now += 1.0
                database.tick()
        await database.close()
        (record,) = caplog.records
        where = f"a scope is still open: tests.database.test_pool_queue:{began} for 20 s (SELECT)"
        assert where in record.getMessage()
        assert record.levelname == "WARNING"

    run(main)


def test_many_more_callers_than_slots_are_all_served(url: str) -> None:
    async def main() -> None:
        async with opened(url, pool_size=2, max_overflow=1) as database:
            most = 0

            async def work() -> None:
                nonlocal most
                async with database.session_scope() as session:
                    await session.execute(ONE)
                    most = max(most, checked_out(database))

            await asyncio.gather(*(work() for _ in range(60)))
            assert most <= 3
            status = database.get_pool_metrics()["pool_status"]
            assert status["waiting"] == 0 and status["active_connections"] == 0

    run(main)


# ── a server with fewer connections than the pool may open ────────────────────────────────────────────────────────


def test_a_pool_larger_than_the_server_allows_works_with_the_connections_that_it_has(pg: Place) -> None:
    """The callers wait for one of those: as failures, they would open the circuit of a server that serves others."""
    pg.server.sql("DROP ROLE IF EXISTS three")
    pg.server.sql("CREATE ROLE three LOGIN PASSWORD 'koo-test' CONNECTION LIMIT 3")

    async def main() -> None:
        async with opened(pg.url.replace("postgres:koo-test@", "three:koo-test@")) as database:
            go = asyncio.Event()
            queue = database.pool_queue
            calls = [asyncio.create_task(hold(database, go))]
            await until(lambda: len(queue.holders) == 1)
            calls += [asyncio.create_task(hold(database, go)) for _ in range(7)]
            await until(lambda: queue.cap <= 3 and len(queue.holders) + queue.waiting == 8)
            go.set()
            await asyncio.gather(*calls)
            assert database.guard.tally.totals().verdicts[FAILURE] == 0
            assert database.get_pool_metrics()["connection_metrics"]["created"] <= 3

    run(main)


def test_a_refusal_of_a_pool_that_the_server_limits_says_so() -> None:
    queue = PoolQueue(30)
    assert queue.shrink(2, 1.0) and not queue.shrink(2, 1.5)
    assert queue.take() and queue.take() and not queue.take()

    async def main() -> str:
        return queue.explain(PoolSaturated("database", ""), 2.0, 0.1).reason

    assert asyncio.run(main()) == "all 2 connections are in use; the server has no more for this pool"
    queue.widen(1.5 + 1.0)
    assert queue.cap == 3, "one caller finds out whether the server has more"
    queue.widen(1.5 + 5.0)
    assert queue.cap == queue.limit, "the pool grows, twice as far each second"
    assert "server" not in asyncio.run(main())
    assert not queue.shrink(29, 7.0), (
        "the same shortage is reported once, however close the pool is to its limit"
    )


def test_a_caller_for_which_no_scope_will_return_a_connection_meets_a_failure(pg: Place) -> None:
    """Its wait in the queue would not end when the connection becomes free: it is in use outside of the scopes."""
    pg.server.sql("DROP ROLE IF EXISTS alone")
    pg.server.sql("CREATE ROLE alone LOGIN PASSWORD 'koo-test' CONNECTION LIMIT 1")

    async def main() -> None:
        async with opened(
            pg.url.replace("postgres:koo-test@", "alone:koo-test@"), retry=RetryOptions(attempts_max=1)
        ) as database:
            async with database.session_scope() as session:
                await session.execute(ONE)
                engine = session.bind
            assert isinstance(engine, AsyncEngine)
            async with engine.connect() as connection:
                await connection.execute(ONE)
                with pytest.raises(DatabaseUnavailable) as caught:
                    async with database.session_scope():
                        pytest.fail("the server has no connection left")
            assert caught.value.kind is Kind.OVERLOADED
            assert database.guard.tally.totals().verdicts[FAILURE] == 1

    run(main)


async def lose_connection(database: Database, pg: Place) -> None:
    with suppress(DBAPIError):
        async with database.session_scope() as session:
            pid = await session.scalar(text("SELECT pg_backend_pid()"))
            await asyncio.to_thread(pg.server.sql, f"SELECT pg_terminate_backend({pid})")
            await session.execute(ONE)


def test_a_caller_waits_for_a_scopes_connection_also_if_the_pool_has_empty_places(pg: Place) -> None:
    """A lost connection leaves one. Counted as a connection, it would let the caller try again without a pause."""
    pg.server.sql("DROP ROLE IF EXISTS losing")
    pg.server.sql("CREATE ROLE losing LOGIN PASSWORD 'koo-test'")

    async def main() -> None:
        async with opened(pg.url.replace("postgres:koo-test@", "losing:koo-test@")) as database:
            go = asyncio.Event()
            async with database.session_scope() as session:
                await session.execute(ONE)
                engine = session.bind
            assert isinstance(engine, AsyncEngine)
            async with engine.connect() as connection:
                await connection.execute(ONE)
                running = asyncio.create_task(hold(database, go))
                await until(lambda: len(database.pool_queue.holders) == 1)
                await asyncio.gather(lose_connection(database, pg), lose_connection(database, pg))
                pg.server.sql("ALTER ROLE losing CONNECTION LIMIT 2")
                waiting = asyncio.create_task(hold(database, go))
                await until(lambda: database.pool_queue.waiting == 1)
                go.set()
                await asyncio.gather(running, waiting)

    run(main)
