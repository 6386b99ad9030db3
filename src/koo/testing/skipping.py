"""A clock whose time can be skipped, beside real sockets and threads: real time, plus what a test has skipped.

    clock = SkippingClock()
    platform = Platform(options, clock=clock)
    ...
    clock.advance(minutes=3)         # breakers, pauses, quotas and midnights of the platform have passed by

koo sets its timers in the event loop's time, so a clock that ran ahead of the loop would make each deadline late by
what was skipped. Hence the loop moves too: from the first skip on, `loop.time()` of each loop that has asked this clock
is real time plus the same. Whatever waits there goes on, koo's or not: a sleep, a timeout, a call that hangs until its
deadline. Sockets and threads do not notice, so the background work of koo that waits for one (a beat to the state
store) keeps the time that it had.

`release()` returns the loops to their own time. What is then left of a timer is left of it afterwards.
"""

from __future__ import annotations

import asyncio
import heapq
import time
import weakref
from collections.abc import Callable
from functools import partial

from koo.deadlines import Alarm, begin_grain
from koo.testing.backstage import on_loop

NO_SKIPPING = (
    "time can be skipped on asyncio's own event loops only, and this is a {kind}: run the test on "
    "asyncio.SelectorEventLoop, or on virtual time with VirtualClock where no socket is used"
)
CARRIED = "koo call"
"""The name of a task that runs a caller's work on koo's loop: its deadline is the caller's."""
BACKGROUND = {"CheckServices._check"}
"""Tasks of koo's own without a name."""
TWO_CLOCKS = "another SkippingClock moves this event loop already: pass the same clock to both platforms"


