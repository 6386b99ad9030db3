"""When a service fails or its budget is spent, another service answers.

    .venv/bin/python examples/fallback_and_budget.py

It needs no key: `claude` and `lab` are fake servers with the real wire formats, on 127.0.0.1. With a key, the same code
calls the real services: `Platform()` without options reads the environment.
"""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

from koo import (
    AllServicesFailed,
    BudgetExceeded,
    Platform,
    PlatformOptions,
    Query,
    RetryOptions,
    ServiceOptions,
)
from koo.testing.providers import FakeAnthropic, FakeCompatible, error

QUESTION = Query(service="claude", prompt="What is the capital of France?", max_tokens=100, fallback=("lab",))
ALONE = Query(service="claude", prompt="What is the capital of France?", max_tokens=100)


def options(home: Path, claude: FakeAnthropic, lab: FakeCompatible) -> PlatformOptions:
    """`claude` costs money and has a budget of half a cent a day; `lab` is your own server, and free."""
    return PlatformOptions(
        home=home,
        state_url=f"sqlite:///{home / 'koo-state.db'}",
        services=(
            ServiceOptions(
                name="claude",
                kind="anthropic",
                model="claude-sonnet-5-5",
                base_url=claude.base_url,
                api_key="test-key",
                input_price=Decimal(3),
                output_price=Decimal(15),
                daily_budget_usd=Decimal("0.005"),
                retry=RetryOptions(attempts_max=2, base_s=0.01),
            ),
            ServiceOptions(
                name="lab",
                kind="openai_compatible",
                model="qwen3:8b",
                base_url=lab.base_url,
                declared=True,
                retry=RetryOptions(attempts_max=2, base_s=0.01),
            ),
        ),
    )


async def fall_back(platform: Platform, claude: FakeAnthropic) -> None:
    """After a failure and its retries, the next service is called; after a refusal, it is called immediately."""
    answer = await platform.query(QUESTION)
    print(f"{answer.service} answered: {answer}")
    claude.script(error(529, "overloaded_error"), error(529, "overloaded_error"))
    answer = await platform.query(QUESTION)
    print(f"{answer.service} answered, because claude is overloaded")


async def spend(platform: Platform, claude: FakeAnthropic) -> None:
    """Each attempt's worst case is held in advance, so concurrent calls cannot exceed the budget."""
    outcomes = await platform.query_many([ALONE] * 10)
    refused = [one for one in outcomes if isinstance(one, BudgetExceeded)]
    print(f"{len(outcomes) - len(refused)} of {len(outcomes)} fitted into the budget together")
    while True:
        try:
            await platform.query(ALONE)
        except BudgetExceeded as refusal:
            print(f"refused until midnight UTC: {refusal.retry_after_s is not None}")
            break
    budget = platform.service_health("claude")["rate_limits"]["daily_budget"]
    print(f"within the budget: {claude.billed_usd <= Decimal(budget['limit'] or 0)}")
    answer = await platform.query(QUESTION)
    print(f"{answer.service} answered, for {answer.cost_usd} USD")


async def nobody(platform: Platform, lab: FakeCompatible) -> None:
    """If no service answers, the error contains the reason of each."""
    lab.script(error(503, "unavailable"), error(503, "unavailable"))
    try:
        await platform.query(QUESTION)
    except AllServicesFailed as failed:
        print("no service answered:", *(type(reason).__name__ for reason in failed.exceptions))


async def main() -> None:
    with TemporaryDirectory() as home:
        async with (
            FakeAnthropic(key="test-key") as claude,
            FakeCompatible(key=None) as lab,
            Platform(options(Path(home), claude, lab)) as platform,
        ):
            await fall_back(platform, claude)
            await spend(platform, claude)
            await nobody(platform, lab)


if __name__ == "__main__":
    asyncio.run(main())
