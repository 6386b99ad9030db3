"""The hooks of a PostgreSQL engine whose COMMITs carry markers.

The outcome of a lost COMMIT is found here, before SQLAlchemy receives the error. For the session the COMMIT then either
succeeded or failed, so its objects, its events and the block's own code never see an unknown state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

from sqlalchemy import Engine
from sqlalchemy.util import await_only as await_

from koo.database.drivers.base import MarkingDriver
from koo.database.hooks import COMMIT, PAUSE_S, Hooks
from koo.database.marker_keys import TABLE, commit_key, writes_for_certain
from koo.database.markers import Markers, refused
from koo.database.outcomes import Outcomes
from koo.database.pool_queue import PoolQueue
from koo.database.records import ConnectionRecord, ConnectionRecords, Occupant
from koo.sqlstates import LOST, original_of, sqlstate_of

IN_FAILED_TRANSACTION = "25P02"
UNIQUE_VIOLATION = "23505"


class Committing(Protocol):
    """What is needed of a scope whose COMMIT was lost."""

    deadline: float

    @property
    def transcript(self) -> Occupant: ...

    def give_back(self, error: Exception) -> None:
        """Settle and return the permit."""
        ...


class MarkedHooks(Hooks):
    """Like `Hooks`, with a marker in each COMMIT. `wall` is the clock for the timestamps in the keys."""

    def __init__(
        self,
        records: ConnectionRecords,
        driver: MarkingDriver,
        markers: Markers,
        outcomes: Outcomes,
        pool_queue: PoolQueue,
        wall: Callable[[], float],
    ) -> None:
        super().__init__(records)
        self._send_marked = driver.commit_marked
        self._markers = markers
        self._outcomes = outcomes
        self._scopes = cast("dict[Committing, float]", pool_queue.holders)
        self._wall = wall

    def install(self, engine: Engine) -> None:
        super().install(engine)
        self._dialect: Any = engine.dialect

    def _begin(self, fairy: Any) -> None:
        super()._begin(fairy)
        # A connection outlives its transactions: without this a transaction that only reads would leave a row because
        # an earlier one on the same connection wrote.
        self._by_connection[fairy.dbapi_connection].wrote = False

    def _run(self, execute: Callable[..., Any], context: Any, statement: str, *parameters: Any) -> bool:
        record = self._by_connection.get(context.root_connection.connection.dbapi_connection)
        if record is not None and not record.wrote:
            record.wrote = writes_for_certain(statement)
        return super()._run(execute, context, statement, *parameters)

    def _commit(self, fairy: Any) -> None:
        record = self._by_connection[fairy.dbapi_connection]
        occupant, place = record.occupant, self._markers.place
        if occupant is None or not occupant.may_have_written():
            super()._commit(fairy)
            return
        if self._monotonic() - occupant.left_at > PAUSE_S:
            self._refuse_unsent(record, occupant, fairy)
        # The table was usable when this scope began, and another scope has since found that it is not. Committing
        # without a marker would silently drop the protection, so this COMMIT is refused.
        if place is None:
            raise refused(self._metrics.marker_problem or f"the table {TABLE} cannot be used")
        key = commit_key(self._wall())
        began = occupant.enter(record, COMMIT)
        try:
            done = self._send_marked(self._do_commit, fairy, place.insertion(key, record.wrote))
        except BaseException as error:  # noqa: BLE001 - raised again, unless the COMMIT is known to have happened
            occupant.leave(record, began, False)
            self._learn(record, occupant, fairy, key, error)
        else:
            took_s = occupant.leave(record, began, done)
            if not done:
                raise occupant.rolled_back()
            self._note_commit(took_s)
        record.is_open = False
        if not occupant.leaving:
            occupant.committed = True

    # ── a COMMIT that failed ──────────────────────────────────────────────────────────────────────────────────

    def _learn(
        self, record: ConnectionRecord, occupant: Occupant, fairy: Any, key: str, error: BaseException
    ) -> None:
        """Return if the COMMIT happened although it ended in `error`; otherwise raise the error for the caller."""
        scope = next((one for one in self._scopes if one.transcript is occupant), None)
        deadline = scope.deadline if scope is not None else 0.0
        if not isinstance(error, Exception):
            # A `session.commit()` inside the block was cancelled (the last COMMIT runs where cancellations are
            # deferred). The caller must get its cancellation now, so the outcome can only be logged.
            self._outcomes.record(key, deadline)
            raise error
        meaning = occupant.lost_in_commit(record, error, self._is_lost(record, fairy, error))
        if meaning is None:
            raise self._refusal(occupant, error)
        # The connection and the permit are returned first. After a server restart every scope may be here at once: if
        # each kept its connection while it waits for the outcome, new scopes would be refused for up to
        # `resolve_timeout_s` although every one of these connections is dead.
        self._give_back(record, scope if occupant.leaving else None, fairy, error)
        was_committed = await_(self._outcomes.learn(key, deadline))
        if was_committed is None:
            occupant.count_unknown()
            raise occupant.unknown_outcome(key) from original_of(error)
        self._metrics.note_resolved_commit()
        if not was_committed:
            raise occupant.not_committed(meaning) from original_of(error)

    def _is_lost(self, record: ConnectionRecord, fairy: Any, error: Exception) -> bool:
        dialect = self._dialect
        if record.is_closed:
            return True
        return isinstance(error, dialect.loaded_dbapi.Error) and bool(
            dialect.is_disconnect(error, fairy.dbapi_connection, None)
        )

    def _give_back(
        self, record: ConnectionRecord, scope: Committing | None, fairy: Any, error: Exception
    ) -> None:
        """Release the connection, and the permit too if the scope is ending."""
        # The connection is cut off rather than closed: an orderly close would wait for a server that may not respond.
        # Without an occupant the connection is no longer the scope's, so the scope's deadline and its rollback leave it
        # alone.
        record.abort()
        record.occupant, record.is_open = None, False
        fairy.invalidate(error)
        if scope is not None:
            scope.give_back(error)

    def _refusal(self, occupant: Occupant, error: Exception) -> Exception:
        """The error for a COMMIT that did not happen: the original one, unless the marker was refused."""
        code = sqlstate_of(error)
        if code == IN_FAILED_TRANSACTION:
            return occupant.rolled_back()
        if code is None or TABLE not in str(error):
            return error
        if code == UNIQUE_VIOLATION:
            # The key was burned while this message was on its way, so "not committed" has already been reported for
            # this key. The burned row made the message fail, which keeps that report true.
            return occupant.not_committed(LOST)
        problem = refused(f"the marker was refused (SQLSTATE {code}), so the transaction was rolled back")
        self._markers.distrust(problem.reason)
        return problem
