"""What `koo doctor` reports about the state store: whether it can be read, and what its database may lose."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from koo.cli.check import Check
from koo.cli.words import span
from koo.platform import Platform
from koo.storage.base import StoreUnavailable
from koo.storage.durability import Risk, risks_of_file, risks_of_server
from koo.storage.store import SqlStore

SUBJECT = "state store"
MOUNTS = Path("/proc/mounts")
CLOCKS_DIFFER_S = 5.0
"""Below this nothing in koo depends on the clocks (see `storage/signals.py`)."""
KEPT = {
    True: "can be read; commits survive kill -9, but a power failure may lose the last moment",
    False: "can be read, and keeps every acknowledged commit",
}


async def state_store(platform: Platform) -> AsyncIterator[Check]:
    """One check of the store, one of the clock if it differs, and a line for each thing that the store may lose."""
    store = platform.parts.store
    try:
        await store.signals.latest()
        risks = await _risks_of(store) if isinstance(store, SqlStore) else []
        ahead_s = await _ahead_s(store) if isinstance(store, SqlStore) and store.file is None else 0.0
    except StoreUnavailable as error:
        advice = "explicit budgets refuse calls until it is back; see KOO_STATE_URL"
        yield Check(SUBJECT, "problem", str(error), advice)
        return
    is_file = isinstance(store, SqlStore) and store.file is not None
    yield Check(SUBJECT, "ok", KEPT[is_file] if not risks else "can be read")
    if abs(ahead_s) > CLOCKS_DIFFER_S:
        side = "ahead of" if ahead_s > 0 else "behind"
        yield Check(
            "clock",
            "warning",
            f"it is {span(abs(ahead_s))} {side} the clock of the state store's server",
            "synchronize both: days of budgets and times of alerts come from this machine's clock",
        )
    for risk in risks:
        yield Check(SUBJECT, "warning" if risk.is_serious else "note", risk.found, risk.advice)


async def _ahead_s(store: SqlStore) -> float:
    """How far this machine's clock is ahead of the server's; 0 if the difference may be the time of the request."""
    clock = store.clock
    began_at = clock.wall()
    rows = await store.executor.run(lambda tx: tx.rows("SELECT {clock_ms}"), exclusive=False)
    theirs, ended_at = int(rows[0][0]) / 1000, clock.wall()
    return min(max(theirs, began_at), ended_at) - theirs


async def _risks_of(store: SqlStore) -> list[Risk]:
    if store.file is None:
        return await store.executor.run(risks_of_server)
    return risks_of_file(store.file, mounts())


def mounts() -> str:
    """Return the mounted file systems; empty if the system does not list them."""
    try:
        return MOUNTS.read_text()
    except OSError:
        return ""
