"""A scope with one `SELECT 1` on PostgreSQL, beside SQLAlchemy alone and with `pool_pre_ping`; and fairness."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine

from benchmarks.measure import AsyncRun, Report, Table, compare
from koo.database.database import Database
from koo.deadlines import Deadlines
from koo.options import DatabaseOptions
from koo.testing.postgres import PostgresServer

ONE = text("SELECT 1")
Enter = Callable[[], AbstractAsyncContextManager[Any]]


def runner(enter: Enter) -> AsyncRun:
    """So many scopes, one after another."""

    async def run(times: int) -> None:
        for _ in range(times):
            async with enter() as session:
                await session.execute(ONE)

    return run


@asynccontextmanager
async def contenders(url: str) -> AsyncIterator[dict[str, Enter]]:
    """The ways into a session, by name."""
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
    """One scope after another."""
    async with contenders(url) as enters:
        runs = {name: runner(enter) for name, enter in enters.items()}
        return await compare(runs, times=400, rounds=rounds)


async def fairness(url: str, rounds: int, tasks: int = 300, each: int = 10) -> Report:
    """Many tasks on ten connections: the wait of the unlucky, and the throughput."""
    found = Report()
    engine = create_async_engine(url, pool_size=10, max_overflow=0, pool_timeout=60)
    database = Database(
        DatabaseOptions(url=url, pool_size=10, max_overflow=0, pool_timeout_s=60.0), deadlines=Deadlines()
    )
    enters: dict[str, Enter] = {
        "SQLAlchemy": async_sessionmaker(engine, expire_on_commit=False).begin,
        "koo": database.session_scope,
    }
    try:
        for _ in range(rounds):
            for name in random.sample(list(enters), len(enters)):
                a_second, unlucky = await crowd(enters[name], tasks, each)
                found.figures.setdefault(f"{name}: scopes a second", []).append(a_second)
                found.figures.setdefault(f"{name}: wait p99 / p50", []).append(unlucky)
    finally:
        await database.close()
        await engine.dispose()
    return found


async def crowd(enter: Enter, tasks: int, each: int) -> tuple[float, float]:
    """Scopes a second, and the wait's p99 / p50."""
    waits: list[float] = []

    async def work() -> None:
        for _ in range(each):
            began = time.perf_counter()
            async with enter() as session:
                await session.execute(ONE)
            waits.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(tasks)))
    took = time.perf_counter() - began
    cuts = statistics.quantiles(waits, n=100)
    return tasks * each / took, cuts[98] / cuts[49]


async def report(rounds: int = 11) -> Report:
    """Both drivers one after another, then the crowd."""
    found = Report()
    with PostgresServer(18) as server:
        for driver in ("psycopg", "asyncpg"):
            table = await scope_table(server.url(driver=driver), rounds)
            found.figures[f"koo / SQLAlchemy, {driver}"] = table.ratios("koo", "SQLAlchemy")
            found.figures[f"koo / SQLAlchemy with pool_pre_ping, {driver}"] = table.ratios(
                "koo", "SQLAlchemy, pool_pre_ping"
            )
        found.add(await fairness(server.url(driver="asyncpg"), max(rounds // 3, 1)))
    return found
