"""Notices and their deliveries in the store. A notice is written once, and one process per channel delivers it.

A channel has one row with one lease, so only one process at a time sends through it. Messages leave in the order in
which their notices were written, and two processes never send the same one. The lease is longer than any send may take.
If its holder dies, another process sends the same message again, under the same key. The row also contains the
channel's state for all processes: since when it has been failing, and when the next attempt is.

A process that looks for work finds the notices that a channel still has to deliver: every notice younger than a day
that has no delivery there. So the process that writes a notice need not know the channels, and may have none itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from koo.events import Severity
from koo.notices import Delivery, Notice, Parcel, Standing, key_of
from koo.options import DAY_S
from koo.storage.transaction import Row, Transaction, Transactions

LEASE_S = 30.0
"""The lease is longer than a send may take, plus the difference between two clocks."""
UNKNOWN_PAUSE_S_MAX = 3600.0
"""The longest pause of a message after an attempt without a result."""
OWED_S = DAY_S
"""A day-old notice is no longer news. A channel that is configured again after a week must not send the whole week."""
JOIN_SLACK_S = 60.0
"""A notice may have been written by a process whose clock is behind that of the process with the channel."""
MINUTE_MS = 60_000
MESSAGES_PER_MINUTE = 10
"""A person cannot read more per minute. The rest is sent as one message when the minute is over."""
TOGETHER_FROM = 6
"""From this many waiting notices on, they are sent as one message: the receiver was away, or everything is down."""
TOGETHER_MAX = 200

NOTICE = "key, what, fingerprint, kind, severity, component, message, started_ms, ended_ms, data"
PUT = f"""INSERT INTO koo_notices ({NOTICE}, at_ms)
    VALUES (:key, :what, :fingerprint, :kind, :severity, :component, :message, :started_ms, :ended_ms, :data, :at_ms)
    ON CONFLICT (key) DO NOTHING RETURNING key"""
# `since_ms` is set when the channel is first seen and never changed. Without it, a new channel would have to send all
# notices of the last day. If each start renewed it, notices that other processes wrote during a restart would never be
# sent.
JOIN = """INSERT INTO koo_channels (name, since_ms, process, lease_ends_ms, next_ms, failures, reason)
    VALUES (:channel, :since_ms, '', 0, 0, 0, '') ON CONFLICT (name) DO NOTHING"""
NEW = """n.at_ms >= c.since_ms AND n.at_ms > :owed_ms AND NOT EXISTS
    (SELECT 1 FROM koo_deliveries d WHERE d.notice = n.key AND d.channel = c.name)"""
DUE = "d.channel = c.name AND d.state = 'waiting' AND d.next_ms <= :now_ms"
FREE = "next_ms <= :now_ms AND (process = :process OR lease_ends_ms <= :now_ms)"
STANDINGS = f"""SELECT name, failures, failing_since_ms, reason, next_ms, sent_ms,
      (SELECT count(*) FROM koo_deliveries d WHERE d.channel = c.name AND d.state = 'waiting'),
      (SELECT count(DISTINCT d.message) FROM koo_deliveries d
         WHERE d.channel = c.name AND d.state = 'given_up' AND d.done_ms > :hour_ago_ms),
      (SELECT count(*) FROM koo_notices n WHERE {NEW}),
      CASE WHEN {FREE} THEN 1 ELSE 0 END,
      CASE WHEN EXISTS (SELECT 1 FROM koo_deliveries d WHERE {DUE}) THEN 1 ELSE 0 END
    FROM koo_channels c WHERE name IN ({{ids}}) ORDER BY name"""
# Takes the lease if it is free, or renews it if this process has it. It is one statement, so the row's lock decides
# between two processes: the second one's WHERE clause is evaluated again after the first one's COMMIT, and finds the
# lease taken. Messages carry the epoch, so a receiver can recognise a late message from an earlier holder.
LEASE = f"""UPDATE koo_channels SET epoch = CASE WHEN process = :process THEN epoch ELSE epoch + 1 END,
      process = :process, lease_ends_ms = :lease_ends_ms
    WHERE name = :channel AND {FREE} RETURNING failures, epoch"""
# Several processes with the same channel may run this at the same time; the key makes each delivery exist once. A
# notice below the channel's severity gets a delivery too, so it is not considered again, and people can see why it was
# not sent.
OWE = f"""INSERT INTO koo_deliveries (notice, channel, state, message, attempts, next_ms, reason)
    SELECT n.key, c.name, CASE WHEN n.severity IN ({{ids}}) THEN 'waiting' ELSE 'below_severity' END, '', 0, 0, ''
    FROM koo_notices n, koo_channels c WHERE c.name = :channel AND {NEW}
    ON CONFLICT (notice, channel) DO NOTHING"""
WAITING = f"""SELECT d.notice, d.message FROM koo_deliveries d, koo_channels c, koo_notices n
    WHERE c.name = :channel AND n.key = d.notice AND {DUE} ORDER BY n.at_ms, n.started_ms, n.key LIMIT :most"""
SENT_LATELY = """SELECT count(DISTINCT message) FROM koo_deliveries
    WHERE channel = :channel AND state = 'sent' AND done_ms > :minute_ago_ms"""
ASSIGN = """UPDATE koo_deliveries SET message = :message WHERE channel = :channel AND notice IN ({ids})"""
BEGIN = """UPDATE koo_deliveries SET attempts = attempts + 1, next_ms = :due_ms
    WHERE channel = :channel AND message = :message AND state = 'waiting'"""
CARRIED = f"""SELECT {", ".join(f"n.{name}" for name in NOTICE.split(", "))}, n.at_ms, d.attempts, d.reason
    FROM koo_deliveries d, koo_notices n WHERE n.key = d.notice AND d.channel = :channel AND d.message = :message
    AND d.state = 'waiting' ORDER BY n.at_ms, n.started_ms, n.key"""
UNLEASE = "UPDATE koo_channels SET lease_ends_ms = 0 WHERE name = :channel AND process = :process"
# A sender that was stopped beyond its lease may report its success late. The message did arrive, so its deliveries are
# marked as sent even if another process has given them up, and the channel works. But the lease is not ended: by now it
# belongs to another process, which may be sending.
SENT = """UPDATE koo_deliveries SET state = 'sent', done_ms = :now_ms, reason = ''
    WHERE channel = :channel AND message = :message AND state <> 'sent'"""
WORKS = """UPDATE koo_channels SET failures = 0, failing_since_ms = NULL, reason = '', next_ms = 0,
    sent_ms = :now_ms, lease_ends_ms = CASE WHEN process = :process THEN 0 ELSE lease_ends_ms END
    WHERE name = :channel"""
FAILED = """UPDATE koo_deliveries SET reason = :reason, next_ms = :next_ms,
      state = CASE WHEN :gives_up = 1 THEN 'given_up' ELSE state END,
      done_ms = CASE WHEN :gives_up = 1 THEN :now_ms ELSE done_ms END
    WHERE channel = :channel AND message = :message AND state = 'waiting'"""
# Only the holder of the lease may record a failure of the channel. A sender that was stopped beyond its lease would
# otherwise end the lease of the next holder, which is sending at that moment, and count an outage that is over.
FAILS = """UPDATE koo_channels SET failures = failures + 1, reason = :reason, next_ms = :next_ms, lease_ends_ms = 0,
      failing_since_ms = coalesce(failing_since_ms, :now_ms)
    WHERE name = :channel AND process = :process"""
REFUSES = FAILS.replace("next_ms = :next_ms, ", "")
REVIVE = """UPDATE koo_channels SET failures = 0, failing_since_ms = NULL, reason = '', next_ms = 0, sent_ms = :now_ms
    WHERE name = :channel"""
REVIVE_WAITING = "UPDATE koo_deliveries SET next_ms = 0 WHERE channel = :channel AND state = 'waiting'"
RELEASE = "UPDATE koo_channels SET lease_ends_ms = 0 WHERE process = :process"
DELIVERIES = f"""SELECT {", ".join(f"n.{name}" for name in NOTICE.split(", "))}, n.at_ms,
      d.channel, d.state, d.attempts, d.next_ms, d.done_ms, d.reason
    FROM koo_notices n, koo_deliveries d WHERE d.notice = n.key AND n.at_ms >= :since_ms
    ORDER BY n.at_ms DESC, n.key, d.channel"""
PRUNE = (
    "DELETE FROM koo_deliveries WHERE notice IN (SELECT key FROM koo_notices WHERE at_ms < :before_ms)",
    "DELETE FROM koo_notices WHERE at_ms < :before_ms",
)


class SqlNotices:
    """The notices of all processes on one store; see `koo.notices.Notices`."""

    def __init__(self, executor: Transactions) -> None:
        self._executor = executor

    async def put(self, *notices: Notice) -> list[Notice]:
        """Write notices; returns those whose key was new."""
        at_ms = self._now_ms()
        return await self._executor.run(lambda tx: put_in(tx, notices, at_ms)) if notices else []

    async def join(self, channels: Sequence[str]) -> None:
        """Register channels, which have to deliver every notice from now on. Known channels keep their state."""
        since_ms = self._now_ms(-JOIN_SLACK_S)
        rows = [{"channel": channel, "since_ms": since_ms} for channel in channels]
        await self._executor.run(lambda tx: tx.run(JOIN, rows))

    async def standings(self, channels: Sequence[str]) -> list[Standing]:
        """The states of these channels."""
        values = self._values("", ids=json.dumps(list(channels)), hour_ago_ms=self._now_ms(-3600.0))
        rows = await self._executor.run(lambda tx: tx.rows(STANDINGS, values), exclusive=False)
        return [_standing(row) for row in rows]

    async def owe(self, channel: str, severities: Sequence[Severity]) -> None:
        """Create a channel's deliveries for new notices: waiting for these severities, skipped for others."""
        await self._run((OWE,), self._values(channel, ids=json.dumps(list(severities))))

    async def take(self, channel: str) -> Parcel | None:
        """Take a channel's next message under a lease; None if nothing is due or another process is sending."""
        values = self._values(channel, lease_ends_ms=self._now_ms(LEASE_S), most=TOGETHER_MAX)
        return await self._executor.run(lambda tx: _take(tx, values))

    async def mark_sent(self, parcel: Parcel) -> None:
        """Record that a message arrived, so the channel works."""
        await self._run((SENT, WORKS), self._values(parcel.channel, message=parcel.key))

    async def mark_failed(
        self, parcel: Parcel, reason: str, next_at: float, *, is_channels: bool, gives_up: bool
    ) -> None:
        """Record that a message did not arrive. `is_channels`: the channel failed and sends nothing until `next_at`."""
        values = self._values(
            parcel.channel, message=parcel.key, reason=reason, next_ms=_ms(next_at), gives_up=int(gives_up)
        )
        await self._run((FAILED, FAILS if is_channels else REFUSES), values)

    async def revive(self, channel: str) -> None:
        """Record that the channel works again, so its waiting messages are due immediately."""
        await self._run((REVIVE, REVIVE_WAITING), self._values(channel))

    async def release(self) -> None:
        """Let other processes send immediately what this one has taken."""
        await self._run((RELEASE,), self._values(""))

    async def deliveries(self, since: float) -> list[Delivery]:
        """The deliveries of notices written at or after wall time `since`, newest first."""
        values = {"since_ms": _ms(since)}
        rows = await self._executor.run(lambda tx: tx.rows(DELIVERIES, values), exclusive=False)
        return [_delivery(row) for row in rows]

    async def prune(self, before: float) -> None:
        """Delete notices written before wall time `before`."""
        await self._run(PRUNE, {"before_ms": _ms(before)})

    async def _run(self, statements: Sequence[str], values: dict[str, Any]) -> None:
        def write(tx: Transaction) -> None:
            for statement in statements:
                tx.run(statement, values)

        await self._executor.run(write)

    def _values(self, channel: str, **more: Any) -> dict[str, Any]:
        now_ms = self._now_ms()
        return {
            "channel": channel,
            "process": self._executor.process,
            "now_ms": now_ms,
            "owed_ms": now_ms - _ms(OWED_S),
            **more,
        }

    def _now_ms(self, later_s: float = 0.0) -> int:
        return _ms(self._executor.clock.wall() + later_s)


