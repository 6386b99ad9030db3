"""The requests of the day: their count outlives the process, and the state store counts each of them once."""

from __future__ import annotations

import asyncio
from pathlib import Path

from koo.ai.budgets import requests_count
from koo.ai.registration import compose
from koo.ai.service import Service, guard_options
from koo.clock import utc_day
from koo.deadlines import Deadlines
from koo.options import DAY_S, LimitOptions, PlatformOptions, ServiceOptions
from koo.platform import Platform
from koo.storage.store import SqlStore
from koo.testing.clock import StandingClock
from koo.testing.skipping import SkippingClock

MIDNIGHT_S = 20_001 * DAY_S
TODAY = 20_000
LIMITED = ServiceOptions(
    name="own", kind="openai_compatible", declared=True, base_url="http://127.0.0.1:9/v1",
    limits=LimitOptions(per_day=100),
)  # fmt: skip


def before_midnight(before_s: float) -> StandingClock:
    return StandingClock(MIDNIGHT_S - before_s)


def service(clock: StandingClock) -> Service:
    return Service(
        "own",
        guard_options(LIMITED),
        default_model="m",
        clock=clock,
        deadlines=Deadlines(),
        classify=compose(None, "own"),
    )


def used(one: Service) -> int:
    count = one.day_count
    assert count is not None
    return count.used


def take(one: Service, clock: StandingClock, requests: int = 1) -> None:
    for _ in range(requests):
        assert one.gates.limits.take(clock.monotonic()) is None


def test_a_platform_made_before_midnight_and_opened_after_it_counts_the_new_days_requests(
    tmp_path: Path,
) -> None:
    """Another process has used up the new day. This process's counts are from yesterday, when its status was read."""

    async def main() -> None:
        clock = SkippingClock(MIDNIGHT_S - 3600)
        options = PlatformOptions(home=tmp_path, services=(LIMITED,))
        platform = Platform(options, clock=clock)
        platform.services_status()
        clock.advance(hours=2)
        async with SqlStore(options.state_url, clock=clock, home=tmp_path) as store:
            store.ledger.count(store.ledger.budget(requests_count("own"), None), utc_day(clock.wall()), 100)
        async with platform:
            view = platform.service_health("own")["rate_limits"]["requests_per_day"]
            assert (view["used"], view["remaining"]) == (100, 0)

    asyncio.run(main())


def test_a_count_restored_for_a_past_day_is_not_added_to_today() -> None:
    """The store was queried before midnight and responded after it."""
    clock = before_midnight(1.0)
    one = service(clock)
    clock.advance(2.0)
    one.note_elsewhere(TODAY, 70)
    assert used(one) == 0 and one.take_unstored() == (TODAY + 1, 0)


def test_each_request_is_stored_once() -> None:
    """Only new requests are stored with each tick. A refund is stored as a negative number. Other processes' requests
    are theirs to store.
    """
    clock = before_midnight(3600.0)
    one = service(clock)
    one.note_elsewhere(TODAY, 40)
    assert used(one) == 40 and one.take_unstored() == (TODAY, 0), "these are stored already"
    take(one, clock, requests=5)
    one.note_elsewhere(TODAY, 42)
    assert used(one) == 47
    assert one.take_unstored() == (TODAY, 5) and one.take_unstored() == (TODAY, 0)
    one.gates.limits.refund(clock.monotonic())
    assert one.take_unstored() == (TODAY, -1) and used(one) == 46


def test_a_new_day_begins_at_zero() -> None:
    clock = before_midnight(1.0)
    one = service(clock)
    one.note_elsewhere(TODAY, 7)
    take(one, clock, requests=5)
    assert one.take_unstored() == (TODAY, 5)
    clock.advance(2.0)
    take(one, clock, requests=3)
    one.tick()
    assert one.take_unstored() == (TODAY + 1, 3) and used(one) == 3
    one.note_elsewhere(TODAY, 8)
    assert used(one) == 3 and one.take_unstored() == (TODAY + 1, 0), "a late report about yesterday"
    one.note_elsewhere(TODAY + 1, 2)
    assert used(one) == 5 and one.take_unstored() == (TODAY + 1, 0)
    clock.advance(DAY_S)
    one.tick()
    take(one, clock, requests=3)
    assert one.take_unstored() == (TODAY + 2, 3), "the days in between have passed"
