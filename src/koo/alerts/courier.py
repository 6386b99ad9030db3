"""Delivers one channel's messages: takes what is due from the store, sends it, and records the result.

A message that was not accepted is tried again after 5 s, 10 s, 20 s and so on, up to five minutes, or at the time that
its receiver requests. If the channel failed, no other message is tried before that. If only this message was refused,
the others continue. After a day (an hour, if the message itself was refused) it is given up, which is logged.

Each attempt has a deadline and passes through a separate guard with a breaker. So a channel that is down costs one
attempt from time to time, and its failures are counted and logged like those of any other dependency.

Sending twice is better than not at all. If a process dies after sending and before recording, another process sends the
same message again when the lease has ended, under the same key, by which the receiver recognises it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from koo.alerts.channels.base import Channel, Message, NotTaken
from koo.alerts.messages import Sender, compose
from koo.alerts.own_rules import CHANNEL
from koo.clock import Clock
from koo.deadlines import Deadlines
from koo.errors import Kind, ServiceTimeout
from koo.events import DeliveryFailed, DeliveryGivenUp, Event, Severity
from koo.gates import Gates
from koo.guard import Guard
from koo.notices import Delivery, DeliveryState, Notice, Parcel, Standing, key_of
from koo.options import DAY_S, BreakerOptions, GuardOptions, RetryOptions
from koo.policies.verdict import FAILURE, SUCCESS, Fault
from koo.storage.base import Store, StoreUnavailable

log = logging.getLogger("koo")

SEND_S = 15.0
"""The deadline of one attempt. It must stay below the channel's lease (30 s), which nothing renews during a send."""
FIRST_PAUSE_S, PAUSE_S_MAX = 5.0, 300.0
ASKED_S_MAX = 3600.0
"""A receiver that requests a pause of more than an hour is tried again after one hour."""
GIVEN_UP_AFTER_S = DAY_S
"""A notice counts as news for this long (`storage/notices.py`)."""
REFUSED_FOR_S = 3600.0
"""A message that its receiver refuses rarely becomes acceptable. An hour covers a receiver that is being repaired."""
ALONE_MAX = 200
"""Bounds the memory used during an outage of the store."""
NO_RESULT = "no attempt within a day recorded a result: each sender ended or lost the state store"
LATE = f"no answer within {SEND_S:g} s"
GUARDED = GuardOptions(
    timeout_s=SEND_S,
    attempt_timeout_s=SEND_S,
    slow_s=SEND_S,
    retry=RetryOptions(attempts_max=1),
    breaker=BreakerOptions(recovery_s=30.0, open_s_max=60.0, success_threshold=1),
)
"""The guard does not retry. The store has the time of the next attempt, where it survives a restart."""


