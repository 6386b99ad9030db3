"""Alert episodes of several processes on one store: processes that see the same alert share one, in every kind of
store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import pytest

from koo.episodes import Acknowledgement, Episode, Place, Silence, new_id
from koo.storage import schema
from koo.storage.base import StoreUnavailable
from koo.storage.episodes import LEASE_S, SqlEpisodes
from koo.storage.memory import MemoryTransactions, make_tables
from koo.storage.notices import SqlNotices
from koo.storage.silences import SqlSilences
from koo.storage.store import SqlStore
from tests.storage.support import NOON_S, SetClock
from tests.storage.support import Place as StorePlace

EVER = (0.0, 2 * NOON_S)


@dataclass
class Process:
    """One process's access to the shared episodes."""

    name: str
    episodes: SqlEpisodes
    silences: SqlSilences
    notices: SqlNotices
    close: Callable[[], Awaitable[None]]


class Rig:
    """A store in any place, the processes on it, and their common clock."""

    def __init__(self, place: StorePlace) -> None:
        self.place = place
        self.clock = SetClock()
        self._tables = make_tables()
        self.processes: list[Process] = []

    async def process(self) -> Process:
        if self.place.is_shared:
            store = self.place.sql_store(self.clock)
            await store.executor.run(lambda tx: None)
            made = Process(store.process, store.episodes, store.silences, store.notices, store.executor.stop)
        else:
            made = self._in_memory(MemoryTransactions(self._tables, new_id(), self.clock))
        self.processes.append(made)
        return made

    def _in_memory(self, transactions: MemoryTransactions) -> Process:
        async def close() -> None:
            pass

        return Process(
            transactions.process,
            SqlEpisodes(transactions),
            SqlSilences(transactions),
            SqlNotices(transactions),
            close,
        )

    def episode(self, **words: object) -> Episode:
        known = Episode(
            id=new_id(),
            fingerprint="circuit_open:database",
            type="critical",
            component="database",
            message="the circuit breaker is open",
            started_at=self.clock.now,
            fired_at=self.clock.now,
            notified_at=self.clock.now,
            data={"next_attempt": None},
        )
        return replace(known, **words)  # type: ignore[arg-type]

    async def said(self) -> list[str]:
        """The notices that any process wrote, oldest first."""
        await self.processes[0].notices.join(["webhook"])
        await self.processes[0].notices.owe("webhook", ("critical", "warning", "info"))
        parcel = await self.processes[0].notices.take("webhook")
        if parcel is None:
            return []
        await self.processes[0].notices.mark_sent(parcel)
        more = await self.said()
        return [notice.what for notice in parcel.notices] + more


def with_processes(
    place: StorePlace, main: Callable[[Rig, list[Process]], Awaitable[None]], count: int = 2
) -> None:
    async def run() -> None:
        rig = Rig(place)
        try:
            made = [await rig.process() for _ in range(count)]
            await made[0].notices.join(["webhook"])
            await main(rig, made)
        finally:
            for process in rig.processes:
                await process.close()

    asyncio.run(run())


async def history(process: Process) -> list[Episode]:
    return await process.episodes.history(*EVER, limit=100)


def test_two_processes_that_see_the_same_alert_share_one_episode_and_one_notice(place: StorePlace) -> None:
    async def main(rig: Rig, processes: list[Process]) -> None:
        one, two = processes
        first = rig.episode()
        assert await one.episodes.keep(first) == [first]
        rig.clock.now += 5
        (known,) = await two.episodes.keep(rig.episode(message="refused too"))
        assert (known.id, known.started_at, known.notified_at) == (first.id, first.started_at, NOON_S)
        assert known.message == "refused too", "the latest message is kept"
        rig.clock.now += 5
        await one.episodes.leave(first)
        assert [past.phase for past in await history(one)] == ["firing"], "the other process still sees it"
        await two.episodes.leave(known)
        (past,) = await history(two)
        assert (past.phase, past.started_at, past.ended_at) == ("resolved", NOON_S, NOON_S + 10)
        assert await rig.said() == ["firing", "resolved"]

    with_processes(place, main)


