"""The roll call: one row per process, which its beat keeps fresh, and one row for the leader.

A beat is one transaction and, on a server, two round trips. It reports this process's changes, takes or renews the
leadership, and returns other processes' acts (`signals.py`) and the states of their guards. The database counts the
guards that are down, so a hundred processes do not each read the rows of a hundred.

All times are the store's clock. If that clock is set back, some rows lie in its future. They count as old, because
their owners rewrite them within a beat.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from koo.policies.fleet import (
    SILENT_BEATS,
    Check,
    GuardKey,
    Heard,
    Leader,
    LeasedUnits,
    Member,
    MemberGuard,
    Opinion,
    Roll,
    Told,
)
from koo.storage.base import NotLeading, Signal
from koo.storage.probe_units import FORGET_OF, FORGET_OLD, hand_out
from koo.storage.signals import since_in
from koo.storage.transaction import Row, T, Transaction, Transactions, as_rows, picked

FUTURE_MS = 60_000
"""A time further in the future than this was written before the clock was set back."""
FORGOTTEN_AFTER_MS = 86_400_000
"""How long a killed process's row is kept, so that people can see that it existed."""

# Without the upper bounds, a clock that is set back by an hour would leave the last leader in office for that hour, and
# a process that died before would count as live for as long.
LIVES = f"f.seen_ms > {{clock_ms}} - {SILENT_BEATS} * f.beat_ms AND f.seen_ms < {{clock_ms}} + {FUTURE_MS}"
LEADS = f"until_ms > {{clock_ms}} AND until_ms < {{clock_ms}} + {FUTURE_MS} + :lease_ms"
SAY = """INSERT INTO koo_fleet (process, ledger, host, worker, pid, version, label, started_ms, seen_ms, beat_ms,
      beats, in_flight)
    VALUES (:process, :ledger, :host, :worker, :pid, :version, :label, {clock_ms}, {clock_ms}, :beat_ms, 1, :in_flight)
    ON CONFLICT (process) DO UPDATE SET seen_ms = excluded.seen_ms, beat_ms = excluded.beat_ms,
      beats = koo_fleet.beats + 1, in_flight = excluded.in_flight, ledger = excluded.ledger RETURNING beats"""
# The configuration has a separate table. In the process's row it would be rewritten with each beat.
CONFIGURE = """INSERT INTO koo_fleet_configurations (process, digests) VALUES (:process, :configuration)
    ON CONFLICT (process) DO NOTHING"""
LINE = picked(("guard", "place", "phase"), ("is_down", "ago_ms", "calls", "is_proved"))
SAY_GUARDS = f"""INSERT INTO koo_fleet_guards (process, guard, place, phase, is_down, since_ms, calls, proved_ms)
    SELECT :process, {LINE["guard"]}, {LINE["place"]}, {LINE["phase"]}, {LINE["is_down"]},
      {{clock_ms}} - {LINE["ago_ms"]}, {LINE["calls"]},
      {LINE["is_proved"]} * {{clock_ms}} FROM ({{rows}}) r WHERE true
    ON CONFLICT (process, guard, place) DO UPDATE SET phase = excluded.phase, is_down = excluded.is_down,
      since_ms = excluded.since_ms, calls = excluded.calls,
      proved_ms = CASE WHEN excluded.proved_ms > 0 THEN excluded.proved_ms ELSE koo_fleet_guards.proved_ms END"""
DROP_GUARD = "DELETE FROM koo_fleet_guards WHERE process = :process AND guard = :guard AND place = :place"
# The election is this one statement. The row's lock makes processes that find the lease expired take it one after the
# other, and for the second one the WHERE clause is evaluated again on the row that the first has written, where the
# lease is fresh. The epoch grows only with a new holder: a renewal keeps the epoch that the leader's transactions
# compare (`FENCE`).
LEAD = f"""UPDATE koo_leader SET epoch = CASE WHEN process = :process THEN epoch ELSE epoch + 1 END,
      process = :process, until_ms = {{clock_ms}} + :lease_ms
    WHERE role = 'fleet' AND (process = :process OR NOT ({LEADS}))"""
FLEET = f"""SELECT (SELECT count(*) FROM koo_fleet f WHERE {LIVES}), process, epoch, CASE WHEN {LEADS} THEN 1 ELSE 0 END
    FROM koo_leader WHERE role = 'fleet'"""
OPINIONS = f"""SELECT g.guard, g.place, sum(g.is_down), count(*), {{clock_ms}} - max(g.proved_ms)
    FROM koo_fleet_guards g JOIN koo_fleet f ON f.process = g.process
    WHERE (g.calls > 0 OR g.phase <> 'closed') AND {LIVES}
    GROUP BY g.guard, g.place HAVING sum(g.is_down) > 0"""
