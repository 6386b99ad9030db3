"""The platform: it opens at first use, survives loops that end, keeps its counts, and informs other processes."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from koo.ai.types import Query
from koo.errors import (
    BudgetExceeded,
    CircuitOpen,
    ConfigurationError,
    ExternalServiceError,
    Kind,
    ServiceFailed,
    StreamTruncated,
    UnknownService,
)
from koo.events import CircuitClosed, Event, KeyUnblocked
from koo.options import DatabaseOptions, LimitOptions, PlatformOptions, RetryOptions, ServiceOptions
from koo.platform import Platform
from koo.policies.breaker import Override
from koo.testing.polling import until
from koo.testing.providers import FakeAnthropic, FakeCompatible, error, hang, stream
from koo.testing.skipping import SkippingClock

MODEL = "claude-sonnet-5-5"
QUESTION = Query(service="claude", prompt="What is the capital of France?", max_tokens=100)


def options(home: Path, server: FakeAnthropic | None = None, **service: Any) -> PlatformOptions:
    """One service, SQLite for everything, in the test's own folder."""
    base_url = server.base_url if server is not None else "http://127.0.0.1:9"
    claude = ServiceOptions(
        name="claude", kind="anthropic", model=MODEL, api_key="test-key", base_url=base_url, **service
    )
    return PlatformOptions(
        home=home,
        state_url=f"sqlite:///{home / 'state.db'}",
        database=DatabaseOptions(url=f"sqlite:///{home / 'user.db'}"),
        services=(claude,),
    )


def run(test: Callable[[FakeAnthropic], Awaitable[None]]) -> None:
    async def main() -> None:
        async with FakeAnthropic() as server:
            await test(server)

    asyncio.run(main())


def test_two_asyncio_runs_in_one_process_work_without_warnings_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is opened or closed by hand; the loop's end closes everything."""
    with FakeAnthropic() as server:
        platform = Platform(options(tmp_path, server))

        async def main() -> None:
            assert (await platform.query(QUESTION)).text
            async with platform.database.session_scope() as session:
                assert (await session.connection()).closed is False

        caplog.set_level(logging.WARNING)
        asyncio.run(main())
        asyncio.run(main())
        assert platform.service_health("claude")["metrics"]["total_requests"] == 2
        assert caplog.records == []


def test_a_query_on_a_second_loop_crosses_to_the_first_while_that_runs(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic) -> None:
        async with Platform(options(tmp_path, server)) as platform:
            said: list[str] = []

            def other() -> None:
                said.append(asyncio.run(platform.query(QUESTION)).text)

            thread = threading.Thread(target=other)
            thread.start()
            await asyncio.to_thread(thread.join)
            assert said and said[0]

    run(test)


def test_money_and_the_days_requests_survive_a_restart(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic) -> None:
        async with Platform(options(tmp_path, server)) as platform:
            for _ in range(3):
                await platform.query(QUESTION)
        async with Platform(options(tmp_path, server)) as platform:
            limits = platform.service_health("claude")["rate_limits"]
            assert Decimal(limits["daily_budget"]["spent"]) == server.billed_usd > 0
            assert limits["requests_per_day"]["used"] == 3 and limits["requests_per_minute"]["used"] == 3
            assert (limits["scope"], limits["notice"]) == ("shared", "")

    run(test)


KILLED = """
import asyncio, sys
from pathlib import Path
from tests.platform.test_platform import QUESTION, options
from koo.platform import Platform
from koo.policies.breaker import Override
from koo.options import PlatformOptions
import dataclasses

async def main(home, url):
    made = options(Path(home))
    claude = dataclasses.replace(made.services[0], base_url=url)
    platform = Platform(dataclasses.replace(made, services=(claude,)))
    await platform.query(QUESTION)
    print("asking", flush=True)
    await platform.query(QUESTION)

asyncio.run(main(*sys.argv[1:]))
"""


