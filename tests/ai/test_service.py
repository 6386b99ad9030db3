"""The guards of a service share its limits, and an outage that one of them detects."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from koo.ai.service import MODELS_MAX, Service
from koo.deadlines import Deadlines
from koo.errors import CircuitOpen, Kind, RateLimited, ServiceFailed
from koo.monitoring.guards import Wall
from koo.monitoring.shapes import ServiceMetrics
from koo.monitoring.snapshot import metrics_view
from koo.options import DAY_S, BreakerOptions, GuardOptions, LimitOptions, RetryOptions
from koo.policies.breaker import CLOSED, Breaker
from koo.policies.treatment import classify_error
from koo.policies.verdict import FAILURE
from koo.testing.clock import VirtualClock, run_virtual
from tests.guard.support import answer, fail, hang, throttled

ONE_A_DAY = LimitOptions(per_day=1)


def make_service(clock: VirtualClock, limits: LimitOptions = ONE_A_DAY) -> Service:
    options = GuardOptions(limits=limits, retry=RetryOptions(attempts_max=1))
    return Service(
        "claude", options, default_model="a", clock=clock, deadlines=Deadlines(), classify=classify_error
    )


def test_all_models_of_a_service_share_one_retry_budget() -> None:
    """An outage of the provider affects all its models. With a budget for each, sixty models would send sixty times as
    many retries.
    """

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


def test_a_suspended_machine_does_not_lengthen_a_servers_pause() -> None:
    """During a suspension the monotonic clock stops, and the wall clock goes on."""

    async def main() -> None:
        clock = VirtualClock()
        service = make_service(clock, LimitOptions())
        guard = service.guard("a")
        guard.cooldown.extend(
            guard.now(), 3600.0, lambda: 0.0, Kind.THROTTLED, "the provider limits the request rate"
        )
        service.gates.pause(guard.now(), 3600.0, lambda: 0.0, Kind.QUOTA, "the provider's quota is used up")
        service.tick()
        clock.set_wall(clock.wall() - 1800.0)
        service.tick()
        with pytest.raises(RateLimited) as refused:
            await guard.call(answer, on_limit="refuse")
        assert refused.value.retry_after_s == 3600.0, "a clock that is set back changes nothing"
        clock.set_wall(clock.wall() + 3500.0)
        service.tick()
        with pytest.raises(RateLimited) as refused:
            await guard.call(answer, on_limit="refuse")
        assert refused.value.retry_after_s == pytest.approx(100.0)
        clock.set_wall(clock.wall() + 100.0)
        service.tick()
        assert await guard.call(answer, on_limit="refuse") == "answer"

    run_virtual(main)


def test_suspension_shortens_a_requested_opening_but_not_koos_own_guess() -> None:
    breaker = Breaker("claude", BreakerOptions(failure_threshold=1, recovery_s=60), 30.0, 0.0)
    permit = breaker.admit(0.0, lambda: 0.0)
    assert permit is not None
    breaker.settle(permit, FAILURE, False, 0.0, lambda: 0.0, hint_s=3600.0)
    breaker.skip(3000.0)
    assert breaker.opens_until() == 600.0
    breaker.skip(3000.0)
    assert breaker.opens_until() == 60.0


def test_the_day_of_a_limit_ends_at_midnight_by_the_wall_clock() -> None:
    """The count is kept in monotonic time. If the wall clock is set forward by a day, a new day begins with the next
    tick.
    """

    async def main() -> None:
        clock = VirtualClock()
        service = make_service(clock)
        await service.guard("a").call(answer)
        with pytest.raises(RateLimited):
            await service.guard("a").call(answer)
        clock.set_wall(clock.wall() + DAY_S)
        service.tick()
        assert await service.guard("a").call(answer) == "answer"

    run_virtual(main)


def test_a_day_that_the_wall_clock_makes_longer_does_not_end_early() -> None:
    async def main() -> None:
        clock = VirtualClock()
        service = make_service(clock)
        await service.guard("a").call(answer)
        clock.set_wall(clock.wall() - 3600.0)
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


# ── more models than there is room for ────────────────────────────────────────────────────────────────────────────────


def total(service: Service, clock: VirtualClock) -> ServiceMetrics:
    return metrics_view(service.tallies, Wall(clock))


def test_the_counts_of_a_forgotten_model_are_kept() -> None:
    """The counts are kept since the process started and for the last five minutes: successes, failures, refusals and
    retries.
    """

    async def main() -> None:
        clock = VirtualClock()
        service = make_service(clock, LimitOptions())
        for number in range(200):
            operation = answer if number % 4 else fail
            with suppress(ServiceFailed):
                await service.guard(f"m{number}").call(operation)
            await clock.sleep(0.1)
        assert len(service.guards) == MODELS_MAX
        seen = total(service, clock)
        assert (seen["total_requests"], seen["successful_requests"], seen["failed_requests"]) == (
            200,
            150,
            50,
        )
        assert seen["recent"]["calls"] == 200 and seen["success_rate"] == 0.75
        assert seen["error_counts"] == {"server_error": 50}

    run_virtual(main)


def test_a_call_that_waited_while_its_model_was_forgotten_is_counted() -> None:
    async def main() -> None:
        clock = VirtualClock()
        service = make_service(clock, LimitOptions())
        early = service.guard("early")
        await clock.sleep(1.0)
        for number in range(MODELS_MAX):
            service.guard(f"m{number}")
        assert early not in service.guards
        await early.call(answer)
        assert total(service, clock)["total_requests"] == 1

    run_virtual(main)


def test_a_models_pause_outlasts_its_guard() -> None:
    """The pause was met here, or in another process before this one first called the model."""

    async def main() -> None:
        clock = VirtualClock()
        service = make_service(clock, LimitOptions())
        with pytest.raises(RateLimited):
            await service.guard("slow").call(throttled(500.0))
        service.pause("never asked", 500.0, Kind.THROTTLED, "the provider limits the request rate")
        for number in range(2 * MODELS_MAX):
            await service.guard(f"m{number}").call(answer)
        for model in ("slow", "never asked"):
            with pytest.raises(RateLimited) as caught:
                await service.guard(model).call(answer)
            assert caught.value.retry_after_s == pytest.approx(500.0, rel=0.1)
        service.reset()
        assert await service.guard("slow").call(answer) == "answer"

    run_virtual(main)


@pytest.mark.parametrize("state", ["failed once", "open", "paused", "running"])
def test_invented_model_names_never_lock_out_a_real_one(state: str) -> None:
    async def main() -> None:
        clock = VirtualClock()
        service = make_service(clock, LimitOptions())
        running = []
        for number in range(3 * MODELS_MAX):
            guard = service.guard(f"invented{number}")
            if state == "running":
                running.append(asyncio.create_task(guard.call(hang)))
                await asyncio.sleep(0)
            for _ in range(5 if state == "open" else 1):
                if state != "running":
                    with suppress(ServiceFailed, RateLimited):
                        await guard.call(throttled(500.0) if state == "paused" else fail)
        assert await service.guard("real").call(answer) == "answer"
        assert len(service.guards) <= (MODELS_MAX if state != "running" else 4 * MODELS_MAX)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    run_virtual(main)


def test_the_longest_idle_closed_model_is_forgotten_before_an_open_one() -> None:
    async def main() -> None:
        clock = VirtualClock()
        service = make_service(clock, LimitOptions())
        for _ in range(5):
            with suppress(ServiceFailed):
                await service.guard("ill").call(fail)
        for number in range(MODELS_MAX - 2):
            await clock.sleep(1.0)
            await service.guard(f"m{number}").call(answer)
        await clock.sleep(1.0)
        await service.guard("m0").call(answer)
        service.guard("another")
        models = {guard.model for guard in service.guards}
        assert "ill" in models and "m0" in models and "m1" not in models and "a" in models

    run_virtual(main)


# ── checks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_checks_count_for_every_model_so_half_open_ones_close_without_traffic() -> None:
    async def main() -> None:
        clock = VirtualClock()
        service = make_service(clock, LimitOptions())
        for _ in range(5):
            with suppress(ServiceFailed):
                await service.guard("other").call(fail)
        for _ in range(300):
            await clock.sleep(1.0)
            service.tick()
            service.note_check(None)
        assert service.guard("other").breaker.phase is CLOSED

    run_virtual(main)
