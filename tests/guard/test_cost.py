"""The cost of one guarded call, in counts without noise: function calls, turns of the event loop, bytes.

`make bench` measures time. These counts are what is enforced, because they are the same on every machine.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from koo.ai.types import Query
from koo.clock import SystemClock
from koo.deadlines import Deadline, Deadlines
from koo.errors import CircuitOpen
from koo.gates import Gates
from koo.guard import Guard
from koo.options import GuardOptions, LimitOptions, PlatformOptions, ServiceOptions
from koo.platform import Platform
from koo.policies.breaker import FORCED_OPEN
from koo.policies.limiter import DayCount, Limits, SlidingCount
from koo.storage.store import SqlStore
from koo.testing.providers import FakeOpenAI, Gate, answer

CALLS_MAX = 36
MONEY_CALLS_MAX = 42
BYTES_MAX = 2048
OF_MONEY = tuple(f"koo.{name}" for name in (
    "ai.charge", "ai.budgets", "ai.model_price", "ai.pricing", "policies.money",
    "policies.purse", "policies.purses", "storage.ledger",
))  # fmt: skip
MONEY = {sys.modules[name].__file__ for name in OF_MONEY}
GUARD = {
    module.__file__
    for name, module in sys.modules.items()
    if name in ("koo.guard", "koo.gates") or (name.startswith("koo.policies.") and name not in OF_MONEY)
} - {sys.modules["koo.policies.treasury"].__file__}


async def nothing() -> None:
    """The cheapest possible operation."""


def everything_on() -> Guard:
    """A guard with everything that a service has: deadline, breaker, three limits, slots, counts."""
    now = SystemClock.monotonic()
    limits = Limits(
        SlidingCount("requests a minute", 10**6, 60.0, now),
        SlidingCount("requests an hour", 10**6, 3600.0, now),
        DayCount("requests a day", 10**6, now + 40_000.0, 7),
    )
    options = GuardOptions(idempotent=True)
    return Guard(Gates("claude", options, deadlines=Deadlines(), limits=limits))


def counted(coroutine: Any) -> dict[str, int]:
    """Python and C calls until it is done. "turns" counts how often the coroutine yields to the loop."""
    seen = {"call": 0, "c_call": 0, "turns": 0}

    def count(frame: FrameType, event: str, argument: Any) -> None:
        if event in seen:
            seen[event] += 1

    send = coroutine.send
    sys.setprofile(count)
    try:
        while True:
            send(None)
            seen["turns"] += 1
    except StopIteration:
        pass
    finally:
        sys.setprofile(None)
    seen["c_call"] -= 2  # `send` and `setprofile`
    return seen


def least(make: Callable[[], Any]) -> dict[str, int]:
    """The cheapest of three runs: the others may cross into a new second or quarter of a second, which costs more."""
    return min((counted(make()) for _ in range(3)), key=lambda seen: sum(seen.values()))


def test_an_unhindered_call_makes_few_function_calls_and_never_yields_to_the_loop() -> None:
    async def main() -> dict[str, int]:
        guard = everything_on()
        async with Deadline(600):
            for _ in range(50):
                await guard.call(nothing)
            return least(lambda: guard.call(nothing))

    seen = asyncio.run(main())
    assert seen["turns"] == 0
    assert 10 < seen["call"] + seen["c_call"] <= CALLS_MAX, seen


def test_an_unhindered_call_leaves_nothing_behind_and_uses_little_memory() -> None:
    async def main() -> tuple[int, int]:
        guard = everything_on()
        for _ in range(50):
            await guard.call(nothing)
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            seen = []
            for _ in range(5):
                before = tracemalloc.get_traced_memory()[0]
                tracemalloc.reset_peak()
                await guard.call(nothing)
                after, peak = tracemalloc.get_traced_memory()
                seen.append((peak - before, after - before))
        finally:
            tracemalloc.stop()
            gc.enable()
        return min(seen)

    peak, left = asyncio.run(main())
    assert 0 < peak < BYTES_MAX
    assert left < 200, "anything left behind would grow with the number of calls"


@pytest.mark.parametrize("free", [True, False], ids=["free", "paid"])
def test_the_guards_share_of_a_platform_query_is_bounded(tmp_path: Path, free: bool) -> None:
    """The query is a real one: with a server, and for a paid service with the durable ledger. The work for the money
    does not count as the guard's, and must not make the guard's part longer."""

    async def main() -> int:
        async with FakeOpenAI() as fake:
            service = ServiceOptions(
                name="openai",
                kind="openai",
                model="gpt-6.1-terra",
                api_key="test-key",
                base_url=fake.base_url,
                input_price=Decimal(0 if free else 1),
                output_price=Decimal(0 if free else 1),
            )
            state_url = f"sqlite:///{tmp_path}/state.db"
            platform = Platform(PlatformOptions(home=tmp_path, state_url=state_url, services=(service,)))
            query = Query(service="openai", prompt="What is the capital of France?")
            try:
                for _ in range(3):
                    answer = await platform.query(query)
                    assert (answer.cost_usd == 0) is free
                return min([await calls_in_guard(lambda: platform.query(query)) for _ in range(3)])
            finally:
                await platform.close()

    seen = asyncio.run(main())
    assert 10 < seen <= CALLS_MAX, seen


def test_the_money_part_of_a_query_with_room_in_its_purse_is_bounded(tmp_path: Path) -> None:
    """Bound, hold, bill and settlement in a real query. The ledger's beats run outside the calls."""

    async def main() -> int:
        async with FakeOpenAI() as fake:
            service = ServiceOptions(
                name="openai", kind="openai", model="gpt-6.1-terra", api_key="test-key", base_url=fake.base_url,
                input_price=Decimal(1), output_price=Decimal(1), limits=LimitOptions(),
            )  # fmt: skip
            state_url = f"sqlite:///{tmp_path}/state.db"
            platform = Platform(PlatformOptions(home=tmp_path, state_url=state_url, services=(service,)))
            query = Query(service="openai", prompt="What is the capital of France?", max_tokens=16)
            fake.script(gate := Gate(), *[answer(input_tokens=12, output_tokens=16) for _ in range(60)])
            async with platform:
                # A running call keeps the purse in this process: after the last call it would be returned.
                running = asyncio.ensure_future(platform.query(query))
                await gate.arrived()
                store = platform.parts.store
                assert isinstance(store, SqlStore)
                purse = store.ledger.purses.budgets["service/openai"].purse
                seen = []
                for _ in range(60):
                    purse.pace = (10.0**9, 10.0**9)  # simulates fast spending on any machine
                    seen.append(await calls_in(MONEY, lambda: platform.query(query)))
                gate.open()
                await running
            return min(seen)

    seen = asyncio.run(main())
    assert 10 < seen <= MONEY_CALLS_MAX, seen


