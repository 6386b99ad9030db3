"""Deadlines: points in time, carried in a ContextVar, kept in one registry with few timers.

`asyncio.timeout` puts a timer into the loop for each call and takes it out again, which costs as much as the rest of a
guard. Almost no call lives until its deadline, so all deadlines within the same quarter of a second share a
timer here. Calls still running when that quarter begins get a real timer for the rest: expiry is as exact as asyncio's.

To its caller an `Alarm` is an `asyncio.timeout`: at its time it cancels the task; on leaving the block it turns *its
own* cancellation into a TimeoutError and lets any other pass. The number of cancellations pending on entry is what
separates the two when both happen in one turn of the loop; read later it would count the caller's cancellation as ours
and swallow it.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from asyncio import CancelledError, current_task, get_running_loop
from collections.abc import Callable, Coroutine, Generator
from contextvars import ContextVar, Token
from types import TracebackType, coroutine
from typing import ClassVar, TypeVar

from koo.crossing import NO_LOOP, running_loop
from koo.forks import forget_in_child, leave_behind
from koo.options import NEVER

T = TypeVar("T")
GRAIN_S = 0.25

OVER = float("-inf")


class Block:
    """A deadline for a block. `until`: its time while the block runs, `OVER` afterwards. `outer`: the one around it.

    A task started inside gets a copy of the context, and may run for hours after the block has ended. What it finds
    there must not be a number, which would still end its calls, but an object that knows that it is over.
    """

    __slots__ = ("outer", "until")

    outer: Block

    def __init__(self, until: float) -> None:
        self.until = until


block: ContextVar[Block] = ContextVar("koo_deadline", default=Block(NEVER))  # noqa: B039 - this one never ends


class EndsAt:
    """The deadline of the current work."""

    __slots__ = ()

    def get(self) -> float:
        """In monotonic seconds of the event loop; `NEVER` without one."""
        found = block.get()
        while found.until == OVER:
            found = found.outer
        return found.until


ends_at = EndsAt()


class WrongLoop(RuntimeError):
    """It is in use on an event loop that runs in another thread."""


TWO_LOOPS = (
    "koo is open on another event loop that is still running, and what was opened there cannot be used here: hand "
    "the whole coroutine over, `await asyncio.to_thread(koo.run, coroutine)` (without an event loop koo.run(coroutine) "
    "alone), or open koo on this loop before anything else uses it: `await platform.open()`"
)
"""The error's text for what cannot cross to a second loop."""


class Deadlines:
    """The registry of one event loop; a later `asyncio.run` in the same process takes it over."""

    __slots__ = ("__weakref__", "grains", "loop")

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.grains: dict[float, set[Alarm]] = {}

    def open(self, loop: asyncio.AbstractEventLoop, alarm: Alarm) -> set[Alarm]:
        """A set for the alarm and all others that end in the same grain, with a timer.

        Raises `WrongLoop` while the registry is in use in another loop.
        """
        if loop is not self.loop:
            self.bind(loop)
        grain = alarm.when // GRAIN_S
        members: set[Alarm] = set()
        if grain == NEVER or grain != grain:
            return members  # without a deadline there is no timer
        grains = self.grains
        grains[grain] = members
        begins_at = grain * GRAIN_S
        if begins_at <= loop.time():
            loop.call_soon(begin_grain, loop, grains, grain)
        else:
            loop.call_at(begins_at, begin_grain, loop, grains, grain)
        return members

    def unbind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Its work on this loop has ended, although the loop may still run."""
        if self.loop is loop:
            self.loop, self.grains = None, {}  # pending timers keep their own sets

    def forget_parent(self) -> None:
        """In a forked child, where the parent's loop appears to run and never does."""
        leave_behind(self.loop, self.grains)
        self.loop, self.grains = None, {}

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Bind it to this loop. Raises `WrongLoop` while it is in use on another one."""
        if self.loop is loop:
            return
        if self.loop is not None and self.loop.is_running():
            raise WrongLoop(TWO_LOOPS)
        forget_in_child(self)
        self.loop = loop
        self.grains = {}  # the old loop's timers keep their own sets, in case it ever runs again


def begin_grain(loop: asyncio.AbstractEventLoop, grains: dict[float, set[Alarm]], grain: float) -> None:
    """A grain's time has come: each alarm still running gets its own timer."""
    now = loop.time()
    for alarm in grains.pop(grain):
        if alarm.when <= now:
            alarm.expire()
        else:
            alarm.timer = loop.call_at(alarm.when, alarm.expire)


