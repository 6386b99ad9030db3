"""Every status has its promised keys with their types in every situation, in Python and over HTTP."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import text

from koo.errors import DatabaseUnavailable, ExternalServiceError, Kind, KooError
from koo.monitoring import shapes as typed
from koo.monitoring.shapes import DatabaseHealth, RequestWindow, ServiceHealth
from koo.policies.breaker import HALF_OPEN, OPEN, Override
from koo.policies.verdict import FAILURE
from koo.testing.polling import until
from koo.testing.postgres import PostgresServer
from koo.testing.providers import FakeAnthropic, answer, error
from koo.web import answers, create_app
from tests.backend import shapes
from tests.backend.shapes import check, check_json
from tests.web.exact import check_exactly
from tests.web.serving import Client, served

pytestmark = pytest.mark.usefixtures("fake")
API = "/api/v1"
REFUSED_PORT = "postgresql://user:hidden@127.0.0.1:1/none"


async def ask(
    fails_with: type[KooError] | None = None, service: str = "claude", **more: Any
) -> KooError | None:
    """Make one query; returns its error, which is required."""
    from services.hybrid_ai_manager import query_ai

    if fails_with is None:
        await query_ai(service, "Hello?", **more)
        return None
    with pytest.raises(fails_with) as caught:
        await query_ai(service, "Hello?", **more)
    check_error(caught.value, service)
    return caught.value


def check_error(failure: KooError, service: str) -> None:
    """Check the promised attributes and the message of an error."""
    assert failure.service == service
    assert isinstance(failure.kind, Kind) and type(failure.attempts) is int and failure.attempts >= 0
    assert failure.retry_after_s is None or shapes.seconds(failure.retry_after_s), failure.retry_after_s
    sentence = str(failure)
    assert sentence.startswith(f"{service}: ") and "\n" not in sentence and not sentence.endswith(".")
    assert "nan" not in sentence and "inf " not in sentence and "None" not in sentence, sentence


# ── the checks of every situation ─────────────────────────────────────────────────────────────────────────────────


async def check_python(service: str) -> ServiceHealth:
    """Check all statuses in Python; returns that of this service."""
    import services.hybrid_ai_manager as manager
    from api import monitoring
    from core.ai_error_handling import ai_error_handler
    from core.database import check_database_health, db_manager

    view = manager.get_ai_service_health(service)
    check(view, shapes.SERVICE)
    check(ai_error_handler.get_service_status(service), shapes.SERVICE)
    check(manager.get_all_ai_services_health(), shapes.SERVICES)
    assert shapes.each(shapes.SERVICE)(ai_error_handler.get_all_services_status())
    check(db_manager.get_pool_metrics(), shapes.POOL_METRICS)
    check(await monitoring.get_system_health(), shapes.SYSTEM)
    check(await monitoring.get_monitoring_dashboard(), shapes.DASHBOARD)
    check(await monitoring.get_system_alerts(), shapes.ALERTS)
    for found in (await db_manager.health_check(), await check_database_health()):
        check(found, shapes.DATABASE)
    check(await db_manager.get_detailed_status(), shapes.DATABASE | shapes.POOL_METRICS)
    assert db_manager.circuit_breaker_state.value in shapes.DATABASE["state"]
    return view


async def check_http(client: Client, service: str) -> None:
    """Check all statuses over HTTP, each also against the API's description."""
    views: dict[str, tuple[Any, Any]] = {
        "/monitoring/health": (shapes.SYSTEM, typed.SystemHealth),
        "/monitoring/dashboard": (shapes.DASHBOARD, typed.Dashboard),
        "/monitoring/alerts": (shapes.ALERTS, typed.SystemAlerts),
        "/monitoring/database": (
            {"database_monitoring": shapes.DATABASE | shapes.POOL_METRICS, "timestamp": shapes.at},
            answers.DatabaseMonitoring,
        ),
        "/monitoring/database/pool-metrics": (
            {"pool_metrics": shapes.POOL_METRICS, "timestamp": shapes.at},
            answers.PoolMetrics,
        ),
        "/monitoring/ai-services": (
            {"ai_services_monitoring": shapes.SERVICES, "timestamp": shapes.at},
            answers.ServicesMonitoring,
        ),
        f"/monitoring/ai-services/{service}/metrics": (
            {"service_metrics": shapes.SERVICE, "timestamp": shapes.at},
            answers.ServiceMonitoring,
        ),
        "/ai/services/health": (shapes.SERVICES, typed.ServicesHealth),
        f"/ai/services/{service}/health": (shapes.SERVICE, typed.ServiceHealth),
    }
    for path, (shape, exact) in views.items():
        reply = await client.get(API + path)
        assert reply.status == 200, path
        check(check_json(reply.body), shape, path)
        check_exactly(reply.body, exact)
    metrics = (await client.get("/metrics")).text
    assert "nan" not in metrics.lower() and "# TYPE" in metrics


