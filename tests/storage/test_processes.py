"""Money shared by several processes, and what remains when one of them dies."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from koo.policies.treasury import LIVES_MS
from koo.storage.store import SqlStore
from koo.storage.transaction import Transaction
from koo.testing.polling import until
from tests.storage.support import (
    CLAUDE,
    Place,
    hold,
    know,
    numbers,
    pico,
    seen,
    settle,
    spend,
    store_threads,
    usd,
)

ROOT = Path(__file__).parents[2]


def start(place: Place, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.storage.spender", place.url, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)


def lines(process: subprocess.Popen[str], until: str | None = None, count: int = 1) -> list[list[str]]:
    """The process's output, up to `count` lines that begin with `until`, or all of it."""
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


BOUND = "0.05"


async def look(place: Place) -> tuple[Decimal, Decimal, Decimal]:
    """The spent, held and unsettled amounts that another process sees once the others no longer report."""
    place.sql(f"UPDATE koo_processes SET seen_ms = seen_ms - {LIVES_MS + 1000}")
    async with place.sql_store() as store:
        view = store.ledger.view(CLAUDE)
    return view.spent_usd, view.held_usd, view.unsettled_usd


@pytest.mark.slow
def test_the_cap_holds_and_no_money_is_lost_when_one_of_three_processes_is_killed(shared: Place) -> None:
    async def prepare() -> None:
        async with shared.sql_store():
            shared.forbid_more_than("1.00")

    asyncio.run(prepare())
    victim = start(shared, 100_000, BOUND, "1.00")
    said_by_victim = lines(victim, "held", 5)
    others = [start(shared, 200, BOUND, "1.00") for _ in range(2)]
    said_by_others = [lines(other, "held", 20) for other in others]
    said_by_victim += lines(victim, "held", 20) + kill(victim)
    said = [line for other, said in zip(others, said_by_others, strict=True) for line in said + end(other)]
    assert [line for line in said if line == ["done"]] == [["done"]] * 2

    billed = sum(pico(line[2]) for line in said if line[0] == "billed")
    billed_by_victim = sum(pico(line[2]) for line in said_by_victim if line[0] == "billed")
    entries = shared.sql("SELECT process, sum(amount) FROM koo_entries GROUP BY process")
    victims = {process for process, _ in entries if process.split(":")[1] == str(victim.pid)}
    assert sum(amount for process, amount in entries if process not in victims) == billed
    booked, spent = shared.booked()
    assert booked <= pico("1.00")
    assert billed <= spent <= billed + billed_by_victim, "the killed process's reports are not lost"
    _, _, unsettled = asyncio.run(look(shared))
    assert pico(unsettled) == booked - spent, "nothing else is left unsettled"
    assert booked >= billed + billed_by_victim


def test_a_hold_stays_booked_when_the_process_is_killed(shared: Place) -> None:
    victim = start(shared, 0, "0.40", "1.00")
    lines(victim, "held")
    kill(victim)
    assert shared.booked() == (pico("0.40"), 0)
    assert asyncio.run(look(shared)) == (*usd("0"), Decimal("0.40"))


@pytest.mark.slow
def test_a_script_with_one_call_leaves_nothing_behind(shared: Place) -> None:
    for _ in range(3):
        script = start(shared, 10, BOUND, "1.00")
        billed = sum(line[0] == "billed" for line in end(script))
        assert billed == 10
    booked, spent = shared.booked()
    assert booked == spent
    assert shared.sql("SELECT count(*), sum(amount) FROM koo_entries") == [(30, spent)]


def test_ended_processes_leave_one_row_per_budget(shared: Place) -> None:
    """Otherwise the rows that are added up for each status would grow with each script of the day."""

    async def main() -> None:
        for _ in range(3):
            store = shared.sql_store()
            await spend(store, "0.01")
            await store.close()
        know(store, "1.00")  # one is opened again
        await store.open()
        await spend(store, "0.02")
        assert await numbers(store) == usd("0.05")
        await store.close()
        assert seen(store) == usd("0.05")
        assert shared.booked() == (pico("0.05"), pico("0.05"))
        assert shared.sql("SELECT process, spent FROM koo_purses") == [("ended", pico("0.05"))]
        assert shared.sql("SELECT count(*) FROM koo_entries") == [(4,)]

    asyncio.run(main())


