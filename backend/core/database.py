"""The guarded database: `DATABASE_URL` behind a breaker, a fair queue, deadlines, and retries if they are safe.

    async with db_manager.session_scope() as session:          one transaction
        await session.execute(...)

    @transactional_with_retry(max_retries=5)                   a function that may run again as a whole
    async def move(session, a, b): ...

    @app.post("/visits")                                       in FastAPI
    async def add(session: SessionDep): ...

`session_scope` commits at the end of the block and rolls back on any exception, which leaves the block unchanged.
After a lost connection, connecting, BEGIN and the first statement are repeated. Later statements are not, because
Python cannot run a block again. `transactional_with_retry` can run its function again, so it also repeats after a
deadlock. A connection that is lost during COMMIT raises `CommitOutcomeUnknown`: the transaction may be committed or
not.

`SessionDep` commits before the response is sent, so a failed COMMIT is a 5xx and not a 200. (`Depends(get_session)`
alone commits after the response has been sent, which is FastAPI's default; `SessionDep` adds `scope="function"`.)

`db_manager` is a `koo.Database`; `get_pool_metrics()`, `health_check()`, `get_detailed_status()`,
`reset_circuit_breaker()` and `circuit_breaker_state` show and control it. No connection is opened before the first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import koo
from koo import check_database_health, get_session, transactional_with_retry

if TYPE_CHECKING:
    from koo import SessionDep, db_manager

__all__ = ["SessionDep", "check_database_health", "db_manager", "get_session", "transactional_with_retry"]


def __getattr__(name: str) -> Any:
    # Resolved at the first use: `SessionDep` loads FastAPI, and `db_manager` reads the settings.
    if name not in ("SessionDep", "db_manager"):
        raise AttributeError(f"module 'core.database' has no attribute {name!r}")
    globals()[name] = getattr(koo, name)
    return globals()[name]
