"""Transcript: what a scope did on its connection, what the engine reported about it, and the verdict.

The breaker gets one verdict per scope. It depends on what the engine reported during the scope, not on the exception
that leaves the block: a lost connection counts even if the block caught the error, and the user's own exceptions do not
count. Fifty statements on a dead connection are one failure. The permit is charged only with the time that the database
took, not with the time that the user's code took.

A lost COMMIT may have happened. If the block itself sent it, `report` raises that immediately. If it was the scope's
final COMMIT, `report` only sets `in_doubt`, and the scope decides after it has returned its connection and its permit.

What a block does on the driver's own connection (COPY, a psycopg cursor) bypasses the engine and is not counted. Once
the block has that connection (`handed_out`), it may have done anything on it: a lost COMMIT is then always in doubt,
and a driver's error that leaves the block is treated as if the engine had reported it (`report_raw`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
from koo.options import NEVER
from koo.policies.verdict import CANCELLED, FAILURE, NEUTRAL, UNJUDGED, Fault
from koo.sqlstates import LATE, LOST, OVERSTAYED, STANDBY, Drop, Meaning, sqlstate_of

REPORTS_MAX = 8
"""Errors kept per scope. The first ones explain the rest, and a block that catches errors in a loop has no limit."""
CAUSES_MAX = 16
"""How far a chain of causes is followed: an application can set causes in a cycle."""
IN_FAILED_TRANSACTION = "25P02"
"""This error says only that an earlier statement failed: the reason is that statement's error."""


