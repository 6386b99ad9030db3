"""What `koo doctor` reports about the state store: whether it can be read, and what its database may lose."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from koo.cli.check import Check
from koo.platform import Platform
from koo.storage.base import StoreUnavailable
from koo.storage.durability import Risk, risks_of_file, risks_of_server
from koo.storage.store import SqlStore

SUBJECT = "state store"
MOUNTS = Path("/proc/mounts")
KEPT = {
    True: "can be read; commits survive kill -9, but a power failure may lose the last moment",
    False: "can be read, and keeps every acknowledged commit",
}


async def state_store(platform: Platform) -> AsyncIterator[Check]:
    """One check of the store, and a line for each thing that it may lose."""
    store = platform.parts.store
    try:
        await store.signals.latest()
        risks = await _risks_of(store) if isinstance(store, SqlStore) else []
    except StoreUnavailable as error:
        advice = "explicit budgets refuse calls until it is back; see KOO_STATE_URL"
        yield Check(SUBJECT, "problem", str(error), advice)
        return
    is_file = isinstance(store, SqlStore) and store.file is not None
    yield Check(SUBJECT, "ok", KEPT[is_file] if not risks else "can be read")
    for risk in risks:
        yield Check(SUBJECT, "warning" if risk.is_serious else "note", risk.found, risk.advice)


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
