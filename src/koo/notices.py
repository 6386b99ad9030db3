"""Notices: messages to people about alerts, and the state of their delivery.

A notice is a fact that does not change: this alert began, that one ended. It is written to the state store once, under
a key that a second process, or the same one after a restart, would use too. From then on each *channel* has to deliver
it, until it is sent or given up. A channel belongs to the store, not to a process: all processes on one store form a
fleet, and any of them that is configured for the channel may deliver what another one wrote.

A message contains one notice, or several if many are waiting. Its content is decided once and stored. If a sender dies
before it can record the delivery, the message is sent a second time with the same key and text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from koo.events import Severity

What = Literal["firing", "resolved", "reminder", "test"]
"""What a notice reports: that an alert began, ended or is still active; "test" is a test of a channel."""
DeliveryState = Literal["waiting", "sent", "given_up", "below_severity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One notice. `key` is its idempotency key; times are wall seconds, `ended_at` None: the alert is active.

    `fingerprint` is the alert's kind and component. `severity` is the alert's own, even after its end.
    """

    key: str
    what: What
    fingerprint: str
    kind: str
    severity: Severity
    component: str
    message: str
    started_at: float
    ended_at: float | None = None
    data: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """The notices of one message that is being sent through a channel. `key` is the message's own.

    `attempt` counts this message's attempts from 1; `failures` counts the channel's failures in a row before it.
    `first_at` is when the oldest of the notices was written, in wall seconds. `epoch` grows each time the channel's
    sender changes to another process. `reason` is why an earlier attempt failed; empty if no attempt recorded a result.
    """

    key: str
    channel: str
    notices: tuple[Notice, ...]
    attempt: int
    reason: str
    failures: int
    epoch: int
    first_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """The delivery of one notice on one channel; times are wall seconds.

    `noticed_at`: when the notice was written. `done_at`: when it was sent or given up. `next_at`: the time of the next
    attempt. `reason`: why the last attempt failed.
    """

    notice: Notice
    channel: str
    state: DeliveryState
    attempts: int
    noticed_at: float
    done_at: float | None
    next_at: float | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The state of a channel, as seen by all processes; times are wall seconds.

    `failures` in a row: the first was at `failing_since`, the last had `reason`. `next_at` is the time of the next
    attempt; 0: immediately. `given_up` counts the messages that were given up within the last hour, `waiting` the
    notices still to be sent, `new` the notices for which it is not yet decided whether this channel sends them.
    `is_due`: there is something to send, and no other process is sending it.
    """

    channel: str
    failures: int = 0
    failing_since: float | None = None
    reason: str = ""
    next_at: float = 0.0
    sent_at: float | None = None
    waiting: int = 0
    given_up: int = 0
    new: int = 0
    is_due: bool = False


def key_of(keys: Sequence[str]) -> str:
    """The key of a message with these notices; a single notice's key is used as it is."""
    if len(keys) == 1:
        return keys[0]
    return f"together-{hashlib.sha256(json.dumps(list(keys)).encode()).hexdigest()[:32]}"


class Notices(Protocol):
    """The notices of all processes on one store, and each channel's deliveries. Each method raises
    `StoreUnavailable`."""

    async def put(self, *notices: Notice) -> list[Notice]:
        """Write notices; returns those whose key is new."""
        ...

    async def join(self, channels: Sequence[str]) -> None:
        """Add these channels, which have to deliver what is written from now on. An existing channel is unchanged."""
        ...

    async def standings(self, channels: Sequence[str]) -> list[Standing]:
        """The state of these channels."""
        ...

    async def owe(self, channel: str, severities: Sequence[Severity]) -> None:
        """Decide on the new notices: the channel has to deliver the ones with these severities."""
        ...

    async def take(self, channel: str) -> Parcel | None:
        """Lease the next message of a channel; None if nothing is due or another process is sending."""
        ...

    async def mark_sent(self, parcel: Parcel) -> None:
        """Record that the message was delivered and the channel works."""
        ...

    async def mark_failed(
        self, parcel: Parcel, reason: str, next_at: float, *, is_channels: bool, gives_up: bool
    ) -> None:
        """Record a failed attempt. `is_channels`: the channel itself failed, so nothing is sent before `next_at`."""
        ...

    async def revive(self, channel: str) -> None:
        """The channel works again: everything that is waiting is due now."""
        ...

    async def release(self) -> None:
        """Let other processes send immediately what this one has leased."""
        ...

    async def deliveries(self, since: float) -> list[Delivery]:
        """The deliveries of notices written at or after wall time `since`, newest first."""
        ...

    async def prune(self, before: float) -> None:
        """Delete notices written before wall time `before`."""
        ...