class Transcript:
    """One scope's transcript. SQLAlchemy's hooks write it (`koo.database.records.Occupant`); the scope reads it."""

    __slots__ = (
        "_answered", "_failed_s", "_idled_s", "_instead", "_metrics", "_monotonic", "_readonly", "_records",
        "_reported", "_reports", "_spoiler", "_unanswered", "committed", "expired", "failure", "handed_out",
        "has_permit", "in_doubt", "leaving", "left_at", "slowest_s", "spent_s", "stage", "statement", "statements",
        "stopped",
    )  # fmt: skip

    def __init__(self, records: ConnectionRecords, readonly: bool) -> None:
        self._records = records
        self._metrics = records.metrics
        self._monotonic = records.monotonic
        self._readonly = readonly
        self._reports: Sequence[tuple[BaseException, Meaning]] = ()
        self._spoiler: BaseException | None = None
        self._reported: BaseException | None = None
        self._instead: Exception | None = None
        self._answered = self._unanswered = False
        self.stage = ScopeStage.CONNECT
        self.has_permit = False
        self.expired = False  # the deadline has passed
        self.stopped = False  # ... while a statement was running
        self.leaving = False  # the block has ended
        self.in_doubt = False
        # The block has the driver's connection, and the hooks do not see what it does there.
        self.handed_out = False
        # The block has committed part of its work, or may have: nothing may be repeated.
        self.committed = False
        self.failure: Meaning | None = None
        self.statement: str | None = None
        self.statements = 0
        self.spent_s = self.slowest_s = 0.0
        self.left_at = NEVER
        self._idled_s = 0.0  # how long the block had sent nothing before the step that failed
        self._failed_s: float | None = None  # how long the failed step took, until `report` brings the reason

    # ── a statement, or COMMIT ────────────────────────────────────────────────────────────────────────────────

    def begin(self, took_s: float, *, answered: bool, connected: bool) -> None:
        """A transaction has begun. `answered`: the server confirmed BEGIN; `connected`: the connection is new."""
        self._answered = answered
        self.spent_s = took_s
        if connected:
            self.slowest_s = took_s
            self._metrics.connect.note(took_s)

    def enter(self, record: ConnectionRecord, stage: ScopeStage) -> float:
        """Called before anything is sent; returns the time.

        Raises `DatabaseError` after the deadline, while another task uses the session, and without a permit.
        """
        if record.busy or self.expired or not self.has_permit:
            raise self._why_not(record)
        record.busy = True
        self.stage = stage
        return self._monotonic()

    def _why_not(self, record: ConnectionRecord) -> DatabaseError:
        if record.busy:
            reason = "two tasks are using one session at the same time: open a scope in each of them"
        elif self.expired:
            return self.too_late()
        else:
            reason = "this scope has lost its connection, so it cannot run more statements: leave the block"
        return DatabaseError(SERVICE, reason, kind=Kind.INVALID_REQUEST)

    def leave(self, record: ConnectionRecord, began: float, succeeded: bool) -> float:
        """Called after the statement or COMMIT; returns how long it took. `report` brings the details of a failure."""
        record.busy = False
        now = self._monotonic()
        took_s = now - began
        self.spent_s += took_s
        if took_s > self.slowest_s:  # noqa: PLR1730 - every statement passes here, and `max()` is slower
            self.slowest_s = took_s
        if succeeded:
            self.stage = ScopeStage.BODY
            self._answered = True
            # PostgreSQL refuses every statement after a failed one, except a rollback to a savepoint. So a statement
            # that succeeds proves that the transaction was repaired, and a COMMIT will write again.
            self._spoiler = None
        else:
            self._failed_s = took_s
            self._idled_s = began - self.left_at
        self.left_at = now
        return took_s

    @property
    def is_unused(self) -> bool:
        """Whether the scope has sent nothing, so that its COMMIT or the loss of its connection changes nothing."""
        return not (self.statements or self.handed_out or self._reports or self.expired)

    # ── what the engine reports ───────────────────────────────────────────────────────────────────────────────

    def report(self, error: BaseException, record: ConnectionRecord, lost: bool) -> bool:
        """Record an error of the engine. Returns whether its connection must be closed; `lost` if it is known to be."""
        if isinstance(error, KooError):  # raised by one of koo's own hooks, inside the engine
            return lost
        self._reported, self._instead = error, None
        meaning = explain(error, self.stage, lost=lost and isinstance(error, Exception))
        # asyncpg discards what a server says before it closes an idle connection. Never in COMMIT: the block may have
        # lifted the limit, and then the transaction may have happened.
        limit_s = NEVER if self.stage is ScopeStage.COMMIT else record.driver.idle_limit_s(record.connection)
        if meaning is LOST and self._idled_s >= limit_s:
            meaning = OVERSTAYED
        ours = self._note(error, meaning, record)
        # While the block is running, its `session.commit()` must raise the unknown outcome here, because the block goes
        # on and may act on it. The final COMMIT is only noted: if it were raised here, inside SQLAlchemy's hook, the
        # scope would still have its connection and its permit.
        if self._is_doubtful(meaning):
            self.count_unknown()
            self.in_doubt = self.leaving
            self._instead = None if self.leaving else self.unknown_outcome()
        elif meaning is STANDBY and not self._readonly:
            self._instead = DatabaseError(SERVICE, meaning.says, AGAIN_IN_S, kind=meaning.kind)
        elif ours:
            self._instead = self.too_late()
        return lost or meaning.drop is not Drop.KEEP

    def has_reported(self, error: BaseException) -> bool:
        """Whether `error` is the last one reported."""
        return self._reported is error

    def take_instead(self) -> Exception | None:
        """The error to raise instead of the last one reported, or None."""
        self._reported, instead, self._instead = None, self._instead, None
        return instead

    def report_raw(self, error: Exception, record: ConnectionRecord) -> None:
        """An error leaves the block: check whether it came from the driver's own connection, bypassing the engine."""
        self.look_for_commit(record)
        for leaf in leaves_of(error) if self.handed_out else ():
            if self.meaning_of(leaf) is None:
                self._report_raw_one(leaf, record)

    def _report_raw_one(self, error: BaseException, record: ConnectionRecord) -> None:
        for one in chain_of(error):
            original = record.driver.error_of(record.adapted, one)
            if original is not None:
                meaning = explain(original, lost=record.is_closed)
                # If this connection is still open, a loss happened on a connection that the block opened itself. It
                # says nothing about this database, which may not even be the same server.
                if record.is_closed or not meaning.is_loss:
                    self._note(one, meaning, record)
                return

    def look_for_commit(self, record: ConnectionRecord) -> None:
        """Check whether the block ended the transaction with a statement of its own, such as `text("COMMIT")`."""
        if self.stage is ScopeStage.BODY and record.has_ended():
            self.committed = True

    def _note(self, error: BaseException, meaning: Meaning, record: ConnectionRecord) -> bool:
        """Keep and count an error. Returns whether the scope's own deadline caused it."""
        self.look_for_commit(record)
        # After a deadlock that the block caught, every later statement fails with 25P02, and so does the scope. Judged
        # by its own code, 25P02 would count as the program's mistake. Judged by the first error, it is a conflict, and
        # the transaction may be repeated.
        spoiler = self._spoiler
        if spoiler is not None and sqlstate_of(error) == IN_FAILED_TRANSACTION:
            reason = next((known for one, known in self._reports if one is spoiler), meaning)
        else:
            reason = meaning
            if self.stage is ScopeStage.BODY and sqlstate_of(error) is not None:
                self._spoiler = error
        if len(self._reports) < REPORTS_MAX:
            self._reports = (*self._reports, (error, reason))
        # After the deadline, koo itself cancels the statement and cuts the connection off: an error of these kinds is
        # the result of that, and says nothing about the server's health.
        ours = self.expired and meaning.kind in (Kind.CONNECTION, Kind.TIMEOUT)
        self._count(error, meaning, ours, record.generation)
        # There is one exception: the server had `cleanup_timeout_s` to react to the cancel request and did not. A
        # server that does not even process a cancel request counts as unreachable, which is a failure.
        if ours:
            self._unanswered = self.stopped and record.aborted
        return ours

    def _is_doubtful(self, meaning: Meaning) -> bool:
        """Whether this is the loss of a COMMIT that may have changed something."""
        if self.stage is not ScopeStage.COMMIT or not meaning.unsure or self._readonly:
            return False
        # After a failed statement the server can only roll back, so nothing is in doubt. But a block that has the
        # driver's connection may have repaired the transaction without the hooks seeing it.
        return self.handed_out or (self.statements > 0 and self._spoiler is None)

    def _count(self, error: BaseException, meaning: Meaning, ours: bool, generation: int) -> None:
        metrics = self._metrics
        kind = Kind.DEADLINE if ours else meaning.kind
        metrics.count_error(kind, type(error).__name__)
        if self._failed_s is not None:
            metrics.failures.append((kind, self._failed_s))
            self._failed_s = None
        metrics.contention += meaning.kind is Kind.CONTENTION
        metrics.broken += meaning.is_loss and not ours
        # An older connection says nothing about those that have replaced its generation.
        if meaning.drop is Drop.ALL and not self._readonly and generation == self._records.generation:
            self._records.distrust_all()
        if meaning.kind is Kind.READ_ONLY and not self._readonly:
            metrics.is_read_only = True
            if meaning.drop is Drop.KEEP:  # a full disk: no new connection can show when that has passed
                metrics.disk_full_at = self._monotonic()
        if meaning.verdict is FAILURE and not ours and self.failure is None:
            self.failure = meaning

    def too_late(self) -> DatabaseTimeout:
        total_s = self._records.options.scope_timeout_s
        return DatabaseTimeout(SERVICE, f"the scope's deadline passed (at most {describe_s(total_s)})")

    def rolled_back(self) -> DatabaseError:
        """The error for a COMMIT that the server turned into a rollback; its cause is what the engine reported."""
        # Otherwise a connection lost in the ROLLBACK that follows would be taken for a lost COMMIT.
        self.stage = ScopeStage.BODY
        error = DatabaseError(
            SERVICE,
            "a statement of this transaction failed and the error was caught, so the server rolls back instead of"
            " committing: put what may fail into session.begin_nested()",
            kind=Kind.INVALID_REQUEST,
        )
        error.__cause__ = self._spoiler
        return error

    def mended(self) -> None:
        """After a ROLLBACK: an earlier failed statement no longer prevents a COMMIT."""
        self._spoiler = None

    # ── a COMMIT that was lost ────────────────────────────────────────────────────────────────────────────────

    def may_have_written(self) -> bool:
        """Whether the next COMMIT could change anything."""
        return not self._readonly and (self.statements > 0 or self.handed_out)

    def lost_in_commit(self, record: ConnectionRecord, error: Exception, lost: bool) -> Meaning | None:
        """Count an error of a COMMIT with a marker. Returns its meaning, or None if the COMMIT did not happen."""
        meaning = explain(error, self.stage, lost=lost)
        if not self._is_doubtful(meaning):
            return None
        self._note(error, meaning, record)
        self.stage = ScopeStage.BODY
        return meaning

    def count_unknown(self) -> None:
        """Count a COMMIT whose outcome is unknown. From now on nothing of this scope may be repeated."""
        self._metrics.note_unknown_commit(self._monotonic())
        self.committed = True

    def unknown_outcome(self, key: str | None = None) -> CommitOutcomeUnknown:
        """The error for a COMMIT whose outcome is unknown; `key` is that of its marker."""
        reason = "the connection was lost during COMMIT: the transaction may or may not have happened"
        if key is None:
            return CommitOutcomeUnknown(SERVICE, f"{reason}; check before repeating it")
        reason += ", and the outcome could not be found in time:"
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

    # ── the verdict ───────────────────────────────────────────────────────────────────────────────────────────

    def meaning_of(self, error: BaseException) -> Meaning | None:
        """What the engine reported about an error that left the scope, or about one of its causes.

        For a group (`asyncio.TaskGroup`, anyio) it is the meaning of a member that forbids a repeat, or else of the
        first member.
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
        """Like `meaning_of`, also for errors that follow from an earlier loss."""
        meaning = self.meaning_of(error)
        if meaning is None and isinstance(error, StatementError | InvalidRequestError | ResourceClosedError):
            # The block caught the loss and went on. SQLAlchemy's next error then names only the session's state ("can't
            # reconnect until invalid transaction is rolled back"); the reason is the loss that was reported before.
            meaning = next((one for _, one in self._reports if one.is_loss), None)
        return meaning

    def why_repeat(self, error: Exception) -> Meaning | None:
        """Why the whole transaction may run again after it raised `error`; None if it may not."""
        # A failure on entry has already been retried by the guard.
        if self.committed or self.stage is ScopeStage.CONNECT:
            return None
        if any(isinstance(one, CommitOutcomeUnknown | DatabaseTimeout) for one in leaves_of(error)):
            return None
        meaning = self._meaning_of_end(error)
        if meaning is None or meaning.repeatable:
            return meaning
        # A standby refused the write, so nothing was written. After a failover the next connection reaches the new
        # primary; a read-only scope does not need one.
        return meaning if meaning is STANDBY and not self._readonly else None

    def verdict(self, error: BaseException | None, late: bool) -> Fault | None:
        """The fault that settles the permit: the worst of what the engine reported; None is a success."""
        if self.failure is not None:
            return self.failure.fault()
        if self.expired and self._unanswered:
            return LATE.fault()
        if self.expired or late:
            return Fault(verdict=NEUTRAL, kind=Kind.DEADLINE)
        if error is not None and not isinstance(error, Exception):
            return CANCELLED
        # A scope that ran no statement over a driver that sends BEGIN late has exchanged nothing with the server: it
        # proves neither health nor failure.
        return None if self._answered else UNJUDGED


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """An error, its cause, that one's cause, and so on."""
    one: BaseException | None = error
    for _ in range(CAUSES_MAX):
        if one is None:
            return
        yield one
        one = one.__cause__ or one.__context__


def leaves_of(error: BaseException) -> Iterator[BaseException]:
    """The members of a group, including those of nested groups; or the error itself if it is not a group."""
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from leaves_of(one)
    else:
        yield error
