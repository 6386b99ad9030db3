"""Shared parts of the state store's tests: a settable clock, holds, bills, and direct access to the tables."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from koo.bookings import NEWEST
from koo.clock import SYSTEM_CLOCK, Clock
from koo.options import DAY_S
from koo.policies.money import limit_to_pico
from koo.policies.purse import Hold, Refusal
from koo.storage import worker
from koo.storage.base import Bill, Entry
from koo.storage.memory import MemoryLedger
from koo.storage.store import SqlStore
from koo.testing.clock import StandingClock

NOON_S = 20_000 * DAY_S + DAY_S / 2
PATIENCE_S = 20.0
BEAT_S = 0.02
CLAUDE = "service/claude"


class SetClock(StandingClock):
    """A clock that stands still at noon until it is moved. Sleeps are real and short."""

    def __init__(self, wall_s: float = NOON_S) -> None:
        super().__init__(wall_s)

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(min(delay_s, 0.005))

    @property
    def day(self) -> int:
        return int(self.now // DAY_S)


class MemoryStore:
    """The ledger in memory with a store's interface, for tests that apply to every ledger."""

    def __init__(self, clock: Clock) -> None:
        self.ledger = MemoryLedger(clock)

    async def open(self) -> None:
        await self.ledger.refresh()

    async def close(self) -> None:
        await self.ledger.finish()


Store = MemoryStore | SqlStore


