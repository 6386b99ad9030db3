"""Alert episodes in the store: one row per episode, and one *sighting* for each process that sees it.

A process renews the lease of its sighting for as long as it sees the episode. When the process no longer sees the
episode, it deletes its sighting, and the last process to do so ends the episode. A sighting with an expired lease
belongs to a process that closed or died, and does not keep the episode open. An episode that has only such sightings is
*orphaned*. The next process that observes its component takes it over.

Notices are written in the transaction that decides on them. A process claims the notification in the episode's row, so
only one of several processes writes the notice. If a process dies, either both the claim and the notice are committed
or neither is.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from koo.episodes import Acknowledgement, Episode, Phase, Place, notice_of
from koo.storage.notices import put_in
from koo.storage.transaction import Row, Transaction, Transactions

LEASE_S = 30.0
"""The lease is longer than the difference between two clocks, plus some late renewals."""

ROW = "id, fingerprint, type, component, message, data, started_ms, fired_ms, notified_ms, ended_ms, acknowledged"
SEEN = "EXISTS (SELECT 1 FROM koo_sightings s WHERE s.episode = e.id AND {})"
PHASE = f"""CASE WHEN ended_ms IS NOT NULL THEN 'resolved' WHEN fired_ms IS NULL THEN 'pending'
    WHEN {SEEN.format("s.phase = 'firing'")} THEN 'firing' ELSE 'recovering' END"""
# The conflict may be on the id, or on the partial unique index that allows one open episode per fingerprint. The index
# makes the processes share: of two that begin the same alert at the same moment, the second one's INSERT waits for the
# first one's COMMIT and then does nothing.
ADD = f"""INSERT INTO koo_episodes ({ROW})
    VALUES (:id, :fingerprint, :type, :component, :message, :data, :started_ms, :fired_ms, :notified_ms, :ended_ms, '')
    ON CONFLICT DO NOTHING"""
LASTING = """SELECT id, started_ms, fired_ms, acknowledged FROM koo_episodes
    WHERE fingerprint = :fingerprint AND ended_ms IS NULL"""
GO_ON = """UPDATE koo_episodes SET type = :type, message = :message, data = :data,
    fired_ms = coalesce(fired_ms, :fired_ms) WHERE id = :id"""
SEE = """INSERT INTO koo_sightings (episode, process, phase, lease_ends_ms)
    VALUES (:id, :process, :phase, :lease_ends_ms) ON CONFLICT (episode, process)
    DO UPDATE SET phase = excluded.phase, lease_ends_ms = excluded.lease_ends_ms"""
# The claim. Of several processes that run this, the first one gets a row back; the others wait for its COMMIT, find
# `notified_ms` set, and get none. Read-then-write would let two of them notify people of the same alert.
NOTIFY = """UPDATE koo_episodes SET notified_ms = :notified_ms WHERE id = :id AND notified_ms IS NULL
    RETURNING notified_ms"""
NOTIFIED = "SELECT notified_ms FROM koo_episodes WHERE id = :id"
LOCK = f"""SELECT {ROW}, CASE WHEN ended_ms IS NULL THEN 'firing' ELSE 'resolved' END
    FROM koo_episodes WHERE id = :id {{for_update}}"""
FORGET_MINE = "DELETE FROM koo_sightings WHERE episode = :id AND process = :process"
FORGET_ALL = "DELETE FROM koo_sightings WHERE episode = :id"
SEEN_BY_OTHERS = (
    "SELECT 1 FROM koo_sightings WHERE episode = :id AND process <> :process AND lease_ends_ms > :now_ms"
)
END = "UPDATE koo_episodes SET ended_ms = :ended_ms, message = :message WHERE id = :id"
FORGET = "DELETE FROM koo_episodes WHERE id = :id"
ALIVE = SEEN.format("(s.process = :process OR s.lease_ends_ms > :now_ms)")
ORPHANED = f"""SELECT {ROW}, {PHASE} FROM koo_episodes e WHERE ended_ms IS NULL AND NOT {ALIVE}
    ORDER BY started_ms, id"""
RELEASE = "UPDATE koo_sightings SET lease_ends_ms = :now_ms WHERE process = :process"
ACKNOWLEDGE = "UPDATE koo_episodes SET acknowledged = :acknowledged WHERE id = :id AND ended_ms IS NULL"
ONE_LASTING = f"SELECT {ROW}, {PHASE} FROM koo_episodes e WHERE id = :id AND ended_ms IS NULL"
HISTORY = f"""SELECT {ROW}, {PHASE} FROM koo_episodes e
    WHERE fired_ms IS NOT NULL AND started_ms <= :until_ms AND (ended_ms IS NULL OR ended_ms >= :since_ms)
      AND (started_ms < :after_ms OR (started_ms = :after_ms AND id < :after_id))
    ORDER BY started_ms DESC, id DESC LIMIT :most"""
UNSEEN = f"""SELECT {ROW}, {PHASE} FROM koo_episodes e WHERE ended_ms IS NULL
    AND NOT {SEEN.format("s.lease_ends_ms >= :before_ms")} ORDER BY fingerprint"""
PRUNE = "DELETE FROM koo_episodes WHERE ended_ms < :before_ms"
ALWAYS_MS = 1 << 62


class SqlEpisodes:
    """The episodes of all processes on one store; see `koo.episodes.Episodes`."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    async def keep(self, *episodes: Episode, said: Collection[str] = ()) -> list[Episode]:
        """Write what this process sees, under a new lease; returns the episodes as stored, in the same order."""
        values = self._values(lease_ends_ms=self._now_ms(LEASE_S))

        def write(tx: Transaction) -> list[Episode]:
            # Every process locks the rows in the same order. In different orders two processes could each wait for a
            # row that the other has locked, and the database would abort one of them.
            kept = {one.id: _keep(tx, one, values, said) for one in sorted(episodes, key=_order)}
            return [kept[one.id] for one in episodes]

        return await self._transactions.run(write)

    async def leave(self, *episodes: Episode, said: Collection[str] = ()) -> None:
        """Record that this process no longer sees these episodes, and end those that no other live process sees."""
        values = self._values()

        def write(tx: Transaction) -> None:
            for one in sorted(episodes, key=_order):
                _leave(tx, one, values, said)

        await self._transactions.run(write)

    async def orphaned(self) -> list[Episode]:
        """Open episodes that no live process sees, oldest first."""
        values = self._values()
        rows = await self._transactions.run(lambda tx: tx.rows(ORPHANED, values), exclusive=False)
        return [_episode(row) for row in rows]

    async def take(self, *episodes: Episode) -> list[Episode]:
        """Take over orphaned episodes; returns those that no other process took first."""
        values = self._values(lease_ends_ms=self._now_ms(LEASE_S))

        def write(tx: Transaction) -> list[Episode]:
            return [one for one in sorted(episodes, key=_order) if _take(tx, one, values)]

        return await self._transactions.run(write)

    async def release(self) -> None:
        """Let other processes take over immediately what this one sees."""
        values = self._values()
        await self._transactions.run(lambda tx: tx.run(RELEASE, values))

    async def acknowledge(self, episode_id: str, acknowledged: Acknowledgement | None) -> Episode | None:
        """Set or clear an open episode's acknowledgement; returns None if it is not open."""
        values = {"id": episode_id, "acknowledged": _said(acknowledged)}

        def write(tx: Transaction) -> list[Row]:
            tx.run(ACKNOWLEDGE, values)
            return tx.rows(ONE_LASTING, {"id": episode_id})

        rows = await self._transactions.run(write)
        return _episode(rows[0]) if rows else None

    async def history(
        self, since: float, until: float, *, limit: int, after: Place | None = None
    ) -> list[Episode]:
        """Episodes that fired and were open at some time from `since` to `until`, the newest start first."""
        values = {"since_ms": _ms(since), "until_ms": _ms(until), "most": limit}
        values |= {"after_ms": ALWAYS_MS if after is None else _ms(after.started_at)}
        place = {**values, "after_id": "" if after is None else after.id}
        rows = await self._transactions.run(lambda tx: tx.rows(HISTORY, place), exclusive=False)
        return [_episode(row) for row in rows]

    async def expire(self, before: float) -> None:
        """End episodes that no process has seen since wall time `before`, because nothing observes their component."""
        values = self._values(before_ms=_ms(before))
        now = self._transactions.clock.wall()

        def write(tx: Transaction) -> None:
            for row in tx.rows(UNSEEN, values):
                _end(tx, _episode(row), now)

        await self._transactions.run(write)

    async def prune(self, before: float) -> None:
        """Delete episodes that ended before wall time `before`."""
        values = {"before_ms": _ms(before)}
        await self._transactions.run(lambda tx: tx.run(PRUNE, values))

    def _values(self, **more: int) -> dict[str, Any]:
        return {"process": self._transactions.process, "now_ms": self._now_ms(), **more}

    def _now_ms(self, later_s: float = 0.0) -> int:
        return _ms(self._transactions.clock.wall() + later_s)


