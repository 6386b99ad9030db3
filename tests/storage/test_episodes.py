"""Whose an alert is: its process's as long as that renews the lease, then whoever's comes first."""

from __future__ import annotations

import asyncio
from pathlib import Path

from koo.storage.base import Episode, OrphanedEpisode
from koo.storage.episodes import LEASE_S
from koo.storage.schema import STEPS
from koo.storage.store import SqlStore
from tests.storage.support import NOON_S, Place, SetClock

OPEN = Episode(
    fingerprint="circuit_open:database",
    type="critical",
    component="database",
    message="the circuit breaker is open",
    started_at=NOON_S,
)


def test_an_episode_is_free_only_when_its_lease_is_over(shared: Place) -> None:
    async def main() -> None:
        clock = SetClock()
        async with SqlStore(shared.url, clock=clock) as one, SqlStore(shared.url, clock=clock) as two:
            await one.episodes.save(OPEN)
            clock.now += LEASE_S - 1
            assert await two.episodes.load_orphaned() == []
            await one.episodes.save(OPEN)
            clock.now += LEASE_S - 1
            assert await two.episodes.load_orphaned() == [], "it was renewed"
            clock.now += 1
            assert await two.episodes.load_orphaned() == [OrphanedEpisode(OPEN, one.process)]
            assert await one.episodes.load_orphaned() == [], "to its own process it is never free"

    asyncio.run(main())


def test_what_was_let_go_is_free_at_once_but_not_what_ended(shared: Place) -> None:
    async def main() -> None:
        clock = SetClock()
        ended = Episode(
            fingerprint="x:y", type="info", component="y", message="m", started_at=1.0, ended_at=2.0
        )
        async with SqlStore(shared.url, clock=clock) as two:
            async with SqlStore(shared.url, clock=clock) as one:
                await one.episodes.save(OPEN, ended)
                await one.episodes.release()
            assert [free.episode for free in await two.episodes.load_orphaned()] == [OPEN]

    asyncio.run(main())


def test_of_several_who_want_it_one_gets_it(shared: Place) -> None:
    async def main() -> None:
        clock = SetClock()
        async with SqlStore(shared.url, clock=clock) as dead:
            await dead.episodes.save(OPEN)
            await dead.episodes.release()
        stores = [SqlStore(shared.url, clock=clock, timeout_s=20) for _ in range(4)]
        free = [await store.episodes.load_orphaned() for store in stores]
        assert all(len(one) == 1 for one in free)
        taken = await asyncio.gather(
            *(store.episodes.take(wanted) for store, wanted in zip(stores, free, strict=True))
        )
        assert sorted(len(one) for one in taken) == [0, 0, 0, 1]
        assert [one for some in taken for one in some] == [OPEN]
        rows = shared.sql("SELECT process FROM koo_episodes")
        assert rows in [[(store.process,)] for store in stores]
        for store in stores:
            await store.close()

    asyncio.run(main())


def test_nobody_ends_the_episode_of_another(shared: Place) -> None:
    async def main() -> None:
        clock = SetClock()
        async with SqlStore(shared.url, clock=clock) as one, SqlStore(shared.url, clock=clock) as two:
            await one.episodes.save(OPEN)
            await two.episodes.save(
                Episode(
                    fingerprint=OPEN.fingerprint,
                    type=OPEN.type,
                    component=OPEN.component,
                    message=OPEN.message,
                    started_at=OPEN.started_at,
                    ended_at=NOON_S + 5,
                )
            )
            rows = shared.sql("SELECT process, ended_ms FROM koo_episodes")
            assert sorted(rows) == sorted([(one.process, None), (two.process, round((NOON_S + 5) * 1000))])

    asyncio.run(main())


def test_who_has_written_the_same_episode_anew_forgets_the_double(shared: Place) -> None:
    """Opened again while the store was away, a process writes what it knows before it finds its own old row."""

    async def main() -> None:
        clock = SetClock()
        async with SqlStore(shared.url, clock=clock) as before:
            await before.episodes.save(OPEN)
            await before.episodes.release()
        async with SqlStore(shared.url, clock=clock) as again:
            await again.episodes.save(OPEN)
            assert await again.episodes.take(await again.episodes.load_orphaned()) == []
            assert shared.sql("SELECT process FROM koo_episodes") == [(again.process,)]

    asyncio.run(main())


def test_what_nobody_sees_any_more_ends(shared: Place) -> None:
    async def main() -> None:
        clock = SetClock()
        async with SqlStore(shared.url, clock=clock) as store:
            await store.episodes.save(OPEN)
            await store.episodes.expire(before=clock.now)
            assert shared.sql("SELECT ended_ms FROM koo_episodes") == [(None,)]
            clock.now += LEASE_S + 100
            await store.episodes.expire(before=clock.now - 50)
            assert shared.sql("SELECT ended_ms FROM koo_episodes") == [(round(clock.now * 1000),)]

    asyncio.run(main())


def test_the_episodes_of_an_older_store_are_free_for_the_newer_koo(tmp_path: Path) -> None:
    place = Place("sqlite", f"sqlite:///{tmp_path / 'old.db'}")
    serial = "INTEGER PRIMARY KEY AUTOINCREMENT"
    for statement in (
        "CREATE TABLE koo_schema (steps INTEGER NOT NULL)",
        "INSERT INTO koo_schema VALUES (1)",
    ):
        place.sql(statement)
    for statement in STEPS[0]:
        place.sql(statement.format(serial=serial))
    place.sql(
        "INSERT INTO koo_episodes VALUES ('circuit_open:database', 5000, NULL, 'critical', 'database', 'open', '{}')"
    )

    async def main() -> None:
        async with SqlStore(place.url, clock=SetClock()) as store:
            (free,) = await store.episodes.load_orphaned()
            assert (free.episode.started_at, free.owner) == (5.0, "")
            assert await store.episodes.take([free]) == [free.episode]

    asyncio.run(main())
