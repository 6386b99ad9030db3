"""Breakers of several processes: primed by others' reports, probing in turn, informed of the first success."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from koo.errors import CircuitOpen, ExternalServiceError
from koo.events import CircuitPrimed
from koo.options import BreakerOptions, RetryOptions
from koo.platform import Platform
from koo.policies.breaker import CLOSED, HALF_OPEN, OPEN, Breaker
from koo.policies.fleet import GuardLine
from koo.storage.base import StoreUnavailable
from koo.testing.polling import until
from koo.testing.providers import FakeAnthropic, answer, error
from tests.fleet.others import key_of, say, say_open
from tests.platform.test_platform import QUESTION, options

FAILED = error(500, "api_error")
ONCE = RetryOptions(attempts_max=1)


def run(home: Path, count: int, test: Callable[..., Awaitable[None]], **breaker: Any) -> None:
    """Run `count` platforms on one store, with one provider."""

    async def main() -> None:
        async with FakeAnthropic(strict=False) as server, AsyncExitStack() as stack:
            asked = options(home, server, retry=ONCE, breaker=BreakerOptions(**breaker))
            platforms = [await stack.enter_async_context(Platform(asked)) for _ in range(count)]
            await beat(*platforms)
            await test(server, *platforms)

    asyncio.run(main())


async def beat(*platforms: Platform) -> None:
    for platform in platforms:
        await platform.parts.fleet.beat()


async def fail(platform: Platform, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(ExternalServiceError):
            await platform.query(QUESTION)


def breaker(platform: Platform) -> Breaker:
    return platform.services["claude"].default_guard.breaker


def test_when_three_processes_have_a_breaker_open_one_failure_opens_it_in_the_others(tmp_path: Path) -> None:
    """Only a failure opens the breaker: after a successful call it stays closed."""

    async def test(server: FakeAnthropic, *platforms: Platform) -> None:
        server.default = FAILED
        for number, platform in enumerate(platforms[:3]):
            await fail(platform, 5)
            await beat(*platforms)
            assert bool(breaker(platforms[3]).primed) is (number == 2)
        last = breaker(platforms[3])
        assert last.phase is CLOSED and last.primed == "3 of 3 processes have it open"
        server.default = answer()
        await platforms[3].query(QUESTION)
        assert last.phase is CLOSED
        await beat(*platforms)
        assert last.primed == "3 of 4 processes have it open"
        server.default = FAILED
        await fail(platforms[3])
        assert breaker(platforms[3]).phase is OPEN
        shown = platforms[3].service_health("claude")["health"]
        assert "while 3 of 4 processes have it open" in last.reason
        assert shown["circuit_breaker_state"] == "open"

    run(tmp_path, 4, test)


def test_a_later_process_and_a_later_model_are_primed_from_their_first_call(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic, one: Platform) -> None:
        key = key_of(one, "claude")
        other = key._replace(name="claude/another")
        await say_open(one, "claude")
        await say(one.options.state_url, GuardLine(other, "open", True, 0.0, 3))
        server.default = FAILED
        async with Platform(one.options) as late:
            assert breaker(late).primed
            assert late.services["claude"].guard("another").breaker.primed
            await fail(late)
            assert breaker(late).phase is OPEN
            assert any(isinstance(event, CircuitPrimed) for event in late.events.recent)

    run(tmp_path, 1, test)


def test_two_processes_a_minority_or_another_server_of_the_same_name_prime_no_breaker(
    tmp_path: Path,
) -> None:
    async def test(server: FakeAnthropic, one: Platform) -> None:
        key = key_of(one, "claude")
        url = one.options.state_url
        await say_open(one, "claude", count=2)
        await beat(one)
        assert not breaker(one).primed
        await say(url, GuardLine(key, "closed", False, 0.0, 5), count=4)
        await say_open(one, "claude", count=1)
        await beat(one)
        assert not breaker(one).primed, "three of seven"
        await say(url, GuardLine(key._replace(place="elsewhere"), "open", True, 0.0, 5), count=9)
        await beat(one)
        assert not breaker(one).primed

    run(tmp_path, 1, test)


def test_while_the_store_is_unavailable_a_breaker_decides_as_in_a_single_process(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic, one: Platform) -> None:
        await say_open(one, "claude")
        await beat(one)
        assert breaker(one).primed and breaker(one).probes_max == 0

        async def fails(*_: object) -> None:
            raise StoreUnavailable("unreachable")

        one.parts.store.roll_call.beat = fails  # type: ignore[method-assign, assignment]
        await until(lambda: not breaker(one).primed)
        assert (breaker(one).probes_max, breaker(one).threshold) == (1, 5)

    run(tmp_path, 1, test)


def test_a_reset_reaches_all_processes_and_ends_priming(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic, *platforms: Platform) -> None:
        server.default = FAILED
        for platform in platforms[:3]:
            await fail(platform, 5)
        await beat(*platforms)
        assert breaker(platforms[3]).primed
        platforms[3].reset_service("claude")
        await until(lambda: all(breaker(platform).phase is CLOSED for platform in platforms))
        await beat(*platforms, *platforms)
        assert not any(breaker(platform).primed for platform in platforms)

    run(tmp_path, 4, test)


def test_one_process_at_a_time_probes_and_after_its_success_the_others_test_immediately(
    tmp_path: Path,
) -> None:
    """Each breaker still needs its own probes to close."""

    async def test(server: FakeAnthropic, *platforms: Platform) -> None:
        server.default = FAILED
        for platform in platforms:
            await fail(platform)
        await until(lambda: breaker(platforms[0]).opens_until() < platforms[0].parts.clock.monotonic())
        for other in platforms[1:]:
            breaker(other).open_for_s = breaker(other)._guess_s = 600.0
        server.default = answer()
        await until(lambda: breaker(platforms[0]).probes_max == 1)
        await platforms[0].query(QUESTION)
        # The others learn of it, and request units.
        await until(lambda: all(breaker(other).phase is HALF_OPEN for other in platforms[1:]))
        assert all(not breaker(other).ok for other in platforms[1:])
        served = len(server.requests)

        async with asyncio.timeout(30):
            for platform in platforms:
                while breaker(platform).phase is not CLOSED:
                    with suppress(CircuitOpen):
                        await platform.query(QUESTION)
                    await beat(*platforms)
        assert len(server.requests) > served

    run(tmp_path, 3, test, failure_threshold=1, recovery_s=0.2)


def test_after_a_failed_probe_no_other_process_probes_for_a_recovery_time(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic, one: Platform, two: Platform) -> None:
        server.default = FAILED
        for platform in (one, two):
            await fail(platform)
            breaker(platform).open_for_s = 0.0
        await beat(one, two)
        assert breaker(one).probes_max + breaker(two).probes_max == 1
        prober, other = (one, two) if breaker(one).probes_max else (two, one)
        asked = len(server.requests)
        await fail(prober)
        assert len(server.requests) == asked + 1
        await beat(prober)
        for _ in range(3):
            await beat(other)
            assert breaker(other).probes_max == 0
            with pytest.raises(CircuitOpen):
                await other.query(QUESTION)
        assert len(server.requests) == asked + 1

    run(tmp_path, 2, test, failure_threshold=1, recovery_s=30.0)


def test_a_single_process_has_all_its_own_probes(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic, one: Platform) -> None:
        assert breaker(one).probes_max == 1
        async with Platform(one.options):
            await beat(one)
            assert breaker(one).probes_max == 0
        await beat(one)
        assert breaker(one).probes_max == 1

    run(tmp_path, 1, test)
