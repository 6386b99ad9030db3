"""An earlier process's alert is shown as unconfirmed until this process finds it or has evidence against it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from koo.alerts.engine import Moment
from koo.alerts.findings import Finding
from koo.alerts.kinds import KINDS
from koo.alerts.views import ENDS
from koo.errors import KooError
from koo.monitoring.shapes import Alert, SystemHealth
from koo.platform import Platform
from koo.upkeep import KeepTime
from tests.alerts.test_engine import GONE, OPEN, T0, TRIED, Watch
from tests.web.serving import platform

DOWN = Finding(
    GONE.kind,
    GONE.component,
    "claude cannot be called",
    {
        "refuses": "every call to claude",
        "next_attempt": "2026-09-21T14:13:30+00:00",
        "also": ["circuit_open"],
    },
)
ILL = Finding(
    "service_unhealthy", GONE.component, "claude is unhealthy, but calls still pass", {"last_error": None}
)


def restarted(*findings: Finding, after_s: float = 600.0) -> Watch:
    before = Watch()
    before.look(T0, *findings)
    after = before.restart(T0 + after_s)
    after.look(T0 + after_s)
    return after


def test_an_unconfirmed_alert_says_so_and_claims_no_refusals() -> None:
    (view,) = restarted(DOWN).views(T0 + 601)
    assert view["message"] == (
        "an earlier process found: claude cannot be called; this one has not seen it, and it ends when the "
        "dependency answers again"
    )
    assert view["data"] == {"unconfirmed": True, "also": ["circuit_open"]}
    assert (view["kind"], view["type"], view["active"]) == ("service_down", "warning", True)


def test_parts_found_now_are_shown_within_the_unconfirmed_alert() -> None:
    watch = restarted(DOWN)
    assert watch.look(T0 + 602, ILL) == [], "one cause has one alert"
    (view,) = watch.views(T0 + 602)
    assert view["message"].endswith("claude cannot be called; now: claude is unhealthy, but calls still pass")
    assert (
        view["data"]["also"] == ["circuit_open", "service_unhealthy"] and "next_attempt" not in view["data"]
    )
    watch.has_looked = True
    assert watch.look(T0 + 603, ILL) == [("service_down", "resolved")]
    assert watch.look(T0 + 604, ILL) == [("service_unhealthy", "firing")], "then it is a separate alert"


def test_a_part_that_refuses_calls_keeps_the_unconfirmed_alert_critical() -> None:
    watch = restarted(DOWN)
    refuses = Finding(OPEN.kind, OPEN.component, OPEN.message, {"refuses": "every call to claude"})
    assert watch.look(T0 + 602, refuses) == []
    (view,) = watch.views(T0 + 602)
    assert (view["kind"], view["type"], view["data"]["refuses"]) == (
        "service_down",
        "critical",
        "every call to claude",
    )


def test_a_restored_part_is_listed_with_its_restored_greater_alert() -> None:
    before = Watch()
    before.look(T0, ILL)
    before.look(T0 + 1, DOWN)
    after = before.restart(T0 + 10)
    assert after.kinds(T0 + 10) == ["service_down"]
    assert after.look(T0 + 11) == [] and after.kinds(T0 + 11) == ["service_down"]


def test_a_restored_recovery_alert_is_listed_instead() -> None:
    watch = restarted(DOWN)
    assert watch.look(T0 + 602, TRIED) == [("circuit_recovering", "firing"), ("service_down", "recovering")]
    assert watch.kinds(T0 + 602) == ["circuit_recovering"]


def test_an_alert_found_again_is_shown_as_before() -> None:
    watch = restarted(DOWN)
    watch.look(T0 + 602, DOWN)
    (view,) = watch.views(T0 + 602)
    assert (view["type"], view["message"], view["data"]) == ("critical", DOWN.message, DOWN.data)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kinds_unconfirmed_alert_says_what_it_waits_for(kind: str) -> None:
    before = Watch()
    before.look(T0, Finding(kind, "ai:claude", "it holds"))
    after = Watch()
    after.alerts.restore(before.alerts.lasting, Moment(T0 + 10, 87))
    (view,) = after.views(T0 + 10)
    assert view["message"].endswith(ENDS[KINDS[kind].evidence]) and view["data"]["unconfirmed"]


# ── over a restart ────────────────────────────────────────────────────────────────────────────────────────────────


def process(folder: Path) -> Platform:
    """One of two processes, one after the other. It registers its operation before it opens, as `@guarded` does."""
    koo = platform(folder)
    koo.register_service("courier")
    return koo


def test_alerts_and_health_agree_after_a_restart(tmp_path: Path) -> None:
    """A courier is down. The next process has not called it at first, then once, then often enough."""

    async def breaks() -> str:
        raise OSError("connection refused")

    async def works() -> str:
        return "7.50"

    async def look(koo: Platform) -> tuple[SystemHealth, list[Alert]]:
        await KeepTime(koo.parts).step()
        return await koo.system_health(), [one for one in koo.active_alerts() if one["active"]]

    async def ask(koo: Platform, operation: Any) -> None:
        try:
            await koo.execute("courier", operation)
        except (KooError, OSError):
            pass

    async def main() -> None:
        async with process(tmp_path) as koo:
            for _ in range(5):
                await ask(koo, breaks)
            health, alerts = await look(koo)
            assert [one["kind"] for one in alerts] == ["service_down"] and health["severity"] == "critical"
        async with process(tmp_path) as koo:
            health, (alert,) = await look(koo)
            courier = health["ai_services"]["services"]["courier"]
            assert (health["overall_health"], courier["state"]) == ("healthy", "healthy")
            assert (health["severity"], alert["kind"], alert["type"]) == (
                "warning",
                "service_down",
                "warning",
            )
            assert alert["message"].startswith("an earlier process found: courier cannot be called: ")
            assert not alert["data"].keys() & {"next_attempt", "refuses"}
            assert alert["notified"]["state"] == "no_channel", (
                "a notice that reaches no one does not count as notified"
            )
            told = await koo.alert_deliveries()
            assert [one["state"] for one in told["untold"]] == ["no_channel"]
            assert told["untold"][0]["reason"] == told["note"] != ""
            assert {one["notified"]["state"] for one in (await koo.alerts.history())["episodes"]} == {
                "no_channel"
            }
            for _ in range(3):
                await ask(koo, breaks)
            health, (alert,) = await look(koo)
            assert health["ai_services"]["services"]["courier"]["state"] == "unhealthy"
            assert alert["kind"] == "service_down" and "service_unhealthy" in alert["data"]["also"]
            assert "; now: courier is unhealthy, but calls still pass" in alert["message"]
            for _ in range(20):
                await ask(koo, works)
            health, alerts = await look(koo)
            assert "service_down" not in [one["kind"] for one in alerts]

    asyncio.run(main())
