"""The hooks of an engine on PostgreSQL whose COMMITs have markers.

A lost COMMIT is decided right here, before SQLAlchemy hears of it: to the session it either succeeded or failed. So its
objects, its events and the block's own code see one of the two, never an open question.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

from sqlalchemy import Engine
from sqlalchemy.util import await_only as await_

from koo.database.drivers.base import MarkingDriver
from koo.database.hooks import COMMIT, Hooks
from koo.database.marker_keys import TABLE, commit_key, writes_for_certain
from koo.database.markers import Markers, refused
from koo.database.outcomes import Outcomes
from koo.database.pool_queue import PoolQueue
from koo.database.records import ConnectionRecord, ConnectionRecords, Occupant
from koo.sqlstates import LOST, original_of, sqlstate_of

IN_FAILED_TRANSACTION = "25P02"
UNIQUE_VIOLATION = "23505"


class Committing(Protocol):
    """A scope, as far as a lost COMMIT concerns it."""

    deadline: float

    @property
    def transcript(self) -> Occupant: ...

    def give_back(self, error: Exception) -> None:
        """Give the permit back, and settle it."""
        ...


class MarkedHooks(Hooks):
    """As `Hooks`; `wall` is the time at the start of keys."""

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
        if place is None:  # since this scope began, another one found that the table can no longer be used
            raise refused(self._metrics.marker_problem or f"the table {TABLE} cannot be used")
        key = commit_key(self._wall())
        began = occupant.enter(record, COMMIT)
        try:
            done = self._send_marked(self._do_commit, fairy, place.insertion(key, record.wrote))
        except BaseException as error:  # noqa: BLE001 - raised again, unless it is known to have happened
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
        """Return if the COMMIT happened although it ended in `error`; else raise the error for the caller."""
        scope = next((one for one in self._scopes if one.transcript is occupant), None)
        deadline = scope.deadline if scope is not None else 0.0
        if not isinstance(error, Exception):
            self._outcomes.record(key, deadline)  # a COMMIT inside the block: only the log can have it
            raise error
        meaning = occupant.lost_in_commit(record, error, self._is_lost(record, fairy, error))
        if meaning is None:
            raise self._refusal(occupant, error)
        # Connection and permit go back first. If every scope kept its own while it asks, a pool full of lost COMMITs
        # would wait for connections that only its own members could free.
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
        """Release the connection, and the permit of a scope that ends: the question must not wait for either."""
        record.abort()
        record.occupant, record.is_open = None, False
        fairy.invalidate(error)
        if scope is not None:
            scope.give_back(error)

    def _refusal(self, occupant: Occupant, error: Exception) -> Exception:
        """The error for a COMMIT that did not happen: the caller's own, unless the marker was refused."""
        code = sqlstate_of(error)
        if code == IN_FAILED_TRANSACTION:
            return occupant.rolled_back()
        if code is None or TABLE not in str(error):
            return error
        if code == UNIQUE_VIOLATION:
            # The key was burned while this message was on its way: the answer "not committed" was given, and holds.
            return occupant.not_committed(LOST)
        problem = refused(f"the marker was refused (SQLSTATE {code}), so the transaction was rolled back")
        self._markers.distrust(problem.reason)
        return problem
