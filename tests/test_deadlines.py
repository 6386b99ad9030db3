"""Deadlines behave like `asyncio.timeout` in every scenario, and leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import re
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import copy_context
from types import TracebackType
from typing import Any

import pytest

from koo.deadlines import (
    GRAIN_S,
    TWO_LOOPS,
    Alarm,
    Deadline,
    Deadlines,
    OwnTimer,
    WrongLoop,
    ends_at,
    resumed,
)
from koo.options import NEVER
from koo.testing.clock import BEGIN_S, run_virtual, virtual_loop

# ── one interface for all ─────────────────────────────────────────────────────────────────────────────────────────


class AlarmBlock:
    """An `Alarm` as an asynchronous block."""

    def __init__(self, registry: Deadlines, in_s: float) -> None:
        self._alarm = Alarm(registry, asyncio.get_running_loop().time() + in_s)

    async def __aenter__(self) -> AlarmBlock:
        self._alarm.__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._alarm.__exit__(kind, error, trace)


Block = AbstractAsyncContextManager[Any]
Timeout = Callable[[float], Block]


def theirs(in_s: float) -> Block:
    return asyncio.timeout(in_s)


def alarms() -> Timeout:
    registry = Deadlines()
    return lambda in_s: AlarmBlock(registry, in_s)


def deadline(in_s: float) -> Block:
    return Deadline(in_s)


OURS: dict[str, Callable[[], Timeout]] = {"alarm": alarms, "deadline": lambda: deadline}
OLD_ASYNCIO = sys.version_info < (3, 11, 5)
"""Earlier versions of `asyncio.timeout` did not count the pending cancellations on entry, and fail one scenario."""


def pending() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


def now() -> float:
    return asyncio.get_running_loop().time()


def block_loop_until(when: float) -> None:
    """Simulate a computation that blocks the loop: when it ends, several timers are due at the same time."""
    virtual_loop().hog(when)


# ── the scenarios: each returns its outcome ───────────────────────────────────────────────────────────────────────


async def own_expiry(within: Timeout) -> str:
    began = now()
    try:
        async with within(0.3):
            await asyncio.sleep(5)
    except TimeoutError:
        return f"timeout after {now() - began:.6f}, cancelling {pending()}"
    return "nothing"


async def in_time(within: Timeout) -> str:
    async with within(0.3):
        await asyncio.sleep(0.299)
    await asyncio.sleep(1)
    return f"nothing, cancelling {pending()}"


async def already_over(within: Timeout) -> str:
    try:
        async with within(-1):
            await asyncio.sleep(0)
            await asyncio.sleep(5)
    except TimeoutError:
        return f"timeout, cancelling {pending()}"
    return "nothing"


async def over_but_never_waits(within: Timeout) -> str:
    async with within(-1):
        pass
    await asyncio.sleep(0.01)
    return f"nothing, cancelling {pending()}"


async def callers_cancellation(within: Timeout) -> str:
    async def inner() -> None:
        async with within(0.3):
            await asyncio.sleep(5)

    task = asyncio.create_task(inner())
    await asyncio.sleep(0.05)
    task.cancel()
    return await told(task)


async def told(task: asyncio.Task[Any]) -> str:
    try:
        result = await task
    except asyncio.CancelledError:
        return f"cancelled, cancelling {task.cancelling()}"
    except TimeoutError:
        return f"timeout, cancelling {task.cancelling()}"
    return f"{result}, cancelling {task.cancelling()}"


async def both_in_one_turn(within: Timeout, cancel_in_s: float) -> str:
    """The caller cancels in the same turn of the loop in which the deadline passes."""
    loop = asyncio.get_running_loop()

    async def inner() -> None:
        async with within(0.3):
            loop.call_later(0.29, block_loop_until, now() + 0.32)
            loop.call_later(cancel_in_s, task.cancel)
            await asyncio.sleep(5)

    task = asyncio.create_task(inner())
    return await told(task)


async def caller_first_in_one_turn(within: Timeout) -> str:
    return await both_in_one_turn(within, 0.295)


async def caller_second_in_one_turn(within: Timeout) -> str:
    return await both_in_one_turn(within, 0.305)


async def caller_at_the_same_time(within: Timeout) -> str:
    return await both_in_one_turn(within, 0.3)


async def result_wins_the_race(within: Timeout) -> str:
    """The result is available, but the task continues only after the expiry."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[str] = loop.create_future()

    def settle() -> None:
        block_loop_until(loop.time() + 0.02)
        future.set_result("x")

    loop.call_later(0.3, settle)
    try:
        async with within(0.31):
            return await future
    except TimeoutError:
        return f"timeout, cancelling {pending()}"


