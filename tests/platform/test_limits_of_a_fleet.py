"""Limits over several processes on one state store, and tokens per minute, as callers and operators see them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from koo import Query
from koo.errors import RateLimited
from koo.options import LimitOptions, PlatformOptions, ServiceOptions
from koo.platform import Platform
from koo.storage.base import StoreUnavailable
from koo.storage.store import SqlStore
from koo.testing.polling import until
from koo.testing.providers import FakeAnthropic


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that stalls for seconds is not an outage here, and an expired lease is waited for."""
    assert SqlStore.__init__.__kwdefaults__ is not None
    monkeypatch.setitem(SqlStore.__init__.__kwdefaults__, "timeout_s", 60.0)
    monkeypatch.setattr("koo.storage.sql.BUSY_S_MAX", 60.0)
    monkeypatch.setattr("koo.limit_gate.PATIENCE_S", 60.0)


def options(home: Path, server: FakeAnthropic, limits: LimitOptions) -> PlatformOptions:
    claude = ServiceOptions(
        name="claude",
        kind="anthropic",
        model="claude-sonnet-5-5",
        api_key="test-key",
        base_url=server.base_url,
        limits=limits,
    )
    return PlatformOptions(home=home, state_url=f"sqlite:///{home / 'state.db'}", services=(claude,))


def run(test: Callable[[FakeAnthropic], Awaitable[None]]) -> None:
    async def main() -> None:
        async with FakeAnthropic() as server:
            await test(server)

    asyncio.run(main())


def query(max_tokens: int = 100) -> Query:
    return Query(service="claude", prompt="What is the capital of France?", max_tokens=max_tokens)


async def answers(platform: Platform, one: Query) -> bool:
    try:
        await platform.query(one)
    except RateLimited:
        return False
    return True


@pytest.mark.parametrize(
    "limits", [LimitOptions(per_minute=9), LimitOptions(per_hour=9), LimitOptions(per_day=9)]
)
def test_a_limit_of_nine_requests_holds_over_two_processes(tmp_path: Path, limits: LimitOptions) -> None:
    async def test(server: FakeAnthropic) -> None:
        one, two = (Platform(options(tmp_path, server, limits)) for _ in range(2))
        async with one, two:
            came = await asyncio.gather(*(answers(each, query()) for each in (one, two) * 8))
            assert sum(came) == len(server.requests) == 9
            with pytest.raises(RateLimited, match="koo's limit of 9 requests") as refused:
                await one.query(query())
            assert (refused.value.retry_after_s or 0) > 0

    run(test)


@pytest.mark.parametrize(
    "limits", [LimitOptions(per_minute=40), LimitOptions(per_hour=40), LimitOptions(per_day=40)]
)
def test_units_held_by_another_process_are_waited_for_and_not_reported_as_used_up(
    tmp_path: Path, limits: LimitOptions
) -> None:
    """One process was busy and holds enough units for as much again; then the other one receives all the calls."""

    async def test(server: FakeAnthropic) -> None:
        one, two = (Platform(options(tmp_path, server, limits)) for _ in range(2))
        async with one, two:
            for _ in range(2):
                assert all(await asyncio.gather(*(answers(each, query()) for each in (one, two) * 6)))
            assert all([await answers(two, query()) for _ in range(16)]), "of 40 units 24 are used"
            assert not await answers(two, query())

    run(test)


@pytest.mark.parametrize("waits_s", [60.0, 0.0])
@pytest.mark.parametrize(
    ("limits", "asked_tokens"),
    [(LimitOptions(per_minute=1), 100), (LimitOptions(tokens_per_minute=2000), 1700)],
    ids=["requests", "tokens"],
)
def test_a_call_beyond_this_processs_share_waits_for_a_store_that_was_just_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: LimitOptions, asked_tokens: int, waits_s: float
) -> None:
    """The store's file was locked for a moment. If the store has been unreachable for longer, a call is refused
    immediately.
    """
    monkeypatch.setattr("koo.policies.hand.LOST_S", waits_s)
    monkeypatch.setattr("koo.storage.sql.BUSY_S_MAX", 0.05)

    async def test(server: FakeAnthropic) -> None:
        async with Platform(options(tmp_path, server, limits)) as platform:
            with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(StoreUnavailable):
                    await platform.parts.store.ledger.refresh()
                await until(lambda: platform.parts.store.trouble)
                asked = asyncio.create_task(answers(platform, query(asked_tokens)))
                if waits_s:
                    await asyncio.wait([asked], timeout=0.3)
                    assert not asked.done()
                    other.execute("ROLLBACK")
                assert await asked is bool(waits_s)

    run(test)


def test_a_call_takes_the_most_tokens_that_it_can_need_and_returns_the_unused_ones(
    tmp_path: Path,
) -> None:
    async def test(server: FakeAnthropic) -> None:
        async with Platform(options(tmp_path, server, LimitOptions(tokens_per_minute=2000))) as platform:

            def used() -> int:
                return platform.service_health("claude")["rate_limits"]["tokens_per_minute"]["used"]

            answer = await platform.query(query(1500))
            await until(lambda: used() == answer.usage.input_tokens + answer.usage.output_tokens)
            assert await answers(platform, query(1500))
            with pytest.raises(RateLimited, match="2000 tokens a minute has no room") as refused:
                await platform.query(query(2000))
            assert refused.value.retry_after_s is None and "lower max_tokens" in refused.value.reason

    run(test)


def test_a_token_limit_holds_over_two_processes(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic) -> None:
        server.latency_s = 0.3
        limits = LimitOptions(tokens_per_minute=3000)
        one, two = (Platform(options(tmp_path, server, limits)) for _ in range(2))
        async with one, two:
            came = await asyncio.gather(*(answers(each, query(1000)) for each in (one, two) * 3))
            assert sum(came) == 2, "of a thousand each, and the prompt"

    run(test)


def test_a_call_refused_by_a_budget_keeps_no_tokens(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic) -> None:
        async with Platform(options(tmp_path, server, LimitOptions(tokens_per_minute=2_000_000))) as platform:
            with pytest.raises(Exception, match="does not cover this call"):
                await platform.query(query(1_500_000))
            assert platform.service_health("claude")["rate_limits"]["tokens_per_minute"]["used"] == 0

    run(test)