def test_a_killed_processs_hold_stays_and_the_budget_is_still_enforced(tmp_path: Path) -> None:
    from koo.testing.providers import answer, hang

    with FakeAnthropic() as server:
        server.script(answer(), hang())
        arguments = [sys.executable, "-c", KILLED, str(tmp_path), server.base_url]
        root = Path(__file__).parents[2]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=root) as process:
            assert process.stdout is not None and process.stdout.readline() == b"asking\n"
            asyncio.run(until(lambda: len(server.queries) == 2))
            process.kill()

        async def after() -> None:
            async with Platform(options(tmp_path, server)) as platform:
                budget = platform.service_health("claude")["rate_limits"]["daily_budget"]
                assert Decimal(budget["spent"]) == server.billed_usd
                assert Decimal(budget["reserved"]) + Decimal(budget["idle"]) > 0, "it may yet report"
            async with Platform(options(tmp_path, server), clock=ahead(11)) as platform:
                budget = platform.service_health("claude")["rate_limits"]["daily_budget"]
                left = Decimal(budget["limit"] or 0) - Decimal(budget["spent"]) - Decimal(budget["unsettled"])
                assert Decimal(budget["unsettled"]) > 0, "what may have been billed stays booked"
                assert Decimal(budget["remaining"] or 0) == left

        asyncio.run(after())


def test_a_refused_service_is_reset_in_every_process_on_the_same_store(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic) -> None:
        server.script(error(401, "authentication_error"))
        async with Platform(options(tmp_path, server)) as one, Platform(options(tmp_path, server)) as two:
            with pytest.raises(ExternalServiceError):
                await one.query(QUESTION)
            assert one.service_health("claude")["state"] == "circuit_open"
            await until(lambda: two.service_health("claude")["state"] == "circuit_open")
            assert two.reset_service("claude")
            await until(lambda: one.service_health("claude")["state"] == "healthy")
            assert (await one.query(QUESTION)).text

    run(test)


def test_a_reset_of_the_database_reaches_every_process(tmp_path: Path) -> None:
    """This applies to a reset through `db_manager`, which is the database itself, and to the platform's method, even
    from another thread.
    """

    async def test(server: FakeAnthropic) -> None:
        async with Platform(options(tmp_path, server)) as one, Platform(options(tmp_path, server)) as two:
            await two.parts.sharing.catch_up()
            for reset in (one.database.reset_circuit_breaker, one.reset_database):
                for from_thread in (False, True):
                    before = two.database.guard.resets
                    assert await asyncio.to_thread(reset) if from_thread else reset()
                    await until(lambda before=before: two.database.guard.resets == before + 1)  # type: ignore[misc]

    run(test)


def test_a_reset_is_published_once_and_by_no_process_that_starts_later(tmp_path: Path) -> None:
    """A process whose breaker was closed did nothing, and one that starts later would publish the act as new."""

    async def test(server: FakeAnthropic) -> None:
        closed: list[Event] = []
        one, two, three = (Platform(options(tmp_path, server)) for _ in range(3))
        for platform in (one, two, three):
            platform.events.listen(
                lambda event: closed.append(event) if isinstance(event, CircuitClosed) else None
            )
        async with one, two:
            resets = two.services["claude"].default_guard.resets
            one.reset_service("claude", by="ada")
            await until(lambda: two.services["claude"].default_guard.resets == resets + 1)
            async with three:
                assert len(closed) == 1
                two.services["claude"].default_guard.breaker.set_override(Override.DISABLED)
                one.reset_service("claude", by="ada")
                await until(lambda: len(closed) == 3)

    run(test)


def test_a_reset_of_a_services_limits_reaches_every_process(tmp_path: Path) -> None:
    """The day's count in the state store is corrected once, not by each process."""

    async def test(server: FakeAnthropic) -> None:
        def used(platform: Platform) -> list[int]:
            limits = platform.service_health("claude")["rate_limits"]
            counts = (limits["requests_per_minute"], limits["requests_per_hour"], limits["requests_per_day"])
            return [count["used"] for count in counts]

        async def used_at_start() -> list[int]:
            async with Platform(options(tmp_path, server)) as later:
                await later.parts.sharing.catch_up()  # a reset from before it started does not apply
                return used(later)

        async with Platform(options(tmp_path, server)) as one:
            await one.parts.sharing.catch_up()
            for _ in range(2):
                await one.query(QUESTION)
            async with Platform(options(tmp_path, server)) as two:
                assert used(one) == [2, 2, 2]
                await until(lambda: used(two) == [2, 2, 2])  # reported with the next beat
                assert two.reset_limits("claude") and used(two) == [0, 0, 0]
                await until(lambda: used(one) == [0, 0, 0])
                await one.query(QUESTION)
        # Units held for the next calls counted as used until they were returned.
        assert await used_at_start() == [1, 1, 1]

    run(test)