def put_in(tx: Transaction, notices: Sequence[Notice], at_ms: int) -> list[Notice]:
    """Write notices, in a transaction; returns those whose key was new."""
    return [notice for notice in notices if tx.rows(PUT, {**_columns(notice), "at_ms": at_ms})]


def _take(tx: Transaction, values: dict[str, Any]) -> Parcel | None:
    leased = tx.rows(LEASE, values)
    if not leased:
        return None
    message = _next_message(tx, values)
    if message is None:
        tx.run(UNLEASE, values)
        return None
    key = {**values, "message": message}
    carried = tx.rows(CARRIED, key)
    attempt = 1 + max(row[11] for row in carried)
    # The attempt is counted before the message is sent, and committed with the lease. If it were counted afterwards,
    # the attempts of senders that died in the middle would be missing. The time of the next attempt is set here too: a
    # message that kills each of its senders would otherwise be the next one again and again, and no other would leave.
    tx.run(BEGIN, {**key, "due_ms": values["now_ms"] + _ms(_unknown_pause_s(attempt))})
    return Parcel(
        key=message,
        channel=values["channel"],
        notices=tuple(_notice(row[:10]) for row in carried),
        attempt=attempt,
        reason=carried[0][12],
        failures=leased[0][0],
        epoch=leased[0][1],
        first_at=min(row[10] for row in carried) / 1000,
    )


