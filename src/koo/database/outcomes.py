"""Was it committed? Asked on a connection beside the pool, after a COMMIT was lost.

    INSERT INTO koo_markers (key, burned) VALUES (…, true) ON CONFLICT (key) DO UPDATE … RETURNING burned

* It **waits** in the unique index for a transaction that is still open. If that takes longer than `LOCK_WAIT_S`
  (because its COMMIT waits for a standby that is gone, say), the session that sent the key is ended, and the question
  repeated.
* `burned` false: the row is the transaction's own, so it **was committed**. True: the row is the asker's, so it **was
  not**, and never will be: anything of it that arrives late fails on the row.
* The row itself records whether it was burned, because the asker's own COMMIT may be lost too. It then asks again, and
  must not mistake the row that it left behind for the transaction's.
* It always writes, even if it finds the row: so its COMMIT waits for a synchronous standby as every other does.
  Otherwise a transaction could be reported as committed that a failover loses a second later.
* A standby cannot answer: it refuses the INSERT. It is asked again until it is promoted or the time runs out.

The connection and the permit of the scope are back by then, so it cannot wait for itself. It ends `resolve_timeout_s`
after the scope's deadline. A cancelled caller waits for the answer no longer than for any other clean-up; the question
goes on without it, and the answer is logged.
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
"""How long the old session may take for its COMMIT: a living one is usually done within milliseconds."""
PAUSES_S = (0.05, 1.0)
"""Between two unanswered questions: the first pause, and the longest."""
GLANCE_S = 0.1
"""How often a waiting caller checks whether it was cancelled: during COMMIT a cancellation is deferred."""
LOCK_NOT_AVAILABLE = "55P03"

_ASK = """
INSERT INTO {table} AS m (key, burned) VALUES (:key, true)
ON CONFLICT (key) DO UPDATE SET burned = m.burned RETURNING burned
"""
# Found by its last query, which holds the key: behind a pooler its process id would be another session's.
_END = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE pid <> pg_backend_pid() AND state <> 'idle' AND position(cast(:key AS text) IN query) > 0"
)

log = logging.getLogger("koo")


class Outcomes:
    """The questions of one database on one loop."""

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
        """Whether the transaction of this key was committed; None: no answer in time.

        `deadline`: the scope's. Await it where COMMIT was awaited, even where cancellations are deferred.
        """
        task = self._begin(key, deadline)
        try:
            is_heard = await self._wait(task)
        except asyncio.CancelledError:  # a COMMIT inside the block: the caller leaves without an answer
            task.add_done_callback(partial(self._tell, key, False))
            raise
        if is_heard:
            return answer_of(task)
        task.add_done_callback(partial(self._tell, key, True))
        return None

    def record(self, key: str, deadline: float) -> None:
        """As `learn`, without a waiting caller: the answer is logged."""
        self._begin(key, deadline).add_done_callback(partial(self._tell, key, False))

    def _begin(self, key: str, deadline: float) -> asyncio.Task[bool | None]:
        until = max(deadline, self._monotonic()) + self._options.resolve_timeout_s
        task = begin(asyncio.get_running_loop(), self._ask_until(key, until), "koo asks for a COMMIT")
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        return task

    async def _wait(self, task: asyncio.Task[bool | None]) -> bool:
        """Wait for the answer; False: the caller was cancelled, and the cleanup time has passed since."""
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
        """Log the answer to a question whose caller has gone."""
        self._news.note_outcome(key, answer_of(task), was_told=was_told)

    async def _ask_until(self, key: str, until: float) -> bool | None:
        pause_s, longest_s = PAUSES_S
        while True:
            left_s = until - self._monotonic()
            try:
                return await self._ask(key, min(max(left_s, GLANCE_S), self._options.pool_timeout_s))
            except Exception as error:
                log.debug("database: the outcome of a COMMIT could not be asked for", exc_info=True)
                # The old session still waits in COMMIT. While it lives, any answer could change: "not committed" now,
                # committed a moment later. So it is ended before the question is repeated.
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
        return not burned  # only after the block: the row that burns the key must itself be committed

    async def _end_session(self, key: str) -> None:
        try:
            async with self._beside.begin(self._options.pool_timeout_s) as connection:
                await connection.execute(_END, {"key": key})
        except Exception:
            log.debug("database: the session of a lost COMMIT could not be ended", exc_info=True)

    async def close(self, within_s: float) -> None:
        """Give open questions this long to be answered, then cancel them."""
        if self._asking:
            await asyncio.wait(self._asking, timeout=within_s)
        for task in tuple(self._asking):
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)


def answer_of(task: asyncio.Task[bool | None]) -> bool | None:
    """None also if the database was closed meanwhile."""
    return None if task.cancelled() else task.result()