def test_a_reset_does_not_create_the_database_in_a_process_that_does_not_use_it(tmp_path: Path) -> None:
    """If the database cannot be created, later resets are still applied."""

    async def test(server: FakeAnthropic) -> None:
        unusable = replace(options(tmp_path, server), database=DatabaseOptions(url="mysql://nowhere/app"))
        async with Platform(options(tmp_path, server)) as one, Platform(unusable) as two:
            await two.parts.sharing.catch_up()
            assert one.reset_database()
            two.services["claude"].set_override(Override.FORCED_OPEN)
            assert one.reset_service("claude")
            await until(lambda: two.service_health("claude")["state"] == "healthy")
            assert not two.parts.observes("database")

    run(test)


def test_a_signal_that_cannot_be_applied_is_logged_and_later_ones_are_applied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(server: FakeAnthropic) -> None:
        async with Platform(options(tmp_path, server)) as one, Platform(options(tmp_path, server)) as two:
            await two.parts.sharing.catch_up()
            monkeypatch.setattr(two.services["claude"], "forget_used", lambda **_: 1 / 0)
            two.services["claude"].set_override(Override.FORCED_OPEN)
            assert one.reset_limits("claude") and one.reset_service("claude")
            await until(lambda: two.service_health("claude")["state"] == "healthy")
        (record,) = [one for one in caplog.records if one.levelno == logging.ERROR]
        assert "the limits of claude from another process could not be applied" in record.message

    run(test)


def test_a_key_unblocked_in_another_process_for_one_model_stays_blocked_for_the_others(
    tmp_path: Path,
) -> None:
    async def test(server: FakeAnthropic) -> None:
        async with Platform(options(tmp_path, server)) as one, Platform(options(tmp_path, server)) as two:
            await two.parts.sharing.catch_up()
            gates = two.services["claude"].gates
            for model in (None, "claude-a", "claude-b"):
                gates.block_key(model, "the provider refused the key", gates.clock.monotonic())
            one.events.publish(KeyUnblocked("claude", "claude-a"))
            await until(lambda: list(gates.key_blocks.by_model) == [None, "claude-b"])
            one.events.publish(KeyUnblocked("claude", None))
            await until(lambda: list(gates.key_blocks.by_model) == ["claude-b"])

    run(test)


def test_a_refused_key_does_not_block_another_key(tmp_path: Path) -> None:
    """Otherwise a script that runs for a second would be refused forever after one wrong key."""

    async def test(server: FakeAnthropic) -> None:
        server.strict = False
        wrong = replace(options(tmp_path, server).services[0], api_key="mistyped")
        mistyped = replace(options(tmp_path, server), services=(wrong,))
        async with Platform(mistyped) as first, Platform(options(tmp_path, server)) as beside:
            with pytest.raises(ExternalServiceError):
                await first.query(QUESTION)
            async with Platform(mistyped) as again:
                await until(lambda: again.service_health("claude")["state"] == "circuit_open")
            assert (await beside.query(QUESTION)).text
        async with Platform(options(tmp_path, server)) as later:
            await later.parts.sharing.catch_up()
            assert (await later.query(QUESTION)).text

    run(test)


def test_a_starting_process_tries_a_key_that_was_refused_a_while_ago(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic) -> None:
        server.script(error(401, "authentication_error"))
        async with Platform(options(tmp_path, server)) as first:
            with pytest.raises(ExternalServiceError):
                await first.query(QUESTION)
        soon, later = (Platform(options(tmp_path, server), clock=ahead(ahead_s)) for ahead_s in (30, 61))
        async with soon:
            await until(lambda: soon.service_health("claude")["state"] == "circuit_open")
        async with later:
            await later.parts.sharing.catch_up()
            assert later.service_health("claude")["state"] == "healthy"

    run(test)