def test_of_several_processes_that_begin_an_episode_at_the_same_moment_one_writes_the_notice(
    shared: StorePlace,
) -> None:
    async def main(rig: Rig, processes: list[Process]) -> None:
        kept = await asyncio.gather(*(one.episodes.keep(rig.episode()) for one in processes))
        assert len({known.id for some in kept for known in some}) == 1
        await asyncio.gather(*(one.episodes.leave(kept[0][0]) for one in processes))
        assert [past.phase for past in await history(processes[0])] == ["resolved"]
        assert await rig.said() == ["firing", "resolved"]

    with_processes(shared, main, count=4)


def test_a_pending_episode_sends_no_notice_and_is_deleted_when_it_is_over(place: StorePlace) -> None:
    async def main(rig: Rig, processes: list[Process]) -> None:
        one, two = processes
        pending = rig.episode(phase="pending", fired_at=None, notified_at=None)
        await one.episodes.keep(pending)
        assert await history(one) == []
        rig.clock.now += LEASE_S + 1
        (orphan,) = await two.episodes.orphaned()
        assert orphan == pending
        await one.episodes.leave(pending)
        assert await two.episodes.orphaned() == [] and await rig.said() == []

    with_processes(place, main)


def test_an_episode_that_fired_quietly_can_notify_later_from_another_process(place: StorePlace) -> None:
    async def main(rig: Rig, processes: list[Process]) -> None:
        one, two = processes
        (quiet,) = await one.episodes.keep(rig.episode(notified_at=None))
        await two.episodes.keep(quiet)
        assert await rig.said() == []
        (known,) = await two.episodes.keep(replace(quiet, notified_at=rig.clock.now))
        (again,) = await one.episodes.keep(replace(quiet, notified_at=rig.clock.now + 1))
        assert known.notified_at == again.notified_at == rig.clock.now or again.notified_at is not None
        assert await rig.said() == ["firing"]

    with_processes(place, main)


def test_an_episode_without_a_firing_notice_has_no_resolved_notice(place: StorePlace) -> None:
    async def main(rig: Rig, processes: list[Process]) -> None:
        (quiet,) = await processes[0].episodes.keep(rig.episode(notified_at=None))
        await processes[0].episodes.leave(quiet)
        assert [past.phase for past in await history(processes[0])] == ["resolved"], "the history keeps it"
        assert await rig.said() == []

    with_processes(place, main, count=1)


# ── processes that die ────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_episode_is_orphaned_when_the_leases_of_all_its_sightings_have_expired(place: StorePlace) -> None:
    async def main(rig: Rig, processes: list[Process]) -> None:
        one, two, three = processes
        (seen,) = await one.episodes.keep(rig.episode())
        rig.clock.now += LEASE_S - 1
        await two.episodes.keep(seen)
        rig.clock.now += LEASE_S - 1
        assert await three.episodes.orphaned() == [], "the second process renewed it"
        rig.clock.now += 1
        assert await three.episodes.orphaned() == [seen]
        assert await two.episodes.orphaned() == [], "an episode is not orphaned for a process that sees it"

    with_processes(place, main, count=3)


def test_a_released_episode_is_free_immediately_but_an_ended_one_is_not(place: StorePlace) -> None:
    async def main(rig: Rig, processes: list[Process]) -> None:
        one, two = processes
        lasts, ended = rig.episode(), rig.episode(fingerprint="x:y", component="y")
        await one.episodes.keep(lasts, ended)
        await one.episodes.leave(ended)
        await one.episodes.release()
        assert await two.episodes.orphaned() == [lasts]

    with_processes(place, main)


