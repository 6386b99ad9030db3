"""Limits of several processes on one store: memory, SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, ParamSpec

import pytest

from koo.clock import SYSTEM_CLOCK, Clock
from koo.policies.hand import Hand
from koo.policies.limiter import DayCount, Limits, SlidingCount
from koo.storage.leasing import Leasing, MemoryLimitExchange
from koo.storage.memory import MemoryLedger
from koo.storage.store import SqlStore
from koo.storage.windows import MemoryWindows
from koo.testing.polling import until
from tests.storage.support import Place

P = ParamSpec("P")


def on_a_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


class MemoryStore:
    """The ledger and the limits in memory; several of these stores share `windows`."""

    def __init__(self, windows: MemoryWindows, clock: Clock) -> None:
        self.ledger = MemoryLedger(clock)
        self.leasing = Leasing(MemoryLimitExchange(clock, windows), self.ledger, clock)

    async def open(self) -> None:
        await self.ledger.refresh()

    async def close(self) -> None:
        await self.leasing.finish()


Store = MemoryStore | SqlStore


class Process:
    """One process's limits of a service."""

    def __init__(self, store: Store, *, minute: int = 40, day: int | None = None) -> None:
        now = time.monotonic()
        self.store = store
        self.minute = SlidingCount("requests a minute", minute, 60.0, now)
        days = [] if day is None else [DayCount("requests a day", day, now + 40_000, 1)]
        self.limits = Limits(self.minute, *days)
        requests = None if day is None else store.ledger.budget("requests/x", day, is_default=True)
        store.leasing.share(self.limits, "x", requests)

    async def take(self, within_s: float = 20.0) -> bool:
        """Take a unit as a call does: from the hand, or after the store's reply."""
        deadline = time.monotonic() + within_s
        while self.limits.take(time.monotonic()) is not None:
            assert self.limits.ask is not None
            now = time.monotonic()
            if not self.limits.lacks(now):
                # On a busy machine a lease may end before its units are used, and then they are returned.
                home_at = self.limits.comes_home_at(now)
                if home_at >= deadline:
                    return False
                await asyncio.sleep(home_at - now)
                continue
            self.limits.waiting += 1
            await self.limits.ask(deadline)
            self.limits.waiting -= 1
        return True

    @property
    def hand(self) -> Hand:
        assert isinstance(self.minute.hand, Hand)
        return self.minute.hand


@asynccontextmanager
async def fleet(place: Place, processes: int, **limits: int) -> AsyncIterator[list[Process]]:
    """Several processes on one place, each with its background task; in memory they share one store's rows."""
    windows = MemoryWindows()
    async with AsyncExitStack() as stack:
        members = []
        for _ in range(processes):
            store: Store = (
                place.sql_store(limit=None) if place.is_shared else MemoryStore(windows, SYSTEM_CLOCK)
            )
            process = Process(store, **limits)
            await store.open()
            await store.leasing.begin()
            task = asyncio.create_task(store.leasing.run())
            stack.push_async_callback(store.close)
            stack.push_async_callback(asyncio.wait, [task])
            stack.callback(task.cancel)
            members.append(process)
        yield members


@on_a_loop
async def test_a_limit_of_forty_a_minute_holds_across_three_processes(place: Place) -> None:
    async with fleet(place, 3) as processes:
        taken = await asyncio.gather(*(one.take() for one in processes * 20))
        assert sum(taken) == 40
        assert not any([await one.take() for one in processes])
        assert all(one.limits.usable_at(time.monotonic()) > time.monotonic() for one in processes)


@on_a_loop
async def test_a_lone_process_does_not_query_the_store_for_each_call(place: Place) -> None:
    async with fleet(place, 1, minute=200) as (process,):
        for _ in range(200):
            assert await process.take()
        assert process.store.leasing.messages < 40


@on_a_loop
async def test_unused_units_are_returned_without_a_request(place: Place) -> None:
    async with fleet(place, 2) as (one, other):
        assert await one.take()
        assert one.hand.left > 0
        await until(lambda: one.hand.left == 0, within_s=20)
        taken = await asyncio.gather(*(other.take() for _ in range(45)))
        assert sum(taken) == 39


