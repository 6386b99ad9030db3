"""Skipping time with real sockets and threads: the loop moves with the clock, and has its own time again afterwards."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest
import uvloop

import koo
from koo.deadlines import Alarm, Deadlines, OwnTimer, ends_at
from koo.options import PlatformOptions
from koo.platform import Platform
from koo.testing.clock import StandingClock, VirtualClock, run_virtual
from koo.testing.skipping import SkippingClock

NEAR_S = 60.0
"""Real time that a busy machine may take. It cannot be confused with the skipped time, which is hours."""


def test_the_clock_is_real_time_until_something_is_skipped() -> None:
    clock = SkippingClock()
    assert time.monotonic() <= clock.monotonic() <= time.monotonic()
    assert abs(clock.wall() - time.time()) < NEAR_S


def test_a_sleep_of_a_day_ends_when_a_day_is_skipped() -> None:
    async def main() -> None:
        clock, loop = SkippingClock(), asyncio.get_running_loop()
        wall_s = clock.wall()
        sleeps = [
            asyncio.create_task(clock.sleep(86_400)),
            asyncio.create_task(asyncio.sleep(86_400)),
        ]
        await asyncio.sleep(0)
        clock.advance(hours=23)
        await asyncio.sleep(0.001)
        assert not any(one.done() for one in sleeps)
        clock.advance(minutes=59, seconds=60)
        await asyncio.gather(*sleeps)
        assert abs(clock.monotonic() - loop.time()) < NEAR_S
        assert clock.wall() - wall_s >= 86_400

    asyncio.run(main())


def test_a_deadline_set_after_a_skip_is_on_time() -> None:
    async def main() -> None:
        clock = SkippingClock()
        clock.advance(days=2)

        async def hang() -> None:
            async with asyncio.timeout_at(clock.monotonic() + 3600):
                await clock.sleep(86_400)

        hangs = asyncio.create_task(hang())
        await asyncio.sleep(0.001)
        assert not hangs.done()
        clock.advance(hours=1)
        with pytest.raises(TimeoutError):
            await hangs

    asyncio.run(main())


def test_sockets_and_threads_continue_to_work() -> None:
    async def main() -> None:
        clock = SkippingClock()

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(5))
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            clock.advance(days=30)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"hello")
            assert await reader.read() == b"hello"
            writer.close()
            await writer.wait_closed()
        assert await asyncio.to_thread(lambda: "thread") == "thread"

    asyncio.run(main())


def test_another_thread_can_skip_and_wakes_the_loop() -> None:
    async def main() -> None:
        clock = SkippingClock()
        waits = asyncio.create_task(clock.sleep(3600))
        await asyncio.sleep(0)
        thread = threading.Thread(target=lambda: clock.advance(hours=1))
        thread.start()
        await waits
        thread.join()

    asyncio.run(main())


def test_a_second_loop_that_reads_the_clock_moves_too() -> None:
    clock = SkippingClock()

    async def skip() -> None:
        clock.advance(hours=1)

    async def look() -> float:
        return clock.monotonic() - asyncio.get_running_loop().time()

    asyncio.run(skip())
    assert abs(asyncio.run(look())) < NEAR_S


def test_a_released_loop_has_its_own_time_and_its_timers_keep_the_time_left() -> None:
    async def main() -> None:
        clock, loop = SkippingClock(), asyncio.get_running_loop()
        early, late = asyncio.Event(), asyncio.Event()
        loop.call_later(3600, early.set)
        loop.call_later(7 * 3600, late.set)
        clock.advance(hours=2)
        await early.wait()
        clock.release()
        assert abs(loop.time() - time.monotonic()) < NEAR_S
        (left,) = [one.when() - loop.time() for one in loop._scheduled if not one.cancelled()]  # type: ignore[attr-defined]
        assert abs(left - 5 * 3600) < NEAR_S and not late.is_set()
        again = SkippingClock()
        again.advance(hours=5)
        await late.wait()

    asyncio.run(main())


def test_wall_time_can_be_set_and_moves_with_skips() -> None:
    async def main() -> None:
        clock = SkippingClock(wall_s=0.0)
        before = clock.monotonic()
        clock.set_wall(86_400.0)
        assert 86_400 <= clock.wall() < 86_400 + NEAR_S and clock.monotonic() - before < NEAR_S
        clock.advance(days=1)
        assert 2 * 86_400 <= clock.wall() < 2 * 86_400 + NEAR_S

    asyncio.run(main())


def test_listeners_are_called_after_each_skip() -> None:
    async def main() -> None:
        clock, heard = SkippingClock(), list[float]()
        clock.listen(lambda: heard.append(clock.skipped_s))
        clock.advance(1)
        clock.advance(minutes=1)
        assert heard == [1.0, 61.0]

    asyncio.run(main())


def test_a_negative_skip_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 s cannot be skipped"):
        SkippingClock().advance(-1)


def test_two_clocks_cannot_move_one_loop() -> None:
    async def main() -> None:
        SkippingClock().advance(1)
        with pytest.raises(RuntimeError, match="the same clock"):
            SkippingClock().advance(1)

    asyncio.run(main())


def test_a_loop_whose_time_cannot_be_skipped_raises_with_advice() -> None:
    async def main() -> None:
        clock = SkippingClock()
        with pytest.raises(RuntimeError, match="only on asyncio's own event loops"):
            clock.advance(1)

    run_virtual(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_a_loop_whose_time_another_library_has_replaced_raises_with_advice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        clock = SkippingClock()
        monkeypatch.setattr(
            type(asyncio.get_running_loop()), "time", lambda _: time.monotonic(), raising=False
        )
        with pytest.raises(RuntimeError, match=r"freezegun.*koo\.clock\.advance"):
            clock.advance(1)

    asyncio.run(main())


def test_a_platform_refuses_a_clock_that_does_not_follow_the_loop(tmp_path: Path) -> None:
    options = PlatformOptions(home=tmp_path)

    async def main() -> None:
        with pytest.raises(ValueError, match=r"koo\.testing\.SkippingClock"):
            Platform(options, clock=StandingClock())
        clock = SkippingClock()
        clock.advance(days=1)
        Platform(options, clock=clock)

    with pytest.raises(ValueError, match="the monotonic time of StandingClock is"):
        Platform(options, clock=StandingClock())
    asyncio.run(main())
    run_virtual(_make_virtual)


async def _make_virtual() -> None:
    Platform(PlatformOptions(), clock=VirtualClock())


def test_koos_own_timers_move_with_the_loop() -> None:
    """The registry of deadlines sets one timer per quarter of a second, in the loop's time."""

    async def main() -> None:
        clock, deadlines = SkippingClock(), Deadlines()

        async def hang() -> None:
            with Alarm(deadlines, clock.monotonic() + 3600):
                await asyncio.get_running_loop().create_future()

        clock.advance(hours=5)
        hangs = asyncio.create_task(hang())
        await asyncio.sleep(0)
        clock.advance(hours=1)
        with pytest.raises(TimeoutError):
            await hangs

    asyncio.run(main())


