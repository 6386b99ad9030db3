"""Notices are written once, queued for each channel, sent by one process at a time, and never lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from koo.events import Severity
from koo.notices import Delivery, Notice, Parcel
from koo.storage import schema
from koo.storage.memory import MemoryTransactions, make_tables
from koo.storage.notices import (
    LEASE_S,
    MESSAGES_PER_MINUTE,
    OWED_S,
    TOGETHER_FROM,
    UNKNOWN_PAUSE_S_MAX,
    SqlNotices,
)
from koo.storage.store import SqlStore
from tests.storage.support import NOON_S, Place, SetClock

ALL: tuple[Severity, ...] = ("critical", "warning", "info")
HOOK = "webhook"


def notice(key: str = "firing:circuit_open:database:1", **changes: Any) -> Notice:
    words: dict[str, Any] = {
        "key": key,
        "what": "firing",
        "fingerprint": "circuit_open:database",
        "kind": "circuit_open",
        "severity": "critical",
        "component": "database",
        "message": "the circuit breaker is open: 5 failures in a row",
        "started_at": NOON_S,
        "data": {"next_attempt": None},
    }
    return Notice(**words | changes)


@dataclass
class Process:
    """One process's notices; `close` closes its store."""

    notices: SqlNotices
    close: Callable[[], Awaitable[None]]


async def _nothing() -> None:
    pass


def processes_at(place: Place, clock: SetClock, count: int) -> list[Process]:
    """Several processes on one store."""
    if not place.is_shared:
        tables = make_tables()
        transactions = [MemoryTransactions(tables, f"process-{number}", clock) for number in range(count)]
        return [Process(SqlNotices(one), _nothing) for one in transactions]
    stores = [place.sql_store(clock) for _ in range(count)]
    return [Process(store.notices, store.executor.stop) for store in stores]


def with_stores(
    place: Place, main: Callable[[SetClock, list[Process]], Awaitable[None]], count: int = 1
) -> None:
    """Run `main` with several processes on one store and one clock; each has the webhook configured."""

    async def run() -> None:
        clock = SetClock()
        stores = processes_at(place, clock, count)
        try:
            for store in stores:
                await store.notices.join([HOOK])
            await main(clock, stores)
        finally:
            for store in stores:
                await store.close()

    asyncio.run(run())


async def take(store: Process, channel: str = HOOK) -> Parcel:
    parcel = await take_any(store, channel)
    assert parcel is not None
    return parcel


async def take_any(
    store: Process, channel: str = HOOK, severities: Sequence[Severity] = ALL
) -> Parcel | None:
    await store.notices.owe(channel, severities)
    return await store.notices.take(channel)


async def fail(store: Process, parcel: Parcel, next_at: float, **how: bool) -> None:
    words = {"is_channels": True, "gives_up": False} | how
    await store.notices.mark_failed(
        parcel,
        "it answered with status 500",
        next_at,
        is_channels=words["is_channels"],
        gives_up=words["gives_up"],
    )


async def only_delivery(store: Process) -> Delivery:
    (delivery,) = await store.notices.deliveries(0.0)
    return delivery


def test_a_notice_is_read_as_it_was_written(place: Place) -> None:
    async def main(clock: SetClock, stores: list[Process]) -> None:
        ended = notice(what="resolved", ended_at=NOON_S + 2.5, data={"lasted_s": 2.5, "names": ["é", "x"]})
        await stores[0].notices.put(ended)
        assert (await take(stores[0])).notices == (ended,)

    with_stores(place, main)


def test_several_processes_write_a_notice_once(place: Place) -> None:
    async def main(clock: SetClock, stores: list[Process]) -> None:
        one, other = stores
        new = await asyncio.gather(one.notices.put(notice()), other.notices.put(notice()))
        assert sorted(map(len, new)) == [0, 1]
        assert await one.notices.put(notice(message="another text"), notice("second")) == [notice("second")]

    with_stores(place, main, 2)


