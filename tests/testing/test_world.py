"""`World`: a platform surrounded by fakes, as code under test uses it, with any event loop and with none."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from sqlalchemy import text

import koo
from koo.deadlines import ends_at
from koo.errors import (
    AllServicesFailed,
    AuthenticationFailed,
    CommitOutcomeUnknown,
    DatabaseUnavailable,
    ExternalServiceError,
    StreamTruncated,
)
from koo.events import CircuitClosed, CircuitOpened
from koo.options import BreakerOptions, DatabaseOptions, LimitOptions, PlatformOptions, ServiceOptions
from koo.platform import Platform
from koo.testing import World
from koo.testing.postgres import PostgresServer
from koo.testing.providers import FakeMisused, Gate, answer
from koo.testing.skipping import SkippingClock

CLAUDE = ServiceOptions(name="claude", kind="anthropic", model="claude-sonnet-5-5", limits=LimitOptions())
LOCAL = ServiceOptions(name="local", kind="local")
LAB = ServiceOptions(name="lab", kind="openai_compatible", model="qwen3:8b", declared=True)
OPTIONS = PlatformOptions(services=(CLAUDE, LOCAL))
REAL = replace(CLAUDE, api_key="a-real-key", base_url="https://api.anthropic.com")


def run(test: Callable[[World], Awaitable[None]], options: PlatformOptions = OPTIONS, **about: Any) -> World:
    """Run a test in a separate world, which replaces no platform in use."""

    async def main() -> World:
        async with World(options, instead_of=Platform(options), **about) as world:
            await test(world)
        return world

    return asyncio.run(main())


async def fails(work: Awaitable[object], kind: type[Exception] = ExternalServiceError) -> None:
    with pytest.raises(kind):
        await work


# ── an outage ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_outage_opens_the_circuit_and_successful_calls_close_it_again() -> None:
    async def test(world: World) -> None:
        world.claude.fails(529)
        assert (await world.ask("claude", fallback=("local",))).service == "local"
        assert world.claude.attempts == 4 and world.claude.spent_usd == 0
        await fails(world.ask("claude"))
        assert world.claude.state == "circuit_open"
        opened = [one.source for one in world.events if isinstance(one, CircuitOpened)]
        assert opened == ["claude/claude-sonnet-5-5"]
        await world.tick()
        assert "ai:claude" in [one["component"] for one in world.alerts]
        world.claude.answers("Boots.")
        await fails(world.ask("claude"))
        world.clock.advance(minutes=3)
        for _ in range(5):
            assert (await world.ask("claude")).text == "Boots."
        assert world.claude.state == "healthy" and any(isinstance(one, CircuitClosed) for one in world.events)
        assert world.settled()

    run(test)


def test_repeats_have_no_pauses() -> None:
    """With the pauses of the options, four attempts would take minutes."""

    async def test(world: World) -> None:
        world.claude.fails(500, times=3)
        assert (await world.ask("claude", timeout_s=3600)).attempts == 4

    slow = replace(CLAUDE.retry, base_s=600.0, cap_s=600.0)
    run(test, PlatformOptions(services=(replace(CLAUDE, retry=slow),)))


def test_koo_books_what_the_fake_bills() -> None:
    async def test(world: World) -> None:
        world.claude.answers("Boots.", input_tokens=1000, output_tokens=50)
        got = await world.ask("claude", "Suggest shoes.", system="Be brief.")
        # USD 2 and 10 per million tokens.
        assert got.cost_usd == world.claude.billed_usd == world.claude.spent_usd == Decimal("0.0025")
        assert world.claude.requests[-1].prompt == "Be brief.Suggest shoes."
        assert world.spent_usd == Decimal("0.0025") and world.claude.held_usd == 0

    run(test)


@pytest.mark.parametrize("service", ["claude", "openai", "gemini", "perplexity", "local"])
def test_each_built_in_service_has_a_fake_that_bills_what_koo_books(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No key, model file or setting is needed on this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KOO_HOME", str(tmp_path))

    async def main() -> None:
        async with World(instead_of=Platform(OPTIONS), settings={}) as world:
            faked = world[service]
            got = await world.ask(service, max_tokens=100)
            assert got.text == "Paris." and faked.attempts == 1 and faked.spent_usd == faked.billed_usd
            assert (faked.spent_usd > 0) is (service != "local")
            faked.streams(["Par", "is"], cut_after=1, times=1)
            with pytest.raises(StreamTruncated):
                async for _ in world.stream(service, max_tokens=100):
                    pass
            assert world.settled()

    asyncio.run(main())


def test_settings_of_the_test_take_precedence_over_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KOO_HOME", str(tmp_path))
    monkeypatch.setenv("AI_DEFAULT_DAILY_BUDGET", "7")
    with World(instead_of=Platform(OPTIONS), settings={}) as world:
        assert world.claude.health["rate_limits"]["daily_budget"]["limit"] == "7"
    with World(instead_of=Platform(OPTIONS), settings={"AI_DEFAULT_DAILY_BUDGET": "8"}) as world:
        assert world.claude.health["rate_limits"]["daily_budget"]["limit"] == "8"


def test_a_world_uses_nothing_of_a_real_account() -> None:
    """Keys, addresses, proxies, the state store and the database all belong to the test."""
    from koo.network_options import NetworkOptions

    given = PlatformOptions(
        services=(REAL,),
        network=NetworkOptions(all_proxy="http://proxy.example:3128"),
        state_url="postgresql://prod/state",
        database=DatabaseOptions(url="postgresql://prod/shop"),
    )

    async def test(world: World) -> None:
        options = world.platform.options
        said = repr(options) + options.state_url + options.database.url
        assert "a-real-key" not in said and "anthropic.com" not in said and "prod" not in said
        assert options.services[0].api_key == "test-key" and options.network == NetworkOptions()
        assert options.services[0].base_url == world.claude.fake.base_url
        assert (await world.ask("claude")).text == "Paris."

    world = run(test, given)
    assert not world.home.exists()


def test_a_disabled_service_stays_off_and_an_own_server_is_free() -> None:
    off = replace(CLAUDE, disabled_by="AI_SERVICES__CLAUDE__ENABLED=false")

    async def test(world: World) -> None:
        assert list(world.services) == ["lab"] and world.lab.spent_usd == 0
        assert (await world.ask("lab")).cost_usd == 0
        with pytest.raises(AttributeError, match=r"no service 'claude'; it has lab"):
            _ = world.claude
        await fails(world.ask("claude"))

    run(test, PlatformOptions(services=(off, LAB)))


def test_wrong_arguments_and_names_are_explained() -> None:
    async def test(world: World) -> None:
        world.platform.register_service("parcels")
        with pytest.raises(
            AttributeError, match="'parcels' is an operation of your own, which has no server"
        ):
            _ = world.parcels
        with pytest.raises(TypeError, match="seconds since 1970, not '2026-01-01'"):
            world.clock.set_wall("2026-01-01")  # type: ignore[arg-type]

    run(test)
    with pytest.raises(TypeError, match="options is 'x'; expected PlatformOptions"):
        World("x")  # type: ignore[arg-type]


def test_the_fake_accepts_the_services_own_model() -> None:
    async def test(world: World) -> None:
        assert (await world.ask("claude")).text == "Paris."

    own = replace(CLAUDE, model="sonnet-of-ours", input_price=Decimal(1), output_price=Decimal(1))
    run(test, PlatformOptions(services=(own,)))


# ── time ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_skip_ends_a_hanging_call_at_its_deadline() -> None:
    async def test(world: World) -> None:
        gate = Gate()
        world.claude.waits_for(gate, times=1)
        asked = asyncio.create_task(world.ask("claude", timeout_s=600))
        await gate.arrived()
        assert not world.settled() and "running permit" in repr(world.settled())
        world.clock.advance(minutes=10)
        await fails(asked, TimeoutError)
        assert world.settled()
        gate.open()

    run(test)


def test_the_log_does_not_announce_a_fallback_for_which_no_time_is_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(world: World) -> None:
        world.claude.hangs()
        asked = asyncio.create_task(world.ask("claude", fallback=["local"]))
        await koo.testing.until(lambda: world.claude.attempts == 1)
        world.clock.advance(minutes=10)
        with pytest.raises(AllServicesFailed, match="could answer in time; local was not called"):
            await asked
        assert world.local.attempts == 0

    run(test)
    (line,) = [one for one in caplog.messages if one.startswith("claude: query failed (timeout)")]
    assert "called next" not in line


def test_a_skip_ends_a_pause_that_the_provider_requested() -> None:
    async def test(world: World) -> None:
        world.claude.fails(429, retry_after_s=1800, times=1)
        await fails(world.ask("claude", on_limit="refuse"))
        assert world.claude.state == "rate_limited"
        world.clock.advance(hours=1)
        assert world.claude.state == "healthy"
        assert (await world.ask("claude", on_limit="refuse")).text == "Paris."

    run(test)


def test_a_skip_over_midnight_renews_the_daily_budget() -> None:
    async def test(world: World) -> None:
        world.claude.answers("Boots.", input_tokens=100, output_tokens=90)
        await world.ask("claude", max_tokens=100)
        await fails(world.ask("claude", max_tokens=100))
        assert world.claude.attempts == 1
        world.clock.advance(days=1)
        assert world.claude.spent_usd == 0
        assert (await world.ask("claude", max_tokens=100)).text == "Boots."

    small = replace(CLAUDE, daily_budget_usd=Decimal("0.0025"), budget_is_explicit=True)
    run(test, PlatformOptions(services=(small,)))


def test_skipped_time_does_not_count_as_a_blocked_loop() -> None:
    async def test(world: World) -> None:
        await world.tick()
        world.clock.advance(minutes=3)
        await world.tick()
        assert world.alerts == []

    run(test)


def test_a_skip_of_a_minute_frees_a_limit_per_minute() -> None:
    async def test(world: World) -> None:
        await world.ask("claude")
        await fails(world.ask("claude", on_limit="refuse"))
        world.clock.advance(minutes=2)
        await world.ask("claude", on_limit="refuse")

    run(test, PlatformOptions(services=(replace(CLAUDE, limits=LimitOptions(per_minute=1)),)))


def test_two_worlds_on_one_loop_share_a_clock() -> None:
    """An application may have two platforms: each has its own fakes, breakers and budgets."""

    async def main() -> None:
        async with (
            World(OPTIONS, instead_of=Platform(OPTIONS)) as one,
            World(OPTIONS, instead_of=Platform(OPTIONS), clock=one.clock) as other,
        ):
            one.claude.fails(529)
            for _ in range(2):
                await fails(one.ask("claude"))
            assert (await other.ask("claude")).text == "Paris."
            assert (one.claude.state, other.claude.state) == ("circuit_open", "healthy")
            other.claude.fails(429, retry_after_s=600, times=1)
            await fails(other.ask("claude", on_limit="refuse"))
            one.claude.answers()
            one.clock.advance(minutes=11)
            assert (await one.ask("claude")).text == (await other.ask("claude")).text == "Paris."

    asyncio.run(main())


def test_after_a_world_the_loop_has_its_own_time_again() -> None:
    async def main() -> None:
        for _ in range(2):
            async with World(OPTIONS, instead_of=Platform(OPTIONS)) as world:
                world.clock.advance(days=3)
                await world.ask("claude")
            async with World(OPTIONS, instead_of=Platform(OPTIONS), clock=SkippingClock()) as world:
                assert (await world.ask("claude")).text == "Paris."
        assert "time" not in vars(asyncio.get_running_loop())

    asyncio.run(main())


# ── without a loop, and with others' clients ──────────────────────────────────────────────────────────────────────


def test_a_test_without_a_loop_can_use_a_world() -> None:
    with World(OPTIONS, instead_of=Platform(OPTIONS)) as world:
        world.run(world.open())
        world.claude.fails(529)
        for _ in range(2):
            with pytest.raises(ExternalServiceError):
                world.run(world.ask("claude"))
        assert world.claude.state == "circuit_open"
        world.claude.answers("Boots.")
        world.clock.advance(minutes=3)
        assert world.run(world.ask("claude")).text == "Boots."
        assert "".join(one.text for one in koo.run(world.stream("claude"))) == "Boots."
        assert world.settled()


def test_a_skip_on_the_background_loop_does_not_move_later_deadlines() -> None:
    async def left_s() -> float:
        return ends_at.get() - asyncio.get_running_loop().time()

    with World(OPTIONS, instead_of=Platform(OPTIONS)) as world:
        assert world.run(world.ask("claude")).text == "Paris."
        world.clock.advance(hours=2)
        with koo.deadline(50):
            assert 0 < koo.run(left_s()) <= 50
    with koo.deadline(50):
        assert 0 < koo.run(left_s()) <= 50
    with koo.deadline(0.05), pytest.raises(TimeoutError):
        koo.run(asyncio.sleep(60))
    with pytest.raises(TimeoutError):
        koo.run(asyncio.sleep(60), timeout_s=0.05)


def test_a_platform_opened_on_a_loop_that_is_now_idle_is_closed_there() -> None:
    """Fixtures and tests of pytest-asyncio and AnyIO run in this way."""
    with asyncio.Runner() as runner:
        with World(OPTIONS, instead_of=Platform(OPTIONS)) as world:
            assert runner.run(world.ask("claude")).text == "Paris."
            world.clock.advance(hours=1)
            assert runner.run(world.ask("claude")).text == "Paris."
        assert runner.run(_tasks()) == 1
        with World(OPTIONS, instead_of=Platform(OPTIONS)) as world:
            assert runner.run(world.ask("claude")).text == "Paris."


async def _tasks() -> int:
    return len(asyncio.all_tasks())


def test_inside_a_loop_a_world_must_be_entered_with_async_with() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="async with World"), World(OPTIONS):
            pass

    asyncio.run(main())


def test_vendors_sdks_talk_to_a_worlds_fakes_under_its_guards() -> None:
    own = ServiceOptions(name="openai", kind="openai", model="gpt-6.1-terra")

    async def test(world: World) -> None:
        question: Any = [{"role": "user", "content": "Hi"}]
        async with (
            anthropic.AsyncAnthropic(
                base_url=world.claude.fake.base_url, api_key="test-key", max_retries=0
            ) as one,
            openai.AsyncOpenAI(
                base_url=world.openai.fake.base_url, api_key="test-key", max_retries=0
            ) as other,
        ):
            world.claude.fails(529, times=1)
            create = one.messages.create
            said: Any = await world.platform.execute(
                "claude", create, model=CLAUDE.model, max_tokens=9, messages=question
            )
            assert said.content[0].text == "Paris." and world.claude.attempts == 2
            world.openai.fails(401)
            await fails(
                world.platform.execute(
                    "openai", other.responses.create, model="gpt-6.1-terra", input="Hi", max_output_tokens=20
                ),
                AuthenticationFailed,
            )

    run(test, PlatformOptions(services=(CLAUDE, own)))


# ── strict ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_unused_steps_fail_the_test() -> None:
    async def test(world: World) -> None:
        world.claude.fails(529, times=2)
        world.local.script(answer("never asked"))

    said = r"koo.claude: 2 step\(s\) .* Failure\(status=529, .*koo.local: 1 step\(s\) .* Answer\(text='never asked'\)"
    with pytest.raises(FakeMisused, match=said):
        run(test)
    run(test, strict=False)


def test_a_failing_test_keeps_its_error_and_gets_the_complaints_as_notes() -> None:
    async def test(world: World) -> None:
        world.claude.fails(529, times=2)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        run(test)
    assert "koo.claude: 2 step(s)" in caught.value.__notes__[0]


def test_a_request_that_a_fake_refuses_fails_the_test() -> None:
    async def test(world: World) -> None:
        with pytest.raises(ExternalServiceError):
            await world.ask("claude", model="claud-typo")

    with pytest.raises(FakeMisused, match=r"koo\.claude: it refused POST /v1/messages: 404"):
        run(
            test,
            PlatformOptions(services=(replace(CLAUDE, input_price=Decimal(1), output_price=Decimal(1)),)),
        )


def test_a_world_that_cannot_start_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    import threading

    caplog.set_level(logging.WARNING)
    before = threading.active_count()
    with pytest.raises(koo.ConfigurationError), World(OPTIONS, database_url="mysql://nowhere:1/x") as world:
        world.platform.assemble()
    assert threading.active_count() == before and not caplog.records


# ── a real database ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_database_behind_the_worlds_proxy_fails_and_recovers(postgres18: PostgresServer) -> None:
    async def test(world: World) -> None:
        database = world.platform.database

        async def one() -> int:
            async with database.session_scope() as session:
                return int((await session.execute(text("SELECT 1"))).scalar_one())

        assert await one() == 1
        world.proxy.refuses()
        world.proxy.reset_all()
        for _ in range(5):
            await fails(one(), DatabaseUnavailable)
        assert database.circuit_breaker_state.value == "circuit_open"
        world.proxy.accepts()
        world.clock.advance(minutes=2)
        assert await one() == 1
        # While recovery is tested, koo's own probe runs each second, and the next COMMIT could be the probe's.
        while database.circuit_breaker_state.value != "healthy":
            assert await one() == 1
        await database.health_check()
        world.proxy.cut_commit("after")
        with pytest.raises(CommitOutcomeUnknown):
            async with database.session_scope() as session:
                await session.execute(text("CREATE TABLE orders (n int)"))
        assert world.settled()

    name = postgres18.create_database()
    once = DatabaseOptions(breaker=BreakerOptions(failure_threshold=5))
    run(test, PlatformOptions(database=once), database_url=postgres18.url(None, name))
    postgres18.drop_database(name)


def test_each_worlds_database_is_a_separate_file() -> None:
    async def test(world: World) -> None:
        async with world.platform.database.session_scope() as session:
            await session.execute(text("CREATE TABLE t (n int)"))
        assert world.home in Path(str(world.platform.database.url.database)).parents

    run(test)
    run(test)


async def pieces(stream: AsyncIterator[Any]) -> list[str]:
    return [one.text async for one in stream]


def test_a_response_can_be_streamed() -> None:
    async def test(world: World) -> None:
        world.claude.streams(["Warm ", "boots."])
        assert "".join(await pieces(world.stream("claude"))) == "Warm boots."

    run(test)
