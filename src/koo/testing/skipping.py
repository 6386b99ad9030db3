"""A clock whose time can be skipped while real sockets and threads run: real time plus the time that a test skips.

    clock = SkippingClock()
    platform = Platform(options, clock=clock)
    ...
    clock.advance(minutes=3)         # breakers, pauses, quotas and midnights of the platform have passed

koo sets its timers in the event loop's time, so a clock that ran ahead of the loop would make every deadline late by
the skipped time. So the loop moves too: from the first skip on, `loop.time()` of every loop that has read this clock is
real time plus the skipped time. Everything that waits on such a loop continues, whether it belongs to koo or not: a
sleep, a timeout, a call that hangs until its deadline. Sockets and threads do not become faster, so koo's background
work that waits for them (a beat to the state store, for example) keeps the time that it had left.

`release()` returns the loops to their own time. Every timer then still has as much time left as before.
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
    "time can be skipped only on asyncio's own event loops, and this is a {kind}: run the test on "
    "asyncio.SelectorEventLoop, or, if it uses no sockets, on virtual time with VirtualClock"
)
REPLACED = (
    "another library (freezegun, with real_asyncio) has replaced the event loop's time, so it cannot be skipped: use "
    "koo.clock.advance and koo.clock.set_wall instead of freezing time"
)
CARRIED = "koo call"
"""The name of a task that runs a caller's work on koo's background loop. Its deadline is the caller's, so a skip ends
it."""
BACKGROUND = {"CheckServices._check"}
"""koo's own background tasks that have no name starting with "koo "."""
TWO_CLOCKS = "another SkippingClock already moves this event loop: pass the same clock to both platforms"


class SkippingClock:
    """A `koo.clock.Clock` of real time plus the skipped time.

    Args:
        wall_s: the wall time at the start, in seconds since 1970; None for the real one.
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
        """Set the wall clock, as people and time servers do; monotonic time does not change."""
        if not isinstance(wall_s, int | float):
            raise TypeError(f"set_wall takes seconds since 1970, not {wall_s!r}")
        self._ahead_s = wall_s - time.time() - self.skipped_s

    async def sleep(self, delay_s: float) -> None:
        self.monotonic()  # registers the running loop, so that a skip also ends this sleep
        await asyncio.sleep(delay_s)

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each skip."""
        self._listeners.append(listener)

    def advance(
        self, seconds: float = 0.0, *, minutes: float = 0.0, hours: float = 0.0, days: float = 0.0
    ) -> None:
        """Skip this much time immediately. May be called from any thread.

        Raises ValueError for a negative or infinite time, and RuntimeError on an event loop whose time cannot be
        skipped.
        """
        skip_s = seconds + 60.0 * minutes + 3600.0 * hours + 86_400.0 * days
        if not 0 <= skip_s < float("inf"):
            raise ValueError(f"{skip_s:g} s cannot be skipped; expected 0 or more, and not infinity")
        running = asyncio._get_running_loop()
        others = [one for one in self._loops if one is not running and not one.is_closed()]
        # All loops must be stopped while the time jumps, or a loop could read the new time before its timers are
        # adjusted. So each is entered from within the one before. This thread's own loop comes first (it is last in
        # the list): it is blocked by this call, and another loop's thread that had to enter it would wait forever
        # (`with TestClient(app)` in an `async def` test).
        loops = others if running is None else [*others, running]
        for loop in loops:
            self._move(loop)
        skip = partial(self._skip, skip_s)
        for loop in loops:
            skip = partial(on_loop, loop, partial(_keep_and, loop, skip_s, skip))
        skip()
        for loop in others:
            # Its selector may be waiting for the first timer by the old time, although that timer is due now.
            loop.call_soon_threadsafe(_wake)
        for listener in self._listeners:
            listener()

    def _skip(self, skip_s: float) -> None:
        self.skipped_s += skip_s

    def release(self) -> None:
        """Return the loops to their own time; the time left on their timers does not change."""
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
            module = type(loop).__module__
            if module.startswith("asyncio."):
                raise RuntimeError(REPLACED)
            raise RuntimeError(NO_SKIPPING.format(kind=f"{module}.{type(loop).__name__}"))
        if "time" in vars(loop):
            raise RuntimeError(TWO_CLOCKS)
        vars(loop)["time"] = self._loop_time
        self._moved.add(loop)
        # Time was skipped before this loop came into use. Its timers must not lose that time.
        _shift_timers(loop, self.skipped_s)

    def _loop_time(self) -> float:
        return time.monotonic() + self.skipped_s


def _keep_and(loop: asyncio.AbstractEventLoop, skip_s: float, skip: Callable[[], None]) -> None:
    """Skip, but postpone the timeouts of koo's background work on this loop by the same time."""
    # Skipping makes no thread or socket faster. A beat to the state store that is under way would otherwise count as
    # unanswered, and the store as unreachable. Timers in the heap are changed in place and the heap is then restored;
    # an alarm that shares a timer with others (a grain) needs its own timer from now on.
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
    """Does nothing: the loop checks its timers after any callback."""


def _move_back(loop: asyncio.AbstractEventLoop, by_s: float) -> None:
    vars(loop).pop("time", None)
    _shift_timers(loop, -by_s)


def _shift_timers(loop: asyncio.AbstractEventLoop, by_s: float) -> None:
    """Move all timers by as much as the loop's time was moved, so that each has the same time left."""
    # All move by the same amount, so their order in the heap does not change.
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
    """Give an alarm its own timer, `by_s` later, instead of the one that it shares with its grain."""
    alarm.members.discard(alarm)
    alarm.when += by_s
    alarm.timer = loop.call_at(alarm.when, alarm.expire)
