"""Deadlines: points in time, carried in a ContextVar, kept in one registry with few timers.

`asyncio.timeout` adds a timer to the loop for each call and removes it again, which costs as much as the rest of a
guard. Almost no call runs until its deadline, so here all deadlines within the same quarter of a second share a timer.
Calls still running when that quarter begins get a real timer for the rest: expiry is as exact as asyncio's.

To its caller an `Alarm` behaves like `asyncio.timeout`. At its time it cancels the task; on leaving the block it turns
*its own* cancellation into a TimeoutError and lets any other pass. If both happen in one turn of the loop, they are
told apart by the number of cancellations that were pending on entry. Read any later, that number would include the
caller's cancellation, which would then be taken for the alarm's own and swallowed.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from asyncio import CancelledError, current_task, get_running_loop
from collections.abc import Callable, Coroutine, Generator
from contextvars import ContextVar, Token
from types import TracebackType, coroutine
from typing import ClassVar, NamedTuple, TypeVar

from koo.crossing import NO_LOOP, running_loop
from koo.forks import forget_in_child, leave_behind
from koo.options import NEVER

T = TypeVar("T")
GRAIN_S = 0.25
"""A thousand calls a second share a few timers of this grain; a call that outlives its grain costs one more timer."""

OVER = float("-inf")


class Block:
    """A deadline for a block. `until`: its time while the block runs, `OVER` afterwards. `outer`: the enclosing block.

    A task started inside gets a copy of the context, and may run for hours after the block has ended. A plain number in
    that context would still cut off the task's calls, so the context holds this object, which is marked when the block
    ends.
    """

    __slots__ = ("outer", "until")

    outer: Block

    def __init__(self, until: float) -> None:
        self.until = until


block: ContextVar[Block] = ContextVar("koo_deadline", default=Block(NEVER))  # noqa: B039 - this one never ends


class EndsAt:
    """The deadline that applies to the current task."""

    __slots__ = ()

    def get(self) -> float:
        """The deadline in monotonic seconds of the event loop; `NEVER` if there is none."""
        # The innermost block that still runs. It is the nearest one too: a nested deadline never exceeds its outer one.
        found = block.get()
        while found.until == OVER:
            found = found.outer
        return found.until


ends_at = EndsAt()


class WrongLoop(RuntimeError):
    """Raised for something that is in use on an event loop in another thread."""


TWO_LOOPS = (
    "koo is open on another event loop that is still running, and what was opened there cannot be used here: pass "
    "the whole coroutine to it with `await asyncio.to_thread(koo.run, coroutine)` (without an event loop: "
    "koo.run(coroutine)), or open koo on this loop before anything else uses it: `await platform.open()`"
)
"""The error text for things that cannot cross to a second loop."""


class Deadlines:
    """The registry of one event loop. A later `asyncio.run` in the same process takes it over."""

    __slots__ = ("__weakref__", "grains", "loop")

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.grains: dict[float, set[Alarm]] = {}

    def open(self, loop: asyncio.AbstractEventLoop, alarm: Alarm) -> set[Alarm]:
        """Return the set of all alarms that end in the same grain as this one, and start its timer.

        Raises `WrongLoop` while the registry is in use on another loop.
        """
        if loop is not self.loop:
            self.bind(loop)
        grain = alarm.when // GRAIN_S
        members: set[Alarm] = set()
        if grain == NEVER or grain != grain:  # infinity // x is NaN, and NaN is not equal to itself
            return members  # without a deadline there is no timer
        grains = self.grains
        grains[grain] = members
        # A grain that has already begun is due now. `call_soon` and not a direct call: the alarm has not counted the
        # pending cancellations yet, and would later take its own for the caller's.
        begins_at = grain * GRAIN_S
        if begins_at <= loop.time():
            loop.call_soon(begin_grain, loop, grains, grain)
        else:
            loop.call_at(begins_at, begin_grain, loop, grains, grain)
        return members

    def unbind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Release the loop: koo's work on it has ended, although the loop itself may still run."""
        if self.loop is loop:
            self.loop, self.grains = None, {}  # pending timers keep their own sets

    def forget_parent(self) -> None:
        """In a forked child: forget the parent's loop, which looks as if it were running there but never does."""
        leave_behind(self.loop, self.grains)
        self.loop, self.grains = None, {}

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Bind the registry to this loop. Raises `WrongLoop` while it is in use on another one."""
        if self.loop is loop:
            return
        if self.loop is not None and self.loop.is_running():
            raise WrongLoop(TWO_LOOPS)
        forget_in_child(self)
        self.loop = loop
        self.grains = {}  # the old loop's timers keep their own sets, in case it ever runs again


def begin_grain(loop: asyncio.AbstractEventLoop, grains: dict[float, set[Alarm]], grain: float) -> None:
    """Give each alarm of this grain that is still running its own timer."""
    # `grains` is passed in, not read from the registry: after `unbind` or `bind` the registry has another dictionary,
    # and this timer must still find the alarms of the old loop.
    now = loop.time()
    for alarm in grains.pop(grain):
        if alarm.when <= now:
            alarm.expire()
        else:
            alarm.timer = loop.call_at(alarm.when, alarm.expire)


class OwnTimer(Deadlines):
    """A registry for a single deadline, whose timer is cancelled on exit, so that none stays in the loop."""

    __slots__ = ()

    def open(self, loop: asyncio.AbstractEventLoop, alarm: Alarm) -> set[Alarm]:
        if alarm.when <= loop.time():
            alarm.timer = loop.call_soon(alarm.expire)
        elif alarm.when != NEVER:
            alarm.timer = loop.call_at(alarm.when, alarm.expire)
        return set()


class Alarm(Block):
    """`with Alarm(registry, when) as alarm:` ends the block with TimeoutError at `when`.

    `when` is in monotonic seconds of the loop. Inside the block `ends_at` is the alarm's time, if that is earlier than
    the deadline outside. Afterwards `alarm.expired` says whether this alarm ended it, with its own TimeoutError or with
    an error that the block raised instead.
    """

    __slots__ = ("_cancelling", "_registry", "_token", "expired", "members", "task", "timer", "when")

    members: set[Alarm]
    task: asyncio.Task[object]

    def __init__(self, registry: Deadlines, when: float) -> None:
        self._registry = registry
        self.when = when
        self.timer: asyncio.Handle | None = None
        self.expired = False
        self._token: Token[Block] | None = None

    def __enter__(self) -> Alarm:
        # This uses the running loop, not the registry's: called from another thread, `current_task` of the registry's
        # loop would be whatever task runs there at the moment, and this deadline would cancel an unrelated task.
        try:
            loop = get_running_loop()
        except RuntimeError:
            raise RuntimeError(NO_LOOP) from None
        task = current_task(loop)
        if task is None:
            raise RuntimeError("a deadline needs a running task")
        self.task = task
        # How many cancellations are pending now, before this alarm's own can be among them; see `_leave_expired`.
        self._cancelling = task.cancelling()
        registry = self._registry
        members = registry.grains.get(self.when // GRAIN_S) if loop is registry.loop else None
        if members is None:
            members = registry.open(loop, self)
        members.add(self)
        self.members = members
        outer, when = block.get(), self.when
        if when < outer.until or (outer.until == OVER and when < ends_at.get()):
            self.outer, self.until = outer, when
            self._token = block.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.members.discard(self)
        if self.timer is not None:
            self.timer.cancel()
        if self._token is not None:
            block.reset(self._token)
            self._token, self.until = None, OVER
        if self.expired:
            self._leave_expired(kind, error)
        else:
            # This breaks a cycle: the task may hold the error, whose traceback holds the frame with this alarm, which
            # holds the task. And a task started inside keeps this alarm, through its context, for as long as it runs.
            del self.task

    def expire(self) -> None:
        """Called by the timer at `when`."""
        self.cut()

    def cut(self) -> None:
        """End the block now, by cancelling its task."""
        self.expired = True
        self.task.cancel()

    def is_cancelled(self) -> bool:
        """Whether the task has been cancelled since the block began, except by this alarm."""
        try:
            task = current_task()
        except RuntimeError:  # no loop is running
            return False
        return task is not None and task.cancelling() > self._cancelling

    def reason(self) -> str:
        """The message of the TimeoutError."""
        return "the deadline passed"

    def _leave_expired(self, kind: type[BaseException] | None, error: BaseException | None) -> None:
        # Take this alarm's own request back. If the task then has no more pending cancellations than on entry, the
        # CancelledError was this alarm's: it becomes a TimeoutError. If it has one more, its caller cancelled it in the
        # same turn of the loop. Then the CancelledError must pass, or the caller (a TaskGroup, a closing server) would
        # wait for a task that goes on as if nothing had happened.
        ours = self.task.uncancel() <= self._cancelling
        del self.task
        if ours and kind is not None and issubclass(kind, CancelledError):
            raise TimeoutError(self.reason()) from error
        # An operation that raises an error of its own when it is cancelled has run out of time all the same. Otherwise
        # this was the caller's cancellation, or the block ended in time after all.
        self.expired = ours and kind is not None and issubclass(kind, Exception)


class Lasting(Alarm):
    """An alarm whose time may move while its block runs: `ends` is read on entry, and again when the timer fires.

    So renewing a lease, or an operator's reset, costs no timer. After the block has ended, it may be entered again.
    """

    __slots__ = ()

    def __init__(self, registry: Deadlines) -> None:
        super().__init__(registry, NEVER)
        self._cancelling = 0  # a stream's alarm may be asked before its first block

    @abstractmethod
    def ends(self) -> float:
        """When the block should end, as of now, in monotonic seconds of the loop."""

    def __enter__(self) -> Lasting:
        self.when, self.timer, self.expired = self.ends(), None, False
        super().__enter__()
        return self

    def expire(self) -> None:
        # The end has moved to a later time since the timer was set (a lease was renewed or lifted): wait for the rest.
        when = self.ends()
        if when <= self.when:
            self.cut()
            return
        self.when = when
        if when != NEVER:
            self.timer = get_running_loop().call_at(when, self.expire)


@coroutine
def resumed(reading: Coroutine[object, object, T], waits_for: object) -> Generator[object, None, T]:
    """`await` the rest of a coroutine that was started by hand with `send(None)` and is now waiting for `waits_for`."""
    # A read that finds its data in the buffer never suspends, so its caller drives it by hand and creates no task or
    # timer. If it does suspend, this continues it: it passes each future to the event loop, and each result or
    # exception back in, exactly as `await` would. Both happen outside the other's `except`, or one exception would
    # become the context of another.
    while True:
        try:
            yield waits_for
        except BaseException as error:  # noqa: BLE001 - above all a cancellation, which the inner coroutine must receive
            thrown: BaseException | None = error
        else:
            thrown = None
        try:
            waits_for = reading.send(None) if thrown is None else reading.throw(thrown)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            del thrown


class Nearer(NamedTuple):
    """A caller's deadline: `in_s` seconds after it began, or the surrounding one (`in_s` None) if that is earlier."""

    when: float
    in_s: float | None

    @staticmethod
    def of(in_s: float | None) -> Nearer:
        """As of now, in the running loop's time."""
        own, outer = NEVER if in_s is None else running_loop().time() + in_s, ends_at.get()
        return Nearer(own, in_s) if own < outer else Nearer(outer, None)