def test_of_several_processes_that_take_an_orphan_one_gets_it(shared: StorePlace) -> None:
    async def main(rig: Rig, processes: list[Process]) -> None:
        dead, *heirs = processes
        (seen,) = await dead.episodes.keep(rig.episode())
        await dead.episodes.release()
        rig.clock.now += 1
        taken = await asyncio.gather(*(heir.episodes.take(seen) for heir in heirs))
        assert sorted(taken, key=len) == [[], [], [seen]]

    with_processes(shared, main, count=4)


def test_a_dead_process_does_not_keep_an_episode_open(place: StorePlace) -> None:
    async def main(rig: Rig, processes: list[Process]) -> None:
        dead, alive = processes
        (seen,) = await dead.episodes.keep(rig.episode())
        rig.clock.now += LEASE_S + 1
        await alive.episodes.take(seen)
        await alive.episodes.leave(seen)
        assert [past.phase for past in await history(alive)] == ["resolved"]
        assert await rig.said() == ["firing", "resolved"]

    with_processes(place, main)


def test_a_process_that_was_stopped_learns_that_others_have_ended_its_episode(
    place: StorePlace,
) -> None:

    async def main(rig: Rig, processes: list[Process]) -> None:
        stopped, alive = processes
        (seen,) = await stopped.episodes.keep(rig.episode())
        rig.clock.now += LEASE_S + 1
        await alive.episodes.take(seen)
        await alive.episodes.leave(seen)
        (known,) = await stopped.episodes.keep(replace(seen, notified_at=rig.clock.now))
        assert (known.id, known.phase) == (seen.id, "resolved")
        await stopped.episodes.leave(seen)
        assert await history(alive) == [known], "an ended episode stays ended"
        assert await rig.said() == ["firing", "resolved"]

    with_processes(place, main)


def test_an_episode_that_no_process_observes_ends_with_a_notice(place: StorePlace) -> None:
    async def main(rig: Rig, processes: list[Process]) -> None:
        (one,) = processes
        await one.episodes.keep(rig.episode())
        await one.episodes.expire(before=rig.clock.now)
        assert [past.phase for past in await history(one)] == ["firing"]
        rig.clock.now += LEASE_S + 100
        await one.episodes.expire(before=rig.clock.now - 50)
        (past,) = await history(one)
        assert past.ended_at == rig.clock.now and await rig.said() == ["firing", "resolved"]
        await one.episodes.prune(before=rig.clock.now)
        assert len(await history(one)) == 1
        await one.episodes.prune(before=rig.clock.now + 1)
        assert await history(one) == []

    with_processes(place, main, count=1)


# ── a store that was unreachable, and clocks ──────────────────────────────────────────────────────────────────────────


def test_an_episode_that_began_and_ended_while_the_store_was_away_is_recorded(place: StorePlace) -> None:
    async def main(rig: Rig, processes: list[Process]) -> None:
        (one,) = processes
        over = rig.episode(phase="resolved", ended_at=NOON_S + 7)
        await one.episodes.leave(over)
        assert await history(one) == [over] and await rig.said() == ["firing", "resolved"]
        await one.episodes.leave(over)
        assert await history(one) == [over] and await rig.said() == [], "writing it twice changes nothing"
        await one.episodes.leave(rig.episode(fired_at=None, notified_at=None, ended_at=NOON_S))
        assert await history(one) == [over], "an episode that never fired is not in the history"

    with_processes(place, main, count=1)


def test_an_episode_that_fired_and_ended_between_two_writes_is_recorded_as_fired(place: StorePlace) -> None:
    async def main(rig: Rig, processes: list[Process]) -> None:
        (one,) = processes
        pending = rig.episode(phase="pending", fired_at=None, notified_at=None)
        await one.episodes.keep(pending)
        fired = replace(pending, fired_at=NOON_S + 1, notified_at=NOON_S + 2)
        await one.episodes.leave(replace(fired, phase="resolved", ended_at=NOON_S + 3))
        assert [past.phase for past in await history(one)] == ["resolved"]
        assert await rig.said() == ["firing", "resolved"]

    with_processes(place, main, count=1)