async def nested(within: Timeout, outer_s: float, inner_s: float) -> str:
    try:
        async with within(outer_s):
            try:
                async with within(inner_s):
                    await asyncio.sleep(5)
            except TimeoutError:
                return f"inner, cancelling {pending()}"
    except TimeoutError:
        return f"outer, cancelling {pending()}"
    return "nothing"


async def nested_outer_first(within: Timeout) -> str:
    return await nested(within, 0.3, 60.0)


async def nested_inner_first(within: Timeout) -> str:
    return await nested(within, 60.0, 0.3)


async def nested_at_the_same_time(within: Timeout) -> str:
    return await nested(within, 0.3, 0.3)


async def nested_both_past(within: Timeout) -> str:
    """Both have passed when the loop continues: the outer one is raised."""
    asyncio.get_running_loop().call_later(0.25, block_loop_until, now() + 0.35)
    return await nested(within, 0.3, 0.29)


async def three_deep(within: Timeout) -> str:
    try:
        async with within(0.3), within(0.3), within(0.3):
            await asyncio.sleep(5)
    except TimeoutError:
        return f"timeout, cancelling {pending()}"
    return "nothing"


async def one_after_another(within: Timeout) -> str:
    return " ".join([await own_expiry(within) for _ in range(3)])


async def swallowed(within: Timeout) -> str:
    async with within(0.3):
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            pass
    await asyncio.sleep(0)
    return f"nothing, cancelling {pending()}"


async def other_error_while_expiring(within: Timeout) -> str:
    try:
        async with within(0.3):
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                raise KeyError("x") from None
    except KeyError:
        return f"KeyError, cancelling {pending()}"
    return "nothing"


async def own_error_in_time(within: Timeout) -> str:
    try:
        async with within(0.3):
            raise TimeoutError("the user's own")
    except TimeoutError as error:
        return f"{error}, cancelling {pending()}"


async def while_being_cancelled(within: Timeout) -> str:
    """A task that is being cancelled may use a deadline during its cleanup."""

    async def inner() -> str:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            try:
                async with within(0.1):
                    await asyncio.sleep(5)
            except TimeoutError:
                return f"timeout, cancelling {pending()}"
        return "nothing"

    task = asyncio.create_task(inner())
    await asyncio.sleep(0.01)
    task.cancel()
    return await told(task)


async def in_a_group(within: Timeout) -> str:
    """A sibling's failure cancels the task, which is not a timeout."""

    async def fails() -> None:
        await asyncio.sleep(0.1)
        raise KeyError("x")

    async def waits() -> None:
        async with within(0.3):
            await asyncio.sleep(5)

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            group.create_task(waits())
    except ExceptionGroup as errors:
        return f"{len(errors.exceptions)} error, cancelling {pending()}"
    return "nothing"


SCENARIOS: list[Callable[[Timeout], Awaitable[str]]] = [
    own_expiry, in_time, already_over, over_but_never_waits, callers_cancellation, caller_first_in_one_turn,
    caller_second_in_one_turn, caller_at_the_same_time, result_wins_the_race, nested_outer_first, nested_inner_first,
    nested_at_the_same_time, nested_both_past, three_deep, one_after_another, swallowed, other_error_while_expiring,
    own_error_in_time, while_being_cancelled, in_a_group,
]  # fmt: skip


@pytest.mark.parametrize("ours", OURS.values(), ids=OURS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.__name__.replace("_", " "))
def test_an_alarm_does_what_asyncio_timeout_does(
    scenario: Callable[[Timeout], Any], ours: Callable[[], Timeout]
) -> None:
    mine = run_virtual(lambda: scenario(ours()))
    assert mine != "nothing"
    if not (OLD_ASYNCIO and scenario is while_being_cancelled):
        assert mine == run_virtual(lambda: scenario(theirs))


@pytest.mark.parametrize("ours", OURS.values(), ids=OURS)
def test_a_task_that_is_being_cancelled_may_use_a_deadline(ours: Callable[[], Timeout]) -> None:
    """Tested separately, for interpreters whose asyncio.timeout fails this scenario."""
    assert run_virtual(lambda: while_being_cancelled(ours())) == "timeout, cancelling 1, cancelling 1"


