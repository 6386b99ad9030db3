"""The ledger needs only a few round trips a second, however many calls are made."""

from __future__ import annotations

import asyncio
import time

import pytest

from koo.storage.store import SqlStore
from koo.testing.postgres import PostgresServer
from koo.testing.proxy import FaultProxy
from tests.storage.support import hold, know, settle


def through(proxy: FaultProxy, server: PostgresServer, database: str) -> SqlStore:
    """A store with a server's beat, whose traffic passes through `proxy`."""
    url = server.url("psycopg", database).replace(f":{server.port}/", f":{proxy.port}/")
    store = SqlStore(url, beat_s=1.0)
    for name in ("service/claude", "budget/month", "budget/tag", "requests/claude"):
        know(store, None if name.startswith("requests") else "1000", name)
    return store


async def call(store: SqlStore) -> None:
    """A call that takes some time and counts against three budgets."""
    given = await hold(store, "0.02", "service/claude", "budget/month", "budget/tag")
    await asyncio.sleep(0.1)
    settle(store, given, "0.005")


def test_a_beat_with_a_hundred_entries_is_two_round_trips(postgres18: PostgresServer) -> None:
    async def main() -> None:
        async with FaultProxy("127.0.0.1", postgres18.port) as proxy:
            store = through(proxy, postgres18, postgres18.create_database())
            await store.open()
            await call(store)
            await store.ledger.refresh()
            trips = []
            for _ in range(3):
                given = [await hold(store, "0") for _ in range(100)]
                for one in given:
                    settle(store, one, "0")
                before = proxy.round_trips
                await store.ledger.refresh()
                trips.append(proxy.round_trips - before)
            assert trips == [2] * 3, "one trip for the locked rows, one for the writes and COMMIT"
            await store.close()

    asyncio.run(main())


@pytest.mark.slow
def test_two_hundred_calls_a_second_cost_one_round_trip_per_twenty_calls(postgres18: PostgresServer) -> None:
    async def main() -> None:
        async with FaultProxy("127.0.0.1", postgres18.port) as proxy:
            store = through(proxy, postgres18, postgres18.create_database())
            await store.open()
            running = asyncio.create_task(store.ledger.run())
            tasks: list[asyncio.Task[None]] = []
            trips: list[int] = []
            began = time.perf_counter()
            for number in range(1200):
                tasks.append(asyncio.create_task(call(store)))
                trips.append(proxy.round_trips)
                await asyncio.sleep(began + number / 200 - time.perf_counter())
            await asyncio.gather(*tasks)
            running.cancel()
            await store.close()
            # complete beats, once it has measured its rate of spending
            begins = [
                number
                for number in range(400, 1200)
                if trips[number] > trips[number - 20] == trips[number - 1]
            ]
            first, last = begins[0], begins[-1]
            assert (trips[last - 1] - trips[first - 1]) / (last - first) <= 0.05

    asyncio.run(main())


@pytest.mark.slow
def test_a_slow_store_delays_no_call_while_the_purse_has_room(postgres18: PostgresServer) -> None:
    async def main() -> None:
        async with FaultProxy("127.0.0.1", postgres18.port) as proxy:
            store = through(proxy, postgres18, postgres18.create_database())
            await store.open()
            running = asyncio.create_task(store.ledger.run())
            tasks: list[asyncio.Task[None]] = []
            waits: list[float] = []

            async def timed() -> None:
                began = time.perf_counter()
                given = await hold(store, "0.02")
                waits.append(time.perf_counter() - began)
                await asyncio.sleep(0.1)
                settle(store, given, "0.005")

            for number in range(1000):
                if number == 400:
                    proxy.delay_s = 0.125  # each way of two round trips, so half a second for a beat
                    waits.clear()
                tasks.append(asyncio.create_task(timed()))
                await asyncio.sleep(0.005)
            await asyncio.gather(*tasks)
            proxy.delay_s = 0.0
            running.cancel()
            await store.close()
            assert sorted(waits)[int(len(waits) * 0.99)] < 0.2, "only calls that wait for a beat take longer"

    asyncio.run(main())
