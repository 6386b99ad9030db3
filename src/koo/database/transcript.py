"""Work: what a scope does on its connection, what the engine reports about it, and what it comes to.

The breaker gets one verdict for a scope, by what the engine reported in it and not by what leaves the block: a lost
connection counts even if it was caught, and a user's own exception does not. Fifty statements on a dead connection are
one failure. Time in the block is the user's: the permit is charged with the database's time alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sqlalchemy.engine import ExceptionContext

from koo.database.faults import LOST, READ_ONLY, Drop, Meaning, Phase, explain, sqlstate_of
from koo.database.records import ConnectionRecord
from koo.errors import CommitOutcomeUnknown, DatabaseError, DatabaseTimeout, Kind, KooError, describe_s
from koo.guard import Scope
from koo.options import DatabaseOptions
from koo.policies.verdict import CANCELLED, FAILURE, NEUTRAL, UNJUDGED, Fault

if TYPE_CHECKING:
    from koo.database.connections import Connections

REPORTS_MAX = 8


class Transcript:
    """The part of a scope that the hooks inside SQLAlchemy see. What is rarely set stands at the class."""

    connections: Connections
    _monotonic: Callable[[], float]
    _options: DatabaseOptions

    readonly = False
    owner: asyncio.Task[object] | None = None
    phase = Phase.CONNECT
    expired = False
    statements = 0
    reports: Sequence[tuple[BaseException, Meaning]] = ()
    _held: Scope[None] | None = None
    _failure: Meaning | None = None
    _spoiler: BaseException | None = None
    _answered = _stopped = _unanswered = False
    _spent_s = _slowest_s = 0.0

    # ── a statement, or COMMIT ────────────────────────────────────────────────────────────────────────────────

    def enter(self, link: ConnectionRecord, phase: Phase) -> float:
        """Before anything is sent. Gives the time. Raises when it is too late, or when another task is at it."""
        if (
            link.busy
            or self.expired
            or self._held is None
            or (phase is Phase.COMMIT and self._spoiler is not None)
        ):
            raise self._why_not(link) from self._spoiler
        link.busy = True
        self.phase = phase
        return self._monotonic()

    def _why_not(self, link: ConnectionRecord) -> DatabaseError:
        name = self.connections.name
        if link.busy:
            reason = "two tasks use one session at once: open a scope in each of them"
        elif self.expired:
            return self.too_late()
        elif self._held is None:
            reason = "this scope has lost its connection: leave it"
        else:
            reason = (
                "a statement of this transaction failed and the error was caught, so the server would answer COMMIT"
                " with a rollback: put what may fail into session.begin_nested()"
            )
        return DatabaseError(name, reason, kind=Kind.INVALID_REQUEST)

    def leave(self, link: ConnectionRecord, began: float, succeeded: bool) -> float:
        """After it; gives how long it took. Of a failure `report` hears the rest."""
        link.busy = False
        took_s = self._monotonic() - began
        self._spent_s += took_s
        if took_s > self._slowest_s:  # noqa: PLR1730 - on the way of every statement
            self._slowest_s = took_s
        if succeeded:
            self.phase = Phase.BODY
            self._answered = True
            self._spoiler = None  # after a failed statement only ROLLBACK TO SAVEPOINT succeeds, and mends it
        return took_s

    # ── what the engine reports ───────────────────────────────────────────────────────────────────────────────

    def report(
        self, context: ExceptionContext, link: ConnectionRecord, error: BaseException
    ) -> BaseException | None:
        """An error of the engine in this scope; gives what is to be raised in its place, if anything."""
        if isinstance(error, KooError):
            return None
        meaning = explain(error, self.phase, lost=context.is_disconnect and isinstance(error, Exception))
        if len(self.reports) < REPORTS_MAX:
            self.reports = (*self.reports, (error, meaning))
        if self.phase is Phase.BODY and sqlstate_of(error) is not None:
            self._spoiler = error
        if meaning.drop is not Drop.KEEP:
            context.is_disconnect = True
        if meaning.drop is Drop.ALL and not self.readonly:
            self.connections.distrust_all()
        if meaning is READ_ONLY and not self.readonly:
            self.connections.note_read_only(True)
        ours = self.expired and meaning.kind in (Kind.CONNECTION, Kind.TIMEOUT)
        self._count(error, meaning, ours)
        if ours:
            self._unanswered = self._stopped and link.aborted
        if self.phase is Phase.COMMIT and meaning.unsure and self.statements and not self.readonly:
            return self._unknown()
        return self.too_late() if ours else None

    def _count(self, error: BaseException, meaning: Meaning, ours: bool) -> None:
        metrics = self.connections.metrics
        metrics.count_error(Kind.DEADLINE if ours else meaning.kind, type(error).__name__)
        metrics.contention += meaning.kind is Kind.CONTENTION
        metrics.broken += meaning is LOST and not ours
        if meaning.verdict is FAILURE and not ours and self._failure is None:
            self._failure = meaning

    def too_late(self) -> DatabaseTimeout:
        total_s = self._options.scope_timeout_s
        return DatabaseTimeout(
            self.connections.name, f"the scope's deadline passed (at most {describe_s(total_s)})"
        )

    def _unknown(self) -> CommitOutcomeUnknown:
        self.connections.metrics.unknown_commits += 1
        return CommitOutcomeUnknown(
            self.connections.name,
            "the connection was lost during COMMIT: the transaction may have happened or not,"
            " look before you repeat it",
        )

    def meaning_of(self, error: BaseException) -> Meaning | None:
        """What the engine reported about an error that left the scope, or about one that it came from."""
        reported = {id(original): meaning for original, meaning in self.reports}
        one: BaseException | None = error
        for _ in range(16):
            if one is None:
                return None
            meaning = reported.get(id(one)) or reported.get(id(getattr(one, "orig", None)))
            if meaning is not None:
                return meaning
            one = one.__cause__ or one.__context__
        return None

    def verdict(self, error: BaseException | None, late: bool) -> Fault | None:
        """The worst of what the engine reported; None is a success."""
        if self._failure is not None:
            return self._failure.fault()
        if self.expired and self._unanswered:
            return Fault(verdict=FAILURE, kind=Kind.TIMEOUT)
        if self.expired or late:
            return Fault(verdict=NEUTRAL, kind=Kind.DEADLINE)
        if error is not None and not isinstance(error, Exception):
            return CANCELLED
        return None if self._answered else UNJUDGED
