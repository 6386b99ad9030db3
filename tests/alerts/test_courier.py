"""When a message is sent, retried and given up, and by which process, on virtual time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

import pytest

from koo.alerts.channels.base import Message, NotTaken
from koo.alerts.courier import NO_RESULT, PAUSE_S_MAX, SEND_S, Courier
from koo.alerts.messages import ALONE, Sender, compose
from koo.deadlines import Deadlines
from koo.events import DeliveryFailed, DeliveryGivenUp, Event
from koo.notices import Notice, Parcel
from koo.options import DAY_S
from koo.storage.base import Store, StoreUnavailable
from koo.storage.memory import MemoryTransactions, make_tables
from koo.storage.notices import LEASE_S, UNKNOWN_PAUSE_S_MAX, SqlNotices
from koo.storage.worker import Backend
from koo.testing.clock import VirtualClock, run_virtual

_numbers = itertools.count(1)
DOWN = NotTaken("it answered with status 500")
BAD = NotTaken("it answered with status 400", is_messages=True)


class FakeChannel:
    """Accepts messages, in order. `answers` are the results of the next ones, and `always` of all others."""

    name = "webhook"
    place = "https://hooks.example"
    warnings = ()

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.answers: list[NotTaken | None] = []
        self.always: NotTaken | None = None
        self.hangs = False
        self.tried: list[tuple[float, str]] = []
        self.taken: list[Message] = []

    async def send(self, message: Message) -> str:
        self.tried.append((self._clock.monotonic() - 1000.0, message.key))
        if self.hangs:
            await asyncio.Event().wait()
        answer = self.answers.pop(0) if self.answers else self.always
        if answer is not None:
            raise NotTaken(answer.reason, is_messages=answer.is_messages, retry_after_s=answer.retry_after_s)
        self.taken.append(message)
        return ""

    async def close(self) -> None: ...

    @property
    def times(self) -> list[int]:
        return [round(at) for at, _ in self.tried]

    @property
    def keys(self) -> list[str]:
        return [message.key for message in self.taken]


class MemoryStore:
    """The notices of a store in memory, which is unreachable while `trouble` is set."""

    def __init__(self, tables: Backend, clock: VirtualClock) -> None:
        self.transactions = MemoryTransactions(tables, f"process-{next(_numbers)}", clock)
        self.notices = SqlNotices(self.transactions)

    @property
    def trouble(self) -> str | None:
        return self.transactions.trouble


class Process:
    """One process's courier, stepped once a second, or less often in a test of many hours."""

    def __init__(self, tables: Backend, channel: FakeChannel, clock: VirtualClock, **how: Any) -> None:
        self.store = MemoryStore(tables, clock)
        self.events: list[Event] = []
        deadlines = Deadlines()
        deadlines.bind(asyncio.get_running_loop())
        self.courier = Courier(
            channel,
            cast("Store", self.store),
            Sender("shop"),
            how.get("severities", ["critical", "warning"]),
            clock=clock,
            deadlines=deadlines,
            publish=self.events.append,
            draw=lambda: 0.5,
        )
        self._clock = clock
        self._tick_s = how.get("tick_s", 1)

    async def run(self) -> None:
        while True:
            await self.courier.step()
            await self._clock.sleep(self._tick_s)