def test_one_process_owns_a_message_until_it_is_sent_or_its_lease_ends(place: Place) -> None:
    async def main(clock: SetClock, stores: list[Process]) -> None:
        one, other = stores
        await one.notices.put(notice())
        taken = await asyncio.gather(*(take_any(store) for store in stores))
        assert sorted(parcel is None for parcel in taken) == [False, True]
        assert [standing.is_due for standing in await one.notices.standings([HOOK])] == [taken[0] is not None]
        clock.now += LEASE_S - 0.1
        waits = other if taken[0] is not None else one
        assert await take_any(waits) is None
        clock.now += 0.2
        again = await take(waits)
        assert again.notices == (notice(),)
        assert again.attempt == 2
        first = next(parcel for parcel in taken if parcel is not None)
        assert again.epoch == first.epoch + 1, (
            "a message that the first process still sends has the old epoch"
        )
        await waits.notices.mark_sent(again)
        await waits.notices.put(notice("another"))
        assert (await take(waits)).epoch == again.epoch

    with_stores(place, main, 2)


def test_a_message_that_is_sent_again_keeps_its_key_and_its_notices(
    place: Place,
) -> None:
    """The first sender was killed before it could record the result."""

    async def main(clock: SetClock, stores: list[Process]) -> None:
        many = [notice(f"n{number}") for number in range(TOGETHER_FROM)]
        await stores[0].notices.put(*many)
        first = await take(stores[0])
        await stores[1].notices.put(*(notice(f"later{number}") for number in range(TOGETHER_FROM)))
        clock.now += LEASE_S + 1
        again = await take(stores[1])
        assert (again.key, again.notices) == (first.key, tuple(many))

    with_stores(place, main, 2)


def test_a_message_whose_senders_die_lets_others_pass(place: Place) -> None:
    """Each process that sends it is killed before it can record the result."""

    async def main(clock: SetClock, stores: list[Process]) -> None:
        (store,) = stores
        await store.notices.put(notice("deadly"))
        for pause_s in (LEASE_S, 2 * LEASE_S, 4 * LEASE_S):
            deadly = await take(store)
            clock.now += pause_s + 0.1
        await store.notices.put(notice("other"))
        assert (await take(store)).key == deadly.key, "its pause is over"
        clock.now += LEASE_S + 0.1
        other = await take(store)
        assert other.notices == (notice("other"),)
        await store.notices.mark_sent(other)
        assert await take_any(store) is None
        clock.now += UNKNOWN_PAUSE_S_MAX
        assert (await take(store)).attempt == 5

    with_stores(place, main)


def test_a_sent_message_is_not_sent_again(place: Place) -> None:
    async def main(clock: SetClock, stores: list[Process]) -> None:
        (store,) = stores
        await store.notices.put(notice())
        await store.notices.mark_sent(await take(store))
        assert await take_any(store) is None
        delivery = await only_delivery(store)
        assert (delivery.state, delivery.done_at, delivery.attempts) == ("sent", NOON_S, 1)
        (standing,) = await store.notices.standings([HOOK])
        assert (standing.sent_at, standing.waiting, standing.is_due) == (NOON_S, 0, False)

    with_stores(place, main)


def test_messages_leave_in_the_order_in_which_they_were_written(place: Place) -> None:
    async def main(clock: SetClock, stores: list[Process]) -> None:
        (store,) = stores
        for key in ("z", "a", "m"):
            await store.notices.put(notice(key))
            clock.now += 1
        sent = []
        for _ in range(3):
            parcel = await take(store)
            sent.append(parcel.key)
            await store.notices.mark_sent(parcel)
        assert sent == ["z", "a", "m"]

    with_stores(place, main)


