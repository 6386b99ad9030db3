"""Lists of queries on virtual time, run as slots become free, whatever their length."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from decimal import Decimal

import pytest

from koo.ai.providers.base import Completion, Request
from koo.ai.types import Answer, Query, Usage
from koo.deadlines import Deadline
from koo.errors import (
    BudgetExceeded,
    ExternalServiceError,
    Kind,
    RateLimited,
    ServiceFailed,
    ServiceSaturated,
)
from koo.options import BreakerOptions, LimitOptions
from koo.testing.clock import run_virtual
from tests.ai.virtual import INPUT_TOKENS_MAX, ONCE, MemoryProvider, VirtualWorld
from tests.guard.support import hear

STURDY = BreakerOptions(failure_threshold=1000, calls_min=1000)


class SlowProvider(MemoryProvider):
    """Answers with its prompt after `takes_s`, or raises the error that `raises` has for the prompt.

    `most` is the largest number of calls that ran at the same time.
    """

    def __init__(self, takes_s: float = 1.0) -> None:
        super().__init__()
        self.takes_s = takes_s
        self.running = self.most = self.tasks = 0
        self.raises: dict[str, BaseException] = {}

    async def complete(self, request: Request) -> Completion:
        self.asked += 1
        self.running += 1
        self.most = max(self.most, self.running)
        if self.running == self.most:
            self.tasks = max(self.tasks, len(asyncio.all_tasks()))
        try:
            await asyncio.sleep(self.takes_s)
            if request.prompt in self.raises:
                raise self.raises[request.prompt]
        finally:
            self.running -= 1
        return Completion(text=request.prompt, model="m", usage=Usage(input_tokens=1, output_tokens=1))


class ListWorld(VirtualWorld):
    """Two slow services: `first` answers after one second, `second` after ten."""

    first: SlowProvider
    second: SlowProvider

    def make_providers(self) -> tuple[MemoryProvider, MemoryProvider]:
        return SlowProvider(), SlowProvider(10.0)

    @property
    def elapsed_s(self) -> float:
        return self.clock.monotonic() - self.began_at

    async def ask_many(self, *queries: Query) -> list[Answer | ExternalServiceError]:
        self.began_at = self.clock.monotonic()
        return await self.gateway.query_many(queries)

    def is_idle(self) -> bool:
        gates = self.service.gates
        taken = gates.bulkhead.used or gates.bulkhead.line or gates.limit_queue.used or gates.limit_queue.line
        return not taken and not self.first.running and self.budgets.view("first").held_usd == 0


def several(count: int, service: str = "first", **options: object) -> list[Query]:
    return [Query(service=service, prompt=f"{service} {n}", **options) for n in range(count)]  # type: ignore[arg-type]


def texts(outcomes: Sequence[Answer | ExternalServiceError]) -> list[str]:
    return [str(one) if isinstance(one, Answer) else f"{one.kind}" for one in outcomes]


def kinds(outcomes: Sequence[Answer | ExternalServiceError]) -> set[str]:
    return {one.kind for one in outcomes if isinstance(one, ExternalServiceError)}


@pytest.mark.parametrize(
    ("count", "on_limit"), [(2000, None), (2000, "wait"), (2000, "refuse"), (20_000, None)]
)
def test_a_list_of_any_length_is_fed_as_slots_become_free(count: int, on_limit: str | None) -> None:
    """The answers are in order, there is no task for each query, and each is within the service's deadline of two
    minutes.
    """

    async def main() -> None:
        world = ListWorld(daily_budget_usd=None, concurrency_max=100)
        queries = several(count, on_limit=on_limit)
        assert texts(await world.ask_many(*queries)) == [query.prompt for query in queries]
        assert world.elapsed_s == count / 100
        assert world.first.most == 100 and world.first.tasks < 110
        assert world.is_idle()

    run_virtual(main)


def test_a_slow_service_delays_only_its_own_queries() -> None:
    async def main() -> None:
        world = ListWorld(concurrency_max=10)
        mixed = [query for pair in zip(several(30), several(30, "second"), strict=True) for query in pair]
        assert texts(await world.ask_many(*mixed)) == [query.prompt for query in mixed]
        assert world.elapsed_s == 30
        assert world.first.asked == world.second.asked == 30
        assert world.first.most == world.second.most == 10

    run_virtual(main)


def test_lists_take_turns() -> None:
    """A short list that starts after a long one ends long before it. No more queries run than there are slots."""

    async def main() -> None:
        world = ListWorld(concurrency_max=10)
        long = asyncio.create_task(world.ask_many(*several(1000)))
        await asyncio.sleep(0.5)
        short = await world.gateway.query_many(several(10))
        assert texts(short) == [query.prompt for query in several(10)]
        assert world.elapsed_s <= 4
        assert not kinds(await long)
        assert world.first.most == 10

    run_virtual(main)


def test_a_full_queue_refuses_a_single_query_but_none_from_a_list() -> None:
    async def main() -> None:
        world = ListWorld(concurrency_max=2, queue_max=1)
        single = [asyncio.create_task(world.ask()) for _ in range(3)]
        await asyncio.sleep(0.1)
        with pytest.raises(ServiceSaturated, match="waiting"):
            await world.ask()
        assert not kinds(await world.ask_many(*several(50, on_limit="refuse")))
        assert all(isinstance(one, Answer) for one in await asyncio.gather(*single))

    run_virtual(main)


def test_a_fallbacks_full_queue_refuses_none_from_a_list_either() -> None:
    async def main() -> None:
        world = ListWorld(concurrency_max=5, queue_max=0, retry=ONCE, breaker=STURDY)
        broken = ServiceFailed("first", "it failed", kind=Kind.SERVER_ERROR)
        world.first.raises = {f"first {n}": broken for n in range(20)}
        busy = asyncio.create_task(world.gateway.query_many(several(5, "second")))
        outcomes = await world.ask_many(*several(20, fallback=("second",)))
        assert not kinds(await busy)
        assert texts(outcomes) == [f"first {n}" for n in range(20)]
        assert {one.service for one in outcomes} == {"second"}

    run_virtual(main)


@pytest.mark.parametrize(
    "error",
    [ValueError("broken"), RuntimeError("broken"), KeyError("broken"), ExceptionGroup("", [OSError()])],
)
def test_an_error_of_any_class_is_the_outcome_of_one_query(error: Exception) -> None:
    async def main() -> None:
        world = ListWorld()
        world.first.raises = {"first 1": error}
        outcomes = await world.ask_many(*several(3))
        assert texts(outcomes)[::2] == ["first 0", "first 2"]
        one = outcomes[1]
        assert isinstance(one, ExternalServiceError) and one.service == "first"
        assert type(error).__name__ in str(one) and one.__cause__ is error
        assert "broken" not in str(one)
        assert world.is_idle()

    run_virtual(main)


def test_the_cancellation_of_one_query_is_an_outcome_too() -> None:
    async def main() -> None:
        world = ListWorld()
        world.first.raises = {"first 1": asyncio.CancelledError()}
        outcomes = await world.ask_many(*several(3))
        assert texts(outcomes) == ["first 0", "cancelled", "first 2"]
        assert world.is_idle()

    run_virtual(main)


def test_a_query_past_its_deadline_does_not_end_the_list() -> None:
    async def main() -> None:
        world = ListWorld()
        late = Query(service="first", prompt="late", timeout_s=1e-9, fallback=("second",))
        outcomes = await world.ask_many(late, *several(1))
        assert texts(outcomes)[1] == "first 0" and isinstance(outcomes[0], ExternalServiceError)

    run_virtual(main)


def test_a_cancelled_list_ends_its_queries_and_returns_everything_they_took() -> None:
    async def main() -> None:
        world = ListWorld(concurrency_max=10)
        asking = asyncio.create_task(world.ask_many(*several(2000)))
        await asyncio.sleep(2.5)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert world.first.asked == 30 and world.is_idle()
        assert not kinds(await world.ask_many(*several(20))), "its slots are free again"
        assert world.elapsed_s == 2

    run_virtual(main)


def test_a_list_ends_at_its_callers_deadline() -> None:
    async def main() -> None:
        world = ListWorld(concurrency_max=10)
        with pytest.raises(TimeoutError):
            async with Deadline(2.5):
                await world.ask_many(*several(2000))
        assert world.elapsed_s == 2.5 and world.is_idle()

    run_virtual(main)


def test_a_deadline_that_cannot_cancel_the_list_still_ends_its_queries() -> None:
    """A separate task is under its caller's deadline while that block runs, and free of it afterwards."""

    async def main() -> None:
        world = ListWorld(concurrency_max=10)
        asking: list[asyncio.Task[list[Answer | ExternalServiceError]]] = []

        async def begin_and_wait() -> None:
            async with Deadline(2.5):
                asking.append(asyncio.create_task(world.ask_many(*several(100))))
                await asyncio.sleep(10.0)

        with pytest.raises(TimeoutError):
            await begin_and_wait()
        assert world.elapsed_s == 2.5
        found = texts(await asking[0])
        assert found[20:30] == [Kind.DEADLINE] * 10, "those that were running at its end"
        assert found[:20] + found[30:] == [f"first {n}" for n in range(100) if not 20 <= n < 30]
        assert world.is_idle()

    run_virtual(main)


