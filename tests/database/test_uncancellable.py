"""Work that finishes although its caller is cancelled: in a separate task, or in the caller's own task."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from koo.database.uncancellable import Unbroken, to_end

Way = Callable[[Coroutine[Any, Any, None]], Awaitable[None]]
ways = pytest.mark.parametrize("way", [to_end, Unbroken])


@ways
def test_the_work_ends_and_its_error_is_raised(way: Way) -> None:
    async def main() -> None:
        seen: list[int] = []

        async def work(fails: bool) -> None:
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
            seen.append(1)
            if fails:
                raise KeyError("mine")

        await way(work(False))
        with pytest.raises(KeyError, match="mine"):
            await way(work(True))
        assert seen == [1, 1]

    asyncio.run(main())


@ways
@pytest.mark.parametrize("turns", range(6))
def test_a_cancellation_is_raised_after_the_end_of_the_work(way: Way, turns: int) -> None:
    async def main() -> None:
        seen: list[str] = []
        go = asyncio.Event()

        async def work() -> None:
            await asyncio.sleep(0)
            await go.wait()
            await asyncio.sleep(0.001)
            seen.append("done")

        async def caller() -> None:
            try:
                await way(work())
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise

        task = asyncio.create_task(caller())
        for _ in range(turns):
            await asyncio.sleep(0)
        if turns:
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.sleep(0)
            assert not task.done()
        go.set()
        await asyncio.gather(task, return_exceptions=True)
        assert seen == (["done", "cancelled"] if turns else ["done"])
        assert task.cancelled() is bool(turns)

    asyncio.run(main())


@ways
def test_a_timeout_around_the_work_is_raised_after_its_end(way: Way) -> None:
    async def main() -> None:
        done = False

        async def work() -> None:
            nonlocal done
            await asyncio.sleep(0.05)
            done = True

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await way(work())
        assert done

    asyncio.run(main())


@ways
def test_the_error_of_cancelled_work_is_kept_as_the_cause(way: Way) -> None:
    async def main() -> None:
        async def work() -> None:
            await asyncio.sleep(0.01)
            raise KeyError("mine")

        task = asyncio.ensure_future(_await(way(work())))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        cause = caught.value.__cause__ or caught.value.__context__
        assert isinstance(cause, KeyError | asyncio.CancelledError)

    asyncio.run(main())


async def _await(one: Awaitable[None]) -> None:
    await one


def test_the_work_sees_a_cancellation_of_what_it_waits_for() -> None:
    async def main() -> None:
        future = asyncio.get_running_loop().create_future()

        async def work() -> None:
            await future

        task = asyncio.ensure_future(_await(Unbroken(work())))
        await asyncio.sleep(0)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