class OwnTimer(Deadlines):
    """For a single deadline: its timer is set and cancelled, so that none is left behind."""

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
    what held before. Afterwards `alarm.expired` says whether the TimeoutError was this alarm's.
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
        # The running loop, not the registry's: from another thread the latter would name whatever task that loop is
        # running, and the deadline would cancel it.
        try:
            loop = get_running_loop()
        except RuntimeError:
            raise RuntimeError(NO_LOOP) from None
        task = current_task(loop)
        if task is None:
            raise RuntimeError("a deadline needs a running task")
        self.task = task
        registry = self._registry
        members = registry.grains.get(self.when // GRAIN_S) if loop is registry.loop else None
        if members is None:
            members = registry.open(loop, self)
        members.add(self)
        self.members = members
        self._cancelling = task.cancelling()
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
            # The error's traceback keeps the frame that holds this alarm, and the task may keep the error. A task
            # started inside keeps the alarm for as long as it runs.
            del self.task

    def expire(self) -> None:
        """Its time has come."""
        self.cut()

    def cut(self) -> None:
        """End the block now."""
        self.expired = True
        self.task.cancel()

    def _leave_expired(self, kind: type[BaseException] | None, error: BaseException | None) -> None:
        ours = self.task.uncancel() <= self._cancelling
        del self.task
        if ours and kind is not None and issubclass(kind, CancelledError):
            raise TimeoutError from error
        self.expired = False  # the caller's cancellation, or a result that won the race: not our timeout


class Lasting(Alarm):
    """An alarm whose time may move while its block runs: `ends` is asked at the start, and again when it rings.

    So a sign of life, or an operator's reset, costs no timer. Once the block has ended it may be entered again.
    """

    __slots__ = ()

    def __init__(self, registry: Deadlines) -> None:
        super().__init__(registry, NEVER)

    @abstractmethod
    def ends(self) -> float:
        """When the block ends, as things are now, in monotonic seconds of the loop."""

    def __enter__(self) -> Lasting:
        self.when, self.timer, self.expired = self.ends(), None, False
        super().__enter__()
        return self

    def expire(self) -> None:
        when = self.ends()
        if when <= self.when:
            self.cut()
            return
        self.when = when
        if when != NEVER:
            self.timer = get_running_loop().call_at(when, self.expire)


@coroutine
def resumed(reading: Coroutine[object, object, T], waits_for: object) -> Generator[object, None, T]:
    """`await` the rest of a coroutine that was started by hand with `send(None)`, and that now waits for this."""
    while True:
        try:
            yield waits_for
        except BaseException as error:  # noqa: BLE001 - a cancellation above all: it belongs to what waits
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


class Deadline:
    """`async with koo.deadline(2.5):` bounds everything inside, nested or guarded, in seconds from now.

    A nested deadline can only shorten it. Raises TimeoutError when its time is over; as after a cancellation, it is
    then unknown whether a COMMIT that was under way has happened. A task started inside is under it while the block
    runs, and free of it afterwards. Without an event loop `with koo.deadline(2.5):` bounds each `koo.run` inside.
    """

    __slots__ = ("_alarm", "_block", "_in_s", "_token")

    loops_time: ClassVar[Callable[[], float]] = staticmethod(time.monotonic)
    """The time of the loop that a call from this thread would run on: the bridge sets it."""

    def __init__(self, in_s: float) -> None:
        self._in_s = in_s
        self._alarm: Alarm | None = None
        self._block: Block | None = None
        self._token: Token[Block] | None = None

    def __enter__(self) -> Deadline:
        if asyncio._get_running_loop() is not None:
            raise RuntimeError("inside an event loop enter a deadline with `async with`")
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
        when = min(running_loop().time() + self._in_s, ends_at.get())
        # Not `Deadlines()`: each new one would leave its grain's timer in the loop until that time comes.
        self._alarm = Alarm(OwnTimer(), when).__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._alarm is not None:
            self._alarm.__exit__(kind, error, trace)
