"""Every view of a state shows `last_error` next to the reason, and the reason keeps the cause."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from koo.errors import Failure, Kind, ServiceFailed
from koo.policies.breaker import HALF_OPEN
from koo.policies.verdict import FAILURE, NEUTRAL, Fault
from tests.monitoring.houses import KEY_REFUSED, TOO_MANY, House, in_house

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
    async def test(house: House) -> None:
        house.add()
        await house.call()
        view = house.view()
        assert view["last_error"] is None and view["models"]["sonnet"]["last_error"] is None

    in_house(test)


def test_an_open_breaker_shows_the_last_failures_error_and_time() -> None:
    async def test(house: House) -> None:
        house.add()
        for _ in range(5):
            await house.clock.sleep(1.0)
            await house.call(API_ERROR)
        view = house.view()
        reason = "5 failures in a row, the last: status 500, api_error"
        assert (view["state"], view["reason"]) == ("circuit_open", reason)
        error = view["last_error"]
        assert error is not None and error["at"] == view["health"]["last_failure"]
        assert (error["kind"], error["status"]) == ("server_error", 500)
        assert error["sentence"] == "it failed (status 500, api_error)"
        assert (
            view["models"]["sonnet"]["last_error"] == error and view["models"]["sonnet"]["reason"] == reason
        )

    in_house(test)


def test_the_cause_is_kept_through_failed_probes() -> None:
    async def test(house: House) -> None:
        house.add()
        for _ in range(5):
            await house.call(API_ERROR)
        for probes in ("a failed probe", "2 failed probes"):
            await house.half_open()
            assert house.view()["reason"].startswith("recovery is being tested after 5 failures in a row")
            await house.call(API_ERROR)
            wanted = f"5 failures in a row, then {probes}, the last: status 500, api_error"
            assert house.view()["reason"] == wanted
        assert house.view()["last_error"] is not None

    in_house(test)


def test_a_hung_probe_hides_neither_the_cause_nor_the_last_error() -> None:
    async def test(house: House) -> None:
        service = house.add()
        for _ in range(5):
            await house.call(API_ERROR)
        await house.half_open()
        breaker = service.default_guard.breaker
        assert breaker.admit(house.clock.monotonic(), lambda: 0.0) is not None
        await house.clock.sleep(breaker.lease_s)
        house.tick()
        view = house.view()
        wanted = "5 failures in a row, then a hung probe; the last error: status 500, api_error"
        assert (
            view["reason"] == wanted
            and view["last_error"] is not None
            and view["last_error"]["status"] == 500
        )

    in_house(test)


def test_failed_checks_show_their_error() -> None:
    async def test(house: House) -> None:
        service = house.add()
        for _ in range(3):
            service.note_check(
                ServiceFailed("claude", "the host name cannot be resolved", kind=Kind.CONNECTION)
            )
        view = house.view()
        wanted = "3 health checks failed in a row, the last: the host name cannot be resolved"
        assert (view["state"], view["reason"]) == ("unhealthy", wanted)
        assert view["last_error"] is not None and view["last_error"]["kind"] == "connection"

    in_house(test)


def test_a_refused_key_and_a_pause_count_as_last_errors() -> None:
    async def test(house: House) -> None:
        house.add("claude")
        house.add("openai")
        await house.call(KEY_REFUSED, name="claude")
        await house.call(TOO_MANY, name="openai")
        claude, openai = house.view("claude")["last_error"], house.view("openai")["last_error"]
        assert claude is not None and claude["kind"] == "auth"
        assert openai is not None and openai["kind"] == "throttled"

    in_house(test)


def test_a_key_refused_while_recovery_is_tested_becomes_the_reason() -> None:
    async def test(house: House) -> None:
        service = house.add()
        for _ in range(5):
            await house.call(API_ERROR)
        await house.half_open()
        await house.call(KEY_REFUSED)
        view = house.view()
        assert service.default_guard.breaker.phase is HALF_OPEN and "refused the key" in view["reason"]
        assert view["last_error"] is not None and view["last_error"]["kind"] == "auth"
        assert "the last: status 500, api_error" in view["models"]["sonnet"]["reason"], (
            "the cause of the opening is kept"
        )

    in_house(test)


def test_a_callers_mistake_is_not_a_services_last_error() -> None:
    async def test(house: House) -> None:
        house.add()
        await house.call(MISTAKE)
        assert house.view()["last_error"] is None

    in_house(test)


def test_an_unreachable_host_is_the_last_error_of_every_model() -> None:
    async def test(house: House) -> None:
        service = house.add()
        service.guard("opus")
        for _ in range(5):
            await house.call(UNREACHABLE)
        for model in house.view()["models"].values():
            assert model["reason"] == "5 failures in a row, the last: the connection was refused"
            assert model["last_error"] is not None and model["last_error"]["status"] is None

    in_house(test)


def test_a_breaker_opened_by_slow_calls_does_not_blame_an_old_failure() -> None:
    async def test(house: House) -> None:
        house.add(calls_min=20, failure_threshold=50)
        await house.call(API_ERROR)
        await house.clock.sleep(40.0)
        for _ in range(20):
            await house.call(took_s=6.0)
            if house.view()["state"] == "circuit_open":
                break
        house.services["claude"].default_guard.breaker.window.roll(house.clock.monotonic())
        assert "the last" not in house.view()["reason"]

    in_house(test)


def test_a_success_or_a_reset_keeps_the_last_error_and_its_time() -> None:
    async def test(house: House) -> None:
        service = house.add()
        await house.call(API_ERROR)
        before = house.view()["last_error"]
        await house.clock.sleep(100.0)
        await house.call()
        service.reset()
        view = house.view()
        assert (view["state"], view["reason"]) == ("healthy", "") and view["last_error"] == before is not None

    in_house(test)


def test_a_databases_health_names_its_server_and_its_last_error(tmp_path: Path) -> None:
    async def test(house: House) -> None:
        await house.use_database(*[False] * 5)
        view = house.database_health()
        assert view["server"] == {"host": None, "port": None, "name": "user.db"}
        assert view["reason"] == "5 failures in a row, the last: the server refuses connections"
        assert view["last_error"] == view["circuit_breaker"]["last_error"]
        assert view["last_error"] is not None and view["last_error"]["kind"] == "connection"

    in_house(test, tmp_path)


def test_a_probes_error_names_the_database_once_and_no_retry_time(
    tmp_path: Path,
) -> None:
    async def test(house: House) -> None:
        house.look_at_database("the server refuses connections")
        assert house.database_health()["error"] == "the server refuses connections"

    in_house(test, tmp_path)
