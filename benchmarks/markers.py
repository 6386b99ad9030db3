"""The cost of a marker: a scope with one INSERT and its COMMIT, with `DB_EXACTLY_ONCE=marker` and without.

The server flushes to its disk, like one in production. It is measured locally and through a proxy that puts it 10 ms
away. Scopes of both kinds alternate, and a round reports their medians: COMMITs are short, and a disk or a
neighbouring process is busy for longer than one of them takes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Literal

from sqlalchemy import text

from benchmarks.measure import Report
from koo.database.database import Database
from koo.deadlines import Deadlines
from koo.options import DatabaseOptions
from koo.testing.postgres import Driver, PostgresServer
from koo.testing.proxy import FaultProxy

TABLE = text("CREATE TABLE IF NOT EXISTS orders (amount INTEGER)")
INSERT = text("INSERT INTO orders (amount) VALUES (1)")
AWAY_S = 0.010
Mode = Literal["off", "marker"]
MODES: tuple[Mode, ...] = ("off", "marker")


async def place_order(database: Database) -> tuple[float, float]:
    """Seconds of a scope with one INSERT, and of its COMMIT alone."""
    began = time.perf_counter()
    async with database.session_scope() as session:
        await session.execute(INSERT)
        ordered = time.perf_counter()
        await session.commit()
        committed = time.perf_counter()
    return time.perf_counter() - began, committed - ordered


@asynccontextmanager
async def databases(url: str) -> AsyncIterator[dict[Mode, Database]]:
    """A database without markers and one with them."""
    found = {
        mode: Database(DatabaseOptions(url=url, exactly_once=mode), deadlines=Deadlines()) for mode in MODES
    }
    try:
        await found["marker"].init_exactly_once()
        async with found["off"].session_scope() as session:
            await session.execute(TABLE)
        yield found
    finally:
        for database in found.values():
            await database.close()


async def marker_cost(url: str, what: str, *, times: int, rounds: int) -> Report:
    """The cost with a marker and without: the whole scope, and its COMMIT alone."""
    found = Report()
    async with databases(url) as both:
        for database in both.values():
            for _ in range(max(times // 5, 5)):
                await place_order(database)
        for _ in range(rounds):
            took = {mode: list[tuple[float, float]]() for mode in MODES}
            for number in range(times):
                # They alternate in going first. Otherwise one of them would always run right after the other, with the
                # work that the other left for the server.
                for mode in MODES if number % 2 else MODES[::-1]:
                    took[mode].append(await place_order(both[mode]))
            for part, name in enumerate(("a scope with an INSERT", "a COMMIT")):
                us = {mode: _median_us(took[mode], part) for mode in MODES}
                found.note(f"koo: {name}, {what}, us", us["off"])
                found.note(f"koo with markers: {name}, {what}, us", us["marker"])
                if name == "a COMMIT":
                    found.note(f"koo with markers / without: {name}, {what}", us["marker"] / us["off"])
    return found


def _median_us(took: list[tuple[float, float]], part: int) -> float:
    return statistics.median(one[part] for one in took) * 1e6


@contextmanager
def away(server: PostgresServer, url: str) -> Iterator[str]:
    """The same database 10 ms away; the proxy runs in a separate thread."""
    with FaultProxy(server.host, server.port) as proxy:
        proxy.delay_s = AWAY_S / 2
        yield proxy.through(url)


async def report(rounds: int = 11) -> Report:
    found = Report()
    drivers: tuple[Driver, ...] = ("psycopg", "asyncpg")
    with PostgresServer(18, fsync=True) as server:
        for driver in drivers:
            url = server.url(driver)
            found.add(await marker_cost(url, driver, times=200, rounds=rounds))
            with away(server, url) as far:
                found.add(await marker_cost(far, f"{driver}, 10 ms away", times=40, rounds=rounds))
    return found