def test_processes_that_use_the_same_budgets_in_different_orders_do_not_deadlock(
    shared: Place,
) -> None:
    """Each process has them in a different order, and some create a new day's rows while others lock them.

    Each process sends beats. Without beats it would keep two beats' worth of money after its calls, because it would
    never learn of a recall.
    """
    names = [f"budget/{letter}" for letter in "abcdef"]

    async def main() -> None:
        stores = [shared.sql_store(limit="100") for _ in range(4)]
        for number, store in enumerate(stores):
            for name in names[number:] + names[:number]:
                know(store, "100", name)
        await asyncio.gather(*(store.open() for store in stores))
        running = [asyncio.create_task(store.ledger.run()) for store in stores]

        async def calls(store: SqlStore, number: int) -> None:
            for turn in range(10):
                chosen = [names[(turn + number) % 6], names[(turn * number + 1) % 6]]
                settle(store, await hold(store, "0.10", *dict.fromkeys([CLAUDE, *chosen])), "0.01")

        await asyncio.gather(*(calls(store, number) for number, store in enumerate(stores)))
        assert [store.trouble for store in stores] == [None] * 4
        for store, task in zip(stores, running, strict=True):
            task.cancel()
            await store.close()
        assert shared.booked() == (pico("0.40"), pico("0.40"))

    asyncio.run(main())


