"""The cost of money for each call: koo's purses, compared with a database row that is updated before and after each
call.

First the cost of a hold and its settlement in one, two and four budgets that have room. Then 200 calls a second of 0.2
s each, with the ledger on PostgreSQL: the round trips per call, and how long calls wait for their hold, with the store
nearby and with the store 500 ms away.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from decimal import Decimal
from functools import partial
from pathlib import Path

from benchmarks.measure import AsyncRun, Report, compare
from benchmarks.money_peers import Rows, SqliteRows, postgres_rows
from koo.clock import SYSTEM_CLOCK
from koo.policies.purse import Budget, Hold
from koo.storage.base import Bill
from koo.storage.ledger import Ledger
from koo.storage.memory import MemoryLedger
from koo.storage.store import SqlStore
from koo.testing.postgres import PostgresServer
from koo.testing.proxy import FaultProxy

KOO, SQLITE, POSTGRES = "koo", "an UPDATE a call, SQLite", "an UPDATE a call, PostgreSQL"
BUDGETS = {1: "one budget", 2: "two budgets", 4: "four budgets"}
HOLD = "a hold and its settlement in {}, us"
NEAR, FAR = "a hold's wait, p99 ms", "a hold's wait with the store 500 ms away, p99 ms"
TRIPS = "round trips a call at 200 calls a second"

BOUND_PICO, COST_PICO = 400_000_000, 100_000_000
"""A call may cost 0.0004 USD, and costs a quarter of that."""
LIMIT_PICO, ROOM_PICO = 10**18, 10**15
BILL = Bill(amount_usd=Decimal("0.0001"), source="table", model="bench", input_tokens=12, output_tokens=96)
CALLS_A_SECOND, ANSWER_S = 200, 0.2
WARM_S, COUNTED_S = 6.0, 5.0
"""Seconds before counting starts. Purses are empty at first, so the first calls wait for a grant. A few beats later the
grants cover two beats of spending."""
AWAY_S = 0.5
ASKED_AWAY = 8
"""Calls of the peer to measure with the distant store: each takes half a second, and they hardly differ."""


# ---- a hold and its settlement -------------------------------------------------------------------------------------


async def with_room(budgets: int) -> tuple[Ledger, tuple[Budget, ...]]:
    """A ledger whose purses last for the whole measurement.

    One more call runs all the time, because a purse is returned when its last call ends.
    """
    ledger = MemoryLedger(SYSTEM_CLOCK)
    chosen = tuple(ledger.budget(f"budget {number}", LIMIT_PICO) for number in range(budgets))
    hold = await ledger.wait(chosen, ROOM_PICO, ledger.clock.monotonic() + 10.0, is_patient=False)
    assert isinstance(hold, Hold)
    ledger.shrink(hold, BOUND_PICO)
    return ledger, chosen


async def koo(budgets: int) -> AsyncRun:
    ledger, chosen = await with_room(budgets)

    async def run(times: int) -> None:
        hold, settle = ledger.hold, ledger.settle
        for _ in range(times):
            held = hold(chosen, BOUND_PICO)
            assert held is not None
            settle(held, "bench", BILL)

    return run


def updates(rows: Rows, budgets: int) -> AsyncRun:
    async def run(times: int) -> None:
        for _ in range(times):
            rows.hold(budgets, BOUND_PICO)
            rows.settle(budgets, BOUND_PICO, COST_PICO)

    return run


async def holds(server: PostgresServer, rounds: int) -> Report:
    """Nothing else runs in this time: no call waits, and no beat is due."""
    report = Report()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sqlite = SqliteRows(folder / "budgets.db", LIMIT_PICO)
        stack.callback(sqlite.close)
        postgres = stack.enter_context(postgres_rows(server, LIMIT_PICO))
        for budgets, in_words in BUDGETS.items():
            runs = {
                KOO: await koo(budgets),
                SQLITE: updates(sqlite, budgets),
                POSTGRES: updates(postgres, budgets),
            }
            table = await compare(runs, times={KOO: 4000, SQLITE: 300, POSTGRES: 100}, rounds=rounds)
            for who, seconds in table.seconds.items():
                report.figures[f"{who}: {HOLD.format(in_words)}"] = [one * 1e6 for one in seconds]
    return report


# ---- 200 calls a second, with the store near and far ---------------------------------------------------------------


class Traffic:
    """Calls at an even pace, each held before it is sent and settled when its response arrives."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._budgets = (ledger.budget("service/bench", LIMIT_PICO),)
        self._asked: set[asyncio.Task[None]] = set()
        self.waits_ms: list[float] = []

    async def go_on(self, for_s: float) -> None:
        """Continue for this many seconds."""
        began = time.perf_counter()
        for number in range(int(for_s * CALLS_A_SECOND)):
            await asyncio.sleep(began + number / CALLS_A_SECOND - time.perf_counter())
            task = asyncio.create_task(self._call())
            self._asked.add(task)
            task.add_done_callback(self._asked.discard)

    async def end(self) -> None:
        """Wait for the calls that are still running."""
        await asyncio.gather(*self._asked)

    async def _call(self) -> None:
        began = time.perf_counter()
        hold: object = self._ledger.hold(self._budgets, BOUND_PICO)
        if hold is None:
            deadline = self._ledger.clock.monotonic() + 30.0
            hold = await self._ledger.wait(self._budgets, BOUND_PICO, deadline, is_patient=True)
        assert isinstance(hold, Hold), hold
        self.waits_ms.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(ANSWER_S)
        self._ledger.settle(hold, "bench", BILL)


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98]


