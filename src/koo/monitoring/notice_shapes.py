"""What is seen of notices and channels, once; `koo.monitoring.shapes` says how keys are promised and described."""

# Without `from __future__ import annotations`: the types are read at run time, where the API is described.

from typing import Annotated, Literal

from koo.events import Severity
from koo.monitoring.shapes import BreakerWord, Doc, NotificationWord, Time, TypedDict

ChannelWord = Literal["ok", "failing", "untried"]


class ChannelStatus(TypedDict):
    """The state of one channel, as seen by all processes on the state store."""

    channel: Annotated[str, Doc("webhook, slack or email")]
    place: Annotated[str, Doc("where it leads, without its secrets")]
    state: Annotated[ChannelWord, Doc("untried: nothing was sent by it yet")]
    reason: Annotated[str, Doc("why the last message was not taken; empty where the channel works")]
    failing_since: Time | None
    next_attempt: Annotated[Time | None, Doc("when it is tried again; null where it works")]
    last_sent: Annotated[Time | None, Doc("when the last message was taken")]
    waiting: Annotated[int, Doc("notices that are still to be sent")]
    given_up: Annotated[int, Doc("messages that were given up within the last hour")]
    least_severity: Annotated[Severity, Doc("notices below it are not sent")]
    breaker: Annotated[BreakerWord, Doc("the channel's own circuit breaker, in this process")]
    warnings: Annotated[list[str], Doc("what a person should know of how it is set up")]


class AlertDelivery(TypedDict):
    """What became of one notice on one channel."""

    key: Annotated[str, Doc("the notice's idempotency key; it begins with the alert's id")]
    what: Literal["firing", "resolved", "reminder", "test"]
    kind: str
    severity: Severity
    component: str
    message: str
    started_at: Annotated[Time, Doc("when the alert began")]
    ended_at: Annotated[Time | None, Doc("null: it lasted when this was written")]
    noticed_at: Annotated[Time, Doc("when the notice was written")]
    channel: str
    state: Literal["waiting", "sent", "given_up", "below_severity"]
    attempts: int
    sent_at: Time | None
    next_attempt: Time | None
    reason: Annotated[str, Doc("one sentence: why it stands so")]


class UntoldAlert(TypedDict):
    """An alert that has not ended, and has no notice sent or waiting."""

    id: Annotated[str, Doc("the alert's")]
    kind: str
    component: str
    severity: Severity
    since: Annotated[Time, Doc("when it began")]
    state: Annotated[NotificationWord, Doc("as `notified` of the alert has it")]
    reason: Annotated[str, Doc("one sentence: why it was not sent")]


class AlertDeliveries(TypedDict):
    """The notices of the last day, the newest first, and why alerts have none."""

    configured: Annotated[bool, Doc("is there a channel at all?")]
    note: Annotated[str, Doc("what is missing where none is configured; else empty")]
    store: Annotated[str | None, Doc("why the state store cannot be read; null: it can")]
    channels: list[ChannelStatus]
    deliveries: list[AlertDelivery]
    untold: list[UntoldAlert]
    timestamp: Time


class AlertTest(TypedDict):
    """What became of a test on one channel."""

    channel: str
    place: Annotated[str, Doc("where it leads, without its secrets")]
    key: Annotated[str, Doc("the message's idempotency key")]
    sent: bool
    error: Annotated[str | None, Doc("why it was not taken; null: it was")]
    warnings: Annotated[list[str], Doc("what a person should know of how it is set up")]
    took_ms: float


class AlertTests(TypedDict):
    """One for each channel that was tried."""

    results: list[AlertTest]
    timestamp: Time