# ── in a transaction ──────────────────────────────────────────────────────────────────────────────────────────────


def _keep(tx: Transaction, seen: Episode, values: dict[str, Any], said: Collection[str]) -> Episode:
    is_said = notice_of("firing", seen).key in said
    lasting = _lasting(tx, seen)
    if lasting is None:
        # The id exists, but no episode with this fingerprint is open: other processes ended this one while this
        # process was stopped or cut off from the store. It is returned as resolved. Adding it again would open a
        # second episode, and people would be notified of an alert that is over.
        return _episode(tx.rows(LOCK, {"id": seen.id})[0])
    # The stored episode wins over what this process saw: the first one's id, start and acknowledgement are the shared
    # ones, whichever process began it. Otherwise one outage would have as many alerts as there are processes.
    known = replace(seen, id=lasting[0], started_at=lasting[1] / 1000, acknowledged=_acknowledged(lasting[3]))
    fired_at = known.fired_at if lasting[2] is None else lasting[2] / 1000
    known = replace(known, fired_at=_not_before(fired_at, known.started_at))
    tx.run(GO_ON, _row(known))
    tx.run(SEE, {**values, "id": known.id, "phase": known.phase})
    return _notify(tx, known, is_said)


def _lasting(tx: Transaction, seen: Episode) -> Row | None:
    """Return the open episode with this fingerprint. If there is none and `seen` has a new id, `seen` becomes it."""
    tx.run(ADD, _row(replace(seen, notified_at=None)))
    rows = tx.rows(LASTING, {"fingerprint": seen.fingerprint})
    return rows[0] if rows else None


