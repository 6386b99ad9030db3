"""koo counts what it saved today over all processes, including ended ones, and counts each call once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from copy import deepcopy
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from koo.ai.types import Query
from koo.clock import iso
from koo.errors import ExternalServiceError
from koo.history import SAMPLE_S, History
from koo.options import DAY_S, RetryOptions
from koo.policies.breaker import Override
from koo.policies.samples import Sample
from koo.savings import Savings
from koo.storage.base import StoreUnavailable
from koo.storage.store import SqlStore
from koo.testing.providers import FakeAnthropic, error
from tests.storage.support import NOON_S, SetClock
from tests.web.serving import claude, platform


class Process:
    """A history with its savings, on a store that other processes may share."""

    def __init__(self, store: SqlStore, clock: SetClock) -> None:
        self.history = History(store, clock, version=lambda: "1")
        self.savings = Savings(self.history)
        self._total = Sample("healthy")

    def save(self, **counts: int) -> None:
        """Take a sample with these savings."""
        self._total.follow(Sample("healthy", saved=counts))
        self.history.take({"ai:claude": deepcopy(self._total)})


Test = Callable[[SqlStore, SetClock], Awaitable[None]]


def with_store(folder: Path, test: Test) -> None:
    async def main() -> None:
        clock = SetClock()
        store = SqlStore(f"sqlite:///{folder}/koo.db", clock=clock)
        await test(store, clock)
        await store.close()

    asyncio.run(main())


def test_each_call_counts_once_whether_it_is_written_or_not(tmp_path: Path) -> None:
    async def test(store: SqlStore, clock: SetClock) -> None:
        one = Process(store, clock)
        for sample in range(1, 200):
            clock.advance(SAMPLE_S)
            one.save(refused=1, not_spent=250_000_000_000)
            if sample % 7 == 0:
                await one.history.write()
            saved = await one.savings.report()
            assert (saved["refused"], saved["scope"]) == (sample, "all processes"), sample
        assert saved["not_spent"] == "49.75"
        assert saved["components"]["ai:claude"]["refused"] == 199
        assert saved["since"] == iso(NOON_S - DAY_S / 2)

    with_store(tmp_path, test)


def test_a_processs_savings_remain_after_its_end(tmp_path: Path) -> None:
    async def test(store: SqlStore, clock: SetClock) -> None:
        gone = Process(store, clock)
        clock.advance(SAMPLE_S)
        gone.save(repeated=5)
        await gone.history.finish()
        later = SqlStore(f"sqlite:///{tmp_path}/koo.db", clock=clock)
        one = Process(later, clock)
        clock.advance(SAMPLE_S)
        one.save(repeated=2)
        saved = await one.savings.report()
        assert (saved["repeated"], saved["refused"], saved["not_spent"]) == (7, 0, "0")
        await later.close()

    with_store(tmp_path, test)


def test_a_new_day_starts_at_zero(tmp_path: Path) -> None:
    async def test(store: SqlStore, clock: SetClock) -> None:
        one = Process(store, clock)
        clock.advance(SAMPLE_S)
        one.save(refused=5)
        clock.advance(DAY_S / 2 - SAMPLE_S)  # the span that ends at midnight belongs to the day before
        one.save(refused=3)
        assert (await one.savings.report())["refused"] == 0
        clock.advance(SAMPLE_S)
        one.save(refused=4)
        assert (await one.savings.report())["refused"] == 4

    with_store(tmp_path, test)


def test_while_the_store_is_unavailable_its_last_counts_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise StoreUnavailable("unreachable")

    async def test(store: SqlStore, clock: SetClock) -> None:
        monkeypatch.setattr(store.history, "read", away)
        one = Process(store, clock)
        clock.advance(SAMPLE_S)
        one.save(refused=5)
        saved = await one.savings.report()
        assert (saved["refused"], saved["scope"]) == (5, "this process")
        assert saved["since"] == iso(NOON_S)
        monkeypatch.undo()
        assert (await one.savings.report())["scope"] == "all processes"
        monkeypatch.setattr(store.history, "read", away)
        clock.advance(70)
        one.save(refused=2)
        await one.history.write()
        assert (await one.savings.report())["scope"] == "all processes"

    with_store(tmp_path, test)


def test_reported_savings_are_those_counted_by_guards_gateway_and_budgets(tmp_path: Path) -> None:
    """A successful repeat, an answer from a fallback, a call over budget, and two calls refused by an open breaker."""

    async def main() -> None:
        async with FakeAnthropic() as fake, FakeAnthropic() as other:
            more: dict[str, Any] = {"retry": RetryOptions(attempts_max=2, base_s=0.001)}
            koo = platform(
                tmp_path,
                claude(fake, **more),
                replace(claude(other), name="spare"),
                replace(claude(other, daily_budget_usd=Decimal("0.0001")), name="poor"),
            )
            async with koo:
                fake.script(error(529, "overloaded_error"))
                await koo.query(Query(service="claude", prompt="Hello"))
                with pytest.raises(ExternalServiceError):
                    await koo.query(Query(service="poor", prompt="Hello"))
                koo.override_service("claude", Override.FORCED_OPEN)
                await koo.query(Query(service="claude", prompt="Hello", fallback=("spare",)))
                with pytest.raises(ExternalServiceError):
                    await koo.query(Query(service="claude", prompt="Hello"))
                koo.parts.history.take(koo.parts.counted(koo.parts.what_holds()[1]))
                saved = await koo.history.saved()
                assert saved["components"]["ai:claude"] == {
                    "refused": 2,
                    "repeated": 1,
                    "fallen_back": 1,
                    "over_budget": 0,
                    "not_spent": "0",
                }
                poor = saved["components"]["ai:poor"]
                assert poor["over_budget"] == 1 and Decimal(poor["not_spent"]) > Decimal("0.001")

    asyncio.run(main())
