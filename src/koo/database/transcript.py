"""Transcript: what a scope did on its connection, what the engine reported about it, and the verdict.

The breaker gets one verdict per scope, by what the engine reported in it, not by what leaves the block: a lost
connection counts even if the block caught it, and a user's own exception does not. Fifty statements on a dead
connection are one failure. Time in the block is the user's: the permit is charged with the database's time only.

A COMMIT that was lost may have happened. If the block itself sent it, `report` says so at once. The last COMMIT is the
scope's own: it is only noted here (`in_doubt`), and the scope decides when its connection and permit are back.

What a block does on the driver's own connection (COPY, a psycopg cursor) bypasses the engine and is not counted. So
once a block holds that connection (`handed_out`), it may have done anything: a lost COMMIT is in doubt, and a driver's
error that leaves the block is treated as if the engine had reported it (`report_raw`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import InvalidRequestError, ResourceClosedError, StatementError

from koo.database.faults import AGAIN_IN_S, SERVICE, ScopeStage, explain
from koo.database.marker_keys import TABLE
from koo.database.records import ConnectionRecord, ConnectionRecords
from koo.errors import (
    CommitOutcomeUnknown,
    DatabaseError,
    DatabaseTimeout,
    Kind,
    KooError,
    NotCommitted,
    describe_s,
)
from koo.policies.verdict import CANCELLED, FAILURE, NEUTRAL, UNJUDGED, Fault
from koo.sqlstates import LATE, STANDBY, Drop, Meaning, sqlstate_of

REPORTS_MAX = 8
CAUSES_MAX = 16
IN_FAILED_TRANSACTION = "25P02"
"""This error says only that an earlier statement failed: the reason is that statement's error."""