@on_a_loop
async def test_a_process_that_closes_returns_its_units(shared: Place) -> None:
    async with fleet(shared, 1) as (one,):
        assert await one.take()
    assert shared.sql("SELECT count(*) FROM koo_leases") == [(0,)]
    ((occupied,),) = shared.sql("SELECT occupied FROM koo_limits")
    assert occupied.endswith(",1]]") and occupied.count(",1]") == 1


@on_a_loop
async def test_a_daily_limit_holds_across_two_processes(shared: Place) -> None:
    async with fleet(shared, 2, minute=500, day=30) as processes:
        tasks = [asyncio.create_task(one.store.ledger.run()) for one in processes]
        taken = await asyncio.gather(*(one.take() for one in processes * 25))
        assert sum(taken) == 30
        assert not any([await one.take() for one in processes])
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@on_a_loop
async def test_a_beat_that_returns_the_days_units_leaves_none_in_this_process(sqlite: Place) -> None:
    """This includes units that the last check of the limits allowed: used here, they would be granted elsewhere too."""
    async with fleet(sqlite, 1, minute=500, day=2000) as (one,):
        task = asyncio.create_task(one.store.ledger.run())
        assert await one.take()
        purse = one.store.ledger.purses.budgets["requests/x"].purse
        await until(lambda: purse.room >= 5)
        task.cancel()
        await asyncio.wait([task])
        assert one.limits.take(time.monotonic()) is None
        for _ in range(2):  # the first reply may belong to a beat that was in flight
            one.store.ledger.purses.send_home()
            await one.store.ledger.beat()
        assert purse.room == 0 and one.limits.take(time.monotonic()) is not None


@on_a_loop
async def test_an_unused_unit_of_a_daily_limit_goes_to_the_next_caller(shared: Place) -> None:
    async with fleet(shared, 1, minute=500, day=2) as (one,):
        task = asyncio.create_task(one.store.ledger.run())
        assert await one.take() and await one.take()
        one.limits.refund(time.monotonic())
        assert await one.take() and not await one.take()
        task.cancel()
        await asyncio.wait([task])


@on_a_loop
async def test_without_the_store_a_processs_share_applies_once_its_lease_has_ended(
    sqlite: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("koo.policies.hand.LOST_S", 0.0)
    async with fleet(sqlite, 1) as (one,):
        assert await one.take()
        one.store.leasing.know_processes(4)
        one.store.leasing.store_changed("the disk is full")
        monkeypatch.setattr(type(one.store.ledger), "trouble", "the disk is full")
        await until(lambda: time.monotonic() > one.hand.until, within_s=20)
        taken = [await one.take() for _ in range(20)]
        assert sum(taken) == 7, "each of four processes has a fifth of forty, and one unit is used"
        full = one.limits.full(time.monotonic())
        assert full is not None and one.limits.why(full) == (
            "koo's limit of 40 requests a minute is reached here: the state store is unreachable, so each of 4 "
            "processes may use its share of four fifths: 8"
        )
        monkeypatch.undo()
        one.store.leasing.store_changed(None)
        await until(lambda: not one.hand.has_news(), within_s=20)


@on_a_loop
async def test_a_forked_child_has_no_units(sqlite: Place) -> None:
    async with fleet(sqlite, 1) as (one,):
        assert await one.take()
        one.store.ledger.forget_parent()
        one.store.leasing.forget_parent()
        one.store.leasing._look_at_name()
        assert one.hand.left == 0 and one.limits.lacks(time.monotonic())


@on_a_loop
async def test_an_operators_reset_of_a_limit_reaches_the_store(place: Place) -> None:
    async with fleet(place, 2) as (one, other):
        taken = await asyncio.gather(*(other.take() for _ in range(45)))
        assert sum(taken) == 40
        await until(lambda: not other.hand.has_news(), within_s=20)
        one.limits.clear(time.monotonic())
        other.limits.clear(time.monotonic(), is_told=True)
        for _ in range(600):
            if await one.take() and await other.take():
                return
            await asyncio.sleep(0.05)
        raise AssertionError("the reset did not reach the store")