def test_a_notice_that_a_process_delivered_itself_is_not_written_again(place: StorePlace) -> None:
    async def main(rig: Rig, processes: list[Process]) -> None:
        one, two = processes
        seen = rig.episode()
        (known,) = await one.episodes.keep(seen, said={f"{seen.id}:firing"})
        assert known.notified_at == seen.notified_at, "the time of the notification is kept"
        await two.episodes.keep(rig.episode())
        assert await rig.said() == []
        await two.episodes.leave(known)
        await one.episodes.leave(known, said={f"{seen.id}:resolved"})
        assert await rig.said() == []

    with_processes(place, main)


def test_an_episode_does_not_fire_before_it_begins(place: StorePlace) -> None:
    """A process that was cut off saw it fire before the stored episode's start, which is kept."""

    async def main(rig: Rig, processes: list[Process]) -> None:
        one, two = processes
        await one.episodes.keep(rig.episode(phase="pending", fired_at=None, notified_at=None))
        cut_off = rig.episode(started_at=NOON_S - 9, fired_at=NOON_S - 9, notified_at=None)
        (known,) = await two.episodes.keep(cut_off)
        assert (known.started_at, known.fired_at) == (NOON_S, NOON_S)
        assert [past.fired_at for past in await history(one)] == [NOON_S]

    with_processes(place, main)


def test_an_episode_never_ends_before_it_begins(place: StorePlace) -> None:
    async def main(rig: Rig, processes: list[Process]) -> None:
        one, two = processes
        (seen,) = await one.episodes.keep(rig.episode())
        rig.clock.now -= 3600
        await one.episodes.leave(replace(seen, ended_at=rig.clock.now))
        await two.episodes.leave(rig.episode(started_at=NOON_S, fired_at=NOON_S, ended_at=NOON_S - 9))
        assert [past.ended_at for past in await history(one)] == [NOON_S, NOON_S]

    with_processes(place, main)


# ── acts of operators ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_process_sees_an_acknowledgement_which_ends_with_its_episode(place: StorePlace) -> None:
    async def main(rig: Rig, processes: list[Process]) -> None:
        one, two = processes
        (seen,) = await one.episodes.keep(rig.episode())
        said = Acknowledgement("ada", rig.clock.now, rig.clock.now + 600, "on it")
        known = await two.episodes.acknowledge(seen.id, said)
        assert known is not None and known.acknowledged == said
        assert (await one.episodes.keep(seen))[0].acknowledged == said
        assert await two.episodes.acknowledge(seen.id, None) == seen
        await two.episodes.acknowledge(seen.id, said)
        await one.episodes.leave(seen)
        assert await two.episodes.acknowledge(seen.id, None) is None, "it has ended"
        assert await two.episodes.acknowledge("nothing", said) is None
        assert (await history(one))[0].acknowledged == said
        (anew,) = await one.episodes.keep(rig.episode())
        assert anew.acknowledged is None

    with_processes(place, main)


def test_the_history_is_paged_newest_first(place: StorePlace) -> None:
    async def main(rig: Rig, processes: list[Process]) -> None:
        (one,) = processes
        for number in range(7):
            rig.clock.now += 10 * (number % 2)  # some begin at the same moment
            (seen,) = await one.episodes.keep(rig.episode(fingerprint=f"x:{number}"))
            if number != 3:
                await one.episodes.leave(seen)
        whole = await history(one)
        pages: list[Episode] = []
        while page := await one.episodes.history(
            *EVER, limit=2, after=Place(pages[-1].started_at, pages[-1].id) if pages else None
        ):
            pages += page
        assert pages == whole and len(whole) == 7
        assert [past.started_at for past in whole] == sorted((p.started_at for p in whole), reverse=True)
        lasting = await one.episodes.history(rig.clock.now + 60, rig.clock.now + 90, limit=9)
        assert [past.fingerprint for past in lasting] == ["x:3"], (
            "it is still open, so it belongs to that time too"
        )
        before = await one.episodes.history(0, NOON_S - 1, limit=9)
        assert before == []

    with_processes(place, main, count=1)


