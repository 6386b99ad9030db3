"""A scope with one `SELECT 1` on PostgreSQL, with koo and with SQLAlchemy (also with `pool_pre_ping`); and many
scopes.
"""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

from sqlalchemy import TextClause, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine

from benchmarks.measure import AsyncRun, Report, Table, compare
from koo.database.database import Database
from koo.deadlines import Deadlines
from koo.options import DatabaseOptions
from koo.testing.postgres import PostgresServer

ONE = text("SELECT 1")
TABLE = text("CREATE TABLE orders (id INTEGER PRIMARY KEY, amount INTEGER)")
INSERT = text("INSERT INTO orders (amount) VALUES (1)")
Enter = Callable[[], AbstractAsyncContextManager[Any]]


def runner(enter: Enter) -> AsyncRun:
    """Runs a number of scopes one after another."""

    async def run(times: int) -> None:
        for _ in range(times):
            async with enter() as session:
                await session.execute(ONE)

    return run


@asynccontextmanager
async def contenders(url: str) -> AsyncIterator[dict[str, Enter]]:
    """The ways to open a session, by name."""
    engines: list[AsyncEngine] = []

    def alone(**options: Any) -> Enter:
        engine = create_async_engine(url, pool_size=10, max_overflow=20, **options)
        engines.append(engine)
        return async_sessionmaker(engine, expire_on_commit=False).begin

    database = Database(DatabaseOptions(url=url), deadlines=Deadlines())
    try:
        yield {
            "SQLAlchemy": alone(),
            "SQLAlchemy, pool_pre_ping": alone(pool_pre_ping=True),
            "koo": database.session_scope,
        }
    finally:
        await database.close()
        for engine in engines:
            await engine.dispose()


async def scope_table(url: str, rounds: int) -> Table:
    """Measure scopes one after another."""
    async with contenders(url) as enters:
        runs = {name: runner(enter) for name, enter in enters.items()}
        return await compare(runs, times=400, rounds=rounds)


@dataclass(frozen=True, slots=True)
class Rush:
    """The result of many concurrent tasks: scopes per second, each one's duration, and processor time per scope.

    `passed_by` counts for each scope the others that ended while it was running or waiting. It shows only the order in
    which scopes got a connection. The longest durations also show pauses of the machine.
    """

    a_second: float
    took_s: list[float]
    passed_by: list[int]
    cpu_us: float

    def percentile_s(self, percent: int) -> float:
        return statistics.quantiles(self.took_s, n=100)[percent - 1]

    def order(self) -> float:
        """The 99th percentile of the scopes that passed by, divided by the median."""
        percentiles = statistics.quantiles(self.passed_by, n=100)
        return percentiles[98] / percentiles[49]


async def rush(enter: Enter, statement: TextClause, *, tasks: int, each: int) -> Rush:
    """Run this many tasks, each with this many scopes one after another."""
    took_s: list[float] = []
    passed_by: list[int] = []

    async def work() -> None:
        for _ in range(each):
            began, ended = time.perf_counter(), len(took_s)
            async with enter() as session:
                await session.execute(statement)
            passed_by.append(len(took_s) - ended)
            took_s.append(time.perf_counter() - began)

    gc.collect()
    began, began_cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(work() for _ in range(tasks)))
    cpu_us = (time.process_time() - began_cpu) / len(took_s) * 1e6
    return Rush(len(took_s) / (time.perf_counter() - began), took_s, passed_by, cpu_us)


async def many_tasks(url: str, rounds: int) -> Report:
    """A thousand tasks on ten connections: the throughput, and the longest waits."""
    engine = create_async_engine(url, pool_size=10, max_overflow=0, pool_timeout=60)
    options = DatabaseOptions(url=url, pool_size=10, max_overflow=0, pool_timeout_s=60.0)
    async with beside(engine, options) as enters:
        for enter in enters.values():
            await rush(enter, ONE, tasks=100, each=1)
        found = Report()
        async for name, one in in_rounds(enters, ONE, rounds, tasks=1000, each=10):
            who = f"{name}: 1,000 tasks,"
            found.note(f"{who} scopes a second", one.a_second)
            found.note(f"{who} us of CPU a scope", one.cpu_us)
            found.note(f"{who} wait p99 / p50", one.percentile_s(99) / one.percentile_s(50))
            found.note(f"{who} wait p99 / p50 in scopes", one.order())
    add_ratio(found, "1,000 tasks, scopes a second")
    return found


