"""States, conditions, the probe, and the documented shapes of a database's reports."""

# ruff: noqa: PT012 - these tests are about what is raised inside a scope and what leaves it

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import SQLAlchemyError

from koo.clock import iso
from koo.database.database import Database
from koo.errors import DatabaseUnavailable
from koo.events import (
    CircuitClosed,
    CircuitHalfOpened,
    CircuitOpened,
    Event,
    HealthCheckFailed,
    HealthCheckPassed,
)
from koo.options import BreakerOptions, RetryOptions
from koo.policies.breaker import CLOSED, OPEN
from koo.policies.verdict import FAILURE, NEUTRAL, SUCCESS
from koo.testing.clock import StandingClock
from koo.testing.polling import until
from koo.testing.postgres import PostgresServer
from tests.backend import shapes
from tests.backend.shapes import check
from tests.database.conftest import Place
from tests.database.support import INSERT, ONE, checked_out, opened, options, run, with_notes
from tests.database.test_faults import kill_all
from tests.database.test_loss import warm

ONCE = RetryOptions(attempts_max=1)
# A scope that probes may take half of the recovery time.
QUICKLY = BreakerOptions(failure_threshold=3, recovery_s=1.0, success_threshold=2)


def test_a_recent_probe_is_not_repeated(tmp_path: Path) -> None:
    """An open page polls every two seconds: many open pages must not cause one probe each."""

    async def main() -> None:
        clock = StandingClock()
        database = Database(options(f"sqlite:///{tmp_path / 'a.db'}"), clock=clock)
        looks: list[str] = []

        def count(connection: object, cursor: object, statement: str, *_: object) -> None:
            if "sqlite_master" in statement:
                looks.append(statement)

        event.listen(Engine, "before_cursor_execute", count)
        first = await database.health_check(max_age_s=2)
        clock.now += 1.9
        assert (await database.health_check(max_age_s=2))["last_health_check"] == first["last_health_check"]
        assert (await database.get_detailed_status(max_age_s=2))["healthy"] is True
        assert len(looks) == 1
        await database.health_check()
        assert len(looks) == 2, "without max_age_s a new probe is run"
        clock.now += 2
        together = await asyncio.gather(*(database.health_check(max_age_s=2) for _ in range(20)))
        assert len(looks) == 3 and {one["last_health_check"] for one in together} == {iso(clock.now)}
        event.remove(Engine, "before_cursor_execute", count)
        await database.close()

    asyncio.run(main())


def test_reports_have_the_documented_shapes(url: str) -> None:
    async def main() -> None:
        database = Database(options(url))
        check(database.get_pool_metrics(), shapes.POOL_METRICS)  # before the first use too
        async with database.session_scope() as session:
            await session.execute(ONE)
            inside = database.get_pool_metrics()["pool_status"]
            assert inside["active_connections"] == 1 and inside["idle_connections"] == 0
        check(await database.health_check(), shapes.DATABASE)
        check(
            await database.get_detailed_status(),
            {**shapes.DATABASE, **shapes.POOL_METRICS, "configuration": dict},
        )
        status = database.get_pool_metrics()["pool_status"]
        assert (status["active_connections"], status["idle_connections"]) == (0, 1)
        assert (status["size"], status["max_connections"]) == (10, 30)
        await database.close()

    run(main)


def test_no_report_contains_the_password(pg: Place) -> None:
    async def main() -> None:
        async with opened(pg.url) as database:
            async with database.session_scope() as session:
                await session.execute(ONE)
            told = json.dumps(await database.get_detailed_status()) + repr(database) + repr(database.options)
            assert "koo-test" not in told

    run(main)


def test_counts_equal_those_of_the_engine(pg: Place) -> None:
    async def main() -> None:
        async with opened(pg.url) as database:
            for _ in range(5):
                async with database.session_scope() as session:
                    await session.execute(ONE)
                    await session.execute(ONE)
            phases = database.get_pool_metrics()["response_times"]["phases"]
            assert (phases["gate_wait"]["count"], phases["connect"]["count"]) == (5, 1)
            assert (phases["statement"]["count"], phases["commit"]["count"]) == (10, 5)
            assert phases["hold"]["count"] == 5
            assert database.get_pool_metrics()["connection_metrics"]["created"] == 1
            breaker = database.get_pool_metrics()["circuit_breaker"]
            assert breaker["success_count"] == 5 and breaker["last_success"] is not None

    run(main)


