"""The guarded database: `DATABASE_URL` behind a breaker, a fair queue, deadlines, and retries where they are safe.

    async with db_manager.session_scope() as session:          one transaction
        await session.execute(...)

    @transactional_with_retry(max_retries=5)                   a function that may run again as a whole
    async def move(session, a, b): ...

    @app.post("/visits")                                       in FastAPI
    async def add(session: SessionDep): ...

`session_scope` commits at the end of the block and rolls back on any exception, which leaves the block unchanged.
Connecting, BEGIN and the first statement are repeated after a connection loss; nothing later is, because Python cannot
run a block again. `transactional_with_retry` can, so it also repeats after a deadlock. A connection lost during COMMIT
raises `CommitOutcomeUnknown`: nobody knows whether it happened.

`SessionDep` commits before the answer leaves, so a failed COMMIT is a 5xx and not a 200. (`Depends(get_session)` alone
commits after the answer has left: that is FastAPI's default; `scope="function"` is what `SessionDep` adds.)

`db_manager` is a `koo.Database`; `get_pool_metrics()`, `health_check()`, `get_detailed_status()`,
`reset_circuit_breaker()` and `circuit_breaker_state` show and steer it. Nothing is connected before the first use.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

from sqlalchemy.ext.asyncio import AsyncSession

from core.platform import platform
from koo.database.transactions import make_transactional
from koo.monitoring.shapes import DatabaseHealth

if TYPE_CHECKING:
    from fastapi import Depends

    from koo import Database

__all__ = ["SessionDep", "check_database_health", "db_manager", "get_session", "transactional_with_retry"]

transactional_with_retry = make_transactional(lambda: platform.database)


async def check_database_health() -> DatabaseHealth:
    """Probe the database now: `healthy`, `state`, `conditions`, `response_time_ms`, `pool_status`, `error`, ..."""
    return await platform.database.health_check()


async def get_session() -> AsyncIterator[AsyncSession]:
    """One transaction as a dependency: it commits when the dependency ends, and rolls back on any exception."""
    async with platform.database.session_scope() as session:
        yield session


if TYPE_CHECKING:
    db_manager: Database
    SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]


def __getattr__(name: str) -> Any:
    if name == "db_manager":
        value: Any = platform.database
    elif name == "SessionDep":
        from fastapi import Depends  # only those who use it wait for FastAPI's import

        value = Annotated[AsyncSession, Depends(get_session, scope="function")]
    else:
        raise AttributeError(f"module 'core.database' has no attribute {name!r}")
    globals()[name] = value
    return value
