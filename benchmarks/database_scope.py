"""A scope with one `SELECT 1` on PostgreSQL, beside SQLAlchemy alone and with `pool_pre_ping`; and fairness."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine

from benchmarks.measure import AsyncRun, Table, compare
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


async def scope_table(url: str) -> Table:
    """One scope after another."""
    async with contenders(url) as enters:
        runs = {name: runner(enter) for name, enter in enters.items()}
        return await compare("session_scope with SELECT 1", runs, times=400, rounds=11)


async def fairness(url: str, tasks: int = 300, each: int = 10) -> dict[str, float]:
    """Many tasks on ten connections: the wait of the unlucky, and the throughput."""
    figures: dict[str, float] = {}
    engine = create_async_engine(url, pool_size=10, max_overflow=0, pool_timeout=60)
    database = Database(
        DatabaseOptions(url=url, pool_size=10, max_overflow=0, pool_timeout_s=60.0), deadlines=Deadlines()
    )
    enters: dict[str, Enter] = {
        "SQLAlchemy": async_sessionmaker(engine, expire_on_commit=False).begin,
        "koo": database.session_scope,
    }
    try:
        for name, enter in enters.items():
            waits: list[float] = []

            async def work(enter: Enter = enter, waits: list[float] = waits) -> None:
                for _ in range(each):
                    began = time.perf_counter()
                    async with enter() as session:
                        await session.execute(ONE)
                    waits.append(time.perf_counter() - began)

            began = time.perf_counter()
            await asyncio.gather(*(work() for _ in range(tasks)))
            took = time.perf_counter() - began
            cuts = statistics.quantiles(waits, n=100)
            figures[f"{name}: scopes a second, {tasks} tasks on 10 connections"] = tasks * each / took
            figures[f"{name}: wait p99 / p50"] = cuts[98] / cuts[49]
    finally:
        await database.close()
        await engine.dispose()
    return figures


async def report() -> dict[str, float]:
    """The figures that have goals, for both drivers."""
    figures: dict[str, float] = {}
    with PostgresServer(18) as server:
        for driver in ("psycopg", "asyncpg"):
            url = server.url(driver=driver)
            table = await scope_table(url)
            figures[f"koo / SQLAlchemy, {driver}"] = table.ratio("koo", "SQLAlchemy")
            figures[f"koo / SQLAlchemy with pool_pre_ping, {driver}"] = table.ratio(
                "koo", "SQLAlchemy, pool_pre_ping"
            )
        figures.update(await fairness(server.url(driver="asyncpg")))
    return figures