def in_situation(
    bring_about: Callable[[FakeAnthropic], Awaitable[Any]], fake: FakeAnthropic, service: str = "claude"
) -> ServiceHealth:
    """Serve, bring about the situation, and check everything; returns the view of the service."""

    async def main() -> ServiceHealth:
        from core.platform import platform

        async with served(create_app(platform)) as client:
            await bring_about(fake)
            await check_http(client, service)
            return await check_python(service)

    return asyncio.run(main())


# ── AI services ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_status_has_its_shape_before_the_first_query(fake: FakeAnthropic) -> None:
    async def nothing(fake: FakeAnthropic) -> None:
        pass

    view = in_situation(nothing, fake)
    assert (view["state"], view["configured"], view["reason"]) == ("healthy", True, "")
    assert view["metrics"]["success_rate"] == 1.0
    assert view["health"]["last_failure"] is view["health"]["last_success"] is None
    assert view["rate_limits"]["requests_per_minute"] == {
        "used": 0, "limit": 60, "remaining": 60, "resets_at": None,
    }  # fmt: skip
    budget = view["rate_limits"]["daily_budget"]
    assert (budget["spent"], budget["reserved"], budget["limit"], budget["remaining"]) == (
        "0",
        "0",
        "10",
        "10",
    )


def test_each_status_has_its_shape_for_a_service_without_its_key(fake: FakeAnthropic) -> None:
    async def asked(fake: FakeAnthropic) -> None:
        failure = await ask(ExternalServiceError, "openai")
        assert failure is not None and failure.kind is Kind.NOT_CONFIGURED
        assert "OPENAI_API_KEY" in str(failure)

    view = in_situation(asked, fake, "openai")
    assert (view["configured"], view["state"], view["reason"]) == (
        False,
        "unhealthy",
        "not configured: set OPENAI_API_KEY to its key, in the environment or the .env in KOO_HOME",
    )
    assert view["metrics"]["total_requests"] == 0


