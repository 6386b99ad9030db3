"""One process of the money proof: many callers that spend a budget at a fake provider until they are stopped.

`python -m proofs.spending JSON` prints "ready" and waits for a line, and closes on SIGTERM. In between it prints fifty
times a second how much it holds and waits for, how much it has spent, and how many beats were answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path

from koo import Query
from koo.errors import ExternalServiceError
from koo.options import BreakerOptions, LimitOptions, PlatformOptions, RetryOptions, ServiceOptions
from koo.platform import Platform
from koo.policies.purse import Budget, Hold
from koo.storage.ledger import Ledger

SERVICE = "lab"
BOUND_USD = Decimal("0.05")
OUTPUT_TOKENS_MAX = 49
OUTPUT_PRICE = Decimal(1000)
"""USD per million tokens, so one call may cost 0.049 USD plus a little for its prompt."""
INPUT_PRICE = Decimal("0.1")
SAID_S = 0.02
COUNTERS_TOLD_S = 0.5
"""The control synchronises its counter at this interval; gateways do it every 0.25 to 60 s."""


@dataclass(frozen=True, slots=True)
class Task:
    """What one process does. `counts`: it is the control, which counts in batches and holds nothing."""

    base_url: str
    state_url: str
    home: str
    cap_usd: str
    callers: int
    seed: int
    counts: bool = False

    def command(self) -> list[str]:
        """The command that starts it."""
        return [sys.executable, "-m", "proofs.spending", json.dumps(asdict(self))]


def options(task: Task) -> PlatformOptions:
    """A service whose budget was set."""
    service = ServiceOptions(
        name=SERVICE,
        kind="openai_compatible",
        model="m",
        base_url=task.base_url,
        declared=True,
        api_key="k",
        input_price=INPUT_PRICE,
        output_price=OUTPUT_PRICE,
        max_tokens=OUTPUT_TOKENS_MAX,
        daily_budget_usd=Decimal(task.cap_usd),
        budget_is_explicit=True,
        limits=LimitOptions(),
        retry=RetryOptions(attempts_max=1),
        breaker=BreakerOptions(failure_threshold=1000),
        concurrency_max=1000,
    )
    return PlatformOptions(home=Path(task.home), state_url=task.state_url, services=(service,))


class Caller:
    """Makes one call after another: whole answers, streams that are read, abandoned or cut, and cancelled calls."""

    def __init__(self, platform: Platform, rng: random.Random) -> None:
        self._platform = platform
        self._rng = rng

    async def run(self) -> None:
        """Call until cancelled."""
        while True:
            query = Query(service=SERVICE, prompt="spend", timeout_s=20, on_limit="wait")
            try:
                await self._call(query)
            except ExternalServiceError:
                await asyncio.sleep(self._rng.random() * 0.2)

    async def _call(self, query: Query) -> None:
        chance = self._rng.random()
        if chance < 0.5:
            await self._platform.query(query)
        elif chance < 0.7:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._rng.random() * 0.1):
                    await self._platform.query(query)
        else:
            await self._stream(query, leaves=chance > 0.85)

    async def _stream(self, query: Query, leaves: bool) -> None:
        async with self._platform.stream(query) as answer:
            async for _ in answer:
                if leaves:
                    return


def count_in_batches(ledger: Ledger) -> None:
    """The control decides by the last known counts of the others and its own count."""

    def hold(budgets: tuple[Budget, ...], amount: int) -> Hold | None:
        for budget in budgets:
            known = ledger.standing(budget.name)
            if budget.limit is not None and known.spent >= budget.limit:
                return None
        return ledger.purses._held(budgets, amount, tuple([budget.purse for budget in budgets]))

    ledger.hold = hold  # type: ignore[method-assign]


async def say(ledger: Ledger) -> None:
    """Print the numbers by which a kill is judged, until cancelled."""
    purses, answered, last = ledger.purses, 0, ""
    while True:
        wanted = sum(waiter.amount for waiter in purses.waiting)
        purse = purses.budgets[f"service/{SERVICE}"].purse
        if purses.flying is not None and purses.flying.before != last:
            answered, last = answered + 1, purses.flying.before
        print(purse.held + wanted, purse.spent, answered, flush=True)
        await asyncio.sleep(SAID_S)


async def spend(task: Task) -> None:
    rng = random.Random(task.seed)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Platform(options(task)) as platform:
        ledger = platform.parts.store.ledger
        assert isinstance(ledger, Ledger)
        if task.counts:
            count_in_batches(ledger)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        callers = [asyncio.create_task(Caller(platform, rng).run()) for _ in range(task.callers)]
        callers.append(asyncio.create_task(say(ledger)))
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(COUNTERS_TOLD_S):
                    await stop.wait()
            if task.counts:
                await ledger.refresh()
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(spend(Task(**json.loads(sys.argv[1]))))