class Courier:
    """The courier of one channel. `severities` are those that it sends. `draw` returns random numbers in [0, 1)."""

    def __init__(
        self,
        channel: Channel,
        store: Store,
        sender: Sender,
        severities: Sequence[Severity],
        *,
        clock: Clock,
        deadlines: Deadlines,
        publish: Callable[[Event], None],
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.channel = channel
        self.standing = Standing(channel=channel.name)
        self.source = f"{CHANNEL}{channel.name}"
        gates = Gates(self.source, GUARDED, deadlines=deadlines, clock=clock, draw=draw, publish=publish)
        self.guard = Guard(gates, classify=_judge)
        self._store = store
        self._sender = sender
        self._severities = severities
        self._clock = clock
        self._publish = publish
        self._draw = draw
        self._has_joined = False
        self._alone: deque[Delivery] = deque()
        self._told: deque[Delivery] = deque(maxlen=ALONE_MAX)
        self._together = 0
        """How many of the notices in `_alone` are in the message that is being sent."""

    async def step(self) -> None:
        """Read the channel's state and send at most one message. Does not raise while the store is unreachable."""
        if self._alone and not self._is_shut():
            await self._send_alone()
        if self._store.trouble is None:
            # If the store fails after the message was sent, the result is not recorded, and the message is sent again
            # when its lease has ended.
            with suppress(StoreUnavailable):
                await self._send_next()

    async def try_out(self, message: Message) -> tuple[str | None, str]:
        """Send a message now, even if the breaker is open; returns why it was not accepted, or None and a remark.

        If it was accepted, waiting messages become due immediately.
        """
        # The test does not pass through the guard: a person who has just repaired the receiver wants to know whether it
        # works, and not that the breaker is open.
        try:
            async with asyncio.timeout(SEND_S):
                note = await self.channel.send(message)
        except NotTaken as error:
            return error.reason, ""
        except TimeoutError:
            return LATE, ""
        self.guard.reset(is_new=False)
        with suppress(StoreUnavailable):
            await self._store.notices.revive(self.channel.name)
        return None, note

    def send_alone(self, notices: Sequence[Notice]) -> None:
        """Queue notices to be sent without the store, because it is unreachable and people must be notified."""
        now = self._clock.wall()
        for notice in notices:
            if notice.severity in self._severities and len(self._alone) < ALONE_MAX:
                self._alone.append(
                    Delivery(
                        notice=notice,
                        channel=self.channel.name,
                        state="waiting",
                        attempts=0,
                        noticed_at=now,
                        done_at=None,
                        next_at=None,
                        reason="",
                    )
                )

    @property
    def told_alone(self) -> list[Delivery]:
        """The deliveries of notices that were sent without the store, as far as this process remembers them."""
        return [*self._told, *self._alone]

    # ── with the store ────────────────────────────────────────────────────────────────────────────────────────

    async def _send_next(self) -> None:
        notices, name = self._store.notices, self.channel.name
        if not self._has_joined:
            await notices.join([name])
            self._has_joined = True
        self.standing = (await notices.standings([name]))[0]
        if self.standing.new:
            await notices.owe(name, self._severities)
            self.standing = (await notices.standings([name]))[0]
        # `is_due` was read without a lock. Ten processes that share a channel may all find it due at the same moment,
        # and `take` gives the lease to one of them; the others get None.
        if not self.standing.is_due or self._is_shut():
            return
        parcel = await notices.take(name)
        if parcel is None:
            return
        if parcel.attempt > 1 and self._clock.wall() - parcel.first_at > GIVEN_UP_AFTER_S:
            await self._give_up(parcel)
            return
        message = compose(parcel.key, parcel.notices, self._sender, epoch=parcel.epoch)
        failure = await self._hand_over(message)
        if failure is None:
            await notices.mark_sent(parcel)
        else:
            await self._mark_failed(parcel, failure)

    async def _give_up(self, parcel: Parcel) -> None:
        # Sending it once more could end without a result again, as with a message that kills its senders: this is the
        # only place where such a message ends.
        reason, now = parcel.reason or NO_RESULT, self._clock.wall()
        self._publish(DeliveryGivenUp(self.source, reason, len(parcel.notices)))
        await self._store.notices.mark_failed(parcel, reason, now, is_channels=False, gives_up=True)

    async def _mark_failed(self, parcel: Parcel, failure: NotTaken) -> None:
        now = self._clock.wall()
        patience_s = REFUSED_FOR_S if failure.is_messages else GIVEN_UP_AFTER_S
        gives_up = now - parcel.first_at > patience_s
        # A refused message backs off by its own attempts, a failing channel by the channel's failures. If it depended
        # on the message's attempts, each new message would start again with a pause of 5 s at a receiver that has been
        # down for hours.
        tries = parcel.attempt if failure.is_messages else parcel.failures + 1
        wait_s = self._pause_s(tries, failure)
        self._say_failed(
            failure, wait_s, len(parcel.notices), is_first=parcel.failures == 0, gives_up=gives_up
        )
        await self._store.notices.mark_failed(
            parcel, failure.reason, now + wait_s, is_channels=not failure.is_messages, gives_up=gives_up
        )

    def _say_failed(
        self, failure: NotTaken, wait_s: float, count: int, *, is_first: bool, gives_up: bool
    ) -> None:
        """Publish the first of several failures in a row, and every message that is given up."""
        if is_first:
            self._publish(DeliveryFailed(self.source, failure.reason, wait_s))
        if gives_up:
            self._publish(DeliveryGivenUp(self.source, failure.reason, count))

    def _pause_s(self, tries: int, failure: NotTaken) -> float:
        """The pause before the next attempt, doubled each time."""
        # The jitter is ten percent in either direction, so that several channels that failed together do not return
        # together. The receiver's own wish only lengthens the pause.
        own_s = min(PAUSE_S_MAX, FIRST_PAUSE_S * 2.0 ** min(tries - 1, 10)) * (0.9 + 0.2 * self._draw())
        return max(own_s, min(failure.retry_after_s or 0.0, ASKED_S_MAX))

    def _is_shut(self) -> bool:
        # The breaker is checked before a message is taken from the store. Taking it counts an attempt and takes the
        # lease, although nothing would be sent.
        return self.guard.breaker.refuses(self._clock.monotonic())

    async def _hand_over(self, message: Message) -> NotTaken | None:
        """Send a message through the guard; returns why it was not accepted, or None."""
        try:
            note = await self.guard.call(self.channel.send, message)
        except NotTaken as error:
            return error
        except ServiceTimeout:
            return NotTaken(LATE)
        except Exception:
            # If it were raised, this step would end before the failure is recorded: the same message would be taken
            # again each time, and no other message would ever be sent.
            log.exception("an alert could not be sent by %s", self.channel.name)
            return NotTaken("unexpected error; koo's log has its traceback")
        if note:
            log.warning("%s: a message was accepted, but %s", self.source, note)
        return None

    # ── without the store ─────────────────────────────────────────────────────────────────────────────────────

    async def _send_alone(self) -> None:
        """Send all queued notices in one message, which keeps its key and notices until it is accepted or given up."""
        now = self._clock.wall()
        if (self._alone[0].next_at or 0.0) > now:
            return
        # The number is fixed at the first attempt. Notices that arrive later wait for the next message: with them this
        # one would have another key, and a receiver that had accepted the first attempt would show its notices twice.
        if not self._together:
            self._together = len(self._alone)
        batch = [self._alone[place] for place in range(self._together)]
        failure = await self._hand_over(_alone(batch, self._sender))
        tries = batch[0].attempts + 1
        if failure is None:
            self._end_alone("sent", tries, "")
            return
        wait_s = self._pause_s(tries, failure)
        gives_up = now - batch[0].noticed_at > GIVEN_UP_AFTER_S
        self._say_failed(failure, wait_s, len(batch), is_first=tries == 1, gives_up=gives_up)
        if gives_up:
            self._end_alone("given_up", tries, failure.reason)
            return
        for place, one in enumerate(batch):
            self._alone[place] = replace(one, attempts=tries, next_at=now + wait_s, reason=failure.reason)

    def _end_alone(self, state: DeliveryState, tries: int, reason: str) -> None:
        now = self._clock.wall()
        for _ in range(self._together):
            one = self._alone.popleft()
            self._told.append(
                replace(one, state=state, attempts=tries, done_at=now, next_at=None, reason=reason)
            )
        self._together = 0


def _alone(batch: Sequence[Delivery], sender: Sender) -> Message:
    notices = [one.notice for one in batch]
    return compose(key_of([one.key for one in notices]), notices, sender, is_alone=True)


def _judge(error: Exception) -> Fault:
    """Classify an error for the breaker. A refusal of one message is a success: the receiver works."""
    if not isinstance(error, NotTaken):
        return Fault(verdict=FAILURE)
    if error.is_messages:
        return Fault(verdict=SUCCESS, kind=Kind.INVALID_REQUEST)
    return Fault(verdict=FAILURE, kind=Kind.CONNECTION)