# ── how a scope is counted ────────────────────────────────────────────────────────────────────────────────────────


def verdicts(database: Database) -> tuple[int, int, int]:
    counts = database.guard.tally.totals().verdicts
    return counts[SUCCESS], counts[FAILURE], counts[NEUTRAL]


def test_the_users_own_exception_counts_as_a_success_of_the_database(url: str) -> None:
    async def main() -> None:
        async with opened(url) as database:
            with pytest.raises(KeyError):
                async with database.session_scope() as session:
                    await session.execute(ONE)
                    raise KeyError
            assert verdicts(database) == (1, 0, 0)

    run(main)


def test_a_cancelled_scope_is_not_judged(url: str) -> None:
    async def main() -> None:
        async with opened(url) as database:

            async def work() -> None:
                async with database.session_scope() as session:
                    await session.execute(ONE)
                    await asyncio.sleep(60)

            task = asyncio.create_task(work())
            await until(lambda: database.metrics.statement.count)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert verdicts(database) == (0, 0, 1)

    run(main)


def test_time_in_the_users_own_code_does_not_count_as_slow(url: str) -> None:
    """25 scopes whose own code takes longer than a slow call do not open the circuit."""

    async def main() -> None:
        clock = StandingClock()
        async with opened(url, clock=clock, slow_call_s=1.0) as database:
            thought = asyncio.Event()

            async def work() -> None:
                async with database.session_scope() as session:
                    await session.execute(ONE)
                    await thought.wait()

            working = [asyncio.create_task(work()) for _ in range(25)]
            await until(lambda: database.metrics.statement.count == 25)
            clock.now += 1.1
            database.tick()
            assert database.circuit_breaker_state.value == "healthy"
            thought.set()
            await asyncio.gather(*working)
            assert database.circuit_breaker_state.value == "healthy"
            assert database.guard.tally.totals().percentile_s(0.5) < 1.0

    run(main)


def test_slow_statements_open_the_circuit(pg: Place) -> None:
    async def main() -> None:
        async with opened(pg.url, slow_call_s=0.001) as database:

            async def work() -> None:
                async with database.session_scope() as session:
                    await session.execute(text("SELECT pg_sleep(0.02)"))

            with pytest.raises(DatabaseUnavailable, match="slow calls"):
                for _ in range(5):
                    await asyncio.gather(*(work() for _ in range(10)))
            assert "slow" in (await database.health_check())["conditions"]

    run(main)


# ── states ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def fail(database: Database, times: int) -> None:
    for _ in range(times):
        with pytest.raises(DatabaseUnavailable):
            async with database.session_scope():
                pass


def test_a_database_fails_and_recovers_through_all_states(pg: Place) -> None:
    """healthy → unhealthy → circuit_open → degraded → healthy, with traffic."""

    async def main() -> None:
        events: list[Event] = []
        database = Database(options(pg.url, retry=ONCE, breaker=QUICKLY), publish=events.append)
        async with database.session_scope() as session:
            await session.execute(ONE)
        assert database.circuit_breaker_state.value == "healthy"
        pg.server.kill()
        for failures, state in ((2, "unhealthy"), (1, "circuit_open")):
            await fail(database, failures)
            assert database.circuit_breaker_state.value == state
        assert (await database.health_check())["healthy"] is False
        pg.server.start()

        def half_open() -> bool:
            database.tick()
            return database.circuit_breaker_state.value == "degraded"

        await until(half_open)
        for _ in range(2):
            async with database.session_scope() as session:
                await session.execute(ONE)
        assert database.circuit_breaker_state.value == "healthy"
        assert (await database.health_check())["healthy"] is True
        # The events of breaker and probes, each in order. Which of the two detects the change first is chance.
        happened, checks = [type(event) for event in events], (HealthCheckFailed, HealthCheckPassed)
        assert [one for one in happened if one in checks] == [*checks]
        assert [one for one in happened if one not in checks] == [
            CircuitOpened,
            CircuitHalfOpened,
            CircuitClosed,
        ]
        await database.close()

    run(main)