def make_uvloop() -> asyncio.AbstractEventLoop:
    uvloop = pytest.importorskip("uvloop")
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


async def quickly(within: Timeout) -> str:
    async with within(60):
        await asyncio.sleep(0)
    return f"nothing, cancelling {pending()}"


REAL: list[tuple[Callable[[Timeout], Awaitable[str]], str]] = [
    (own_expiry, "timeout, cancelling 0"),
    (quickly, "nothing, cancelling 0"),
    (already_over, "timeout, cancelling 0"),
    (over_but_never_waits, "nothing, cancelling 0"),
    (callers_cancellation, "cancelled, cancelling 1"),
    (nested_outer_first, "outer, cancelling 0"),
    (nested_inner_first, "inner, cancelling 0"),
    (nested_at_the_same_time, "outer, cancelling 0"),
    (three_deep, "timeout, cancelling 0"),
    (swallowed, "nothing, cancelling 0"),
    (other_error_while_expiring, "KeyError, cancelling 0"),
    (while_being_cancelled, "timeout, cancelling 1, cancelling 1"),
]


@pytest.mark.parametrize("ours", OURS.values(), ids=OURS)
@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, make_uvloop], ids=["asyncio", "uvloop"])
def test_an_alarm_does_what_asyncio_timeout_does_on_real_loops(
    make_loop: Callable[[], Any], ours: Callable[[], Timeout]
) -> None:
    """All scenarios at the same time, on real time: a stall of the machine delays a timer and changes nothing else."""

    async def main() -> list[str]:
        within = ours()
        return list(await asyncio.gather(*(asyncio.create_task(one(story, within)) for story, _ in REAL)))

    async def one(story: Callable[[Timeout], Awaitable[str]], within: Timeout) -> str:
        return re.sub(r" after [\d.]+", "", await story(within))

    with asyncio.Runner(loop_factory=make_loop) as runner:
        assert runner.run(main()) == [said for _, said in REAL]


# ── exactness, and what is left behind ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "in_s", [0.0, 1e-4, 0.1, GRAIN_S, GRAIN_S - 1e-4, GRAIN_S + 1e-4, 1.0, 59.9, 86_400.0]
)
@pytest.mark.parametrize("ours", OURS.values(), ids=OURS)
def test_a_deadline_expires_at_exactly_its_time(in_s: float, ours: Callable[[], Timeout]) -> None:
    async def main() -> None:
        when = now() + in_s
        with pytest.raises(TimeoutError):
            async with ours()(in_s):
                await asyncio.sleep(in_s + 1)
        assert now() == pytest.approx(when, abs=1e-6)

    run_virtual(main)


def test_a_thousand_finished_deadlines_leave_nothing_behind() -> None:
    registry = Deadlines()

    async def main() -> None:
        for n in range(1000):
            with Alarm(registry, now() + 30 + n / 100):
                await asyncio.sleep(0.001)
        assert sum(len(members) for members in registry.grains.values()) == 0
        await asyncio.sleep(60)
        assert registry.grains == {}, "and the grains are removed at their time"

    run_virtual(main)


def test_all_deadlines_of_a_quarter_of_a_second_share_a_timer() -> None:
    registry = Deadlines()

    async def main() -> None:
        loop = virtual_loop()
        before = len(loop.timers())
        for n in range(1000):
            with Alarm(registry, BEGIN_S + 60 + n * GRAIN_S / 1000):
                pass
        assert len(loop.timers()) - before == 1

    run_virtual(main)


def test_a_single_deadline_leaves_no_timer_behind() -> None:
    """Deadlines of an hour around a million short blocks must not fill the loop with timers for an hour."""

    async def main() -> None:
        loop = virtual_loop()
        for _ in range(1000):
            async with Deadline(3600):
                pass
        await asyncio.sleep(0)
        assert loop.timers() == []

    run_virtual(main)


def test_a_deadline_that_never_comes_needs_no_timer() -> None:
    registry = Deadlines()

    async def main() -> None:
        for block in (Alarm(registry, NEVER), Alarm(registry, NEVER)):
            with block:
                await asyncio.sleep(1e6)
        assert registry.grains == {}

    run_virtual(main)