async def many_writers(rounds: int) -> Report:
    """Fifty tasks that insert into one SQLite file, a row in each scope; each contender has its own file.

    All have the settings that koo makes by default, and that a fair comparison needs: a write-ahead log,
    `synchronous=NORMAL`, and a busy timeout that no insert reaches. koo and SQLAlchemy have a connection for each
    writer, so that fifty writers compete for the file and not for a pool. SQLAlchemy's default pool (5 + 10), with
    which only fifteen compete, is measured as well.
    """
    found = Report()
    with TemporaryDirectory() as folder:
        url = f"sqlite+aiosqlite:///{folder}"
        engine = engine_with_wal(f"{url}/sqlalchemy.db", pool_size=50, max_overflow=0)
        pooled = engine_with_wal(f"{url}/pooled.db")
        options = DatabaseOptions(url=f"{url}/koo.db", pool_size=50, max_overflow=0)
        async with beside(engine, options, {"SQLAlchemy, pool of 5 + 10": pooled}) as enters:
            for enter in enters.values():
                async with enter() as session:
                    await session.execute(TABLE)
            async for name, one in in_rounds(enters, INSERT, rounds, tasks=50, each=20):
                who = f"{name}: 50 writers on SQLite,"
                found.note(f"{who} inserts a second", one.a_second)
                found.note(f"{who} us of CPU an insert", one.cpu_us)
                found.note(f"{who} p99 of an insert, ms", one.percentile_s(99) * 1e3)
    add_ratio(found, "50 writers on SQLite, inserts a second")
    return found


def engine_with_wal(url: str, **options: Any) -> AsyncEngine:
    """SQLAlchemy's engine on SQLite, with the same connection settings as koo's."""
    engine = create_async_engine(url, connect_args={"timeout": 60}, **options)

    @event.listens_for(engine.sync_engine, "connect")
    def set_up(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine


@asynccontextmanager
async def beside(
    engine: AsyncEngine, options: DatabaseOptions, others: Mapping[str, AsyncEngine] = MappingProxyType({})
) -> AsyncIterator[dict[str, Enter]]:
    """The ways to open a session with SQLAlchemy's own engines and with koo."""
    engines = {"SQLAlchemy": engine, **others}
    database = Database(options, deadlines=Deadlines())
    try:
        enters: dict[str, Enter] = {
            name: async_sessionmaker(one, expire_on_commit=False).begin for name, one in engines.items()
        }
        yield {**enters, "koo": database.session_scope}
    finally:
        await database.close()
        for one in engines.values():
            await one.dispose()


async def in_rounds(
    enters: dict[str, Enter], statement: TextClause, rounds: int, *, tasks: int, each: int
) -> AsyncIterator[tuple[str, Rush]]:
    """Run each contender in each round, in random order."""
    for _ in range(rounds):
        for name in random.sample(list(enters), len(enters)):
            yield name, await rush(enters[name], statement, tasks=tasks, each=each)


def add_ratio(found: Report, what: str) -> None:
    """koo divided by SQLAlchemy, in each round."""
    pairs = zip(found.figures[f"koo: {what}"], found.figures[f"SQLAlchemy: {what}"], strict=True)
    found.figures[f"koo / SQLAlchemy: {what}"] = [koo / other for koo, other in pairs]


def microseconds(seconds: list[float]) -> list[float]:
    return [one * 1e6 for one in seconds]


async def report(rounds: int = 11) -> Report:
    """Measure both drivers one after another, then many concurrent tasks."""
    found = Report()
    with PostgresServer(18) as server:
        for driver in ("psycopg", "asyncpg"):
            table = await scope_table(server.url(driver=driver), rounds)
            found.figures[f"koo / SQLAlchemy, {driver}"] = table.ratios("koo", "SQLAlchemy")
            found.figures[f"koo / SQLAlchemy with pool_pre_ping, {driver}"] = table.ratios(
                "koo", "SQLAlchemy, pool_pre_ping"
            )
            for name in table.seconds:
                found.figures[f"{name}: a scope with {driver}, us"] = microseconds(table.seconds[name])
                found.figures[f"{name}: a scope with {driver}, us of CPU"] = microseconds(table.cpu_s[name])
        found.add(await many_tasks(server.url(driver="asyncpg"), max(rounds // 2, 1)))
    found.add(await many_writers(max(rounds // 2, 1)))
    return found
