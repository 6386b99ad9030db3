"""Alerts as the store keeps them: one row from an alert's beginning to its end, for each process that sees it.

An episode belongs to the process that found it, which renews its lease for as long as it lasts: nobody else can say
that it has ended, because nobody else has that process's breakers and probes. When the lease is over, because the
process closed or died, another one may take the episode over and go on with it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from koo.storage.transaction import Row, Transaction

if TYPE_CHECKING:
    from koo.storage.store import SqlStore

LEASE_S = 30.0
"""Longer than two clocks may differ, plus some renewals that came late."""

COLUMNS = "fingerprint, type, component, message, started_ms, ended_ms, data"
THIS = "fingerprint = :fingerprint AND started_ms = :started_ms"
FREE = "ended_ms IS NULL AND lease_ends_ms <= :now_ms AND process <> :process"
SAVE = f"""INSERT INTO koo_episodes ({COLUMNS}, process, lease_ends_ms)
    VALUES (:fingerprint, :type, :component, :message, :started_ms, :ended_ms, :data, :process, :lease_ends_ms)
    ON CONFLICT (fingerprint, started_ms, process) DO UPDATE SET type = excluded.type, message = excluded.message,
      ended_ms = excluded.ended_ms, data = excluded.data, lease_ends_ms = excluded.lease_ends_ms"""
LOAD = f"""SELECT {COLUMNS} FROM koo_episodes WHERE ended_ms IS NULL OR ended_ms >= :since_ms
    ORDER BY started_ms, fingerprint"""
LOAD_FREE = f"SELECT {COLUMNS}, process FROM koo_episodes WHERE {FREE} ORDER BY started_ms, fingerprint"
MINE = """SELECT 1 FROM koo_episodes AS mine
    WHERE mine.fingerprint = :fingerprint AND mine.started_ms = :started_ms AND mine.process = :process"""
TAKE = f"""UPDATE koo_episodes SET process = :process, lease_ends_ms = :lease_ends_ms
    WHERE {THIS} AND process = :owner AND ended_ms IS NULL AND lease_ends_ms <= :now_ms AND NOT EXISTS ({MINE})
    RETURNING fingerprint"""
FORGET_DOUBLE = f"DELETE FROM koo_episodes WHERE {THIS} AND process = :owner AND EXISTS ({MINE})"
RELEASE = "UPDATE koo_episodes SET lease_ends_ms = :now_ms WHERE process = :process AND ended_ms IS NULL"
EXPIRE = "UPDATE koo_episodes SET ended_ms = :now_ms WHERE ended_ms IS NULL AND lease_ends_ms < :before_ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """An alert: `fingerprint` says which, `type` its severity; times are wall seconds, `ended_at` None: it lasts."""

    fingerprint: str
    type: str
    component: str
    message: str
    started_at: float
    ended_at: float | None = None
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Free:
    """An episode that lasts and whose `owner` is gone, as far as anybody knows."""

    episode: Episode
    owner: str


class Episodes:
    """The episodes of all processes on one store. Each method raises `StoreUnavailable`."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store

    async def save(self, *episodes: Episode) -> None:
        """Write them as this process's own, under a new lease; one with the same beginning is replaced."""
        rows = [_values(episode) for episode in episodes]
        lease_ends_ms = self._now_ms(LEASE_S)

        def write(tx: Transaction) -> None:
            for row in rows:
                tx.run(SAVE, {**row, "process": self._store.process, "lease_ends_ms": lease_ends_ms})

        await self._store.run(write)

    async def load_recent(self, since: float) -> list[Episode]:
        """Those of all processes that last, or ended at or after wall time `since`, oldest first."""
        values = {"since_ms": _ms(since)}
        rows = await self._store.run(lambda tx: tx.rows(LOAD, values), exclusive=False)
        return [_episode(row) for row in rows]

    async def load_free(self) -> list[Free]:
        """Those that last and that no living process sees, oldest first."""
        now_ms = self._now_ms()

        def read(tx: Transaction) -> list[Row]:
            return tx.rows(LOAD_FREE, {"now_ms": now_ms, "process": self._store.process})

        rows = await self._store.run(read, exclusive=False)
        return [Free(_episode(row[:-1]), row[-1]) for row in rows]

    async def take(self, free: list[Free]) -> list[Episode]:
        """Make them this process's own; gives those that nobody else took first."""
        now_ms, lease_ends_ms = self._now_ms(), self._now_ms(LEASE_S)

        def write(tx: Transaction) -> list[Episode]:
            times = {"now_ms": now_ms, "lease_ends_ms": lease_ends_ms, "process": self._store.process}
            return [one.episode for one in free if _take(tx, one, times)]

        return await self._store.run(write)

    async def release(self) -> None:
        """This process looks no longer: whoever comes next may take its episodes over at once."""
        now_ms = self._now_ms()
        await self._store.run(lambda tx: tx.run(RELEASE, {"now_ms": now_ms, "process": self._store.process}))

    async def expire(self, before: float) -> None:
        """End those that nobody has seen since wall time `before`: what they were about is not in use any more."""
        values = {"now_ms": self._now_ms(), "before_ms": _ms(before)}
        await self._store.run(lambda tx: tx.run(EXPIRE, values))

    async def prune(self, before: float) -> None:
        """Forget those that ended before wall time `before`."""
        values = {"before_ms": _ms(before)}
        await self._store.run(
            lambda tx: tx.run("DELETE FROM koo_episodes WHERE ended_ms < :before_ms", values)
        )

    def _now_ms(self, later_s: float = 0.0) -> int:
        return _ms(self._store.clock.wall() + later_s)


def _take(tx: Transaction, free: Free, times: dict[str, Any]) -> bool:
    key = {
        "fingerprint": free.episode.fingerprint,
        "started_ms": _ms(free.episode.started_at),
        "owner": free.owner,
        "process": times["process"],
    }
    taken = bool(tx.rows(TAKE, {**times, **key}))
    if not taken:
        # Opened again while the store was away, this process wrote the same episode anew.
        tx.run(FORGET_DOUBLE, key)
    return taken


def _ms(wall_s: float) -> int:
    return round(wall_s * 1000)


def _values(episode: Episode) -> dict[str, Any]:
    return {
        "fingerprint": episode.fingerprint,
        "type": episode.type,
        "component": episode.component,
        "message": episode.message,
        "started_ms": _ms(episode.started_at),
        "ended_ms": None if episode.ended_at is None else _ms(episode.ended_at),
        "data": json.dumps(episode.data, default=str),
    }


def _episode(row: Row) -> Episode:
    fingerprint, type_, component, message, started_ms, ended_ms, data = row
    return Episode(
        fingerprint=fingerprint,
        type=type_,
        component=component,
        message=message,
        started_at=started_ms / 1000,
        ended_at=None if ended_ms is None else ended_ms / 1000,
        data=json.loads(data),
    )
