"""The promised names: their modules, their signatures, their results and their errors."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from importlib import import_module
from types import CoroutineType
from typing import Any, assert_type

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

import koo
from koo.configuration.variables import BUILT_IN
from koo.errors import CircuitOpen, ExternalServiceError, InvalidRequest, RateLimited, UnknownService
from koo.monitoring.shapes import DatabaseHealth, ServiceHealth, SystemHealth
from koo.testing.providers import FakeAnthropic, answer, error

pytestmark = pytest.mark.usefixtures("fake")

SURFACE: dict[str, set[str]] = {
    "core.config": {"settings", "Settings"},
    "core.exceptions": {
        "ExternalServiceError", "RateLimited", "BudgetExceeded", "CircuitOpen", "AuthenticationFailed",
        "InvalidRequest", "ServiceTimeout", "StreamTruncated", "AllServicesFailed", "DatabaseUnavailable",
        "PoolSaturated", "CommitOutcomeUnknown",
    },
    "core.database": {
        "db_manager", "check_database_health", "transactional_with_retry", "get_session", "SessionDep",
    },
    "core.ai_error_handling": {"ai_error_handler", "execute_ai_operation", "stream_ai_operation"},
    "services.hybrid_ai_manager": {
        "query_ai", "stream_ai", "query_multiple_ai", "get_ai_service_health", "get_all_ai_services_health",
        "perform_ai_health_check", "reset_ai_service_errors", "reset_all_ai_services_errors", "hybrid_ai_manager",
        "ExternalServiceError",
    },
    "api.monitoring": {"router", "get_system_health", "get_monitoring_dashboard", "get_system_alerts"},
    "api.ai": {"router"},
}  # fmt: skip
OPTIONS = [
    "model",
    "system",
    "max_tokens",
    "temperature",
    "timeout_s",
    "fallback",
    "on_limit",
    "max_cost_usd",
    "clamp",
    "tag",
    "metadata",
]


@pytest.mark.parametrize(("module", "names"), SURFACE.items(), ids=list(SURFACE))
def test_every_promised_name_exists(module: str, names: set[str]) -> None:
    found = import_module(module)
    assert names <= set(found.__all__)
    assert [name for name in found.__all__ if not hasattr(found, name)] == []
    assert not hasattr(found, "no_such_name")
    assert found.__doc__ and len(found.__doc__) > 50


@pytest.mark.parametrize(
    ("module", "name"),
    [(module, name) for module, names in SURFACE.items() for name in sorted(names - {"router"})],
)
def test_every_promised_name_is_the_same_object_in_koo(module: str, name: str) -> None:
    assert getattr(koo, name) is getattr(import_module(module), name)
    assert name in koo.__all__


def test_koo_installed_without_the_backend_has_the_names_and_one_platform(fake: FakeAnthropic) -> None:
    """A wheel contains only `koo`."""
    program = """
import asyncio, importlib.util, sys
sys.path = [one for one in sys.path if not one.rstrip("/").endswith("backend")]
assert not any(map(importlib.util.find_spec, ("core", "services", "api")))
from koo import ai_error_handler, db_manager, get_system_health, platform, query_ai, settings
from sqlalchemy import text
async def main():
    async with db_manager.session_scope() as session:
        print(await session.scalar(text("SELECT 1")))
    print(await query_ai("claude", "Capital of France?"))
    print((await get_system_health())["overall_health"])
