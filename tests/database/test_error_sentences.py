"""A database error names the database, what broke, since when it has responded again, and why it was not repeated."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from koo.database.database import Database
from koo.database.nameplate import server_of
from koo.errors import DatabaseUnavailable, PoolSaturated
from koo.options import BreakerOptions, RetryOptions
from koo.policies.breaker import HALF_OPEN, OPEN
from koo.testing.clock import StandingClock
from koo.web.problems import problem_answer
from tests.database.conftest import Place
from tests.database.support import ONE, QUICK, opened, options, proxied, run, through

REFUSED = "postgresql://app:hidden@127.0.0.1:1/shop"
ONCE = RetryOptions(attempts_max=1)


async def fail(database: Database) -> DatabaseUnavailable:
    with pytest.raises(DatabaseUnavailable) as caught:
        async with database.session_scope():
            pass
    return caught.value


@pytest.mark.parametrize(
    ("url", "host", "port", "name"),
    [
        ("postgresql+psycopg://app:hidden@db.example:6432/shop?sslmode=require", "db.example", 6432, "shop"),
        ("postgresql+psycopg://app:hidden@db.example/shop", "db.example", 5432, "shop"),
        (
            "postgresql+psycopg://app@/shop?host=a.example:5433&host=b.example:5434",
            "a.example:5433,b.example:5434",
            None,
            "shop",
        ),
        (
            "postgresql+psycopg://app@/shop?host=a.example,b.example&port=5433",
            "a.example,b.example",
            5433,
            "shop",
        ),
        ("postgresql+psycopg:///shop?host=/var/run/postgresql", "/var/run/postgresql", None, "shop"),
        ("postgresql+psycopg://", None, None, None),
        ("postgresql+asyncpg://app:hidden@[::1]:5432/shop", "::1", 5432, "shop"),
        ("sqlite+aiosqlite:////srv/koo/data/koo.db", None, None, "koo.db"),
        ("sqlite+aiosqlite://", None, None, ":memory:"),
    ],
)
def test_the_name_of_a_database_never_contains_its_user(
    url: str, host: str | None, port: int | None, name: str | None
) -> None:
    assert server_of(make_url(url)) == {"host": host, "port": port, "name": name}


def test_a_refused_connection_names_the_database_and_no_password() -> None:
    async def main() -> None:
        async with opened(REFUSED, retry=ONCE) as database:
            failure = await fail(database)
            assert failure.server == {"host": "127.0.0.1", "port": 1, "name": "shop"}
            body = problem_answer(failure).body.decode()
            assert json.loads(body)["server"] == failure.server and "hidden" not in body

    run(main)


def test_an_open_breakers_refusal_names_the_cause_and_a_wait_no_shorter_than_the_breakers_own() -> None:
    async def main() -> None:
        async with opened(REFUSED, retry=ONCE) as database:
            told = [(await fail(database)).retry_after_s for _ in range(5)]
            refused = await fail(database)
            assert "the last: the server refuses connections" in refused.reason
            assert refused.last_error is not None and refused.last_error.kind == "connection"
            pause_s = database.guard.breaker.opens_until() - database.guard.now()
            for last in (told[4], refused.retry_after_s):
                assert last is not None and last >= pause_s and last > 50
            view = database.get_health()
            assert view["error"] in (None, "the server refuses connections")

    run(main)


def test_the_error_names_the_breaker_as_the_reason_why_it_was_not_repeated() -> None:
    async def main() -> None:
        once = BreakerOptions(failure_threshold=1)
        async with opened(REFUSED, retry=QUICK, breaker=once) as database:
            failure = await fail(database)
            assert (
                failure.not_repeated == "the circuit has opened after 1 failure in a row"
                and failure.attempts == 1
            )

    run(main)


def test_the_error_of_a_transaction_that_is_not_repeated_says_why(pg: Place) -> None:
    """The error of a statement remains SQLAlchemy's own; the reason is a note on it."""

    async def main() -> None:
        async with proxied(pg.server) as proxy:
            url = through(proxy, pg.server, pg.driver, pg.database)
            async with opened(url, retry=QUICK, breaker=BreakerOptions(failure_threshold=1)) as database:

                async def lose(session: AsyncSession) -> None:
                    await session.execute(ONE)
                    proxy.reset_all()
                    await session.execute(ONE)

                with pytest.raises(DBAPIError) as caught:
                    await database.transaction(lose)
                (note,) = caught.value.__notes__
                assert note == (
                    "database: not repeated after 1 attempt: the circuit has opened after 1 failure in a row"
                )

    run(main)


def test_a_refusal_says_since_when_the_database_has_responded_again_and_when_to_retry(pg: Place) -> None:
    async def main() -> None:
        async with proxied(pg.server) as proxy:
            clock = StandingClock()
            database = Database(
                options(through(proxy, pg.server, pg.driver, pg.database), retry=ONCE), clock=clock
            )
            async with database.session_scope() as session:
                await session.execute(ONE)
            await proxy.refuse()
            proxy.reset_all()
            for _ in range(5):
                await fail(database)
            await database.health_check()
            assert database.get_health()["answers_since"] is None
            pool = database.get_health()["pool_status"]
            assert pool["idle_connections"] == 0, (
                "idle connections to a server that is down say nothing useful"
            )
            await proxy.accept()
            clock.now += 1.0
            view = await database.health_check()
            since, refused = view["answers_since"], await fail(database)
            assert database.guard.breaker.phase is OPEN and since is not None
            assert refused.answers_since == since
            assert f"; it has been answering again since {since[11:19]} UTC; try again in" in str(refused)
            assert refused.retry_after_s is not None and 2.0 < refused.retry_after_s < 8.0
            body = json.loads(problem_answer(refused).body)
            assert body["answers_since"] == since and body["last_error"]["kind"] == "connection"
            # A caller that returns at that time is admitted, if the probes until then succeed as well.
            for _ in range(int(refused.retry_after_s)):
                clock.now += 1.0
                await database.health_check()
            clock.now += refused.retry_after_s % 1.0
            assert database.guard.breaker.phase is HALF_OPEN
            for _ in range(2):
                async with database.session_scope() as session:
                    await session.execute(ONE)
            assert database.get_health()["answers_since"] is None, "the recovery is no longer mentioned"
            await database.close()

    run(main)


def test_a_full_pool_mentions_waiting_callers_only_if_there_are_any(pg: Place) -> None:
    async def main() -> None:
        async with opened(pg.url, pool_size=1, max_overflow=0, pool_timeout_s=1.0) as database:
            async with database.session_scope():
                with pytest.raises(PoolSaturated) as caught:
                    async with database.session_scope():
                        pass
            assert caught.value.reason.startswith("the only connection is in use; held by tests.")
            assert caught.value.server is not None and caught.value.server["port"] == pg.server.port

    run(main)