CHECK = picked(("service", "place", "kind", "reason"), ())
# A row is written only if this process is the leader in this transaction. A former leader that was stopped may still
# send its results, and they would overwrite newer ones.
SAY_CHECKS = f"""INSERT INTO koo_fleet_checks (service, place, kind, reason, at_ms, number)
    SELECT {", ".join(CHECK.values())}, {{clock_ms}}, (SELECT coalesce(max(number), 0) + 1 FROM koo_fleet_checks)
    FROM ({{rows}}) r WHERE EXISTS (SELECT 1 FROM koo_leader WHERE process = :process AND {LEADS})
    ON CONFLICT (service, place) DO UPDATE SET kind = excluded.kind, reason = excluded.reason,
      at_ms = excluded.at_ms, number = excluded.number"""
CHECKS = """SELECT service, place, kind, reason, {clock_ms} - at_ms, number FROM koo_fleet_checks
    WHERE number > :checks_seen ORDER BY number, service, place"""
LEAVE = (
    FORGET_OF,
    "DELETE FROM koo_fleet_configurations WHERE process = :process",
    "DELETE FROM koo_fleet_guards WHERE process = :process",
    "DELETE FROM koo_fleet WHERE process = :process",
    "UPDATE koo_leader SET until_ms = 0 WHERE process = :process",
)
OLD = f"SELECT process FROM koo_fleet WHERE seen_ms < {{clock_ms}} - {FORGOTTEN_AFTER_MS}"
FORGET = (
    FORGET_OLD,
    f"DELETE FROM koo_fleet_checks WHERE at_ms < {{clock_ms}} - {FORGOTTEN_AFTER_MS}",
    f"DELETE FROM koo_fleet_configurations WHERE process IN ({OLD})",
    f"DELETE FROM koo_fleet_guards WHERE process IN ({OLD})",
    f"DELETE FROM koo_fleet WHERE seen_ms < {{clock_ms}} - {FORGOTTEN_AFTER_MS}",
    # Units of a process that never returned; they left every window long ago.
    f"DELETE FROM koo_leases WHERE until_ms < {{clock_ms}} - {FORGOTTEN_AFTER_MS}",
)
FENCE = "SELECT 1 FROM koo_leader WHERE role = 'fleet' AND process = :process AND epoch = :epoch {for_update}"
MEMBERS = f"""SELECT process, ledger, host, worker, pid, version, label, started_ms, seen_ms, {{clock_ms}} - seen_ms,
      in_flight, (SELECT digests FROM koo_fleet_configurations c WHERE c.process = f.process),
      CASE WHEN {LIVES} THEN 1 ELSE 0 END FROM koo_fleet f ORDER BY started_ms, process"""
GUARDS = f"""SELECT g.process, g.guard, g.place, g.phase, g.is_down, g.since_ms, g.calls
    FROM koo_fleet_guards g JOIN koo_fleet f ON f.process = g.process
    WHERE {LIVES} ORDER BY g.guard, g.place, g.process"""


OUT = "e.until_ms > {clock_ms} AND e.lapsed = 0"
UNITS = f"""SELECT l.name, l.limit_amount,
      coalesce(sum(CASE WHEN {OUT} THEN e.granted - e.used - e.back ELSE 0 END), 0),
      coalesce(sum(CASE WHEN {OUT} THEN 1 ELSE 0 END), 0)
    FROM koo_limits l LEFT JOIN koo_leases e ON e.name = l.name GROUP BY l.name, l.limit_amount ORDER BY l.name"""


