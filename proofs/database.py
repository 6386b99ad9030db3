"""The database in real deployments, with Debian's programs: `python -m proofs.database`.

* PgBouncer in transaction mode: forty tasks write and read through five server connections; the pooler runs out of
  connections; it is killed and restarted. Each acknowledged row exists exactly once, and each other row was reported as
  unknown.
* A failover by address: an address that pointed to the primary now points to the promoted standby. The old primary is
  dead, or continues and refuses writes.
* A restart of four seconds under two hundred waiting tasks: how long the outage lasts, and how few connections are
  opened at the same time. SQLAlchemy alone, with the same pool, is the control.

* Nine faults, each with eight callers: their effects on state, pool, callers and alerts (`database_faults.py`).

Everything runs with both drivers. Each task records what was acknowledged; the server's table is the judge.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from koo.database.database import Database
from koo.errors import CommitOutcomeUnknown
from koo.options import DatabaseOptions, RetryOptions
from koo.testing.postgres import PostgresServer
from koo.testing.proxy import FaultProxy
from proofs.database_faults import CALLERS, DEADLINE_S, table
from proofs.figure import Row, bars_svg
from proofs.pooler import MAJOR, PgBouncer, check_programs
from proofs.running import PAGES, ProofFailed, write_page
from proofs.standby import Standby

Driver = Literal["psycopg", "asyncpg"]
DRIVERS: tuple[Driver, ...] = get_args(Driver)

WRITERS, WRITES = 40, 25
WAITING = 200
POOL = {"pool_size": 10, "max_overflow": 20}
DOWN_S = 4.0
PROBE_S = 5.0
STEP_S = 0.1
SHOWN_S = 14.0
OUTAGE_S_MAX = 3.0
"""Counted from the server's return. A probe runs each second, and two successes in a row begin the test of recovery."""
INSERT = text("INSERT INTO notes (n) VALUES (:n)")


@dataclass
class Result:
    """The result of one trial. `found`: what does not hold; `advice`: how to avoid the errors that callers saw."""

    driver: str
    what: str
    saw: str
    found: list[str] = field(default_factory=list)
    advice: str = ""

    def line(self) -> str:
        verdict = "; ".join(self.found) or ": ".join(["holds", *filter(None, [self.advice])])
        return f"| {self.driver} | {self.what} | {self.saw} | {verdict} |"


@dataclass
class Writers:
    """The results that tasks received for the rows that they wrote."""

    acknowledged: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)
    errors: Counter[str] = field(default_factory=Counter)

    async def write(self, database: Database, n: int) -> bool:
        async def insert(session: AsyncSession) -> None:
            await session.execute(text("SELECT count(*) FROM notes WHERE n = :n"), {"n": n})
            await session.execute(INSERT, {"n": n})

        try:
            await database.transaction(insert)
        except CommitOutcomeUnknown:
            self.unknown.add(n)
            self.errors["commit_unknown"] += 1
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller got an error
            self.errors[str(getattr(error, "kind", type(error).__name__))] += 1
        else:
            self.acknowledged.add(n)
            return True
        return False

    def judge(self, server: PostgresServer, name: str) -> list[str]:
        rows = [int(n) for n in server.sql("SELECT n FROM notes", name).split()]
        found = []
        if len(rows) != len(set(rows)):
            found.append(f"{len(rows) - len(set(rows))} rows exist twice")
        if lost := self.acknowledged - set(rows):
            found.append(f"{len(lost)} acknowledged rows are missing")
        if more := set(rows) - self.acknowledged - self.unknown:
            found.append(f"{len(more)} rows exist although their callers got an error")
        return found

    def saw(self) -> str:
        errors = ", ".join(f"{number} × {kind}" for kind, number in sorted(self.errors.items())) or "no error"
        return f"{len(self.acknowledged)} acknowledged, {errors}"


