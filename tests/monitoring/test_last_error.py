"""Every view of a state shows `last_error` next to the reason, and the reason keeps the cause."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from koo.errors import Failure, Kind, ServiceFailed
from koo.policies.breaker import HALF_OPEN
from koo.policies.verdict import FAILURE, NEUTRAL, Fault
from tests.monitoring.rig import KEY_REFUSED, TOO_MANY, Rig, on_rig

API_ERROR = Fault(
    verdict=FAILURE,
    kind=Kind.SERVER_ERROR,
    failure=Failure(Kind.SERVER_ERROR, "it failed (status 500, api_error)", 500, "api_error"),
)
UNREACHABLE = replace(
    API_ERROR, failure=Failure(Kind.CONNECTION, "the connection was refused"), reach="service"
)
MISTAKE = Fault(verdict=NEUTRAL, kind=Kind.INVALID_REQUEST)


def test_without_a_failure_there_is_no_last_error() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        await rig.call()
        view = rig.view()
        assert view["last_error"] is None and view["models"]["sonnet"]["last_error"] is None

    on_rig(test)


def test_an_open_breaker_shows_the_last_failures_error_and_time() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        for _ in range(5):
            await rig.clock.sleep(1.0)
            await rig.call(API_ERROR)
        view = rig.view()
        reason = "5 failures in a row, the last: status 500, api_error"
        assert (view["state"], view["reason"]) == ("circuit_open", reason)
        error = view["last_error"]
        assert error is not None and error["at"] == view["health"]["last_failure"]
        assert (error["kind"], error["status"]) == ("server_error", 500)
        assert error["sentence"] == "it failed (status 500, api_error)"
        assert (
            view["models"]["sonnet"]["last_error"] == error and view["models"]["sonnet"]["reason"] == reason
        )

    on_rig(test)


def test_the_cause_is_kept_through_failed_probes() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        for _ in range(5):
            await rig.call(API_ERROR)
        for probes in ("a failed probe", "2 failed probes"):
            await rig.half_open()
            assert rig.view()["reason"].startswith("recovery is being tested after 5 failures in a row")
            await rig.call(API_ERROR)
            wanted = f"5 failures in a row, then {probes}, the last: status 500, api_error"
            assert rig.view()["reason"] == wanted
        assert rig.view()["last_error"] is not None

    on_rig(test)


def test_a_hung_probe_hides_neither_the_cause_nor_the_last_error() -> None:
    async def test(rig: Rig) -> None:
        service = rig.add()
        for _ in range(5):
            await rig.call(API_ERROR)
        await rig.half_open()
        breaker = service.default_guard.breaker
        assert breaker.admit(rig.clock.monotonic(), lambda: 0.0) is not None
        await rig.clock.sleep(breaker.lease_s)
        rig.tick()
        view = rig.view()
        wanted = "5 failures in a row, then a hung probe; the last error: status 500, api_error"
        assert (
            view["reason"] == wanted
            and view["last_error"] is not None
            and view["last_error"]["status"] == 500
        )

    on_rig(test)


def test_failed_checks_show_their_error() -> None:
    async def test(rig: Rig) -> None:
        service = rig.add()
        for _ in range(3):
            service.note_check(
                ServiceFailed("claude", "the host name cannot be resolved", kind=Kind.CONNECTION)
            )
        view = rig.view()
        wanted = "3 health checks failed in a row, the last: the host name cannot be resolved"
        assert (view["state"], view["reason"]) == ("unhealthy", wanted)
        assert view["last_error"] is not None and view["last_error"]["kind"] == "connection"

    on_rig(test)


def test_a_refused_key_and_a_pause_count_as_last_errors() -> None:
    async def test(rig: Rig) -> None:
        rig.add("claude")
        rig.add("openai")
        await rig.call(KEY_REFUSED, name="claude")
        await rig.call(TOO_MANY, name="openai")
        claude, openai = rig.view("claude")["last_error"], rig.view("openai")["last_error"]
        assert claude is not None and claude["kind"] == "auth"
        assert openai is not None and openai["kind"] == "throttled"

    on_rig(test)


def test_a_key_refused_while_recovery_is_tested_becomes_the_reason() -> None:
    async def test(rig: Rig) -> None:
        service = rig.add()
        for _ in range(5):
            await rig.call(API_ERROR)
        await rig.half_open()
        await rig.call(KEY_REFUSED)
        view = rig.view()
        assert service.default_guard.breaker.phase is HALF_OPEN and "refused the key" in view["reason"]
        assert view["last_error"] is not None and view["last_error"]["kind"] == "auth"
        assert "the last: status 500, api_error" in view["models"]["sonnet"]["reason"], (
            "the cause of the opening is kept"
        )

    on_rig(test)


def test_a_callers_mistake_is_not_a_services_last_error() -> None:
    async def test(rig: Rig) -> None:
        rig.add()
        await rig.call(MISTAKE)
        assert rig.view()["last_error"] is None

    on_rig(test)


def test_an_unreachable_host_is_the_last_error_of_every_model() -> None:
    async def test(rig: Rig) -> None:
        service = rig.add()
        service.guard("opus")
        for _ in range(5):
            await rig.call(UNREACHABLE)
        for model in rig.view()["models"].values():
            assert model["reason"] == "5 failures in a row, the last: the connection was refused"
            assert model["last_error"] is not None and model["last_error"]["status"] is None

    on_rig(test)


def test_a_breaker_opened_by_slow_calls_does_not_blame_an_old_failure() -> None:
    async def test(rig: Rig) -> None:
        rig.add(calls_min=20, failure_threshold=50)
        await rig.call(API_ERROR)
        await rig.clock.sleep(40.0)
        for _ in range(20):
            await rig.call(took_s=6.0)
            if rig.view()["state"] == "circuit_open":
                break
        rig.services["claude"].default_guard.breaker.window.roll(rig.clock.monotonic())
        assert "the last" not in rig.view()["reason"]

    on_rig(test)


def test_a_success_or_a_reset_keeps_the_last_error_and_its_time() -> None:
    async def test(rig: Rig) -> None:
        service = rig.add()
        await rig.call(API_ERROR)
        before = rig.view()["last_error"]
        await rig.clock.sleep(100.0)
        await rig.call()
        service.reset()
        view = rig.view()
        assert (view["state"], view["reason"]) == ("healthy", "") and view["last_error"] == before is not None

    on_rig(test)


def test_a_databases_health_names_its_server_and_its_last_error(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        await rig.use_database(*[False] * 5)
        view = rig.database_health()
        assert view["server"] == {"host": None, "port": None, "name": "user.db"}
        assert view["reason"] == "5 failures in a row, the last: the server refuses connections"
        assert view["last_error"] == view["circuit_breaker"]["last_error"]
        assert view["last_error"] is not None and view["last_error"]["kind"] == "connection"

    on_rig(test, tmp_path)


def test_a_probes_error_names_the_database_once_and_no_retry_time(
    tmp_path: Path,
) -> None:
    async def test(rig: Rig) -> None:
        rig.look_at_database("the server refuses connections")
        assert rig.database_health()["error"] == "the server refuses connections"

    on_rig(test, tmp_path)