def test_a_list_that_waits_for_koos_limit_is_fed_at_the_limits_pace() -> None:
    """Each query has a deadline of two minutes, and the list of 300 needs five minutes at 60 a minute."""

    async def main() -> None:
        world = ListWorld(limits=LimitOptions(per_minute=60))
        outcomes = await world.ask_many(*several(300, on_limit="wait"))
        assert not kinds(outcomes)
        assert 240 <= world.elapsed_s < 300
        assert world.is_idle()

    run_virtual(main)


def test_a_list_that_waits_shares_a_budget_that_covers_few_of_its_queries_at_a_time() -> None:
    """The worst case of a query is thousands of times its cost, so the budget holds eight queries and pays for all."""

    async def main() -> None:
        world = ListWorld(daily_budget_usd=Decimal("0.5"))
        assert not kinds(await world.ask_many(*several(100, on_limit="wait")))
        assert world.is_idle()

    run_virtual(main)


def test_a_query_that_waits_for_held_money_until_its_deadline_is_refused_for_its_budget() -> None:
    async def main() -> None:
        world = ListWorld(daily_budget_usd=Decimal("0.1"))
        world.first.takes_s = 50.0
        began_at, running = world.clock.monotonic(), asyncio.create_task(world.ask(max_tokens=4096))
        await asyncio.sleep(1)
        with pytest.raises(BudgetExceeded, match="does not cover this call") as refused:
            await world.ask(max_tokens=4096, on_limit="wait", timeout_s=20)
        assert refused.value.kind is Kind.BUDGET_EXCEEDED
        assert world.clock.monotonic() - began_at == 21
        await running

    run_virtual(main)


