"""Several platforms on one state store: which are live, which leads, and what only the leader does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from koo.errors import ExternalServiceError
from koo.fleet import beats
from koo.fleet.digests import digests_of
from koo.fleet.places import place_of, place_of_database, place_of_key, presence_of
from koo.fleet.watched import CALLS_TOLD_S, Watched
from koo.options import BreakerOptions, DatabaseOptions, RetryOptions, ServiceOptions
from koo.platform import Platform
from koo.policies.fleet import GuardKey, Lately, Member, Roll, beat_s
from koo.storage.base import StoreUnavailable
from koo.testing.polling import until
from koo.testing.providers import FakeAnthropic, error
from koo.upkeep import CheckServices, KeepTime
from tests.platform.test_platform import QUESTION, options

ONCE = RetryOptions(attempts_max=1)
QUICKLY = BreakerOptions(failure_threshold=1, recovery_s=60.0)


def run(test: Callable[[FakeAnthropic], Awaitable[None]]) -> None:
    async def main() -> None:
        async with FakeAnthropic(strict=False) as server:
            await test(server)

    asyncio.run(main())


async def roll(platform: Platform) -> Roll:
    return await platform.parts.store.roll_call.read()


async def members(platform: Platform) -> list[Member]:
    return (await roll(platform)).members


def test_each_process_is_listed_until_it_closes(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic) -> None:
        labelled = replace(options(tmp_path, server), version_label="blue")
        async with Platform(labelled) as one:
            async with Platform(options(tmp_path, server)) as two:
                found = {member.process: member.label for member in await members(one)}
                assert found == {
                    one.parts.store.process: "blue",
                    two.parts.store.process: "",
                }
                assert two.parts.fleet.heard is not None and two.parts.fleet.heard.processes == 2
            assert [member.label for member in await members(one)] == ["blue"]

    run(test)


def test_a_reopened_platform_counts_as_another_process(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic) -> None:
        platform, names = Platform(options(tmp_path, server)), set()
        for _ in range(2):
            async with platform:
                await until(lambda: platform.parts.fleet.leads)
                names |= {member.process for member in await members(platform)}
        assert len(names) == 2

    run(test)


def test_a_reopened_process_ignores_its_own_earlier_signals(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic) -> None:
        platform = Platform(options(tmp_path, server))
        async with platform:
            platform.reset_service("claude")
        before = platform.services["claude"].default_guard.resets
        async with platform:
            await platform.parts.fleet.beat()
            assert platform.services["claude"].default_guard.resets == before

    run(test)


def test_when_the_leader_closes_another_process_leads_immediately(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic) -> None:
        async with Platform(options(tmp_path, server)) as two:
            await two.parts.fleet.beat()
            await two.close()
        async with Platform(options(tmp_path, server)) as one:
            assert one.parts.fleet.leads
            async with Platform(options(tmp_path, server)) as two:
                assert two.parts.fleet.is_led and not two.parts.fleet.leads
                await one.close()
                await two.parts.fleet.beat()
                assert two.parts.fleet.leads

    run(test)


def test_an_opened_breaker_is_reported_immediately(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards that are in use are listed; guards without calls are not."""

    monkeypatch.setattr(beats, "beat_s", lambda processes: 600.0)

    async def test(server: FakeAnthropic) -> None:
        asked = options(tmp_path, server, retry=ONCE, breaker=QUICKLY)
        async with Platform(asked) as one:
            assert (await roll(one)).guards == []
            server.script(error(500, "api_error"))
            with pytest.raises(ExternalServiceError):
                await one.query(QUESTION)

            key = GuardKey("claude/claude-sonnet-5-5", place_of(asked.services[0]))
            watched = one.parts.fleet._watched[key]
            await until(lambda: watched.told is not None and watched.told.phase == "open")
            guard = (await roll(one)).guards[0]
            assert guard.key == key
            assert (guard.is_down, guard.calls) == (True, 1)

    run(test)


def test_while_the_store_is_unavailable_no_process_leads_and_afterwards_one_does(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic) -> None:
        async with Platform(options(tmp_path, server)) as one:
            fleet, beat = one.parts.fleet, one.parts.store.roll_call.beat

            async def fails(*_: object) -> None:
                raise StoreUnavailable("unreachable")

            one.parts.store.roll_call.beat = fails  # type: ignore[method-assign, assignment]
            await until(lambda: fleet.heard is None)
            assert not fleet.is_led
            one.parts.store.roll_call.beat = beat  # type: ignore[method-assign]
            await until(lambda: fleet.leads and fleet.heard is not None)

    run(test)


def test_the_leader_checks_services_and_the_others_use_its_results(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic) -> None:
        asked = replace(options(tmp_path, server), health_check_interval_s=600.0)
        async with Platform(asked) as one, Platform(asked) as two:
            server.key = "another key"
            await one.check_services("claude")
            await one.parts.fleet.beat()
            await two.parts.fleet.beat()
            other = CheckServices(two.parts)
            await other.step()
            guard = two.services["claude"].default_guard
            assert guard.checks_failed == 1 and guard.check_error is not None
            other._due_at = 0.0
            await other.step()
            assert guard.checks_failed == 1, "it checked for itself"
            server.key = None
            await one.check_services("claude")
            await one.parts.fleet.beat()
            await two.parts.fleet.beat()
            await other.step()
            assert guard.checks_failed == 0

    run(test)


