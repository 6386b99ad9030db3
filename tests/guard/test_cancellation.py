"""Cancellation at every point: whatever the caller was waiting for, nothing stays taken and no waiter is lost.

Each scenario is run repeatedly and cancelled one turn of the event loop later each time, until it ends before the
cancellation. This covers every await, including any that is added later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from koo.clock import SYSTEM_CLOCK
from koo.deadlines import ends_at
from koo.errors import Kind, KooError
from koo.guard import Guard
from koo.options import BreakerOptions
from koo.policies.breaker import CLOSED, HALF_OPEN
from koo.policies.verdict import FAILURE, NEUTRAL
from koo.testing.clock import virtual_loop
from tests.guard.support import (
    Script,
    Wallet,
    answer,
    answer_in,
    error_of,
    fail,
    hang,
    hear,
    make_guard,
    no_jitter,
    nothing_is_taken,
    open_breaker,
    run_virtual,
    throttled,
    used,
)

STURDY = BreakerOptions(failure_threshold=1000, calls_min=100_000)
Situation = Callable[[], Coroutine[Any, Any, tuple[Guard, Callable[[Wallet], Coroutine[Any, Any, Any]]]]]


async def turns() -> str:
    """An operation that awaits several times."""
    for _ in range(3):
        await asyncio.sleep(0)
    return await answer_in(1.0)


async def plain() -> tuple[Guard, Any]:
    guard = make_guard()
    return guard, lambda wallet: guard.call(turns, charge=wallet)


async def with_slow_money() -> tuple[Guard, Any]:
    guard = make_guard()

    async def act(wallet: Wallet) -> None:
        wallet.wait_s = 1.0
        await guard.call(turns, charge=wallet)

    return guard, act


async def with_repeats() -> tuple[Guard, Any]:
    guard = make_guard(attempts=4, breaker=STURDY, draw=lambda: 0.5)
    return guard, lambda wallet: guard.call(Script(fail, turns, fail, turns), charge=wallet)


async def with_a_timeout() -> tuple[Guard, Any]:
    guard = make_guard(attempts=2, breaker=STURDY, attempt_timeout_s=1.0)

    async def act(wallet: Wallet) -> None:
        await error_unless_cancelled(guard.call(Script(hang, hang), charge=wallet))

    return guard, act


async def error_unless_cancelled(call: Awaitable[Any]) -> None:
    error = await error_of(call)
    if isinstance(error, asyncio.CancelledError):
        raise error


async def in_the_queue_for_a_limit() -> tuple[Guard, Any]:
    guard = make_guard(per_minute=1)
    await guard.call(answer)
    keep(guard, asyncio.create_task(guard.call(answer, on_limit="wait")))
    return guard, lambda wallet: guard.call(turns, charge=wallet, on_limit="wait", timeout_s=1000)


async def first_in_the_queue_for_a_limit() -> tuple[Guard, Any]:
    guard = make_guard(per_minute=1)
    await guard.call(answer)
    return guard, lambda wallet: guard.call(turns, charge=wallet, on_limit="wait", timeout_s=1000)


async def in_line_for_a_place() -> tuple[Guard, Any]:
    guard = make_guard(concurrency_max=1)
    for _ in range(3):
        keep(guard, asyncio.create_task(guard.call(turns)))
    await asyncio.sleep(0)
    return guard, lambda wallet: guard.call(turns, charge=wallet)


async def in_a_pause() -> tuple[Guard, Any]:
    guard = make_guard()
    await error_of(guard.call(throttled(3.0)))
    return guard, lambda wallet: guard.call(turns, charge=wallet)


async def at_the_pacer() -> tuple[Guard, Any]:
    guard = make_guard()
    hear(guard, 200, 10, 50.0)
    guard.pacer.take(guard.now())
    return guard, lambda wallet: guard.call(turns, charge=wallet)


async def as_a_probe() -> tuple[Guard, Any]:
    guard = make_guard()
    await open_breaker(guard)
    await asyncio.sleep(60)
    return guard, lambda wallet: guard.call(turns, charge=wallet)


async def everything_at_once() -> tuple[Guard, Any]:
    guard = make_guard(
        per_minute=3, concurrency_max=1, attempts=3, breaker=STURDY, timeout_s=2000, draw=lambda: 0.5
    )
    await error_of(guard.call(throttled(2.0), timeout_s=1))
    for _ in range(2):
        keep(guard, asyncio.create_task(guard.call(turns, on_limit="wait")))
    hear(guard, 200, 10, 50.0)

    async def act(wallet: Wallet) -> None:
        wallet.wait_s = 0.5
        await guard.call(Script(fail, turns), charge=wallet, on_limit="wait")

    return guard, act


async def in_a_scope() -> tuple[Guard, Any]:
    guard = make_guard()

    async def act(wallet: Wallet) -> None:
        async with guard.permit(wallet) as scope:
            await turns()
            scope.renew()

    return guard, act


async def in_a_scope_that_was_begun() -> tuple[Guard, Any]:
    guard = make_guard(attempts=3, breaker=STURDY, draw=lambda: 0.5)

    async def act(wallet: Wallet) -> None:
        scope = await guard.begin(Script(fail, turns), charge=wallet)
        async with scope_end(scope):
            await turns()

    return guard, act


class scope_end:  # noqa: N801 - reads as a function
    """The owner of a begun scope, which always ends it."""

    def __init__(self, scope: Any) -> None:
        self.scope = scope

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        await self.scope.__aexit__(kind, error, trace)


SITUATIONS: list[Situation] = [
    plain, with_slow_money, with_repeats, with_a_timeout, in_the_queue_for_a_limit, first_in_the_queue_for_a_limit,
    in_line_for_a_place, in_a_pause, at_the_pacer, as_a_probe, everything_at_once, in_a_scope,
    in_a_scope_that_was_begun,
]  # fmt: skip

OTHERS: dict[int, list[asyncio.Task[Any]]] = {}


def keep(guard: Guard, task: asyncio.Task[Any]) -> None:
    """Another caller, which must be served whatever happens to the cancelled one."""
    OTHERS.setdefault(id(guard), []).append(task)


async def cancelled_at(situation: Situation, turn: int) -> tuple[bool, Guard, Wallet, list[int]]:
    """Run it, and cancel it at that turn of the loop. Returns whether it had ended before."""
    guard, act = await situation()
    wallet, before = Wallet(), used(guard)
    task = asyncio.create_task(act(wallet))
    for _ in range(turn):
        if task.done():
            break
        await next_turn()
    over = task.done()
    task.cancel()
    error = await error_of(task)
    assert over or error is None or isinstance(error, asyncio.CancelledError), (
        "a cancellation is always raised"
    )
    await asyncio.gather(*OTHERS.pop(id(guard), []))
    return over, guard, wallet, before


async def next_turn() -> None:
    """Advance one turn of the loop; if nothing is ready, to the next timer."""
    loop = virtual_loop()
    timers = loop.timers()
    await asyncio.sleep(0 if loop.has_work() or not timers else max(0.0, timers[0] - loop.time()))


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda one: one.__name__.replace("_", " "))
def test_a_call_cancelled_at_any_point_keeps_nothing(situation: Situation) -> None:
    async def main(turn: int) -> bool:
        over, guard, wallet, before = await cancelled_at(situation, turn)
        assert nothing_is_taken(guard, wallet), f"at turn {turn}"
        assert ends_at.get() == float("inf")
        assert guard.breaker.streak == 0 and guard.breaker.trips <= 1
        verdicts = guard.tally.totals().verdicts
        started = sum(verdicts)
        assert wallet.held <= started, "a hold without its call"
        if guard.gates.limits.counts[1].used - before[1] > 0:
            assert started > 0, "a unit of a limit without its call"
        return over

    turn = 0
    while not run_virtual(lambda turn=turn: main(turn)):  # type: ignore[misc]
        turn += 1
    assert turn >= 3, "it ended before anything could be cancelled"


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda one: one.__name__.replace("_", " "))
def test_only_calls_that_were_made_keep_their_units(situation: Situation) -> None:
    async def main(turn: int) -> bool:
        over, guard, _, _ = await cancelled_at(situation, turn)
        assert guard.gates.limits.counts[2].used == sum(guard.tally.totals().verdicts), f"at turn {turn}"
        assert guard.gates.retry_budget.tokens <= guard.options.retry.budget_tokens
        assert guard.tally.retries <= sum(guard.tally.totals().verdicts)
        return over

    turn = 0
    while not run_virtual(lambda turn=turn: main(turn)):  # type: ignore[misc]
        turn += 1


def test_a_cancelled_probe_frees_its_slot_and_changes_nothing() -> None:
    async def main() -> None:
        guard = make_guard()
        await open_breaker(guard)
        await asyncio.sleep(60)
        for _ in range(5):
            task = asyncio.create_task(guard.call(hang))
            await asyncio.sleep(1)
            assert guard.breaker.phase is HALF_OPEN and len(guard.breaker.leases) == 1
            task.cancel()
            assert isinstance(await error_of(task), asyncio.CancelledError)
            assert guard.breaker.phase is HALF_OPEN and not guard.breaker.leases
        assert await guard.call(answer) == await guard.call(answer) == "answer"
        assert guard.breaker.phase is CLOSED

    run_virtual(main)


def test_cancelled_calls_neither_open_nor_close_the_breaker() -> None:
    async def main() -> None:
        guard = make_guard()
        for _ in range(100):
            task = asyncio.create_task(guard.call(hang))
            await asyncio.sleep(0.1)
            task.cancel()
            await error_of(task)
        assert guard.breaker.phase is CLOSED and guard.breaker.window.calls == 0
        assert guard.tally.totals().verdicts == [0, 0, 100, 0] and nothing_is_taken(guard)

    run_virtual(main)


async def lost_if_cancelled() -> None:
    """Like clients that report their cancellation as an error of their own."""
    try:
        await hang()
    except asyncio.CancelledError:
        raise ConnectionError("the connection was closed") from None


def test_a_cancellation_that_the_operation_reports_as_its_own_error_is_not_a_failure() -> None:
    async def main() -> None:
        guard = make_guard(attempts=3)
        for _ in range(10):
            task = asyncio.create_task(guard.call(lost_if_cancelled))
            await asyncio.sleep(0.1)
            task.cancel()
            assert isinstance(await error_of(task), ConnectionError), "unchanged, and not repeated"
        assert guard.breaker.phase is CLOSED and guard.tally.totals().verdicts == [0, 0, 10, 0]
        assert nothing_is_taken(guard)

    run_virtual(main)


def test_a_failed_task_group_is_a_failure_although_it_cancels_its_own_task() -> None:
    """Up to Python 3.12 `cancelling()` of that task stays above zero."""

    async def lose_both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            group.create_task(hang())

    async def main() -> None:
        guard = make_guard()
        assert isinstance(await error_of(guard.call(lose_both)), ExceptionGroup)
        assert guard.tally.totals().verdicts[FAILURE] == 1

    run_virtual(main)


def test_an_operation_whose_own_time_limit_ends_has_failed_also_after_a_failed_task_group() -> None:
    """Clients end their calls by a cancellation of their own, which is not the caller's."""

    async def fail_twice() -> None:
        with suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
        async with asyncio.timeout(0.1):
            await hang()

    async def main() -> None:
        guard = make_guard()
        assert isinstance(await error_of(guard.call(fail_twice)), TimeoutError)
        assert guard.tally.totals().verdicts[FAILURE] == 1

    run_virtual(main)


