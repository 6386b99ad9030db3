"""The outbox: every configured channel with its courier, and the delivery status of every notice.

It answers the question "why was I not notified?" for each notice and each channel: the notice was sent, waits for its
next attempt, was given up, or is below the lowest severity that is sent. For an alert without a notice the engine gives
the reason. Without a configured channel, the reason is that there is none.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache

from koo.alert_options import AlertOptions
from koo.alerts.channels.base import Channel
from koo.alerts.channels.slack import Slack
from koo.alerts.channels.webhook import Webhook
from koo.alerts.courier import Courier
from koo.alerts.messages import RANK, Sender, compose
from koo.clock import Clock, iso
from koo.deadlines import Deadlines
from koo.errors import CallerMistake, Kind, describe_s
from koo.events import Event, Severity, log
from koo.monitoring.guards import breaker_word
from koo.monitoring.notice_shapes import (
    AlertDeliveries,
    AlertDelivery,
    AlertTest,
    AlertTests,
    ChannelStatus,
    UntoldAlert,
)
from koo.monitoring.shapes import Alert
from koo.network_options import NetworkOptions
from koo.notices import Delivery, Notice
from koo.storage.base import Store, StoreUnavailable

SHOWN_S = 86_400.0
NOT_CONFIGURED = (
    "no channel is configured, so alerts are not sent: set KOO_ALERT_WEBHOOK, KOO_ALERT_SLACK, or KOO_ALERT_EMAIL "
    "and KOO_SMTP_URL"
)
TEST_MESSAGE = "this is a test, sent on request; nothing is wrong"


class Outbox:
    """The channels of one process."""

    def __init__(
        self,
        options: AlertOptions,
        network: NetworkOptions,
        store: Store,
        *,
        clock: Clock,
        deadlines: Deadlines,
        publish: Callable[[Event], None],
    ) -> None:
        self._options = options
        self._store = store
        self._clock = clock
        self._sender = Sender(options.public_url or socket.gethostname(), options.public_url)
        severities: list[Severity] = [one for one in RANK if RANK[one] <= RANK[options.severity]]
        self.couriers = [
            Courier(
                channel,
                store,
                self._sender,
                severities,
                clock=clock,
                deadlines=deadlines,
                publish=publish,
            )
            for channel in make_channels(options, network, clock.wall)
        ]

    def begin(self) -> None:
        """Log warnings about the setup of the channels."""
        for courier in self.couriers:
            for warning in courier.channel.warnings:
                _warn_once(warning)

    def alone(self, notices: Sequence[Notice]) -> None:
        """Send notices without the state store, because it is unreachable; see `Courier.send_alone`."""
        for courier in self.couriers:
            courier.send_alone(notices)

    def statuses(self) -> list[ChannelStatus]:
        """Each channel's state, as last known. Without I/O."""
        return [_status(courier, self._options.severity, self._clock) for courier in self.couriers]

    async def deliveries(self, alerts: Sequence[Alert]) -> AlertDeliveries:
        """The deliveries of the last day's notices, and the reasons why other alerts in `alerts` were not sent.

        Does not raise while the store is unreachable; `store` contains the reason then.
        """
        trouble = self._store.trouble
        # What this process sent without the store comes first, because it is known even now. A person asks this
        # question during an outage, and the store may be a part of it.
        found = [one for courier in self.couriers for one in courier.told_alone]
        try:
            found += await self._store.notices.deliveries(self._clock.wall() - SHOWN_S)
        except StoreUnavailable as error:
            trouble = str(error)
        names = [courier.channel.name for courier in self.couriers]
        # A notice's key begins with its episode's id, so this also matches notices that other processes wrote.
        told = {one.notice.key.partition(":")[0] for one in found}
        return {
            "configured": bool(names),
            "note": "" if names else NOT_CONFIGURED,
            "store": trouble,
            "channels": self.statuses(),
            "deliveries": [self._view(one, names) for one in found],
            "untold": [
                _untold(one, names) for one in alerts if one["ended_at"] is None and one["id"] not in told
            ],
            "timestamp": iso(self._clock.wall()),
        }

    def _view(self, one: Delivery, names: Sequence[str]) -> AlertDelivery:
        notice = one.notice
        return {
            "key": notice.key,
            "what": notice.what,
            "kind": notice.kind,
            "severity": notice.severity,
            "component": notice.component,
            "message": notice.message,
            "started_at": iso(notice.started_at),
            "ended_at": iso(notice.ended_at),
            "noticed_at": iso(one.noticed_at),
            "channel": one.channel,
            "state": one.state,
            "attempts": one.attempts,
            "sent_at": iso(one.done_at) if one.state == "sent" else None,
            "next_attempt": iso(one.next_at),
            "reason": self._why(one, names),
        }

    def _why(self, one: Delivery, names: Sequence[str]) -> str:
        """The status of a delivery as one sentence."""
        # The order matters: a delivery that waits may also have a reason from its last attempt, but if this process
        # does not have the channel, that is what its reader must know first.
        tries = f"{one.attempts} attempts" if one.attempts != 1 else "one attempt"
        match one.state:
            case "sent":
                return (
                    f"sent {describe_s(max(0.0, (one.done_at or 0.0) - one.noticed_at))} after it was written"
                )
            case "given_up":
                return f"given up after {tries}: {one.reason}"
            case "below_severity":
                return f"{one.notice.severity} is below the lowest severity that was sent when it was written"
            case _ if one.channel not in names:
                return f"waits for a process that has the channel {one.channel} configured; this one does not have it"
            case _ if one.reason:
                return f"waits for its next attempt after {tries}: {one.reason}"
        standing = next(c.standing for c in self.couriers if c.channel.name == one.channel)
        return (
            f"waits for the channel, which is failing: {standing.reason}"
            if standing.failures
            else "waits to be sent"
        )

    async def test(self, channel: str | None = None) -> AlertTests:
        """Send a test through one channel, or through all. Raises `CallerMistake` if that channel is not configured."""
        chosen = [one for one in self.couriers if channel is None or one.channel.name == channel]
        if not chosen:
            names = ", ".join(one.channel.name for one in self.couriers)
            known = f"there is no channel {channel!r}; configured: {names}" if names else NOT_CONFIGURED
            raise CallerMistake("alerts", known, kind=Kind.NOT_FOUND)
        results = await asyncio.gather(*(self._try_out(one) for one in chosen))
        return {"results": list(results), "timestamp": iso(self._clock.wall())}

    async def _try_out(self, courier: Courier) -> AlertTest:
        began = self._clock.monotonic()
        notice = Notice(
            key=f"test:{secrets.randbelow(10**16)}",
            what="test",
            fingerprint="test:koo",
            kind="test",
            severity="info",
            component="koo",
            message=TEST_MESSAGE,
            started_at=self._clock.wall(),
        )
        error, note = await courier.try_out(compose(notice.key, [notice], self._sender))
        return {
            "channel": courier.channel.name,
            "place": courier.channel.place,
            "key": notice.key,
            "sent": error is None,
            "error": error,
            "warnings": [*courier.channel.warnings, *filter(None, [note])],
            "took_ms": (self._clock.monotonic() - began) * 1000,
        }

    async def finish(self) -> None:
        """Close all connections and let other processes continue. Waiting messages stay in the store."""
        # The claims are released last. If they were released first, another process could take a message while this one
        # is still sending it, and the receiver would get it twice.
        for courier in self.couriers:
            await courier.channel.close()
        if self.couriers:
            with suppress(StoreUnavailable):
                await self._store.notices.release()