def test_each_status_has_its_shape_while_a_breaker_opens_and_recovers(
    fake: FakeAnthropic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AI_CIRCUIT_BREAKER_RECOVERY_TIMEOUT", "0.2")

    async def opened(fake: FakeAnthropic) -> None:
        fake.script(*[error(500, "api_error")] * 5)
        for _ in range(5):
            await ask(ExternalServiceError)

    async def half_open(fake: FakeAnthropic) -> None:
        from core.platform import platform

        await opened(fake)
        await until(lambda: platform.services["claude"].default_guard.breaker.phase is HALF_OPEN)

    view = in_situation(half_open, fake)
    assert (view["state"], view["health"]["circuit_breaker_state"]) == ("degraded", "half_open")
    assert view["health"]["next_attempt"] is None


def test_each_status_has_its_shape_while_a_breaker_is_open(fake: FakeAnthropic) -> None:
    async def opened(fake: FakeAnthropic) -> None:
        fake.script(*[error(500, "api_error")] * 5)
        for _ in range(5):
            await ask(ExternalServiceError)
        refused = await ask(ExternalServiceError)
        assert refused is not None and refused.kind is Kind.CIRCUIT_OPEN and refused.attempts == 0
        assert refused.retry_after_s is not None and 0 < refused.retry_after_s <= 72

    view = in_situation(opened, fake)
    assert (view["state"], view["health"]["circuit_breaker_state"]) == ("circuit_open", "open")
    assert view["reason"] and shapes.at(view["health"]["next_attempt"])
    assert view["health"]["failure_count"] == 5 and view["metrics"]["refused_requests"] == 1
    assert (view["metrics"]["total_requests"], view["metrics"]["success_rate"]) == (5, 0.0)
    assert view["metrics"]["error_counts"] == {"server_error": 5}


@pytest.mark.parametrize(
    ("override", "word", "state"),
    [
        (Override.FORCED_OPEN, "forced_open", "circuit_open"),
        (Override.DISABLED, "disabled", "healthy"),
        (Override.METRICS_ONLY, "closed", "healthy"),
    ],
)
def test_each_status_has_its_shape_under_an_override(
    fake: FakeAnthropic, override: Override, word: str, state: str
) -> None:
    async def overridden(fake: FakeAnthropic) -> None:
        from core.platform import platform

        platform.override_service("claude", override)
        if override is Override.FORCED_OPEN:
            refused = await ask(ExternalServiceError)
            assert refused is not None and (refused.kind, refused.attempts) == (Kind.CIRCUIT_OPEN, 0)
            assert refused.retry_after_s is None, "the end of the override is unknown"
        else:
            await ask()

    view = in_situation(overridden, fake)
    assert (view["health"]["circuit_breaker_state"], view["state"]) == (word, state)
    assert view["health"]["next_attempt"] is None


def test_each_status_has_its_shape_after_a_key_was_refused(fake: FakeAnthropic) -> None:
    async def refused(fake: FakeAnthropic) -> None:
        fake.script(error(401, "authentication_error"))
        first = await ask(ExternalServiceError)
        assert first is not None and (first.kind, first.attempts) == (Kind.AUTH, 1)
        again = await ask(ExternalServiceError)
        assert again is not None and (again.kind, again.attempts) == (Kind.KEY_REFUSED, 0)

    view = in_situation(refused, fake)
    assert (view["state"], view["health"]["circuit_breaker_state"]) == ("circuit_open", "closed")
    assert "key" in view["reason"]


def test_each_status_has_its_shape_at_a_limit_of_the_provider(fake: FakeAnthropic) -> None:
    async def throttled(fake: FakeAnthropic) -> None:
        fake.script(error(429, "rate_limit_error", headers={"retry-after": "300"}))
        first = await ask(ExternalServiceError, on_limit="refuse")
        again = await ask(ExternalServiceError, on_limit="refuse")
        for one, attempts in ((first, 1), (again, 0)):
            assert one is not None and (one.kind, one.attempts) == (Kind.THROTTLED, attempts)
            assert one.retry_after_s is not None and 299 < one.retry_after_s < 320

    view = in_situation(throttled, fake)
    assert view["state"] == "rate_limited" and view["reason"]


@pytest.mark.parametrize(
    ("variable", "key"),
    [
        ("REQUESTS_PER_MINUTE", "requests_per_minute"),
        ("REQUESTS_PER_HOUR", "requests_per_hour"),
        ("REQUESTS_PER_DAY", "requests_per_day"),
    ],
)
def test_each_status_has_its_shape_at_koos_own_limit(
    fake: FakeAnthropic, monkeypatch: pytest.MonkeyPatch, variable: str, key: RequestWindow
) -> None:
    monkeypatch.setenv(f"AI_SERVICES__CLAUDE__{variable}", "1")

    async def used(fake: FakeAnthropic) -> None:
        await ask()
        refused = await ask(ExternalServiceError)
        assert refused is not None and (refused.kind, refused.attempts) == (Kind.RATE_LIMITED, 0)
        assert refused.retry_after_s is not None and refused.retry_after_s > 0

    view = in_situation(used, fake)
    assert view["state"] == "rate_limited"
    limit = view["rate_limits"][key]
    assert (limit["used"], limit["limit"], limit["remaining"]) == (1, 1, 0) and shapes.at(limit["resets_at"])


@pytest.mark.parametrize("key", ["requests_per_minute", "requests_per_hour", "requests_per_day"])
def test_each_status_has_its_shape_with_a_limit_of_zero(
    fake: FakeAnthropic, monkeypatch: pytest.MonkeyPatch, key: RequestWindow
) -> None:
    """Every query is refused, and the only known time to try again is the end of the day."""
    monkeypatch.setenv(f"AI_SERVICES__CLAUDE__{key.upper()}", "0")

    async def refused(fake: FakeAnthropic) -> None:
        await ask(ExternalServiceError)

    view = in_situation(refused, fake)
    assert view["state"] == "rate_limited"
    limit = view["rate_limits"][key]
    assert (limit["used"], limit["limit"], limit["remaining"]) == (0, 0, 0)


def test_each_status_has_its_shape_without_limit_and_budget(
    fake: FakeAnthropic, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REQUESTS_PER_MINUTE", "REQUESTS_PER_HOUR", "REQUESTS_PER_DAY", "DAILY_BUDGET"):
        monkeypatch.setenv(f"AI_SERVICES__CLAUDE__{name}", "none")

    async def asked(fake: FakeAnthropic) -> None:
        await ask()

    view = in_situation(asked, fake)
    limits = view["rate_limits"]
    assert limits["requests_per_hour"] == {"used": 0, "limit": None, "remaining": None, "resets_at": None}
    assert limits["daily_budget"]["limit"] is limits["daily_budget"]["remaining"] is None


@pytest.mark.parametrize("budget", ["0", "0.000000000001"])
def test_each_status_has_its_shape_with_a_budget_of_zero(
    fake: FakeAnthropic, monkeypatch: pytest.MonkeyPatch, budget: str
) -> None:
    monkeypatch.setenv("AI_SERVICES__CLAUDE__DAILY_BUDGET", budget)

    async def refused(fake: FakeAnthropic) -> None:
        failure = await ask(ExternalServiceError)
        assert failure is not None and (failure.kind, failure.attempts) == (Kind.BUDGET_EXCEEDED, 0)
        assert failure.retry_after_s is not None and 0 < failure.retry_after_s <= 86_400

    view = in_situation(refused, fake)
    assert view["rate_limits"]["daily_budget"]["limit"] == budget
    assert view["state"] == "rate_limited" and "budget" in view["reason"], "at any share of it"


def test_each_status_has_its_shape_with_a_spent_budget(
    fake: FakeAnthropic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bill was equal to the budget."""
    monkeypatch.setenv("AI_SERVICES__CLAUDE__DAILY_BUDGET", "0.002")
    fake.script(answer("x", input_tokens=500, output_tokens=100))

    async def spent(fake: FakeAnthropic) -> None:
        await ask()
        await ask(ExternalServiceError)

    view = in_situation(spent, fake)
    budget = view["rate_limits"]["daily_budget"]
    assert (budget["spent"], budget["remaining"]) == ("0.002", "0") and view["state"] == "rate_limited"


def test_each_status_has_its_shape_for_an_own_operation(fake: FakeAnthropic) -> None:
    async def run(fake: FakeAnthropic) -> None:
        from core.ai_error_handling import ai_error_handler

        async def search() -> str:
            return "found"

        ai_error_handler.register_service("search")
        assert await ai_error_handler.execute_with_error_handling("search", search) == "found"

    view = in_situation(run, fake, "search")
    assert (view["state"], view["configured"], view["metrics"]["successful_requests"]) == ("healthy", True, 1)
    assert view["rate_limits"]["daily_budget"]["limit"] is None


def test_each_status_has_its_shape_without_the_state_store(
    fake: FakeAnthropic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KOO_STATE_URL", REFUSED_PORT)

    async def asked(fake: FakeAnthropic) -> None:
        await ask()

    view = in_situation(asked, fake)
    assert view["rate_limits"]["daily_budget"]["scope"] == "this process"


# ── the database ──────────────────────────────────────────────────────────────────────────────────────────────────


async def use_database(*, fails: bool = False) -> DatabaseUnavailable | None:
    from core.database import db_manager

    async def once() -> None:
        async with db_manager.session_scope() as session:
            assert await session.scalar(text("SELECT 1")) == 1

    if not fails:
        await once()
        return None
    with pytest.raises(DatabaseUnavailable) as caught:
        await once()
    check_error(caught.value, "database")
    assert "hidden" not in str(caught.value)
    return caught.value


def in_database_situation(bring_about: Callable[[], Awaitable[Any]]) -> DatabaseHealth:
    """Like `in_situation`, but returns the view of the database."""

    async def main() -> DatabaseHealth:
        from core.database import db_manager
        from core.platform import platform

        async with served(create_app(platform)) as client:
            await bring_about()
            await check_http(client, "claude")
            await check_python("claude")
            return db_manager.get_health()

    return asyncio.run(main())


def test_each_status_has_its_shape_for_a_sqlite_database() -> None:
    view = in_database_situation(use_database)
    assert (view["healthy"], view["state"], view["conditions"], view["error"]) == (True, "healthy", [], None)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_each_status_has_its_shape_for_a_postgresql_database(
    postgres18: PostgresServer, monkeypatch: pytest.MonkeyPatch, driver: Any
) -> None:
    monkeypatch.setenv("DATABASE_URL", postgres18.url(driver, postgres18.create_database()))
    view = in_database_situation(use_database)
    assert (view["healthy"], view["state"]) == (True, "healthy")


def test_each_status_has_its_shape_for_an_unreachable_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", REFUSED_PORT)
    monkeypatch.setenv("DB_MAX_RETRIES", "0")

    async def failed() -> None:
        failure = await use_database(fails=True)
        assert failure is not None and failure.kind is Kind.CONNECTION

    view = in_database_situation(failed)
    assert (view["healthy"], view["state"], view["circuit_breaker"]["state"]) == (
        False,
        "unhealthy",
        "closed",
    )
    assert view["error"] and "hidden" not in view["error"] and (view["response_time_ms"] or 0) > 0


def test_each_status_has_its_shape_for_a_database_with_an_open_breaker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_URL", REFUSED_PORT)
    monkeypatch.setenv("DB_MAX_RETRIES", "0")

    async def opened() -> None:
        for _ in range(5):
            await use_database(fails=True)
        refused = await use_database(fails=True)
        assert refused is not None and (refused.kind, refused.attempts) == (Kind.CIRCUIT_OPEN, 0)
        assert refused.retry_after_s is not None and 0 < refused.retry_after_s <= 72

    view = in_database_situation(opened)
    assert (view["healthy"], view["state"]) == (False, "circuit_open")
    assert view["circuit_breaker"]["state"] == "open" and shapes.at(view["circuit_breaker"]["next_attempt"])
    assert view["circuit_breaker"]["reason"]


@pytest.mark.parametrize(
    ("override", "word", "state"),
    [(Override.FORCED_OPEN, "forced_open", "circuit_open"), (Override.DISABLED, "disabled", "healthy")],
)
def test_each_status_has_its_shape_for_a_database_under_an_override(
    override: Override, word: str, state: str
) -> None:
    async def overridden() -> None:
        from core.database import db_manager

        db_manager.guard.set_override(override)
        if override is Override.FORCED_OPEN:
            refused = await use_database(fails=True)
            assert refused is not None and refused.kind is Kind.CIRCUIT_OPEN
        else:
            await use_database()

    view = in_database_situation(overridden)
    assert (view["circuit_breaker"]["state"], view["state"]) == (word, state)
    if override is Override.FORCED_OPEN:
        assert view["circuit_breaker"]["reason"] == "forced open by an operator"


def test_each_status_has_its_shape_for_a_recovering_database(
    postgres18: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", postgres18.url(None, postgres18.create_database()))
    monkeypatch.setenv("DB_CIRCUIT_BREAKER_RECOVERY_TIMEOUT", "2")

    async def half_open() -> None:
        from core.database import db_manager

        breaker = db_manager.guard.breaker
        for _ in range(5):
            now = db_manager.clock.monotonic()
            permit = breaker.admit(now, random.random)
            assert permit is not None
            breaker.settle(permit, FAILURE, False, now, random.random)
        assert breaker.phase is OPEN
        await until(lambda: breaker.phase is HALF_OPEN or breaker.streak)

    view = in_database_situation(half_open)
    assert view["state"] in ("degraded", "healthy"), "the probe may have closed it during the check"


def test_each_status_has_its_shape_with_a_full_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_POOL_SIZE", "1")
    monkeypatch.setenv("DATABASE_MAX_OVERFLOW", "0")
    monkeypatch.setenv("DATABASE_POOL_TIMEOUT", "0.1")

    async def full() -> None:
        from core.database import db_manager
        from koo.errors import PoolSaturated

        async with db_manager.session_scope():
            check(db_manager.get_pool_metrics(), shapes.POOL_METRICS)
            assert db_manager.get_pool_metrics()["pool_status"]["utilization"] == 1.0
            with pytest.raises(PoolSaturated) as caught:
                async with db_manager.session_scope():
                    raise AssertionError("the pool has no second connection")
        check_error(caught.value, "database")

    view = in_database_situation(full)
    assert view["conditions"] == ["saturated"] and view["healthy"] is True