def fresh(server: PostgresServer) -> str:
    """Create a database with an empty table; returns its name."""
    name = server.create_database()
    # The table has no key, so that a row written twice shows.
    server.sql("CREATE TABLE notes (n int)", name)
    return name


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110 - it checks another process
        await asyncio.sleep(0.005)


def opened(url: str, **changes: object) -> Database:
    options: dict[str, object] = {**POOL, "probe_interval_s": PROBE_S, **changes}
    return Database(DatabaseOptions(url=url, **options))  # type: ignore[arg-type]


# ── behind PgBouncer ──────────────────────────────────────────────────────────────────────────────────────────────────


async def all_write(database: Database, writers: Writers) -> None:
    async def task(number: int) -> None:
        for turn in range(WRITES):
            await writers.write(database, number * WRITES + turn)

    await asyncio.gather(*(task(number) for number in range(WRITERS)))


async def in_transaction_mode(driver: Driver, server: PostgresServer, *, prepared: bool) -> Result:
    name, writers = fresh(server), Writers()
    with PgBouncer(server) as pooler:
        database = opened(pooler.url(driver, name), prepared_statements=prepared)
        await all_write(database, writers)
        await database.close()
    said = "prepared statements not disabled" if prepared else "DATABASE_PREPARED_STATEMENTS=false"
    result = Result(driver, f"transaction mode, {said}", writers.saw(), writers.judge(server, name))
    if writers.errors and not prepared:
        result.found.append("callers saw errors")
    elif writers.errors:
        result.advice = "nothing is lost, but such a pooler needs DATABASE_PREPARED_STATEMENTS=false"
    return result


async def without_a_place(driver: Driver, server: PostgresServer) -> Result:
    """The pooler accepts ten clients, and two pools want ten connections each."""
    name, writers = fresh(server), Writers()
    with PgBouncer(server, clients_max=10) as pooler:
        url = pooler.url(driver, name)
        pools = [opened(url, pool_size=10, max_overflow=0, prepared_statements=False) for _ in range(2)]

        async def task(number: int) -> None:
            await writers.write(pools[number % 2], number)

        await asyncio.gather(*(task(number) for number in range(WRITERS)))
        says = [str(pool.get_health()["reason"]) for pool in pools]
        for pool in pools:
            await pool.close()
    result = Result(driver, "the pooler has no free connections", writers.saw(), writers.judge(server, name))
    if strange := set(writers.errors) - {"overloaded", "saturated", "circuit_open"}:
        result.found.append(f"reported as {', '.join(sorted(strange))} ({says})")
    return result


