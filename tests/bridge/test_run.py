"""`koo.run`: any coroutine, from any thread, on one lasting loop, with the caller's context and a clean end."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path

import pytest

import koo
from koo.bridge import BRIDGE
from koo.crossing import carry
from koo.deadlines import ends_at
from koo.options import NEVER

tag: ContextVar[str] = ContextVar("tag", default="none")


async def here() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


# ── what it returns and raises ────────────────────────────────────────────────────────────────────────────────────────


def test_run_returns_the_coroutines_result_and_raises_its_error() -> None:
    async def fails() -> None:
        raise LookupError("mine")

    async def leaves() -> None:
        sys.exit(3)

    assert koo.run(asyncio.sleep(0, "value")) == "value"
    with pytest.raises(LookupError, match="mine"):
        koo.run(fails())
    with pytest.raises(SystemExit):
        koo.run(leaves())
    assert koo.run(asyncio.sleep(0, "the loop lives")) == "the loop lives"


def test_all_threads_share_one_loop_in_its_own_thread() -> None:
    with ThreadPoolExecutor(8) as pool:
        loops = set(pool.map(lambda _: koo.run(here()), range(32)))
    loops.add(koo.run(here()))
    assert len(loops) == 1
    assert koo.run(asyncio.to_thread(threading.current_thread)) is not threading.current_thread()


def test_calls_of_many_threads_run_at_the_same_time() -> None:
    """Each waits for all the others: run one after another, they would wait forever."""
    gate = koo.run(_barrier(6))
    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(lambda _: koo.run(gate.wait(), timeout_s=20), range(6))) == list(range(6))


def test_a_call_whose_loop_ends_before_it_begins_leaves_no_coroutine_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collect_what_other_tests_left()
    monkeypatch.setattr("koo.crossing.LOOK_S", 0.01)
    monkeypatch.setattr("koo.bridge.LOOK_S", 0.01)
    monkeypatch.setattr("koo.crossing.SETTLE_S_MAX", 0.01)
    monkeypatch.setattr("koo.bridge.SETTLE_S_MAX", 0.01)
    ended = asyncio.new_event_loop()  # like a loop that has stopped but is not marked so yet
    monkeypatch.setattr(BRIDGE, "loop", lambda: ended)
    with pytest.raises(RuntimeError, match="ended before the call did"):
        koo.run(here())
    with pytest.raises(RuntimeError, match="ended before the call did"):
        asyncio.run(carry(ended, here()))
    ended.close()
    gc.collect()  # A coroutine that was never awaited would warn here, and a warning is an error.


def collect_what_other_tests_left() -> None:
    """Warnings about what a failed test did not close are raised here, not in another test."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr("sys.unraisablehook", lambda _: None)
        gc.collect()


async def _barrier(parties: int) -> asyncio.Barrier:
    return asyncio.Barrier(parties)


def test_inside_a_running_loop_the_error_says_to_await_and_no_coroutine_is_left_behind() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"koo\.run would block.*await the coroutine"):
            koo.run(asyncio.sleep(0))

    collect_what_other_tests_left()
    asyncio.run(main())
    gc.collect()  # A coroutine that was never awaited would warn here, and a warning is an error.


def test_the_error_of_a_call_is_not_in_a_reference_cycle() -> None:
    class Mine(Exception):
        pass

    async def fails() -> None:
        raise Mine

    gc.collect()
    gc.disable()
    try:
        try:
            koo.run(fails())
        except Mine as error:
            gone = weakref.ref(error)
        ends = time.monotonic() + 10
        while gone() is not None and time.monotonic() < ends:
            koo.run(asyncio.sleep(0))  # the loop drops its last reference on its next turn
        assert gone() is None
    finally:
        gc.enable()


# ── iterating ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_async_iterable_becomes_a_plain_iterator_that_closes_its_source() -> None:
    left = []

    async def numbers() -> AsyncIterator[int]:
        try:
            for number in range(1000):
                yield number
        finally:
            left.append(True)

    items: Iterator[int] = koo.run(numbers())
    assert [next(items), next(items)] == [0, 1] and left == []
    items.close()  # type: ignore[attr-defined]
    assert left == [True]
    assert list(koo.run(_few())) == [1, 2, 3]


async def _few() -> AsyncIterator[int]:
    for number in (1, 2, 3):
        yield number


