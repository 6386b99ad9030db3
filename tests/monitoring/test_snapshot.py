"""The numbers in all views: they have the promised keys and types, are correct at any time, and reading changes
nothing.
"""

from __future__ import annotations

import json
from collections import deque
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from koo.ai.service import Service
from koo.clock import utc_day
from koo.monitoring.shapes import RequestWindow
from koo.monitoring.snapshot import unknown_service
from koo.options import DAY_S, LimitOptions
from koo.policies.breaker import Override
from tests.backend import shapes
from tests.backend.shapes import check
from tests.monitoring.rig import CANCELLED, FAILED, KEY_REFUSED, MODEL_REFUSED, TOO_MANY, Rig, on_rig

LIMITS = LimitOptions(per_minute=60, per_hour=1000, per_day=10_000)


def seconds(time: str | None) -> float:
    """A time that is not None, as wall seconds."""
    assert time is not None
    return datetime.fromisoformat(time).timestamp()


async def trouble(rig: Rig, kind: str) -> None:
    """Bring the service `claude` into one of several states."""
    if kind == "open":
        await rig.open()
    elif kind == "half open":
        await rig.open()
        await rig.half_open()
    elif kind == "key blocked":
        await rig.call(KEY_REFUSED)
    elif kind == "throttled":
        await rig.call(TOO_MANY)
    elif kind == "busy":
        await rig.calls(30, 3)
        await rig.call(CANCELLED, model="opus")
        rig.spend("1.234500", "0.1")


SITUATIONS = ["fresh", "open", "half open", "key blocked", "throttled", "busy"]


# ── shape ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", SITUATIONS)
@pytest.mark.parametrize("limits", [LIMITS, LimitOptions()], ids=["limits", "no limits"])
def test_a_services_view_has_the_promised_keys_and_types_in_every_state(
    kind: str, limits: LimitOptions
) -> None:
    async def test(rig: Rig) -> None:
        rig.add(limits=limits, budget="10" if limits is LIMITS else None)
        await trouble(rig, kind)
        check(rig.view(), shapes.SERVICE)
        json.dumps(rig.view())

    on_rig(test)


def test_the_view_of_all_services_has_the_promised_keys() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        rig.add("openai")
        overview = rig.overview()
        check(overview, shapes.SERVICES)
        assert overview["services"] == {name: rig.view(name) for name in ("claude", "openai")}

    on_rig(test)


