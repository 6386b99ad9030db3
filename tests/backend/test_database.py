"""The database's names: scopes, repeated functions, and the dependency that commits before the response is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from koo.testing.postgres import PostgresServer
from tests.web.serving import Client, served

pytestmark = pytest.mark.usefixtures("fake")

TABLES = (
    "CREATE TABLE towns (name TEXT PRIMARY KEY)",
    "CREATE TABLE people (name TEXT, town TEXT REFERENCES towns DEFERRABLE INITIALLY DEFERRED)",
)


def test_a_scope_is_one_transaction() -> None:
    from core.database import db_manager

    async def change_mind() -> None:
        async with db_manager.session_scope() as session:
            await session.execute(text("DELETE FROM towns"))
            raise RuntimeError("changed my mind")

    async def main() -> None:
        async with db_manager.session_scope() as session:
            assert isinstance(session, AsyncSession)
            await session.execute(text(TABLES[0]))
            await session.execute(text("INSERT INTO towns VALUES ('Paris')"))
        with pytest.raises(RuntimeError, match="changed my mind"):
            await change_mind()
        async with db_manager.session_scope() as session:
            assert await session.scalar(text("SELECT count(*) FROM towns")) == 1

    asyncio.run(main())


def test_a_function_runs_as_one_transaction() -> None:
    from core.database import transactional_with_retry

    @transactional_with_retry(max_retries=5)
    async def settle(session: AsyncSession, name: str) -> Any:
        await session.execute(text("CREATE TABLE IF NOT EXISTS towns (name TEXT)"))
        await session.execute(text("INSERT INTO towns VALUES (:name)"), {"name": name})
        return await session.scalar(text("SELECT count(*) FROM towns"))

    async def main(name: str) -> Any:
        return await settle(name)

    assert asyncio.run(main("Paris")) == 1
    assert asyncio.run(main("Lyon")) == 2


def test_the_databases_statuses_have_the_promised_keys() -> None:
    from core.database import check_database_health, db_manager

    async def main() -> None:
        health = await check_database_health()
        assert {"healthy", "state", "conditions", "response_time_ms", "circuit_breaker"} <= health.keys()
        assert {"pool_status", "last_health_check", "error"} <= health.keys()
        assert (health["healthy"], health["state"], health["conditions"]) == (True, "healthy", [])
        metrics = db_manager.get_pool_metrics()
        assert {"pool_status", "connection_metrics", "response_times", "errors"} <= metrics.keys()
        assert "circuit_breaker" in metrics
        assert {
            "size", "active_connections", "idle_connections", "overflow_connections", "waiting", "max_connections",
            "utilization",
        } <= metrics["pool_status"].keys()  # fmt: skip
        assert health.keys() | metrics.keys() <= (await db_manager.get_detailed_status()).keys()
        assert db_manager.circuit_breaker_state.value == "healthy"
        assert db_manager.reset_circuit_breaker() is True

    asyncio.run(main())


# ── in FastAPI ────────────────────────────────────────────────────────────────────────────────────────────────────


def make_app(session_type: Any) -> FastAPI:
    """An application whose routes insert a person and then return 200."""
    app = FastAPI()

    async def add(name: str, town: str, session: Any) -> dict[str, str]:
        await session.execute(text("INSERT INTO people VALUES (:name, :town)"), {"name": name, "town": town})
        if name == "nobody":
            raise HTTPException(418, "changed my mind")
        return {"added": name}

    add.__annotations__["session"] = session_type
    app.post("/people/{name}/{town}")(add)
    return app


async def try_commits(make: Callable[[], FastAPI]) -> list[int]:
    """The statuses of a good commit, of one that the database refuses, and of a route that raises."""
    from core.database import db_manager

    async with db_manager.session_scope() as session:
        for table in TABLES:
            await session.execute(text(table))
        await session.execute(text("INSERT INTO towns VALUES ('Paris')"))
    async with served(make()) as client:
        statuses = [await _post(client, path) for path in ("Ada/Paris", "Bob/Atlantis", "nobody/Paris")]
        async with db_manager.session_scope() as session:
            names = list(await session.scalars(text("SELECT name FROM people")))
    assert names == ["Ada"]
    return statuses


async def _post(client: Client, path: str) -> int:
    return (await client.post(f"/people/{path}")).status


def test_a_failed_commit_is_a_5xx_on_sqlite() -> None:
    """Only COMMIT checks the deferred constraint, and by then the route has returned its 200."""
    from core.database import SessionDep

    assert asyncio.run(try_commits(lambda: make_app(SessionDep))) == [200, 500, 418]


def test_a_failed_commit_is_a_5xx_on_postgresql(
    postgres16: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", postgres16.url(None, postgres16.create_database()))
    from core.database import SessionDep, db_manager

    assert db_manager.driver_name == "psycopg"
    assert asyncio.run(try_commits(lambda: make_app(SessionDep))) == [200, 500, 418]


def test_without_its_scope_the_dependency_would_commit_too_late() -> None:
    """The reason for `SessionDep` instead of `Depends(get_session)`; the test fails if FastAPI changes its default."""
    from core.database import get_session

    late = Annotated[AsyncSession, Depends(get_session)]
    assert asyncio.run(try_commits(lambda: make_app(late)))[:2] == [200, 200]


def test_a_successful_response_means_a_committed_transaction() -> None:
    """The next request, on another connection, finds the row."""
    from core.database import SessionDep, db_manager

    async def main() -> None:
        async with db_manager.session_scope() as session:
            for table in TABLES:
                await session.execute(text(table))
            await session.execute(text("INSERT INTO towns VALUES ('Paris')"))
        async with served(make_app(SessionDep)) as client:
            for number in range(1, 11):
                assert (await client.post(f"/people/{number}/Paris")).status == 200
                async with db_manager.session_scope() as session:
                    assert await session.scalar(text("SELECT count(*) FROM people")) == number

    asyncio.run(main())


def test_a_failed_commit_raises_the_databases_own_error() -> None:
    from core.database import db_manager

    async def main() -> None:
        async with db_manager.session_scope() as session:
            for table in TABLES:
                await session.execute(text(table))
        with pytest.raises(IntegrityError):
            async with db_manager.session_scope() as session:
                await session.execute(text("INSERT INTO people VALUES ('Bob', 'Atlantis')"))

    asyncio.run(main())