@cache
def _warn_once(sentence: str) -> None:
    """Log a warning once per process, even if a script opens the platform in each `asyncio.run`."""
    log.warning("%s", sentence)


def make_channels(options: AlertOptions, network: NetworkOptions, wall: Callable[[], float]) -> list[Channel]:
    """Create the configured channels. Raises `ConfigurationError` for a proxy that koo cannot use."""
    found: list[Channel] = []
    if options.webhook is not None:
        found.append(Webhook(options.webhook, options.webhook_secret, network, wall))
    if options.slack is not None:
        found.append(Slack(options.slack, network, wall))
    if options.email and options.smtp_url is not None:
        from koo.alerts.channels.mail import Mail  # smtplib and email are loaded only if mail is sent

        found.append(Mail(options.smtp_url, options.email, options.sender, network, wall))
    return found


def _status(courier: Courier, severity: Severity, clock: Clock) -> ChannelStatus:
    # A channel can fail in two places: for all processes, as the store knows, and for messages that this process sent
    # without the store. While the store is unreachable only the second is current, so both are combined.
    standing, breaker = courier.standing, courier.guard.breaker
    waiting_alone = [one for one in courier.told_alone if one.state == "waiting"]
    failed_alone = [one for one in waiting_alone if one.reason]
    reason = standing.reason or (failed_alone[0].reason if failed_alone else "")
    since = standing.failing_since or (failed_alone[0].noticed_at if failed_alone else None)
    opens_in_s = breaker.refusal(clock.monotonic())[1] if breaker.refuses(clock.monotonic()) else None
    next_at = max(
        standing.next_at,
        failed_alone[0].next_at or 0.0 if failed_alone else 0.0,
        clock.wall() + opens_in_s if opens_in_s is not None else 0.0,
    )
    is_failing = bool(standing.failures or failed_alone)
    return {
        "channel": courier.channel.name,
        "place": courier.channel.place,
        "state": "failing" if is_failing else "ok" if standing.sent_at is not None else "untried",
        "reason": reason,
        "failing_since": iso(since) if is_failing else None,
        "next_attempt": iso(next_at) if is_failing and next_at else None,
        "last_sent": iso(standing.sent_at),
        "waiting": standing.waiting + len(waiting_alone),
        "given_up": standing.given_up,
        "least_severity": severity,
        "breaker": breaker_word(breaker),
        "warnings": list(courier.channel.warnings),
    }


def _untold(alert: Alert, names: Sequence[str]) -> UntoldAlert:
    # "notified" without a delivery means that no courier has looked yet since the notice was written.
    notified = alert["notified"]
    written = "its notice is written and will be sent within a second or two"
    is_written = notified["state"] in ("notified", "no_channel")
    reason = NOT_CONFIGURED if is_written and not names else notified["reason"] or written
    return {
        "id": alert["id"],
        "kind": alert["kind"],
        "component": alert["component"],
        "severity": alert["type"],
        "since": alert["timestamp"],
        "state": notified["state"],
        "reason": reason,
    }