class CallersAlarm(Alarm):
    """The alarm of a deadline that a caller set."""

    __slots__ = ("_in_s",)

    def __init__(self, deadline: Nearer) -> None:
        # An `OwnTimer` is used instead of `Deadlines()`: each new registry would leave its grain's timer in the loop
        # until it fires.
        super().__init__(OwnTimer(), deadline.when)
        self._in_s = deadline.in_s

    def reason(self) -> str:
        return (
            "the surrounding deadline passed"
            if self._in_s is None
            else f"the deadline of {self._in_s:g} s passed"
        )


class Deadline:
    """`async with koo.deadline(2.5):` limits everything inside, nested or guarded, to this many seconds from now.

    A nested deadline can only shorten it. Raises TimeoutError when the time is over. As after a cancellation, it is
    then unknown whether a COMMIT in progress took effect. The deadline applies to a task started inside while the block
    runs, and no longer. Without an event loop, `with koo.deadline(2.5):` limits each `koo.run` inside.
    """

    __slots__ = ("_alarm", "_block", "_in_s", "_token")

    loops_time: ClassVar[Callable[[], float]] = staticmethod(time.monotonic)
    """Returns the time of the loop that a call from this thread would run on; set by the bridge."""

    def __init__(self, in_s: float) -> None:
        self._in_s = in_s
        self._alarm: Alarm | None = None
        self._block: Block | None = None
        self._token: Token[Block] | None = None

    def __enter__(self) -> Deadline:
        if asyncio._get_running_loop() is not None:
            raise RuntimeError("inside an event loop, enter a deadline with `async with`")
        self._block = Block(min(Deadline.loops_time() + self._in_s, ends_at.get()))
        self._block.outer = block.get()
        self._token = block.set(self._block)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None and self._block is not None:
            block.reset(self._token)
            self._block.until = OVER

    async def __aenter__(self) -> Deadline:
        self._alarm = CallersAlarm(Nearer.of(self._in_s)).__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._alarm is not None:
            self._alarm.__exit__(kind, error, trace)