def _unknown_pause_s(attempt: int) -> float:
    """How long a message waits after an attempt that records no result; after the first, no longer than its lease."""
    return 0.0 if attempt == 1 else min(UNKNOWN_PAUSE_S_MAX, LEASE_S * 2.0 ** min(attempt - 1, 10))


def _next_message(tx: Transaction, values: dict[str, Any]) -> str | None:
    """A failed message that is due again, else a new one; None if nothing is due or the minute's limit is reached."""
    due = tx.rows(WAITING, values)
    # A message that was begun is sent again with the same key and the same notices, even if more are waiting now. The
    # first attempt may have reached the receiver, which recognises a repetition by its key alone.
    begun = next((message for _, message in due if message), None)
    if begun is not None or not due:
        return begun
    # The store counts them, not this process, because other processes may have sent the minute's messages.
    lately = tx.rows(SENT_LATELY, {**values, "minute_ago_ms": values["now_ms"] - MINUTE_MS})[0][0]
    if lately >= MESSAGES_PER_MINUTE:
        return None
    chosen: list[str] = [notice for notice, _ in due] if len(due) >= TOGETHER_FROM else [due[0][0]]
    message = key_of(chosen)
    tx.run(ASSIGN, {**values, "ids": json.dumps(chosen), "message": message})
    return message