def test_the_system_view_has_the_promised_keys(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        assert rig.system().keys() >= {"overall_health", "database", "ai_services", "timestamp"}

    on_rig(test, tmp_path)


@pytest.mark.parametrize("kind", SITUATIONS)
def test_reading_the_views_changes_nothing(kind: str) -> None:
    """This holds even much later, because only the tick applies the effects of time."""

    async def test(rig: Rig) -> None:
        service = rig.add(limits=LIMITS)
        await trouble(rig, kind)
        for _ in range(3):
            before = _inside(service)
            rig.overview()
            rig.findings()
            assert _inside(service) == before
            await rig.clock.sleep(40_000)

    on_rig(test)


def _inside(service: Service) -> Any:
    """The complete state of a service's policies, by value."""
    guards = [(one.breaker, one.cooldown, one.pacer, one.tally, one.checks_failed) for one in service.guards]
    gates = service.gates
    return _plain(
        [guards, gates.limits.counts, gates.quota, gates.key_blocks, gates.pacing, gates.bulkhead.used]
    )


def _plain(thing: Any) -> Any:
    if isinstance(thing, dict):
        return {key: _plain(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple | deque):
        return [_plain(one) for one in thing]
    if type(thing).__module__.startswith("koo.policies") and not isinstance(thing, Enum):
        names = type(thing).__slots__
        return {name: _plain(getattr(thing, name)) for name in names if hasattr(thing, name)}
    return thing


# ── counts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_counts_cover_the_processs_life_and_rates_the_last_five_minutes() -> None:
    async def test(rig: Rig) -> None:
        rig.add(failure_threshold=1000)
        await rig.calls(good=9, bad=3)
        metrics = rig.view()["metrics"]
        assert (metrics["total_requests"], metrics["successful_requests"], metrics["failed_requests"]) == (
            12,
            9,
            3,
        )
        assert metrics["success_rate"] == 0.75 and metrics["average_response_time"] == pytest.approx(0.1)
        assert metrics["error_counts"] == {"server_error": 3}
        assert metrics["recent"] == {"calls": 12, "failed": 3, "slow": 0, "window_s": 300.0}
        await rig.clock.sleep(301)
        later = rig.view()["metrics"]
        assert (later["total_requests"], later["failed_requests"], later["success_rate"]) == (12, 3, 1.0)
        assert later["p95"] == later["average_response_time"] == 0.0 and later["recent"]["calls"] == 0

    on_rig(test)


def test_a_throttled_request_counts_as_failed_and_is_also_counted_separately() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        await rig.call(FAILED)
        await rig.call(TOO_MANY)
        view = rig.view()
        assert (view["metrics"]["failed_requests"], view["metrics"]["throttled_requests"]) == (2, 1)
        assert view["health"]["failure_count"] == 2

    on_rig(test)


def test_the_success_rate_is_one_without_calls() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        assert rig.view()["metrics"]["success_rate"] == 1.0
        await rig.call(CANCELLED)
        metrics = rig.view()["metrics"]
        assert (metrics["success_rate"], metrics["total_requests"], metrics["neutral_requests"]) == (
            1.0,
            1,
            1,
        )

    on_rig(test)


def test_a_refused_call_does_not_count_as_a_request_to_the_service() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        await rig.open()
        with pytest.raises(Exception, match="the circuit is open"):
            await rig.call()
        metrics = rig.view()["metrics"]
        assert (metrics["total_requests"], metrics["refused_requests"]) == (5, 1)
        assert metrics["refusals"] == {"circuit_open": 1}

    on_rig(test)


def test_a_services_models_are_added_up_and_also_shown_separately_default_first() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        await rig.calls(1, model="opus")
        await rig.open(model="opus")
        await rig.calls(2)
        view = rig.view()
        assert view["metrics"]["total_requests"] == 8
        assert (view["health"]["success_count"], view["health"]["failure_count"]) == (3, 5)
        assert view["health"]["circuit_breaker_state"] == "closed", "the default model's"
        assert [(name, one["state"]) for name, one in view["models"].items()] == [
            ("sonnet", "closed"),
            ("opus", "open"),
        ]

    on_rig(test)


def test_all_times_are_wall_times() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        await rig.calls(1)
        seen = seconds(rig.view()["health"]["last_success"])
        assert seen == pytest.approx(rig.clock.wall(), abs=1e-3)
        await rig.open()
        breaker = rig.services["claude"].default_guard.breaker
        in_s = breaker.opens_until() - rig.clock.monotonic()
        seen = seconds(rig.view()["health"]["next_attempt"])
        assert seen == pytest.approx(rig.clock.wall() + in_s, abs=1e-3) and in_s >= 60

    on_rig(test)


@pytest.mark.parametrize("override", [Override.FORCED_OPEN, Override.DISABLED])
def test_an_operators_override_is_shown_instead_of_the_phase(override: Override) -> None:
    async def test(rig: Rig) -> None:
        rig.add().set_override(override)
        assert rig.view()["health"]["circuit_breaker_state"] == override.value
        assert ("operator" in rig.view()["models"]["sonnet"]["reason"]) is (override is Override.FORCED_OPEN)

    on_rig(test)


def test_a_refused_key_is_shown_for_its_model() -> None:
    async def test(rig: Rig) -> None:
        service = rig.add()
        await rig.call(model="opus")
        await rig.call(MODEL_REFUSED, model="opus")
        view = rig.view()
        refused = {name: bool(one["key_refused"]) for name, one in view["models"].items()}
        assert refused == {"sonnet": False, "opus": True} and view["state"] == "degraded"
        service.unblock_key()
        await rig.call(KEY_REFUSED)
        view = rig.view()
        assert all(one["key_refused"] for one in view["models"].values()) and view["state"] == "circuit_open"

    on_rig(test)


# ── limits and money ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_limit_shows_used_and_remaining_units_and_when_the_next_is_free() -> None:
    async def test(rig: Rig) -> None:
        rig.add(limits=LIMITS)
        fresh = rig.view()["rate_limits"]["requests_per_minute"]
        assert fresh == {"used": 0, "limit": 60, "remaining": 60, "resets_at": None}
        begun = rig.clock.wall()
        await rig.calls(3, took_s=5.0)
        windows: list[tuple[RequestWindow, int, int, int]] = [
            ("requests_per_minute", 60, 60, 1),
            ("requests_per_hour", 1000, 3600, 60),
        ]
        for key, limit, period_s, late_s in windows:
            seen = rig.view()["rate_limits"][key]
            assert (seen["used"], seen["limit"], seen["remaining"]) == (3, limit, limit - 3)
            back = seconds(seen["resets_at"])
            assert begun + period_s <= back <= begun + period_s + late_s, (
                "a unit is free at most a sixtieth of the period late"
            )

    on_rig(test)


def test_a_limit_is_correct_even_if_no_tick_has_rolled_it() -> None:
    async def test(rig: Rig) -> None:
        rig.add(limits=LIMITS)
        await rig.calls(3)
        await rig.clock.sleep(62)
        limits = rig.view()["rate_limits"]
        assert limits["requests_per_minute"] == {"used": 0, "limit": 60, "remaining": 60, "resets_at": None}
        assert limits["requests_per_hour"]["used"] == limits["requests_per_day"]["used"] == 3

    on_rig(test)


def test_a_daily_limit_resets_at_midnight_utc_in_the_view_even_before_it_is_rolled() -> None:
    async def test(rig: Rig) -> None:
        rig.add(limits=LIMITS)
        rig.spend("1.50", "0.25")
        await rig.calls(3)

        def seen() -> tuple[Any, ...]:
            limits = rig.view()["rate_limits"]
            day, budget = limits["requests_per_day"], limits["daily_budget"]
            return day["used"], day["resets_at"], budget["spent"], budget["reserved"], budget["resets_at"]

        def midnight(days: int) -> str:
            return datetime.fromtimestamp((utc_day(begun) + days) * DAY_S, UTC).isoformat()

        begun = rig.clock.wall()
        assert seen() == (3, midnight(1), "1.5", "0.25", midnight(1))
        await rig.clock.sleep((utc_day(begun) + 1) * DAY_S - begun)
        assert seen() == (0, midnight(2), "0", "0", midnight(2))
        await rig.clock.sleep(3 * DAY_S)
        assert seen() == (0, midnight(5), "0", "0", midnight(5))

    on_rig(test)


def test_an_unset_limit_is_none() -> None:
    async def test(rig: Rig) -> None:
        rig.add(limits=LimitOptions(per_hour=5), budget=None)
        limits = rig.view()["rate_limits"]
        assert limits["requests_per_minute"] == {
            "used": 0,
            "limit": None,
            "remaining": None,
            "resets_at": None,
        }
        assert limits["requests_per_hour"]["limit"] == 5
        assert limits["daily_budget"]["limit"] is limits["daily_budget"]["remaining"] is None

    on_rig(test)


@pytest.mark.parametrize(
    ("spent", "held", "remaining"),
    [("0", "0", "10"), ("2.50", "1.25", "6.25"), ("9", "1", "0"), ("12", "0", "0")],
)
def test_money_is_an_exact_string_and_the_remainder_is_never_negative(
    spent: str, held: str, remaining: str
) -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        rig.spend(spent, held)
        budget = rig.view()["rate_limits"]["daily_budget"]
        assert Decimal(budget["spent"]) == Decimal(spent) and Decimal(budget["reserved"]) == Decimal(held)
        assert (budget["remaining"], budget["limit"], budget["currency"]) == (remaining, "10", "USD")

    on_rig(test)


@pytest.mark.parametrize(
    "limits", [LimitOptions(per_minute=2), LimitOptions(per_day=2), LimitOptions(per_minute=0)]
)
def test_a_service_with_an_exhausted_limit_is_rate_limited(limits: LimitOptions) -> None:
    """This includes a limit of zero, which refuses every call."""

    async def test(rig: Rig) -> None:
        rig.add(limits=limits)
        await rig.calls(0 if limits.per_minute == 0 else 2)
        view = rig.view()
        assert view["state"] == "rate_limited" and "koo's limit of" in view["reason"]
        with pytest.raises(Exception, match="koo's limit of"):
            await rig.call()

    on_rig(test)


def test_a_service_with_a_spent_budget_is_rate_limited_until_the_day_ends() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        rig.spend("9.99")
        assert rig.view()["state"] == "healthy"
        rig.spend("10")
        assert rig.view()["state"] == "rate_limited" and "budget of 10 USD" in rig.view()["reason"]
        await rig.clock.sleep(DAY_S)
        assert rig.view()["state"] == "healthy"

    on_rig(test)


def test_a_providers_pause_makes_the_service_rate_limited_until_it_is_over() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        await rig.call(TOO_MANY)
        view = rig.view()
        assert view["state"] == "rate_limited" and "2026-09-21T14:13:4" in view["reason"]
        await rig.clock.sleep(21.1)
        assert rig.view()["state"] == "healthy"

    on_rig(test)


# ── overall ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_service_without_a_key_is_listed_but_not_counted() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        rig.add("gemini", configured=False)
        gemini, overview = rig.view("gemini"), rig.overview()
        assert (gemini["configured"], gemini["state"], gemini["reason"]) == (
            False,
            "unhealthy",
            "not configured",
        )
        assert (overview["healthy_services"], overview["total_services"]) == (1, 1)
        assert overview["overall_health"] == "healthy" and set(overview["services"]) == {"claude", "gemini"}

    on_rig(test)


async def degraded(rig: Rig, name: str) -> None:
    await rig.open(name=name)
    await rig.half_open(name=name)


async def refused(rig: Rig, name: str) -> None:
    await rig.open(name=name)


async def limited(rig: Rig, name: str) -> None:
    await rig.call(TOO_MANY, name=name)


async def failing(rig: Rig, name: str) -> None:
    for _ in range(3):
        await rig.call(FAILED, name=name)


@pytest.mark.parametrize(
    ("claude", "openai", "overall", "healthy"),
    [
        (None, None, "healthy", 2),
        (None, failing, "degraded", 1),
        (None, refused, "degraded", 1),
        (None, limited, "degraded", 1),
        (degraded, refused, "degraded", 0),
        (failing, failing, "degraded", 0),
        (refused, refused, "unhealthy", 0),
        (refused, limited, "unhealthy", 0),
    ],
)
def test_overall_health_is_unhealthy_if_every_service_refuses_and_degraded_if_any_is_not_healthy(
    claude: Any, openai: Any, overall: str, healthy: int
) -> None:
    async def test(rig: Rig) -> None:
        for name, bring in (("claude", claude), ("openai", openai)):
            rig.add(name)
            if bring is not None:
                await bring(rig, name)
        seen = rig.overview()
        assert (seen["overall_health"], seen["healthy_services"], seen["total_services"]) == (
            overall,
            healthy,
            2,
        )

    on_rig(test)


def test_overall_health_is_healthy_without_services() -> None:
    async def test(rig: Rig) -> None:
        assert rig.overview()["overall_health"] == "healthy"
        rig.add("gemini", configured=False)
        assert rig.overview()["overall_health"] == "healthy"

    on_rig(test)


def test_the_system_is_unhealthy_if_the_database_refuses_or_every_service_does(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        assert rig.system()["overall_health"] == "healthy"
        rig.look_at_database("no answer")
        assert rig.system()["overall_health"] == "degraded"
        rig.look_at_database()
        await rig.use_database(*[False] * 5)
        assert rig.system()["overall_health"] == "unhealthy"
        await rig.clock.sleep(60)
        rig.tick()
        assert rig.system()["overall_health"] == "degraded", "its recovery is being tested"
        await rig.use_database(True, True)
        assert rig.system()["overall_health"] == "healthy"
        await failing(rig, "claude")
        assert rig.system()["overall_health"] == "degraded"
        await rig.open()
        assert rig.system()["overall_health"] == "unhealthy"

    on_rig(test, tmp_path)


def test_an_unknown_service_raises_an_error_that_lists_the_known_ones() -> None:
    error = unknown_service("nobody" * 100, ["openai", "claude"])
    assert "known services: claude, openai" in str(error) and len(str(error)) < 200