def ahead(by_s: float) -> SkippingClock:
    """A clock whose wall time is some seconds ahead."""
    return SkippingClock(time.time() + by_s)


def test_a_pause_that_was_reset_does_not_return_with_the_next_process(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic) -> None:
        server.script(error(429, "rate_limit_error", headers={"retry-after": "100"}))
        one = replace(QUESTION, on_limit="refuse")
        async with Platform(options(tmp_path, server)) as first:
            with pytest.raises(ExternalServiceError):
                await first.query(one)
            async with Platform(options(tmp_path, server)) as second:
                await until(lambda: second.service_health("claude")["state"] == "rate_limited")
            assert first.reset_service("claude")
        async with Platform(options(tmp_path, server)) as third:
            await third.parts.sharing.catch_up()
            assert (await third.query(one)).text

    run(test)


def test_a_reopened_platform_keeps_what_it_learned_after_a_reset(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic) -> None:
        one = replace(QUESTION, on_limit="refuse")
        async with Platform(options(tmp_path, server)) as other:
            other.reset_service("claude")
        platform = Platform(options(tmp_path, server))
        server.script(error(429, "rate_limit_error", headers={"retry-after": "100"}))
        async with platform:
            with pytest.raises(ExternalServiceError):
                await platform.query(one)
        async with platform:
            await platform.parts.sharing.catch_up()
            assert platform.service_health("claude")["state"] == "rate_limited"

    run(test)


def test_a_reset_from_a_script_without_a_loop_reaches_the_others(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic) -> None:
        server.script(error(401, "authentication_error"))
        async with Platform(options(tmp_path, server)) as one:
            with pytest.raises(ExternalServiceError):
                await one.query(QUESTION)
            script = Platform(options(tmp_path, server))
            assert await asyncio.to_thread(script.reset_service, "claude")
            await until(lambda: one.service_health("claude")["state"] == "healthy")

    run(test)


def test_a_reset_from_another_thread_runs_on_the_loop(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic) -> None:
        async with Platform(options(tmp_path, server)) as platform:
            assert await asyncio.to_thread(platform.reset_service, "claude")
            assert await asyncio.to_thread(platform.reset_service, "nobody") is False

    run(test)


def test_a_reset_keeps_money_limits_and_counts(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic) -> None:
        async with Platform(options(tmp_path, server)) as platform:
            await platform.query(QUESTION)
            before = platform.service_health("claude")
            platform.reset_service("claude")
            after = platform.service_health("claude")
            assert (
                after["rate_limits"]["daily_budget"]["spent"]
                == before["rate_limits"]["daily_budget"]["spent"]
                != "0"
            )
            assert after["rate_limits"]["requests_per_minute"]["used"] == 1
            assert after["metrics"]["total_requests"] == 1

    run(test)


def test_with_an_unwritable_state_store_a_set_budget_refuses_and_the_default_one_does_not(
    tmp_path: Path,
) -> None:
    async def test(server: FakeAnthropic) -> None:
        (tmp_path / "state.db").mkdir()
        async with Platform(options(tmp_path, server)) as platform:
            assert (await platform.query(QUESTION)).text
            budget = platform.service_health("claude")["rate_limits"]["daily_budget"]
            assert budget["scope"] == "this process" and Decimal(budget["spent"]) > 0
        async with Platform(options(tmp_path, server, budget_is_explicit=True)) as platform:
            with pytest.raises(ExternalServiceError) as caught:
                await platform.query(QUESTION)
            assert "budget" in str(caught.value)

    run(test)


def test_status_is_synchronous_and_changes_nothing(tmp_path: Path) -> None:
    platform = Platform(options(tmp_path))
    assert platform.service_health("claude")["state"] == "healthy"
    assert platform.services_health()["overall_health"] == "healthy"
    assert list(tmp_path.iterdir()) == [], "reading the status opens no file"
    with pytest.raises(UnknownService, match="claude"):
        platform.service_health("nobody")


