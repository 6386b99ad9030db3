"""On a whole platform, anything that refuses calls raises an alert within a second, which ends as quickly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import text

from koo.ai.types import Query
from koo.beats import LATE_S
from koo.budget_options import BudgetOptions
from koo.errors import BudgetExceeded
from koo.host import Descriptors, Disk, Host, HostWatch
from koo.monitoring.shapes import Alert
from koo.options import DatabaseOptions
from koo.platform import Platform
from koo.testing.providers import FakeAnthropic, answer
from koo.upkeep import KeepTime
from tests.web.serving import claude, platform


async def listed(koo: Platform) -> dict[str, Alert]:
    """The alerts after one more of koo's beats, by kind and component."""
    await KeepTime(koo.parts).step()
    return {f"{one['kind']} {one['component']}": one for one in koo.active_alerts() if one["active"]}


def query(max_tokens: int) -> Query:
    return Query(service="claude", prompt="Hi", max_tokens=max_tokens)


def test_a_remaining_budget_that_is_too_small_is_an_alert_once_it_refuses_a_call(tmp_path: Path) -> None:
    """Less than four fifths of the budget are used, so no alert about its share is raised."""

    async def main() -> None:
        async with (
            FakeAnthropic() as fake,
            platform(tmp_path, claude(fake, daily_budget_usd=Decimal("0.01"))) as koo,
        ):
            with pytest.raises(BudgetExceeded):
                await koo.query(query(2000))
            alert = (await listed(koo))["budget_too_small ai:claude"]
            assert alert["type"] == "critical" and "up to 0.02" in alert["message"]
            budget = koo.service_health("claude")["rate_limits"]["daily_budget"]
            assert alert["data"]["resets_at"] == budget["resets_at"] and alert["data"]["amount"] == "0.01"
            assert alert["data"]["refuses"] == "calls that may cost more than 0.01 USD"
            health = await koo.system_health()
            assert (health["overall_health"], health["severity"]) == ("unhealthy", "critical")
            fake.script(answer("Yes.", input_tokens=1, output_tokens=1))
            await koo.query(query(10))
            health = await koo.system_health()
            assert health["ai_services"]["services"]["claude"]["state"] == "healthy", "a smaller call passed"
            assert "budget_too_small ai:claude" in await listed(koo), (
                "but the larger one would be refused again"
            )
            assert ((await koo.system_health())["overall_health"], health["severity"]) == (
                "degraded",
                "critical",
            )

    asyncio.run(main())


def test_an_operators_budget_that_is_too_small_is_one_alert_of_that_budget(tmp_path: Path) -> None:
    async def main() -> None:
        budgets = (BudgetOptions(name="team", limit_usd=Decimal("0.01"), period="month"),)
        async with FakeAnthropic() as fake, platform(tmp_path, claude(fake), budgets=budgets) as koo:
            with pytest.raises(BudgetExceeded):
                await koo.query(query(2000))
            alerts = await listed(koo)
            assert list(alerts) == ["budget_too_small budget:team"]
            assert alerts["budget_too_small budget:team"]["data"]["services"] == ["claude"]

    asyncio.run(main())


def test_the_alert_of_a_scope_that_keeps_its_connection_names_its_statement(tmp_path: Path) -> None:
    async def main() -> None:
        database = DatabaseOptions(url=f"sqlite:///{tmp_path / 'user.db'}", held_warning_s=1e-6)
        async with platform(tmp_path, database=database) as koo:
            async with koo.database.session_scope() as session:
                await session.execute(text("SELECT 1"))
                alert = (await listed(koo))["database_leaking database"]
                assert alert["type"] == "warning"
                assert "1 scope has" in alert["message"] and "SELECT" in alert["message"]
            assert koo.database.get_health()["conditions"] == []

    asyncio.run(main())


def full_disk(_: object) -> Host:
    return Host((Disk("home", 2**20, 100 * 2**30),), Descriptors(990, 1000))


def test_a_full_disk_and_exhausted_descriptors_are_critical_alerts_and_in_the_overall_health(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with platform(tmp_path) as koo:
            assert (await koo.system_health())["severity"] is None
            koo.parts.own_watch.host = HostWatch({}, look=full_disk)
            await until(lambda: koo.parts.own_watch.host.last is not None)
            alerts = await listed(koo)
            assert {"disk_full disk:home", "descriptors_used_up process"} <= alerts.keys()
            assert "1 MiB" in alerts["disk_full disk:home"]["message"]
            health = await koo.system_health()
            assert (health["overall_health"], health["severity"]) == ("degraded", "critical")
            assert health["koo"]["disks"][0]["state"] == "full"

    asyncio.run(main())


def test_a_failing_state_store_has_the_disks_checked_immediately(tmp_path: Path) -> None:
    """Half a minute later the disk may have space again, and the cause of the failed bookings would be unknown."""
    looks: list[float] = []

    def look(_: object) -> Host:
        looks.append(1.0)
        return Host()

    async def main() -> None:
        async with platform(tmp_path) as koo:
            koo.parts.own_watch.host = watch = HostWatch({}, look=look)
            await until(lambda: watch.last is not None)
            koo.parts._store_changed("the disk failed or is full")
            async with asyncio.timeout(20):
                await until(lambda: len(looks) == 2)

    asyncio.run(main())


async def until(is_so: Callable[[], bool]) -> None:
    """Wait until a tick or a thread of the platform has made the condition true."""
    while not is_so():  # noqa: ASYNC110 - it happens elsewhere
        await asyncio.sleep(0.02)


def test_a_missing_beat_is_reported_although_no_alert_can_detect_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alerts start with koo's beat, so a missing beat is listed before all alerts."""

    async def main() -> None:
        async with platform(tmp_path) as koo:
            await listed(koo)
            loop = asyncio.get_running_loop()
            now = loop.time()
            monkeypatch.setattr(loop, "time", lambda: now + LATE_S + 1)
            (alert,) = koo.active_alerts()
            monkeypatch.undo()
            assert (alert["kind"], alert["type"], alert["component"]) == (
                "monitor_stale",
                "warning",
                "process",
            )
            assert "alerts and notifications" in alert["message"]

    asyncio.run(main())
