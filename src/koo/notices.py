"""Notices: what is to be said to a person, and what became of saying it.

A notice is a fact that does not change: this alert began, that one ended. It is written into the state store once,
under a key that a second process, or the same one after a restart, would also use. From then on each *channel* owes
its delivery, until it is sent or given up. A channel belongs to the store, not to a process: all processes on one store
are one fleet, and any of them that is configured to reach the channel may deliver what another one wrote.

A message carries one notice, or several where many wait at once. Which ones it carries is decided once and kept, so
that a message that is sent a second time, because its sender died before it could say so, has the same key and text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from koo.events import Severity

What = Literal["firing", "resolved", "reminder", "test"]
"""What a notice says: an alert began, ended, or still lasts; or nothing: it is a test of a channel."""
DeliveryState = Literal["waiting", "sent", "given_up", "below_severity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One thing to say. `key` is its idempotency key; times are wall seconds, `ended_at` None: the alert lasts.

    `fingerprint` is the alert's kind and component. `severity` is the alert's own, also where it has ended.
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
    """The notices of one message, taken to be sent through a channel. `key` is the message's own.

    `attempt` counts this message's attempts from 1; `failures` the channel's in a row, without this one. `first_at` is
    when the oldest of the notices was written, in wall seconds. `epoch` grows each time that another process sends
    through the channel.
    """

    key: str
    channel: str
    notices: tuple[Notice, ...]
    attempt: int
    failures: int
    epoch: int
    first_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What became of one notice on one channel; times are wall seconds.

    `noticed_at`: when it was written. `done_at`: when it was sent or given up. `next_at`: when it is tried next.
    `reason`: why the last attempt failed.
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

    `failures` in a row, `failing_since` the first of them, `reason` the last. `next_at` is when it is tried next, 0: at
    once. `given_up` counts the messages that were given up within the last hour, `waiting` the notices that are still
    to be sent, `new` those for which it is not decided yet whether this channel owes them. `is_due`: there is something
    to send, and no other process is sending.
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
    """The key of a message that carries these notices: of one its own."""
    if len(keys) == 1:
        return keys[0]
    return f"together-{hashlib.sha256(json.dumps(list(keys)).encode()).hexdigest()[:32]}"


class Notices(Protocol):
    """The notices of all processes on one store, and what each channel owes. Each raises `StoreUnavailable`."""

    async def put(self, *notices: Notice) -> list[Notice]:
        """Write them; returns those whose key was not there yet."""
        ...

    async def join(self, channels: Sequence[str]) -> None:
        """Let these channels owe what is written from now on; one that is known already goes on."""
        ...

    async def standings(self, channels: Sequence[str]) -> list[Standing]:
        """The state of these channels."""
        ...

    async def owe(self, channel: str, severities: Sequence[Severity]) -> None:
        """Let a channel owe what is new, if it is of one of these severities."""
        ...

    async def take(self, channel: str) -> Parcel | None:
        """The next message of a channel, under a lease; None: nothing is due, or another process is sending."""
        ...

    async def mark_sent(self, parcel: Parcel) -> None:
        """It arrived, and the channel works."""
        ...

    async def mark_failed(
        self, parcel: Parcel, reason: str, next_at: float, *, is_channels: bool, gives_up: bool
    ) -> None:
        """It did not arrive. `is_channels`: the channel failed, so nothing else is tried before `next_at` either."""
        ...

    async def revive(self, channel: str) -> None:
        """The channel works again: what waits is due at once."""
        ...

    async def release(self) -> None:
        """Let other processes send at once what this one has taken."""
        ...

    async def deliveries(self, since: float) -> list[Delivery]:
        """What became of the notices written at or after wall time `since`, newest first."""
        ...

    async def prune(self, before: float) -> None:
        """Forget notices written before wall time `before`."""
        ...
