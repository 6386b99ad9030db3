"""A stream that is read piece by piece under one permit.

A stream could be an asynchronous generator with `asyncio.timeout` around its `yield`. But between two pieces the
reader's own code runs inside that timeout, so it would cancel whatever the reader awaits there, a database write for
example. So a stream is an object instead. Each wait for the next piece is bounded separately, and no timer runs while
the reader has the turn.

What is bounded is silence, not length. Each piece renews the timer and a probe's lease. The reader's own time between
two pieces is not the provider's latency: a deadline that comes from koo's options is extended by it, a probe's lease is
suspended for it, and no percentile includes it. A deadline that the caller set does not move.

A stream may be closed by a task other than its reader's. A running generator cannot be closed from outside ("aclose():
asynchronous generator is already running"), so the reader's wait is ended in the way a deadline ends it: its task is
cancelled, and the stream turns that cancellation into the end of the iteration. The reader's task does the closing.

A stream ends once, and settles once. `_end` is called for every end except the stream's own: an error, a deadline,
silence, cancellation, `aclose`. It settles first and closes afterwards, so a connection that cannot be closed still
gives back its permit and its money.

koo's own streamed answers (`stream.py`) and streams of other operations (`operation_stream.py`) are built on this. They
differ in what they read and in how the cost is determined.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Generic, NoReturn, Protocol, TypeVar

from koo.attempt import OVERDUE, TIMED_OUT, is_from_cancellation
from koo.clock import Clock
from koo.deadlines import Alarm, Deadlines, Lasting, resumed
from koo.errors import ExternalServiceError, Kind, ServiceFailed, ServiceTimeout, StreamTruncated
from koo.failures import failure_of
from koo.guard import Guard, Scope
from koo.logs.calls import CallLog
from koo.options import NEVER
from koo.policies.permit import Permit
from koo.policies.verdict import CANCELLED, FAILURE, NEUTRAL, Fault

T = TypeVar("T")
V = TypeVar("V")


class Leased(Protocol):
    """The part of a scope that `Silence` uses."""

    permit: Permit

    def renew(self) -> None: ...


class Silence(Lasting):
    """The alarm of a wait: for silence longer than `longest_s`, the end of a probe's lease, or the end of the call.

    `since` is the last sign of life, `whole_until` the end of the call, both in monotonic seconds.
    """

    __slots__ = ("_clock", "_scope", "longest_s", "since", "whole_until")

    def __init__(self, registry: Deadlines, clock: Clock, scope: Leased) -> None:
        super().__init__(registry)
        self._clock = clock
        self._scope = scope
        self.longest_s = self.whole_until = NEVER
        self.since = clock.monotonic()

    def ends(self) -> float:
        return min(self.since + self.longest_s, self.whole_until, self._scope.permit.lease_ends_at)

    def renew(self) -> None:
        """Restart the silence, after a sign of life or when the reader asks for the next piece."""
        self.since = self._clock.monotonic()
        self._scope.renew()


@dataclass(slots=True)
class Held(Generic[V]):
    """What an open stream has taken: its guard's permit, and the alarm of its waits. `calls` logs its failure."""

    guard: Guard
    scope: Scope[V]
    silence: Silence
    calls: CallLog