async def pooler_killed(driver: Driver, server: PostgresServer) -> Result:
    name, writers = fresh(server), Writers()
    with PgBouncer(server) as pooler:
        patient = RetryOptions(attempts_max=8, base_s=0.1, cap_s=1.0)
        database = opened(pooler.url(driver, name), prepared_statements=False, retry=patient)
        working = asyncio.create_task(all_write(database, writers))
        await until(lambda: len(writers.acknowledged) >= WRITERS * WRITES // 3)
        await asyncio.to_thread(pooler.kill)
        await asyncio.to_thread(pooler.start)
        await working
        await database.close()
    return Result(driver, "the pooler is killed and restarted", writers.saw(), writers.judge(server, name))


# ── a failover by address ─────────────────────────────────────────────────────────────────────────────────────────────


async def failover(driver: Driver, *, old_lives: bool) -> Result:
    """Measures the seconds from the move of the address to the first row on the new primary."""
    writers = Writers()
    with PostgresServer(MAJOR, settings={"wal_level": "replica", "max_wal_senders": 4}) as old:
        name = fresh(old)
        with Standby(old) as new:
            async with FaultProxy(old.host, old.port) as address:
                url = old.url(driver, name).replace(f":{old.port}/", f":{address.port}/")
                database = opened(url + _without_tls(driver))
                took_s = await _move(database, writers, old, new, address, old_lives=old_lives)
                await database.close()
            found = writers.judge(new, name)
    what = "continues and refuses writes" if old_lives else "is dead"
    saw = f"writes again after {took_s:.1f} s; {writers.saw()}"
    if took_s > PROBE_S + OUTAGE_S_MAX:
        found.append(f"longer than a probe's interval ({PROBE_S:g} s) and {OUTAGE_S_MAX:g} s")
    return Result(driver, f"failover by address, the old primary {what}", saw, found)


async def _move(
    database: Database,
    writers: Writers,
    old: PostgresServer,
    new: Standby,
    address: FaultProxy,
    *,
    old_lives: bool,
) -> float:
    numbers = iter(range(1_000_000))

    async def write_until(enough: Callable[[], bool]) -> None:
        while not enough():
            if not await writers.write(database, next(numbers)):
                await asyncio.sleep(0.05)

    await write_until(lambda: len(writers.acknowledged) >= 50)
    position = old.sql("SELECT pg_current_wal_lsn()")
    await until(lambda: new.sql(f"SELECT pg_last_wal_replay_lsn() >= '{position}'") == "t")
    if old_lives:
        old.sql("ALTER SYSTEM SET default_transaction_read_only = on")
        old.sql("SELECT pg_reload_conf()")
    else:
        await asyncio.to_thread(old.kill)
    await asyncio.to_thread(new.promote)
    address.target = (new.host, new.port)
    moved_at, before = time.monotonic(), len(writers.acknowledged)
    await asyncio.wait_for(write_until(lambda: len(writers.acknowledged) > before), 60.0)
    return time.monotonic() - moved_at


def _without_tls(driver: Driver) -> str:
    return "?sslmode=disable" if driver == "psycopg" else "?ssl=disable"


# ── a restart under waiting tasks ─────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Restart:
    """Times in seconds since the server stopped: its return, each new connection, and each success of a task."""

    back_s: float
    connects: list[float]
    answers: list[float]

    @property
    def outage_s(self) -> float:
        return min(at for at in self.answers if at > self.back_s) - self.back_s

    def bars(self) -> list[int]:
        counted = Counter(int(at / STEP_S) for at in self.connects if 0 <= at < SHOWN_S)
        return [counted[step] for step in range(int(SHOWN_S / STEP_S))]


async def restart(ask: Callable[[], Awaitable[None]], server: PostgresServer, proxy: FaultProxy) -> Restart:
    """Two hundred tasks query all the time; the server stops for four seconds."""
    answers, connects, ending = list[float](), list[float](), asyncio.Event()

    async def task() -> None:
        while not ending.is_set():
            try:
                await ask()
            except Exception:  # noqa: BLE001 - the server is down
                await asyncio.sleep(0.2)
            else:
                answers.append(time.monotonic())
                await asyncio.sleep(0.05)

    async def watch() -> None:
        seen = proxy.connections
        while True:
            connects.extend([time.monotonic()] * (proxy.connections - seen))
            seen = proxy.connections
            await asyncio.sleep(0.01)

    watching = asyncio.create_task(watch())
    tasks = [asyncio.create_task(task()) for _ in range(WAITING)]
    await until(lambda: len(answers) >= 2 * WAITING)
    stopped_at = time.monotonic()
    await asyncio.to_thread(server.stop)
    await asyncio.sleep(DOWN_S)
    await asyncio.to_thread(server.start)
    back_at = time.monotonic()
    await asyncio.sleep(max(0.0, stopped_at + SHOWN_S - time.monotonic()))
    ending.set()
    await asyncio.gather(*tasks)
    watching.cancel()
    return Restart(
        back_at - stopped_at, [at - stopped_at for at in connects], [at - stopped_at for at in answers]
    )


async def koo_restarted(driver: Driver, server: PostgresServer) -> Restart:
    async with FaultProxy(server.host, server.port) as proxy:
        url = server.url(driver).replace(f":{server.port}/", f":{proxy.port}/")
        database = opened(url + _without_tls(driver))

        async def ask() -> None:
            async with database.session_scope() as session:
                await session.execute(text("SELECT 1"))

        seen = await restart(ask, server, proxy)
        await database.close()
        return seen


async def sqlalchemy_restarted(driver: Driver, server: PostgresServer) -> Restart:
    async with FaultProxy(server.host, server.port) as proxy:
        url = server.url(driver).replace(f":{server.port}/", f":{proxy.port}/")
        engine = create_async_engine(url + _without_tls(driver), pool_pre_ping=True, **POOL)

        async def ask() -> None:
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))

        seen = await restart(ask, server, proxy)
        await engine.dispose()
        return seen