def test_no_process_uses_a_failing_channel_before_its_next_attempt_is_due(place: Place) -> None:
    async def main(clock: SetClock, stores: list[Process]) -> None:
        one, other = stores
        await one.notices.put(notice(), notice("second"))
        await fail(one, await take(one), NOON_S + 20)
        clock.now += 19
        assert await take_any(one) is await take_any(other) is None
        (standing,) = await other.notices.standings([HOOK])
        assert (standing.failures, standing.failing_since, standing.next_at) == (1, NOON_S, NOON_S + 20)
        assert (standing.reason, standing.waiting, standing.is_due) == (
            "it answered with status 500",
            2,
            False,
        )
        clock.now += 1
        again = await take(other)
        assert (again.key, again.attempt, again.failures) == (notice().key, 2, 1)
        await other.notices.mark_sent(again)
        (standing,) = await one.notices.standings([HOOK])
        assert (standing.failures, standing.failing_since, standing.reason) == (0, None, "")
        assert (await take(one)).key == "second"

    with_stores(place, main, 2)


def test_a_refused_message_does_not_hold_up_the_others(place: Place) -> None:
    async def main(clock: SetClock, stores: list[Process]) -> None:
        (store,) = stores
        await store.notices.put(notice("bad"))
        clock.now += 1
        await store.notices.put(notice("good"))
        await fail(store, await take(store), clock.now + 60, is_channels=False)
        good = await take(store)
        assert good.key == "good"
        await store.notices.mark_sent(good)
        clock.now += 60
        bad = await take(store)
        await fail(store, bad, clock.now + 60, is_channels=False, gives_up=True)
        clock.now += 61
        assert await take_any(store) is None
        states = {one.notice.key: (one.state, one.reason) for one in await store.notices.deliveries(0.0)}
        assert states == {"bad": ("given_up", "it answered with status 500"), "good": ("sent", "")}
        (standing,) = await store.notices.standings([HOOK])
        assert (standing.given_up, standing.failures, standing.next_at) == (1, 1, 0.0)

    with_stores(place, main)


def test_many_waiting_notices_are_sent_as_one_message(place: Place) -> None:
    async def main(clock: SetClock, stores: list[Process]) -> None:
        (store,) = stores
        await store.notices.put(*(notice(f"n{number:02}") for number in range(40)))
        parcel = await take(store)
        assert len(parcel.notices) == 40
        await store.notices.mark_sent(parcel)
        assert {one.state for one in await store.notices.deliveries(0.0)} == {"sent"}

    with_stores(place, main)


def test_a_channel_sends_at_most_ten_messages_a_minute(place: Place) -> None:
    async def main(clock: SetClock, stores: list[Process]) -> None:
        (store,) = stores
        for number in range(MESSAGES_PER_MINUTE + TOGETHER_FROM):
            await store.notices.put(notice(f"n{number:02}"))
            if number < MESSAGES_PER_MINUTE:
                await store.notices.mark_sent(await take(store))
        assert await take_any(store) is None
        clock.now += 60
        assert len((await take(store)).notices) == TOGETHER_FROM

    with_stores(place, main)


def test_a_notice_below_the_lowest_severity_is_not_sent_and_says_so(place: Place) -> None:
    async def main(clock: SetClock, stores: list[Process]) -> None:
        (store,) = stores
        await store.notices.put(notice(severity="warning"))
        assert await take_any(store, HOOK, ["critical"]) is None
        assert (await only_delivery(store)).state == "below_severity"

    with_stores(place, main)


def test_notices_written_while_a_channel_fails_wait_for_that_channel(place: Place) -> None:
    async def main(clock: SetClock, stores: list[Process]) -> None:
        (store,) = stores
        await store.notices.put(notice())
        await fail(store, await take(store), NOON_S + 300)
        await store.notices.put(notice("second"))
        (standing,) = await store.notices.standings([HOOK])
        assert (standing.new, standing.waiting) == (1, 1)
        await store.notices.owe(HOOK, ALL)
        (standing,) = await store.notices.standings([HOOK])
        assert (standing.new, standing.waiting, standing.is_due) == (0, 2, False)
        assert [one.state for one in await store.notices.deliveries(0.0)] == ["waiting", "waiting"]

    with_stores(place, main)


