"""Transcript: what a scope did on its connection, what the engine reported about it, and what it comes to.

The breaker gets one verdict for a scope, by what the engine reported in it and not by what leaves the block: a lost
connection counts even if the block caught it, and a user's own exception does not. Fifty statements on a dead
connection are one failure. Time in the block is the user's: the permit is charged with the database's time alone.

A COMMIT that was lost may have happened. Where the block itself sent it, `report` says so at once. The last COMMIT is
the scope's own: it is only noted here (`in_doubt`), and the scope decides when its connection and permit are back.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import InvalidRequestError, ResourceClosedError, StatementError

from koo.database.faults import SERVICE, ScopeStage, explain
from koo.database.records import ConnectionRecord, ConnectionRecords
from koo.errors import CommitOutcomeUnknown, DatabaseError, DatabaseTimeout, Kind, KooError, describe_s
from koo.policies.verdict import CANCELLED, FAILURE, NEUTRAL, UNJUDGED, Fault
from koo.sqlstates import Drop, Meaning, sqlstate_of

REPORTS_MAX = 8
CAUSES_MAX = 16


class Transcript:
    """One scope's. The hooks inside SQLAlchemy write it (`koo.database.records.Occupant`); the scope reads it."""

    __slots__ = (
        "_answered", "_metrics", "_monotonic", "_readonly", "_records", "_reports", "_spoiler",
        "_unanswered", "expired", "failure", "has_permit", "in_doubt", "leaving", "slowest_s", "spent_s", "stage",
        "statements", "stopped",
    )  # fmt: skip

    def __init__(self, records: ConnectionRecords, readonly: bool) -> None:
        self._records = records
        self._metrics = records.metrics
        self._monotonic = records.monotonic
        self._readonly = readonly
        self._reports: Sequence[tuple[BaseException, Meaning]] = ()
        self._spoiler: BaseException | None = None
        self._answered = self._unanswered = False
        self.stage = ScopeStage.CONNECT
        self.has_permit = False
        self.expired = False  # the deadline came
        self.stopped = False  # ... while a statement ran
        self.leaving = False  # the block has ended
        self.in_doubt = False
        self.failure: Meaning | None = None
        self.statements = 0
        self.spent_s = self.slowest_s = 0.0

    # ── a statement, or COMMIT ────────────────────────────────────────────────────────────────────────────────

    def begin(self, took_s: float, *, answered: bool, connected: bool) -> None:
        """A connection has begun. `answered`: the server confirmed BEGIN; `connected`: the connection is new."""
        self._answered = answered
        self.spent_s = took_s
        if connected:
            self.slowest_s = took_s
            self._metrics.connect.note(took_s)

    def enter(self, record: ConnectionRecord, stage: ScopeStage) -> float:
        """Before anything is sent. Returns the time. Raises when it is too late, or when another task is at it."""
        if (
            record.busy
            or self.expired
            or not self.has_permit
            or (stage is ScopeStage.COMMIT and self._spoiler is not None)
        ):
            raise self._why_not(record) from self._spoiler
        record.busy = True
        self.stage = stage
        return self._monotonic()

    def _why_not(self, record: ConnectionRecord) -> DatabaseError:
        if record.busy:
            reason = "two tasks use one session at once: open a scope in each of them"
        elif self.expired:
            return self.too_late()
        elif not self.has_permit:
            reason = "this scope has lost its connection: leave it"
        else:
            reason = (
                "a statement of this transaction failed and the error was caught, so the server would answer COMMIT"
                " with a rollback: put what may fail into session.begin_nested()"
            )
        return DatabaseError(SERVICE, reason, kind=Kind.INVALID_REQUEST)

    def leave(self, record: ConnectionRecord, began: float, succeeded: bool) -> float:
        """After it. Returns how long it took. `report` receives the details of a failure."""
        record.busy = False
        took_s = self._monotonic() - began
        self.spent_s += took_s
        if took_s > self.slowest_s:  # noqa: PLR1730 - on the way of every statement
            self.slowest_s = took_s
        if succeeded:
            self.stage = ScopeStage.BODY
            self._answered = True
            self._spoiler = None  # after a failed statement only ROLLBACK TO SAVEPOINT succeeds, and mends it
        return took_s

    # ── what the engine reports ───────────────────────────────────────────────────────────────────────────────

    def report(
        self, context: ExceptionContext, record: ConnectionRecord, error: BaseException
    ) -> Exception | None:
        """An error of the engine in this scope; returns what is raised in its place, or None."""
        if isinstance(error, KooError):
            return None
        meaning = explain(error, self.stage, lost=context.is_disconnect and isinstance(error, Exception))
        if len(self._reports) < REPORTS_MAX:
            self._reports = (*self._reports, (error, meaning))
        if self.stage is ScopeStage.BODY and sqlstate_of(error) is not None:
            self._spoiler = error
        if meaning.drop is not Drop.KEEP:
            context.is_disconnect = True
        ours = self.expired and meaning.kind in (Kind.CONNECTION, Kind.TIMEOUT)
        self._count(error, meaning, ours)
        if ours:
            self._unanswered = self.stopped and record.aborted
        if self._is_doubtful(meaning):
            self._metrics.unknown_commits += 1
            self.in_doubt = self.leaving
            return None if self.leaving else self.unknown_outcome()
        return self.too_late() if ours else None

    def _is_doubtful(self, meaning: Meaning) -> bool:
        """Whether a COMMIT that would have changed something may have happened."""
        return (
            self.stage is ScopeStage.COMMIT and meaning.unsure and self.statements > 0 and not self._readonly
        )

    def _count(self, error: BaseException, meaning: Meaning, ours: bool) -> None:
        metrics = self._metrics
        metrics.count_error(Kind.DEADLINE if ours else meaning.kind, type(error).__name__)
        metrics.contention += meaning.kind is Kind.CONTENTION
        metrics.broken += meaning.is_loss and not ours
        if meaning.drop is Drop.ALL and not self._readonly:
            self._records.distrust_all()
        if meaning.kind is Kind.READ_ONLY and not self._readonly:
            metrics.is_read_only = True
        if meaning.verdict is FAILURE and not ours and self.failure is None:
            self.failure = meaning

    def too_late(self) -> DatabaseTimeout:
        total_s = self._records.options.scope_timeout_s
        return DatabaseTimeout(SERVICE, f"the scope's deadline passed (at most {describe_s(total_s)})")

    def unknown_outcome(self) -> CommitOutcomeUnknown:
        """The error for a COMMIT whose outcome stays unknown."""
        return CommitOutcomeUnknown(
            SERVICE,
            "the connection was lost during COMMIT: the transaction may have happened or not,"
            " look before you repeat it",
        )

    # ── what it comes to ──────────────────────────────────────────────────────────────────────────────────────

    def meaning_of(self, error: BaseException) -> Meaning | None:
        """What the engine reported about an error that left the scope, or about one that it came from."""
        reported = {id(original): meaning for original, meaning in self._reports}
        one: BaseException | None = error
        for _ in range(CAUSES_MAX):
            if one is None:
                return None
            meaning = reported.get(id(one)) or reported.get(id(getattr(one, "orig", None)))
            if meaning is not None:
                return meaning
            one = one.__cause__ or one.__context__
        return None

    def why_repeat(self, error: Exception) -> Meaning | None:
        """Why the whole transaction may be run again after `error` left the scope, or None."""
        if isinstance(error, CommitOutcomeUnknown | DatabaseTimeout) or self.stage is ScopeStage.CONNECT:
            return None  # on entry the guard has repeated what was worth it
        meaning = self.meaning_of(error)
        if meaning is None and isinstance(error, StatementError | InvalidRequestError | ResourceClosedError):
            # What SQLAlchemy says about a session whose connection was lost before, and the loss was caught.
            meaning = next((one for _, one in self._reports if one.is_loss), None)
        return meaning if meaning is not None and meaning.repeatable else None

    def verdict(self, error: BaseException | None, late: bool) -> Fault | None:
        """The worst of what the engine reported; None is a success."""
        if self.failure is not None:
            return self.failure.fault()
        if self.expired and self._unanswered:
            return Fault(verdict=FAILURE, kind=Kind.TIMEOUT)
        if self.expired or late:
            return Fault(verdict=NEUTRAL, kind=Kind.DEADLINE)
        if error is not None and not isinstance(error, Exception):
            return CANCELLED
        return None if self._answered else UNJUDGED