def open_it(database: Database, clock: StandingClock) -> None:
    """Open the breaker, and move the clock past its open time."""
    breaker, now = database.guard.breaker, clock.monotonic()
    for _ in range(QUICKLY.failure_threshold):
        permit = breaker.admit(now, lambda: 0.0)
        assert permit is not None
        breaker.settle(permit, FAILURE, False, now, lambda: 0.0)
    assert breaker.phase is OPEN
    clock.now += 2 * QUICKLY.recovery_s


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_a_scope_that_probes_has_succeeded_once_begin_has(url: str, ends: str) -> None:
    """The probe ends before the caller's block does: other callers are admitted however long the block takes."""

    async def main() -> None:
        clock = StandingClock()
        database = Database(options(url, retry=ONCE, breaker=QUICKLY), clock=clock)
        breaker = database.guard.breaker
        open_it(database, clock)
        with suppress(KeyError):
            async with database.session_scope():
                assert breaker.ok == 1
                async with database.session_scope():
                    assert breaker.phase is CLOSED
                clock.now += (
                    10 * QUICKLY.recovery_s
                )  # the first block is still running, and nothing in it counts
                if ends == "badly":
                    raise KeyError
        assert breaker.phase is CLOSED and breaker.consecutive == 0 and breaker.trips == 1
        await database.close()

    run(main)


def test_a_loss_in_a_probing_scope_counts_once_the_breaker_has_closed(pg: Place) -> None:
    async def main() -> None:
        clock = StandingClock()
        database = Database(options(pg.url, retry=ONCE, breaker=QUICKLY), clock=clock)
        breaker = database.guard.breaker
        open_it(database, clock)
        async with database.session_scope():
            pass
        with suppress(SQLAlchemyError):
            async with database.session_scope() as session:
                assert breaker.phase is CLOSED
                await session.execute(ONE)
                kill_all(pg)
                await session.execute(ONE)
        assert breaker.consecutive == 1
        await database.close()

    run(main)


def test_a_scope_that_probes_sqlite_reads_from_the_file(sqlite_url: str) -> None:
    """SQLite's BEGIN succeeds before anything was read, so it would prove nothing."""

    async def main() -> None:
        clock = StandingClock()
        database = Database(options(sqlite_url, retry=ONCE, breaker=QUICKLY), clock=clock)
        said: list[str] = []
        async with database.session_scope() as session:
            raw = (await (await session.connection()).get_raw_connection()).driver_connection
            assert raw is not None
            await raw.set_trace_callback(said.append)
        assert not any("sqlite_master" in one for one in said)
        open_it(database, clock)
        async with database.session_scope():
            assert any("sqlite_master" in one for one in said)
        await database.close()

    run(main)


def test_a_database_recovers_without_traffic(pg: Place) -> None:
    """In HALF_OPEN a successful probe counts like a scope."""

    async def main() -> None:
        async with opened(pg.url, retry=ONCE, breaker=QUICKLY, probe_interval_s=0.05) as database:
            pg.server.kill()
            await fail(database, 3)
            assert database.circuit_breaker_state.value == "circuit_open"
            pg.server.start()
            await until(lambda: database.circuit_breaker_state.value == "healthy")

    run(main)


def test_three_failed_probes_without_a_success_make_it_unhealthy(pg: Place) -> None:
    async def main() -> None:
        async with opened(pg.url) as database:
            async with database.session_scope() as session:
                await session.execute(ONE)
            pg.server.kill()
            for state in ("healthy", "healthy", "unhealthy"):
                health = await database.health_check()
                assert (health["healthy"], health["state"]) == (False, state)
                assert health["error"]
            pg.server.start()
            health = await database.health_check()
            assert (health["healthy"], health["state"], health["error"]) == (True, "healthy", None)

    run(main)


