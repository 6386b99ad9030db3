"""What the tests of the state store share: a clock to set, requests, bills, and a look into the tables."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from koo.clock import SYSTEM_CLOCK, Clock
from koo.options import DAY_S
from koo.storage import worker
from koo.storage.base import Allowance, Bill, BudgetView, HoldRequest
from koo.storage.memory import MemoryLedger
from koo.storage.store import SqlStore

NOON_S = 20_000 * DAY_S + DAY_S / 2
LEASE_S = 60.0
PATIENCE_S = 20.0
LONG_AFTER_S = 600.0
"""Long enough for any lease and any difference between clocks."""


class SetClock:
    """Stands still until somebody moves it. Sleeps are real, and short."""

    def __init__(self, wall_s: float = NOON_S) -> None:
        self.now = wall_s

    def monotonic(self) -> float:
        return self.now - NOON_S + 1000.0

    def wall(self) -> float:
        return self.now

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(min(delay_s, 0.005))

    @property
    def day(self) -> int:
        return int(self.now // DAY_S)


class MemoryStore:
    """The memory's ledger with the life of a store, for the rules that hold for every ledger."""

    def __init__(self, clock: Clock) -> None:
        self.ledger = MemoryLedger(clock)

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass


Store = MemoryStore | SqlStore


@dataclass
class Place:
    """Where a store lives: in memory (`url` empty), in a file, or on a server."""

    name: str
    url: str = ""

    @property
    def is_shared(self) -> bool:
        return self.url != ""

    def store(self, clock: Clock = SYSTEM_CLOCK, **options: Any) -> Store:
        return self.sql_store(clock, **options) if self.url else MemoryStore(clock)

    def sql_store(self, clock: Clock = SYSTEM_CLOCK, **options: Any) -> SqlStore:
        """The store of a place that outlives the process."""
        return SqlStore(self.url, clock=clock, **options)

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Ask the database behind the store's back."""
        if self.url.startswith("sqlite"):
            with sqlite3.connect(self.file) as connection:
                rows = connection.execute(statement).fetchall()
            connection.close()
            return rows
        with psycopg.connect(self.url.replace("+psycopg", "").replace("+asyncpg", "")) as server:
            cursor = server.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    @property
    def file(self) -> Path:
        return Path(self.url.removeprefix("sqlite:///"))

    def forbid_more_than(self, cap_usd: str) -> None:
        """Make the database itself refuse any moment in which settled + held is above the cap."""
        above = f"settled + held > {pico(cap_usd)}"
        if self.url.startswith("sqlite"):
            for act in ("INSERT", "UPDATE"):
                self.sql(
                    f"CREATE TRIGGER cap_{act} AFTER {act} ON koo_days WHEN NEW.settled + NEW.held > {pico(cap_usd)} "
                    "BEGIN SELECT RAISE(ABORT, 'above the cap'); END"
                )
        else:
            self.sql(f"ALTER TABLE koo_days ADD CONSTRAINT cap CHECK (NOT ({above}))")


def pico(usd: str | Decimal) -> int:
    return int(Decimal(usd) * 10**12)


def request(
    amount: str = "0.05",
    limit: str | None = "1.00",
    *,
    service: str = "claude",
    explicit: bool = False,
    lease_s: float = LEASE_S,
    tag: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> HoldRequest:
    return HoldRequest(
        service=service,
        model="m",
        amount_usd=Decimal(amount),
        allowance=Allowance(None if limit is None else Decimal(limit), explicit),
        lease_s=lease_s,
        tag=tag,
        metadata=metadata or {},
    )


def bill(amount: str = "0.03") -> Bill:
    return Bill(amount_usd=Decimal(amount), source="table", model="m-1", input_tokens=5, output_tokens=7)


def money(view: BudgetView) -> tuple[Decimal, Decimal]:
    """What is settled and what is held."""
    return view.spent_usd, view.held_usd


async def numbers(store: Store, service: str = "claude") -> tuple[Decimal, Decimal]:
    """What is settled and what is held, when all is written."""
    await store.ledger.flush()
    await store.ledger.refresh()
    return money(store.ledger.view(service))


def usd(settled: str, held: str = "0") -> tuple[Decimal, Decimal]:
    return Decimal(settled), Decimal(held)


def impatient(url: str, timeout_s: float, **options: Any) -> SqlStore:
    """A store whose database gives up soon, while its callers wait for that to be told."""
    store = SqlStore(url, timeout_s=timeout_s, **options)
    store.executor.start()
    store.executor.timeout_s = PATIENCE_S
    return store


def note_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between the attempts of stores that are away, as they come."""
    pauses: list[float] = []

    class Jobs(queue.SimpleQueue[Any]):
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            if timeout is not None:
                pauses.append(timeout)
            return super().get(block, timeout)

    monkeypatch.setattr(worker, "queue", SimpleNamespace(SimpleQueue=Jobs, Empty=queue.Empty))
    return pauses


def store_threads() -> list[threading.Thread]:
    """The threads of stores that still run in this process, the youngest last."""
    return [thread for thread in threading.enumerate() if thread.name == "koo state store"]


async def until(what: Callable[[], bool] | Callable[[], Awaitable[bool]], timeout_s: float = 20.0) -> None:
    """Wait for a condition that something outside brings about."""
    async with asyncio.timeout(timeout_s):
        while True:
            met = what()
            if await met if isinstance(met, Awaitable) else met:
                return
            await asyncio.sleep(0.005)
