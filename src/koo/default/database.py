"""The guarded database of this process. It is created when the name is first accessed, and connects on first use."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from sqlalchemy.ext.asyncio import AsyncSession

from koo.database.database import Database
from koo.database.transactions import make_transactional
from koo.default.platform import platform
from koo.monitoring.shapes import DatabaseHealth

if TYPE_CHECKING:
    db_manager: Database

__all__ = ["check_database_health", "db_manager", "get_session", "transactional_with_retry"]

transactional_with_retry = make_transactional(lambda: platform.database)


async def check_database_health() -> DatabaseHealth:
    """Probe the database now: `healthy`, `state`, `conditions`, `response_time_ms`, `pool_status`, `error`, ..."""
    return await platform.database.health_check()


async def get_session() -> AsyncIterator[AsyncSession]:
    """One transaction as a dependency: it commits when the dependency ends, and rolls back on any exception."""
    async with platform.database.session_scope() as session:
        yield session


def __getattr__(name: str) -> Database:
    if name != "db_manager":
        raise AttributeError(f"module 'koo.default.database' has no attribute {name!r}")
    globals()[name] = made = platform.database
    return made
