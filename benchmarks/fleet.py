"""The cost of a fleet's limits and money for one process: round trips to PostgreSQL per call, and refusals.

The load is 200 calls a second, each with a unit of three limits (minute, hour, day) and a hold in a budget. The
processes' registration is not counted. The refusal is by a limit whose units are leased.
"""

from __future__ import annotations

import asyncio
import time

from benchmarks.guard_call import Fresh, fail, repeat_refused
from benchmarks.guard_peers import bare
from benchmarks.measure import Report, compare
from benchmarks.money import CALLS_A_SECOND, COUNTED_S, WARM_S, Traffic
from koo.clock import SYSTEM_CLOCK
from koo.deadlines import Deadlines
from koo.errors import RateLimited
from koo.gates import Gates
from koo.guard import Guard
from koo.options import GuardOptions
from koo.policies.limiter import DayCount, Limits, SlidingCount
from koo.storage.leasing import Leasing, MemoryLimitExchange
from koo.storage.memory import MemoryLedger
from koo.storage.store import SqlStore
from koo.testing.postgres import PostgresServer
from koo.testing.proxy import FaultProxy

TRIPS, REFUSAL = "koo: round trips a call with limits and money", "koo: refusal by a limit of the fleet, us"


def limits(a_minute: int) -> Limits:
    """Limits per minute, hour and day."""
    now = time.monotonic()
    return Limits(
        SlidingCount("requests a minute", a_minute, 60.0, now),
        SlidingCount("requests an hour", 60 * a_minute, 3600.0, now),
        DayCount("requests a day", 1440 * a_minute, now + 40_000.0, 1),
    )


class LimitedTraffic(Traffic):
    """Each call takes a unit of each limit first."""

    def __init__(self, store: SqlStore) -> None:
        super().__init__(store.ledger)
        self.limits = limits(60 * CALLS_A_SECOND * 2)
        requests = store.ledger.budget("requests/bench", 10**9, is_default=True)
        store.leasing.share(self.limits, "bench", requests)

    async def _call(self) -> None:
        while self.limits.take(time.monotonic()) is not None:
            assert self.limits.ask is not None
            self.limits.waiting += 1
            await self.limits.ask(time.monotonic() + 30.0)
            self.limits.waiting -= 1
        await super()._call()


async def trips() -> Report:
    """One process's traffic through a proxy that counts round trips."""
    with PostgresServer(18) as server:
        async with FaultProxy(server.host, server.port) as proxy:
            url = server.url(driver=None).replace(f":{server.port}/", f":{proxy.port}/")
            async with SqlStore(url) as store:
                tasks = [asyncio.create_task(one.run()) for one in (store.ledger, store.leasing)]
                traffic = LimitedTraffic(store)
                await traffic.go_on(WARM_S)
                before = proxy.round_trips
                await traffic.go_on(COUNTED_S)
                a_call = (proxy.round_trips - before) / (COUNTED_S * CALLS_A_SECOND)
                await traffic.end()
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
    return Report({TRIPS: [a_call]})


async def refusals(rounds: int) -> Report:
    """The cost of a refusal over raising and catching a new exception from an awaited coroutine."""
    ledger = MemoryLedger(SYSTEM_CLOCK)
    leasing, leased = Leasing(MemoryLimitExchange(SYSTEM_CLOCK), ledger, SYSTEM_CLOCK), limits(1)
    leasing.share(leased, "bench", ledger.budget("requests/bench", 1440, is_default=True))
    guard = Guard(Gates("bench", GuardOptions(idempotent=True), deadlines=Deadlines(), limits=leased))
    await guard.call(bare)
    raised = "raise and catch"
    contenders = {
        raised: repeat_refused(fail, Fresh),
        REFUSAL: repeat_refused(lambda: guard.call(bare), RateLimited),
    }
    table = await compare(contenders, times=6000, rounds=rounds)
    return Report({REFUSAL: table.over_us(REFUSAL, raised)})


async def report(rounds: int = 7) -> Report:
    """Measure both."""
    found = await trips()
    found.add(await refusals(rounds))
    return found
