"""Everything that refuses calls has an alert, one for each cause, which says what is refused and until when."""

from __future__ import annotations

import asyncio
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koo.alerts.findings import Finding
from koo.alerts.kinds import KINDS
from koo.errors import ExternalServiceError, Kind, PoolSaturated
from koo.options import LimitOptions
from koo.policies.breaker import Override
from koo.policies.verdict import THROTTLED, Fault
from tests.monitoring.rig import (
    CANCELLED,
    FAILED,
    KEY_REFUSED,
    MODEL_REFUSED,
    TOO_MANY,
    Rig,
    on_rig,
)

QUOTA = Fault(verdict=THROTTLED, kind=Kind.QUOTA, retry_after_s=3600.0, reach="service")


def only(rig: Rig) -> Finding:
    """The only finding."""
    (finding,) = rig.findings()
    return finding


# ── the provider ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_refused_while_recovery_is_tested_means_service_down() -> None:
    """The test of the breaker's recovery matters less, because no call passes until the key works."""

    async def test(rig: Rig) -> None:
        rig.add()
        await rig.open()
        await rig.half_open()
        assert only(rig).kind == "circuit_recovering"
        await rig.call(KEY_REFUSED)
        down = only(rig)
        assert (down.kind, down.component, down.severity) == ("service_down", "ai:claude", "critical")
        assert "refused the key" in down.message
        assert set(down.data["also"]) == {"key_refused", "circuit_recovering"}
        assert down.data["next_attempt"] == rig.view()["models"]["sonnet"]["key_checked_at"] is not None

    on_rig(test)


def test_an_exhausted_quota_says_until_when() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        await rig.call(QUOTA)
        quota = only(rig)
        assert (quota.kind, quota.severity) == ("quota_used_up", "critical")
        assert quota.data["refuses"] == "every call to claude"
        resets_at = datetime.fromisoformat(quota.data["resets_at"] or "").timestamp()
        await rig.clock.sleep(resets_at - rig.clock.wall() - 0.01)
        assert rig.found() == {"quota_used_up:ai:claude"}
        # A time in ISO 8601 is rounded to microseconds.
        await rig.clock.sleep(0.01 + 1e-6)
        assert rig.found() == set(), "calls continue exactly then"

    on_rig(test)


def test_a_providers_pause_is_a_warning_with_its_end() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        await rig.call(TOO_MANY)
        pause = only(rig)
        assert (pause.kind, pause.severity) == ("provider_limit_reached", "warning")
        assert pause.data["resets_at"] == rig.view()["pause"]["until"]  # type: ignore[index]
        await rig.clock.sleep(21.1)
        assert rig.found() == set()

    on_rig(test)


def test_a_pause_of_another_model_is_that_models_alert() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        await rig.call(TOO_MANY, model="opus")
        assert rig.found() == {"provider_limit_reached:ai:claude/opus"}

    on_rig(test)


# ── koo's limits ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("option", "key", "severity"),
    [("per_minute", "minute", "warning"), ("per_hour", "hour", "critical"), ("per_day", "day", "critical")],
)
def test_an_exhausted_limit_is_a_separate_alert_with_its_reset_time(
    option: str, key: str, severity: str
) -> None:
    async def test(rig: Rig) -> None:
        rig.add(limits=LimitOptions(**{option: 3}))
        await rig.calls(3)
        reached = only(rig)
        assert (reached.kind, reached.severity) == (f"limit_reached_requests_per_{key}", severity)
        assert reached.data["also"] == [f"limit_approaching_requests_per_{key}"] and reached.data["refuses"]
        resets_at = datetime.fromisoformat(reached.data["resets_at"] or "").timestamp()
        await rig.clock.sleep(resets_at - rig.clock.wall() - 0.01)
        with pytest.raises(ExternalServiceError):
            await rig.call()
        await rig.clock.sleep(0.01)
        await rig.call()

    on_rig(test)


def test_a_day_ends_at_midnight_and_not_a_microsecond_earlier() -> None:
    async def test(rig: Rig) -> None:
        for at in (0.1, 0.3, 1234.567891, 7.7):
            await rig.clock.sleep(at)
            rig.services.clear()
            rig.add(limits=LimitOptions(per_day=3))
            resets_at = rig.view()["rate_limits"]["requests_per_day"]["resets_at"]
            assert str(resets_at).endswith("T00:00:00+00:00")

    on_rig(test)