def test_a_querys_tokens_count_from_the_call_and_not_from_the_wait_for_its_money() -> None:
    """Otherwise the tokens of queries that waited are free again, and twice as many can be used in that minute."""

    async def main() -> None:
        limits = LimitOptions(tokens_per_minute=3 * (INPUT_TOKENS_MAX + 4096))
        world = ListWorld(
            daily_budget_usd=Decimal("0.1"), limits=limits, timeout_s=1000.0, attempt_timeout_s=500.0
        )
        world.first.takes_s = 90.0
        running = asyncio.create_task(world.ask(max_tokens=4096))
        await asyncio.sleep(1)
        waiting = asyncio.create_task(world.ask(max_tokens=4096, on_limit="wait"))
        await asyncio.sleep(92)
        assert world.first.running == 1
        tokens = world.service.tokens
        assert tokens is not None and tokens.count.used == INPUT_TOKENS_MAX + 4096
        await asyncio.gather(running, waiting)

    run_virtual(main)


def test_a_limit_refuses_queries_of_a_list_that_does_not_wait() -> None:
    async def main() -> None:
        world = ListWorld(limits=LimitOptions(per_minute=60))
        outcomes = await world.ask_many(*several(300))
        refused = [one for one in outcomes if isinstance(one, ExternalServiceError)]
        assert len(refused) == 240 and all(isinstance(one, RateLimited) for one in refused)

    run_virtual(main)


def test_a_list_is_fed_at_the_providers_pace() -> None:
    """The pacer allows one call every two seconds. Of 200 queries sent together, each with a deadline of two minutes,
    those from the sixtieth on would be refused.
    """

    async def main() -> None:
        world = ListWorld()
        hear(world.service.default_guard, 4000, 200, 400.0)
        outcomes = await world.ask_many(*several(150))
        assert not kinds(outcomes)
        assert 290 <= world.elapsed_s <= 310

    run_virtual(main)


def test_an_empty_list_has_no_outcomes() -> None:
    async def main() -> None:
        assert await ListWorld().ask_many() == []

    run_virtual(main)


def test_unknown_services_are_reported_among_the_answers() -> None:
    async def main() -> None:
        world = ListWorld()
        strange: list[Query] = [Query(service=name, prompt="x") for name in ("nobody", 7, None, ["first"])]  # type: ignore[arg-type]
        outcomes = await world.ask_many(*strange, *several(1))
        assert texts(outcomes) == [Kind.UNKNOWN_SERVICE] * 4 + ["first 0"]

    run_virtual(main)


def test_a_querys_error_is_in_no_reference_cycle() -> None:
    """The error is freed with its list, not by a later run of the garbage collector."""

    async def main() -> None:
        world = ListWorld()
        gc.collect()
        gc.disable()
        try:
            assert kinds(await world.ask_many(*several(20, "absent"))) == {Kind.UNKNOWN_SERVICE}
            left = [one for one in gc.get_objects() if isinstance(one, ExternalServiceError)]
            assert not [one for one in left if one.service == "absent"]
        finally:
            gc.enable()

    run_virtual(main)