def _notify(tx: Transaction, known: Episode, is_said: bool) -> Episode:
    """Claim the notification, once for all processes; returns the episode with the time of the first claim."""
    if known.notified_at is not None:
        claimed = tx.rows(NOTIFY, {"id": known.id, "notified_ms": _ms(known.notified_at)})
        if claimed:
            # The claim and the notice are in one transaction. In two, a process that is killed between them would
            # leave an alert that counts as notified and that no person ever receives. A notice that this process
            # delivered itself while the store was unreachable is not written again.
            if not is_said:
                put_in(tx, [notice_of("firing", known)], _ms(known.notified_at))
            return known
    notified_ms = tx.rows(NOTIFIED, {"id": known.id})[0][0]
    return replace(known, notified_at=None if notified_ms is None else notified_ms / 1000)


def _leave(tx: Transaction, left: Episode, values: dict[str, Any], said: Collection[str]) -> None:
    ended_at = left.ended_at if left.ended_at is not None else values["now_ms"] / 1000
    # The episode's row is locked before the sightings are counted. Without the lock, the last two processes could
    # leave at the same moment, each still find the other's sighting, and neither would end the episode.
    rows = tx.rows(LOCK, {"id": left.id})
    if not rows:
        _write_down(tx, left, ended_at, said)
        return
    known, place = _episode(rows[0]), {**values, "id": left.id}
    tx.run(FORGET_MINE, place)
    if known.ended_at is not None:
        return
    # If the store was unreachable, it does not know yet that the episode fired, or that people must be notified. Both
    # are written now, because a resolved notice without its firing notice would make no sense to its reader.
    known = replace(
        known, message=left.message, fired_at=_not_before(known.fired_at or left.fired_at, known.started_at)
    )
    tx.run(GO_ON, _row(known))
    known = _notify(
        tx,
        replace(known, notified_at=known.notified_at or left.notified_at),
        notice_of("firing", left).key in said,
    )
    if not tx.rows(SEEN_BY_OTHERS, place):
        _end(tx, known, ended_at, is_said=notice_of("resolved", left).key in said)