def test_inside_a_nested_block_the_nearest_deadline_applies_and_outside_it_the_outer_one() -> None:
    registry = Deadlines()

    async def main() -> None:
        assert ends_at.get() == NEVER
        with Alarm(registry, BEGIN_S + 10):
            assert ends_at.get() == BEGIN_S + 10
            with Alarm(registry, BEGIN_S + 20):
                assert ends_at.get() == BEGIN_S + 10, "a nested one can only shorten"
            async with Deadline(5):
                assert ends_at.get() == BEGIN_S + 5
                async with Deadline(50):
                    assert ends_at.get() == BEGIN_S + 5
            with pytest.raises(KeyError), Alarm(registry, BEGIN_S + 3):
                raise KeyError
            assert ends_at.get() == BEGIN_S + 10
        with pytest.raises(TimeoutError), Alarm(registry, BEGIN_S + 1):
            await asyncio.sleep(2)
        assert ends_at.get() == NEVER

    run_virtual(main)


def test_the_error_names_the_deadline_that_passed() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError, match=r"^the deadline of 2\.5 s passed$"):
            async with Deadline(2.5), Deadline(50):
                await asyncio.sleep(60)

    run_virtual(main)


def test_a_task_started_inside_has_the_deadline_and_cannot_change_its_parents() -> None:
    async def main() -> None:
        async def child() -> float:
            async with Deadline(1):
                return ends_at.get()

        async with Deadline(10):
            assert await asyncio.create_task(child()) == BEGIN_S + 1
            assert ends_at.get() == BEGIN_S + 10

    run_virtual(main)


def test_a_task_that_outlives_a_block_keeps_only_the_enclosing_deadlines() -> None:
    registry = Deadlines()

    async def main() -> None:
        seen: list[float] = []

        async def child(goes_on: asyncio.Event) -> None:
            seen.append(ends_at.get())
            await goes_on.wait()
            seen.append(ends_at.get())
            with Alarm(registry, BEGIN_S + 40):  # its own deadline: the ended one must not shorten it
                seen.append(ends_at.get())
            seen.append(ends_at.get())

        inside, outside = asyncio.Event(), asyncio.Event()
        async with Deadline(30):
            with Alarm(registry, BEGIN_S + 10):
                async with Deadline(5):
                    within = asyncio.create_task(child(inside))
                    beyond = asyncio.create_task(child(outside))
                    await asyncio.sleep(0)
            inside.set()
            await within
            assert seen == [BEGIN_S + 5, BEGIN_S + 5, *[BEGIN_S + 30] * 3]
        seen.clear()
        outside.set()
        await beyond
        assert seen == [NEVER, BEGIN_S + 40, NEVER]

    run_virtual(main)


def test_a_thread_that_outlives_a_block_without_a_loop_has_no_deadline_of_it() -> None:
    with Deadline(1000.0):
        inside = copy_context()
        assert inside.run(ends_at.get) < NEVER
    assert inside.run(ends_at.get) == NEVER


def test_a_long_task_does_not_keep_its_parent_task_alive() -> None:
    registry = Deadlines()

    async def main() -> None:
        goes_on = asyncio.Event()
        others: list[asyncio.Task[Any]] = []

        async def request() -> None:
            with Alarm(registry, BEGIN_S + 10):
                others.append(asyncio.create_task(goes_on.wait()))

        asked = asyncio.create_task(request())
        await asked
        gone = weakref.ref(asked)
        del asked
        await asyncio.sleep(0)
        gc.collect()
        assert gone() is None
        goes_on.set()
        await others[0]

    run_virtual(main)


def test_an_alarm_says_whether_the_timeout_was_its_own() -> None:
    registry = Deadlines()

    async def main() -> None:
        ours = Alarm(registry, BEGIN_S + 1)
        with pytest.raises(TimeoutError), ours:
            await asyncio.sleep(5)
        users = Alarm(registry, now() + 10)
        with pytest.raises(TimeoutError), users:
            raise TimeoutError("the user's own")
        assert ours.expired and not users.expired

    run_virtual(main)


def test_no_alarm_keeps_a_finished_task_alive() -> None:
    registry = Deadlines()

    async def main() -> None:
        async def work() -> None:
            with Alarm(registry, now() + 1000):
                await asyncio.sleep(0.1)

        task = asyncio.create_task(work())
        gone = weakref.ref(task)
        await task
        del task
        await asyncio.sleep(0)  # the loop itself holds the handle that has just woken the task
        gc.collect()
        assert gone() is None

    run_virtual(main)


