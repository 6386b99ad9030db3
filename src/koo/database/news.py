"""Events and log lines of a database, apart from those of its breaker: failed scopes, and changes of its state.

A scope that failed because of the program itself (a constraint, an invalid statement, the program's own exception) is
not logged: many programs use a constraint to find out whether a row exists.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from koo.clock import Clock
from koo.database.faults import SERVICE
from koo.database.gate import GateState
from koo.database.pool_queue import Holder, describe
from koo.database.transcript import Transcript, leaves_of
from koo.database.whereabouts import find, first_words
from koo.errors import CommitOutcomeUnknown, DatabaseError, Kind, describe_s
from koo.events import (
    CommitUnknown,
    DatabaseDraining,
    DatabasePaused,
    DatabaseReadOnly,
    DatabaseResumed,
    DatabaseRotated,
    DatabaseWritable,
    Event,
    HealthCheckFailed,
    HealthCheckPassed,
)
from koo.logs.calls import CallLog, What
from koo.logs.event_log import EventLog
from koo.logs.lines import Line
from koo.monitoring.pool import PoolMetrics
from koo.monitoring.shapes import DatabaseServer
from koo.openings import Act
from koo.server_words import sentence_of
from koo.sqlstates import original_of, sqlstate_of

THE_PROGRAMS = frozenset({Kind.INTEGRITY, Kind.INVALID_REQUEST})
"""Kinds of errors that concern one statement, not the health of the database."""


class EndedScope(Protocol):
    """A scope that has ended. One that never began has neither attribute."""

    transcript: Transcript

    @property
    def session(self) -> object: ...


class DatabaseNews:
    """Publishes the events of one database to `publish` and its failed calls to `calls`; by default both are logged."""

    def __init__(
        self,
        metrics: PoolMetrics,
        clock: Clock,
        publish: Callable[[Event], None] | None = None,
        calls: CallLog | None = None,
    ) -> None:
        self.publish = publish or EventLog(clock).on_event
        self.calls = calls or CallLog(clock)
        self._is_alone = calls is None
        self._metrics = metrics
        self._clock = clock
        self._was_read_only = False
        self._checks_failed = 0

    # ── scopes ────────────────────────────────────────────────────────────────────────────────────────────────

    def failed(self, error: BaseException, scope: EndedScope, what: What, attempts: int) -> None:
        """A scope failed, or a function for which it was the last attempt."""
        # koo's own error may be inside a group that a TaskGroup raised. An error of SQLAlchemy or of a driver is logged
        # by what the engine reported about it, and not at all if the engine reported nothing: then it is the program's
        # own.
        known = next((one for one in leaves_of(error) if isinstance(one, DatabaseError)), None)
        if known is not None:
            self._failed(known, scope, what, attempts)
            return
        meaning = scope.transcript.meaning_of(error)
        if meaning is None or meaning.kind in THE_PROGRAMS:
            return
        original = original_of(error)
        sentence, detail = sentence_of(original, meaning), {"sqlstate": sqlstate_of(original)}
        said = DatabaseError(SERVICE, sentence, kind=meaning.kind, detail=detail)
        self.calls.failed(SERVICE, what, said, meaning.kind, attempts)

    def _failed(self, error: DatabaseError, scope: EndedScope, what: What, attempts: int) -> None:
        if error.logged:
            return  # an inner scope, which it passed through first, has logged it
        error.logged = True
        if isinstance(error, CommitOutcomeUnknown):
            where = str(find(asyncio.current_task(), scope.session))
            words = first_words(scope.transcript.statement)
            self.publish(CommitUnknown(SERVICE, where, words, error.key or ""))
        else:
            self.calls.failed(SERVICE, what, error, error.kind, attempts)

    def note_outcome(self, key: str, was_committed: bool | None, *, was_told: bool) -> None:
        """The outcome of a lost COMMIT whose caller was cancelled; None: unknown.

        `was_told`: the caller has already received `CommitOutcomeUnknown`, which was published and counted.
        """
        metrics = self._metrics
        if was_committed is None:
            if not was_told:
                metrics.note_unknown_commit(self._clock.monotonic())
                self.publish(CommitUnknown(SERVICE, "", "", key))
            return
        metrics.note_resolved_commit(was_unknown=was_told)
        said = "it happened" if was_committed else "it did not happen, and nothing of it was written"
        words = "the COMMIT of a cancelled caller was lost"
        Line(logging.WARNING, SERVICE, words, [said, f"marker {key}"], {"what": "commit_resolved"}).write("")

    def note_refused(self, error: DatabaseError) -> None:
        """No scope can begin, because the database's file cannot be created."""
        self.calls.failed(SERVICE, "scope", error, error.kind, 0)

    # ── what changed ──────────────────────────────────────────────────────────────────────────────────────────

    def tick(self) -> None:
        """Called every second: publish changes since the last call."""
        if self._is_alone:
            self.calls.tick()
        is_read_only = self._metrics.is_read_only
        if is_read_only is not self._was_read_only:
            self._was_read_only = is_read_only
            self.publish(DatabaseReadOnly(SERVICE) if is_read_only else DatabaseWritable(SERVICE))

    def note_check(self, error: DatabaseError | None, server: DatabaseServer) -> None:
        """A probe of this server has ended."""
        if error is None:
            failed, self._checks_failed = self._checks_failed, 0
            if failed:
                self.publish(HealthCheckPassed(SERVICE, failed))
            return
        self._checks_failed += 1
        if self._checks_failed == 1:
            self.publish(HealthCheckFailed(SERVICE, f"{error.reason} ({shown(server)})", error.kind))

    def note_gate(self, state: GateState, running: int, act: Act | None) -> None:
        """An operator has shut or opened the gate."""
        if state is GateState.OPEN:
            self.publish(DatabaseResumed(SERVICE, act))
        else:
            shut = DatabasePaused if state is GateState.PAUSED else DatabaseDraining
            self.publish(shut(SERVICE, running, act))

    def note_rotation(self, running: int) -> None:
        """An operator has replaced the connections."""
        self.publish(DatabaseRotated(SERVICE, running))

    def note_overdue(self, scopes: list[tuple[Holder, float]], now: float) -> None:
        """Log scopes that have been open for too long, each with the time at which it was opened."""
        for scope, since in scopes:
            left_s = max(scope.deadline - now, 0.0)
            said = [describe(scope, since, now), f"its deadline is in {describe_s(left_s)}"]
            Line(logging.WARNING, SERVICE, "a scope is still open", said, {"what": "scope_overdue"}).write("")

    def close(self) -> None:
        """The database is closed: write the log lines that are still pending."""
        if self._is_alone:
            self.calls.close()


def shown(server: DatabaseServer) -> str:
    """A database's name for display: "db.example:5432/shop"."""
    host = server["host"] or ""
    place = host if server["port"] is None else f"{host}:{server['port']}"
    return f"{place}/{server['name']}" if place else f"{server['name']}"