def test_an_iterator_has_one_deadline_for_all_its_items() -> None:
    async def slow() -> AsyncIterator[int]:
        yield 1
        await asyncio.get_running_loop().create_future()

    items = koo.run(slow(), timeout_s=0.1)
    assert next(items) == 1
    with pytest.raises(TimeoutError):
        next(items)


# ── the caller's context ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_callers_context_is_passed_and_changes_stay_in_the_call() -> None:
    async def look() -> str:
        seen = tag.get()
        tag.set("inside")
        return seen

    token = tag.set("mine")
    try:
        assert koo.run(look()) == "mine" and tag.get() == "mine"
    finally:
        tag.reset(token)


def test_a_call_is_limited_by_the_nearer_of_its_own_deadline_and_the_one_around_it() -> None:
    async def left_s() -> float:
        return ends_at.get() - asyncio.get_running_loop().time()

    assert koo.run(left_s()) == NEVER
    with koo.deadline(50):
        assert 40 < koo.run(left_s()) <= 50
        with koo.deadline(100):
            assert koo.run(left_s()) <= 50
        assert koo.run(left_s(), timeout_s=10) <= 10
    assert koo.run(left_s()) == NEVER
    with koo.deadline(0.05), pytest.raises(TimeoutError, match=r"^the surrounding deadline passed$"):
        koo.run(asyncio.sleep(60))
    with pytest.raises(TimeoutError, match=r"^the deadline of 0\.05 s passed$"):
        koo.run(asyncio.sleep(60), timeout_s=0.05)


def test_a_deadline_inside_a_loop_is_entered_with_async() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="async with"), koo.deadline(1):
            pass

    asyncio.run(main())


# ── being interrupted ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_interrupt_cancels_the_call_and_waits_until_it_has_settled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("koo.bridge.LOOK_S", 0.01)
    settled = []

    async def work() -> None:
        threading.Timer(0.05, signal.raise_signal, [signal.SIGUSR1]).start()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0.05)
            settled.append(True)

    class Stop(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Stop

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(Stop):
            koo.run(work())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert settled == [True]


# ── the end of the process, and forks ─────────────────────────────────────────────────────────────────────────────────


def process(program: str, *arguments: str) -> tuple[int, str]:
    """The exit code and output of a separate program."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program, *arguments],
        capture_output=True, text=True, timeout=60, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_at_the_end_of_the_process_tasks_are_cancelled_and_closed_in_order() -> None:
    program = """
import asyncio, koo
async def keep():
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        await asyncio.sleep(0.01)
        print("closed")
async def main():
    main.task = asyncio.create_task(keep())
    await asyncio.sleep(0)
koo.run(main())
print("main is over")
"""
    assert process(program) == (0, "main is over\nclosed\n")


def test_a_task_started_while_the_process_ends_is_cancelled_and_closed_too() -> None:
    program = """
import asyncio, koo
async def keep(word, late=None):
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        if late is not None:
            keep.late = asyncio.create_task(late)
            await asyncio.sleep(0)
        print(word)
async def main():
    main.task = asyncio.create_task(keep("first", keep("second", keep("third"))))
    await asyncio.sleep(0)
koo.run(main())
"""
    assert process(program) == (0, "first\nsecond\nthird\n")


def test_a_thread_that_outlives_the_main_one_may_finish_its_call() -> None:
    program = """
import asyncio, koo, threading
async def slow():
    await asyncio.sleep(0.3)
    print("done")
started = threading.Event()
async def begin():
    started.set()
    await slow()
threading.Thread(target=lambda: koo.run(begin())).start()
started.wait()
"""
    assert process(program) == (0, "done\n")


def test_a_call_after_the_end_is_refused_in_one_sentence() -> None:
    program = """
import asyncio, koo, threading, time
koo.run(asyncio.sleep(0))
def late():
    threading.main_thread().join()
    while True:
        try:
            koo.run(asyncio.sleep(0.01))
        except RuntimeError as error:
            print(error)
            return
threading.Thread(target=late).start()
"""
    code, said = process(program)
    assert code == 0 and said.startswith("koo's event loop ended before the call did")


def test_a_fork_starts_its_own_loop() -> None:
    program = """
import asyncio, koo, os, sys
first = koo.run(asyncio.sleep(0, "parent"))
child = os.fork()
if child == 0:
    print(koo.run(asyncio.sleep(0, "child")), flush=True)
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), koo.run(asyncio.sleep(0, "parent still")))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "child\n7 parent still\n"), done.stderr