def _end(tx: Transaction, episode: Episode, now: float, *, is_said: bool = False) -> None:
    tx.run(FORGET_ALL, {"id": episode.id})
    # An episode that never fired was not an alert, so it leaves nothing in the history.
    if episode.fired_at is None:
        tx.run(FORGET, {"id": episode.id})
        return
    ended = replace(episode, ended_at=episode.end_at(now), phase="resolved")
    tx.run(END, _row(ended))
    if ended.notified_at is not None and not is_said:
        put_in(tx, [notice_of("resolved", ended)], _ms(now))


def _write_down(tx: Transaction, left: Episode, ended_at: float, said: Collection[str]) -> None:
    """Record an episode that began and ended while the store was unreachable."""
    if left.fired_at is None:
        return
    ended = replace(left, ended_at=left.end_at(ended_at), phase="resolved")
    tx.run(ADD, _row(ended))
    if ended.notified_at is not None:
        owed = [
            one for one in (notice_of("firing", left), notice_of("resolved", ended)) if one.key not in said
        ]
        put_in(tx, owed, _ms(ended_at))


def _take(tx: Transaction, orphan: Episode, values: dict[str, Any]) -> bool:
    place = {**values, "id": orphan.id, "phase": orphan.phase}
    # The lock makes the second of two processes that found the same orphan wait, and then see the first one's sighting.
    rows = tx.rows(LOCK, place)
    if not rows or _episode(rows[0]).ended_at is not None or tx.rows(SEEN_BY_OTHERS, place):
        return False
    tx.run(FORGET_ALL, place)
    tx.run(SEE, place)
    return True


# ── rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _not_before(fired_at: float | None, started_at: float) -> float | None:
    # A process that was cut off may have seen its own episode fire before the stored one started.
    return None if fired_at is None else max(fired_at, started_at)


def _order(episode: Episode) -> str:
    return episode.fingerprint


def _ms(wall_s: float) -> int:
    return round(wall_s * 1000)


def _ms_or_none(wall_s: float | None) -> int | None:
    return None if wall_s is None else _ms(wall_s)


def _row(episode: Episode) -> dict[str, Any]:
    return {
        "id": episode.id,
        "fingerprint": episode.fingerprint,
        "type": episode.type,
        "component": episode.component,
        "message": episode.message,
        "data": json.dumps(dict(episode.data), default=str),
        "started_ms": _ms(episode.started_at),
        "fired_ms": _ms_or_none(episode.fired_at),
        "notified_ms": _ms_or_none(episode.notified_at),
        "ended_ms": _ms_or_none(episode.ended_at),
    }


def _episode(row: Row) -> Episode:
    (
        id_,
        fingerprint,
        type_,
        component,
        message,
        data,
        started,
        fired,
        notified,
        ended,
        acknowledged,
        phase,
    ) = row
    return Episode(
        id=id_,
        fingerprint=fingerprint,
        type=type_,
        component=component,
        message=message,
        started_at=started / 1000,
        phase=_phase(phase),
        fired_at=_s(fired),
        notified_at=_s(notified),
        ended_at=_s(ended),
        data=json.loads(data),
        acknowledged=_acknowledged(acknowledged),
    )


def _s(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000


def _phase(word: Phase) -> Phase:
    return word


def _said(acknowledged: Acknowledgement | None) -> str:
    """An acknowledgement as JSON. It is one column, because no query searches in it."""
    if acknowledged is None:
        return ""
    words = {"by": acknowledged.by, "at": acknowledged.at, "until": acknowledged.until}
    return json.dumps({**words, "note": acknowledged.note})


def _acknowledged(text: str) -> Acknowledgement | None:
    return Acknowledgement(**json.loads(text)) if text else None