async def on_postgres(server: PostgresServer) -> Report:
    """One process's traffic through a proxy, which counts the round trips and then delays them."""
    report, name = Report(), server.create_database()
    async with FaultProxy(server.host, server.port) as proxy:
        url = server.url(driver=None, database=name).replace(
            f"@{server.host}:{server.port}", f"@{proxy.host}:{proxy.port}"
        )
        async with SqlStore(url) as store:
            beats = asyncio.create_task(store.ledger.run())
            traffic = Traffic(store.ledger)
            for column, delay_s in ((NEAR, 0.0), (FAR, AWAY_S)):
                proxy.delay_s = delay_s / 2  # the proxy delays both directions
                await traffic.go_on(WARM_S)
                traffic.waits_ms, before = [], proxy.round_trips
                await traffic.go_on(COUNTED_S)
                report.figures[f"{KOO}: {column}"] = [p99(traffic.waits_ms)]
                if column is NEAR:
                    trips = (proxy.round_trips - before) / (COUNTED_S * CALLS_A_SECOND)
                    report.figures[f"{KOO}: {TRIPS}"] = [trips]
            proxy.delay_s = 0.0
            await traffic.end()
            beats.cancel()
    server.drop_database(name)
    return report


async def peer_on_postgres(server: PostgresServer) -> Report:
    """Calls one after another: how long each waits for its UPDATE, without a queue."""
    report = Report()
    async with FaultProxy(server.host, server.port) as proxy:
        with ExitStack() as stack:
            for column, delay_s, calls in ((NEAR, 0.0, 300), (FAR, AWAY_S, ASKED_AWAY)):
                through = (proxy.host, proxy.port) if delay_s else None
                rows = await asyncio.to_thread(
                    stack.enter_context, postgres_rows(server, LIMIT_PICO, through)
                )
                proxy.delay_s = delay_s / 2
                waits_ms = await asyncio.to_thread(timed_ms, partial(rows.hold, 1, BOUND_PICO), calls)
                report.figures[f"{POSTGRES}: {column}"] = [p99(waits_ms)]
                proxy.delay_s = 0.0
            await asyncio.to_thread(stack.close)
    return report


def timed_ms(act: Callable[[], object], times: int) -> list[float]:
    """The duration of each of this many calls, in milliseconds."""
    act()
    took: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        act()
        took.append((time.perf_counter() - began) * 1000)
    return took


async def report(rounds: int = 7) -> Report:
    """Measure everything. The waits are measured in `rounds // 2` rounds, because each takes half a minute."""
    with PostgresServer(18) as server:
        found = await holds(server, rounds)
        for _ in range(max(1, rounds // 2)):
            gc.collect()
            for part in (await on_postgres(server), await peer_on_postgres(server)):
                for name, values in part.figures.items():
                    found.figures.setdefault(name, []).extend(values)
    return found
