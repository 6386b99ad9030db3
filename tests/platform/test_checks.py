"""The guard receives the results of a service's unbilled checks: the state follows without any query."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from koo.errors import ExternalServiceError
from koo.options import BreakerOptions, PlatformOptions, RetryOptions
from koo.platform import Platform
from koo.testing.providers import FakeAnthropic, error
from tests.platform.test_platform import QUESTION, options

ONCE = RetryOptions(attempts_max=1)
QUICKLY = BreakerOptions(failure_threshold=1, recovery_s=0.2)


def state_of(platform: Platform) -> str:
    return platform.service_health("claude")["state"]


def test_three_failed_checks_in_a_row_make_a_service_unhealthy_until_one_succeeds(tmp_path: Path) -> None:
    async def main() -> None:
        async with FakeAnthropic(strict=False) as server, Platform(options(tmp_path, server)) as platform:
            server.key = "another key"
            for state in ("healthy", "healthy", "unhealthy"):
                found = (await platform.check_services("claude"))["claude"]
                assert (found["healthy"], found["state"]) == (False, state)
            server.key = None
            assert (await platform.check_services("claude"))["claude"]["healthy"] is True
            assert state_of(platform) == "healthy"

    asyncio.run(main())


def test_a_check_closes_the_circuit_of_a_recovered_service_without_calls(tmp_path: Path) -> None:
    async def main() -> None:
        async with FakeAnthropic() as server:
            asked: PlatformOptions = options(tmp_path, server, retry=ONCE, breaker=QUICKLY)
            async with Platform(asked) as platform:
                server.script(error(500, "api_error"))
                with pytest.raises(ExternalServiceError):
                    await platform.query(QUESTION)
                assert state_of(platform) == "circuit_open"
                async with asyncio.timeout(20):
                    while state_of(platform) != "healthy":
                        await platform.check_services("claude")
                        await asyncio.sleep(0.05)

    asyncio.run(main())
