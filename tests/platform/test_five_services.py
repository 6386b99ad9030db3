"""Five services at the same time, one of them failing in every way: the others are not affected."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path

import pytest

from koo.ai.types import Answer, Query
from koo.errors import ExternalServiceError, Kind
from koo.options import DatabaseOptions, LimitOptions, PlatformOptions, RetryOptions, ServiceOptions
from koo.platform import Platform
from koo.testing.providers import FakeOpenAI, Step, answer, cut, error, hang, html, nothing

NAMES = ("sick", "one", "two", "three", "four")
WELL = NAMES[1:]


def service(name: str, fake: FakeOpenAI) -> ServiceOptions:
    return ServiceOptions(
        name=name,
        kind="openai",
        model="gpt-6.1-terra",
        api_key="test-key",
        base_url=fake.base_url,
        input_price=Decimal(1),
        output_price=Decimal(1),
        max_tokens=50,
        retry=RetryOptions(attempts_max=1),
        limits=LimitOptions(per_minute=None, per_hour=None, per_day=None),
    )


@pytest.mark.parametrize(
    ("failing", "kinds", "state"),
    [
        (error(500, "server_error"), {Kind.SERVER_ERROR, Kind.CIRCUIT_OPEN}, "circuit_open"),
        (error(401, "invalid_api_key"), {Kind.AUTH, Kind.KEY_REFUSED}, "circuit_open"),
        (
            error(429, "rate_limit_exceeded", headers={"retry-after": "300"}),
            {Kind.THROTTLED, Kind.COOLING_DOWN},
            "rate_limited",
        ),
        (cut(60), {Kind.CONNECTION, Kind.BAD_ANSWER, Kind.CIRCUIT_OPEN}, "circuit_open"),
        (nothing(), {Kind.CONNECTION, Kind.CIRCUIT_OPEN}, "circuit_open"),
        (html(502), {Kind.SERVER_ERROR, Kind.CIRCUIT_OPEN}, "circuit_open"),
        (hang(), {Kind.DEADLINE}, "unhealthy"),
    ],
)
def test_the_other_services_answer_as_if_the_failing_one_were_healthy(
    tmp_path: Path, failing: Step, kinds: set[Kind], state: str
) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            fakes = [await stack.enter_async_context(FakeOpenAI()) for _ in NAMES]
            for name, fake in zip(NAMES, fakes, strict=True):
                fake.default = failing if name == "sick" else answer(f"here is {name}")
            koo = await stack.enter_async_context(platform(tmp_path, fakes))
            await ask_in_turns(koo, kinds)
            await ask_in_batches(koo, kinds)
            states = {name: view["state"] for name, view in koo.services_status().items()}
            assert states == dict.fromkeys(WELL, "healthy") | {"sick": state}
            assert all(one.gates.bulkhead.used == 0 for one in koo.services.values())

    asyncio.run(main())


def platform(folder: Path, fakes: list[FakeOpenAI]) -> Platform:
    return Platform(
        PlatformOptions(
            home=folder,
            state_url=f"sqlite:///{folder}/state.db",
            database=DatabaseOptions(url=f"sqlite:///{folder}/app.db"),
            services=tuple(service(name, fake) for name, fake in zip(NAMES, fakes, strict=True)),
        )
    )


def query(name: str, timeout_s: float = 60) -> Query:
    return Query(service=name, prompt="Who is there?", timeout_s=timeout_s)


async def ask_in_turns(koo: Platform, kinds: set[Kind]) -> None:
    """While the failing one is called (and may hang), the others answer one query after another."""
    sick = [asyncio.create_task(koo.query(query("sick", 3))) for _ in range(6)]
    for _ in range(10):
        for name in WELL:
            assert (await koo.query(query(name))).text == f"here is {name}"
    for outcome in await asyncio.gather(*sick, return_exceptions=True):
        assert isinstance(outcome, ExternalServiceError) and outcome.kind in kinds
    for _ in range(6):
        with pytest.raises(ExternalServiceError):
            await koo.query(query("sick", 0.05))


async def ask_in_batches(koo: Platform, kinds: set[Kind]) -> None:
    """Each result is at the position of its query."""
    outcomes = await koo.query_many([query(name, 1 if name == "sick" else 60) for name in NAMES * 3])
    for name, outcome in zip(NAMES * 3, outcomes, strict=True):
        if name == "sick":
            assert isinstance(outcome, ExternalServiceError) and outcome.kind in kinds
        else:
            assert isinstance(outcome, Answer) and outcome.text == f"here is {name}"