def test_the_probe_uses_its_own_connection_and_keeps_it(pg: Place) -> None:
    async def main() -> None:
        async with (
            opened(pg.url, pool_size=1, max_overflow=0) as database,
            database.session_scope() as session,
        ):
            await session.execute(ONE)  # the pool is full
            for _ in range(3):
                assert (await database.health_check())["healthy"] is True
            count = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{pg.database}'"
            assert pg.server.sql(count) == "2"
            assert checked_out(database) == 1

    run(main)


def test_a_probe_whose_connection_was_terminated_opens_a_new_one(pg: Place) -> None:
    async def main() -> None:
        async with opened(pg.url) as database:
            assert (await database.health_check())["healthy"] is True
            kill_all(pg)
            assert (await database.health_check())["healthy"] is True

    run(main)


def test_a_probe_of_a_silent_server_ends_in_time(pg: Place) -> None:
    async def main() -> None:
        async with opened(pg.url, probe_timeout_s=0.2, cleanup_timeout_s=0.2) as database:
            assert (await database.health_check())["healthy"] is True
            pg.server.pause()
            loop = asyncio.get_running_loop()
            began = loop.time()
            for _ in range(2):  # once on its old connection, once on a new one
                health = await database.health_check()
                assert health["healthy"] is False and "0.2 s" in str(health["error"])
            assert loop.time() - began < 6.0
            pg.server.resume()

    run(main)


def test_a_read_only_server_is_a_condition_and_not_a_failure(pg: Place) -> None:
    async def main() -> None:
        async with with_notes(pg.url) as database:
            pg.server.sql(f'ALTER DATABASE "{pg.database}" SET default_transaction_read_only = on')
            kill_all(pg)
            await warm(database, 4)
            with pytest.raises(Exception, match="read-only"):
                async with database.session_scope() as session:
                    await session.execute(INSERT, {"n": 1})
            health = await database.health_check()
            assert health["conditions"] == ["read_only"] and health["state"] == "healthy"
            # After a failover, connections to what is now a standby must not stay in the pool for days.
            pg.server.sql(f'ALTER DATABASE "{pg.database}" RESET default_transaction_read_only')
            assert database.connections is not None and database.connections.records.generation >= 1
            await warm(database, 4, INSERT)
            assert database.guard.tally.totals().verdicts[FAILURE] == 0
            kill_all(pg)
            assert (await database.health_check())["conditions"] == []

    run(main)


def test_concurrent_health_checks_share_one_probe(pg: Place) -> None:
    async def main() -> None:
        async with opened(pg.url) as database:
            first, second = await asyncio.gather(database.health_check(), database.health_check())
            assert first["last_health_check"] == second["last_health_check"]

    run(main)


def test_a_health_check_of_a_server_that_does_not_exist_does_not_raise() -> None:
    async def main() -> None:
        async with opened("postgresql://u:p@127.0.0.1:1/d") as database:
            health = await database.health_check()
            assert health["healthy"] is False and "refuses connections" in str(health["error"])

    run(main)


def test_a_stopped_server_under_load_opens_the_circuit_and_it_closes_again(
    postgres18: PostgresServer,
) -> None:
    async def main() -> None:
        changes: dict[str, Any] = {
            "pool_timeout_s": 0.3,
            "cleanup_timeout_s": 0.2,
            "scope_timeout_s": 0.6,
            "breaker": QUICKLY,
            "retry": ONCE,
            "probe_interval_s": 0.1,
        }
        async with opened(postgres18.url("psycopg"), **changes) as database:
            stop = asyncio.Event()

            async def work() -> None:
                while not stop.is_set():
                    try:
                        async with database.session_scope() as session:
                            await session.execute(ONE)
                    except Exception:
                        await asyncio.sleep(0.01)

            working = [asyncio.create_task(work()) for _ in range(5)]
            await until(lambda: database.metrics.commit.count > 20)
            postgres18.pause()
            await until(lambda: database.circuit_breaker_state.value == "circuit_open")
            postgres18.resume()
            await until(lambda: database.circuit_breaker_state.value == "healthy")
            stop.set()
            await asyncio.gather(*working)

    run(main)