async def restarts(server: PostgresServer) -> tuple[list[Result], str]:
    results, rows, shaded = list[Result](), list[Row](), (0.0, DOWN_S)
    for driver in DRIVERS:
        koo, alone = await koo_restarted(driver, server), await sqlalchemy_restarted(driver, server)
        shaded = (0.0, koo.back_s)
        for name, seen in (("koo", koo), ("SQLAlchemy alone", alone)):
            mark = (seen.back_s + seen.outage_s, "first answer")
            rows.append(Row(f"{name}, {driver}: new connections in {STEP_S:g} s", seen.bars(), [mark]))
        saw = (
            f"answers {koo.outage_s:.1f} s after the server is back (SQLAlchemy alone {alone.outage_s:.1f} s);"
            f" {len(koo.connects)} connections, at most {max(koo.bars())} in {STEP_S:g} s"
            f" (alone {len(alone.connects)}, {max(alone.bars())})"
        )
        found = []
        if koo.outage_s > OUTAGE_S_MAX:
            found.append(f"more than {OUTAGE_S_MAX:g} s")
        results.append(Result(driver, f"a restart of {DOWN_S:g} s under {WAITING} waiting tasks", saw, found))
    figure = bars_svg("New connections around a restart", rows, STEP_S, shaded)
    return results, figure


async def prove() -> tuple[list[Result], str]:
    results = list[Result]()
    with PostgresServer(MAJOR) as server:
        for driver in DRIVERS:
            results.append(await in_transaction_mode(driver, server, prepared=False))
            results.append(await in_transaction_mode(driver, server, prepared=True))
            results.append(await without_a_place(driver, server))
            results.append(await pooler_killed(driver, server))
        restarted, figure = await restarts(server)
    for driver in DRIVERS:
        for old_lives in (False, True):
            results.append(await failover(driver, old_lives=old_lives))
    return [*results, *restarted], figure


def main() -> int:
    check_programs()
    began = time.monotonic()
    results, figure = asyncio.run(prove())
    faults = asyncio.run(table(MAJOR))
    PAGES.mkdir(exist_ok=True)
    (PAGES / "database-restart.svg").write_text(figure, encoding="utf-8")
    lines = [
        "# The database in real deployments",
        "",
        f"PostgreSQL {MAJOR} and {PgBouncer.version()} of Debian; {WRITERS} tasks write {WRITES} rows each, in",
        "transactions of two statements. Each acknowledged row exists exactly once, and each other row had been",
        "reported as unknown.",
        "",
        "| driver | what happens | what was seen | result |",
        "|---|---|---|---|",
        *(one.line() for one in results),
        "",
        "![New connections around a restart](database-restart.svg)",
        "",
        "## What each fault does",
        "",
        f"{CALLERS} callers with a deadline of {DEADLINE_S:g} s call twice, with a pool of four; then a health check",
        "runs. An alert is listed as soon as its condition holds; people are notified only after its rule's delay.",
        "",
        *faults,
        "",
        f"The run took {(time.monotonic() - began) / 60:.0f} minutes.",
    ]
    write_page("database", "prove-database", lines)
    return int(any(one.found for one in results))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ProofFailed as error:
        sys.exit(f"koo: {error}")
