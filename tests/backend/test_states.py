"""Each promised state and each kind of alert, caused by real events and checked in every view.

Python, HTTP (the source of the page), metrics and the command line must agree.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from koo.errors import DatabaseError, ExternalServiceError
from koo.monitoring.shapes import Alert
from koo.testing.postgres import PostgresServer
from koo.testing.providers import FakeAnthropic, answer, delay, error
from koo.testing.proxy import FaultProxy
from koo.web import create_app
from tests.cli.running import command, environment
from tests.web.serving import Client, served

pytestmark = pytest.mark.usefixtures("fake", "_fast_ticks")
PATIENCE_S = 30.0
FAILED = error(500, "api_error")
READ_ONLY = """DO $$ BEGIN EXECUTE format(
    'ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$"""


@pytest.fixture
def _fast_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the work of each second twenty times a second, so that no test waits for it."""
    monkeypatch.setattr("koo.upkeep.TICK_S", 0.05)
    monkeypatch.setattr("koo.database.probe.TICK_S", 0.05)


class Sights:
    """All views of the platform."""

    def __init__(self, client: Client, home: Path) -> None:
        self.client = client
        self.home = home

    async def ask(self, good: int = 0, bad: int = 0, service: str = "claude", **more: Any) -> None:
        from services.hybrid_ai_manager import query_ai

        for _ in range(good):
            await query_ai(service, "Hello?", **more)
        for _ in range(bad):
            with pytest.raises(ExternalServiceError):
                await query_ai(service, "Hello?", on_limit="refuse", **more)

    async def state(self, expected: str, service: str | None = "claude") -> None:
        """Wait for a state of a service (None: of the database), and check it in every view."""
        await poll(lambda: self._state_in_python(service), expected)
        health = (await self.client.get("/api/v1/monitoring/health")).body
        dashboard = (await self.client.get("/api/v1/monitoring/dashboard")).body
        for view in (health, dashboard):
            part = view["database"] if service is None else view["ai_services"]["services"][service]
            assert part["state"] == expected
        label = "" if service is None else f'service="{service}",'
        name = "koo_database_state" if service is None else "koo_service_state"
        metrics = (await self.client.get("/metrics")).text
        assert re.findall(rf'^{name}{{{label}state="(\w+)"}} 1.0$', metrics, re.MULTILINE) == [expected]

    async def state_on_the_command_line(self, expected: str, service: str | None = "claude") -> None:
        said = await self.run("status", "--json")
        part = said["database"] if service is None else said["ai_services"]["services"][service]
        assert part["state"] == expected

    async def run(self, *arguments: str) -> dict[str, Any]:
        """The JSON output of a command."""
        process = await asyncio.create_subprocess_exec(
            *command(*arguments),
            env=environment(self.home, KOO_URL=self.client.url),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        document: dict[str, Any] = json.loads(out)
        return document

    async def _state_in_python(self, service: str | None) -> str:
        from core.database import check_database_health
        from services.hybrid_ai_manager import get_ai_service_health

        view = (await check_database_health()) if service is None else get_ai_service_health(service)
        return str(view["state"])

    async def alerts(self, *expected: str) -> list[dict[str, Any]]:
        """Wait until exactly these alerts are listed ("kind component"), check every view, and return them."""
        await poll(self._kinds_in_python, sorted(expected))
        found = (await self.client.get("/api/v1/monitoring/alerts")).body
        listed: list[dict[str, Any]] = found["alerts"]
        assert found["alert_count"] == len(listed)
        assert sorted(map(brief, listed)) == sorted(expected)
        dashboard = (await self.client.get("/api/v1/monitoring/dashboard")).body
        active = [one for one in listed if one["active"]]
        assert [brief(one) for one in dashboard["alerts"]] == list(map(brief, listed))
        assert dashboard["summary"]["active_alerts"] == len(active)
        metrics = (await self.client.get("/metrics")).text
        for severity in ("critical", "warning"):
            count = sum(one["type"] == severity for one in active)
            assert f'koo_alerts{{severity="{severity}"}} {count:.1f}' in metrics
        assert all(one["active"] is (one["type"] != "info") for one in listed)
        return listed

    async def alerts_on_the_command_line(self, *expected: str) -> None:
        assert sorted(map(brief, (await self.run("alerts", "--json"))["alerts"])) == sorted(expected)

    async def lists(self, alert: str) -> bool:
        return alert in await self._kinds_in_python()

    async def phase_of(self, kind: str) -> str:
        """The phase of an alert; "" if it is not listed."""
        from api.monitoring import get_system_alerts

        listed = (await get_system_alerts())["alerts"]
        return next((one["phase"] for one in listed if one["kind"] == kind), "")

    async def _kinds_in_python(self) -> list[str]:
        from api.monitoring import get_system_alerts

        return sorted(map(brief, (await get_system_alerts())["alerts"]))


def brief(alert: Alert | dict[str, Any]) -> str:
    return f"{alert['kind']} {alert['component']}"


async def poll(look: Callable[[], Awaitable[Any]], expected: Any) -> None:
    """Wait until the result is as expected. Raises AssertionError with the last result."""
    found = None
    try:
        async with asyncio.timeout(PATIENCE_S):
            while (found := await look()) != expected:  # noqa: ASYNC110 - it happens outside this loop
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"it is {found} and did not become {expected}") from None


def watch(home: Path, test: Callable[[Sights], Awaitable[None]]) -> None:
    async def main() -> None:
        from core.platform import platform

        async with served(create_app(platform)) as client:
            await test(Sights(client, home))

    asyncio.run(main())


# ── AI services ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_breaker_that_opens_shows_as_circuit_open(
    fake: FakeAnthropic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AI_CIRCUIT_BREAKER_RECOVERY_TIMEOUT", "3600")  # it stays open even on a slow machine

    async def test(seen: Sights) -> None:
        await seen.ask(good=1)
        await seen.state("healthy")
        assert await seen.alerts() == []
        fake.script(*[FAILED] * 3)
        await seen.ask(bad=3)
        await seen.state("unhealthy")
        fake.script(*[FAILED] * 2)
        await seen.ask(bad=2)
        await seen.state("circuit_open")
        alarms = await seen.alerts("service_down ai:claude")
        assert {one["type"] for one in alarms} == {"critical"}
        await seen.state_on_the_command_line("circuit_open")
        await seen.alerts_on_the_command_line("service_down ai:claude")

    watch(tmp_path, test)


def test_a_breaker_that_recovers_shows_as_healthy_again(
    fake: FakeAnthropic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The open state itself is not checked: a slow machine may look only after the open time has ended."""
    monkeypatch.setenv("AI_CIRCUIT_BREAKER_RECOVERY_TIMEOUT", "2")

    async def test(seen: Sights) -> None:
        await seen.ask(good=1)
        fake.script(*[FAILED] * 5)
        await seen.ask(bad=5)
        await seen.state("degraded")
        (testing,) = await seen.alerts("circuit_recovering ai:claude")
        assert testing["type"] == "warning"
        await seen.ask(good=2)
        await seen.state("healthy")
        await poll(lambda: seen.lists("service_recovered ai:claude"), True)
        news = (await seen.run("alerts", "--json"))["alerts"]
        assert {(one["type"], one["active"]) for one in news} == {("info", False)}

    watch(tmp_path, test)


def test_a_refused_key_shows_until_it_works_again(fake: FakeAnthropic, tmp_path: Path) -> None:
    async def test(seen: Sights) -> None:
        fake.script(error(401, "authentication_error"))
        await seen.ask(bad=1)
        await seen.state("circuit_open")
        (alarm,) = await seen.alerts("service_down ai:claude")
        assert alarm["type"] == "critical" and "key" in alarm["message"]
        checked = await seen.client.post("/api/v1/ai/services/health-check?service=claude")
        assert checked.body["claude"]["healthy"] is True
        await seen.state("healthy")
        await seen.alerts("service_recovered ai:claude")

    watch(tmp_path, test)


def test_a_providers_limit_shows_as_rate_limited(fake: FakeAnthropic, tmp_path: Path) -> None:
    async def test(seen: Sights) -> None:
        fake.script(error(429, "rate_limit_error", headers={"retry-after": "300"}))
        await seen.ask(bad=1)
        await seen.state("rate_limited")
        await seen.state_on_the_command_line("rate_limited")
        (pause,) = await seen.alerts("provider_limit_reached ai:claude")
        resets_at = datetime.fromisoformat(pause["data"]["resets_at"])
        assert pause["type"] == "warning" and f"until {resets_at:%Y-%m-%dT%H:%M:%SZ}" in pause["message"]

    watch(tmp_path, test)


def test_an_exhausted_quota_shows_as_rate_limited_with_its_end(fake: FakeAnthropic, tmp_path: Path) -> None:
    """The quota's end is the time that the provider named."""

    async def test(seen: Sights) -> None:
        fake.script(error(402, "billing_error", headers={"retry-after": "86400"}))
        await seen.ask(bad=1)
        await seen.state("rate_limited")
        (alarm,) = await seen.alerts("quota_used_up ai:claude")
        assert alarm["type"] == "critical" and alarm["data"]["refuses"] == "every call to claude"
        left_s = datetime.fromisoformat(alarm["data"]["resets_at"]).timestamp() - time.time()
        assert 80_000 < left_s < 92_000

    watch(tmp_path, test)


def test_a_limit_and_a_budget_that_are_nearly_used_up_are_alerts(
    fake: FakeAnthropic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for window, limit in (("MINUTE", "5"), ("HOUR", "10"), ("DAY", "10")):
        monkeypatch.setenv(f"AI_SERVICES__CLAUDE__REQUESTS_PER_{window}", limit)
    monkeypatch.setenv("AI_SERVICES__CLAUDE__DAILY_BUDGET", "0.1")

    async def test(seen: Sights) -> None:
        await seen.ask(good=3)
        assert await seen.alerts() == []
        await seen.ask(good=1)
        (near,) = await seen.alerts("limit_approaching_requests_per_minute ai:claude")
        assert near["type"] == "warning" and near["message"] == "4 of 5 requests per minute are used"
        await seen.state("healthy")
        # Twice as many tokens as max_tokens allows, so the bill exceeds its worst case too.
        fake.script(answer("x", input_tokens=10, output_tokens=8000))
        await seen.ask(good=1)
        await seen.state("rate_limited")
        money = ("bill_above_hold ai:claude", "budget_approaching ai:claude")
        await seen.alerts(*money, "limit_reached_requests_per_minute ai:claude")
        from core.ai_error_handling import ai_error_handler

        assert ai_error_handler.reset_rate_limiter("claude")
        await seen.alerts(*money)

    watch(tmp_path, test)


def test_limits_per_hour_and_per_day_are_alerts_when_nearly_used_up(
    fake: FakeAnthropic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AI_SERVICES__CLAUDE__REQUESTS_PER_HOUR", "5")
    monkeypatch.setenv("AI_SERVICES__CLAUDE__REQUESTS_PER_DAY", "6")

    async def test(seen: Sights) -> None:
        await seen.ask(good=4)
        await seen.alerts("limit_approaching_requests_per_hour ai:claude")
        await seen.ask(good=1)
        alarms = await seen.alerts(
            "limit_reached_requests_per_hour ai:claude", "limit_approaching_requests_per_day ai:claude"
        )
        assert [one["type"] for one in alarms] == ["critical", "warning"]

    watch(tmp_path, test)


def test_some_errors_are_a_degraded_performance_alert(
    fake: FakeAnthropic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AI_SERVICES__CLAUDE__REQUESTS_PER_MINUTE", "none")

    async def test(seen: Sights) -> None:
        for _ in range(6):
            fake.script(FAILED)
            await seen.ask(bad=1)
            await seen.ask(good=2)
        await seen.ask(good=2)
        await seen.state("degraded")
        (found,) = await seen.alerts("degraded_performance ai:claude")
        assert found["type"] == "warning" and found["message"] == "30% of the last 20 calls failed"
        await seen.ask(good=41)
        await seen.state("healthy")
        (found,) = await seen.alerts("degraded_performance ai:claude")
        assert found["phase"] == "firing", "9.8 % is below a tenth, but not low enough to recover"
        await seen.ask(good=62)
        await poll(lambda: seen.phase_of("degraded_performance"), "recovering")

    watch(tmp_path, test)


def test_slow_responses_are_an_alert(
    fake: FakeAnthropic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AI_SERVICES__CLAUDE__SLOW_CALL_SECONDS", "1")

    async def test(seen: Sights) -> None:
        from services.hybrid_ai_manager import query_multiple_ai

        fake.script(*[delay(1.2)] * 4)
        asked = [{"service": "claude", "prompt": "Hello?"}] * 4
        assert all(one["success"] for one in await query_multiple_ai(asked))
        await seen.ask(good=16)
        (found,) = await seen.alerts("degraded_performance ai:claude")
        assert found["message"].startswith("one call in twenty takes longer than 1.")

    watch(tmp_path, test)


def test_an_unreachable_state_store_is_an_alert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KOO_STATE_URL", "postgresql://user:hidden@127.0.0.1:1/none")

    async def test(seen: Sights) -> None:
        await seen.ask(good=1)
        (found,) = await seen.alerts("budget_local state_store")
        assert found["type"] == "warning" and "claude" in found["message"] and "hidden" not in str(found)

    watch(tmp_path, test)


# ── the database ──────────────────────────────────────────────────────────────────────────────────────────────────


async def use(good: int = 0, bad: int = 0, statement: str = "SELECT 1") -> None:
    from core.database import db_manager

    async def once() -> None:
        async with db_manager.session_scope() as session:
            await session.execute(text(statement))

    for _ in range(good):
        await once()
    for _ in range(bad):
        with pytest.raises(DatabaseError):
            await once()


async def lose_a_session() -> None:
    from core.database import db_manager

    async with db_manager.session_scope() as session:
        await session.execute(text("SELECT 1"))
        with pytest.raises(DBAPIError):
            await session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        await session.rollback()


def watch_database(
    home: Path,
    server: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    test: Callable[[Sights, FaultProxy], Awaitable[None]],
    **variables: str,
) -> None:
    """Run a test with a real PostgreSQL behind a proxy that can break its connections."""
    name = server.create_database()

    async def main() -> None:
        async with FaultProxy(server.host, server.port) as proxy:
            url = server.url(None, name).replace(f":{server.port}/", f":{proxy.port}/")
            given = {"DATABASE_URL": url, "DB_MAX_RETRIES": "0", "DB_HEALTH_CHECK_INTERVAL": "0.2"}
            for variable, value in (given | variables).items():
                monkeypatch.setenv(variable, value)
            from core.platform import platform

            async with served(create_app(platform)) as client:
                await test(Sights(client, home), proxy)

    asyncio.run(main())


def test_a_database_that_fails_and_recovers_shows_every_state(
    postgres18: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(seen: Sights, proxy: FaultProxy) -> None:
        await use(good=1)
        await seen.state("healthy", None)
        assert await seen.alerts() == []
        await proxy.refuse()
        proxy.reset_all()
        await seen.alerts("database_unavailable database")
        await use(bad=6)
        await seen.state("circuit_open", None)
        alarms = await seen.alerts("database_unavailable database")
        assert {one["type"] for one in alarms} == {"critical"}
        assert (await seen.client.get("/readyz")).status == 503
        await seen.state_on_the_command_line("circuit_open", None)
        await proxy.accept()
        await seen.state("healthy", None)
        await seen.alerts("database_recovered database")
        await use(good=1)
        assert (await seen.client.get("/readyz")).status == 200

    watch_database(tmp_path, postgres18, monkeypatch, test, DB_CIRCUIT_BREAKER_RECOVERY_TIMEOUT="8")


def test_a_database_whose_recovery_is_being_tested_shows_as_degraded(
    postgres18: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database's own probes would close the breaker immediately, so this test requires many successes."""

    async def test(seen: Sights, proxy: FaultProxy) -> None:
        await proxy.refuse()
        proxy.reset_all()
        await use(bad=5)
        await seen.alerts("database_unavailable database")
        await proxy.accept()
        await seen.state("degraded", None)
        (testing,) = await seen.alerts("circuit_recovering database")
        assert testing["type"] == "warning"

    watch_database(
        tmp_path,
        postgres18,
        monkeypatch,
        test,
        DB_CIRCUIT_BREAKER_RECOVERY_TIMEOUT="3",
        DB_CIRCUIT_BREAKER_SUCCESS_THRESHOLD="100",
    )


def test_a_database_that_passes_its_probe_but_fails_calls_shows_as_unhealthy(
    postgres18: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions are ended in the middle of their work, and new ones are admitted."""

    async def test(seen: Sights, proxy: FaultProxy) -> None:
        await seen.state("healthy", None)
        for _ in range(3):
            await lose_a_session()
        await seen.state("unhealthy", None)
        (found,) = await seen.alerts("database_unhealthy database")
        assert found["type"] == "warning"
        await use(good=4)
        await seen.state("healthy", None)
        assert await seen.alerts() == [], "its end is not an alert"

    watch_database(tmp_path, postgres18, monkeypatch, test)


def test_a_slow_database_is_an_alert(
    postgres18: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(seen: Sights, proxy: FaultProxy) -> None:
        await use(good=20)
        assert await seen.alerts() == []
        await use(good=3, statement="SELECT pg_sleep(1.1)")
        (slow,) = await seen.alerts("database_slow database")
        assert slow["type"] == "warning"

    watch_database(tmp_path, postgres18, monkeypatch, test)


def test_a_database_that_accepts_no_writes_is_an_alert(
    postgres18: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(seen: Sights, proxy: FaultProxy) -> None:
        await use(good=1, statement=READ_ONLY)
        proxy.reset_all()  # it applies to new sessions
        (found,) = await seen.alerts("database_read_only database")
        assert found["type"] == "warning"
        await seen.state("healthy", None)

    watch_database(tmp_path, postgres18, monkeypatch, test)


def test_a_full_pool_is_an_alert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("POOL_SIZE", "1"), ("MAX_OVERFLOW", "0"), ("POOL_TIMEOUT", "0.2")):
        monkeypatch.setenv(f"DATABASE_{name}", value)

    async def test(seen: Sights) -> None:
        from core.database import db_manager

        async with db_manager.session_scope():
            await use(bad=1)
            (found,) = await seen.alerts("database_saturated database")
            assert found["type"] == "warning"
            await seen.state("healthy", None)

    watch(tmp_path, test)