def test_a_forked_child_starts_with_an_empty_purse_and_another_name(shared: Place) -> None:
    """For the child, the parent's purse, waiting callers and entries belong to another process."""

    store = shared.sql_store()

    async def parent() -> str:
        await spend(store, "0.20")
        await hold(store, "0.30")
        # Money that a slow machine may have been granted in advance. The child could not use it.
        store.ledger.purses.send_home()
        await store.ledger.refresh()
        settle(store, await hold(store, "0"), "0.01")  # not reported yet; the parent reports it
        return store.ledger.purses.name

    async def child() -> None:
        assert seen(store) == usd("0.21", "0.30")
        assert store.ledger.hold((store.ledger.purses.budgets[CLAUDE],), 1) is None
        await hold(store, "0.40")
        await store.ledger.refresh()
        assert shared.booked() == (pico("0.90"), pico("0.20"))
        assert shared.sql("SELECT count(*) FROM koo_entries") == [(1,)]
        await store.close()

    # Each process has a separate loop, so no beat of the parent is in flight in a child.
    name = asyncio.run(parent())
    store.ledger.forget_parent()
    assert store.ledger.purses.name != name
    asyncio.run(child())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_real_forked_child_does_not_spend_its_parents_money(sqlite: Place) -> None:
    async def prepare() -> SqlStore:
        store = sqlite.sql_store()
        first = await hold(store, "0.60")
        store.ledger.shrink(first, pico("0.10"))
        return store

    store = asyncio.run(prepare())
    child = os.fork()
    if child == 0:
        try:
            given = store.ledger.hold((store.ledger.purses.budgets[CLAUDE],), pico("0.01"))
            os._exit(0 if given is None else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.ledger.hold((store.ledger.purses.budgets[CLAUDE],), pico("0.50")) is not None


def test_a_written_off_process_takes_another_name_and_reports_its_holds_under_it(
    shared: Place,
) -> None:
    async def main() -> None:
        store = shared.sql_store()
        given = await hold(store, "0.40")
        settle(store, await hold(store, "0.10"), "0.05")
        await store.ledger.refresh()
        name = store.ledger.purses.name
        heard: list[bool] = []
        store.ledger.heard = lambda answer: heard.append(answer.is_you)
        shared.sql(f"UPDATE koo_processes SET closed = 1 WHERE name = '{name}'")
        settle(store, given, "0.30")
        assert await numbers(store) == usd("0.35")
        assert store.ledger.purses.name != name
        assert heard == [False]
        assert shared.sql("SELECT sum(amount), count(*) FROM koo_entries") == [(pico("0.35"), 2)]
        await store.close()

    asyncio.run(main())


def test_a_restart_keeps_all_numbers(shared: Place) -> None:
    async def main() -> None:
        clock = shared.clock()
        async with shared.sql_store(clock) as store:
            know(store, None, "requests/claude")
            settle(store, await hold(store, "0.50"), "0.40")
            await hold(store, "0.05")
            budget = store.ledger.purses.budgets["requests/claude"]
            store.ledger.count(budget, budget.purse.key.period, 3)
        async with shared.sql_store(clock) as store:
            know(store, None, "requests/claude")
            await store.ledger.refresh()
            assert seen(store) == usd("0.40", "0.05")
            budget = store.ledger.purses.budgets["requests/claude"]
            assert store.ledger.counted_elsewhere(budget, budget.purse.key.period) == 3

    asyncio.run(main())


# ── event loops ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_store_can_be_used_on_one_loop_after_another(shared: Place) -> None:
    store = shared.sql_store()

    async def spend_and_close() -> None:
        await store.open()
        running = asyncio.create_task(store.ledger.run())
        await spend(store)
        running.cancel()
        await store.close()

    async def spend_and_go() -> None:
        """Spend without closing the store: the loop just ends, and unreported spending is reported later."""
        await store.open()
        running = asyncio.create_task(store.ledger.run())
        await spend(store)
        del running

    async def look() -> None:
        assert await numbers(store) == usd("0.20")
        await store.close()

    for _ in range(10):
        asyncio.run(spend_and_close())
        asyncio.run(spend_and_go())
    asyncio.run(look())


def test_entries_that_waited_when_their_loop_ended_are_reported_on_the_next_loop(sqlite: Place) -> None:
    store = sqlite.sql_store()

    async def go_on() -> None:
        running = asyncio.create_task(store.ledger.run())
        await until(lambda: sqlite.booked() == (pico("0.01"), pico("0.01")))
        await spend(store)
        await until(lambda: sqlite.booked() == (pico("0.02"), pico("0.02")))
        running.cancel()
        await store.close()

    asyncio.run(spend(store))
    asyncio.run(go_on())


def test_a_loop_closed_in_the_middle_of_a_beat_does_not_block_the_next_loop(sqlite: Place) -> None:
    store = sqlite.sql_store()
    gate = threading.Event()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(store.open())
    given = loop.run_until_complete(hold(store))
    blocking = loop.create_task(store.executor.run(lambda tx: gate.wait()))
    waiting = loop.create_task(hold(store, "0.10"))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    gate.set()
    settle(store, given, "0.02")
    left: list[asyncio.Task[Any]] = [blocking, waiting]
    for task in left:
        task._log_destroy_pending = False  # type: ignore[attr-defined]

    async def go_on() -> None:
        await hold(store, "0.90")
        await numbers(store)
        await store.close()

    asyncio.run(go_on())
    assert sqlite.booked()[1] == pico("0.02")


def test_the_thread_of_an_ended_loop_finishes_its_job_and_takes_none_of_the_next_loops(
    sqlite: Place,
) -> None:
    store = sqlite.sql_store()
    at_work, first = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def work(tx: Transaction) -> None:
        at_work.set()
        first.wait()

    async def lost() -> None:
        given = await hold(store, "0.05")
        blocking = asyncio.create_task(store.executor.run(work))
        await until(at_work.is_set)
        settle(store, given, "0.01")
        blocking.cancel()
        threads.append(store_threads()[-1])

    async def found() -> None:
        holding = asyncio.create_task(hold(store, "0.07"))
        await asyncio.sleep(0)
        first.set()
        await until(lambda: not threads[0].is_alive())
        await holding
        assert await numbers(store) == usd("0.01", "0.07")
        await store.close()

    asyncio.run(lost())
    asyncio.run(found())


def test_a_store_in_use_on_one_loop_refuses_another_loop(sqlite: Place) -> None:
    store = sqlite.store()

    async def main() -> None:
        await store.open()
        running = asyncio.create_task(store.ledger.run())
        first = await hold(store, "0.60")
        waiting = asyncio.create_task(hold(store, "0.60"))
        with pytest.raises(RuntimeError, match="in use on another event loop"):
            await asyncio.to_thread(asyncio.run, store.open())
        store.ledger.release(first)
        await waiting
        running.cancel()
        await store.close()

    asyncio.run(main())