@pytest.mark.parametrize("registry", [None, Deadlines, OwnTimer])
def test_timeouts_of_koos_background_work_keep_their_time(registry: type[Deadlines] | None) -> None:
    """A skip makes no thread or socket faster, so a beat to the store would otherwise count as unanswered."""

    async def main() -> None:
        clock, loop = SkippingClock(), asyncio.get_running_loop()

        async def wait() -> None:
            if registry is None:
                async with asyncio.timeout(600):
                    await loop.create_future()
            else:
                with Alarm(deadlines, clock.monotonic() + 600):
                    await loop.create_future()

        deadlines = registry() if registry is not None else Deadlines()
        beat = asyncio.create_task(wait(), name="koo Ledger")
        call = asyncio.create_task(wait(), name="koo call")
        await asyncio.sleep(0)
        clock.advance(seconds=599)
        clock.advance(hours=1)
        with pytest.raises(TimeoutError):
            await call
        await asyncio.sleep(0.001)
        assert not beat.done()
        beat.cancel()

    asyncio.run(main())


def test_after_release_koos_deadlines_keep_the_time_left() -> None:
    async def main() -> None:
        clock, deadlines = SkippingClock(), Deadlines()
        loop = asyncio.get_running_loop()
        clock.advance(hours=2)

        async def hang(registry: Deadlines) -> None:
            with Alarm(registry, loop.time() + 0.6):
                await asyncio.sleep(3600)

        calls = [asyncio.create_task(hang(one)) for one in (deadlines, OwnTimer())]
        await asyncio.sleep(0)
        clock.release()
        began = time.monotonic()
        done, _ = await asyncio.wait(calls, timeout=NEAR_S)
        assert len(done) == 2 and time.monotonic() - began > 0.3
        assert all(isinstance(one.exception(), TimeoutError) for one in done)

    asyncio.run(main())


def test_timers_of_a_loop_that_joins_late_lose_no_time() -> None:
    async def main() -> None:
        waits = asyncio.create_task(asyncio.sleep(3600))
        await asyncio.sleep(0)
        assert clock.monotonic() > time.monotonic() + 3600
        await asyncio.sleep(0.01)
        assert not waits.done()
        clock.advance(hours=1)
        await waits

    clock = SkippingClock()
    clock.advance(hours=2)
    asyncio.run(main())


def test_a_clock_that_was_never_released_does_not_move_deadlines_in_threads() -> None:
    async def skip() -> None:
        clock.advance(hours=2)

    async def left_s() -> float:
        return ends_at.get() - asyncio.get_running_loop().time()

    clock = SkippingClock()
    asyncio.run(skip())
    with koo.deadline(50):
        assert 0 < koo.run(left_s()) <= 50


# ── a clock that stands still ─────────────────────────────────────────────────────────────────────────────────────


def test_a_standing_clock_moves_only_on_request() -> None:
    clock = StandingClock(wall_s=0.0)
    began = clock.monotonic()
    assert began > time.monotonic() + 86_400, "no deadline computed from it passes"
    clock.advance(minutes=1, seconds=1)
    assert (clock.wall(), clock.monotonic() - began) == (61.0, 61.0)
    clock.set_wall(10.0)
    assert (clock.wall(), clock.monotonic() - began) == (10.0, 61.0)