class World:
    """Several processes on one store and one channel, on virtual time."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.tables = make_tables()
        self.channel = FakeChannel(self.clock)
        self.processes: list[Process] = []
        self.tasks: list[asyncio.Task[None]] = []

    def process(self, **how: Any) -> Process:
        made = Process(self.tables, self.channel, self.clock, **how)
        self.processes.append(made)
        self.tasks.append(asyncio.get_running_loop().create_task(made.run()))
        return made

    async def until(self, second: float) -> None:
        await self.clock.sleep(second - (self.clock.monotonic() - 1000.0))

    async def kill(self, number: int) -> None:
        """Like kill -9: nothing is released or written."""
        self.tasks[number].cancel()
        with suppress(asyncio.CancelledError):
            await self.tasks[number]


def in_world(main: Callable[[World], Awaitable[None]]) -> None:
    async def run() -> None:
        world = World()
        try:
            await main(world)
        finally:
            for task in world.tasks:
                task.cancel()
            await asyncio.gather(*world.tasks, return_exceptions=True)
            world.tables.close()

    run_virtual(run)


def notice(key: str = "a1:firing", **changes: Any) -> Notice:
    words: dict[str, Any] = {
        "key": key,
        "what": "firing",
        "fingerprint": "circuit_open:ai:claude",
        "kind": "circuit_open",
        "severity": "critical",
        "component": "ai:claude",
        "message": "the circuit breaker is open",
        "started_at": 1_790_000_000.0,
    }
    return Notice(**words | changes)


def test_a_notice_is_sent_within_two_seconds() -> None:
    async def main(world: World) -> None:
        process = world.process()
        await world.until(10)
        await process.store.notices.put(notice())
        await world.until(12)
        assert world.channel.keys == ["a1:firing"]

    in_world(main)


def test_an_absent_receiver_is_tried_after_growing_pauses_and_then_gets_everything_in_order() -> None:
    async def main(world: World) -> None:
        process = world.process()
        world.channel.always = DOWN
        await process.store.notices.put(notice())
        await world.until(60)
        await process.store.notices.put(notice("a1:resolved", what="resolved"))
        await world.until(1200)
        times = world.channel.times
        gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
        assert gaps[:3] == [5, 10, 20]
        assert sorted(gaps) == gaps and max(gaps) <= PAUSE_S_MAX + 1
        assert world.channel.keys == []
        world.channel.always = None
        await world.until(1200 + PAUSE_S_MAX + 2)
        assert world.channel.keys == ["a1:firing", "a1:resolved"]

    in_world(main)


def test_only_the_first_of_consecutive_failures_is_published() -> None:
    async def main(world: World) -> None:
        process = world.process()
        world.channel.always = DOWN
        await process.store.notices.put(notice())
        await world.until(600)
        failed = [one for one in process.events if isinstance(one, DeliveryFailed)]
        assert failed == [DeliveryFailed("channel:webhook", "it answered with status 500", 5.0)]

    in_world(main)


def test_a_slow_receiver_is_abandoned_at_the_deadline() -> None:
    async def main(world: World) -> None:
        process = world.process()
        world.channel.hangs = True
        await process.store.notices.put(notice())
        await world.until(SEND_S + 1)
        assert process.courier.standing.failures == 0
        await world.until(SEND_S + 3)
        assert process.courier.standing.reason == "no answer within 15 s"
        world.channel.hangs = False
        await world.until(SEND_S + 10)
        assert world.channel.keys == ["a1:firing"]

    in_world(main)


def test_a_receivers_requested_pause_is_respected_up_to_an_hour() -> None:
    async def main(world: World) -> None:
        process = world.process(tick_s=2)
        world.channel.answers = [
            NotTaken("status 429", retry_after_s=90.0),
            NotTaken("status 429", retry_after_s=999_999.0),
        ]
        await process.store.notices.put(notice())
        await world.until(91 + 3602)
        assert world.channel.times == [0, 90, 3690]
        assert world.channel.keys == ["a1:firing"]

    in_world(main)


def test_an_open_breaker_prevents_sending_without_counting_an_attempt() -> None:
    async def main(world: World) -> None:
        process = world.process()
        world.channel.always = DOWN
        await process.store.notices.put(notice())
        await world.until(80)
        assert world.channel.times == [0, 5, 15, 35, 75]
        assert process.courier.guard.breaker.trips == 1
        await process.store.notices.revive("webhook")  # another process's test message was accepted
        world.channel.always = None
        await world.until(100)
        (delivery,) = await process.store.notices.deliveries(0.0)
        assert delivery.attempts == len(world.channel.tried) == 5
        await world.until(110)
        assert world.channel.keys == ["a1:firing"]

    in_world(main)


def test_a_refused_message_is_given_up_after_an_hour_and_does_not_hold_up_the_others() -> None:
    async def main(world: World) -> None:
        process = world.process()
        world.channel.answers = [BAD]
        await process.store.notices.put(notice("bad"))
        await world.until(2)
        await process.store.notices.put(notice("good"))
        await world.until(4)
        assert world.channel.keys == ["good"]
        world.channel.always = BAD
        await world.until(3600 + PAUSE_S_MAX + 10)
        deliveries = {one.notice.key: one for one in await process.store.notices.deliveries(0.0)}
        assert deliveries["bad"].state == "given_up"
        assert deliveries["bad"].reason == BAD.reason
        assert any(isinstance(one, DeliveryGivenUp) and one.notices == 1 for one in process.events)
        assert process.courier.standing.given_up == 1
        # The receiver responds, so its breaker stays closed.
        assert process.courier.guard.breaker.trips == 0
        tried = len(world.channel.tried)
        await world.until(4500)
        assert len(world.channel.tried) == tried

    in_world(main)


def test_a_message_that_was_not_accepted_for_a_day_is_given_up_with_its_reason() -> None:
    async def main(world: World) -> None:
        process = world.process(tick_s=60)
        world.channel.always = DOWN
        await process.store.notices.put(notice())
        await world.until(86_400 + PAUSE_S_MAX + 100)
        (delivery,) = await process.store.notices.deliveries(0.0)
        assert (delivery.state, delivery.reason) == ("given_up", DOWN.reason)

    in_world(main)


def test_many_alerts_during_a_receivers_outage_become_one_message() -> None:
    async def main(world: World) -> None:
        process = world.process()
        world.channel.answers = [DOWN]
        await process.store.notices.put(*(notice(f"n{number}") for number in range(50)))
        await world.until(20)
        (message,) = world.channel.taken
        assert [one["key"] for one in message.document["alerts"]] == sorted(f"n{n}" for n in range(50))
        assert {key for _, key in world.channel.tried} == {message.key}

    in_world(main)


def test_two_processes_send_each_message_once() -> None:
    async def main(world: World) -> None:
        one, other = world.process(), world.process()
        for number in range(8):
            await (one if number % 2 else other).store.notices.put(notice(f"n{number}"))
            await world.until(3 * (number + 1))
        assert world.channel.keys == [f"n{number}" for number in range(8)]

    in_world(main)


def test_a_message_whose_senders_died_for_a_day_is_given_up_unsent() -> None:
    async def main(world: World) -> None:
        process = world.process(tick_s=60)

        async def dies(parcel: Parcel) -> None:
            raise StoreUnavailable("as if the process had ended here")

        process.store.notices.mark_sent = dies  # type: ignore[method-assign]
        await process.store.notices.put(notice())
        await world.until(DAY_S + 2 * UNKNOWN_PAUSE_S_MAX)
        assert 20 < len(world.channel.tried) < 40, "the pauses between its attempts grow"
        (delivery,) = await process.store.notices.deliveries(0.0)
        assert (delivery.state, delivery.reason) == ("given_up", NO_RESULT)
        assert DeliveryGivenUp("channel:webhook", NO_RESULT, 1) in process.events

    in_world(main)


def test_another_process_repeats_the_message_of_a_sender_that_died() -> None:
    """The receiver may have accepted it already. The key is the same, so the receiver can recognise the repetition."""

    async def main(world: World) -> None:
        dying = world.process()
        world.channel.hangs = True
        await dying.store.notices.put(notice())
        await world.until(3)
        assert len(world.channel.tried) == 1
        await world.kill(0)
        world.channel.hangs = False
        world.process()
        await world.until(LEASE_S - 1)
        assert world.channel.keys == []
        await world.until(LEASE_S + 3)
        assert [key for _, key in world.channel.tried] == ["a1:firing"] * 2
        assert world.channel.keys == ["a1:firing"]

    in_world(main)


def test_without_the_state_store_a_process_notifies_on_its_own_and_says_so() -> None:
    async def main(world: World) -> None:
        process = world.process()
        process.store.transactions.trouble = "the state store is unreachable"
        world.channel.answers = [DOWN]
        await world.until(5)
        process.courier.send_alone([notice(), notice("b2:firing", severity="info")])
        await world.until(8)
        process.courier.send_alone([notice("c3:firing")])
        await world.until(30)
        assert world.channel.keys == ["a1:firing", "c3:firing"]
        assert [key for _, key in world.channel.tried] == ["a1:firing", "a1:firing", "c3:firing"]
        assert all(ALONE in message.text for message in world.channel.taken)
        states = [(one.notice.key, one.state, one.attempts) for one in process.courier.told_alone]
        assert states == [("a1:firing", "sent", 2), ("c3:firing", "sent", 1)]

    in_world(main)


def test_a_store_lost_between_sending_and_recording_causes_a_second_message_but_never_loses_one() -> None:
    async def main(world: World) -> None:
        process = world.process()
        await process.store.notices.put(notice())

        class Cutting(FakeChannel):
            async def send(self, message: Message) -> str:
                process.store.transactions.trouble = "unreachable"
                return await super().send(message)

        process.courier.channel = Cutting(world.clock)
        await world.until(3)
        process.store.transactions.trouble = None
        process.courier.channel = world.channel
        await world.until(5)
        assert world.channel.keys == ["a1:firing"]
        (delivery,) = await process.store.notices.deliveries(0.0)
        assert (delivery.state, delivery.attempts) == ("sent", 2)

    in_world(main)


def test_an_accepted_test_makes_all_messages_due_and_a_refused_one_reports_why() -> None:
    async def main(world: World) -> None:
        process = world.process()
        world.channel.always = DOWN
        await process.store.notices.put(notice())
        await world.until(80)  # the breaker is open, and the next attempt is a minute away
        message = compose("test:1", [notice("test:1", what="test")], Sender("shop"))
        assert await process.courier.try_out(message) == (DOWN.reason, "")
        world.channel.always = None
        assert await process.courier.try_out(message) == (None, "")
        await world.until(82)
        assert world.channel.keys == ["test:1", "a1:firing"]
        assert process.courier.standing.failures == 0

    in_world(main)


def test_an_error_in_a_channels_own_code_counts_as_a_failed_send(caplog: pytest.LogCaptureFixture) -> None:
    async def main(world: World) -> None:
        process = world.process()

        class Broken(FakeChannel):
            async def send(self, message: Message) -> str:
                raise KeyError("a bug")

        process.courier.channel = Broken(world.clock)
        await process.store.notices.put(notice())
        await world.until(3)
        assert process.courier.standing.failures == 1
        assert "unexpected error" in process.courier.standing.reason

    in_world(main)
    assert "a bug" in caplog.text