def test_a_silence_ends_at_its_time_or_when_an_operator_ends_it(place: StorePlace) -> None:
    async def main(rig: Rig, processes: list[Process]) -> None:
        one, two = processes
        now = rig.clock.now
        night = Silence(
            id="n", component="ai:*", made_at=now, ends_at=now + 600, by="ada", reason="migration"
        )
        short = replace(night, id="s", ends_at=now + 60, kind="budget_*", reason="known")
        await one.silences.add(night)
        await one.silences.add(short)
        assert await two.silences.lasting(now) == [short, night]
        assert await two.silences.lasting(now + 60) == [night]
        assert await two.silences.end("n", now + 100) == replace(night, ends_at=now + 100)
        assert await one.silences.lasting(now + 100) == []
        assert await one.silences.end("n", now + 100) is None and await one.silences.end("x", now) is None
        await one.silences.prune(now + 101)
        await one.silences.add(night)
        assert await one.silences.lasting(now) == [night], "the old silence was deleted"

    with_processes(place, main)


@pytest.mark.parametrize(
    ("kind", "component", "covers"),
    [
        ("*", "*", True),
        ("circuit_open", "ai:claude", True),
        ("circuit_*", "ai:*", True),
        ("budget_*", "*", False),
        ("*", "ai:claud", False),
        ("*", "AI:CLAUDE", False),
    ],
)
def test_a_silence_covers_alerts_that_match_its_patterns(kind: str, component: str, covers: bool) -> None:
    silence = Silence(id="1", kind=kind, component=component, made_at=0, ends_at=10, by="a", reason="r")
    assert silence.covers("circuit_open", "ai:claude", 9) is covers
    assert not silence.covers("circuit_open", "ai:claude", 10)


# ── memory, and older stores ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_store_in_memory_can_be_made_unavailable() -> None:
    async def main() -> None:
        transactions = MemoryTransactions(make_tables(), "one")
        transactions.trouble = "the state store is unreachable"
        with pytest.raises(StoreUnavailable, match="is unreachable"):
            await SqlEpisodes(transactions).orphaned()

    asyncio.run(main())


def test_an_upgrade_keeps_open_episodes_and_their_history(
    shared: StorePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the older store each process had its own episode, each end was an episode too, and one row has the marks of a
    clock that was set back.
    """

    async def main() -> None:
        with monkeypatch.context() as older:
            older.setattr(schema, "STEPS", schema.STEPS[:5])
            before = SqlStore(shared.url)
            await before.executor.run(lambda tx: None)
            await before.executor.stop()
        for started, ended, kind, process in (
            (5000, "NULL", "circuit_open", "one"),
            (4000, "NULL", "circuit_open", "two"),
            (9000, "8000", "service_down", "one"),
            (9000, "9000", "circuit_closed", "one"),
        ):
            severity = "info" if kind == "circuit_closed" else "critical"
            shared.sql(
                f"INSERT INTO koo_episodes VALUES ('{kind}:database', {started}, {ended}, '{severity}', 'database',"
                f" 'open', '{{}}', '{process}', 0)"
            )
        store = shared.sql_store(SetClock())
        (orphan,) = await store.episodes.orphaned()
        assert (orphan.started_at, orphan.phase, orphan.notified_at) == (4.0, "recovering", None)
        assert await store.episodes.take(orphan) == [orphan]
        past = await store.episodes.history(*EVER, limit=9)
        assert [(one.kind, one.started_at, one.ended_at) for one in past] == [
            ("service_down", 9.0, 9.0),
            ("circuit_open", 4.0, None),
        ]
        await store.executor.stop()

    asyncio.run(main())
