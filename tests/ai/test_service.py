"""A service's guards share its day of limits, and what one of them learns of the host."""

from __future__ import annotations

import pytest

from koo.ai.service import Service
from koo.deadlines import Deadlines
from koo.errors import CircuitOpen, Kind, RateLimited, ServiceFailed
from koo.options import DAY_S, BreakerOptions, GuardOptions, LimitOptions, RetryOptions
from koo.policies.treatment import classify_error
from koo.testing.clock import VirtualClock, run_virtual
from tests.guard.support import answer


class SetClock(VirtualClock):
    """Virtual time whose wall clock may be set, as people and time servers do."""

    ahead_s = 0.0

    def wall(self) -> float:
        return super().wall() + self.ahead_s


ONE_A_DAY = LimitOptions(per_day=1)


def make_service(clock: VirtualClock, limits: LimitOptions = ONE_A_DAY) -> Service:
    options = GuardOptions(limits=limits, retry=RetryOptions(attempts_max=1))
    return Service(
        "claude", options, default_model="a", clock=clock, deadlines=Deadlines(), classify=classify_error
    )


def test_all_models_of_a_service_repeat_out_of_one_budget() -> None:
    """A provider that is ill is ill for all of them: with a bucket for each, sixty models would repeat sixty times."""

    async def fail() -> str:
        attempts.append(None)
        raise ServiceFailed("claude", "it is ill", kind=Kind.OVERLOADED)

    async def main() -> None:
        retry = RetryOptions(attempts_max=2, budget_tokens=5, budget_per_s=0)
        options = GuardOptions(retry=retry, idempotent=True, breaker=BreakerOptions(failure_threshold=1000))
        service = Service(
            "claude",
            options,
            default_model="a",
            clock=VirtualClock(),
            deadlines=Deadlines(),
            classify=classify_error,
        )
        for model in "abcdefgh":
            with pytest.raises(ServiceFailed):
                await service.guard(model).call(fail)

    attempts: list[None] = []
    run_virtual(main)
    assert len(attempts) == 8 + 5


def test_the_day_of_a_limit_ends_at_midnight_as_the_wall_clock_tells_it_at_each_tick() -> None:
    """The count is kept in monotonic time: set forward by a day, the wall clock begins a new one with the next tick."""

    async def main() -> None:
        clock = SetClock()
        service = make_service(clock)
        await service.guard("a").call(answer)
        with pytest.raises(RateLimited):
            await service.guard("a").call(answer)
        clock.ahead_s = DAY_S
        service.tick()
        assert await service.guard("a").call(answer) == "answer"

    run_virtual(main)


def test_a_day_that_the_wall_clock_makes_longer_does_not_end_early() -> None:
    async def main() -> None:
        clock = SetClock()
        service = make_service(clock)
        await service.guard("a").call(answer)
        clock.ahead_s = -3600.0
        service.tick()
        await clock.sleep(DAY_S - clock.wall() % DAY_S - 1800.0)
        with pytest.raises(RateLimited) as caught:
            await service.guard("a").call(answer)
        assert caught.value.retry_after_s == pytest.approx(1800.0)

    run_virtual(main)


def test_a_host_that_one_model_cannot_reach_opens_all_models_of_the_service() -> None:
    async def unreachable() -> None:
        raise ServiceFailed("claude", "connection refused", kind=Kind.CONNECTION)

    async def main() -> None:
        service = make_service(VirtualClock(), LimitOptions())
        one, other = service.guard("a"), service.guard("b")
        for _ in range(5):
            with pytest.raises(ServiceFailed):
                await one.call(unreachable)
        with pytest.raises(CircuitOpen):
            await other.call(answer)

    run_virtual(main)
