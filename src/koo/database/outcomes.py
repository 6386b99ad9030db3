"""Finds out whether a lost COMMIT happened, over a connection outside the pool.

    INSERT INTO koo_markers (key, burned) VALUES (…, true) ON CONFLICT (key) DO UPDATE … RETURNING burned

* The INSERT **waits** in the unique index if the lost transaction is still open. If it waits longer than `LOCK_WAIT_S`
  (the COMMIT may be waiting for a standby that is gone, for example), koo terminates the session that sent the key and
  repeats the query.
* `burned` is false: the row is the transaction's own, so it **was committed**. True: the row is this query's, so the
  transaction **was not** committed and never will be: anything of it that arrives later fails on the row.
* The row records that it was burned because the COMMIT of this query may be lost too. The repeated query must not
  mistake a row that the first one left behind for the transaction's own.
* The query always writes, even if it finds the row, so its COMMIT waits for a synchronous standby like any other.
  Otherwise koo could report a transaction as committed that a failover loses a second later.
* A standby refuses the INSERT, so it cannot decide. The query is repeated until it is promoted or the time runs out.

By then the scope has returned its connection and its permit, so it cannot wait for itself. The lookup ends
`resolve_timeout_s` after the scope's deadline. A cancelled caller waits for it no longer than for any other clean-up;
the lookup continues without the caller, and the outcome is logged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from sqlalchemy import text

from koo.crossing import begin
from koo.database.beside import Beside
from koo.database.markers import Markers
from koo.database.news import DatabaseNews
from koo.options import DatabaseOptions
from koo.sqlstates import sqlstate_of

LOCK_WAIT_S = 1.0
"""How long the old session may take to finish its COMMIT. A session that still works needs milliseconds."""
PAUSES_S = (0.05, 1.0)
"""The first and the longest pause between two queries that failed."""
GLANCE_S = 0.1
"""How often a waiting caller checks whether it was cancelled: during COMMIT, cancellations are deferred."""
LOCK_NOT_AVAILABLE = "55P03"

_ASK = """
INSERT INTO {table} AS m (key, burned) VALUES (:key, true)
ON CONFLICT (key) DO UPDATE SET burned = m.burned RETURNING burned
"""
# Finds the session by its last query, which contains the key. The process id that the driver knows would be wrong
# behind a pooler: it could belong to another client's session. `state <> 'idle'` spares a session that has finished in
# the meantime.
_END = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE pid <> pg_backend_pid() AND state <> 'idle' AND position(cast(:key AS text) IN query) > 0"
)

log = logging.getLogger("koo")


class Outcomes:
    """The lookups of lost COMMITs of one database on one loop."""

    def __init__(
        self,
        beside: Beside,
        markers: Markers,
        options: DatabaseOptions,
        news: DatabaseNews,
        monotonic: Callable[[], float],
    ) -> None:
        self._beside = beside
        self._markers = markers
        self._options = options
        self._news = news
        self._monotonic = monotonic
        self._asking: set[asyncio.Task[bool | None]] = set()

    async def learn(self, key: str, deadline: float) -> bool | None:
        """Whether the transaction with this key was committed; None if that could not be found in time.

        `deadline`: the scope's. Safe to await where cancellations are deferred (`Unbroken`).
        """
        task = self._begin(key, deadline)
        try:
            is_heard = await self._wait(task)
        except asyncio.CancelledError:  # a COMMIT inside the block: the caller leaves without the outcome
            task.add_done_callback(partial(self._tell, key, False))
            raise
        if is_heard:
            return answer_of(task)
        task.add_done_callback(partial(self._tell, key, True))
        return None

    def record(self, key: str, deadline: float) -> None:
        """Like `learn`, without a waiting caller: the outcome is logged."""
        self._begin(key, deadline).add_done_callback(partial(self._tell, key, False))

    def _begin(self, key: str, deadline: float) -> asyncio.Task[bool | None]:
        until = max(deadline, self._monotonic()) + self._options.resolve_timeout_s
        task = begin(asyncio.get_running_loop(), self._ask_until(key, until), "koo asks for a COMMIT")
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        return task

    async def _wait(self, task: asyncio.Task[bool | None]) -> bool:
        """Wait for the outcome. False: the caller was cancelled, and the cleanup time has passed since."""
        # The final COMMIT runs inside `Unbroken`, where a cancellation interrupts no wait: without these checks a
        # cancelled caller would be kept for the whole lookup. The wait uses `asyncio.wait`, which ends on a timer; a
        # timeout that cancels its task would never end here.
        caller, cancelled_at = asyncio.current_task(), float("inf")
        while not task.done():
            await asyncio.wait({task}, timeout=GLANCE_S)
            now = self._monotonic()
            if caller is not None and caller.cancelling():
                cancelled_at = min(cancelled_at, now)
            if now - cancelled_at > self._options.cleanup_timeout_s:
                return task.done()
        return True

    def _tell(self, key: str, was_told: bool, task: asyncio.Task[bool | None]) -> None:
        """Log an outcome whose caller has left."""
        self._news.note_outcome(key, answer_of(task), was_told=was_told)

    async def _ask_until(self, key: str, until: float) -> bool | None:
        pause_s, longest_s = PAUSES_S
        while True:
            left_s = until - self._monotonic()
            try:
                return await self._ask(key, min(max(left_s, GLANCE_S), self._options.pool_timeout_s))
            except Exception as error:
                log.debug("database: the outcome of a COMMIT could not be queried", exc_info=True)
                # The old session is still in COMMIT. While it lives, the outcome is open: the transaction may commit a
                # moment after it was reported as not committed. So koo terminates the session, then repeats the query.
                if sqlstate_of(error) == LOCK_NOT_AVAILABLE:
                    await self._end_session(key)
            if self._monotonic() + pause_s >= until:
                return None
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, longest_s)

    async def _ask(self, key: str, within_s: float) -> bool:
        place = await self._markers.ready()
        async with self._beside.begin(within_s) as connection:
            await connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(LOCK_WAIT_S * 1000)}")
            burned: bool = (
                await connection.execute(text(_ASK.format(table=place.table)), {"key": key})
            ).scalar_one()
        # The result is returned only after the block. Until the burned row is committed it may be lost. A late COMMIT
        # could then succeed, and "not committed" would turn out to be wrong.
        return not burned

    async def _end_session(self, key: str) -> None:
        try:
            async with self._beside.begin(self._options.pool_timeout_s) as connection:
                await connection.execute(_END, {"key": key})
        except Exception:
            log.debug("database: the session of a lost COMMIT could not be terminated", exc_info=True)

    async def close(self, within_s: float) -> None:
        """Let running lookups continue for `within_s` seconds, then cancel them."""
        if self._asking:
            await asyncio.wait(self._asking, timeout=within_s)
        for task in tuple(self._asking):
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)


def answer_of(task: asyncio.Task[bool | None]) -> bool | None:
    """The outcome that the lookup found; None also if the database was closed before it ended."""
    return None if task.cancelled() else task.result()
