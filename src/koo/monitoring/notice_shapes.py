"""The shapes of notices and channels; the rules of `shapes` apply here too."""

# There is no `from __future__ import annotations` here, because the API description reads the types at run time.

from typing import Annotated, Literal

from koo.events import Severity
from koo.monitoring.shapes import BreakerWord, Doc, NotificationWord, Time, TypedDict

ChannelWord = Literal["ok", "failing", "untried"]


class ChannelStatus(TypedDict):
    """The state of one channel, as seen by all processes on the state store."""

    channel: Annotated[str, Doc("webhook, slack or email")]
    place: Annotated[str, Doc("its destination, without secrets")]
    state: Annotated[ChannelWord, Doc("untried: nothing was sent through it yet")]
    reason: Annotated[str, Doc("why the last message was not accepted; empty if the channel works")]
    failing_since: Time | None
    next_attempt: Annotated[Time | None, Doc("when it is tried again; null if it works")]
    last_sent: Annotated[Time | None, Doc("when the last message was accepted")]
    waiting: Annotated[int, Doc("notices waiting to be sent")]
    given_up: Annotated[int, Doc("messages given up within the last hour")]
    least_severity: Annotated[Severity, Doc("notices below this severity are not sent")]
    breaker: Annotated[BreakerWord, Doc("the channel's own circuit breaker, in this process")]
    warnings: Annotated[list[str], Doc("problems in its setup")]


class AlertDelivery(TypedDict):
    """The delivery of one notice on one channel."""

    key: Annotated[str, Doc("the notice's idempotency key; it begins with the alert's id")]
    what: Literal["firing", "resolved", "reminder", "test"]
    kind: str
    severity: Severity
    component: str
    message: str
    started_at: Annotated[Time, Doc("when the alert began")]
    ended_at: Annotated[Time | None, Doc("null if the alert was open when the notice was written")]
    noticed_at: Annotated[Time, Doc("when the notice was written")]
    channel: str
    state: Literal["waiting", "sent", "given_up", "below_severity"]
    attempts: int
    sent_at: Time | None
    next_attempt: Time | None
    reason: Annotated[str, Doc("the reason for the state, as a sentence")]


class UntoldAlert(TypedDict):
    """An open alert without a notice that was sent or is waiting."""

    id: Annotated[str, Doc("the alert's id")]
    kind: str
    component: str
    severity: Severity
    since: Annotated[Time, Doc("when it began")]
    state: Annotated[NotificationWord, Doc("as in the alert's `notified`")]
    reason: Annotated[str, Doc("why it was not sent, as a sentence")]


class AlertDeliveries(TypedDict):
    """The notices of the last day, newest first, and the reasons why alerts have none."""

    configured: Annotated[bool, Doc("whether any channel is configured")]
    note: Annotated[str, Doc("what to configure if there is no channel; otherwise empty")]
    store: Annotated[str | None, Doc("why the state store cannot be read; null if it can")]
    channels: list[ChannelStatus]
    deliveries: list[AlertDelivery]
    untold: list[UntoldAlert]
    timestamp: Time


class AlertTest(TypedDict):
    """The result of a test on one channel."""

    channel: str
    place: Annotated[str, Doc("its destination, without secrets")]
    key: Annotated[str, Doc("the message's idempotency key")]
    sent: bool
    error: Annotated[str | None, Doc("why it was not accepted; null if it was")]
    warnings: Annotated[list[str], Doc("problems in its setup")]
    took_ms: float


class AlertTests(TypedDict):
    """One result for each channel that was tested."""

    results: list[AlertTest]
    timestamp: Time
