"""The effects of each fault on the database's state, its pool, its callers and its alerts: a table from real runs.

Each fault is applied to a real server, or to the connection to it, while eight callers write. Then the database is
checked as an operator would check it. A row shows the result with one driver.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import text

from koo import deadline
from koo.alerts.rules import find
from koo.database.database import Database
from koo.options import DatabaseOptions, RetryOptions
from koo.testing.postgres import PASSWORD, PostgresServer
from koo.testing.proxy import FaultProxy

CALLERS, CALLS = 8, 2
DEADLINE_S = 3.0
ROLE = "app"
INSERT = text("INSERT INTO notes (n) VALUES (1)")


@dataclass
class World:
    """A server, the proxy in front of it, and a database with a pool of four for eight callers."""

    server: PostgresServer
    proxy: FaultProxy
    database: Database
    name: str

    def alter(self, change: str) -> None:
        """Change the callers' role, and end its sessions."""
        self.server.sql(f"ALTER ROLE {ROLE} {change}")
        self.server.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'")


async def stop(world: World) -> None:
    await asyncio.to_thread(world.server.stop)


async def kill(world: World) -> None:
    await asyncio.to_thread(world.server.kill)


async def freeze(world: World) -> None:
    world.server.pause()


async def black_hole(world: World) -> None:
    world.proxy.black_hole()


async def reset(world: World) -> None:
    world.proxy.reset_all()


async def no_login(world: World) -> None:
    world.alter("NOLOGIN")


async def no_place(world: World) -> None:
    world.alter("CONNECTION LIMIT 0")


async def read_only(world: World) -> None:
    world.alter("SET default_transaction_read_only = on")


async def no_table(world: World) -> None:
    world.server.sql("DROP TABLE notes", world.name)


FAULTS: dict[str, Callable[[World], Awaitable[None]]] = {
    "the server is stopped": stop,
    "the server is killed": kill,
    "the server hangs": freeze,
    "traffic to the server is dropped": black_hole,
    "all connections are reset": reset,
    "the user may not log in": no_login,
    "the user's connection limit is reached": no_place,
    "the server accepts no writes": read_only,
    "a statement is wrong": no_table,
}


@asynccontextmanager
async def world(driver: Literal["psycopg", "asyncpg"], major: int) -> AsyncIterator[World]:
    with PostgresServer(major) as server:
        name = server.create_database()
        server.sql(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'")
        server.sql(f"CREATE TABLE notes (n int); GRANT ALL ON notes TO {ROLE}", name)
        async with FaultProxy(server.host, server.port) as proxy:
            tls = "sslmode" if driver == "psycopg" else "ssl"
            url = f"postgresql+{driver}://{ROLE}:{PASSWORD}@{proxy.host}:{proxy.port}/{name}?{tls}=disable"
            database = Database(
                DatabaseOptions(
                    url=url,
                    pool_size=4,
                    max_overflow=0,
                    pool_timeout_s=2.0,
                    cleanup_timeout_s=1.0,
                    probe_timeout_s=1.0,
                    retry=RetryOptions(attempts_max=2, base_s=0.05),
                )
            )
            try:
                yield World(server, proxy, database, name)
            finally:
                server.resume()
                proxy.heal()
                await database.close()


async def call(database: Database, seen: Counter[str]) -> None:
    try:
        async with deadline(DEADLINE_S), database.session_scope() as session:
            await session.execute(INSERT)
    except Exception as error:  # noqa: BLE001 - every error that callers get is counted
        seen[str(getattr(error, "kind", type(error).__name__))] += 1
    else:
        seen["ok"] += 1


async def callers(database: Database) -> str:
    seen = Counter[str]()
    for _ in range(CALLS):
        await asyncio.gather(*(call(database, seen) for _ in range(CALLERS)))
    return ", ".join(f"{number} × {kind}" for kind, number in sorted(seen.items()))


async def row(driver: Literal["psycopg", "asyncpg"], major: int, fault: str) -> str:
    """One line of the table."""
    async with world(driver, major) as one:
        await callers(one.database)
        await FAULTS[fault](one)
        got = await callers(one.database)
        health = await one.database.health_check()
        state = ", ".join([health["state"], *health["conditions"]])
        pool = health["pool_status"]
        places = f"{pool['open_connections']} open, {pool['active_connections']} in use"
        alerts = ", ".join(sorted({found.kind for found in find(health, {})})) or "none"
        return f"| {fault} | {driver} | {got} | {state} | {places} | {alerts} |"


async def table(major: int) -> list[str]:
    """The lines of the table."""
    drivers: tuple[Literal["psycopg", "asyncpg"], ...] = ("psycopg", "asyncpg")
    rows = [await row(driver, major, fault) for fault in FAULTS for driver in drivers]
    return [
        "| fault | driver | results of sixteen calls | state and conditions | pool | alerts |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