def test_a_limit_that_just_refused_a_caller_counts_as_reached_even_if_a_request_is_free_now() -> None:
    async def test(rig: Rig) -> None:
        rig.add(limits=LimitOptions(per_minute=3))
        await rig.calls(3)
        with pytest.raises(ExternalServiceError):
            await rig.call()
        await rig.clock.sleep(61)
        await rig.calls(3)
        with pytest.raises(ExternalServiceError):
            await rig.call()
        await rig.clock.sleep(29)
        rig.services["claude"].forget_used()
        assert rig.found() == {"limit_reached_requests_per_minute:ai:claude"}
        await rig.clock.sleep(1)
        assert rig.found() == set()

    on_rig(test)


def test_callers_turned_away_by_concurrency_are_an_alert_and_the_service_stays_healthy() -> None:
    async def test(rig: Rig) -> None:
        rig.add(concurrency_max=1, queue_max=0)
        running = asyncio.create_task(rig.call(took_s=5.0))
        await asyncio.sleep(0)
        with pytest.raises(ExternalServiceError):
            await rig.call()
        await running
        saturated = only(rig)
        assert (saturated.kind, rig.view()["state"]) == ("service_saturated", "healthy")
        assert saturated.data["refuses"]
        await rig.clock.sleep(30)
        assert rig.found() == set()

    on_rig(test)


def test_an_uncalled_service_whose_checks_fail_is_an_alert() -> None:
    async def test(rig: Rig) -> None:
        service = rig.add()
        for _ in range(3):
            service.note_check(ExternalServiceError("claude", "no answer", kind=Kind.TIMEOUT))
        unhealthy = only(rig)
        assert (unhealthy.kind, unhealthy.severity) == ("service_unhealthy", "warning")
        assert "3 health checks failed" in unhealthy.message

    on_rig(test)


# ── the database ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_saturated_pool_is_an_alert_with_the_number_of_callers_turned_away(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        queue = rig.pool_queue
        queue.used = queue.limit
        queue.explain(PoolSaturated("database", ""), rig.clock.monotonic(), 0.1)
        assert "connections are in use and 0 callers are waiting, 1 was turned away" in only(rig).message
        for _ in range(2):
            queue.explain(PoolSaturated("database", ""), rig.clock.monotonic(), 0.1)
        full = only(rig)
        assert full.kind == "database_saturated" and "3 were turned away" in full.message
        assert full.data["turned_away"] == 3 and full.data["refuses"]
        await rig.clock.sleep(29)
        assert rig.found() == {"database_saturated:database"}, "the pool is still full"
        queue.used = 0
        assert rig.found() == set(), "it ends immediately, not half a minute later"
        queue.used = queue.limit
        await rig.clock.sleep(10)
        assert rig.found() == set(), "a full pool is not yet saturated"
        queue.explain(PoolSaturated("database", ""), rig.clock.monotonic(), 0.1)
        assert only(rig).data["turned_away"] == 1, "the count starts again"

    on_rig(test, tmp_path)


def test_a_saturated_pool_makes_overall_health_degraded_but_the_database_healthy(
    tmp_path: Path,
) -> None:
    async def test(rig: Rig) -> None:
        rig.look_at_database()
        queue = rig.pool_queue
        queue.used = queue.limit
        queue.explain(PoolSaturated("database", ""), rig.clock.monotonic(), 0.1)
        seen = rig.system()
        assert (seen["overall_health"], seen["severity"]) == ("degraded", "warning")
        assert (seen["database"]["state"], seen["database"]["conditions"]) == ("healthy", ["saturated"])
        queue.used = 0
        await rig.clock.sleep(2)
        assert rig.system()["overall_health"] == "healthy"

    on_rig(test, tmp_path)


# ── random walks ──────────────────────────────────────────────────────────────────────────────────────────────────────

ACTS = (
    "call", "fail", "fail_other", "cancel", "throttle", "throttle_other", "quota", "key", "model_key", "slow",
    "half_open", "wait", "force", "disable", "unforce", "reset", "spend", "use_up", "check", "limit", "database",
    "database_ok", "look_failed", "looked", "paused", "resumed", "full", "empty", "store", "disk",
)  # fmt: skip