asyncio.run(main())
print(db_manager is platform.database, settings.database_pool_size, len(ai_error_handler.get_all_services_status()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"1\nParis.\nhealthy\nTrue 10 {len(BUILT_IN)}\n", "")


async def types_of_bound_names() -> None:
    """Checked by mypy, never run: a user's code gets the types through `koo`."""
    assert_type(await koo.query_ai("claude", "Hello?"), koo.Answer)
    assert_type([piece async for piece in koo.stream_ai("claude", "Hello?")], list[koo.Chunk])
    assert_type(koo.get_ai_service_health("claude"), ServiceHealth)
    assert_type(await koo.get_system_health(), SystemHealth)
    assert_type(await koo.execute_ai_operation("search", koo.check_database_health), DatabaseHealth)
    assert_type(koo.platform, koo.Platform)
    assert_type(koo.settings, koo.Settings)
    async with koo.db_manager.session_scope() as session:
        assert_type(session, AsyncSession)

    @koo.transactional_with_retry(max_retries=5)
    async def move(session: AsyncSession, amount: int) -> str:
        return f"{session} {amount}"

    @koo.guarded("search")
    async def search(words: str) -> int:
        return len(words)

    @koo.guarded("search", in_thread=True)
    def blocking(words: str) -> int:
        return len(words)

    @koo.guarded("search")
    async def found() -> AsyncIterator[int]:
        yield 1

    # A task group and an override of an `async def` need a coroutine, not any awaitable; pyright needs this very class.
    assert_type(move(3), CoroutineType[Any, Any, str]).close()
    assert_type(search("shoes"), CoroutineType[Any, Any, int]).close()
    assert_type(blocking("shoes"), CoroutineType[Any, Any, int]).close()
    assert_type(koo.guarded("search")(len)("shoes"), int)
    assert_type([one async for one in found()], list[int])


def test_importing_has_no_side_effects(
    fake: FakeAnthropic, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Importing does not even read the settings: a wrong one raises when something that needs it is used."""
    monkeypatch.setenv("DATABASE_POOL_SIZE", "0")
    for module in (*SURFACE, "main"):
        import_module(module)
    with pytest.raises(koo.ConfigurationError, match='DATABASE_POOL_SIZE is "0"'):
        getattr(import_module("core.config"), "settings")  # noqa: B009
    with pytest.raises(koo.ConfigurationError, match='DATABASE_POOL_SIZE is "0"'):
        getattr(import_module("core.database"), "db_manager")  # noqa: B009
    assert list(tmp_path.iterdir()) == []


def test_every_name_is_bound_to_the_same_platform() -> None:
    import core.exceptions
    import services.hybrid_ai_manager
    from core.config import Settings, settings
    from core.database import db_manager
    from core.platform import platform

    assert isinstance(settings, Settings) and Settings is koo.Settings
    assert import_module("core.config").settings is settings
    assert isinstance(db_manager, koo.Database) and db_manager is platform.database
    assert core.exceptions.ExternalServiceError is ExternalServiceError
    assert services.hybrid_ai_manager.ExternalServiceError is ExternalServiceError
    assert str(settings.koo_home) == str(platform.options.home)


# ── signatures ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["query_ai", "stream_ai"])
def test_a_query_has_the_promised_options(name: str) -> None:
    parameters = inspect.signature(getattr(import_module("services.hybrid_ai_manager"), name)).parameters
    assert list(parameters) == ["service", "prompt", *OPTIONS]
    assert all(parameters[option].kind is inspect.Parameter.KEYWORD_ONLY for option in OPTIONS)
    assert all(parameters[option].default is not inspect.Parameter.empty for option in OPTIONS)


@pytest.mark.parametrize(
    ("place", "is_async", "required"),
    [
        ("services.hybrid_ai_manager:query_ai", True, 2),
        ("services.hybrid_ai_manager:stream_ai", False, 2),
        ("services.hybrid_ai_manager:query_multiple_ai", True, 1),
        ("services.hybrid_ai_manager:get_ai_service_health", False, 1),
        ("services.hybrid_ai_manager:get_all_ai_services_health", False, 0),
        ("services.hybrid_ai_manager:perform_ai_health_check", True, 0),
        ("services.hybrid_ai_manager:reset_ai_service_errors", False, 1),
        ("services.hybrid_ai_manager:reset_all_ai_services_errors", False, 0),
        ("core.ai_error_handling:execute_ai_operation", True, 2),
        ("core.ai_error_handling:ai_error_handler.execute_with_error_handling", True, 2),
        ("core.ai_error_handling:stream_ai_operation", False, 2),
        ("core.ai_error_handling:ai_error_handler.stream_with_error_handling", False, 2),
        ("core.ai_error_handling:ai_error_handler.get_all_services_status", False, 0),
        ("core.ai_error_handling:ai_error_handler.get_service_status", False, 1),
        ("core.ai_error_handling:ai_error_handler.register_service", False, 1),
        ("core.ai_error_handling:ai_error_handler.reset_circuit_breaker", False, 1),
        ("core.ai_error_handling:ai_error_handler.reset_rate_limiter", False, 1),
        ("core.database:check_database_health", True, 0),
        ("core.database:db_manager.health_check", True, 0),
        ("core.database:db_manager.get_detailed_status", True, 0),
        ("core.database:db_manager.get_pool_metrics", False, 0),
        ("core.database:db_manager.reset_circuit_breaker", False, 0),
        ("api.monitoring:get_system_health", True, 0),
        ("api.monitoring:get_monitoring_dashboard", True, 0),
        ("api.monitoring:get_system_alerts", True, 0),
    ],
)
def test_coroutine_functions_and_required_arguments_are_as_promised(
    place: str, is_async: bool, required: int
) -> None:
    function = _find(place)
    assert inspect.iscoroutinefunction(function) is is_async
    parameters = inspect.signature(function).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [one for one in parameters if one.kind in positional and one.default is inspect.Parameter.empty]
    assert len(needed) == required


def _find(place: str) -> Callable[..., Any]:
    module, _, path = place.partition(":")
    found: Any = import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return found  # type: ignore[no-any-return]


def test_the_manager_object_has_the_same_functions() -> None:
    module = import_module("services.hybrid_ai_manager")
    for name in module.__all__:
        if name not in ("hybrid_ai_manager", "ExternalServiceError"):
            assert getattr(module.hybrid_ai_manager, name) is getattr(module, name)


# ── queries ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_answer_is_its_text_with_its_usage_and_cost(fake: FakeAnthropic) -> None:
    from services.hybrid_ai_manager import query_ai

    fake.script(answer("Paris.", input_tokens=20, output_tokens=4))
    response = asyncio.run(
        query_ai("claude", "Capital of France?", system="One word.", max_tokens=9, tag="geo")
    )
    assert str(response) == response.text == "Paris."
    assert (response.service, response.attempts) == ("claude", 1)
    assert response.model.startswith("claude-")
    assert response.usage.total_tokens == 24
    assert response.cost_usd == Decimal("0.00008")
    assert response.latency_s > 0
    assert "geo" not in str(fake.queries[0].body)


def test_the_fallback_may_be_a_single_service(fake: FakeAnthropic) -> None:
    from services.hybrid_ai_manager import query_ai

    for fallback in ("claude", ["claude"], ("claude",)):
        assert asyncio.run(query_ai("openai", "Hello?", fallback=fallback)).service == "claude"


def test_an_unknown_option_raises_type_error() -> None:
    from services.hybrid_ai_manager import query_ai, stream_ai

    for ask in (query_ai, stream_ai):
        with pytest.raises(TypeError, match="tempratur"):
            ask("claude", "Hello?", tempratur=1)  # type: ignore[call-arg]


def test_everything_raised_on_purpose_is_an_external_service_error(fake: FakeAnthropic) -> None:
    from services.hybrid_ai_manager import query_ai

    async def main() -> None:
        with pytest.raises(UnknownService, match=r"known services: .*claude"):
            await query_ai("nobody", "Hello?")
        with pytest.raises(InvalidRequest):
            await query_ai("claude", " ")
        with pytest.raises(ExternalServiceError, match="not configured"):
            await query_ai("openai", "Hello?")
        fake.script(error(429, "rate_limit_error", headers={"retry-after": "300"}))
        with pytest.raises(RateLimited) as limited:
            await query_ai("claude", "secret prompt 4711")
        failure = limited.value
        assert (failure.service, failure.kind, failure.attempts) == ("claude", "throttled", 1)
        assert failure.retry_after_s is not None and failure.retry_after_s >= 299
        assert "4711" not in str(failure) and "\n" not in str(failure)

    asyncio.run(main())


def test_a_stream_yields_pieces_and_then_has_the_whole_answer(fake: FakeAnthropic) -> None:
    from services.hybrid_ai_manager import stream_ai

    async def main() -> str:
        stream = stream_ai("claude", "Count.")
        assert hasattr(stream, "aclose") and not inspect.isasyncgen(stream)
        text = "".join([str(chunk) async for chunk in stream])
        assert stream.answer is not None and stream.answer.text == text
        return text

    fake.script(answer("one two three"))
    assert asyncio.run(main()) == "one two three"


def test_several_queries_have_one_result_each(fake: FakeAnthropic) -> None:
    from services.hybrid_ai_manager import query_multiple_ai

    queries: list[dict[str, Any]] = [
        {"service": "claude", "prompt": "One?", "max_tokens": 9},
        {"service": "nobody", "prompt": "Two?"},
        {"service": "claude", "prompt": "Three?", "tempratur": 1},
        {"prompt": "Four?"},
        {"service": "claude", "prompt": "Five?", "fallback": "local"},
    ]
    results = asyncio.run(query_multiple_ai(queries))
    assert [result["success"] for result in results] == [True, False, False, False, True]
    assert str(results[0]["response"]) == "Paris."
    assert isinstance(results[1]["error"], UnknownService)
    assert isinstance(results[2]["error"], InvalidRequest) and "tempratur" in str(results[2]["error"])
    assert isinstance(results[3]["error"], InvalidRequest) and "service" in str(results[3]["error"])
    assert len(fake.queries) == 2
    assert asyncio.run(query_multiple_ai([])) == []


# ── status and resets ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_status_has_its_promised_keys_without_an_event_loop() -> None:
    from services.hybrid_ai_manager import get_ai_service_health, get_all_ai_services_health

    view = get_ai_service_health("claude")
    assert {
        "service_name",
        "state",
        "configured",
        "reason",
        "health",
        "metrics",
        "rate_limits",
    } <= view.keys()
    assert {"configuration", "last_updated"} <= view.keys()
    assert view["metrics"]["success_rate"] == 1.0
    overview = get_all_ai_services_health()
    assert {
        "overall_health",
        "healthy_services",
        "total_services",
        "services",
        "timestamp",
    } <= overview.keys()
    assert overview["services"].keys() == BUILT_IN.keys()
    assert overview["total_services"] == 2  # claude has a key, local needs none
    without_key = overview["services"]["openai"]
    assert (without_key["configured"], without_key["state"]) == (False, "unhealthy")
    with pytest.raises(UnknownService, match="known services"):
        get_ai_service_health("nobody")


def test_a_reset_returns_true_and_false_for_an_unknown_service() -> None:
    from core.ai_error_handling import ai_error_handler
    from services.hybrid_ai_manager import reset_ai_service_errors, reset_all_ai_services_errors

    assert reset_ai_service_errors("claude") is True
    assert reset_ai_service_errors("nobody") is False
    assert reset_all_ai_services_errors()["claude"] is True
    assert ai_error_handler.reset_circuit_breaker("claude") is True
    assert ai_error_handler.reset_circuit_breaker("nobody") is False
    assert ai_error_handler.reset_rate_limiter("claude") is True
    assert ai_error_handler.reset_rate_limiter("nobody") is False


def test_a_check_is_unbilled(fake: FakeAnthropic) -> None:
    from services.hybrid_ai_manager import perform_ai_health_check

    result = asyncio.run(perform_ai_health_check("claude"))
    assert set(result) == {"claude"}
    assert (result["claude"]["healthy"], result["claude"]["error"]) == (True, None)
    assert fake.queries == [] and fake.requests
    with pytest.raises(UnknownService):
        asyncio.run(perform_ai_health_check("nobody"))


def test_a_users_own_operation_has_the_same_guard() -> None:
    from core.ai_error_handling import ai_error_handler, execute_ai_operation

    async def find(words: str, *, limit: int = 1) -> str:
        if words == "down":
            raise ConnectionError("the search host is down")
        return words * limit

    async def main() -> None:
        ai_error_handler.register_service("search", failure_threshold=2, max_retries=0)
        run = ai_error_handler.execute_with_error_handling
        assert await run("search", find, "ab", limit=2) == "abab"
        for _ in range(2):
            with pytest.raises(ConnectionError, match="search host"):
                await execute_ai_operation("search", find, "down")
        with pytest.raises(CircuitOpen):
            await run("search", find, "ab")
        assert ai_error_handler.get_service_status("search")["state"] == "circuit_open"
        assert "search" in ai_error_handler.get_all_services_status()
        assert ai_error_handler.reset_circuit_breaker("search")
        assert await run("search", find, "ab") == "ab"
        with pytest.raises(UnknownService):
            await run("nothing", find, "ab")

    asyncio.run(main())


def test_the_health_of_everything_needs_no_request() -> None:
    from api.monitoring import get_monitoring_dashboard, get_system_alerts, get_system_health

    async def main() -> None:
        health = await get_system_health()
        assert {"overall_health", "database", "ai_services", "timestamp"} <= health.keys()
        assert health["overall_health"] == "healthy"
        dashboard = await get_monitoring_dashboard()
        assert {"summary", "database", "ai_services", "alerts", "timestamp"} <= dashboard.keys()
        assert dashboard["summary"] == {
            "overall_health": "healthy",
            "database_healthy": True,
            "ai_services_healthy": "2/2",
            "active_alerts": 0,
            "circuit_breakers_open": 0,
            "severity": None,
        }
        alerts = await get_system_alerts()
        assert (alerts["alerts"], alerts["alert_count"]) == ([], 0)

    asyncio.run(main())
    asyncio.run(main())  # a second loop in the same process works too
