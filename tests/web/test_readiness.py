"""When `/readyz` returns 200, and how a server that shuts down notifies its load balancers before it refuses
connections.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from time import monotonic

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from koo import run
from koo.errors import DatabaseUnavailable, KooError, ServiceRefused
from koo.options import DatabaseOptions
from koo.platform import Platform
from koo.testing.postgres import PostgresServer
from koo.testing.proxy import FaultProxy
from koo.web import create_app, mount
from koo.web.readiness import WATCHED_S, Readiness, readiness_of
from tests.web.serving import options, served


class Time:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def readiness(tmp_path: Path, time: Time) -> Readiness:
    return Readiness(Platform(options(tmp_path)), time)


def is_ready(readiness: Readiness) -> bool:
    try:
        readiness.asked()
    except KooError:
        return False
    return True


def test_a_database_that_was_never_checked_is_not_ready(readiness: Readiness) -> None:
    with pytest.raises(DatabaseUnavailable, match="it has not been checked yet"):
        readiness.asked()


def test_a_process_becomes_ready_when_its_sqlite_folder_can_be_created(tmp_path: Path) -> None:
    """Nothing is sent to a process that is not ready, so no call would open the database. Until then the health says
    why.
    """
    obstacle = tmp_path / "data"
    obstacle.write_text("a file, where a volume will be mounted")
    database = DatabaseOptions(url=f"sqlite:///{obstacle}/app.db")

    async def main() -> None:
        async with served(create_app(Platform(options(tmp_path, database=database)))) as client:
            assert (await client.get("/readyz")).status == 503
            health = (await client.get("/api/v1/monitoring/health")).body["database"]
            assert not health["healthy"] and "folder cannot be created" in health["error"]
            obstacle.unlink()
            while (await client.get("/readyz")).status != 200:  # noqa: ASYNC110 - another task opens it
                await asyncio.sleep(0.02)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_readiness_does_not_wait_for_a_state_store_that_hangs(
    tmp_path: Path, postgres18: PostgresServer
) -> None:
    """Otherwise all pods of a fleet would leave the load balancer when their shared store does not respond."""

    async def main() -> None:
        url = postgres18.url("psycopg", postgres18.create_database())
        async with FaultProxy(postgres18.host, postgres18.port) as proxy:
            platform = Platform(replace(options(tmp_path), state_url=proxy.through(url)))
            async with served(create_app(platform)) as client:
                while (await client.get("/readyz")).status != 200:
                    pass
                proxy.black_hole()
                began = monotonic()
                for _ in range(30):
                    assert (await client.get("/readyz")).status == 200
                assert (
                    monotonic() - began < 30
                )  # a minute, if each waited for the store's timeout of two seconds
                proxy.heal()

    asyncio.run(main())


def test_a_server_is_not_ready_from_the_start_of_its_shutdown(readiness: Readiness) -> None:
    readiness.begin_to_end(5.0)
    with pytest.raises(ServiceRefused, match="this process is ending"):
        readiness.asked()


@pytest.mark.parametrize("running", [0, 3])
def test_a_watched_server_accepts_connections_for_the_whole_delay(
    readiness: Readiness, time: Time, running: int
) -> None:
    is_ready(readiness)
    readiness.begin_to_end(5.0)
    time.now += 4.9
    assert readiness.is_door_open(running)
    time.now += 0.1
    assert not readiness.is_door_open(running)
    assert readiness.ending_s == pytest.approx(5.0)


def test_an_unwatched_server_waits_only_for_running_requests_and_at_most_the_delay(
    readiness: Readiness, time: Time
) -> None:
    readiness.begin_to_end(5.0)
    assert not readiness.is_door_open(0)
    assert readiness.is_door_open(1)
    time.now += 5.0
    assert not readiness.is_door_open(1)


def test_a_shutdown_does_not_wait_for_a_load_balancer_that_is_gone(readiness: Readiness, time: Time) -> None:
    is_ready(readiness)
    time.now += WATCHED_S
    readiness.begin_to_end(5.0)
    assert not readiness.is_door_open(0)


def test_a_load_balancer_that_appears_during_shutdown_is_notified(readiness: Readiness, time: Time) -> None:
    readiness.begin_to_end(5.0)
    time.now += 1.0
    is_ready(readiness)
    assert readiness.is_door_open(0)


def test_without_a_delay_connections_are_refused_immediately(readiness: Readiness) -> None:
    is_ready(readiness)
    readiness.begin_to_end(0.0)
    assert not readiness.is_door_open(1)


def test_the_routes_lifespan_and_server_of_one_platform_share_its_readiness(tmp_path: Path) -> None:
    platform = Platform(options(tmp_path))
    assert readiness_of(platform) is readiness_of(platform)
    assert readiness_of(platform) is not readiness_of(Platform(options(tmp_path)))


def test_a_platform_never_started_by_its_application_warns_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = FastAPI()
    made = Platform(options(tmp_path))
    mount(app, made)
    for _ in range(2):  # no `with`: nothing runs the lifespan
        client = TestClient(app, base_url="http://localhost")
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").status_code == 503
    assert [record.message.split(":")[0] for record in caplog.records if "lifespan" in record.message] == [
        "the application's lifespan never ran"
    ]
    run(made.close())
