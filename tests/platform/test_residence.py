"""A failed opening of koo leaves nothing behind, each loop has one keeper, and nothing runs after closing."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import koo
from koo import Platform
from koo.deadlines import ends_at
from koo.options import NEVER
from koo.storage.base import StoreUnavailable
from koo.testing.polling import until
from koo.testing.providers import FakeAnthropic
from tests.platform.test_platform import QUESTION, options


class Broken(Exception):
    """Raised by a failing step of opening."""


@contextmanager
def broken(platform: Platform, step: str, error: Exception) -> Iterator[None]:
    """A step that fails."""
    owner: Any = platform.parts
    *path, name = step.split(".")
    for part in path:
        owner = getattr(owner, part)

    def fails(*_: object, **__: object) -> Any:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(owner), name, fails)
        yield


STEPS = [
    "deadlines.bind", "store.open", "store.executor.start", "store.ledger.refresh", "budgets.keep_count",
    "alerts.begin", "alerts._refresh", "store.ledger.run",
    "fleet.begin", "fleet.run",
]  # fmt: skip


def tasks() -> set[str]:
    """koo's other tasks on this loop."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    return {task.get_name() for task in others if task.get_name().startswith("koo ")}


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "koo state store"}


def files(home: Path) -> set[str]:
    """The open files in this folder."""
    found, descriptors = set(), "/proc/self/fd"
    for number in os.listdir(descriptors) if os.path.isdir(descriptors) else ():  # noqa: PTH208, PTH112 - some vanish meanwhile
        try:
            found.add(os.readlink(f"/proc/self/fd/{number}"))  # noqa: PTH115
        except OSError:
            pass
    return {path for path in found if path.startswith(str(home))}


async def one() -> int:
    return 1


@pytest.mark.parametrize("step", STEPS)
def test_a_failed_step_of_opening_leaves_nothing_behind_and_the_next_call_opens(
    step: str, tmp_path: Path
) -> None:
    platform = Platform(options(tmp_path))
    platform.register_service("x")
    before = threads()

    async def fails() -> None:
        with pytest.raises(Broken):
            await platform.execute("x", one)
        assert tasks() == files(tmp_path) == set()
        await until(lambda: threads() <= before)  # threads end a moment after they have reported it

    async def works() -> None:
        assert await platform.execute("x", one) == 1
        assert "koo keeper" in tasks() and not threads() <= before
        await platform.close()
        assert tasks() == files(tmp_path) == set()
        await until(lambda: threads() <= before)

    async def main() -> None:
        with broken(platform, step, Broken()):
            await fails()
            await fails()
        await works()

    asyncio.run(main())
    with broken(platform, step, Broken()):
        asyncio.run(fails())
    koo.run(works())


def test_a_caller_cancelled_while_koo_opens_leaves_it_open_and_closable(tmp_path: Path) -> None:
    platform = Platform(options(tmp_path))
    platform.register_service("x")

    async def main() -> None:
        first = asyncio.create_task(platform.execute("x", one))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await platform.execute("x", one) == 1
        await platform.close()
        assert tasks() == files(tmp_path) == set()

    asyncio.run(main())


def test_callers_waiting_for_an_opening_that_fails_try_for_themselves(tmp_path: Path) -> None:
    platform = Platform(options(tmp_path))
    platform.register_service("x")

    async def main() -> list[object]:
        with broken(platform, "alerts.begin", Broken()):
            calls = [asyncio.create_task(platform.execute("x", one)) for _ in range(3)]
            await asyncio.wait([calls[0]])
        return await asyncio.gather(*calls, return_exceptions=True)

    first, *others = asyncio.run(main())
    assert isinstance(first, Broken) and others == [1, 1]


def test_many_first_callers_share_one_keeper(tmp_path: Path) -> None:
    platform = Platform(options(tmp_path))
    platform.register_service("x")

    async def main() -> None:
        assert await asyncio.gather(*(platform.execute("x", one) for _ in range(20))) == [1] * 20
        names = [task.get_name() for task in asyncio.all_tasks()]
        assert names.count("koo keeper") == names.count("koo KeepTime") == 1
        await asyncio.gather(platform.close(), platform.close())
        assert tasks() == set()

    asyncio.run(main())


