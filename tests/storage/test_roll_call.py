"""The roll call: the processes, the leader and the content of a beat, the same in memory, SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from koo.policies.fleet import (
    Check,
    GuardKey,
    GuardLine,
    Heard,
    Leader,
    Leadership,
    LeasedUnits,
    Presence,
    ProbeAsk,
    Told,
)
from koo.storage.base import NotLeading
from koo.storage.memory import MemoryTransactions, make_tables
from koo.storage.roll_call import FORGOTTEN_AFTER_MS, Fenced, SqlRollCall
from koo.storage.signals import SqlSignals
from koo.storage.store import SqlStore
from koo.storage.transaction import Transactions
from tests.storage.support import Place, SetClock

CLAUDE = GuardKey("claude/m", "here")
OPENAI = GuardKey("openai/m", "here")


def presence(number: int) -> Presence:
    return Presence(
        ledger=f"purse-{number}",
        host="pod-a",
        worker=f"worker {number}",
        pid=number,
        version="1.0",
        label="blue",
        configuration='{"database": {"url": "ab12"}}',
    )


def told(number: int, *anew: GuardLine, gone: tuple[GuardKey, ...] = ()) -> Told:
    return Told(presence=presence(number), in_flight=number, anew=anew, gone=gone)


def line(key: GuardKey = CLAUDE, *, is_down: bool = False, calls: int = 5) -> GuardLine:
    return GuardLine(key, "open" if is_down else "closed", is_down, 0.0, calls)


class Process:
    """One process on a place, which beats only when a test makes it."""

    def __init__(self, transactions: Transactions, number: int) -> None:
        self.transactions = transactions
        self.roll = SqlRollCall(transactions)
        self.number = number

    async def beat(self, *anew: GuardLine, gone: tuple[GuardKey, ...] = ()) -> Heard:
        heard, _ = await self.roll.beat(told(self.number, *anew, gone=gone))
        return heard


class Fleet:
    """Processes on one place, and the store's clock. A server's clock is "moved" by shifting the stored times back."""

    def __init__(self, place: Place, transactions: Callable[[int], Transactions], clock: SetClock) -> None:
        self._place = place
        self._transactions = transactions
        self._clock = clock

    def process(self, number: int) -> Process:
        return Process(self._transactions(number), number)

    async def let_pass(self, seconds: float) -> None:
        if self._place.has_own_clock:
            self._clock.now += seconds
            return
        ms = int(seconds * 1000)
        self._place.sql(f"UPDATE koo_fleet SET seen_ms = seen_ms - {ms}, started_ms = started_ms - {ms}")
        self._place.sql(f"UPDATE koo_fleet_probes SET until_ms = until_ms - {ms}")
        self._place.sql(f"UPDATE koo_leader SET until_ms = until_ms - {ms}")


def on(place: Place, work: Callable[[Fleet], Awaitable[None]]) -> None:
    async def main() -> None:
        clock = place.clock()
        stores: list[SqlStore] = []
        tables = make_tables() if not place.is_shared else None

        def transactions(number: int) -> Transactions:
            if tables is not None:
                return MemoryTransactions(tables, f"process-{number}", clock)
            stores.append(SqlStore(place.url, clock=clock))
            return stores[-1].executor

        try:
            await work(Fleet(place, transactions, clock))
        finally:
            for store in stores:
                await store.executor.stop()
            if tables is not None:
                tables.close()

    asyncio.run(main())


def test_each_process_is_on_the_roll_with_its_own_report(place: Place) -> None:
    async def work(fleet: Fleet) -> None:
        one, two = fleet.process(1), fleet.process(2)
        assert (await one.beat()).processes == 1
        heard = await two.beat()
        assert (heard.processes, heard.is_new, heard.process) == (2, True, two.transactions.process)
        assert not (await two.beat()).is_new
        roll = await one.roll.read()
        members = sorted(roll.members, key=lambda member: member.pid)
        assert [(m.worker, m.pid, m.label, m.ledger, m.in_flight, m.lives) for m in members] == [
            ("worker 1", 1, "blue", "purse-1", 1, True),
            ("worker 2", 2, "blue", "purse-2", 2, True),
        ]
        assert members[0].configuration == {"database": {"url": "ab12"}}

    on(place, work)


def test_a_process_that_misses_five_beats_is_silent_and_not_counted(place: Place) -> None:
    async def work(fleet: Fleet) -> None:
        one, two = fleet.process(1), fleet.process(2)
        await one.beat(line(is_down=True))
        await two.beat()
        await fleet.let_pass(5.1)
        heard = await two.beat()
        assert (heard.processes, heard.opinions) == (1, {})
        assert {member.pid: member.lives for member in (await two.roll.read()).members} == {1: False, 2: True}
        assert (await one.beat()).processes == 2, "a slow process counts again"

    on(place, work)


def test_a_closed_process_leaves_the_roll_immediately_and_a_killed_one_after_a_day(place: Place) -> None:
    async def work(fleet: Fleet) -> None:
        one, two, three = (fleet.process(number) for number in (1, 2, 3))
        for process in (one, two, three):
            await process.beat(line())
        await one.roll.leave()
        assert {member.pid for member in (await two.roll.read()).members} == {2, 3}
        await fleet.let_pass(FORGOTTEN_AFTER_MS / 1000 + 1)
        await two.beat()
        await two.roll.forget_old()
        assert [member.pid for member in (await two.roll.read()).members] == [2]
        assert (await three.beat()).is_new, "it was alive, and must report everything again"

    on(place, work)


def test_the_first_process_leads_and_keeps_its_epoch(place: Place) -> None:
    async def work(fleet: Fleet) -> None:
        one, two = fleet.process(1), fleet.process(2)
        leader = Leader((await one.beat()).process, 1)
        for _ in range(3):
            await fleet.let_pass(3.0)
            assert (await one.beat()).leader == leader
            assert (await two.beat()).leader == leader

    on(place, work)


def test_a_closed_leader_is_replaced_immediately_and_a_silent_one_when_its_lease_ends(
    place: Place,
) -> None:
    async def work(fleet: Fleet) -> None:
        one, two, three = (fleet.process(number) for number in (1, 2, 3))
        await one.beat()
        await one.roll.leave()
        assert (await two.beat()).leader == Leader(two.transactions.process, 2)
        await fleet.let_pass(2.0)
        assert (await three.beat()).leader == Leader(two.transactions.process, 2)
        await fleet.let_pass(2.1)
        assert (await three.beat()).leader == Leader(three.transactions.process, 3)
        assert (await two.beat()).leader == Leader(three.transactions.process, 3)

    on(place, work)


def test_of_several_processes_that_beat_at_the_same_moment_one_leads(shared: Place) -> None:
    async def work(fleet: Fleet) -> None:
        processes = [fleet.process(number) for number in range(6)]
        for _ in range(2):
            await asyncio.gather(*(one.beat() for one in processes))
            leaders = {(await one.beat()).leader for one in processes}
            assert len(leaders) == 1 and None not in leaders
            await fleet.let_pass(4.1)

    on(shared, work)


def test_the_store_refuses_acts_in_an_old_epoch(place: Place) -> None:
    """A leader that was stopped continues in the middle of its work, and still believes that it leads."""

    async def work(fleet: Fleet) -> None:
        one, two = fleet.process(1), fleet.process(2)
        await one.beat()
        led = SqlRollCall(Fenced(one.transactions, 1))
        await led.forget_old()
        await fleet.let_pass(4.1)
        assert (await two.beat()).leader == Leader(two.transactions.process, 2)
        with pytest.raises(NotLeading):
            await led.forget_old()
        await two.roll.leave()
        await one.beat()
        with pytest.raises(NotLeading):  # it leads again, in another epoch
            await led.forget_old()
        await SqlRollCall(Fenced(one.transactions, 3)).forget_old()

    on(place, work)


def test_setting_the_clock_back_leaves_no_permanent_leader_or_process(place: Place) -> None:
    async def work(fleet: Fleet) -> None:
        one, two = fleet.process(1), fleet.process(2)
        await one.beat()
        await fleet.let_pass(-3600)
        heard = await two.beat()
        assert heard.processes == 1
        assert heard.leader == Leader(two.transactions.process, 2)

    on(place, work)


def test_a_guards_down_count_covers_the_processes_that_use_it(place: Place) -> None:
    async def work(fleet: Fleet) -> None:
        processes = [fleet.process(number) for number in range(5)]
        for process in processes[:3]:
            await process.beat(line(is_down=True), line(OPENAI))
        await processes[3].beat(line(calls=0))
        heard = await processes[4].beat(line(), line(OPENAI))
        assert {key: tuple(one)[1:3] for key, one in heard.opinions.items()} == {CLAUDE: (3, 4)}
        await processes[0].beat(line())
        assert tuple((await processes[4].beat(gone=(CLAUDE,))).opinions[CLAUDE])[1:3] == (2, 3)
        for process in processes[1:3]:
            await process.beat(line())
        assert (await processes[4].beat()).opinions == {}

    on(place, work)


def test_guards_with_the_same_name_and_different_places_are_separate(place: Place) -> None:
    async def work(fleet: Fleet) -> None:
        one, two = fleet.process(1), fleet.process(2)
        await one.beat(line(is_down=True))
        other = GuardKey("claude/m", "another address")
        heard = await two.beat(GuardLine(other, "open", True, 3.0, 1))
        assert {key: tuple(one)[1:3] for key, one in heard.opinions.items()} == {
            CLAUDE: (1, 1),
            other: (1, 1),
        }
        guards = (await two.roll.read()).guards
        assert {(guard.key, guard.phase) for guard in guards} == {(CLAUDE, "open"), (other, "open")}

    on(place, work)


def test_a_successful_probe_is_reported_with_its_age(place: Place) -> None:
    async def work(fleet: Fleet) -> None:
        one, two = fleet.process(1), fleet.process(2)
        await one.beat(line(is_down=True))
        assert (await two.beat(line(is_down=True))).opinions[CLAUDE].proved_ago_s > 1e6
        await one.beat(GuardLine(CLAUDE, "half_open", False, 0.0, 1, is_proved=True))
        assert (await two.beat()).opinions[CLAUDE].proved_ago_s < 60
        await one.beat(line())
        assert (await two.beat()).opinions[CLAUDE].proved_ago_s < 60, (
            "the time of the successful probe is kept"
        )

    on(place, work)


def ask(units: int = 1, for_s: float = 5.0, *, is_kept: bool = False) -> ProbeAsk:
    return ProbeAsk(CLAUDE, units, for_s, 1, is_kept)


async def units(process: Process, one: ProbeAsk) -> int | None:
    heard, _ = await process.roll.beat(replace(told(process.number), probes=(one,)))
    return heard.units.get(CLAUDE)


def test_one_process_has_a_probe_unit_until_it_returns_it_or_falls_silent(place: Place) -> None:
    async def work(fleet: Fleet) -> None:
        one, two, three = (fleet.process(number) for number in (1, 2, 3))
        assert await units(one, ask()) == 1
        assert await units(two, ask()) == 0
        await fleet.let_pass(4.0)
        assert await units(one, ask(is_kept=True)) is None
        await fleet.let_pass(4.0)
        assert await units(two, ask()) == 0
        await units(one, ask(0))
        assert await units(two, ask()) == 1
        await fleet.let_pass(5.1)
        assert await units(three, ask()) == 1
        await three.roll.leave()
        assert await units(two, ask()) == 1

    on(place, work)


def test_each_recovered_process_allows_two_more_probes(place: Place) -> None:
    async def work(fleet: Fleet) -> None:
        processes = [fleet.process(number) for number in range(7)]
        for process in processes[:2]:
            await process.beat(replace(line(), is_proved=True))
        got = [await units(process, ask()) for process in processes[2:]]
        assert got == [1, 1, 1, 1, 0]

    on(place, work)


def test_of_several_processes_that_request_a_unit_at_the_same_moment_one_gets_it(shared: Place) -> None:
    async def work(fleet: Fleet) -> None:
        processes = [fleet.process(number) for number in range(6)]
        await asyncio.gather(*(one.beat() for one in processes))
        got = await asyncio.gather(*(units(one, ask()) for one in processes))
        assert sorted(one or 0 for one in got) == [0, 0, 0, 0, 0, 1]

    on(shared, work)


def test_a_beat_returns_the_signals_after_a_number(place: Place) -> None:
    async def work(fleet: Fleet) -> None:
        one, two = fleet.process(1), fleet.process(2)
        await one.beat()
        first = await SqlSignals(one.transactions).publish("reset", "claude")
        await SqlSignals(one.transactions).publish("override", "openai", {"override": "none"})
        _, signals = await two.roll.beat(told(2), 0)
        assert [(one.kind, one.target) for one in signals] == [("reset", "claude"), ("override", "openai")]
        _, signals = await two.roll.beat(told(2), first)
        assert [one.kind for one in signals] == ["override"]
        assert (await two.roll.beat(told(2)))[1] == []

    on(place, work)


def test_only_the_leaders_checks_reach_all_processes(place: Place) -> None:
    async def work(fleet: Fleet) -> None:
        one, two, three = (fleet.process(number) for number in (1, 2, 3))
        for process in (one, two, three):
            await process.beat()
        failed, well = Check("claude", "here", "auth", "the key is refused"), Check("openai", "here", "", "")
        await two.roll.beat(replace(told(2), checks=(failed,)))
        assert (await three.beat()).checks == ()
        await one.roll.beat(replace(told(1), checks=(failed, well)))
        heard = await three.beat()
        assert [one._replace(ago_s=0.0) for one in heard.checks] == [failed, well]
        assert heard.checks_seen is not None
        later, _ = await three.roll.beat(replace(told(3), checks_seen=heard.checks_seen))
        assert (later.checks, later.checks_seen) == ((), None)
        await one.roll.beat(replace(told(1), checks=(failed._replace(kind="", reason=""),)))
        later, _ = await three.roll.beat(replace(told(3), checks_seen=heard.checks_seen))
        assert [(one.service, one.kind) for one in later.checks] == [("claude", "")]

    on(place, work)


def test_the_roll_includes_leased_units(shared: Place) -> None:
    async def work(fleet: Fleet) -> None:
        one = fleet.process(1)
        await one.beat()
        shared.sql("INSERT INTO koo_limits VALUES ('claude/60', '[]', 60, 0, 0, 0)")
        later = int(time.time() * 1000) + 10**12
        for process, granted in (("a", 7), ("b", 9)):
            shared.sql(
                f"INSERT INTO koo_leases VALUES ('claude/60', '{process}', 1, 1, {later}, {granted}, 2, 0, 1, 0)"
            )
        shared.sql("INSERT INTO koo_leases VALUES ('claude/60', 'over', 1, 1, 5, 9, 0, 0, 0, 0)")
        assert (await one.roll.read()).units == [LeasedUnits("claude/60", 60, 10, 2)]

    on(shared, work)


def test_a_leader_stops_shortly_before_the_store_admits_another_one() -> None:
    """The leader's time counts from its request, because the reply may have taken long."""
    leadership, beat = Leadership(), told(1)
    heard = Heard(process="a", is_new=False, processes=2, leader=Leader("a", 7), opinions={})
    leadership.hear(beat, heard, asked_at=100.0)
    assert (leadership.epoch, leadership.leads(103.9), leadership.leads(103.93)) == (7, True, False)
    assert not leadership.is_led(103.0)
    leadership.hear(
        beat, Heard(process="b", is_new=False, processes=2, leader=Leader("a", 7), opinions={}), 200.0
    )
    assert (leadership.leads(200.0), leadership.is_led(200.0), leadership.is_led(204.0)) == (
        False,
        True,
        False,
    )
    leadership.resign()
    assert not leadership.is_led(200.0)


def test_a_beat_on_a_file_takes_one_or_two_milliseconds(sqlite: Place) -> None:
    async def work(fleet: Fleet) -> None:
        one = fleet.process(1)
        await one.beat(line())
        took = []
        for _ in range(20):
            began = time.perf_counter()
            await one.beat()
            took.append(time.perf_counter() - began)
        assert min(took) < 0.02

    on(sqlite, work)