class GuardedStream(ABC, Generic[V]):
    """A stream with one reader, opened by `_open`. `V` is the type of the scope's value.

    Leaving early (`break`, `aclose()`, cancellation) closes what is open and settles what was used. `aclose()` may be
    called from another task. Reading on after a failure raises a `ServiceFailed` that names the failure.
    """

    def __init__(self, service: str, deadlines: Deadlines) -> None:
        self.service = service
        self._deadlines = deadlines
        self._held: Held[V] | None = None
        self._closed = False
        # The error itself is not stored: its traceback refers to frames that refer to this stream, a cycle that would
        # keep the whole answer alive until the garbage collector runs.
        self._failed: tuple[str, Kind] | None = None
        self._waits: Alarm | None = None  # the alarm of the reader's wait; None while the reader has the turn
        # Another task that calls `aclose` creates this event, and the reader sets it when the stream is closed. Until
        # then the other task must not return, because the connection is still open.
        self._left: asyncio.Event | None = None
        # When the reader's turn began; the time that the provider took; the time that the reader took.
        self._turn_at = self._provider_s = self._away_s = 0.0

    @abstractmethod
    async def _open(self) -> Held[V]:
        """Enter the guard, send the request and wait for the first piece. Applies its own time limits."""

    @abstractmethod
    def _settle(self, fault: Fault, silent_s: float = 0.0) -> None:
        """Book what was used and end the permit of an unfinished stream, after `silent_s` of silence."""

    @abstractmethod
    async def _close(self) -> None:
        """Close the source of the pieces."""

    def _partial_text(self) -> str:
        """The text that has arrived so far."""
        return ""

    # ── the reader's turns ────────────────────────────────────────────────────────────────────────────────────

    def _take_turn(self) -> None:
        """Begin a wait of the reader. Raises if the stream is over or another task is already reading."""
        if self._closed:
            self._refuse()
        if self._waits is not None:
            raise RuntimeError("another task is already reading this stream: a stream has one reader")

    def _end_turn(self) -> None:
        """End the reader's wait, with a piece or an error, and release a task that waits in `aclose`."""
        self._waits = None
        if self._left is not None:
            self._left.set()

    async def _begin(self) -> Held[V]:
        """Open the stream and wait for its first piece."""
        # `_open` has its own time limits, so this alarm has no time of its own. It exists so that `aclose` from another
        # task has something to cut: that cancels `_open`, which settles what it has taken, and arrives here as a
        # TimeoutError.
        self._waits = opening = Alarm(self._deadlines, NEVER)
        try:
            with opening:
                held = self._held = await self._open()
        except TimeoutError:
            if opening.expired:
                raise StopAsyncIteration from None
            raise
        await self._leave_if_asked()
        # Until here the limits of an attempt applied. From here on only silence and the call's deadline end the stream.
        held.silence.whole_until = held.scope.deadline
        self._hand_over(held, held.scope.permit.given_at)
        return held

    async def _wait(self, held: Held[V], reading: Coroutine[object, object, T]) -> T:
        """Await one piece, or the result of another call on the open stream, within the limit on silence."""
        silence, silent_s = held.silence, 0.0
        try:
            # A network read often brings several events. The second one is already in the parser's buffer, so its
            # coroutine returns at the first step without suspending. There is nothing to bound then: the shortcut skips
            # the alarm, the clock and the lease, which are half the cost of a piece.
            try:
                waits_for = reading.send(None)
            except StopIteration as come:
                value: T = come.value
                return value
            # The silence begins now. If it ran from the last piece, a reader that spends a minute on each piece would
            # make a healthy provider look stalled.
            silence.renew()
            asked_at = silence.since
            self._take_over(held, asked_at)
            self._waits = silence
            with silence:
                value = await resumed(reading, waits_for)
        except BaseException as error:  # noqa: BLE001 - raised again below, or replaced for the reader
            # If the error came from this method and not from the coroutine (entering the alarm may raise), the
            # coroutine is still suspended inside the generator. Python then considers the generator to be running, and
            # `_end` could not close it: "aclose(): asynchronous generator is already running".
            reading.close()
            if self._waits is not None:
                silent_s = held.guard.now() - silence.since
            # From here on the reader awaits the closing of the stream. If `aclose` from another task still found an
            # alarm here, it would cancel that, and the connection would stay open.
            self._waits = None
            # The alarm also expires when another task calls `aclose`. That is not a timeout: judged as one, it would
            # count against the provider.
            is_left = silence.expired and self._left is not None
            fault, seen = (CANCELLED, None) if is_left else self._judge(held, error)
            if seen is not None or fault.verdict is FAILURE:
                held.calls.failed(held.guard.name, "stream", seen or error, fault.kind, held.scope.attempts)
            try:
                await self._end(fault, silent_s)
                if isinstance(seen, ExternalServiceError) and fault.verdict is not NEUTRAL:
                    held.guard.gates.tell_wait(held.guard, seen)
                if is_left:
                    raise StopAsyncIteration from None
                if seen is not None:
                    raise seen from error
                raise
            finally:
                # The error's traceback refers to this frame. If the frame referred to the error too, the cycle would
                # keep both, and the partial answer with them, until the garbage collector runs.
                del seen
        await self._leave_if_asked()
        self._hand_over(held, asked_at)
        return value

    def _hand_over(self, held: Held[V], asked_at: float) -> None:
        """Start the reader's turn."""
        self._turn_at = held.guard.now()
        self._provider_s += self._turn_at - asked_at
        held.scope.rest()

    def _take_over(self, held: Held[V], now: float) -> None:
        """End the reader's turn: its time is not the provider's, so a deadline that koo set is extended by it."""
        away_s = now - self._turn_at
        self._away_s += away_s
        passage = held.scope.passage
        # The timeout option limits how long the provider may take. Without this shift, a reader that pauses for two
        # minutes would exceed it, and the timeout would count against the provider. A caller's deadline is a point in
        # time that the caller chose, no matter whether the provider or the reader uses up the time.
        if passage.is_ours:
            passage.deadline += away_s
            held.silence.whole_until = passage.deadline

    # ── the end of a stream ───────────────────────────────────────────────────────────────────────────────────

    def _judge(self, held: Held[V], error: BaseException) -> tuple[Fault, Exception | None]:
        """The fault that ended a stream, and the error that its reader gets instead of `error`, if any."""
        guard, scope, silence, name = held.guard, held.scope, held.silence, held.guard.name
        seen: ExternalServiceError
        if silence.expired and silence.when >= scope.deadline:
            kind = Kind.TIMEOUT if scope.passage.is_ours else Kind.DEADLINE
            seen = ServiceTimeout(name, "the deadline passed in the middle of the stream", kind=kind)
            fault = Fault(
                verdict=FAILURE if scope.passage.is_ours else NEUTRAL,
                kind=kind,
                failure=failure_of(seen, kind),
            )
        elif silence.expired:
            seen = StreamTruncated(name, "the stream fell silent", kind=Kind.STALLED)
            fault = Fault(verdict=FAILURE, kind=Kind.STALLED, failure=failure_of(seen, Kind.STALLED))
        elif not is_from_cancellation(error, silence):
            fault = guard.judge(error)
            meant = fault.error or error
            if not isinstance(meant, ExternalServiceError):
                return fault, fault.error
            reason = f"the stream broke off: {meant.reason}"
            seen = StreamTruncated(name, reason, meant.retry_after_s, kind=meant.kind, detail=meant.detail)
        elif guard.now() >= silence.when:
            # A caller often sets the same timeout as koo does. Then both end in the same turn of the loop and the
            # caller's cancellation may arrive first. The stream was silent for just as long, so it is judged as if
            # koo's alarm had expired. As an ordinary cancellation it would be neutral, and a provider that always hangs
            # behind such callers would never open its breaker.
            is_callers = silence.when >= scope.deadline and not scope.passage.is_ours
            return OVERDUE if is_callers else TIMED_OUT, None
        else:
            return CANCELLED, None
        seen.attempts, seen.partial_text = scope.attempts, self._partial_text()
        return fault, seen

    async def _end(self, fault: Fault, silent_s: float = 0.0) -> None:
        """End an unfinished stream, after `silent_s` of silence."""
        # Settle before the await: closing may hang or be cancelled, and the permit and the money would stay taken.
        self._settle(fault, silent_s)
        await self._close()

    async def _leave_if_asked(self) -> None:
        """End the stream if another task closed it in the same step in which a piece arrived."""
        # In that race the wait returns the piece and raises nothing. Without this check the reader would read on, and
        # `_end_turn` would release the other task: its `aclose` would return from a stream that is still open.
        if self._left is not None:
            await self._end(CANCELLED)
            raise StopAsyncIteration

    def _note_failure(self, error: BaseException) -> None:
        """Mark the stream as over, and remember why."""
        self._closed = True
        if isinstance(error, StopAsyncIteration):
            return
        if isinstance(error, ExternalServiceError):
            self._failed = error.reason, error.kind
        elif isinstance(error, Exception):
            self._failed = f"it raised {type(error).__name__}", Kind.UNKNOWN
        else:
            self._failed = "its reader was cancelled", Kind.CANCELLED

    def _refuse(self) -> NoReturn:
        """Raise StopAsyncIteration for a stream that has ended, `ServiceFailed` for one that has failed."""
        if self._failed is None:
            raise StopAsyncIteration
        reason, kind = self._failed
        sentence = f"this stream has already failed ({reason}); start a new one"
        error = ServiceFailed(self.service, sentence, kind=kind)
        error.partial_text = self._partial_text()
        try:
            raise error
        finally:
            del error

    async def aclose(self) -> None:
        """Leave the stream: the provider stops, what was used is settled, and the breaker counts nothing.

        If a task other than the reader's calls it, the reader's iteration ends as if the stream had ended.
        """
        waits = self._waits
        if waits is not None and waits.task is not asyncio.current_task():
            # The reader is suspended in the generator, so only its own task can close that. Cut its wait, then wait
            # until it has closed the stream. A second task that leaves at the same moment must not cut again: an alarm
            # withdraws one cancellation, and the second would reach the reader's code as a real one.
            if self._left is None:
                self._left = asyncio.Event()
                waits.cut()
            await self._left.wait()
            return
        closed, self._closed = self._closed, True
        if not closed and self._held is not None:
            await self._end(CANCELLED)

    async def cut(self, why: ExternalServiceError) -> None:
        """End an open stream because of `why`, while its reader has the turn.

        The reader may return for the next piece much later; reading on then raises `ServiceFailed` with the reason.
        """
        # A reader that is waiting now needs nothing from here: its connection is about to be closed, so its own wait
        # raises the error and settles the stream.
        if self._held is None or self._waits is not None or self._closed:
            return
        self._note_failure(why)
        await self._end(self._held.guard.judge(why))
