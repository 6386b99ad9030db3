"""A stream that is read piece by piece under one permit: its reader's turns, and its one end.

A generator that held a timeout across its `yield` would cancel its consumer's own awaits. So a stream is an object with
an end: each wait for the next piece has its own bound, and no timer runs during the consumer's turn.

The bound is on silence. Each piece renews the timer and a probe's lease. The consumer's own time between two pieces
does not count as latency: our own deadline moves by it, a probe's lease stands still, and no percentile includes it.
Only a deadline that the caller set stays where it is.

Another task than the consumer's may close it. The consumer's wait is then ended as a deadline ends it, in the
consumer's own task: a running generator cannot be closed from outside.

Both koo's own streamed answers (`stream.py`) and streams of other operations (`operation_stream.py`) are built on this.
They differ in what they read, and in what it costs.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from asyncio import CancelledError
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Generic, NoReturn, Protocol, TypeVar

from koo.attempt import OVERDUE, TIMED_OUT
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
    """What a silence needs of its scope."""

    permit: Permit

    def renew(self) -> None: ...


class Silence(Lasting):
    """Rings when a stream has been silent for `longest_s`, or when a probe's lease or the call's own time is over.

    `since`: its last sign of life, in monotonic seconds; `whole_until`: the end of the call in any case.
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
        """A sign of life, or the reader is back."""
        self.since = self._clock.monotonic()
        self._scope.renew()


@dataclass(slots=True)
class Held(Generic[V]):
    """What an open stream holds: its guard's permit, and the bound of its silences; `calls` logs its failure."""

    guard: Guard
    scope: Scope[V]
    silence: Silence
    calls: CallLog