@dataclass
class Place:
    """The place of a store: memory (`url` is empty), a file, or a server."""

    name: str
    url: str = ""

    @property
    def is_shared(self) -> bool:
        return self.url != ""

    @property
    def has_own_clock(self) -> bool:
        """True if the store uses the test's clock. A server uses its own."""
        return not self.url.startswith("postgresql")

    def clock(self) -> SetClock:
        """A clock that stands still at noon; for a server, at noon of the server's current day."""
        return SetClock() if self.has_own_clock else SetClock(time.time() // DAY_S * DAY_S + DAY_S / 2)

    def store(self, clock: Clock = SYSTEM_CLOCK, limit: str | None = "1.00", **options: Any) -> Store:
        """A store with the budget of `claude`."""
        if self.url:
            return self.sql_store(clock, limit, **options)
        store = MemoryStore(clock)
        know(store, limit)
        return store

    def sql_store(self, clock: Clock = SYSTEM_CLOCK, limit: str | None = "1.00", **options: Any) -> SqlStore:
        """The store in a place that outlives the process."""
        store = SqlStore(self.url, clock=clock, **options)
        know(store, limit)
        return store

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Query the database directly, without the store."""
        if self.url.startswith("sqlite"):
            with closing(sqlite3.connect(self.file, isolation_level=None)) as connection:
                return connection.execute(statement).fetchall()
        with psycopg.connect(self.url.replace("+psycopg", "").replace("+asyncpg", "")) as server:
            cursor = server.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    @property
    def file(self) -> Path:
        return Path(self.url.removeprefix("sqlite:///"))

    def forbid_more_than(self, cap_usd: str) -> None:
        """Make the database itself reject any transaction after which more than the cap is booked."""
        if self.url.startswith("sqlite"):
            for act in ("INSERT", "UPDATE"):
                self.sql(
                    f"CREATE TRIGGER cap_{act} AFTER {act} ON koo_treasuries WHEN NEW.booked > {pico(cap_usd)} "
                    "BEGIN SELECT RAISE(ABORT, 'above the cap'); END"
                )
        else:
            self.sql(f"ALTER TABLE koo_treasuries ADD CONSTRAINT cap CHECK (booked <= {pico(cap_usd)})")

    def booked(self, budget: str = CLAUDE) -> tuple[int, int]:
        """The booked and spent amounts of all days from the treasuries, after checking that the purses agree."""
        # One statement sees one moment: between two of them a beat may be committed.
        booked, spent, granted, told = self.sql(
            f"""SELECT (SELECT sum(booked) FROM koo_treasuries WHERE budget = '{budget}'),
            (SELECT sum(spent) FROM koo_treasuries WHERE budget = '{budget}'),
            (SELECT sum(granted - back + over_granted) FROM koo_purses WHERE budget = '{budget}'),
            (SELECT sum(spent) FROM koo_purses WHERE budget = '{budget}')"""
        )[0]
        found = int(booked or 0), int(spent or 0)
        assert found == (int(granted or 0), int(told or 0))
        return found


def pico(usd: str | Decimal) -> int:
    return int(Decimal(usd) * 10**12)


class Refused(Exception):
    """The call got no hold."""

    def __init__(self, why: Refusal, short: str | None) -> None:
        super().__init__(why, short)
        self.why = why
        self.short = short


def know(store: Store, limit: str | None = "1.00", name: str = CLAUDE, *, is_default: bool = False) -> None:
    """Register a daily budget in the store's ledger."""
    pico = None if limit is None else limit_to_pico(Decimal(limit))
    store.ledger.budget(name, pico, is_default=is_default)


async def hold(
    store: Store,
    amount: str = "0.05",
    *names: str,
    is_patient: bool = False,
    within_s: float = PATIENCE_S,
) -> Hold:
    """Hold a call's worst case, as a call does. Raises `Refused`, or TimeoutError."""
    ledger = store.ledger
    budgets = tuple(ledger.purses.budgets[name] for name in names or (CLAUDE,))
    given = ledger.hold(budgets, pico(amount))
    if given is not None:
        return given
    deadline = ledger.clock.monotonic() + within_s
    answer = await ledger.wait(budgets, pico(amount), deadline, is_patient=is_patient)
    if isinstance(answer, Hold):
        return answer
    why, short = answer
    raise Refused(why, None if short is None else short.budget)


def bill(amount: str = "0.03", **words: Any) -> Bill:
    return Bill(
        amount_usd=Decimal(amount), source="table", model="m-1", input_tokens=5, output_tokens=7, **words
    )


def settle(store: Store, hold: Hold, cost: str = "0.03") -> None:
    store.ledger.settle(hold, "claude", bill(cost))


async def spend(store: Store, cost: str = "0.01", amount: str = "0.05") -> None:
    settle(store, await hold(store, amount), cost)


def seen(store: Store, name: str = CLAUDE) -> tuple[Decimal, Decimal]:
    """The spent and held amounts in this process's records."""
    view = store.ledger.view(name)
    return view.spent_usd, view.held_usd


async def numbers(store: Store, name: str = CLAUDE) -> tuple[Decimal, Decimal]:
    """The spent and held amounts, after everything was reported and read again."""
    for _ in range(2):  # for a beat in flight, and for what came after it
        await store.ledger.refresh()
    return seen(store, name)


def usd(spent: str, held: str = "0") -> tuple[Decimal, Decimal]:
    return Decimal(spent), Decimal(held)


async def entries_of(store: SqlStore, day: int) -> list[Entry]:
    """The bookings that count against the budgets of a UTC day, oldest first."""
    found = await store.entries.latest(NEWEST, {}, limit=1000)
    return [entry for entry in reversed(found) if entry.day == day]


def impatient(url: str, timeout_s: float, **options: Any) -> SqlStore:
    """A store whose database times out early, so that its callers receive that error."""
    store = SqlStore(url, timeout_s=timeout_s, **options)
    know(store)
    store.executor.start()
    store.executor.timeout_s = PATIENCE_S
    return store


def note_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the pauses between the attempts to reach an unreachable store."""
    pauses: list[float] = []

    class Jobs(queue.SimpleQueue[Any]):
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            if timeout is not None:
                pauses.append(timeout)
            return super().get(block, timeout)

    monkeypatch.setattr(worker, "queue", SimpleNamespace(SimpleQueue=Jobs, Empty=queue.Empty))
    return pauses


def store_threads() -> list[threading.Thread]:
    """The store threads that are still running in this process, the newest last."""
    return [thread for thread in threading.enumerate() if thread.name == "koo state store"]
