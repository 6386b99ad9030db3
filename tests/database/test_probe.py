"""The probe detects what the next caller would meet, and ends an outage as soon as it is over.

The clock is moved by the test or by the keeper's own sleeps: no test here waits for seconds.
"""

# ruff: noqa: PT012 - these tests are about what is raised inside a scope and what leaves it

from __future__ import annotations

import asyncio
import struct
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import URL, text

from koo.database.database import Database
from koo.errors import DatabaseError, DatabaseUnavailable, Kind
from koo.options import BreakerOptions, RetryOptions
from koo.policies.breaker import CLOSED, HALF_OPEN, OPEN
from koo.testing.clock import StandingClock
from koo.testing.polling import until
from koo.testing.postgres import Driver, PostgresServer, postgres_binaries
from koo.testing.processes import unprivileged
from koo.testing.proxy import FaultProxy
from tests.database.conftest import Place
from tests.database.support import INSERT, ONE, assert_free, options, proxied, run, through

ONCE = RetryOptions(attempts_max=1)
DRIVERS: list[Driver] = ["psycopg", "asyncpg"]
INTERVAL_S = 30.0
"""The default interval between probes: each change must be detected within this time."""


@asynccontextmanager
async def still(url: str, **changes: object) -> AsyncIterator[tuple[Database, StandingClock]]:
    """A database on a clock that only the test moves, so the keeper never probes."""
    clock = StandingClock()
    database = Database(options(url, retry=ONCE, **changes), clock=clock)
    try:
        yield database, clock
    finally:
        assert_free(database)
        await database.close()


async def use(database: Database) -> None:
    async with database.session_scope() as session:
        await session.execute(ONE)


async def fail(database: Database, times: int = 5) -> None:
    for _ in range(times):
        with pytest.raises(DatabaseUnavailable):
            await use(database)


class Role(NamedTuple):
    """A separate role, and a URL that uses it."""

    name: str
    url: str


def role(server: PostgresServer, driver: Driver, database: str = "postgres", extra: str = "") -> Role:
    name = f"r_{driver}_{database[-6:]}"
    server.sql(f"DROP ROLE IF EXISTS {name}")
    server.sql(f"CREATE ROLE {name} LOGIN PASSWORD 'koo-test' {extra}")
    return Role(name, server.url(driver, database).replace("postgres:koo-test@", f"{name}:koo-test@"))


# ── changes detected within an interval ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_changed_password_is_detected_although_the_probes_connection_still_works(driver: Driver) -> None:
    with PostgresServer(18, auth="scram-sha-256") as server:

        async def main() -> None:
            who = role(server, driver)
            async with still(who.url) as (database, clock):
                assert (await database.health_check())["error"] is None
                server.sql(f"ALTER ROLE {who.name} PASSWORD 'another'")
                clock.now += INTERVAL_S
                health = await database.health_check()
                assert health["healthy"] is False and "password" in str(health["error"])

        run(main)


def test_a_full_server_is_detected_and_the_probe_does_not_make_room_for_itself(pg: Place) -> None:
    async def main() -> None:
        who = role(pg.server, pg.driver, pg.database, "CONNECTION LIMIT 1")
        async with still(who.url) as (database, clock):
            assert (await database.health_check())["error"] is None
            clock.now += INTERVAL_S
            health = await database.health_check()
            assert health["healthy"] is False and "no connection left" in str(health["error"])
        pg.server.sql(f"DROP ROLE {who.name}")

    run(main)


def test_an_address_that_now_leads_to_a_standby_is_detected_and_the_pool_follows(
    pg: Place, postgres16: PostgresServer
) -> None:
    """The old server still runs, and so do the connections to it."""

    async def main() -> None:
        postgres16.create_database(pg.database)
        postgres16.sql(f'ALTER DATABASE "{pg.database}" SET default_transaction_read_only = on')
        async with (
            proxied(pg.server) as proxy,
            still(through(proxy, pg.server, pg.driver, pg.database)) as (database, clock),
        ):
            await use(database)
            assert (await database.health_check())["conditions"] == []
            proxy.target = (postgres16.host, postgres16.port)
            clock.now += INTERVAL_S
            assert (await database.health_check())["conditions"] == ["read_only"]
            async with database.session_scope() as session:
                version = str(await session.scalar(text("SHOW server_version")))
                assert version.startswith("16"), "the pool's connection still led to the old server"
            proxy.target = (pg.server.host, pg.server.port)
            clock.now += INTERVAL_S
            assert (await database.health_check())["conditions"] == []
        postgres16.drop_database(pg.database)

    run(main)


def test_once_the_pool_is_distrusted_the_probe_opens_a_new_connection(pg: Place) -> None:
    """A write refused by a standby concerns the address, so the probe's own connection leads there too."""

    async def main() -> None:
        async with still(pg.url) as (database, _):
            async with database.session_scope() as session:
                await session.execute(text("CREATE TABLE notes (n integer PRIMARY KEY, words text)"))
            await database.health_check()
            first = backends(pg)
            await database.health_check()
            assert backends(pg) == first, "recent enough to be used again"
            with pytest.raises(Exception, match="read-only"):
                async with database.session_scope() as session:
                    await session.execute(text("SET TRANSACTION READ ONLY"))
                    await session.execute(INSERT, {"n": 1})
            await database.health_check()
            await until(lambda: not backends(pg) & first)

    run(main)