def test_two_threads_loops_that_open_at_the_same_time_have_one_keeper(tmp_path: Path) -> None:
    platform = Platform(options(tmp_path))
    gate, results = threading.Barrier(3), list[str]()

    async def open_here() -> None:
        gate.wait()
        try:
            await platform.open()
        except RuntimeError as error:
            results.append(str(error)[:36])
        else:
            results.append("opened")
            await until(lambda: len(results) == 3)

    workers = [threading.Thread(target=lambda: asyncio.run(open_here())) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert sorted(results) == ["koo is open on another event loop th"] * 2 + ["opened"]


def test_a_call_during_closing_opens_koo_again_afterwards(tmp_path: Path) -> None:
    platform = Platform(options(tmp_path))
    platform.register_service("x")

    async def main() -> None:
        await platform.open()
        closing = asyncio.create_task(platform.close())
        await asyncio.sleep(0)
        assert await platform.execute("x", one) == 1
        await closing
        assert "koo keeper" in tasks()

    asyncio.run(main())


def test_after_closing_on_a_loop_that_still_runs_koo_opens_on_another(tmp_path: Path) -> None:
    platform = Platform(options(tmp_path))
    platform.register_service("x")

    async def main() -> int:
        await platform.execute("x", one)
        await platform.close()
        return await asyncio.to_thread(koo.run, opened_and_closed())

    async def opened_and_closed() -> int:
        async with platform:
            return await platform.execute("x", one)

    assert asyncio.run(main()) == 1


def test_koo_does_not_inherit_the_first_callers_deadline_and_context(tmp_path: Path) -> None:
    platform, seen = Platform(options(tmp_path)), list[float]()
    platform.register_service("x")

    async def run() -> None:
        seen.append(ends_at.get())
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        platform.parts.fleet.run = run  # type: ignore[method-assign]
        async with koo.deadline(60):
            await platform.execute("x", one)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert seen == [NEVER]


def test_with_koo_open_on_a_stopped_loop_every_entry_point_says_what_to_write(tmp_path: Path) -> None:
    """An example is a fixture's loop while a test runs on another one."""
    with FakeAnthropic() as server:
        platform = Platform(options(tmp_path, server))
        platform.register_service("x")
        doors: list[Callable[[], Awaitable[object]]] = [
            platform.open, platform.close, platform.system_health, platform.check_services, platform.spend,
            lambda: platform.query(QUESTION), lambda: anext(platform.stream(QUESTION)),
            lambda: platform.execute("x", one),
        ]  # fmt: skip
        with asyncio.Runner() as fixture, asyncio.Runner() as test:
            fixture.run(platform.execute("x", one))
            for door in doors:
                with pytest.raises(RuntimeError) as caught:
                    test.run(_await(door))
                said = str(caught.value)
                assert "call `await platform.close()`" in said and 'loop_scope="session"' in said
                assert "\n" not in said and "SqlStore" not in said
            fixture.run(platform.close())  # the code to write
            assert test.run(_await(lambda: platform.query(QUESTION)))
            test.run(platform.close())
            for loop in (fixture.get_loop(), test.get_loop()):
                assert asyncio.all_tasks(loop) == set()


async def _await(door: Callable[[], Awaitable[object]]) -> object:
    return await door()


def test_koo_opens_without_its_store(tmp_path: Path) -> None:
    platform = Platform(options(tmp_path))
    platform.register_service("x")

    async def main() -> None:
        with broken(platform, "store.ledger.refresh", StoreUnavailable("unreachable")):
            assert await platform.execute("x", one) == 1
        await platform.close()
        assert tasks() == set()

    asyncio.run(main())


# ── loops that refuse a task ──────────────────────────────────────────────────────────────────────────────────────────


class Refused(Exception):
    """Raised by the application's own task factory."""


def of_python_310(loop: asyncio.AbstractEventLoop, work: Any) -> Any:
    """A task factory from before tasks had a `context` argument."""
    return asyncio.Task(work, loop=loop)


def test_koo_opens_under_a_task_factory_without_support_for_contexts(tmp_path: Path) -> None:
    platform = Platform(options(tmp_path))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        if type(loop).__module__ == "uvloop":
            pytest.skip("uvloop passes `context` to every task factory")
        loop.set_task_factory(of_python_310)
        async with platform, platform.database.session_scope():
            assert {"koo keeper", "koo ProbeDatabase"} <= tasks()
        assert tasks() == set()

    asyncio.run(main())


@pytest.mark.parametrize("refused", ["Keeper._run", "Ledger.run", "BackgroundTask.run", "Database._keep"])
def test_a_loop_that_refuses_a_task_leaves_no_coroutine_behind_and_the_next_call_opens(
    refused: str, tmp_path: Path
) -> None:
    platform, refuses = Platform(options(tmp_path)), True

    def factory(loop: asyncio.AbstractEventLoop, work: Any, **more: Any) -> Any:
        if refuses and work.__qualname__ == refused:
            raise Refused
        return asyncio.Task(work, loop=loop, **more)

    async def use() -> None:
        async with platform, platform.database.session_scope():
            pass

    async def main() -> None:
        nonlocal refuses
        asyncio.get_running_loop().set_task_factory(factory)
        with pytest.raises(Refused):
            await use()
        gc.collect()  # A coroutine that was never awaited would warn here, and a warning is an error.
        refuses = False
        await use()

    asyncio.run(main())
