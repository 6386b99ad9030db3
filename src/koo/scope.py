"""Scope: one permit of a guard for the length of a block or a stream, which its owner ends."""

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
    """What a scope needs of its guard."""

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

    End it with `settle`, or use it as `async with`. `deadline` is in monotonic seconds: no timer spans the block, so
    each wait inside must be bounded by it. `streams`: its operation opens a stream, which bounds its own silences from
    the first moment; then `permit` is known before the operation runs, and the guard bounds only the whole call.
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
        """When the whole call has to end."""
        return self.passage.deadline

    @property
    def attempts(self) -> int:
        """How many times the operation was run."""
        return self.passage.attempt

    async def __aenter__(self) -> Scope[T]:
        if not self._ended:
            raise RuntimeError("this scope is already in use: call permit() once for each block")
        deadline, outer = self._guard.now() + self._guard.options.timeout_s, ends_at.get()
        self.passage.deadline, self.passage.is_ours = min(deadline, outer), deadline < outer
        self.keep(await self._guard.enter(self.passage), self.passage)
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.settle(None if error is None else self._guard.judge(error))

    def keep(self, permit: Permit, passage: Passage) -> None:
        """From here on the permit, and what was taken with it, are this scope's to end."""
        self.permit, self.passage = permit, passage
        self._ended = False

    def renew(self) -> None:
        """A chunk of content or reasoning came, or the reader asks for the next one: a streaming probe is alive."""
        self.permit.kept = True  # it has begun to answer: its length no longer counts as a hanging call
        if self._guard.breaker.phase is HALF_OPEN:
            self._guard.breaker.renew(self.permit, self._guard.now())

    def rest(self) -> None:
        """It is the reader's turn: a probe's lease stands still."""
        if self._guard.breaker.phase is HALF_OPEN:
            self._guard.breaker.rest(self.permit, self._guard.now())

    def answered(self) -> None:
        """The other side has answered: a probe is over, and its block, whose length is the caller's, keeps no lease.

        What the block meets later counts as for any call once the breaker is closed, but not while others still test.
        """
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
        """End it, once: None is success.

        The scope's own length may be its caller's time: `took_s` is the other side's part of it, and `slow` whether
        that was slow, if it is not simply `took_s` against the option.
        """
        if not self._ended:
            self._ended = True
            self._guard.leave(self.passage, self.permit, fault, slow, took_s)

    def __del__(self) -> None:
        # Dropped unsettled: without this its permit, its place and its money would stay taken forever.
        if not self._ended:
            self._guard.abandon(self.passage, self.permit)