def test_an_operation_that_reports_its_timeout_as_its_own_error_has_timed_out() -> None:
    """Its cleanup may raise anything: as the caller's mistake, a host that hangs would never open the breaker."""

    async def mistaken_if_cancelled() -> None:
        try:
            await hang()
        finally:
            raise ValueError("the cleanup failed")

    async def main() -> None:
        guard = make_guard()
        error = await error_of(guard.call(mistaken_if_cancelled))
        assert isinstance(error, KooError) and error.kind is Kind.TIMEOUT
        assert isinstance(error.__cause__, ValueError)
        assert guard.tally.totals().verdicts[FAILURE] == 1 and nothing_is_taken(guard)

    run_virtual(main)


def test_a_caller_cancelled_while_it_gets_a_slot_passes_it_on() -> None:
    async def main() -> None:
        guard = make_guard(concurrency_max=1)
        release = asyncio.Event()

        async def until_released() -> None:
            await release.wait()

        running = asyncio.create_task(guard.call(until_released))
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(guard.call(answer)) for _ in range(3)]
        await asyncio.sleep(0)
        release.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert any(not task.done() for task in waiting)
        waiting[0].cancel()
        told = await asyncio.gather(running, *waiting, return_exceptions=True)
        assert told[2:] == ["answer", "answer"] and nothing_is_taken(guard)

    run_virtual(main)


