"""Alerts as the store keeps them: one row from an alert's beginning to its end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from koo.storage.transaction import Row, Transaction

if TYPE_CHECKING:
    from koo.storage.store import SqlStore

COLUMNS = "fingerprint, type, component, message, started_ms, ended_ms, data"
SAVE = f"""INSERT INTO koo_episodes ({COLUMNS})
    VALUES (:fingerprint, :type, :component, :message, :started_ms, :ended_ms, :data)
    ON CONFLICT (fingerprint, started_ms) DO UPDATE SET
      type = excluded.type, message = excluded.message, ended_ms = excluded.ended_ms, data = excluded.data"""
LOAD = f"""SELECT {COLUMNS} FROM koo_episodes WHERE ended_ms IS NULL OR ended_ms >= :since_ms
    ORDER BY started_ms, fingerprint"""


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


class Episodes:
    """The episodes of all processes on one store."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store

    async def save(self, *episodes: Episode) -> None:
        """Write them; one with the same fingerprint and beginning is replaced. Raises `StoreUnavailable`."""
        rows = [_values(episode) for episode in episodes]

        def write(tx: Transaction) -> None:
            for row in rows:
                tx.run(SAVE, row)

        await self._store.run(write)

    async def load_recent(self, since: float) -> list[Episode]:
        """Those that last, or ended at or after wall time `since`, oldest first. Raises `StoreUnavailable`."""
        values = {"since_ms": _ms(since)}
        rows = await self._store.run(lambda tx: tx.rows(LOAD, values), exclusive=False)
        return [_episode(row) for row in rows]

    async def prune(self, before: float) -> None:
        """Forget those that ended before wall time `before`. Raises `StoreUnavailable`."""
        values = {"before_ms": _ms(before)}
        await self._store.run(
            lambda tx: tx.run("DELETE FROM koo_episodes WHERE ended_ms < :before_ms", values)
        )


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
