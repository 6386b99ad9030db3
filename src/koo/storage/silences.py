"""Silences in the store. An ended silence is kept as long as an ended episode."""

from __future__ import annotations

from koo.episodes import Silence
from koo.storage.transaction import Row, Transactions

ROW = "id, kind, component, made_ms, ends_ms, made_by, reason"
ADD = f"""INSERT INTO koo_silences ({ROW}) VALUES (:id, :kind, :component, :made_ms, :ends_ms, :made_by, :reason)
    ON CONFLICT (id) DO NOTHING"""
END = f"UPDATE koo_silences SET ends_ms = :at_ms WHERE id = :id AND ends_ms > :at_ms RETURNING {ROW}"
LASTING = f"SELECT {ROW} FROM koo_silences WHERE ends_ms > :now_ms ORDER BY ends_ms, id"
PRUNE = "DELETE FROM koo_silences WHERE ends_ms < :before_ms"


class SqlSilences:
    """The silences of all processes on one store; see `koo.episodes.Silences`."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    async def add(self, silence: Silence) -> None:
        """Add a silence."""
        values = {
            "id": silence.id,
            "kind": silence.kind,
            "component": silence.component,
            "made_ms": _ms(silence.made_at),
            "ends_ms": _ms(silence.ends_at),
            "made_by": silence.by,
            "reason": silence.reason,
        }
        await self._transactions.run(lambda tx: tx.run(ADD, values))

    async def end(self, silence_id: str, at: float) -> Silence | None:
        """End a silence early, at wall time `at`; returns None if no such silence is in force."""
        rows = await self._transactions.run(lambda tx: tx.rows(END, {"id": silence_id, "at_ms": _ms(at)}))
        return _silence(rows[0]) if rows else None

    async def lasting(self, now: float) -> list[Silence]:
        """The silences in force at wall time `now`, the next to end first."""
        values = {"now_ms": _ms(now)}
        rows = await self._transactions.run(lambda tx: tx.rows(LASTING, values), exclusive=False)
        return [_silence(row) for row in rows]

    async def prune(self, before: float) -> None:
        """Delete the silences that ended before wall time `before`."""
        await self._transactions.run(lambda tx: tx.run(PRUNE, {"before_ms": _ms(before)}))


def _ms(wall_s: float) -> int:
    return round(wall_s * 1000)


def _silence(row: Row) -> Silence:
    id_, kind, component, made_ms, ends_ms, by, reason = row
    return Silence(
        id=id_,
        kind=kind,
        component=component,
        made_at=made_ms / 1000,
        ends_at=ends_ms / 1000,
        by=by,
        reason=reason,
    )