def test_a_call_that_runs_during_closing_ends_is_booked_and_is_not_repeated(tmp_path: Path) -> None:
    """A repeat would open new connections, which nothing closes."""

    async def test(server: FakeAnthropic) -> None:
        server.script(hang(billed=True), stream(["Pa"], stall_after=1))
        async with Platform(options(tmp_path, server)) as platform:
            query = asyncio.ensure_future(platform.query(QUESTION))
            await until(lambda: len(server.queries) == 1)
            chunks = platform.stream(QUESTION)
            await anext(chunks)
            reading = asyncio.ensure_future(anext(chunks))
            await asyncio.sleep(0)
            await platform.close()
            async with asyncio.timeout(5):
                with pytest.raises(ServiceFailed) as failed:
                    await query
                with pytest.raises(StreamTruncated) as truncated:
                    await reading
            assert failed.value.kind is truncated.value.kind is Kind.DRAINING
            assert truncated.value.partial_text == "Pa"
            assert len(server.queries) == 2
            assert "closed" in repr(platform.parts.http)
            guard = platform.services["claude"].default_guard
            assert not guard.breaker.running and not guard.breaker.consecutive
        async with Platform(options(tmp_path, server)) as platform:
            await platform.parts.store.ledger.refresh()
            money = platform.parts.budget(platform.services["claude"])
            assert money.held_usd == money.unsettled_usd == 0 and money.spent_usd >= server.billed_usd > 0

    run(test)


def test_a_free_service_without_a_budget_is_not_limited(tmp_path: Path) -> None:
    async def main() -> None:
        async with FakeCompatible(key=None) as server:
            own = ServiceOptions(
                name="own",
                kind="openai_compatible",
                model="m",
                base_url=server.base_url,
                declared=True,
                daily_budget_usd=Decimal(0),
                budget_is_explicit=True,
            )
            async with Platform(replace(options(tmp_path), services=(own,))) as platform:
                assert (await platform.query(replace(QUESTION, service="own"))).cost_usd == 0
                await platform.parts.store.ledger.refresh()
                assert platform.service_health("own")["state"] == "healthy"

    asyncio.run(main())


def test_an_operators_override_applies_to_models_first_called_later(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic) -> None:
        async with Platform(options(tmp_path, server)) as platform:
            platform.override_service("claude", Override.FORCED_OPEN)
            with pytest.raises(CircuitOpen):
                await platform.query(replace(QUESTION, model="claude-opus-5-5"))
            assert not server.queries
            platform.reset_service("claude")
            await platform.query(replace(QUESTION, model="claude-haiku-5-5"))
            assert len(server.queries) == 1

    run(test)


def test_a_check_is_unbilled_and_unblocks_a_key_that_works_again(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic) -> None:
        server.script(error(401, "authentication_error"))
        async with Platform(options(tmp_path, server)) as platform:
            with pytest.raises(ExternalServiceError):
                await platform.query(QUESTION)
            assert platform.service_health("claude")["state"] == "circuit_open"
            result = await platform.check_services("claude")
            assert result["claude"]["healthy"] is True
            assert platform.service_health("claude")["state"] == "healthy" and server.billed_usd == 0

    run(test)


# ── operations of the user's own ──────────────────────────────────────────────────────────────────────────────────────