def test_each_channel_sends_the_notices_of_all_processes(place: Place) -> None:
    async def main(clock: SetClock, stores: list[Process]) -> None:
        one, other = stores
        await other.notices.join(["email"])
        await one.notices.put(notice())
        await one.notices.mark_sent(await take(one))
        assert (await take(other, "email")).notices == (notice(),)
        states = {delivery.channel: delivery.state for delivery in await one.notices.deliveries(0.0)}
        assert states == {"email": "waiting", HOOK: "sent"}

    with_stores(place, main, 2)


def test_a_new_channel_does_not_send_earlier_notices(place: Place) -> None:
    async def main(clock: SetClock, stores: list[Process]) -> None:
        (store,) = stores
        await store.notices.put(notice())
        clock.now += 3600
        await store.notices.join(["email"])
        await store.notices.join([HOOK])
        assert await take_any(store, "email") is None
        assert (await take(store)).notices == (notice(),)

    with_stores(place, main)


def test_a_notice_that_could_not_be_sent_for_a_day_is_given_up(place: Place) -> None:
    async def main(clock: SetClock, stores: list[Process]) -> None:
        (store,) = stores
        await store.notices.put(notice())
        clock.now += OWED_S + 1
        assert await take_any(store) is None

    with_stores(place, main)


def test_a_process_that_closes_releases_its_messages_immediately(place: Place) -> None:
    async def main(clock: SetClock, stores: list[Process]) -> None:
        one, other = stores
        await one.notices.put(notice())
        first = await take(one)
        await one.notices.release()
        assert (await take(other)).key == first.key

    with_stores(place, main, 2)


def test_a_process_stopped_beyond_its_lease_does_not_overrule_the_next_holder(place: Place) -> None:
    async def main(clock: SetClock, stores: list[Process]) -> None:
        one, other = stores
        await one.notices.put(notice(), notice("second"))
        stopped = await take(one)
        clock.now += LEASE_S + 1
        await other.notices.mark_sent(await take(other))
        await fail(one, stopped, clock.now + 600)
        (standing,) = await other.notices.standings([HOOK])
        assert (standing.failures, standing.is_due) == (0, True)
        states = {one.notice.key: one.state for one in await other.notices.deliveries(0.0)}
        assert states == {notice().key: "sent", "second": "waiting"}

    with_stores(place, main, 2)


def test_after_a_successful_test_message_waiting_messages_are_due(place: Place) -> None:
    async def main(clock: SetClock, stores: list[Process]) -> None:
        (store,) = stores
        await store.notices.put(notice())
        await fail(store, await take(store), NOON_S + 300)
        await store.notices.revive(HOOK)
        assert (await take(store)).attempt == 2

    with_stores(place, main)


def test_old_notices_are_deleted_with_their_deliveries(place: Place) -> None:
    async def main(clock: SetClock, stores: list[Process]) -> None:
        (store,) = stores
        await store.notices.put(notice())
        await take(store)
        clock.now += 10
        await store.notices.put(notice("young"))
        await store.notices.prune(NOON_S + 5)
        assert await store.notices.deliveries(0.0) == []
        assert await store.notices.put(notice("young")) == []
        assert await store.notices.put(notice()) == [notice()]

    with_stores(place, main)


def test_a_store_from_before_notices_is_upgraded(shared: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def before() -> None:
        with monkeypatch.context() as older:
            older.setattr(schema, "STEPS", schema.STEPS[:5])
            store = SqlStore(shared.url)
            await store.executor.run(lambda tx: None)
            await store.executor.stop()

    asyncio.run(before())

    async def main(clock: SetClock, stores: list[Process]) -> None:
        await stores[0].notices.put(notice())
        assert (await take(stores[0])).notices == (notice(),)

    with_stores(shared, main)
