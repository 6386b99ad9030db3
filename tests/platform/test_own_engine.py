"""An operation on the application's own engine: SQLAlchemy's errors mean the same as in koo's database."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import create_async_engine

from koo import CircuitOpen, Platform
from koo.options import PlatformOptions
from koo.testing.postgres import PostgresServer


def test_duplicates_and_wrong_statements_are_the_callers_mistakes(
    postgres18: PostgresServer, tmp_path: Path
) -> None:
    name = postgres18.create_database()

    async def main() -> None:
        engine = create_async_engine(postgres18.url("psycopg", name))

        async def run(statement: str) -> None:
            async with engine.begin() as connection:
                await connection.execute(text(statement))

        async with Platform(PlatformOptions(state_url=f"sqlite:///{tmp_path}/state.db")) as platform:
            platform.register_service("users")
            await platform.execute("users", run, "CREATE TABLE users (email text UNIQUE)")
            await platform.execute("users", run, "INSERT INTO users VALUES ('ada')")
            for _ in range(8):
                with pytest.raises(IntegrityError):
                    await platform.execute("users", run, "INSERT INTO users VALUES ('ada')")
                with pytest.raises(ProgrammingError):
                    await platform.execute("users", run, "INSERT INTO nowhere VALUES (1)")
            assert platform.service_health("users")["state"] == "healthy"
        await engine.dispose()

    asyncio.run(main())
    postgres18.drop_database(name)


def test_an_unreachable_server_opens_the_circuit(tmp_path: Path) -> None:
    async def main() -> None:
        engine = create_async_engine("postgresql+psycopg://ada@127.0.0.1:1/shop")

        async def run() -> None:
            async with engine.begin() as connection:
                await connection.execute(text("SELECT 1"))

        async with Platform(PlatformOptions(state_url=f"sqlite:///{tmp_path}/state.db")) as platform:
            platform.register_service("users")
            for _ in range(5):
                with pytest.raises(OperationalError):
                    await platform.execute("users", run)
            with pytest.raises(CircuitOpen):
                await platform.execute("users", run)
        await engine.dispose()

    asyncio.run(main())