class SqlRollCall:
    """The roll call of one store, as one of its processes uses it."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    async def beat(self, told: Told, cursor: int | None = None) -> tuple[Heard, list[Signal]]:
        """Report and receive, in one transaction, with the signals after number `cursor`. Raises `StoreUnavailable`."""
        return await self._transactions.run(lambda tx: self._beat(tx, told, cursor))

    def _beat(self, tx: Transaction, told: Told, cursor: int | None) -> tuple[Heard, list[Signal]]:
        # The name is read inside the transaction. A reopened store has a new one from its first transaction on, and a
        # name that was read before it would put a process on the roll that no longer exists.
        process = self._transactions.process
        values = self._values(told, process)
        # Everything up to the first call of a result below travels in one round trip. The order counts: this process
        # is on the roll before it may lead, and it leads before its checks are accepted.
        beats = tx.later(SAY, values)
        _say_guards(tx, told, values)
        tx.run(LEAD, values)
        _say_checks(tx, told, values)
        fleet, opinions = tx.later(FLEET, values), tx.later(OPINIONS, values)
        checks = tx.later(CHECKS, {**values, "checks_seen": told.checks_seen})
        signals: Callable[[], list[Signal]] = (
            list if cursor is None else since_in(tx, cursor, values["wall_ms"])
        )
        is_new = beats()[0][0] == 1
        if is_new:
            tx.run(CONFIGURE, values)
        heard = _heard(process, is_new, fleet()[0], opinions(), checks())
        return replace(heard, units=hand_out(tx, told, values)), signals()

    async def leave(self) -> None:
        """Remove this process from the roll, because it ends. Another process may lead immediately."""
        values = {"process": self._transactions.process}

        def write(tx: Transaction) -> None:
            for statement in LEAVE:
                tx.run(statement, values)

        await self._transactions.run(write)

    async def read(self) -> Roll:
        """Read the whole roll, for display."""
        values = {"wall_ms": self._wall_ms(), "lease_ms": FUTURE_MS}

        def find(tx: Transaction) -> Roll:
            fleet, members, guards, units = (tx.later(one, values) for one in (FLEET, MEMBERS, GUARDS, UNITS))
            return Roll(
                leader=_leader(fleet()[0]),
                members=[*map(_member, members())],
                guards=[*map(_guard, guards())],
                units=[
                    LeasedUnits(name, int(limit), int(out), int(count)) for name, limit, out, count in units()
                ],
            )

        return await self._transactions.run(find, exclusive=False)

    async def forget_old(self) -> None:
        """Delete processes that have been silent for a day."""
        values = {"wall_ms": self._wall_ms()}

        def write(tx: Transaction) -> None:
            for statement in FORGET:
                tx.run(statement, values)

        await self._transactions.run(write)

    def _wall_ms(self) -> int:
        return int(self._transactions.clock.wall() * 1000)

    def _values(self, told: Told, process: str) -> dict[str, Any]:
        one = told.presence
        return {
            "process": process,
            "ledger": one.ledger,
            "host": one.host,
            "worker": one.worker,
            "pid": one.pid,
            "version": one.version,
            "label": one.label,
            "configuration": one.configuration,
            "in_flight": told.in_flight,
            "beat_ms": int(told.beat_s * 1000),
            "lease_ms": int(told.lease_s * 1000),
            "wall_ms": self._wall_ms(),
        }


class Fenced:
    """A leader's transactions. Each is refused if another process has become leader since `epoch`."""

    def __init__(self, transactions: Transactions, epoch: int) -> None:
        self.process = transactions.process
        self.clock = transactions.clock
        self._transactions = transactions
        self._epoch = epoch

    async def run(self, work: Callable[[Transaction], T], *, exclusive: bool = True) -> T:
        """Run `work` in a transaction. Raises `NotLeading`, or `StoreUnavailable`."""
        values = {"process": self.process, "epoch": self._epoch}

        # A process that believes it leads may have been stopped for a minute between that check and this transaction,
        # and another one leads by now. So the store checks too, by the epoch. FENCE locks the leader's row until the
        # transaction ends: otherwise another process could become leader between the check and the COMMIT, and both
        # would, for example, end the same alert. Because of that lock even reading work runs as a writing transaction.
        def fenced(tx: Transaction) -> T:
            if not tx.rows(FENCE, values):
                raise NotLeading("another process has become the fleet's leader")
            return work(tx)

        return await self._transactions.run(fenced)


def _say_guards(tx: Transaction, told: Told, values: dict[str, Any]) -> None:
    if told.anew:
        rows = [
            (
                *line.key,
                line.phase,
                int(line.is_down),
                int(line.ago_s * 1000),
                line.calls,
                int(line.is_proved),
            )
            for line in told.anew
        ]
        tx.run(SAY_GUARDS, {**values, **as_rows(rows)})
    if told.gone:
        process = values["process"]
        tx.run(DROP_GUARD, [{"process": process, "guard": one.name, "place": one.place} for one in told.gone])


def _say_checks(tx: Transaction, told: Told, values: dict[str, Any]) -> None:
    if told.checks:
        rows = [(one.service, one.place, one.kind, one.reason) for one in told.checks]
        tx.run(SAY_CHECKS, {**values, **as_rows(rows)})


def _heard(process: str, is_new: bool, fleet: Row, opinions: list[Row], checks: list[Row]) -> Heard:
    found = [
        Opinion(GuardKey(guard, place), int(down), concerned, ago_ms / 1000)
        for guard, place, down, concerned, ago_ms in opinions
    ]
    return Heard(
        process=process,
        is_new=is_new,
        processes=fleet[0],
        leader=_leader(fleet),
        opinions={one.key: one for one in found},
        checks=tuple(
            Check(service, place, kind, reason, max(0, ago_ms) / 1000)
            for service, place, kind, reason, ago_ms, _ in checks
        ),
        checks_seen=max((row[5] for row in checks), default=None),
    )


def _leader(fleet: Row) -> Leader | None:
    _, process, epoch, lasts = fleet
    return Leader(process, epoch) if lasts else None


def _member(row: Row) -> Member:
    process, ledger, host, worker, pid, version, label, started, seen, silent, in_flight, told, lives = row
    return Member(
        process=process,
        ledger=ledger,
        host=host,
        worker=worker,
        pid=pid,
        version=version,
        label=label,
        started_at=started / 1000,
        seen_at=seen / 1000,
        silent_for_s=max(0, silent) / 1000,
        in_flight=in_flight,
        configuration=json.loads(told or "{}"),
        lives=bool(lives),
    )


def _guard(row: Row) -> MemberGuard:
    process, guard, place, phase, is_down, since, calls = row
    return MemberGuard(
        process=process,
        key=GuardKey(guard, place),
        phase=phase,
        is_down=bool(is_down),
        since=since / 1000,
        calls=calls,
    )