class GuardedStream(ABC, Generic[V]):
    """One reader's turns on a stream that `_open` begins; `V` is what the guard's scope keeps of it.

    Leaving early (`break`, `aclose()`, cancellation) closes what is open and settles what was used; `aclose()` may come
    from another task. Reading on after a failure raises a `ServiceFailed` that says so.
    """

    def __init__(self, service: str, deadlines: Deadlines) -> None:
        self.service = service
        self._deadlines = deadlines
        self._held: Held[V] | None = None
        self._closed = False
        self._failed: tuple[str, Kind] | None = (
            None  # not the error itself, whose traceback leads back to here
        )
        self._waits: Alarm | None = None  # the reader's, while it waits for a piece
        self._left: asyncio.Event | None = None  # set when another task has finished closing it
        self._turn_at = self._provider_s = self._away_s = 0.0

    @abstractmethod
    async def _open(self) -> Held[V]:
        """Pass the guard and send; returns with the first piece. Bounds itself."""

    @abstractmethod
    def _settle(self, fault: Fault, silent_s: float = 0.0) -> None:
        """Book what was used and end the permit, before the stream's own end and after `silent_s` of silence."""

    @abstractmethod
    async def _close(self) -> None:
        """Close what is being read."""

    def _partial_text(self) -> str:
        """The text that has arrived."""
        return ""

    # ── the reader's turns ────────────────────────────────────────────────────────────────────────────────────

    def _take_turn(self) -> None:
        """The reader asks for a piece. Raises if the stream is over, or another task is reading already."""
        if self._closed:
            self._refuse()
        if self._waits is not None:
            raise RuntimeError("another task is already reading this stream: a stream has one reader")

    def _end_turn(self) -> None:
        """The reader has its piece, or an error."""
        self._waits = None
        if self._left is not None:
            self._left.set()

    async def _begin(self) -> Held[V]:
        """Open it; from here on each wait is bounded by itself."""
        self._waits = opening = Alarm(self._deadlines, NEVER)
        try:
            with opening:
                held = self._held = await self._open()
        except TimeoutError:
            if opening.expired:
                raise StopAsyncIteration from None
            raise
        await self._leave_if_asked()
        held.silence.whole_until = held.scope.deadline
        self._hand_over(held, held.scope.permit.given_at)
        return held

    async def _wait(self, held: Held[V], reading: Coroutine[object, object, T]) -> T:
        """One wait of the reader: for a piece, or for another call on the open stream."""
        silence, silent_s = held.silence, 0.0
        try:
            try:
                waits_for = reading.send(None)
            except StopIteration as come:
                # It was here already, so there is nothing to bound. For events that arrive together this saves half.
                value: T = come.value
                return value
            silence.renew()
            asked_at = silence.since
            self._take_over(held, asked_at)
            self._waits = silence
            with silence:
                value = await resumed(reading, waits_for)
        except BaseException as error:  # noqa: BLE001 - it is raised again, or its replacement for the reader
            reading.close()  # otherwise its generator would still be running, and could not be closed below
            if self._waits is not None:
                silent_s = held.guard.now() - silence.since
            self._waits = None  # the wait from here on is the closing, which no other task may end
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
                del seen  # its traceback keeps this frame, and the frame would keep it
        await self._leave_if_asked()
        self._hand_over(held, asked_at)
        return value

    def _hand_over(self, held: Held[V], asked_at: float) -> None:
        """Start the reader's turn."""
        self._turn_at = held.guard.now()
        self._provider_s += self._turn_at - asked_at
        held.scope.rest()

    def _take_over(self, held: Held[V], now: float) -> None:
        """The reader is back: its own time is not the provider's, so our deadline moves by it."""
        away_s = now - self._turn_at
        self._away_s += away_s
        passage = held.scope.passage
        if passage.is_ours:
            passage.deadline += away_s
            held.silence.whole_until = passage.deadline

    # ── its end ───────────────────────────────────────────────────────────────────────────────────────────────

    def _judge(self, held: Held[V], error: BaseException) -> tuple[Fault, Exception | None]:
        """What ended a stream, and what its consumer gets instead of `error`, if anything."""
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
        elif isinstance(error, CancelledError) and guard.now() >= silence.when:
            # The caller's own timeout ends at the same moment, and its cancellation wins; the stream was as silent.
            is_callers = silence.when >= scope.deadline and not scope.passage.is_ours
            return OVERDUE if is_callers else TIMED_OUT, None
        else:
            fault = guard.judge(error)
            meant = fault.error or error
            if not isinstance(meant, ExternalServiceError):
                return fault, fault.error
            reason = f"the stream broke off: {meant.reason}"
            seen = StreamTruncated(name, reason, meant.retry_after_s, kind=meant.kind, detail=meant.detail)
        seen.attempts, seen.partial_text = scope.attempts, self._partial_text()
        return fault, seen

    async def _end(self, fault: Fault, silent_s: float = 0.0) -> None:
        """An end before the stream's own, after `silent_s` of silence."""
        self._settle(fault, silent_s)
        await self._close()

    async def _leave_if_asked(self) -> None:
        """Another task closed the stream in the step in which a piece arrived."""
        if self._left is not None:
            await self._end(CANCELLED)
            raise StopAsyncIteration

    def _note_failure(self, error: BaseException) -> None:
        """From here on it is over, and this is why."""
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
        """It is over: raise the end, or that it had failed."""
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
        """Leave: the other side stops, what was used is settled, and the breaker learns nothing from it.

        From another task than the reader's: the reader's wait ends as at the end of the stream.
        """
        waits = self._waits
        if waits is not None and waits.task is not asyncio.current_task():
            if self._left is None:
                self._left = asyncio.Event()
                waits.cut()
            await self._left.wait()
            return
        closed, self._closed = self._closed, True
        if not closed and self._held is not None:
            await self._end(CANCELLED)

    async def cut(self, why: ExternalServiceError) -> None:
        """End it for a reader that may ask for the next piece long after; a reader that waits now gets it itself.

        Reading on raises that it has failed, and why.
        """
        if self._held is None or self._waits is not None or self._closed:
            return
        self._note_failure(why)
        await self._end(self._held.guard.judge(why))