class Walk:
    """A platform's inputs, in which anything may happen."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        rig.add(limits=LimitOptions(per_minute=12, per_day=40), failure_threshold=3, recovery_s=5.0)
        rig.add("openai")

    async def act(self, name: str) -> None:
        rig, service = self.rig, self.rig.services["claude"]
        acts: dict[str, Any] = {
            "call": partial(rig.call),
            "fail": partial(rig.call, FAILED),
            "fail_other": partial(rig.call, FAILED, model="opus"),
            "cancel": partial(rig.call, CANCELLED),
            "throttle": partial(rig.call, TOO_MANY),
            "throttle_other": partial(rig.call, TOO_MANY, model="opus"),
            "quota": partial(rig.call, QUOTA),
            "key": partial(rig.call, KEY_REFUSED),
            "model_key": partial(rig.call, MODEL_REFUSED),
            "slow": partial(rig.call, took_s=6.0),
            "half_open": partial(rig.clock.sleep, 6.0),
            "wait": partial(rig.clock.sleep, 31.0),
            "force": partial(service.set_override, Override.FORCED_OPEN),
            "disable": partial(service.set_override, Override.DISABLED),
            "unforce": partial(service.set_override, Override.NONE),
            "reset": service.reset,
            "spend": partial(rig.spend, "9.6"),
            "use_up": partial(rig.spend, "10"),
            "check": partial(service.note_check, ExternalServiceError("claude", "no", kind=Kind.TIMEOUT)),
            "limit": partial(rig.calls, 12, name="openai"),
            "database": partial(rig.use_database, False),
            "database_ok": partial(rig.use_database, True),
            "look_failed": partial(rig.look_at_database, "no answer"),
            "looked": rig.look_at_database,
            "paused": rig.pause_database,
            "resumed": rig.resume_database,
            "full": rig.turn_away,
            "empty": rig.leave_pool,
            "store": partial(rig.lose_store, ["claude"]),
            "disk": partial(rig.fill_disk, 10),
        }
        try:
            outcome = acts[name]()
            if outcome is not None and not isinstance(outcome, bool):
                await outcome
        except (ExternalServiceError, PoolSaturated):
            pass
        rig.tick()

    def check(self) -> None:
        rig = self.rig
        found, seen = rig.findings(), rig.system()
        self.check_reasons(found)
        self.check_causes(found)
        worst = {one.severity for one in found if one.begins}
        refusing = [one for one in found if one.begins and one.data.get("refuses")]
        assert (seen["severity"] == "critical") >= ("critical" in worst), "no verdict is milder than an alert"
        assert seen["severity"] is not None or not worst
        if refusing or "critical" in worst:
            assert seen["overall_health"] != "healthy", [one.fingerprint for one in refusing]
        states = {view["state"] for view in seen["ai_services"]["services"].values()}
        down = seen["database"]["state"] == "circuit_open" or states <= {"circuit_open", "rate_limited"}
        assert (seen["overall_health"] == "unhealthy") is down, "overall health follows the promised rule"
        assert (seen["severity"] == "critical") >= (seen["overall_health"] == "unhealthy")
        assert (seen["severity"] is None) <= (seen["overall_health"] == "healthy")

    def check_reasons(self, found: list[Finding]) -> None:
        """Every state other than healthy, and every refusal, has a finding."""
        for name, view in self.rig.views().items():
            mine = [one for one in found if one.component.partition("/")[0] == f"ai:{name}"]
            assert view["state"] == "healthy" or mine, (view["state"], view["reason"])
            if view["state"] in ("circuit_open", "rate_limited"):
                assert any(one.data.get("refuses") for one in mine), (view["state"], mine)
        database = self.rig.database_health()
        of_database = [one for one in found if one.component == "database"]
        assert (database["state"] == "healthy" and not database["conditions"]) or of_database

    def check_causes(self, found: list[Finding]) -> None:
        """No finding is only a part of another finding of the same component."""
        for one in found:
            for other in found:
                same = one.component == other.component and other.begins
                assert not (same and other.kind in KINDS[one.kind].part_of), (one.kind, other.kind)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(ACTS), min_size=1, max_size=25))
def test_every_refusal_has_an_alert_and_the_verdict_is_never_milder(
    tmp_path_factory: pytest.TempPathFactory, acts: list[str]
) -> None:
    """Every state and every refusal has a finding, each cause has one, and no verdict is milder than an alert."""

    async def test(rig: Rig) -> None:
        walk = Walk(rig)
        for act in acts:
            await walk.act(act)
            walk.check()

    on_rig(test, tmp_path_factory.mktemp("rig"))
