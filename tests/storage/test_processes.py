"""Money that several processes share, and what is left when one of them dies."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from decimal import Decimal
from pathlib import Path

import pytest

from koo.storage.sql_ledger import SKEW_S
from koo.storage.store import SqlStore
from koo.storage.transaction import Transaction
from tests.storage.support import (
    LONG_AFTER_S,
    Place,
    SetClock,
    bill,
    money,
    numbers,
    pico,
    request,
    store_threads,
    until,
    usd,
)

ROOT = Path(__file__).parents[2]


def start(place: Place, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.storage.spender", place.url, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)


def lines(process: subprocess.Popen[str], until: str | None = None, count: int = 1) -> list[list[str]]:
    """What it says, until it has said `count` lines that begin with `until`, or all of it."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line.split())
        count -= until is not None and line.startswith(until)
        if count == 0:
            break
    return said


def kill(process: subprocess.Popen[str]) -> list[list[str]]:
    process.kill()
    with process:
        return lines(process)


def end(process: subprocess.Popen[str]) -> list[list[str]]:
    with process:
        said = lines(process)
    assert process.returncode == 0
    return said


@pytest.mark.slow
def test_three_processes_one_killed_the_cap_holds_and_no_cent_is_lost(shared: Place) -> None:
    async def prepare() -> None:
        store = shared.sql_store()
        await store.open()
        await store.close()
        shared.forbid_more_than("1.00")

    async def sweep() -> None:
        store = shared.sql_store(SetClock(time.time() + LONG_AFTER_S))
        await store.ledger.sweep()
        await store.close()

    asyncio.run(prepare())
    victim = start(shared, 100_000, "0.05", "1.00", 60)
    said_by_victim = lines(victim, "held", 5)
    others = [start(shared, 200, "0.05", "1.00", 60) for _ in range(2)]
    said_by_others = [lines(other, "held", 20) for other in others]
    said_by_victim += lines(victim, "held", 20) + kill(victim)
    said = [line for other, said in zip(others, said_by_others, strict=True) for line in said + end(other)]
    assert [line for line in said if line == ["done"]] == [["done"]] * 2

    held = [line[1] for line in said + said_by_victim if line[0] == "held"]
    bills = {line[1]: pico(line[2]) for line in said if line[0] == "billed"}
    billed_by_victim = {line[1]: pico(line[2]) for line in said_by_victim if line[0] == "billed"}
    asyncio.run(sweep())
    booked = {
        id_: (amount, estimated)
        for id_, amount, estimated in shared.sql("SELECT id, amount, estimated FROM koo_entries")
    }
    assert set(held) <= set(booked)
    assert {id_: booked[id_] for id_ in bills} == {id_: (bill, 0) for id_, bill in bills.items()}
    for id_ in booked.keys() - bills.keys():
        assert booked[id_] in ((billed_by_victim.get(id_), 0), (pico("0.05"), 1))
    settled = sum(amount for amount, _ in booked.values())
    assert shared.sql("SELECT sum(settled), sum(held), sum(requests) FROM koo_days") == [
        (settled, 0, len(booked))
    ]


def test_a_hold_is_there_when_the_process_is_killed_the_moment_it_was_given(shared: Place) -> None:
    victim = start(shared, 0, "0.40", "1.00", 60)
    lines(victim, "held")
    kill(victim)

    async def main() -> None:
        clock = SetClock(time.time())
        store = shared.sql_store(clock)
        await store.open()
        assert money(store.ledger.view("claude")) == usd("0", "0.40")
        assert await store.quotas.used_today("claude") == 1
        day = clock.day
        clock.now += 60 + SKEW_S + 1
        swept = await store.ledger.sweep()
        assert [hold.amount_usd for hold in swept] == [Decimal("0.40")]
        await store.close()
        assert shared.sql(f"SELECT settled, held FROM koo_days WHERE day = {day}") == [(pico("0.40"), 0)]
        assert shared.sql("SELECT model, source, estimated, bound FROM koo_entries") == [
            ("m", "estimate", 1, pico("0.40"))
        ]

    asyncio.run(main())


def test_two_stores_on_one_place_share_one_cap_and_see_each_others_money(shared: Place) -> None:
    async def main() -> None:
        clock = SetClock()
        one, two = shared.sql_store(clock), shared.sql_store(clock)
        await asyncio.gather(one.open(), two.open())
        shared.forbid_more_than("1.00")
        results = await asyncio.gather(
            *(store.ledger.hold(request("0.05")) for store in (one, two) for _ in range(50)),
            return_exceptions=True,
        )
        held = [result for result in results if not isinstance(result, BaseException)]
        assert len(held) == 20
        assert await numbers(one) == await numbers(two) == usd("0", "1")
        await one.close()
        await two.close()

    asyncio.run(main())