class Transcript:
    """One scope's transcript. SQLAlchemy's hooks write it (`koo.database.records.Occupant`); the scope reads it."""

    __slots__ = (
        "_answered", "_failed_s", "_metrics", "_monotonic", "_readonly", "_records", "_reports", "_spoiler",
        "_unanswered", "committed", "expired", "failure", "handed_out", "has_permit", "in_doubt", "leaving",
        "slowest_s", "spent_s", "stage", "statement", "statements", "stopped",
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
        self.handed_out = False  # the block holds a driver connection: what it does there is not seen
        self.committed = (
            False  # the block has committed part of its work, or may have: no part may be repeated
        )
        self.failure: Meaning | None = None
        self.statement: str | None = None
        self.statements = 0
        self.spent_s = self.slowest_s = 0.0
        self._failed_s: float | None = None  # how long what failed took, until the engine reports why

    # ── a statement, or COMMIT ────────────────────────────────────────────────────────────────────────────────

    def begin(self, took_s: float, *, answered: bool, connected: bool) -> None:
        """A transaction has begun. `answered`: the server confirmed BEGIN; `connected`: the connection is new."""
        self._answered = answered
        self.spent_s = took_s
        if connected:
            self.slowest_s = took_s
            self._metrics.connect.note(took_s)

    def enter(self, record: ConnectionRecord, stage: ScopeStage) -> float:
        """Before anything is sent. Returns the time. Raises if it is too late, or another task uses the session."""
        if record.busy or self.expired or not self.has_permit:
            raise self._why_not(record)
        record.busy = True
        self.stage = stage
        return self._monotonic()

    def _why_not(self, record: ConnectionRecord) -> DatabaseError:
        if record.busy:
            reason = "two tasks use one session at once: open a scope in each of them"
        elif self.expired:
            return self.too_late()
        else:
            reason = "this scope has lost its connection, so it cannot run more statements: leave the block"
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
            self._spoiler = (
                None  # after a failed statement only a rollback can succeed, and it repairs the transaction
            )
        else:
            self._failed_s = took_s
        return took_s

    # ── what the engine reports ───────────────────────────────────────────────────────────────────────────────

    def report(
        self, context: ExceptionContext, record: ConnectionRecord, error: BaseException
    ) -> Exception | None:
        """An error of the engine in this scope; returns what to raise instead, or None."""
        if isinstance(error, KooError):
            return None
        meaning = explain(error, self.stage, lost=context.is_disconnect and isinstance(error, Exception))
        if meaning.drop is not Drop.KEEP:
            context.is_disconnect = True
        ours = self._note(error, meaning, record)
        if self._is_doubtful(meaning):
            self.count_unknown()
            self.in_doubt = self.leaving
            return None if self.leaving else self.unknown_outcome()
        if meaning is STANDBY and not self._readonly:
            return DatabaseError(SERVICE, meaning.says, AGAIN_IN_S, kind=meaning.kind)
        return self.too_late() if ours else None

    def report_raw(self, error: Exception, record: ConnectionRecord) -> None:
        """An error leaves the block: check whether it came from the driver's own connection, past the engine."""
        self.look_for_commit(record)
        for leaf in leaves_of(error) if self.handed_out else ():
            if self.meaning_of(leaf) is None:
                self._report_raw_one(leaf, record)

    def _report_raw_one(self, error: BaseException, record: ConnectionRecord) -> None:
        for one in chain_of(error):
            original = record.driver.error_of(record.adapted, one)
            if original is not None:
                meaning = explain(original, lost=record.is_closed)
                # If this connection is not lost, the error came from another one that the block opened itself.
                if record.is_closed or not meaning.is_loss:
                    self._note(one, meaning, record)
                return

    def look_for_commit(self, record: ConnectionRecord) -> None:
        """Check whether the block ended the transaction in its own words, such as `text("COMMIT")`."""
        if self.stage is ScopeStage.BODY and record.has_ended():
            self.committed = True

    def _note(self, error: BaseException, meaning: Meaning, record: ConnectionRecord) -> bool:
        """Keep and count it. Returns whether our own deadline caused it."""
        self.look_for_commit(record)
        spoiler = self._spoiler
        if spoiler is not None and sqlstate_of(error) == IN_FAILED_TRANSACTION:
            reason = next((known for one, known in self._reports if one is spoiler), meaning)
        else:
            reason = meaning
            if self.stage is ScopeStage.BODY and sqlstate_of(error) is not None:
                self._spoiler = error
        if len(self._reports) < REPORTS_MAX:
            self._reports = (*self._reports, (error, reason))
        ours = self.expired and meaning.kind in (Kind.CONNECTION, Kind.TIMEOUT)
        self._count(error, meaning, ours)
        if ours:
            self._unanswered = self.stopped and record.aborted
        return ours

    def _is_doubtful(self, meaning: Meaning) -> bool:
        """Whether a COMMIT that would have changed something may have happened."""
        if self.stage is not ScopeStage.COMMIT or not meaning.unsure or self._readonly:
            return False
        # A spoiled transaction commits nothing; but the block may have repaired it on its own connection.
        return self.handed_out or (self.statements > 0 and self._spoiler is None)

    def _count(self, error: BaseException, meaning: Meaning, ours: bool) -> None:
        metrics = self._metrics
        kind = Kind.DEADLINE if ours else meaning.kind
        metrics.count_error(kind, type(error).__name__)
        if self._failed_s is not None:
            metrics.failures.append((kind, self._failed_s))
            self._failed_s = None
        metrics.contention += meaning.kind is Kind.CONTENTION
        metrics.broken += meaning.is_loss and not ours
        if meaning.drop is Drop.ALL and not self._readonly:
            self._records.distrust_all()
        if meaning.kind is Kind.READ_ONLY and not self._readonly:
            metrics.is_read_only = True
            if meaning.drop is Drop.KEEP:  # a full disk: reconnecting cannot show when it passes
                metrics.disk_full_at = self._monotonic()
        if meaning.verdict is FAILURE and not ours and self.failure is None:
            self.failure = meaning

    def too_late(self) -> DatabaseTimeout:
        total_s = self._records.options.scope_timeout_s
        return DatabaseTimeout(SERVICE, f"the scope's deadline passed (at most {describe_s(total_s)})")

    def rolled_back(self) -> DatabaseError:
        """The error for a COMMIT that becomes a rollback; its cause is what the engine reported."""
        self.stage = (
            ScopeStage.BODY
        )  # otherwise a loss in the ROLLBACK that follows would be taken for a lost COMMIT
        error = DatabaseError(
            SERVICE,
            "a statement of this transaction failed and the error was caught, so the server answers COMMIT"
            " with a rollback: put what may fail into session.begin_nested()",
            kind=Kind.INVALID_REQUEST,
        )
        error.__cause__ = self._spoiler
        return error

    def mended(self) -> None:
        """ROLLBACK: a failed statement no longer spoils the transaction."""
        self._spoiler = None

    # ── a COMMIT that was lost ────────────────────────────────────────────────────────────────────────────────

    def may_have_written(self) -> bool:
        """Whether the next COMMIT may change something."""
        return not self._readonly and (self.statements > 0 or self.handed_out)

    def lost_in_commit(self, record: ConnectionRecord, error: Exception, lost: bool) -> Meaning | None:
        """Count an error of a COMMIT that has a marker; returns its meaning, or None if it did not happen."""
        meaning = explain(error, self.stage, lost=lost)
        if not self._is_doubtful(meaning):
            return None
        self._note(error, meaning, record)
        self.stage = ScopeStage.BODY
        return meaning

    def count_unknown(self) -> None:
        """The outcome of a COMMIT stays unknown: from here on no part may be repeated."""
        self._metrics.note_unknown_commit(self._monotonic())
        self.committed = True

    def unknown_outcome(self, key: str | None = None) -> CommitOutcomeUnknown:
        """The error for a COMMIT whose outcome stays unknown; `key` is its marker's."""
        reason = "the connection was lost during COMMIT: the transaction may have happened or not"
        if key is None:
            return CommitOutcomeUnknown(SERVICE, f"{reason}; check before you repeat it")
        reason += ", and the database could not say in time:"
        reason += f" it happened if {TABLE} has the key {key} with burned = false"
        unknown = CommitOutcomeUnknown(SERVICE, reason)
        unknown.key = key
        return unknown

    def not_committed(self, meaning: Meaning) -> NotCommitted:
        """The error for a COMMIT that was lost for the reason `meaning`, and did not happen."""
        error = NotCommitted(
            SERVICE,
            "the connection was lost during COMMIT, and the transaction did not happen:"
            " nothing of it was written, so it may be repeated",
            AGAIN_IN_S,
        )
        self._reports = (*self._reports, (error, meaning))
        return error

    # ── what it comes to ──────────────────────────────────────────────────────────────────────────────────────

    def meaning_of(self, error: BaseException) -> Meaning | None:
        """What the engine reported about an error that left the scope, or about one of its causes.

        For a group (`asyncio.TaskGroup`, anyio) it is the first member's, if each of them may be repeated.
        """
        reported = {id(original): meaning for original, meaning in self._reports}
        for one in chain_of(error):
            if isinstance(one, BaseExceptionGroup):
                return self._meaning_of_group(one)
            meaning = reported.get(id(one)) or reported.get(id(getattr(one, "orig", None)))
            if meaning is not None:
                return meaning
        return None

    def _meaning_of_group(self, group: BaseExceptionGroup[BaseException]) -> Meaning | None:
        meanings = [self._meaning_of_end(one) for one in group.exceptions]
        worst = [one for one in meanings if one is None or not one.repeatable]
        return (worst or meanings)[0]

    def _meaning_of_end(self, error: BaseException) -> Meaning | None:
        """As `meaning_of`, also for errors that follow from an earlier loss."""
        meaning = self.meaning_of(error)
        if meaning is None and isinstance(error, StatementError | InvalidRequestError | ResourceClosedError):
            # SQLAlchemy's error for a session whose connection was lost before, if the loss was caught.
            meaning = next((one for _, one in self._reports if one.is_loss), None)
        return meaning

    def why_repeat(self, error: Exception) -> Meaning | None:
        """Why the whole transaction may be run again after `error` left the scope, or None."""
        # On entry the guard has already repeated what was worth repeating.
        if self.committed or self.stage is ScopeStage.CONNECT:
            return None
        if any(isinstance(one, CommitOutcomeUnknown | DatabaseTimeout) for one in leaves_of(error)):
            return None
        meaning = self._meaning_of_end(error)
        if meaning is None or meaning.repeatable:
            return meaning
        # Nothing was written; after a failover the next connection leads to another server.
        return meaning if meaning is STANDBY and not self._readonly else None

    def verdict(self, error: BaseException | None, late: bool) -> Fault | None:
        """The worst of what the engine reported; None is a success."""
        if self.failure is not None:
            return self.failure.fault()
        if self.expired and self._unanswered:
            return LATE.fault()
        if self.expired or late:
            return Fault(verdict=NEUTRAL, kind=Kind.DEADLINE)
        if error is not None and not isinstance(error, Exception):
            return CANCELLED
        return None if self._answered else UNJUDGED


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """An error, its cause, and so on."""
    one: BaseException | None = error
    for _ in range(CAUSES_MAX):
        if one is None:
            return
        yield one
        one = one.__cause__ or one.__context__


def leaves_of(error: BaseException) -> Iterator[BaseException]:
    """The members of a group, also of groups within it; an error that is not a group is its only member."""
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from leaves_of(one)
    else:
        yield error
