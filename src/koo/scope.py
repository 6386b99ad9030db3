"""Scope: one permit of a guard for the length of a block or a stream. Its owner ends it."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from koo.deadlines import ends_at
from koo.gates import Gates
from koo.options import GuardOptions
from koo.passage import Passage
from koo.policies.breaker import CLOSED, HALF_OPEN, Breaker
from koo.policies.permit import Permit
from koo.policies.verdict import SUCCESS, Fault

T = TypeVar("T")


class ScopeGuard(Protocol):
    """The part of a guard that a scope uses."""

    breaker: Breaker
    options: GuardOptions
    gates: Gates

    def now(self) -> float: ...

    def judge(self, error: BaseException) -> Fault: ...

    async def enter(self, passage: Passage) -> Permit: ...

    def leave(
        self,
        passage: Passage,
        permit: Permit,
        fault: Fault | None,
        slow: bool | None = None,
        took_s: float | None = None,
    ) -> None: ...

    def abandon(self, passage: Passage, permit: Permit) -> None: ...

    def tick(self) -> None: ...


class Scope(Generic[T]):
    """One permit for the length of a block or a stream; `value` is the result of `begin`'s operation.

    End it with `settle`, or use it as `async with`. `deadline` is in monotonic seconds: no timer covers the block, so
    each wait inside must be bounded by it. `streams`: the operation opens a stream, which limits its own silences from
    the start. Then `permit` is set before the operation runs, and the guard limits only the whole call.
    """

    __slots__ = ("_ended", "_guard", "passage", "permit", "streams", "value")

    value: T
    passage: Passage
    permit: Permit

    def __init__(self, guard: ScopeGuard, passage: Passage | None = None, *, streams: bool = False) -> None:
        self._guard = guard
        self.streams = streams
        self._ended = True  # nothing is taken yet
        if passage is not None:
            self.passage = passage

    @property
    def deadline(self) -> float:
        """When the whole call must end, in monotonic seconds."""
        return self.passage.deadline

    @property
    def attempts(self) -> int:
        """How many times the operation was run."""
        return self.passage.attempt

    async def __aenter__(self) -> Scope[T]:
        if not self._ended:
            raise RuntimeError("this scope is already in use: call permit() once for each block")
        # This is set here and not in `permit()`: the object may be created long before its block is entered. As in
        # `Guard.call`, a tie belongs to the caller.
        deadline, outer = self._guard.now() + self._guard.options.timeout_s, ends_at.get()
        self.passage.deadline, self.passage.is_ours = min(deadline, outer), deadline < outer
        self.keep(await self._guard.enter(self.passage), self.passage)
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.settle(None if error is None else self._guard.judge(error))

    def keep(self, permit: Permit, passage: Passage) -> None:
        """Take over the permit, and everything that was taken with it: from now on this scope must settle them."""
        self.permit, self.passage = permit, passage
        self._ended = False

    def renew(self) -> None:
        """Renew a streaming probe's lease: a chunk of content or reasoning arrived, or the reader wants the next
        one."""
        # A long answer is not a hanging call. Without `kept` every stream that runs longer than the slow-call time
        # would count as slow while it runs, and a few of them would open the breaker.
        self.permit.kept = True
        if self._guard.breaker.phase is HALF_OPEN:
            self._guard.breaker.renew(self.permit, self._guard.now())

    def rest(self) -> None:
        """Suspend a probe's lease while the reader processes a chunk: that time is not the provider's silence."""
        if self._guard.breaker.phase is HALF_OPEN:
            self._guard.breaker.rest(self.permit, self._guard.now())

    def answered(self) -> None:
        """The dependency has responded, so settle the probe now: how long the block still runs is up to the caller.

        Later failures of the block count as for any call once the breaker is closed, but not while others still probe.
        """
        # A session's first statement succeeded: that is what the probe was to find out. If the lease lasted for the
        # whole block, a caller that computes between two statements would fail the probe, or at best keep the breaker
        # half open. Once the breaker is closed, a second permit takes over the rest of the block. It is `kept`, so a
        # long block is not counted as a slow call. While the breaker is still half open there is no second permit: the
        # old one is settled, and later errors of the block have no effect on the breaker.
        guard, breaker = self._guard, self._guard.breaker
        now, draw = guard.now(), guard.gates.draw
        breaker.settle(self.permit, SUCCESS, False, now, draw)
        permit = breaker.admit(now, draw) if breaker.phase is CLOSED else None
        if permit is not None:
            permit.kept = True
            self.permit = permit
        guard.tick()  # publishes what the breaker did

    def settle(
        self, fault: Fault | None = None, *, slow: bool | None = None, took_s: float | None = None
    ) -> None:
        """Settle the scope; None is success. Only the first call has an effect.

        Part of the scope's length may be its caller's own time: `took_s` is the dependency's part. `slow` says whether
        that was slow, if comparing `took_s` with the option is not enough.
        """
        # The scope is marked as settled first: `leave` publishes events, and a listener may reach this scope and settle
        # it again.
        if not self._ended:
            self._ended = True
            self._guard.leave(self.passage, self.permit, fault, slow, took_s)

    def __del__(self) -> None:
        # The owner dropped it without settling, for example a generator that was never closed. Without this the permit,
        # the slot and the money would stay taken forever.
        if not self._ended:
            self._guard.abandon(self.passage, self.permit)