def test_several_sweepers_at_once_book_each_lost_hold_once(shared: Place) -> None:
    async def main() -> None:
        clock = SetClock()
        stores = [shared.sql_store(clock) for _ in range(4)]
        await asyncio.gather(*(stores[0].ledger.hold(request("0.001", lease_s=1)) for _ in range(300)))
        clock.now += LONG_AFTER_S
        swept = [
            hold for holds in await asyncio.gather(*(s.ledger.sweep() for s in stores)) for hold in holds
        ]
        assert len({hold.id for hold in swept}) == len(swept) == 300
        assert await numbers(stores[0]) == usd("0.3")
        for store in stores:
            await store.close()

    asyncio.run(main())


def test_a_hold_settled_while_another_process_sweeps_is_booked_once(shared: Place) -> None:
    async def main() -> None:
        clock = SetClock()
        one, two = shared.sql_store(clock), shared.sql_store(clock)
        holds = await asyncio.gather(*(one.ledger.hold(request("0.002", lease_s=1)) for _ in range(200)))
        clock.now += LONG_AFTER_S
        for hold in holds:
            one.ledger.settle(hold, bill("0.001"))
        swept, _ = await asyncio.gather(two.ledger.sweep(), one.ledger.flush())
        expected = Decimal("0.2") + Decimal("0.001") * len(swept)
        assert await numbers(one) == (expected, Decimal(0))
        await one.close()
        await two.close()

    asyncio.run(main())


def test_a_restart_finds_everything_again(shared: Place) -> None:
    async def spend(clock: SetClock) -> None:
        async with shared.sql_store(clock) as store:
            store.ledger.settle(await store.ledger.hold(request("0.50")), bill("0.40"))
            await store.ledger.hold(request("0.05"))
            store.quotas.add("claude", clock.day, 3)

    async def look(clock: SetClock) -> None:
        async with shared.sql_store(clock) as store:
            assert money(store.ledger.view("claude")) == usd("0.40", "0.05")
            assert await store.quotas.used_today("claude") == 5

    clock = SetClock()
    asyncio.run(spend(clock))
    asyncio.run(look(clock))


def test_one_store_serves_one_loop_after_another(shared: Place) -> None:
    clock = SetClock()
    store = shared.sql_store(clock)

    async def spend() -> None:
        store.ledger.settle(await store.ledger.hold(request("0.05")), bill("0.01"))

    async def spend_and_close() -> None:
        await spend()
        await store.close()

    async def look() -> None:
        assert await numbers(store) == usd("0.20")
        await store.close()

    for _ in range(10):
        asyncio.run(spend_and_close())
        asyncio.run(
            spend()
        )  # It is not closed: the loop just ends, and what was not yet written is written later.
    asyncio.run(look())


def test_a_thread_that_a_lost_loop_left_behind_takes_no_hold_of_the_next(sqlite: Place) -> None:
    """Its loop ended while it was at work and more was waiting: it ends that, and leaves the next loop's to another."""
    clock = SetClock()
    store = SqlStore(sqlite.url, clock=clock, linger_s=0.0)
    at_work, first, second = threading.Event(), threading.Event(), threading.Event()

    def work(tx: Transaction) -> None:
        at_work.set()
        first.wait()

    threads: list[threading.Thread] = []

    async def lost() -> None:
        hold = await store.ledger.hold(request("0.05"))
        blocking = asyncio.create_task(store.executor.run(work))
        await until(at_work.is_set)
        store.ledger.settle(hold, bill("0.01"))
        store.ledger.submit()
        blocking.cancel()
        threads.append(store_threads()[-1])

    async def found() -> None:
        blocking = asyncio.create_task(store.executor.run(lambda tx: second.wait(), exclusive=False))
        await asyncio.sleep(0)
        holding = asyncio.create_task(store.ledger.hold(request("0.07")))
        await asyncio.sleep(0)
        first.set()
        await until(lambda: not threads[0].is_alive())
        second.set()
        await blocking
        await holding
        assert await numbers(store) == usd("0.01", "0.07")
        await store.close()

    asyncio.run(lost())
    asyncio.run(found())


def test_what_waited_when_its_loop_ended_is_written_on_the_next_without_being_asked_for(
    sqlite: Place,
) -> None:
    clock = SetClock()
    store = SqlStore(sqlite.url, clock=clock)

    async def settle() -> None:
        store.ledger.settle(await store.ledger.hold(request("0.05")), bill("0.01"))

    async def settle_and_look() -> None:
        await store.open()
        await until(lambda: sqlite.sql("SELECT settled FROM koo_days") == [(pico("0.01"),)])
        await settle()
        await until(lambda: sqlite.sql("SELECT settled FROM koo_days") == [(pico("0.02"),)])
        await store.close()

    asyncio.run(settle())
    asyncio.run(settle_and_look())


def test_a_store_in_use_on_one_loop_refuses_another(sqlite: Place) -> None:
    store = sqlite.store()

    async def main() -> None:
        await store.open()
        with pytest.raises(RuntimeError, match="in use on another event loop"):
            await asyncio.to_thread(asyncio.run, store.open())
        await store.close()

    asyncio.run(main())
