"""Virtual time: an event loop that never waits. When everything left to do is in the future, it jumps there.

    def test_a_pause_of_a_minute() -> None:
        async def main() -> float:
            clock = VirtualClock()
            await clock.sleep(60)
            return clock.monotonic()

        assert run_virtual(main) == BEGIN_S + 60

A test on virtual time takes no real time, has the same result on any machine, and sees each timer at exactly its time.
It cannot use threads or sockets, because nothing outside the loop happens in the loop's time. A thread's result would
never arrive, and the loop raises `Deadlock`. With sockets and threads, use a clock that skips time:
`koo.testing.skipping`.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import selectors
import time
from collections.abc import Callable, Coroutine, Mapping
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

BEGIN_S = 1000.0
"""The loop's time at the start. Not 0: there, code that confuses 0 with "never" would work by accident."""
WALL_S = 1_790_000_000.0
"""The wall time at the start: 2026-09-21T14:13:20Z, a Monday."""
DAYS_S_MAX = 400 * 86_400.0
"""How long a loop runs by default: more than a year, so that yearly events can be tested."""
FAR_S = 1e6
"""How far a `StandingClock` is ahead of real monotonic time: eleven days, longer than any deadline in a test."""
ROUNDING_S = 1e-6
"""A jump that ends this close to a timer is meant for that timer."""
TICK_S = 1e-9
"""asyncio's resolution of its clock on Linux: it also runs timers that are due within this time."""


class Deadlock(RuntimeError):
    """Nothing is scheduled and the main task still waits: without threads and sockets, it would wait forever."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time()` moves only by jumping to the next timer.

    `begin_s`: its time at the start, in seconds. `run_*` raises `Deadlock` when no timer is left to wait for, or after
    `run_s_max` virtual seconds (a background task that ticks forever would otherwise hide a stuck main task).
    """

    def __init__(self, begin_s: float = BEGIN_S, run_s_max: float = DAYS_S_MAX) -> None:
        self._now = begin_s
        self._ends_at = begin_s + run_s_max
        self._whens: list[float] = []
        super().__init__(_Jumps(self._jump))

    def time(self) -> float:
        return self._now

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        heapq.heappush(self._whens, when)
        return super().call_at(when, callback, *args, context=context)

    def hog(self, until: float) -> None:
        """Let time pass without running anything, as a long computation on the loop does: then several timers are
        due."""
        self._now = max(self._now, until)

    def timers(self) -> list[float]:
        """The times of all timers that are set and not cancelled."""
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return sorted(handle.when() for handle in scheduled if not handle.cancelled())

    def has_work(self) -> bool:
        """Whether a callback is ready to run before time moves."""
        return bool(self._ready)  # type: ignore[attr-defined]

    def _jump(self, in_s: float | None) -> None:
        if in_s is None:
            raise Deadlock("nothing is scheduled, but the main task still waits")
        target = self._now + in_s
        if target > self._ends_at:
            raise Deadlock("this loop's longest running time is over, and the main task still waits")
        # The loop passes only the time left until the next timer, and in floating point `now + (when - now)` is rarely
        # exactly `when`. With the sum, a timer would fire a rounding error early. After months of virtual time the
        # rounding error exceeds the difference itself, and time would stop. So the exact times are kept as well.
        whens = self._whens
        while whens and whens[0] <= self._now:
            heapq.heappop(whens)
        near = bool(whens) and abs(whens[0] - target) <= ROUNDING_S
        later = whens[0] if near else max(target, math.nextafter(self._now, math.inf))
        # asyncio runs the timers due before `time() + 1e-9`. After some months of virtual time that sum rounds to
        # `time()` itself, and no timer would ever be due.
        self._now = later if later + TICK_S > later else math.nextafter(later, math.inf)


def virtual_loop() -> VirtualLoop:
    """The running loop. Raises RuntimeError if its time is not virtual."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualLoop):
        raise RuntimeError("this needs a loop with virtual time: see run_virtual")
    return loop


class _Jumps(selectors.BaseSelector):
    """A selector that never reports an event, and jumps in time instead of waiting."""

    def __init__(self, jump: Callable[[float | None], None]) -> None:
        self._jump = jump
        self._keys: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        # The loop registers at least its own wake-up pipe, to which only threads and signals write.
        number = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        self._keys[number] = key = selectors.SelectorKey(fileobj, number, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj if isinstance(fileobj, int) else fileobj.fileno())

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout > 0:
            self._jump(timeout)
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


class VirtualClock:
    """A `koo.clock.Clock` on a virtual loop: the running one, or `loop`. Wall time starts at `wall_s` and can be
    set."""

    follows_loop = True

    def __init__(self, loop: VirtualLoop | None = None, wall_s: float = WALL_S) -> None:
        running = asyncio.get_running_loop() if loop is None else loop
        if not isinstance(running, VirtualLoop):
            raise TypeError("a VirtualClock needs a VirtualLoop: run the test with run_virtual")
        self._loop = running
        self.set_wall(wall_s)

    def monotonic(self) -> float:
        return self._loop.time()

    def wall(self) -> float:
        return self._loop.time() + self._ahead_s

    def set_wall(self, wall_s: float) -> None:
        """Set the computer's clock; monotonic time does not change."""
        self._ahead_s = wall_s - self._loop.time()

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)


class StandingClock:
    """A clock that stands still until a test moves it, for code that reads the time but sets no timers by it.

    Its monotonic time is far ahead of any loop's time, so that no deadline computed from it can pass. Its sleeps are
    real. A `Platform` refuses this clock; use a `SkippingClock` there. Wall time starts at `wall_s`, by default now.
    """

    def __init__(self, wall_s: float | None = None) -> None:
        self.now = time.time() if wall_s is None else wall_s
        self._ahead_s = time.monotonic() + FAR_S - self.now

    def monotonic(self) -> float:
        return self.now + self._ahead_s

    def wall(self) -> float:
        return self.now

    def advance(
        self, seconds: float = 0.0, *, minutes: float = 0.0, hours: float = 0.0, days: float = 0.0
    ) -> None:
        """Let this much time pass."""
        self.now += seconds + 60.0 * minutes + 3600.0 * hours + 86_400.0 * days

    def set_wall(self, wall_s: float) -> None:
        """Set the computer's clock; monotonic time does not change."""
        self._ahead_s += self.now - wall_s
        self.now = wall_s

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)


def run_virtual(
    main: Coroutine[Any, Any, T] | Callable[[], Coroutine[Any, Any, T]],
    *,
    begin_s: float = BEGIN_S,
    run_s_max: float = DAYS_S_MAX,
) -> T:
    """Like `asyncio.run(main)`, on virtual time; `main` is a coroutine, or a function that returns one.

    Raises `main`'s exception, or `Deadlock`.
    """
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(begin_s, run_s_max)) as runner:
        return runner.run(main() if callable(main) else main)