def backends(place: Place) -> set[str]:
    asked = f"SELECT pid FROM pg_stat_activity WHERE datname = '{place.database}' AND query LIKE '%pg_is_in_recovery%'"
    return set(place.server.sql(asked).split())


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_probe_in_half_open_uses_a_new_connection(driver: Driver) -> None:
    """Every scope is refused, while the probe's old connection would still work."""
    with PostgresServer(18, auth="scram-sha-256") as server:

        async def main() -> None:
            who = role(server, driver)
            async with still(who.url, validate_after_idle_s=0.0) as (database, clock):
                await database.health_check()
                server.sql(f"ALTER ROLE {who.name} PASSWORD 'another'")
                await fail(database)
                assert database.guard.breaker.phase is OPEN
                for _ in range(4):
                    clock.now += 4.0
                    await database.health_check()
                    assert database.guard.breaker.phase is OPEN, "it started the recovery test early"
                clock.now += 60.0
                database.tick()
                assert database.guard.breaker.phase is HALF_OPEN
                health = await database.health_check()
                assert health["state"] == "circuit_open" and health["healthy"] is False

        run(main)


# ── the end of an outage ──────────────────────────────────────────────────────────────────────────────────────────


def test_two_successes_in_a_row_start_the_recovery_test_after_a_few_seconds(pg: Place) -> None:
    async def main() -> None:
        async with proxied(pg.server) as proxy, behind(proxy, pg) as (database, clock):
            await refuse(database, proxy)
            await proxy.accept()
            for _ in range(3):
                await database.health_check()
                assert database.guard.breaker.phase is OPEN, "a server that has just started may fail again"
            clock.now += 3.0
            await database.health_check()
            assert database.guard.breaker.phase is HALF_OPEN
            for _ in range(2):
                await use(database)
            assert database.guard.breaker.phase is CLOSED

    run(main)


def test_one_success_is_not_enough_and_a_failure_restarts_the_count(pg: Place) -> None:
    async def main() -> None:
        async with proxied(pg.server) as proxy, behind(proxy, pg) as (database, clock):
            await refuse(database, proxy)
            clock.now += 3.0
            for answers in (True, False, True):
                await (proxy.accept() if answers else proxy.refuse())
                await database.health_check()
                assert database.guard.breaker.phase is OPEN
            await database.health_check()
            assert database.guard.breaker.phase is HALF_OPEN

    run(main)


def test_a_failed_recovery_test_doubles_the_successes_needed_in_the_same_outage(pg: Place) -> None:
    """A server that responds to probes but fails its callers must not be tested every few seconds forever."""

    async def main() -> None:
        async with proxied(pg.server) as proxy, behind(proxy, pg) as (database, clock):
            for needed in (2, 4, 8):
                await refuse(database, proxy)
                await proxy.accept()
                clock.now += 3.0
                await answers(database, needed)
            for _ in range(2):
                await use(database)
            assert database.guard.breaker.phase is CLOSED
            await refuse(database, proxy)
            await proxy.accept()
            clock.now += 3.0
            await answers(database, 2)

    run(main)


async def answers(database: Database, needed: int) -> None:
    for _ in range(needed):
        assert database.guard.breaker.phase is OPEN
        await database.health_check()
    assert database.guard.breaker.phase is HALF_OPEN


@asynccontextmanager
async def behind(proxy: FaultProxy, place: Place) -> AsyncIterator[tuple[Database, StandingClock]]:
    async with still(through(proxy, place.server, place.driver, place.database)) as made:
        yield made


async def refuse(database: Database, proxy: FaultProxy) -> None:
    """Refuse every call until the breaker is open."""
    await proxy.refuse()
    proxy.reset_all()
    while database.guard.breaker.phase is not OPEN:
        await fail(database, 1)


class HurriedClock(StandingClock):
    """Moves forward by each sleep, as fast as the loop runs; `at` calls a function at a given time."""

    def __init__(self) -> None:
        super().__init__()
        self.began = self.now
        self._due: list[tuple[float, Callable[[], None]]] = []

    @property
    def passed_s(self) -> float:
        return self.now - self.began

    def at(self, passed_s: float, call: Callable[[], None]) -> None:
        self._due.append((passed_s, call))

    async def sleep(self, delay_s: float) -> None:
        self.now += delay_s
        for one in [one for one in self._due if one[0] <= self.passed_s]:
            self._due.remove(one)
            one[1]()
        await asyncio.sleep(0.001)