def test_a_hundred_callers_with_random_cancellations_leave_nothing_taken() -> None:
    """Slots, limits, pauses and money together, interleaved in a fixed pattern."""

    async def main() -> None:
        guard = make_guard(
            per_minute=40, concurrency_max=3, attempts=2, breaker=STURDY, timeout_s=500, draw=lambda: 0.3
        )
        wallets = [Wallet(wait_s=0.1 * (n % 3)) for n in range(100)]
        operations = [turns, fail, lambda: answer_in(2.0), throttled(1.0)]

        async def caller(n: int) -> None:
            await asyncio.sleep(n * 0.37 % 7)
            on_limit = "wait" if n % 2 else None
            await error_unless_cancelled(
                guard.call(operations[n % 4], charge=wallets[n], on_limit=on_limit)  # type: ignore[arg-type]
            )

        tasks = [asyncio.create_task(caller(n)) for n in range(100)]
        for n, task in enumerate(tasks):
            if n % 5 == 0:
                await asyncio.sleep(0.31)
                task.cancel()
        told = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(one) for one in told} <= {type(None), asyncio.CancelledError}
        assert nothing_is_taken(guard) and all(wallet.open == 0 for wallet in wallets)
        assert guard.gates.limits.counts[2].used == sum(guard.tally.totals().verdicts)

    run_virtual(main)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "in another thread"])
