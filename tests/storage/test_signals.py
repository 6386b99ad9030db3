"""An operator's act in one process reaches all other processes on the same store."""

from __future__ import annotations

import asyncio

import pytest

from koo.storage.base import Signal
from koo.storage.signals import SIGNAL_KEPT_S
from koo.storage.store import SqlStore
from tests.storage.support import NOON_S, Place, SetClock


def brief(signal: Signal) -> tuple[str, str]:
    return signal.kind, signal.target


def test_a_process_receives_the_signals_after_a_number_in_order(shared: Place) -> None:
    async def main() -> None:
        clock = SetClock()
        async with SqlStore(shared.url, clock=clock) as one, SqlStore(shared.url, clock=clock) as two:
            await one.signals.publish("reset", "too early")
            cursor = await two.signals.cursor()
            await two.signals.publish("reset", "my own")
            await one.signals.publish("override", "claude/m", {"override": "forced_open", "until": None})
            await one.signals.publish("cooldown", "openai", {"until_wall_s": 12.5})
            found = await two.signals.since(cursor)
            assert [brief(signal) for signal in found] == [
                ("reset", "my own"),
                ("override", "claude/m"),
                ("cooldown", "openai"),
            ]
            assert found[1].payload == {"override": "forced_open", "until": None}
            assert [(signal.process, signal.at) for signal in found] == [
                (store.process, NOON_S) for store in (two, one, one)
            ]

    asyncio.run(main())


def test_no_signal_is_missed_when_many_are_published_at_once(shared: Place) -> None:
    async def main() -> None:
        clock = SetClock()
        stores = [SqlStore(shared.url, clock=clock, timeout_s=20) for _ in range(3)]
        async with SqlStore(shared.url, clock=clock) as listener:
            start = await listener.signals.cursor()
            published = asyncio.gather(
                *(
                    store.signals.publish("reset", f"{n}-{i}")
                    for n, store in enumerate(stores)
                    for i in range(30)
                )
            )
            found: list[Signal] = []
            async with asyncio.timeout(30):
                while len(found) < 90:
                    found += await listener.signals.since(found[-1].id if found else start)
            assert sorted(await published) == [signal.id for signal in found]
            for store in stores:
                await store.close()

    asyncio.run(main())


@pytest.mark.parametrize("ahead_s", [-300.0, 300.0])
def test_a_signals_times_follow_the_readers_clock(shared: Place, ahead_s: float) -> None:
    """An override for a minute lasts a minute on a machine whose clock is five minutes ahead or behind."""

    async def main() -> None:
        if shared.has_own_clock:
            pytest.skip("all processes on one file have the same clock")
        here, there = shared.clock(), shared.clock()
        there.now += ahead_s
        async with SqlStore(shared.url, clock=here) as one, SqlStore(shared.url, clock=there) as two:
            await one.signals.publish("override", "claude", {"until": here.wall() + 60})
            for found in (*await two.signals.since(0), *await two.signals.latest()):
                assert abs(found.at - there.wall()) < abs(ahead_s) / 2
                assert found.payload == {"until": pytest.approx(found.at + 60)}
            (own,) = await one.signals.latest()
            assert own.payload == {"until": here.wall() + 60}

    asyncio.run(main())


def test_a_starting_process_receives_the_last_act_of_each_kind_on_each_target(shared: Place) -> None:
    async def main() -> None:
        clock = SetClock()
        async with SqlStore(shared.url, clock=clock) as one:
            for override in ("forced_open", "none", "disabled"):
                await one.signals.publish("override", "claude", {"override": override})
            await one.signals.publish("override", "openai", {"override": "forced_open"})
            await one.signals.publish("latch", "claude")
        async with SqlStore(shared.url, clock=clock) as two:
            latest = await two.signals.latest()
            assert [(*brief(signal), signal.payload.get("override")) for signal in latest] == [
                ("override", "claude", "disabled"),
                ("override", "openai", "forced_open"),
                ("latch", "claude", None),
            ]

    asyncio.run(main())


def test_old_signals_are_deleted_except_the_last_of_each_kind_and_target(shared: Place) -> None:
    async def main() -> None:
        async with SqlStore(shared.url) as store:
            for override in ("forced_open", "none"):
                await store.signals.publish("override", "claude", {"override": override})
            shared.sql(f"UPDATE koo_signals SET at_ms = at_ms - {int(SIGNAL_KEPT_S + 1) * 1000}")
            await store.signals.publish("reset", "openai")
            assert [brief(signal) for signal in await store.signals.since(0)] == [
                ("override", "claude"),
                ("reset", "openai"),
            ]

    asyncio.run(main())