def test_a_restart_of_four_seconds_is_an_outage_of_six(pg: Place) -> None:
    """The keeper probes every second while the circuit is open, and recovery takes at most the documented minute."""

    async def main() -> None:
        async with proxied(pg.server) as proxy:
            clock = HurriedClock()
            url = through(proxy, pg.server, pg.driver, pg.database)
            database = Database(options(url, retry=ONCE), clock=clock, draw=lambda: 0.5)
            await use(database)
            await refuse(database, proxy)
            opened_s = clock.passed_s
            clock.at(opened_s + 4.0, lambda: restart(proxy))
            await until(lambda: database.guard.breaker.phase is not OPEN, within_s=60.0)
            assert 4.0 < clock.passed_s - opened_s < 7.5
            await until(lambda: database.circuit_breaker_state.value == "healthy", within_s=60.0)
            assert database.guard.options.breaker.recovery_s == 60.0
            await database.close()

    restarts: list[asyncio.Task[None]] = []

    def restart(proxy: FaultProxy) -> None:
        restarts.append(asyncio.get_running_loop().create_task(proxy.accept()))

    run(main)


@pytest.mark.parametrize(("state", "each_second"), [("53300", True), ("28P01", False)])
def test_a_refused_user_is_not_probed_every_second(state: str, each_second: bool) -> None:
    """Directories lock an account after a few wrong passwords, and poolers refuse clients that retry too often."""

    async def main() -> None:
        met = 0

        async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal met
            with suppress(OSError, asyncio.IncompleteReadError):
                length, _ = struct.unpack("!II", await reader.readexactly(8))
                await reader.readexactly(length - 8)
                met += 1
                body = f"SFATAL\0VFATAL\0C{state}\0Mno\0\0".encode()
                writer.write(b"E" + struct.pack("!I", 4 + len(body)) + body)
                await writer.drain()
            writer.close()

        async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            clock = HurriedClock()
            url = URL.create(
                "postgresql+asyncpg", "u", "koo-test", "127.0.0.1", port, "d", {"ssl": "disable"}
            )
            breaker = BreakerOptions(recovery_s=3600, open_s_max=3600)
            address = url.render_as_string(hide_password=False)
            database = Database(options(address, retry=ONCE, breaker=breaker), clock=clock)
            await fail(database)
            assert (await database.health_check())["error"]
            met, began_s = 0, clock.passed_s
            await until(lambda: clock.passed_s - began_s > 120.0, within_s=60.0)
            await database.close()
        assert (met > 60) if each_second else (met <= 5)

    run(main)


# ── a real failover ───────────────────────────────────────────────────────────────────────────────────────────────


class Standby(PostgresServer):
    """A replica of `primary`, which refuses writes until it is promoted."""

    def __init__(self, primary: PostgresServer) -> None:
        super().__init__(primary.major)
        self._primary = primary

    def _prepare(self, directory: Path) -> None:
        programs = postgres_binaries(self.major)
        assert programs is not None
        data = directory / "data"
        source = ["-h", self._primary.host, "-p", str(self._primary.port), "-U", "postgres"]
        subprocess.run(
            [programs / "pg_basebackup", "-D", data, *source, "-R", "-N", "-c", "fast"],
            check=True,
            capture_output=True,
            env={"LC_ALL": "C"},
        )
        unprivileged().give(data, *data.rglob("*"))


def test_a_failover_to_a_standby_is_read_only_until_it_is_promoted() -> None:
    """Reads continue immediately, and writes after the first probe that follows the promotion."""

    async def with_driver(driver: Driver, primary: PostgresServer, standby: PostgresServer) -> None:
        async with (
            proxied(primary) as proxy,
            still(through(proxy, primary, driver, "postgres"), validate_after_idle_s=0.0) as (
                database,
                clock,
            ),
        ):
            await write(database, 1)
            await until(lambda: standby.sql("SELECT count(*) FROM notes") == "1")
            proxy.target = (standby.host, standby.port)
            proxy.reset_all()
            with pytest.raises(DatabaseError, match="it is a standby, or was made read-only") as caught:
                await write(database, 2)
            assert caught.value.kind is Kind.READ_ONLY
            assert database.get_health()["conditions"] == ["read_only"]
            await use(database)
            clock.now += INTERVAL_S
            health = await database.health_check()
            assert (health["conditions"], health["state"]) == (["read_only"], "healthy")
            generation = generation_of(database)
            standby.sql("SELECT pg_promote()")
            clock.now += INTERVAL_S
            assert (await database.health_check())["conditions"] == []
            assert generation_of(database) > generation
            await write(database, 2)
            assert standby.sql("SELECT count(*) FROM notes") == "2"

    for driver in DRIVERS:
        with PostgresServer(18) as primary:
            primary.sql("CREATE TABLE notes (n integer PRIMARY KEY, words text)")
            with Standby(primary) as standby:
                asyncio.run(with_driver(driver, primary, standby))


async def write(database: Database, n: int) -> None:
    async with database.session_scope() as session:
        await session.execute(INSERT, {"n": n})


def generation_of(database: Database) -> int:
    assert database.connections is not None
    return database.connections.records.generation
