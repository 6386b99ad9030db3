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

from typing import TYPE_CHECKING, Any

import koo
from koo import check_database_health, get_session, transactional_with_retry

if TYPE_CHECKING:
    from koo import SessionDep, db_manager

__all__ = ["SessionDep", "check_database_health", "db_manager", "get_session", "transactional_with_retry"]


def __getattr__(name: str) -> Any:
    if name not in (
        "SessionDep",
        "db_manager",
    ):  # FastAPI is loaded, and the database made, when first asked for
        raise AttributeError(f"module 'core.database' has no attribute {name!r}")
    globals()[name] = getattr(koo, name)
    return globals()[name]
