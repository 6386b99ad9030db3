"""Virtual time jumps to each timer, exactly and in order, and raises when nothing is left to wait for."""

from __future__ import annotations

import asyncio
import time

import pytest

from koo.testing.clock import BEGIN_S, Deadlock, VirtualClock, VirtualLoop, run_virtual


def test_days_of_virtual_time_take_no_real_time() -> None:
    began = time.monotonic()

    async def main() -> float:
        await asyncio.sleep(3 * 86_400)
        return asyncio.get_running_loop().time()

    assert run_virtual(main) == BEGIN_S + 3 * 86_400
    assert time.monotonic() - began < 60, "a real sleep would last three days"


@pytest.mark.parametrize("delay_s", [0.1, 0.3, 1 / 3, 59.999, 1e-4, 86_399.7])
def test_a_timer_fires_at_exactly_its_time(delay_s: float) -> None:
    async def main() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        seen: list[float] = []
        for n in range(1, 15):
            when = loop.time() + delay_s * n
            loop.call_at(when, lambda: seen.append(loop.time()))
            await asyncio.sleep(delay_s * n)
            assert loop.time() >= when
        return seen[-1], when

    at, when = run_virtual(main)
    assert at == when


def test_time_never_stops_even_after_months() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        for _ in range(100):
            await asyncio.sleep(0.1)
        return loop.time()

    assert run_virtual(main, begin_s=1e9) == pytest.approx(1e9 + 10, abs=1e-4)


def test_timers_run_in_the_order_of_their_times() -> None:
    async def main() -> list[int]:
        order: list[int] = []

        async def one(n: int) -> None:
            await asyncio.sleep(n)
            order.append(n)

        await asyncio.gather(*(one(n) for n in (5, 1, 4, 2, 3)))
        return order

    assert run_virtual(main()) == [1, 2, 3, 4, 5]


def test_waiting_for_something_that_never_happens_raises_deadlock() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock, match="nothing is scheduled"):
        run_virtual(main)


def test_a_task_that_ticks_forever_does_not_hide_a_stuck_main_task() -> None:
    async def tick() -> None:
        while True:  # noqa: ASYNC110 - the subject of this test
            await asyncio.sleep(1)

    async def main() -> None:
        task = asyncio.create_task(tick())
        await asyncio.get_running_loop().create_future()
        await task

    with pytest.raises(Deadlock, match="longest running time"):
        run_virtual(main, run_s_max=100)


def test_remaining_tasks_are_cancelled_and_clean_up() -> None:
    tidied: list[str] = []

    async def left() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(5)
            tidied.append("left")

    async def main() -> None:
        task = asyncio.create_task(left())
        await asyncio.sleep(1)
        assert not task.done()

    run_virtual(main)
    assert tidied == ["left"]


def test_the_clock_follows_the_loop_and_wall_time_can_be_set() -> None:
    async def main() -> None:
        clock = VirtualClock(wall_s=86_400.0)
        await clock.sleep(10)
        assert clock.monotonic() == BEGIN_S + 10
        assert clock.wall() == 86_410.0
        clock.set_wall(0.0)
        await clock.sleep(1)
        assert clock.wall() == 1.0 and clock.monotonic() == BEGIN_S + 11

    run_virtual(main)


def test_a_clock_needs_a_virtual_loop() -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match="run_virtual"):
            VirtualClock()

    asyncio.run(main())


def test_two_loops_keep_their_own_time() -> None:
    one, other = VirtualLoop(begin_s=5.0), VirtualLoop()
    try:
        one.run_until_complete(asyncio.sleep(3))
        assert (one.time(), other.time()) == (8.0, BEGIN_S)
    finally:
        one.close()
        other.close()


def test_exceptions_of_main_are_raised() -> None:
    async def main() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        run_virtual(main)