class Flaky:
    """Fails a given number of times, then answers."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.calls = 0

    async def __call__(self, value: int = 1, *, factor: int = 1) -> int:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return value * factor


def test_an_own_operation_has_the_same_guard(tmp_path: Path) -> None:
    async def main() -> None:
        async with Platform(options(tmp_path)) as platform:
            platform.register_service("stock", idempotent=True, retry_base_delay=0.001, requests_per_minute=3)
            operation = Flaky(OSError("reset"), TimeoutError())
            assert await platform.execute("stock", operation, 6, factor=7) == 42 and operation.calls == 3
            with pytest.raises(ExternalServiceError, match="3 requests a minute"):
                await platform.execute("stock", operation)
            view = platform.service_health("stock")
            assert view["metrics"]["total_requests"] == 3 and view["metrics"]["refused_requests"] == 1

    asyncio.run(main())


def test_an_operation_not_declared_idempotent_is_never_repeated(tmp_path: Path) -> None:
    async def main() -> None:
        async with Platform(options(tmp_path)) as platform:
            platform.register_service("payment")
            operation = Flaky(OSError("reset"))
            with pytest.raises(OSError, match="reset"):
                await platform.execute("payment", operation)
            assert operation.calls == 1

    asyncio.run(main())


def test_an_own_operations_budget_is_enforced(tmp_path: Path) -> None:
    async def main() -> None:
        async with Platform(options(tmp_path)) as platform:
            platform.register_service(
                "search", daily_budget="0.10", max_cost_usd="0.04", cost_usd=lambda result: Decimal("0.03")
            )
            for _ in range(3):
                await platform.execute("search", Flaky())
            with pytest.raises(BudgetExceeded):
                await platform.execute("search", Flaky())
            assert platform.service_health("search")["rate_limits"]["daily_budget"]["spent"] == "0.09"

    asyncio.run(main())


def test_an_unknown_cost_is_booked_at_its_upper_bound(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with Platform(options(tmp_path)) as platform:
            platform.register_service(
                "search", daily_budget="1", max_cost_usd="0.04", cost_usd=lambda result: result["no such key"]
            )
            assert await platform.execute("search", Flaky()) == 1
            assert platform.service_health("search")["rate_limits"]["daily_budget"]["spent"] == "0.04"
        assert "cost_usd failed" in caplog.text

    asyncio.run(main())


@pytest.mark.parametrize(
    "name", ["", "x" * 65, 5, ["list"], "claude", "two\nlines", "database", "all", "a/b", "a b", "über", ".."]
)
def test_an_invalid_service_name_is_refused(tmp_path: Path, name: Any) -> None:
    """The name is used in paths, in alerts, and in the state store."""
    with pytest.raises(ConfigurationError) as caught:
        Platform(options(tmp_path)).register_service(name)
    said = str(caught.value)
    assert "\n" not in said and ("expected " in said or "choose another one" in said)
    if name != "claude":
        with pytest.raises(ConfigurationError):
            PlatformOptions(services=(ServiceOptions(name=name, kind="local"),))


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": 5},
        {"timeout_s": -1},
        {"failure_threshold": 0},
        {"daily_budget": 5},
        {"daily_budget": "much", "max_cost_usd": 1},
        {"max_cost_usd": "1e7"},
        {"requests_per_minute": -1},
        {"max_retries": "3"},
        {"timeout_s": "5"},
        {"timeout_s": None},
        {"idempotent": "no"},
        {"classify": 5},
        {"max_cost_usd": 1, "cost_usd": 5},
        {"cost_usd": lambda result: 1},
    ],
)
def test_invalid_options_are_refused_by_name(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Platform(options(tmp_path)).register_service("x", **wrong)


def test_an_operation_that_cannot_be_awaited_raises_type_error(tmp_path: Path) -> None:
    async def main() -> None:
        async with Platform(options(tmp_path)) as platform:
            platform.register_service("x")
            with pytest.raises(TypeError, match="coroutine"):
                await platform.execute("x", Flaky()())  # type: ignore[call-overload]
            with pytest.raises(TypeError, match="async"):
                await platform.execute("x", lambda: 5)
            with pytest.raises(UnknownService, match="claude"):
                await platform.execute("y", Flaky())

    asyncio.run(main())


def test_a_guarded_vendor_sdk_uses_the_services_fault_table(tmp_path: Path) -> None:
    import anthropic

    async def test(server: FakeAnthropic) -> None:
        async with (
            Platform(
                options(tmp_path, server, retry=RetryOptions(base_s=0.001), limits=LimitOptions())
            ) as platform,
            anthropic.AsyncAnthropic(base_url=server.base_url, api_key="test-key", max_retries=0) as client,
        ):
            server.script(error(529, "overloaded_error"))
            question: Any = [{"role": "user", "content": "Hello"}]
            message = await platform.execute(
                "claude", client.messages.create, model=MODEL, max_tokens=10, messages=question
            )
            assert message.content and len(server.queries) == 2
            server.script(error(401, "authentication_error"))
            with pytest.raises(ExternalServiceError) as caught:
                await platform.execute(
                    "claude", client.messages.create, model=MODEL, max_tokens=10, messages=question
                )
            assert isinstance(caught.value.__cause__, anthropic.AuthenticationError)
            assert platform.service_health("claude")["state"] == "circuit_open"

    run(test)
