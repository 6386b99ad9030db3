"""Connections are opened a few at a time, and are spread out after a loss."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from koo import Database
from koo.database.connects import SPREAD_S, UNSETTLED_S, Connects
from koo.errors import DatabaseTimeout
from koo.options import BreakerOptions
from koo.testing.polling import until
from koo.testing.proxy import FaultProxy
from tests.database.conftest import Place
from tests.database.support import INSERT, ONE, Note, opened, proxied, run, through, with_notes
from tests.database.test_faults import kill_all


class Server:
    """Accepts connections on demand, and counts how many are being requested at the same time."""

    def __init__(self) -> None:
        self.now = self.most = self.asked = 0
        self.accepts = asyncio.Event()

    async def connect(self, refuses: bool = False) -> str:
        self.now += 1
        self.asked += 1
        self.most = max(self.most, self.now)
        try:
            await self.accepts.wait()
            if refuses:
                raise ConnectionRefusedError
            return "connection"
        finally:
            self.now -= 1


def test_connects_are_limited_and_all_of_them_complete() -> None:
    async def main() -> None:
        server, connects = Server(), Connects(3, 60.0, lambda: 0.0, lambda: 0.0)
        callers = [asyncio.create_task(connects.open(server.connect)) for _ in range(200)]
        await until(lambda: connects.waiting == 197)
        assert (connects.opening, connects.waiting) == (3, 197)
        server.accepts.set()
        assert await asyncio.gather(*callers) == ["connection"] * 200
        assert (server.most, server.asked) == (3, 200)
        assert (connects.opening, connects.waiting) == (0, 0)

    run(main)


def test_a_failed_or_cancelled_connect_frees_its_slot() -> None:
    async def main() -> None:
        server, connects = Server(), Connects(1, 60.0, lambda: 0.0, lambda: 0.0)
        failing = asyncio.create_task(connects.open(server.connect, refuses=True))
        cancelled = [asyncio.create_task(connects.open(server.connect)) for _ in range(2)]
        last = asyncio.create_task(connects.open(server.connect))
        await until(lambda: connects.waiting == 3)
        cancelled[0].cancel()
        server.accepts.set()
        with pytest.raises(ConnectionRefusedError):
            await failing
        cancelled[1].cancel()
        assert await last == "connection"
        assert (connects.opening, connects.waiting) == (0, 0)

    run(main)


def test_after_a_loss_each_connect_waits_a_random_pause_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        now, pauses = 100.0, []

        async def sleep(seconds: float) -> None:
            pauses.append(seconds)

        async def connect() -> None:
            pass

        draws = itertools.cycle([0.25, 0.75])
        connects = Connects(2, 60.0, lambda: now, lambda: next(draws))
        with monkeypatch.context() as patched:
            patched.setattr("koo.database.connects.asyncio.sleep", sleep)
            await connects.open(connect)
            assert pauses == []
            connects.unsettle()
            await connects.open(connect)
            await connects.open(connect)
            assert pauses == [0.25 * SPREAD_S, 0.75 * SPREAD_S]
            now += UNSETTLED_S
            await connects.open(connect)
            assert len(pauses) == 2

    run(main)


def test_after_a_restart_two_hundred_waiting_tasks_reconnect_a_few_at_a_time(pg: Place) -> None:
    """Counted on the wire: connections that were accepted but have not logged in yet."""

    async def main() -> None:
        async with proxied(pg.server) as proxy:
            url = through(proxy, pg.server, pg.driver, pg.database)
            never = BreakerOptions(failure_threshold=10_000, calls_min=10_000)
            async with opened(
                url, pool_size=20, max_overflow=10, connect_concurrency=3, breaker=never, pool_timeout_s=60.0
            ) as database:
                go = asyncio.Event()

                async def work() -> None:
                    await go.wait()
                    async with database.session_scope() as session:
                        await session.execute(text("SELECT pg_sleep(0.005)"))

                async def warm() -> None:
                    async with database.session_scope() as session:
                        await session.execute(ONE)
                        await asyncio.sleep(0.05)

                await asyncio.gather(*(warm() for _ in range(30)))
                pg.server.shut_down("immediate")
                pg.server.start()
                before, proxy.most_logging_in = proxy.connections, 0
                tasks = [asyncio.create_task(work()) for _ in range(200)]
                go.set()
                await asyncio.gather(*tasks)
                assert proxy.connections - before >= 20
                assert proxy.most_logging_in <= 3

    run(main)


# ── a new connection in the middle of a scope ─────────────────────────────────────────────────────────────────────────

Leave = Callable[[Database, Place, FaultProxy], Coroutine[Any, Any, None]]


async def at_a_statement(database: Database, pg: Place, proxy: FaultProxy) -> None:
    async with database.session_scope() as session:
        await commit_and_lose(session, pg, proxy)
        await session.execute(ONE)


async def at_the_last_flush(database: Database, pg: Place, proxy: FaultProxy) -> None:
    async with database.session_scope() as session:
        await commit_and_lose(session, pg, proxy)
        session.add(Note(n=2))


async def commit_and_lose(session: AsyncSession, pg: Place, proxy: FaultProxy) -> None:
    """Return the connection to the pool, where it dies; every new one meets silence."""
    await session.execute(INSERT, {"n": 1})
    await session.commit()
    kill_all(pg)
    await until(lambda: proxy.open_connections == 0)
    proxy.black_hole()


@pytest.mark.parametrize("leave", [at_a_statement, at_the_last_flush])
@pytest.mark.parametrize("is_cancelled", [False, True], ids=["waits", "cancelled"])
def test_a_scope_that_committed_inside_does_not_wait_forever_for_a_silent_server(
    pg: Place, leave: Leave, is_cancelled: bool
) -> None:
    """Its last flush opens a connection where its task cannot be cancelled, so a driver's timeout had no effect."""

    async def main() -> None:
        async with proxied(pg.server) as proxy:
            url = through(proxy, pg.server, pg.driver, pg.database)
            async with with_notes(url, pool_timeout_s=0.5, cleanup_timeout_s=0.3) as database:
                before = proxy.connections
                scope = asyncio.create_task(leave(database, pg, proxy))
                if is_cancelled:
                    await until(lambda: proxy.connections > before or scope.done())
                    scope.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await scope
                else:
                    with pytest.raises(DatabaseTimeout, match=r"no connection could be opened within 0\.5 s"):
                        await scope
                proxy.heal()

    run(main)