def _ms(wall_s: float) -> int:
    return round(wall_s * 1000)


def _s(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000


def _columns(notice: Notice) -> dict[str, Any]:
    return {
        "key": notice.key,
        "what": notice.what,
        "fingerprint": notice.fingerprint,
        "kind": notice.kind,
        "severity": notice.severity,
        "component": notice.component,
        "message": notice.message,
        "started_ms": _ms(notice.started_at),
        "ended_ms": None if notice.ended_at is None else _ms(notice.ended_at),
        "data": json.dumps(dict(notice.data), default=str),
    }


def _notice(row: Row) -> Notice:
    key, what, fingerprint, kind, severity, component, message, started_ms, ended_ms, data = row
    return Notice(
        key=key,
        what=what,
        fingerprint=fingerprint,
        kind=kind,
        severity=severity,
        component=component,
        message=message,
        started_at=started_ms / 1000,
        ended_at=_s(ended_ms),
        data=json.loads(data),
    )


def _standing(row: Row) -> Standing:
    name, failures, since_ms, reason, next_ms, sent_ms, waiting, given_up, new, free, due = row
    return Standing(
        channel=name,
        failures=failures,
        failing_since=_s(since_ms),
        reason=reason,
        next_at=next_ms / 1000,
        sent_at=_s(sent_ms),
        waiting=waiting,
        given_up=given_up,
        new=new,
        is_due=bool(free and due),
    )


def _delivery(row: Row) -> Delivery:
    at_ms, channel, state, attempts, next_ms, done_ms, reason = row[10:]
    return Delivery(
        notice=_notice(row[:10]),
        channel=channel,
        state=state,
        attempts=attempts,
        noticed_at=at_ms / 1000,
        done_at=_s(done_ms),
        next_at=next_ms / 1000 if state == "waiting" and next_ms else None,
        reason=reason,
    )
