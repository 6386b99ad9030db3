"""Alerts as the store keeps them: one row from an alert's beginning to its end, for each process that sees it.

An episode belongs to the process that found it, which renews its lease for as long as it lasts. No other process can
say that it has ended, because only this one has these breakers and probes. When the lease is over, because the process
closed or died, another one may take the episode over and go on with it.
"""

from __future__ import annotations

import json
from typing import Any

from koo.storage.base import Episode, OrphanedEpisode
from koo.storage.executor import Executor
from koo.storage.transaction import Row, Transaction

LEASE_S = 30.0
"""Longer than two clocks may differ, plus some renewals that came late."""

COLUMNS = "fingerprint, type, component, message, started_ms, ended_ms, data"
THIS = "fingerprint = :fingerprint AND started_ms = :started_ms"
ORPHANED = "ended_ms IS NULL AND lease_ends_ms <= :now_ms AND process <> :process"
SAVE = f"""INSERT INTO koo_episodes ({COLUMNS}, process, lease_ends_ms)
    VALUES (:fingerprint, :type, :component, :message, :started_ms, :ended_ms, :data, :process, :lease_ends_ms)
    ON CONFLICT (fingerprint, started_ms, process) DO UPDATE SET type = excluded.type, message = excluded.message,
      ended_ms = excluded.ended_ms, data = excluded.data, lease_ends_ms = excluded.lease_ends_ms"""
LOAD = f"""SELECT {COLUMNS} FROM koo_episodes WHERE ended_ms IS NULL OR ended_ms >= :since_ms
    ORDER BY started_ms, fingerprint"""
LOAD_ORPHANED = (
    f"SELECT {COLUMNS}, process FROM koo_episodes WHERE {ORPHANED} ORDER BY started_ms, fingerprint"
)
MINE = """SELECT 1 FROM koo_episodes AS mine
    WHERE mine.fingerprint = :fingerprint AND mine.started_ms = :started_ms AND mine.process = :process"""
TAKE = f"""UPDATE koo_episodes SET process = :process, lease_ends_ms = :lease_ends_ms
    WHERE {THIS} AND process = :owner AND ended_ms IS NULL AND lease_ends_ms <= :now_ms AND NOT EXISTS ({MINE})
    RETURNING fingerprint"""
FORGET_DOUBLE = f"DELETE FROM koo_episodes WHERE {THIS} AND process = :owner AND EXISTS ({MINE})"
RELEASE = "UPDATE koo_episodes SET lease_ends_ms = :now_ms WHERE process = :process AND ended_ms IS NULL"
EXPIRE = "UPDATE koo_episodes SET ended_ms = :now_ms WHERE ended_ms IS NULL AND lease_ends_ms < :before_ms"


class SqlEpisodes:
    """The episodes of all processes on one store. Each method raises `StoreUnavailable`."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def save(self, *episodes: Episode) -> None:
        """Write them as this process's own, under a new lease; one with the same beginning is replaced."""
        rows = [_values(episode) for episode in episodes]
        lease_ends_ms = self._now_ms(LEASE_S)

        def write(tx: Transaction) -> None:
            for row in rows:
                tx.run(SAVE, {**row, "process": self._executor.process, "lease_ends_ms": lease_ends_ms})

        await self._executor.run(write)

    async def load_recent(self, since: float) -> list[Episode]:
        """Those of all processes that last, or ended at or after wall time `since`, oldest first."""
        values = {"since_ms": _ms(since)}
        rows = await self._executor.run(lambda tx: tx.rows(LOAD, values), exclusive=False)
        return [_episode(row) for row in rows]

    async def load_orphaned(self) -> list[OrphanedEpisode]:
        """Those that last and that no living process renews, oldest first."""
        now_ms = self._now_ms()

        def read(tx: Transaction) -> list[Row]:
            return tx.rows(LOAD_ORPHANED, {"now_ms": now_ms, "process": self._executor.process})

        rows = await self._executor.run(read, exclusive=False)
        return [OrphanedEpisode(_episode(row[:-1]), row[-1]) for row in rows]

    async def take(self, orphaned: list[OrphanedEpisode]) -> list[Episode]:
        """Make them this process's own; returns those that no other process took first."""
        now_ms, lease_ends_ms = self._now_ms(), self._now_ms(LEASE_S)

        def write(tx: Transaction) -> list[Episode]:
            times = {"now_ms": now_ms, "lease_ends_ms": lease_ends_ms, "process": self._executor.process}
            return [one.episode for one in orphaned if _take(tx, one, times)]

        return await self._executor.run(write)

    async def release(self) -> None:
        """Let other processes take over this one's episodes at once."""
        now_ms = self._now_ms()
        await self._executor.run(
            lambda tx: tx.run(RELEASE, {"now_ms": now_ms, "process": self._executor.process})
        )

    async def expire(self, before: float) -> None:
        """End those whose lease ended before wall time `before`: no process observes their component any more."""
        values = {"now_ms": self._now_ms(), "before_ms": _ms(before)}
        await self._executor.run(lambda tx: tx.run(EXPIRE, values))

    async def prune(self, before: float) -> None:
        """Forget those that ended before wall time `before`."""
        values = {"before_ms": _ms(before)}
        await self._executor.run(
            lambda tx: tx.run("DELETE FROM koo_episodes WHERE ended_ms < :before_ms", values)
        )

    def _now_ms(self, later_s: float = 0.0) -> int:
        return _ms(self._executor.clock.wall() + later_s)


def _take(tx: Transaction, orphaned: OrphanedEpisode, times: dict[str, Any]) -> bool:
    key = {
        "fingerprint": orphaned.episode.fingerprint,
        "started_ms": _ms(orphaned.episode.started_at),
        "owner": orphaned.owner,
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
        "data": json.dumps(dict(episode.data), default=str),
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