class SkippingClock:
    """`koo.clock.Clock`: real time plus what was skipped.

    Args:
        wall_s: where wall time begins, in seconds since 1970; None: the real one.
    """

    follows_loop = True

    def __init__(self, wall_s: float | None = None) -> None:
        self.skipped_s = 0.0
        self._ahead_s = 0.0 if wall_s is None else wall_s - time.time()
        self._loops = weakref.WeakSet[asyncio.AbstractEventLoop]()
        self._moved = weakref.WeakSet[asyncio.AbstractEventLoop]()
        self._listeners: list[Callable[[], None]] = []

    def monotonic(self) -> float:
        loop = asyncio._get_running_loop()
        if loop is not None and loop not in self._moved:
            self._loops.add(loop)
            if self.skipped_s:
                self._move(loop)
        return time.monotonic() + self.skipped_s

    def wall(self) -> float:
        return time.time() + self._ahead_s + self.skipped_s

    def set_wall(self, wall_s: float) -> None:
        """Set the computer's clock, as people and time servers do; monotonic time does not change."""
        self._ahead_s = wall_s - time.time() - self.skipped_s

    async def sleep(self, delay_s: float) -> None:
        self.monotonic()  # the loop that waits moves with the clock
        await asyncio.sleep(delay_s)

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each skip."""
        self._listeners.append(listener)

    def advance(
        self, seconds: float = 0.0, *, minutes: float = 0.0, hours: float = 0.0, days: float = 0.0
    ) -> None:
        """Skip this much time, at once and from any thread.

        Raises ValueError for a negative time, and RuntimeError on an event loop whose time cannot be skipped.
        """
        skip_s = seconds + 60.0 * minutes + 3600.0 * hours + 86_400.0 * days
        if not skip_s >= 0:
            raise ValueError(f"time goes forward: {skip_s:g} s cannot be skipped")
        running = asyncio._get_running_loop()
        others = [one for one in self._loops if one is not running and not one.is_closed()]
        # The last one is entered first. Were this thread's own loop entered by another loop's thread, both would wait
        # for ever: it stands still for as long as this call does (`with TestClient(app)` in an `async def` test).
        loops = others if running is None else [*others, running]
        for loop in loops:
            self._move(loop)
        skip = partial(self._skip, skip_s)
        for loop in loops:
            skip = partial(on_loop, loop, partial(_keep_and, loop, skip_s, skip))
        skip()
        for loop in others:
            loop.call_soon_threadsafe(_wake)  # it may wait for a timer that is due now
        for listener in self._listeners:
            listener()

    def _skip(self, skip_s: float) -> None:
        self.skipped_s += skip_s

    def release(self) -> None:
        """Return the loops to their own time; what is then left of their timers stays left."""
        for loop in tuple(self._moved):
            if not loop.is_closed():
                on_loop(loop, lambda loop=loop: _move_back(loop, self.skipped_s))  # type: ignore[misc]
        self._moved.clear()
        self._loops.clear()
        self._ahead_s += self.skipped_s
        self.skipped_s = 0.0

    def _move(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop in self._moved:
            return
        if type(loop).time is not asyncio.BaseEventLoop.time:
            raise RuntimeError(NO_SKIPPING.format(kind=f"{type(loop).__module__}.{type(loop).__name__}"))
        if "time" in vars(loop):
            raise RuntimeError(TWO_CLOCKS)
        vars(loop)["time"] = self._loop_time
        self._moved.add(loop)
        _shift_timers(loop, self.skipped_s)  # it comes late: what was skipped before is not skipped for it

    def _loop_time(self) -> float:
        return time.monotonic() + self.skipped_s


def _keep_and(loop: asyncio.AbstractEventLoop, skip_s: float, skip: Callable[[], None]) -> None:
    """Skip, but keep what koo's own background work waits for: skipping makes no thread or socket faster.

    A beat to the state store that is under way would count as one that was not answered in time.
    """
    timers: list[asyncio.TimerHandle] = loop._scheduled  # type: ignore[attr-defined]
    for timer in tuple(timers):
        callback, arguments = timer._callback, timer._args  # type: ignore[attr-defined]
        owner = getattr(callback, "__self__", None)
        if isinstance(owner, asyncio.Timeout) and _is_in_background(owner._task):  # type: ignore[attr-defined]
            timer._when += skip_s  # type: ignore[attr-defined]
        elif isinstance(owner, Alarm) and _is_in_background(owner.task):
            timer._when += skip_s  # type: ignore[attr-defined]
            owner.when += skip_s
        elif callback is begin_grain:
            _, grains, grain = arguments
            for alarm in [one for one in grains.get(grain, ()) if _is_in_background(one.task)]:
                _time_by_itself(loop, alarm, skip_s)
    heapq.heapify(timers)
    skip()


def _is_in_background(task: asyncio.Task[object] | None) -> bool:
    if task is None:
        return False
    is_named = task.get_name().startswith("koo ") and task.get_name() != CARRIED
    return is_named or getattr(task.get_coro(), "__qualname__", "") in BACKGROUND


def _wake() -> None:
    """A turn of a loop, in which it looks at its timers."""


def _move_back(loop: asyncio.AbstractEventLoop, by_s: float) -> None:
    vars(loop).pop("time", None)
    _shift_timers(loop, -by_s)


def _shift_timers(loop: asyncio.AbstractEventLoop, by_s: float) -> None:
    """The loop's time was moved by this much: what is left of its timers stays left."""
    # All by the same: their order in the heap stays.
    timers: tuple[asyncio.TimerHandle, ...] = tuple(loop._scheduled)  # type: ignore[attr-defined]
    for timer in timers:
        timer._when += by_s  # type: ignore[attr-defined]
    for timer in timers:
        callback, arguments = timer._callback, timer._args  # type: ignore[attr-defined]
        owner = getattr(callback, "__self__", None)
        if isinstance(owner, Alarm):
            owner.when += by_s
        elif callback is begin_grain:
            _, grains, grain = arguments
            for alarm in tuple(grains.get(grain, ())):
                _time_by_itself(loop, alarm, by_s)


def _time_by_itself(loop: asyncio.AbstractEventLoop, alarm: Alarm, by_s: float) -> None:
    """Take it out of its grain: from now on it rings this much later."""
    alarm.members.discard(alarm)
    alarm.when += by_s
    alarm.timer = loop.call_at(alarm.when, alarm.expire)