def test_a_process_with_another_key_checks_for_itself_after_two_rounds_without_results(
    tmp_path: Path,
) -> None:
    async def test(server: FakeAnthropic) -> None:
        asked = replace(options(tmp_path, server), health_check_interval_s=600.0)
        other = replace(asked, services=(replace(asked.services[0], api_key="another key"),))
        async with Platform(asked) as one, Platform(other) as two:
            server.key = "test-key"
            await one.check_services("claude")
            await one.parts.fleet.beat()
            await two.parts.fleet.beat()
            checks, guard = CheckServices(two.parts), two.services["claude"].default_guard
            checks._due_at = 0.0
            await checks.step()
            assert guard.checks_failed == 0
            checks._due_at, checks._began_at = 0.0, checks._began_at - 1200
            await checks.step()
            assert guard.checks_failed == 1

    run(test)


def test_only_the_current_leader_sweeps(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic) -> None:
        async with Platform(options(tmp_path, server)) as one, Platform(options(tmp_path, server)) as two:
            swept = []

            def watch(name: str, platform: Platform) -> KeepTime:
                sweep = platform.parts.alerts.sweep

                async def noted(store: object) -> None:
                    await sweep(store)  # type: ignore[arg-type]
                    swept.append(name)

                platform.parts.alerts.sweep = noted  # type: ignore[method-assign]
                return KeepTime(platform.parts)

            tasks = [watch("one", one), watch("two", two)]
            for task in tasks:
                await task._sweep()
            assert swept == ["one"]
            # It was suspended, another process led meanwhile, and it does not know that yet.
            one.parts.fleet.leadership.epoch += 1
            await tasks[0]._sweep()
            assert swept == ["one"]

    run(test)


# ── without a store ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_thousand_processes_query_the_store_a_hundred_times_a_second() -> None:
    assert [beat_s(count) for count in (1, 8, 100, 200, 1000)] == [1.0, 1.0, 1.0, 2.0, 10.0]


def test_calls_of_the_last_minute_are_counted_in_quarters_of_a_minute() -> None:
    lately, grown = Lately(100, 0.0), []
    for second in range(0, 240, 5):
        count = 100 + min(second, 60)
        grown.append(lately.note(count, float(second)))
    assert grown[1] == 5 and max(grown) == 60 and grown[-1] == 0


def test_a_changed_number_of_calls_alone_is_reported_every_ten_seconds(tmp_path: Path) -> None:
    platform = Platform(options(tmp_path))
    guard = platform.services["claude"].default_guard
    watched, key = Watched(guard, 0.0), GuardKey("claude", "")
    assert not watched.is_news(watched.line(key, guard, 0.0), 0.0)
    guard.tally.refused["x"] = 1
    watched.told, watched.told_at = watched.line(key, guard, 0.0), 0.0
    guard.tally.refused["x"] = 7
    now = CALLS_TOLD_S - 0.1
    assert not watched.is_news(watched.line(key, guard, now), now)
    assert watched.is_news(watched.line(key, guard, CALLS_TOLD_S), CALLS_TOLD_S)
    assert watched.is_news(watched.line(key, guard, 90.0), 90.0), "it is no longer called"


def test_a_configuration_difference_shows_the_options_name_but_not_its_value(tmp_path: Path) -> None:
    one = options(tmp_path, timeout_s=30.0)
    key = replace(one.services[0], api_key="sk-another")
    other = replace(one, services=(key,), health_check_interval_s=9.0, home=Path("/"), version_label="green")
    before, after = digests_of(one), digests_of(other)
    assert before.keys() == after.keys()
    differ = {
        (section, name)
        for section in before
        for name in before[section]
        if before[section][name] != after[section][name]
    }
    assert differ == {("ai_services.claude", "api_key"), ("koo", "health_check_interval_s")}
    text = json.dumps(after)
    assert "sk-another" not in text and len(after["ai_services.claude"]["api_key"]) == 4


def service(**changes: object) -> ServiceOptions:
    return replace(ServiceOptions(name="x", kind="openai", api_key="k"), **changes)  # type: ignore[arg-type]


def test_a_guards_place_is_its_server_and_for_a_local_one_the_machine_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = service(base_url="http://127.0.0.1:9/v1")
    far = service(base_url="https://example.com/v1")
    assert len({place_of(one) for one in (service(), here, far, service(kind="local"))}) == 4
    assert place_of(far) == place_of(replace(far, api_key="other", max_tokens=3))
    assert place_of_key(far) != place_of_key(replace(far, api_key="other"))
    before = [place_of(one) for one in (service(), far, here, service(kind="local"))]
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    after = [place_of(one) for one in (service(), far, here, service(kind="local"))]
    assert [one == two for one, two in zip(before, after, strict=True)] == [True, True, False, False]


def test_a_databases_place_does_not_depend_on_the_user() -> None:
    urls = (
        "postgresql://a:b@db.example/app",
        "postgresql://c:d@db.example/app",
        "postgresql://a:b@db.example/other",
    )
    one, two, three = (place_of_database(DatabaseOptions(url=url)) for url in urls)
    assert one == two != three


def test_a_process_reports_its_host_and_version() -> None:
    found = presence_of("ledger", "blue", "{}")
    assert found.host and found.pid and found.version and (found.worker, found.label) == ("", "blue")


def test_the_fleet_view_works_without_the_store(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic) -> None:
        async with Platform(options(tmp_path, server)) as one, Platform(options(tmp_path, server)) as two:
            whole = await two.fleet()
            assert {process["id"] for process in whole["processes"]} == {
                one.parts.store.process,
                two.parts.store.process,
            }
            assert [purse["budget"] for purse in whole["purses"]] == ["ai:claude"]

            async def fails() -> Roll:
                raise StoreUnavailable("unreachable")

            one.parts.store.roll_call.read = fails  # type: ignore[method-assign]
            alone = await one.fleet()
            assert [(process["answers"], process["state"]) for process in alone["processes"]] == [
                (True, "live")
            ]
            assert alone["leader"] is None and alone["guards"] == []

    run(test)
