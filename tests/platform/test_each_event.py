"""Each event can happen: a platform over real servers and a real store brings about every class of `koo.events`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

import pytest

from koo import events
from koo.errors import ExternalServiceError
from koo.events import (
    BillExceededHold,
    CircuitClosed,
    CircuitHalfOpened,
    CircuitOpened,
    CooldownBegan,
    Event,
    HoldsSwept,
    KeyBlocked,
    KeyUnblocked,
    OverrideSet,
    StoreFound,
    StoreLost,
)
from koo.options import BreakerOptions, RetryOptions
from koo.platform import Platform
from koo.policies.breaker import Override
from koo.storage.base import Allowance, HoldRequest
from koo.storage.store import SqlStore
from koo.testing.providers import FakeAnthropic, answer, error
from tests.ai.worlds import until
from tests.platform.test_platform import QUESTION, Ahead, options

FAILED = error(500, "api_error")
REFUSED = error(401, "authentication_error")
BREAKER = BreakerOptions(failure_threshold=1, success_threshold=1, recovery_s=0.05)


@dataclass
class World:
    """A platform with one service, its fake provider, and the folder of its state store."""

    platform: Platform
    server: FakeAnthropic
    home: Path

    def happened(self, kind: type[Event]) -> bool:
        return any(isinstance(event, kind) for event in self.platform.events.recent)

    async def ask(self, *script: object) -> None:
        """One question, which the provider answers as scripted."""
        self.server.script(*script)  # type: ignore[arg-type]
        with suppress(ExternalServiceError):
            await self.platform.query(replace(QUESTION, on_limit="refuse"))


async def fail(world: World) -> None:
    await world.ask(FAILED)


async def fail_and_wait(world: World) -> None:
    await world.ask(FAILED)
    await until(lambda: world.happened(CircuitHalfOpened))


async def fail_and_recover(world: World) -> None:
    await fail_and_wait(world)
    await world.ask(answer())


async def override(world: World) -> None:
    world.platform.override_service("claude", Override.DISABLED)


async def throttle(world: World) -> None:
    await world.ask(error(429, "rate_limit_error", headers={"retry-after": "100"}))


async def refuse_the_key(world: World) -> None:
    await world.ask(REFUSED)


async def take_the_key_again(world: World) -> None:
    await world.ask(REFUSED)
    await world.platform.check_services("claude")


async def bill_more_than_was_held(world: World) -> None:
    await world.ask(answer(output_tokens=1_000_000))


async def leave_a_hold_behind(world: World) -> None:
    """As a process that died a while ago did."""
    dead = SqlStore(world.platform.options.state_url, clock=Ahead(-1000))
    await dead.open()
    await dead.ledger.hold(
        HoldRequest(service="claude", model="m", amount_usd=Decimal(1), allowance=Allowance(None), lease_s=1)
    )
    await dead.close()
    await world.platform.open()


async def lose_the_store(world: World) -> None:
    (world.home / "state.db").mkdir()
    await world.platform.open()


async def lose_and_find_the_store(world: World) -> None:
    await lose_the_store(world)
    (world.home / "state.db").rmdir()


CAUSES: dict[type[Event], Callable[[World], Awaitable[None]]] = {
    CircuitOpened: fail,
    CircuitHalfOpened: fail_and_wait,
    CircuitClosed: fail_and_recover,
    OverrideSet: override,
    CooldownBegan: throttle,
    KeyBlocked: refuse_the_key,
    KeyUnblocked: take_the_key_again,
    BillExceededHold: bill_more_than_was_held,
    HoldsSwept: leave_a_hold_behind,
    StoreLost: lose_the_store,
    StoreFound: lose_and_find_the_store,
}
"""What brings each event about."""


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in vars(events).values()
        if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
    ],
)
def test_each_event_can_happen(kind: type[Event], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that nothing publishes would be documented, coloured and alerted on, and never come."""
    monkeypatch.setattr("koo.upkeep.TICK_S", 0.02)
    monkeypatch.setattr("koo.upkeep.SWEEP_EVERY_TICKS", 1)

    async def main() -> None:
        async with FakeAnthropic() as server:
            once = options(tmp_path, server, breaker=BREAKER, retry=RetryOptions(attempts_max=1))
            platform = Platform(once)
            world = World(platform, server, tmp_path)
            assert not world.happened(kind)
            try:
                await CAUSES[kind](world)
                await until(lambda: world.happened(kind))
            finally:
                await platform.close()

    asyncio.run(main())
