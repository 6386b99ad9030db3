"""What operators do in one process is followed by all others on the same store."""

from __future__ import annotations

import asyncio

from koo.storage.base import Signal, StoreUnavailable
from koo.storage.signals import SIGNAL_KEPT_S
from koo.storage.store import SqlStore
from tests.storage.support import NOON_S, Place, SetClock


def brief(signal: Signal) -> tuple[str, str]:
    return signal.kind, signal.target


async def follow(store: SqlStore, count: int) -> list[Signal]:
    found: list[Signal] = []
    following = store.signals.follow()
    try:
        async for signal in following:
            found.append(signal)
            if len(found) == count:
                return found
    finally:
        await following.aclose()
    raise AssertionError("it ended")


def test_a_process_hears_what_others_did_since_it_follows_in_order_and_not_what_it_did_itself(
    shared: Place,
) -> None:
    async def main() -> None:
        clock = SetClock()
        async with SqlStore(shared.url, clock=clock) as one, SqlStore(shared.url, clock=clock) as two:
            await one.signals.publish("reset", "too early")
            following = asyncio.create_task(follow(two, 3))
            for _ in range(3):  # In its turn, after the follower has asked where to begin.
                await two.signals.cursor()
            await two.signals.publish("reset", "my own")
            await one.signals.publish("reset", "claude")
            await one.signals.publish("override", "claude/m", {"override": "forced_open", "until": None})
            await one.signals.publish("cooldown", "openai", {"until_wall_s": 12.5})
            async with asyncio.timeout(20):
                found = await following
            assert [brief(signal) for signal in found] == [
                ("reset", "claude"),
                ("override", "claude/m"),
                ("cooldown", "openai"),
            ]
            assert found[1].payload == {"override": "forced_open", "until": None}
            assert {(signal.process, signal.at) for signal in found} == {(one.process, NOON_S)}

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
                async for signal in listener.signals.follow(start):
                    found.append(signal)
                    if len(found) == 90:
                        break
            assert sorted(await published) == [signal.id for signal in found]
            for store in stores:
                await store.close()

    asyncio.run(main())


def test_a_process_that_starts_finds_the_last_act_of_each_kind_on_each_target(shared: Place) -> None:
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


def test_old_signals_are_forgotten_but_for_the_last_of_each_kind_and_target(shared: Place) -> None:
    async def main() -> None:
        clock = SetClock()
        async with SqlStore(shared.url, clock=clock) as store:
            for override in ("forced_open", "none"):
                await store.signals.publish("override", "claude", {"override": override})
            clock.now += SIGNAL_KEPT_S + 1
            await store.signals.publish("reset", "openai")
            assert [brief(signal) for signal in await store.signals.since(0)] == [
                ("override", "claude"),
                ("reset", "openai"),
            ]

    asyncio.run(main())


def test_signals_of_an_outage_are_heard_after_it(sqlite: Place) -> None:
    async def main() -> None:
        clock = SetClock()
        async with SqlStore(sqlite.url, clock=clock) as one, SqlStore(sqlite.url, clock=clock) as two:
            cursor = await two.signals.cursor()
            failures = 0
            since = two.signals.since

            async def fails_twice(cursor: int) -> list[Signal]:
                nonlocal failures
                if failures < 2:
                    failures += 1
                    raise StoreUnavailable("away")
                return await since(cursor)

            two.signals.since = fails_twice  # type: ignore[method-assign]
            await one.signals.publish("reset", "claude")
            async for signal in two.signals.follow(cursor):
                assert brief(signal) == ("reset", "claude") and failures == 2
                break

    asyncio.run(main())