def test_a_scope_dropped_by_its_owner_returns_everything(elsewhere: bool) -> None:
    async def main() -> None:
        guard, wallet = make_guard(clock=SYSTEM_CLOCK, concurrency_max=1), Wallet()
        dropped = [await guard.begin(answer, charge=wallet)]
        assert wallet.open == 1
        waits = asyncio.ensure_future(guard.call(answer))
        await asyncio.sleep(0)
        assert guard.gates.bulkhead.line
        if elsewhere:
            await asyncio.to_thread(dropped.clear)
        else:
            dropped.clear()
        await waits
        assert nothing_is_taken(guard, wallet)
        assert wallet.settled == 1, "the work that was done may be billed"
        assert guard.breaker.phase is CLOSED and not guard.breaker.window.failures
        assert guard.tally.totals().verdicts[NEUTRAL] == 1

    asyncio.run(main())


def test_a_scope_dropped_after_its_loop_ended_returns_everything() -> None:
    async def main() -> tuple[Guard, Wallet, object]:
        guard, wallet = make_guard(clock=SYSTEM_CLOCK), Wallet()
        return guard, wallet, await guard.begin(answer, charge=wallet)

    guard, wallet, scope = asyncio.run(main())
    assert wallet.open == 1
    del scope
    assert nothing_is_taken(guard, wallet)


def test_a_key_block_or_pause_received_during_a_cancellation_is_kept() -> None:
    async def main() -> None:
        guard = make_guard()
        guard.cooldown.extend(guard.now(), 30.0, no_jitter, Kind.THROTTLED, "why")
        task = asyncio.create_task(guard.call(answer))
        await asyncio.sleep(1)
        task.cancel()
        await error_of(task)
        assert guard.cooldown.until == guard.now() + 29.0

    run_virtual(main)