# ── loops and threads ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_registry_works_in_the_next_run() -> None:
    registry = Deadlines()

    async def main() -> str:
        with Alarm(registry, now() + 500):
            pass  # leaves a grain on a loop that is about to end
        return await own_expiry(lambda in_s: AlarmBlock(registry, in_s))

    assert {run_virtual(main) for _ in range(3)} == {"timeout after 0.300000, cancelling 0"}


def test_two_loops_used_in_turn_keep_their_own_deadlines() -> None:
    """A test runner alternates between loops if it has one for the session and one for each test."""
    registry, loops = Deadlines(), [asyncio.new_event_loop() for _ in range(2)]

    async def wait() -> str:
        try:
            with Alarm(registry, now() + 0.3):
                await asyncio.sleep(5)
        except TimeoutError:
            return "timeout"
        return "nothing"

    async def turn() -> None:
        await asyncio.sleep(0.01)

    try:
        tasks = [loop.create_task(wait()) for loop in loops]
        for _ in range(3):
            for loop in loops:
                loop.run_until_complete(turn())
        assert [loop.run_until_complete(task) for loop, task in zip(loops, tasks, strict=True)] == [
            "timeout"
        ] * 2
    finally:
        for loop in loops:
            loop.close()


def test_use_from_a_second_running_loop_is_a_clear_error() -> None:
    registry, said = Deadlines(), list[str]()

    async def second() -> None:
        try:
            with Alarm(registry, now() + 1):
                pass
        except WrongLoop as error:
            said.append(str(error))

    async def first() -> None:
        with Alarm(registry, now() + 60):
            thread = threading.Thread(target=lambda: asyncio.run(second()))
            thread.start()
            thread.join()
        assert pending() == 0

    asyncio.run(first())
    assert said == [TWO_LOOPS] and "koo.run(" in TWO_LOOPS


def test_outside_a_task_is_a_clear_error() -> None:
    registry, said = Deadlines(), list[str]()

    def callback() -> None:
        for kind in (registry, OwnTimer()):
            try:
                with Alarm(kind, 1.0):
                    pass
            except RuntimeError as error:
                said.append(str(error))

    async def main() -> None:
        asyncio.get_running_loop().call_soon(callback)
        await asyncio.sleep(1)

    run_virtual(main)
    assert said == ["a deadline needs a running task"] * 2
    with pytest.raises(RuntimeError, match="no asyncio event loop is running here"), Alarm(registry, 1.0):
        pass


# ── a coroutine started by hand ───────────────────────────────────────────────────────────────────────────────────────


async def begun_by_hand(work: Coroutine[Any, Any, str], deadline_s: float) -> str:
    """Run the first step of `work` outside the alarm and the rest inside."""
    waits_for = work.send(None)
    with Alarm(Deadlines(), now() + deadline_s):
        return await resumed(work, waits_for)


def test_a_coroutine_started_by_hand_continues_as_if_it_had_been_awaited() -> None:
    async def work() -> str:
        await asyncio.sleep(1)
        with suppress(KeyError):
            await failing()
        await asyncio.sleep(1)
        return "done"

    async def failing() -> None:
        await asyncio.sleep(1)
        raise KeyError

    async def main() -> None:
        began = now()
        assert await begun_by_hand(work(), 10) == "done"
        assert now() - began == 3

    run_virtual(main)


def test_the_error_of_a_coroutine_started_by_hand_is_raised() -> None:
    async def work() -> str:
        await asyncio.sleep(1)
        raise KeyError("no")

    async def main() -> None:
        with pytest.raises(KeyError, match="no"):
            await begun_by_hand(work(), 10)

    run_virtual(main)


@pytest.mark.parametrize("by_deadline", [True, False])
def test_a_coroutine_started_by_hand_receives_its_cancellation(by_deadline: bool) -> None:
    heard: list[str] = []

    async def work() -> str:
        try:
            async with asyncio.timeout(5):
                await asyncio.sleep(60)
        except asyncio.CancelledError:
            heard.append("cancelled")
            raise
        return "nothing"

    async def main() -> None:
        task = asyncio.ensure_future(begun_by_hand(work(), 2 if by_deadline else 3))
        await asyncio.sleep(1)
        if not by_deadline:
            task.cancel()
        with pytest.raises(TimeoutError if by_deadline else asyncio.CancelledError):
            await task
        assert heard == ["cancelled"]

    run_virtual(main)
