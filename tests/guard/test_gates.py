"""The gates before a call: their order, what a refusal returns, which calls wait, and in which order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from koo.errors import (
    AuthenticationFailed,
    BudgetExceeded,
    CircuitOpen,
    DatabaseUnavailable,
    Kind,
    KooError,
    PoolSaturated,
    RateLimited,
    ServiceSaturated,
)
from koo.guard import Guard
from koo.options import BreakerOptions
from koo.passage import OnLimit
from koo.policies.breaker import FORCED_OPEN, HALF_OPEN, Override
from koo.refusals import DATABASES
from koo.testing.clock import virtual_loop
from tests.guard.support import (
    BEGIN_S,
    Script,
    Wallet,
    answer,
    answer_in,
    error_of,
    fail,
    hang,
    hear,
    make_guard,
    make_peers,
    no_jitter,
    nothing_is_taken,
    open_breaker,
    run_virtual,
    throttled,
    used,
)

Setup = Callable[[Guard], Awaitable[None] | None]


def now() -> float:
    return asyncio.get_running_loop().time() - BEGIN_S


# ── each gate refuses, and returns what was taken before it ───────────────────────────────────────────────────────


def block_key(guard: Guard) -> None:
    guard.gates.block_key(None, "the provider refused the key", guard.now())


def cool_down(guard: Guard) -> None:
    guard.cooldown.extend(
        guard.now(), 500.0, no_jitter, Kind.THROTTLED, "the provider limits the request rate"
    )


def spend_quota(guard: Guard) -> None:
    guard.gates.pause(guard.now(), 50.0, no_jitter, Kind.QUOTA, "the provider's quota is used up")


async def use_up_the_minute(guard: Guard) -> None:
    while guard.gates.limits.take(guard.now()) is None:
        pass


def use_up_the_providers_limit(guard: Guard) -> None:
    hear(guard, 1000, 5, 3000.0)
    for _ in range(10):
        guard.pacer.take(guard.now())


def fill(guard: Guard) -> None:
    guard.gates.bulkhead.limit = guard.gates.bulkhead.cap = 0


REFUSALS: list[tuple[str, Setup, type[KooError], Kind, float | None]] = [
    ("an open breaker", open_breaker, CircuitOpen, Kind.CIRCUIT_OPEN, 60.0),
    ("an operator", lambda guard: guard.set_override(FORCED_OPEN), CircuitOpen, Kind.CIRCUIT_OPEN, None),
    ("a refused key", block_key, AuthenticationFailed, Kind.KEY_REFUSED, 62.0),
    ("a pause beyond the deadline", cool_down, RateLimited, Kind.THROTTLED, 500.0),
    ("a spent quota", spend_quota, RateLimited, Kind.QUOTA, 50.0),
    ("koo's limit", use_up_the_minute, RateLimited, Kind.RATE_LIMITED, 61.0),
    ("the pacer", use_up_the_providers_limit, RateLimited, Kind.COOLING_DOWN, 600.0),
    ("slots", fill, ServiceSaturated, Kind.SATURATED, None),
]


@pytest.mark.parametrize(
    ("story", "setup", "error", "kind", "wait_s"), REFUSALS, ids=[one[0] for one in REFUSALS]
)
def test_a_gate_that_refuses_gives_a_reason_and_a_time_and_returns_what_was_taken(
    story: str, setup: Setup, error: type[KooError], kind: Kind, wait_s: float | None
) -> None:
    async def main() -> None:
        guard, wallet, script = make_guard(concurrency_max=100, per_minute=100), Wallet(), Script()
        made = setup(guard)
        if made is not None:
            await made
        before, cell = used(guard), guard.pacer.wait_s(guard.now())
        seen = await error_of(guard.call(script, charge=wallet))
        assert type(seen) is error and seen.kind is kind, repr(seen)
        assert seen.retry_after_s == wait_s and seen.service == "claude" and seen.attempts == 0
        assert used(guard) == before and guard.pacer.wait_s(guard.now()) == cell
        assert nothing_is_taken(guard, wallet) and wallet.held == 0 and script.calls == 0
        assert guard.tally.refused == {kind: 1}, "counted separately: it was not a request"

    run_virtual(main)


def test_a_budget_refusal_returns_the_unit_and_the_slot() -> None:
    async def main() -> None:
        guard, wallet, script = make_guard(), Wallet(refuse=True), Script()
        error = await error_of(guard.call(script, charge=wallet))
        assert isinstance(error, BudgetExceeded) and error.retry_after_s == 3600.0
        assert used(guard) == [0, 0, 0] and nothing_is_taken(guard, wallet) and script.calls == 0
        assert guard.tally.refused == {"budget_exceeded": 1}

    run_virtual(main)


def test_a_unit_counts_from_the_call_and_not_from_the_wait_for_its_money() -> None:
    """Otherwise the units of calls that waited are free again, and twice as many can be sent in that minute."""

    async def main() -> None:
        guard, script = make_guard(per_minute=2, timeout_s=1000), Script()
        waiting = [guard.call(script, charge=Wallet(wait_s=61.0)) for _ in range(2)]
        assert await asyncio.gather(*waiting) == ["answer", "answer"]
        error = await error_of(guard.call(script))
        assert isinstance(error, RateLimited) and script.calls == 2

    run_virtual(main)


def test_a_call_that_waited_for_its_money_is_not_sent_when_the_minute_is_full() -> None:
    async def main() -> None:
        guard, wallet, script = make_guard(per_minute=1, timeout_s=1000), Wallet(wait_s=62.0), Script()
        waiting = asyncio.create_task(guard.call(script, charge=wallet, on_limit="wait"))
        await asyncio.sleep(61.5)
        await guard.call(script)
        assert await waiting == "answer"
        assert script.at[1] - script.at[0] >= 60.0
        assert (wallet.held, wallet.released) == (2, 1) and nothing_is_taken(guard, wallet)

    run_virtual(main)


def test_a_pause_that_begins_while_a_call_waits_for_its_money_delays_it() -> None:
    async def main() -> None:
        guard, wallet, script = make_guard(timeout_s=1000), Wallet(wait_s=1.0), Script()
        waiting = asyncio.create_task(guard.call(script, charge=wallet))
        await asyncio.sleep(0.5)
        cool_down(guard)
        assert await waiting == "answer" and script.at == [501.5]
        assert (wallet.held, wallet.released) == (2, 1) and nothing_is_taken(guard, wallet)

    run_virtual(main)


def test_a_key_that_is_refused_while_a_call_waits_for_its_money_stops_the_call() -> None:
    async def main() -> None:
        guard, wallet, script = make_guard(timeout_s=1000), Wallet(wait_s=1.0), Script()
        waiting = asyncio.create_task(error_of(guard.call(script, charge=wallet)))
        await asyncio.sleep(0.5)
        block_key(guard)
        assert isinstance(await waiting, AuthenticationFailed) and not script.calls
        assert (wallet.held, wallet.released) == (1, 1) and nothing_is_taken(guard, wallet)

    run_virtual(main)


def test_a_call_that_tests_a_refused_key_may_wait_for_its_money() -> None:
    async def main() -> None:
        guard, script = make_guard(timeout_s=1000), Script()
        guard.gates.key_blocks.by_calls = True
        block_key(guard)
        await asyncio.sleep(61.0)
        assert await guard.call(script, charge=Wallet(wait_s=1.0)) == "answer"

    run_virtual(main)


def test_a_breaker_that_opens_while_money_is_held_releases_it() -> None:
    async def main() -> None:
        guard, wallet, script = make_guard(), Wallet(wait_s=1.0), Script()
        task = asyncio.create_task(guard.call(script, charge=wallet))
        await asyncio.sleep(0.5)
        await open_breaker(guard)
        units = used(guard)
        assert isinstance(await error_of(task), CircuitOpen)
        assert (wallet.held, wallet.released, wallet.settled) == (1, 1, 0)
        assert (
            used(guard) == [one - 1 for one in units]
            and nothing_is_taken(guard, wallet)
            and script.calls == 0
        )

    run_virtual(main)


def test_a_call_that_loses_the_race_for_the_probe_slot_leaks_nothing() -> None:
    async def main() -> None:
        guard, slow, script = make_guard(), Wallet(wait_s=1.0), Script()
        await open_breaker(guard)
        await asyncio.sleep(60)
        second = asyncio.create_task(guard.call(script, charge=slow))
        await asyncio.sleep(0.5)
        first = asyncio.create_task(guard.call(answer_in, 5.0))
        error = await error_of(second)
        assert isinstance(error, CircuitOpen) and "tested" in error.reason and error.retry_after_s == 29.5
        assert slow.released == 1 and script.calls == 0
        assert await first == "answer" and guard.breaker.phase is HALF_OPEN and guard.breaker.ok == 1
        assert nothing_is_taken(guard, slow)

    run_virtual(main)


def test_a_databases_gates_raise_database_errors() -> None:
    async def main() -> None:
        guard = make_guard(name="db", family=DATABASES, concurrency_max=1, queue_max=0)
        task = asyncio.create_task(guard.call(hang))
        await asyncio.sleep(0)
        assert isinstance(await error_of(guard.call(answer)), PoolSaturated)
        task.cancel()
        await error_of(task)
        await open_breaker(guard)
        assert isinstance(await error_of(guard.call(answer)), DatabaseUnavailable)

    run_virtual(main)


def test_each_refusal_is_a_new_and_small_exception() -> None:
    async def main() -> None:
        guard = make_guard()
        await open_breaker(guard)
        first, second = [await error_of(guard.call(answer)) for _ in range(2)]
        assert first is not second
        depth, trace = 0, second.__traceback__
        while trace is not None:
            depth, trace = depth + 1, trace.tb_next
        assert depth <= 5

    run_virtual(main)


def test_a_key_block_on_one_model_refuses_that_model_only() -> None:
    async def main() -> None:
        opus, haiku = make_peers("opus", "haiku")
        opus.gates.block_key("opus", "the provider refused the key for opus", opus.now())
        error = await error_of(opus.call(answer))
        assert isinstance(error, AuthenticationFailed) and "opus" in str(error)
        assert await haiku.call(answer) == "answer"

    run_virtual(main)


# ── koo's limits ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_full_limit_refuses_immediately_and_names_the_limit() -> None:
    async def main() -> None:
        guard = make_guard(per_minute=2)
        for _ in range(2):
            await guard.call(answer)
        error = await error_of(guard.call(answer))
        assert str(error) == "claude: koo's limit of 2 requests a minute is reached; try again in 61 s"
        assert now() == 0

    run_virtual(main)


def test_a_limit_of_zero_gives_no_retry_time() -> None:
    async def main() -> None:
        guard = make_guard(per_minute=0)
        for on_limit in (None, "wait"):
            error = await error_of(guard.call(answer, on_limit=on_limit))
            assert isinstance(error, RateLimited) and error.retry_after_s is None and now() == 0

    run_virtual(main)


def test_with_on_limit_wait_callers_queue_in_order_and_leave_as_soon_as_a_unit_is_free() -> None:
    async def main() -> None:
        guard, order = make_guard(per_minute=2, timeout_s=1000), list[tuple[int, float]]()

        async def caller(number: int) -> None:
            async def operation() -> None:
                order.append((number, now()))

            await guard.call(operation, on_limit="wait")

        await asyncio.gather(*(caller(number) for number in range(6)))
        assert order == [(0, 0), (1, 0), (2, 61), (3, 61), (4, 122), (5, 122)]
        assert nothing_is_taken(guard)

    run_virtual(main)


def test_with_on_limit_wait_a_caller_that_cannot_be_served_in_time_is_refused_immediately() -> None:
    async def main() -> None:
        guard = make_guard(per_minute=1)
        await guard.call(answer)
        error = await error_of(guard.call(answer, on_limit="wait", timeout_s=30))
        assert isinstance(error, RateLimited) and error.retry_after_s == 61 and now() == 0
        assert nothing_is_taken(guard)

    run_virtual(main)


def test_a_caller_queued_until_its_deadline_is_refused_with_a_retry_time() -> None:
    async def main() -> None:
        guard = make_guard(per_minute=1)
        await guard.call(answer)
        tasks = [asyncio.create_task(guard.call(answer, on_limit="wait", timeout_s=100)) for _ in range(3)]
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert errors[0] == "answer"
        for error in errors[1:]:
            assert (
                isinstance(error, RateLimited)
                and error.retry_after_s is not None
                and error.retry_after_s <= 61
            )
        assert nothing_is_taken(guard) and used(guard)[0] == 1

    run_virtual(main)


@pytest.mark.parametrize("on_limit", [None, "refuse", "wait"])
def test_a_newcomer_does_not_overtake_callers_waiting_for_a_limit(on_limit: OnLimit | None) -> None:
    """A returned unit belongs to the waiting caller, even if another caller arrives first."""

    async def main() -> None:
        guard, order = make_guard(per_minute=1), list[str]()

        async def note(name: str) -> None:
            order.append(name)

        await guard.call(answer)
        waiting = asyncio.create_task(guard.call(note, "who waited", on_limit="wait"))
        await asyncio.sleep(1)
        loop = virtual_loop()
        barging: list[asyncio.Task[None]] = []

        def barge() -> None:
            # The loop is late: the unit is free already, but the waiting caller has not woken yet.
            loop.hog(BEGIN_S + 61)
            barging.append(loop.create_task(guard.call(note, "who came by", on_limit=on_limit, timeout_s=70)))

        loop.call_at(BEGIN_S + 60.5, barge)
        await waiting
        error = await error_of(barging[0])
        assert order[0] == "who waited"
        if on_limit != "wait":
            assert isinstance(error, RateLimited) and error.retry_after_s
        assert nothing_is_taken(guard)

    run_virtual(main)


def test_a_refund_reaches_a_waiting_caller_within_a_second() -> None:
    async def main() -> None:
        guard, slow = make_guard(per_minute=1), Wallet(wait_s=5.0, refuse=True)
        refused = asyncio.create_task(guard.call(answer, charge=slow))
        await asyncio.sleep(0)
        assert await guard.call(answer, on_limit="wait") == "answer"
        assert isinstance(await error_of(refused), BudgetExceeded)
        assert 5 <= now() <= 6

    run_virtual(main)


@pytest.mark.parametrize(
    ("queue_max", "said"),
    [
        (0, "no call may wait, because the queue's length is 0"),
        (1, "the queue is full: 1 caller is already waiting"),
        (2, "the queue is full: 2 callers are already waiting"),
    ],
)
def test_a_full_queue_refuses(queue_max: int, said: str) -> None:
    async def main() -> None:
        guard = make_guard(per_minute=1, queue_max=queue_max)
        await guard.call(answer)
        waits = range(queue_max + 1)
        tasks = [asyncio.create_task(guard.call(answer, on_limit="wait")) for _ in waits]
        await asyncio.sleep(0)
        error = await error_of(guard.call(answer, on_limit="wait"))
        assert isinstance(error, ServiceSaturated) and error.reason == said
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert nothing_is_taken(guard)

    run_virtual(main)


def test_the_limit_per_minute_holds_even_if_callers_wait_for_a_slot_after_it() -> None:
    """A unit counts from the time the call leaves, not from the start of its wait."""

    async def main() -> None:
        guard, at = make_guard(per_minute=10, concurrency_max=2, timeout_s=10_000), list[float]()

        async def operation() -> None:
            at.append(now())
            await asyncio.sleep(13)

        await asyncio.gather(*(guard.call(operation, on_limit="wait") for _ in range(60)))
        assert len(at) == 60 and nothing_is_taken(guard)
        for began in at:
            assert sum(began <= other < began + 60 for other in at) <= 10

    run_virtual(main)


# ── slots ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_callers_wait_for_a_slot_first_come_first_served() -> None:
    async def main() -> None:
        guard, order = make_guard(concurrency_max=1), list[tuple[int, float]]()

        async def caller(number: int) -> None:
            async def operation() -> None:
                order.append((number, now()))
                await asyncio.sleep(2)

            await guard.call(operation)

        await asyncio.gather(*(caller(number) for number in range(4)))
        assert order == [(0, 0), (1, 2), (2, 4), (3, 6)]
        assert nothing_is_taken(guard)

    run_virtual(main)


def test_a_caller_without_a_slot_before_its_deadline_is_refused_and_returns_its_unit() -> None:
    async def main() -> None:
        guard = make_guard(concurrency_max=1)
        running = asyncio.create_task(guard.call(answer_in, 50))
        await asyncio.sleep(0)
        error = await error_of(guard.call(answer, timeout_s=3))
        assert isinstance(error, ServiceSaturated) and now() == 3
        assert error.reason == (
            "no slot became free before the deadline: 1 call is running and 0 are waiting"
        )
        assert used(guard) == [1, 1, 1]
        await running
        assert nothing_is_taken(guard)

    run_virtual(main)


def test_with_on_limit_refuse_a_call_does_not_wait_for_a_slot_and_gets_a_retry_time() -> None:
    async def main() -> None:
        guard = make_guard(concurrency_max=1)
        running = asyncio.create_task(guard.call(answer_in, 50))
        await asyncio.sleep(0)
        error = await error_of(guard.call(answer, on_limit="refuse"))
        assert isinstance(error, ServiceSaturated) and error.reason == "1 call is running and 0 are waiting"
        assert error.retry_after_s is None, "no call has ended yet: how long they take is unknown"
        assert now() == 0 and used(guard) == [1, 1, 1]
        await running
        running = asyncio.create_task(guard.call(answer_in, 50))
        await asyncio.sleep(0)
        error = await error_of(guard.call(answer, on_limit="refuse"))
        assert isinstance(error, ServiceSaturated) and error.retry_after_s == 50.0, (
            "the calls so far took 50 s"
        )
        await running

    run_virtual(main)


def test_a_call_that_the_breaker_will_refuse_does_not_queue_or_hold_money() -> None:
    """Otherwise the call would wait for its refusal, and a durable ledger would write twice for nothing."""

    async def main() -> None:
        guard, wallet = make_guard(concurrency_max=1), Wallet()
        running = asyncio.create_task(guard.call(answer_in, 10))
        await asyncio.sleep(0)
        guard.set_override(FORCED_OPEN)
        assert isinstance(await error_of(guard.call(answer, charge=wallet)), CircuitOpen) and now() == 0
        await running
        assert isinstance(await error_of(guard.call(answer, charge=wallet)), CircuitOpen)
        assert (wallet.held, used(guard)) == (0, [1, 1, 1])

    run_virtual(main)


def test_a_repeat_that_the_breaker_will_refuse_does_not_hold_money() -> None:
    async def main() -> None:
        guard, wallet = make_guard(attempts=3), Wallet()
        call = asyncio.create_task(error_of(guard.call(fail, charge=wallet)))
        await asyncio.sleep(0)
        guard.set_override(FORCED_OPEN)
        assert isinstance(await call, CircuitOpen)
        assert (wallet.held, wallet.open) == (1, 0)

    run_virtual(main)


def test_money_is_not_held_while_waiting_for_a_slot() -> None:
    async def main() -> None:
        guard, wallet = make_guard(concurrency_max=1), Wallet()
        running = asyncio.create_task(guard.call(answer_in, 10))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(guard.call(answer, charge=wallet))
        await asyncio.sleep(5)
        assert wallet.held == 0
        await asyncio.gather(running, waiting)
        assert wallet.held == 1 and nothing_is_taken(guard, wallet)

    run_virtual(main)


# ── pauses that the provider requested ────────────────────────────────────────────────────────────────────────────


def test_a_pause_applies_to_all_callers() -> None:
    async def main() -> None:
        guard = make_guard()
        await error_of(guard.call(throttled(10.0)))
        scripts = [Script() for _ in range(5)]
        await asyncio.gather(*(guard.call(script) for script in scripts))
        assert [script.at for script in scripts] == [[10.0]] * 5 and nothing_is_taken(guard)

    run_virtual(main)


def test_a_pause_beyond_the_deadline_refuses_immediately_with_a_retry_time() -> None:
    async def main() -> None:
        guard = make_guard()
        await error_of(guard.call(throttled(10.0)))
        error = await error_of(guard.call(answer, timeout_s=10.0))
        assert isinstance(error, RateLimited) and error.retry_after_s == 10.0 and error.kind is Kind.THROTTLED
        assert str(error) == "claude: the provider limits the request rate; try again in 10 s" and now() == 0

    run_virtual(main)


def test_with_on_limit_refuse_calls_do_not_wait_for_a_pause() -> None:
    async def main() -> None:
        guard = make_guard()
        await error_of(guard.call(throttled(1.0)))
        assert isinstance(await error_of(guard.call(answer, on_limit="refuse")), RateLimited) and now() == 0

    run_virtual(main)


def test_only_calls_with_on_limit_wait_also_wait_for_a_quota() -> None:
    async def main() -> None:
        guard = make_guard()
        spend_quota(guard)
        assert isinstance(await error_of(guard.call(answer)), RateLimited) and now() == 0
        assert await guard.call(answer, on_limit="wait") == "answer" and now() == 50

    run_virtual(main)


def test_a_quota_pauses_the_service_and_a_rate_limit_pauses_the_model() -> None:
    async def main() -> None:
        opus, haiku = make_peers("opus", "haiku")
        await error_of(opus.call(throttled(5.0)))
        script = Script()
        await haiku.call(script)
        assert script.at == [0.0]
        opus.gates.pause(haiku.now(), 7.0, no_jitter, Kind.QUOTA, "spent")
        for guard in (opus, haiku):
            assert (await error_of(guard.call(answer))).retry_after_s == 7.0

    run_virtual(main)


def test_a_pause_extended_during_the_wait_is_waited_for_to_its_end() -> None:
    async def main() -> None:
        guard, script = make_guard(), Script()
        await error_of(guard.call(throttled(5.0)))
        task = asyncio.create_task(guard.call(script))
        await asyncio.sleep(3)
        guard.cooldown.extend(guard.now(), 20.0, no_jitter, Kind.THROTTLED, "again")
        await task
        assert script.at == [23.0]

    run_virtual(main)


def test_after_a_reset_all_callers_waiting_for_a_pause_go_within_a_second() -> None:
    """This applies to later callers and to the caller that met the pause and waits to repeat its call."""

    async def main() -> None:
        guard = make_guard(attempts=2, timeout_s=200.0)
        met_it = asyncio.ensure_future(guard.call(Script(throttled(60.0))))
        await asyncio.sleep(0)
        later = asyncio.ensure_future(guard.call(answer))
        await asyncio.sleep(10.5)
        assert not met_it.done() and not later.done()
        guard.reset()
        async with asyncio.timeout(1.0):
            assert list(await asyncio.gather(met_it, later)) == ["answer", "answer"]

    run_virtual(main)


def test_a_caller_waiting_for_a_slot_respects_a_pause_that_begins_meanwhile() -> None:
    async def main() -> None:
        guard, scripts = make_guard(concurrency_max=1), [Script() for _ in range(3)]

        async def throttled_after_2_s() -> str:
            await asyncio.sleep(2)
            return await throttled(10.0)()

        first = asyncio.create_task(error_of(guard.call(throttled_after_2_s)))
        await asyncio.sleep(0)
        await asyncio.gather(*(guard.call(script) for script in scripts))
        assert [script.at for script in scripts] == [[12.0]] * 3
        assert isinstance(await first, RateLimited)
        assert nothing_is_taken(guard) and used(guard) == [4, 4, 4]

    run_virtual(main)


def test_a_caller_waiting_for_a_slot_is_refused_if_the_breaker_opens_meanwhile() -> None:
    async def main() -> None:
        guard, script = make_guard(concurrency_max=1, breaker=BreakerOptions(failure_threshold=1)), Script()

        async def fail_after_2_s() -> str:
            await asyncio.sleep(2)
            return await fail()

        first = asyncio.create_task(error_of(guard.call(fail_after_2_s)))
        await asyncio.sleep(0)
        assert isinstance(await error_of(guard.call(script)), CircuitOpen)
        await first
        assert script.calls == 0 and nothing_is_taken(guard) and used(guard) == [1, 1, 1]

    run_virtual(main)


# ── the pacer ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_calls_are_spread_when_the_providers_limit_is_almost_used_up() -> None:
    async def main() -> None:
        guard, scripts = make_guard(), [Script() for _ in range(4)]
        hear(guard, 200, 10, 50.0)
        await asyncio.gather(*(guard.call(script) for script in scripts))
        assert [script.at for script in scripts] == [[0.0], [5.0], [10.0], [15.0]]

    run_virtual(main)


def test_with_on_limit_refuse_calls_do_not_wait_for_the_pacer() -> None:
    async def main() -> None:
        guard = make_guard()
        hear(guard, 200, 10, 50.0)
        assert await guard.call(answer, on_limit="refuse") == "answer"
        error = await error_of(guard.call(answer, on_limit="refuse"))
        assert (
            isinstance(error, RateLimited) and error.kind is Kind.COOLING_DOWN and error.retry_after_s == 5.0
        )
        assert now() == 0 and used(guard) == [1, 1, 1]

    run_virtual(main)


def test_a_call_refused_by_a_budget_returns_its_cell() -> None:
    async def main() -> None:
        guard, script = make_guard(), Script()
        hear(guard, 200, 10, 50.0)
        for _ in range(4):
            assert isinstance(await error_of(guard.call(script, charge=Wallet(refuse=True))), BudgetExceeded)
        await guard.call(script)
        assert script.at == [0.0], "it does not wait for the cells of calls that were not made"

    run_virtual(main)


def test_a_call_refused_by_the_breaker_at_the_end_returns_its_cell() -> None:
    async def main() -> None:
        guard, script = make_guard(), Script()
        hear(guard, 200, 10, 50.0)
        task = asyncio.create_task(guard.call(script, charge=Wallet(wait_s=1.0)))
        await asyncio.sleep(0.5)
        guard.set_override(FORCED_OPEN)
        assert isinstance(await error_of(task), CircuitOpen)
        guard.set_override(Override.NONE)
        await guard.call(script)
        assert script.at == [1.0]

    run_virtual(main)


def test_calls_queued_for_slots_are_spread_once_the_limit_becomes_known() -> None:
    async def main() -> None:
        guard, scripts = make_guard(concurrency_max=1), [Script() for _ in range(3)]
        assert await guard.call(answer) == "answer"
        running = asyncio.create_task(guard.call(answer_in, 10))
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(guard.call(script)) for script in scripts]
        await asyncio.sleep(1)
        hear(guard, 200, 8, 49.0)
        await asyncio.gather(running, *waiting)
        assert [script.at for script in scripts] == [[10.0], [15.0], [20.0]]
        assert nothing_is_taken(guard)

    run_virtual(main)


def test_a_call_that_starts_over_after_waiting_for_a_slot_keeps_no_cell() -> None:
    async def main() -> None:
        guard, script = make_guard(concurrency_max=1), Script()
        hear(guard, 200, 10, 50.0)
        running = asyncio.create_task(guard.call(answer_in, 7.0))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(guard.call(script))
        await asyncio.sleep(6.0)  # it has the cell of second 5 and is waiting for the slot
        guard.cooldown.extend(
            guard.now(), 2.0, no_jitter, Kind.THROTTLED, "the provider limits the request rate"
        )
        await asyncio.gather(running, waiting)
        assert script.at == [8.0], "the end of the pause, and not the next cell after its own"

    run_virtual(main)


def test_the_cell_of_a_call_that_gave_up_or_was_refused_later_is_free_again() -> None:
    async def main() -> None:
        guard = make_guard(per_minute=100, concurrency_max=1)
        hear(guard, 200, 10, 50.0)
        running = asyncio.create_task(guard.call(answer_in, 50))
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(guard.call(answer)) for _ in range(3)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        error = await error_of(guard.call(answer, timeout_s=20))
        assert isinstance(error, ServiceSaturated), "it got a cell in time, but no slot"
        assert not guard.pacer.wait_s(guard.now()) and used(guard) == [1, 1, 1]
        await running

    run_virtual(main)