async def calls_in_guard(make: Callable[[], Awaitable[object]]) -> int:
    """Calls of functions of the guard, its gates and policies, including their calls into C."""
    return await calls_in(GUARD, make)


async def calls_in(files: set[str | None], make: Callable[[], Awaitable[object]]) -> int:
    """Calls of functions in these files, including their calls into C. A coroutine that resumes after a wait counts
    once.
    """
    entered: list[FrameType] = []
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        if frame.f_code.co_filename not in files or (event == "call" and frame in entered):
            return
        if event == "call":
            entered.append(frame)
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        await make()
    finally:
        sys.setprofile(None)
    return calls


def test_a_refusal_by_an_open_breaker_is_cheap() -> None:
    async def main() -> dict[str, int]:
        guard = everything_on()
        guard.set_override(FORCED_OPEN)

        async def refused() -> None:
            try:
                await guard.call(nothing)
            except CircuitOpen:
                pass

        await refused()
        return least(refused)

    seen = asyncio.run(main())
    assert seen["turns"] == 0 and seen["call"] + seen["c_call"] <= 21, (
        seen
    )  # one of them reads who has forced it open


def test_a_call_costs_the_same_however_many_are_running() -> None:
    async def main() -> tuple[dict[str, int], dict[str, int]]:
        guard = everything_on()
        guard.gates.bulkhead.limit = guard.gates.bulkhead.cap = 10_000
        for _ in range(5):
            await guard.call(nothing)
        alone = least(lambda: guard.call(nothing))
        ended = asyncio.Event()
        tasks = [asyncio.create_task(guard.call(ended.wait)) for _ in range(2000)]
        await asyncio.sleep(0)
        crowded = least(lambda: guard.call(nothing))
        ended.set()
        await asyncio.gather(*tasks)
        return alone, crowded

    alone, crowded = asyncio.run(main())
    assert crowded == alone
